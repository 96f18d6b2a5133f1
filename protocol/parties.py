"""What a party refuses to say, whoever asks.

A party links secret shares to what was committed to, and publishes their sum. It
follows the log with the rounds decider's own functions, but a log can be forged by
those who run it: so each party remembers what it has said, and says nothing that would
show a single update.

Rules:

- An update is linked once: under one projection, and one challenge, which follows from
  one norm proof. Two links have the same masks, and their difference none. Whoever
  commits to the same again, or as another has, is left out alone.
- A sum is over updates that the party has linked: whose shares it opened and found to
  be what their agents committed to.
- Updates are compared with each other in one set, to one threshold, after they were
  linked, and no more than `MAX_COMPARISONS` times: a comparison that breaks off is
  begun again, and each time a party that does not follow the protocol could learn other
  bits. A set is as large as a sum.
- A sum has at least as many contributions as the federation's ``min_cohort``, and as
  the party's own minimum.
- A round has one sum. Asked again for the same one, the party gives the same bytes;
  another set for the same round would be the difference of the two.
- An update enters one sum, in whatever round or federation it is asked for again.

Source: DESIGN.md section 6.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias

from protocol.contributions import Contribution
from protocol.far_pairs import MIN_COMPARED
from schemas.events import RoundSealed

MAX_COMPARISONS: Final = 8


class RefusalCode(StrEnum):
    """Why a party does not say something."""

    LINKED_BEFORE = "LINKED_BEFORE"
    NOT_LINKED = "NOT_LINKED"
    COMPARED_BEFORE = "COMPARED_BEFORE"
    COMPARED_TOO_OFTEN = "COMPARED_TOO_OFTEN"
    COHORT_TOO_SMALL = "COHORT_TOO_SMALL"
    SECOND_SUM = "SECOND_SUM"
    UPDATE_SUMMED_BEFORE = "UPDATE_SUMMED_BEFORE"


class PartyRefusesError(Exception):
    """The party says nothing; the message says why.

    Attributes:
        code: Which rule.
    """

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """Shares that a party has linked, or is about to.

    Attributes:
        projection_seed: Of the round's projection, 32 bytes.
        updates: Of each update, digests of its commitments and of its norm proof.
    """

    projection_seed: bytes
    updates: tuple[tuple[bytes, bytes], ...]

    def without(self, places: Container[int]) -> Linked:
        """Return the same without the updates at some places."""
        return replace(
            self,
            updates=tuple(
                update
                for place, update in enumerate(self.updates)
                if place not in places
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Summed:
    """A sum that a party has given, or is about to give.

    Attributes:
        federation_id: The federation.
        round: The round.
        cause: Leaf hash of what sealed it, 32 bytes: a federation founded anew counts
            from 1 again.
        updates: Digest of the commitments and weight of each contribution, in order.
    """

    federation_id: str
    round: int
    cause: bytes
    updates: tuple[tuple[bytes, int], ...]

    @classmethod
    def of(cls, sealed: RoundSealed, contributions: Iterable[Contribution]) -> Summed:
        """Return what the sum of a sealed round is over: its contributions."""
        return cls(
            federation_id=sealed.federation_id,
            round=sealed.round,
            cause=sealed.cause,
            updates=tuple((c.update_sha256, c.num_examples) for c in contributions),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Updates that a party has compared with the others, or is about to.

    Attributes:
        updates: Digest of the commitments of each, in ascending order of agent_id.
        far_threshold: The squared distance above which two are far apart.
        attempt: From 1; one that broke off counts.
    """

    updates: tuple[bytes, ...]
    far_threshold: int
    attempt: int = 1


Said: TypeAlias = Linked | Compared | Summed
"""What a party remembers."""


def find_linked_before(asked: Linked, known: Iterable[Said]) -> frozenset[int]:
    """Return which of these updates were linked otherwise, by their places.

    Of two that have the same commitments the first is linked.
    """
    links = {
        digest: (said.projection_seed, proof)
        for said in known
        if isinstance(said, Linked)
        for digest, proof in said.updates
    }
    refused = set()
    for place, (digest, proof) in enumerate(asked.updates):
        link = (asked.projection_seed, proof)
        if links.setdefault(digest, link) != link:
            refused.add(place)
    return frozenset(refused)


def demand_comparable(
    asked: Compared, known: Sequence[Said], *, min_cohort: int
) -> Compared:
    """Return which attempt it would be to compare these updates, if that is harmless.

    Args:
        asked: What is asked for; its attempt does not matter.
        known: What the party has said.
        min_cohort: The fewest updates: the larger of the federation's and the party's
            own.

    Raises:
        PartyRefusesError: it would show more than one bit for each pair, or might.
    """
    digests = frozenset(asked.updates)
    fewest = max(MIN_COMPARED, min_cohort)
    if len(digests) < fewest or len(digests) != len(asked.updates):
        raise PartyRefusesError(
            RefusalCode.COHORT_TOO_SMALL,
            f"{len(digests)} different updates; this party compares at least {fewest}",
        )
    num_attempts = 0
    for said in known:
        if not isinstance(said, Compared):
            continue
        if (said.updates, said.far_threshold) == (asked.updates, asked.far_threshold):
            num_attempts += 1
        elif digests.intersection(said.updates):
            raise PartyRefusesError(
                RefusalCode.COMPARED_BEFORE,
                f"update {min(digests.intersection(said.updates)).hex()} was compared "
                "in another set, or to another threshold",
            )
    _demand_linked(digests, known)
    if num_attempts >= MAX_COMPARISONS:
        raise PartyRefusesError(
            RefusalCode.COMPARED_TOO_OFTEN,
            f"these updates were compared {num_attempts} times, and it broke off",
        )
    return replace(asked, attempt=num_attempts + 1)


def _demand_linked(digests: frozenset[bytes], known: Iterable[Said]) -> None:
    linked = {
        digest
        for said in known
        if isinstance(said, Linked)
        for digest, _ in said.updates
    }
    unknown = digests - linked
    if unknown:
        raise PartyRefusesError(
            RefusalCode.NOT_LINKED,
            f"update {min(unknown).hex()} was not linked by this party",
        )


def demand_harmless(asked: Summed, known: Sequence[Said], *, min_cohort: int) -> None:
    """Return if giving this sum shows no single update.

    Args:
        asked: The sum that is asked for.
        known: What the party has said.
        min_cohort: The fewest contributions, at least 2: the larger of the
            federation's and the party's own.

    Raises:
        PartyRefusesError: it would, or might.
    """
    digests = frozenset(digest for digest, _ in asked.updates)
    if len(digests) < max(2, min_cohort):
        raise PartyRefusesError(
            RefusalCode.COHORT_TOO_SMALL,
            f"{len(digests)} different updates; this party sums at least "
            f"{max(2, min_cohort)}",
        )
    if len(digests) != len(asked.updates):
        raise PartyRefusesError(
            RefusalCode.UPDATE_SUMMED_BEFORE, "an update is in the sum twice"
        )
    for given in known:
        if given == asked or not isinstance(given, Summed):
            continue
        if (given.federation_id, given.round, given.cause) == (
            asked.federation_id,
            asked.round,
            asked.cause,
        ):
            raise PartyRefusesError(
                RefusalCode.SECOND_SUM,
                f"round {asked.round} of {asked.federation_id} was summed over another "
                "set",
            )
        again = digests.intersection(digest for digest, _ in given.updates)
        if again:
            raise PartyRefusesError(
                RefusalCode.UPDATE_SUMMED_BEFORE,
                f"update {min(again).hex()} is in the sum of round {given.round} of "
                f"{given.federation_id}",
            )
    _demand_linked(digests, known)
