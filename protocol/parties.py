"""What a party refuses to sum, whoever asks.

A party adds up secret shares and publishes the sum. It follows the log with the rounds
decider's own functions, but a log can be forged by those who run it: so each party
remembers what it has summed, and gives nothing that would show a single update.

Rules:

- A sum has at least as many contributions as the federation's ``min_cohort``, and as
  the party's own minimum.
- A round has one sum. Asked again for the same one, the party gives the same bytes;
  another set for the same round would be the difference of the two.
- An update enters one sum, in whatever round or federation it is asked for again.

Source: DESIGN.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum

from schemas.events import RoundSealed


class RefusalCode(StrEnum):
    """Why a party gives no sum."""

    COHORT_TOO_SMALL = "COHORT_TOO_SMALL"
    SECOND_SUM = "SECOND_SUM"
    UPDATE_SUMMED_BEFORE = "UPDATE_SUMMED_BEFORE"


class SumRefusedError(Exception):
    """The party gives no sum; the message says why.

    Attributes:
        code: Which rule.
    """

    def __init__(self, code: RefusalCode, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code


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
    def of(cls, sealed: RoundSealed) -> Summed:
        """Return what the sum of a sealed round is over."""
        return cls(
            federation_id=sealed.federation_id,
            round=sealed.round,
            cause=sealed.cause,
            updates=tuple(
                (c.update_sha256, c.num_examples) for c in sealed.contributions
            ),
        )


def demand_harmless(asked: Summed, known: Iterable[Summed], *, min_cohort: int) -> None:
    """Return if giving this sum shows no single update.

    Args:
        asked: The sum that is asked for.
        known: All that were given.
        min_cohort: The fewest contributions, at least 2: the larger of the
            federation's and the party's own.

    Raises:
        SumRefusedError: it would, or might.
    """
    digests = {digest for digest, _ in asked.updates}
    if len(digests) < max(2, min_cohort):
        raise SumRefusedError(
            RefusalCode.COHORT_TOO_SMALL,
            f"{len(digests)} different updates; this party sums at least "
            f"{max(2, min_cohort)}",
        )
    if len(digests) != len(asked.updates):
        raise SumRefusedError(
            RefusalCode.UPDATE_SUMMED_BEFORE, "an update is in the sum twice"
        )
    for given in known:
        if given == asked:
            continue
        if (given.federation_id, given.round, given.cause) == (
            asked.federation_id,
            asked.round,
            asked.cause,
        ):
            raise SumRefusedError(
                RefusalCode.SECOND_SUM,
                f"round {asked.round} of {asked.federation_id} was summed over another "
                "set",
            )
        again = digests.intersection(digest for digest, _ in given.updates)
        if again:
            raise SumRefusedError(
                RefusalCode.UPDATE_SUMMED_BEFORE,
                f"update {min(again).hex()} is in the sum of round {given.round} of "
                f"{given.federation_id}",
            )
