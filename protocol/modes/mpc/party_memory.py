"""What a party refuses to say, whoever asks.

A party links secret shares to their commitments, and publishes their sum. It follows
the log with the rounds decider's own functions, but those who run a log can forge it:
so each party remembers what it has said, and says nothing that would reveal a single
update.

Rules:

- An update is linked in one statement with one norm proof, which determine its
  projection and challenges; that link may be repeated. Two different ones would share
  their masks, and their difference would have none. An agent that commits to the same
  again, or to what another has, is left out alone.
- A sum is over updates that the party has linked: whose shares it opened and found to
  match their agents' commitments.
- Updates are compared with each other in one set, to one threshold, after they were
  linked, and an agent's at most `MAX_COMPARISONS` times over one base model, whatever
  it commits to: a comparison that breaks off, or whose round is abandoned, starts
  again, and each time a dishonest party could learn other bits of the same update. A
  set is as large as a sum.
- A sum has at least as many contributions as the federation's ``min_cohort``, and as
  the party's own minimum.
- A sum is opened once: for one base model of a federation, an agent is in one sum that
  the party gave a part of, whatever the bytes of its update. So the sets of one base
  are disjoint, and no combination of sums covers fewer agents than the smallest of
  them. (That two sets differ by many agents is not enough: four such sets can leave one
  agent alone.) Asked again for the same sum, the party gives the same bytes.
- A party never returns to a base model that it left by a sum over another one of the
  federation. So it has to remember only a digest of each base before the last, however
  long the federation lives.

A share opens for only one federation, agent and base model
(`protocol.modes.mpc.checker.make_place`): a forged log that attributes an update to
another agent or base gains nothing.

Source: DESIGN.md section 6, ADR 0032.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Final, TypeAlias

from protocol.contributions import Contribution
from protocol.modes.mpc.far_pairs import MIN_COMPARED
from schemas.events import RoundSealed

MAX_COMPARISONS: Final = 8


class RefusalCode(StrEnum):
    """Why a party does not say something."""

    LINKED_BEFORE = "LINKED_BEFORE"
    NOT_LINKED = "NOT_LINKED"
    COMPARED_BEFORE = "COMPARED_BEFORE"
    COMPARED_TOO_OFTEN = "COMPARED_TOO_OFTEN"
    COHORT_TOO_SMALL = "COHORT_TOO_SMALL"
    AGENT_SUMMED_BEFORE = "AGENT_SUMMED_BEFORE"
    BASE_LEFT = "BASE_LEFT"


class PartyRefusesError(Exception):
    """The party says nothing; the message says why.

    Attributes:
        code: The rule.
        detail: What it met, as text.
    """

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


@dataclass(frozen=True, slots=True, kw_only=True)
class Linked:
    """Shares that a party has linked, or is about to link.

    Attributes:
        federation_id: The federation.
        base_model: Digest of the round's base model, 32 bytes.
        updates: For each update its agent, and digests of its commitments and of its
            statement with its norm proof.
    """

    federation_id: str
    base_model: bytes
    updates: tuple[tuple[str, bytes, bytes], ...]

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
        base_model: Digest of the round's base model, 32 bytes.
        round: The round.
        cause: Hash of the leaf that sealed it, 32 bytes: a federation founded anew
            counts from 1 again.
        updates: Agent, digest of the commitments and weight of each contribution, in
            order.
    """

    federation_id: str
    base_model: bytes
    round: int
    cause: bytes
    updates: tuple[tuple[str, bytes, int], ...]

    @property
    def agents(self) -> frozenset[str]:
        """The agents in it."""
        return frozenset(agent_id for agent_id, _, _ in self.updates)

    @classmethod
    def of(cls, sealed: RoundSealed, contributions: Iterable[Contribution]) -> Summed:
        """Return the sum over a sealed round's contributions."""
        return cls(
            federation_id=sealed.federation_id,
            base_model=sealed.base_model.sha256,
            round=sealed.round,
            cause=sealed.cause,
            updates=tuple(
                (c.agent_id, c.update_sha256, c.num_examples) for c in contributions
            ),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """Updates that a party has compared with the others, or is about to compare.

    Attributes:
        federation_id: The federation.
        base_model: Digest of the round's base model, 32 bytes.
        updates: Digest of the commitments of each, in ascending order of agent_id.
        far_threshold: The squared distance above which two are far apart.
        attempt: From 1; a broken-off one counts.
    """

    federation_id: str
    base_model: bytes
    updates: tuple[bytes, ...]
    far_threshold: int
    attempt: int = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """A base model that a party said something about before it summed over another.

    Attributes:
        federation_id: The federation.
        base_model: Its digest, 32 bytes.
    """

    federation_id: str
    base_model: bytes


Said: TypeAlias = Linked | Compared | Summed
"""What a party says."""
Known: TypeAlias = Said | Left
"""What a party remembers."""


def remember(known: Sequence[Known], said: Said) -> list[Known]:
    """Return what a party has to remember once it has said one thing more.

    Args:
        known: What it had to remember before.
        said: What it says now, permitted by the rules below.
    """
    if not isinstance(said, Summed):
        return [*known, said]
    kept: list[Known] = []
    left: dict[bytes, Left] = {}
    for item in known:
        if (
            isinstance(item, Left)
            or item.federation_id != said.federation_id
            or item.base_model == said.base_model
        ):
            kept.append(item)
        else:
            left[item.base_model] = Left(
                federation_id=item.federation_id, base_model=item.base_model
            )
    return [*kept, *left.values(), said]


def demand_not_left(asked: Said, known: Iterable[Known]) -> None:
    """Check that the party has not left this base model.

    Raises:
        PartyRefusesError: it has.
    """
    left = Left(federation_id=asked.federation_id, base_model=asked.base_model)
    if left in known:
        raise PartyRefusesError(
            RefusalCode.BASE_LEFT,
            f"base model {asked.base_model.hex()} of {asked.federation_id} was left "
            "for another",
        )


def find_summed_agents(
    federation_id: str, base_model: bytes, known: Iterable[Known]
) -> frozenset[str]:
    """Return the agents in sums that the party has given over a base model."""
    return frozenset[str]().union(
        *(
            said.agents
            for said in known
            if isinstance(said, Summed)
            and (said.federation_id, said.base_model) == (federation_id, base_model)
        )
    )


def find_unlinkable(
    asked: Linked, known: Sequence[Known]
) -> Mapping[int, tuple[RefusalCode, str]]:
    """Return which of these updates may not be linked, by their places, and why.

    Of two with the same commitments, the first is linked.

    Raises:
        PartyRefusesError: none may: the party has left their base model.
    """
    demand_not_left(asked, known)
    links = {
        digest: proven
        for said in known
        if isinstance(said, Linked)
        for _, digest, proven in said.updates
    }
    summed = find_summed_agents(asked.federation_id, asked.base_model, known)
    refused: dict[int, tuple[RefusalCode, str]] = {}
    for place, (agent_id, digest, proven) in enumerate(asked.updates):
        is_new = digest not in links
        if links.setdefault(digest, proven) != proven:
            detail = "these commitments were linked"
            refused[place] = RefusalCode.LINKED_BEFORE, detail
        elif is_new and agent_id in summed:
            # The sum with it would be refused: rather leave it out.
            detail = "an update of this agent for this base model was summed"
            refused[place] = RefusalCode.AGENT_SUMMED_BEFORE, detail
    return refused


def demand_comparable(
    asked: Compared, known: Sequence[Known], *, min_cohort: int
) -> Compared:
    """Return the comparison with its attempt, if it is harmless.

    Args:
        asked: The comparison; its attempt does not matter.
        known: What the party remembers.
        min_cohort: The fewest updates: the larger of the federation's and the party's
            own.

    Raises:
        PartyRefusesError: it would reveal more than one bit per pair, or might.
    """
    digests = frozenset(asked.updates)
    fewest = max(MIN_COMPARED, min_cohort)
    if len(digests) < fewest or len(digests) != len(asked.updates):
        raise PartyRefusesError(
            RefusalCode.COHORT_TOO_SMALL,
            f"{len(digests)} different updates; this party compares at least {fewest}",
        )
    demand_not_left(asked, known)
    owners = {
        digest: agent_id
        for said in known
        if isinstance(said, Linked)
        for agent_id, digest, _ in said.updates
    }
    num_attempts = 0
    num_compared: Counter[str] = Counter()
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
        if (said.federation_id, said.base_model) == (
            asked.federation_id,
            asked.base_model,
        ):
            num_compared.update(owners[digest] for digest in said.updates)
    _demand_linked(digests, known)
    # By agent: it says one update for a base model, under new commitments each time.
    agent_id = max(map(owners.__getitem__, asked.updates), key=num_compared.__getitem__)
    if num_compared[agent_id] >= MAX_COMPARISONS:
        raise PartyRefusesError(
            RefusalCode.COMPARED_TOO_OFTEN,
            f"updates of {agent_id} were compared {num_compared[agent_id]} times over "
            "this base model",
        )
    return replace(asked, attempt=num_attempts + 1)


def _demand_linked(digests: frozenset[bytes], known: Iterable[Known]) -> None:
    linked = {
        digest
        for said in known
        if isinstance(said, Linked)
        for _, digest, _ in said.updates
    }
    unknown = digests - linked
    if unknown:
        raise PartyRefusesError(
            RefusalCode.NOT_LINKED,
            f"update {min(unknown).hex()} was not linked by this party",
        )


def demand_harmless(asked: Summed, known: Sequence[Known], *, min_cohort: int) -> None:
    """Check that giving this sum reveals no single update.

    Args:
        asked: The sum.
        known: What the party remembers.
        min_cohort: The fewest contributions, at least 2: the larger of the federation's
            and the party's own.

    Raises:
        PartyRefusesError: it would, or might.
    """
    demand_not_left(asked, known)
    agents = asked.agents
    digests = frozenset(digest for _, digest, _ in asked.updates)
    num_different = min(len(agents), len(digests))
    if num_different < max(2, min_cohort):
        raise PartyRefusesError(
            RefusalCode.COHORT_TOO_SMALL,
            f"{num_different} different updates; this party sums at least "
            f"{max(2, min_cohort)}",
        )
    if num_different != len(asked.updates):
        raise PartyRefusesError(
            RefusalCode.AGENT_SUMMED_BEFORE, "an agent or update is in the sum twice"
        )
    for given in known:
        if (
            not isinstance(given, Summed)
            or given == asked
            or (given.federation_id, given.base_model)
            != (asked.federation_id, asked.base_model)
        ):
            continue
        again = agents & given.agents
        if again:
            raise PartyRefusesError(
                RefusalCode.AGENT_SUMMED_BEFORE,
                f"{len(again)} agents, {min(again)} among them, are in the sum of "
                f"round {given.round} over the same base model",
            )
    _demand_linked(digests, known)
