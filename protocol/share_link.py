"""That shares add up to what was committed to, and sums to what was shared.

Parties hold shares modulo 2^64 of an update that is committed to modulo r. The bridge
is the projection R of the norm proof: K rows of {-1, 0, 1}, from a seed that nobody
knew before the round's commitments and sealed shares were final (ADR 0019).

**Link.** For agent i, party j publishes P_ij = R x_ij + Q a_ij + y_ij modulo 2^64, with
Q the columns of R for the four squares a, and b_ij = μ_ij + Σ_k e^k s_ijk modulo r. The
norm proof has proved w_i = R x_i + Q a_i + y_i and s_z = μ_i + Σ_k e^k s_ik of what the
agent committed to. `verify_link` demands Σ_j P_ij = w_i modulo 2^64 and Σ_j b_ij = s_z.

- Shares that add up to anything else did so before R and e were known. A row of R
  misses a difference with probability ½ at the most, whatever it is modulo 2^64, so all
  K = 128 do with 2^-128; e misses one of blindings with (m + 2) / r.
- Any P-1 of the P_ij and b_ij are uniform, since y_ij and μ_ij are; the last follows
  from w_i and s_z, which are public. So links show nothing that the proof doesn't.
- A party links an update once (see `protocol.parties`). Two links under two projections
  have the same masks: their difference would show R x - R' x.
- Where a link fails, the agent or one of the parties lied; it does not tell which.

**Sum.** Of the accepted agents with weights v_i, party j publishes S_j = Σ v_i x_ij and
its remainder U_j = Σ v_i (Q a_ij + y_ij) modulo 2^64; for the m rows T_j = Σ v_i s_ij,
and t_j = Σ v_i t_ij, modulo r. `verify_party_sum` demands that (T_j, t_j) opens the
weighted share commitments, and R S_j + U_j = Σ v_i P_ij modulo 2^64. `open_aggregate`
demands that (Σ S_j, Σ T_j) opens the weighted commitments of the agents.

- A wrong sum is never accepted: that would break the binding of the commitments.
- A party whose T_j or t_j is wrong is always named, or has broken that binding.
- A party whose S_j or U_j is wrong is named if it was a fault, or a lie that did not
  heed R. One that knows R can lie unnamed, by a vector of the kernel of R or by a
  remainder that makes up for the lie; then the opening fails. No projection that is
  known before S_j can do better, since d exceeds K; one that is drawn after S_j would
  need the agents again. Commitments to share vectors would (PRIVACY.md section 3b), at
  several times the work of the commitment to the update.
- The squares are in U_j alone. Their own sum would show more of the agents' norms than
  the sum of updates does. So would Σ v_i y_i: with w and S it gives Q Σ v_i a_i. U_j
  shows nothing, because it follows from S_j and the P_ij. For the same reason binding
  it would gain nothing, so share commitments are to blindings alone.

It deliberately adds no noise to sums yet, and does not know who may be summed (see
`protocol.parties`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.commitments import (
    SCALAR_ORDER,
    combine_points,
    commit_scalars,
    compute_num_rows,
    verify_opening,
)
from protocol.norm_proof import NUM_PROJECTIONS, NUM_SQUARES, Projection
from protocol.shares import Share, ShareShape

#: Columns of a projection that are multiplied at a time. Digits of 32 bits times ±1,
#: summed this often, stay below 2^48: exact in float64 in whatever order BLAS adds.
_COLUMNS: Final = 2**14  # = 16,384
_DIGIT_BITS: Final = 32
_DIGIT_MASK: Final = np.uint64(2**_DIGIT_BITS - 1)
#: Elements of a share that are summed at a time: the products stay in cache.
_CHUNK: Final = 2**15  # = 32,768


class SharesDifferError(ValueError):
    """Shares of an update don't add up to what its proof is about."""


class PartialRefusal(StrEnum):
    """Why a party's sum can't be its own."""

    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_BLINDINGS = "WRONG_BLINDINGS"
    WRONG_PROJECTION = "WRONG_PROJECTION"


class WrongPartialError(ValueError):
    """A party's sum contradicts what it, and the agents, had published.

    Attributes:
        reason: Which check fails.
        detail: For people.
    """

    def __init__(self, reason: PartialRefusal, detail: str) -> None:
        """Refuse for one reason."""
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class WrongSumError(ValueError):
    """The parties' sums together don't open the agents' commitments."""


@dataclass(frozen=True, slots=True, eq=False)
class SharedProjection:
    """The round's projection, as shares see it.

    Attributes:
        values: R, shape (K, d) int8 of -1, 0 and 1.
        squares: Q, shape (K, 4), likewise.
        num_rows: m, rows that the d values are committed to in.
    """

    values: NDArray[np.int8]
    squares: NDArray[np.int8]
    num_rows: int

    @classmethod
    def of(cls, projection: Projection, *, num_values: int) -> SharedProjection:
        """Take what concerns shares from the norm proof's projection.

        Args:
            projection: The round's, for m rows of n columns and the squares' row.
            num_values: d. The rest of the last of the m rows is zeros, and not shared.

        Raises:
            ValueError: a projection for another number of values; a bug.
        """
        _, num_rows, row_length = projection.signs.shape
        num_rows -= 1
        if num_rows != compute_num_rows(num_values, row_length):
            msg = (
                f"a projection of {num_rows} rows of {row_length}, "
                f"which do not hold {num_values} values"
            )
            raise ValueError(msg)
        flat = projection.signs.reshape(NUM_PROJECTIONS, -1)
        squares = projection.signs[:, -1, :NUM_SQUARES]
        return cls(flat[:, :num_values], squares, num_rows)


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """What a party says of its share of one update.

    Attributes:
        projections: P_ij, shape (K,) uint64.
        blinding: b_ij, modulo r.
    """

    projections: NDArray[np.uint64]
    blinding: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartySum:
    """A party's part of the sum.

    Attributes:
        values: S_j, shape (d,) uint64.
        remainder: U_j, shape (K,) uint64.
        row_blindings: T_j, m integers modulo r.
        opening: t_j, modulo r.
    """

    values: NDArray[np.uint64]
    remainder: NDArray[np.uint64]
    row_blindings: tuple[int, ...]
    opening: int


def compute_links(
    shares: Sequence[Share],
    challenges: Sequence[Sequence[int]],
    projection: SharedProjection,
) -> list[Link]:
    """Link a party's shares of several updates.

    Args:
        shares: The party's. A batch of about 20 uses the machine best.
        challenges: For each update, the powers e^1 to e^(m+2) of its norm proof's
            challenge: for rows, squares and masks.
        projection: The round's.

    Returns:
        One for each share, in order. To be published once, whatever happens.
    """
    masked = _project(projection.values, [share.values for share in shares])
    masked += _project(projection.squares, [share.squares for share in shares])
    links = []
    for share, powers, row in zip(shares, challenges, masked, strict=True):
        *bound, mask_blinding = share.blindings
        blinding = mask_blinding + sum(
            power * blinding for power, blinding in zip(powers, bound, strict=True)
        )
        links.append(Link(row + share.masks, blinding % SCALAR_ORDER))
    return links


def verify_link(
    links: Sequence[Link], *, projections: Sequence[int], blinding: int
) -> None:
    """Check that the shares of one update add up to what was committed to.

    Args:
        links: Those of all parties for this update.
        projections: w, K integers, from its verified norm proof.
        blinding: s_z, from the same.

    Raises:
        SharesDifferError: they don't. The agent's shares are inconsistent, or a party
            lied.
    """
    total = np.zeros(NUM_PROJECTIONS, dtype=np.uint64)
    for link in links:
        total += link.projections
    differing = sum(
        int(have) != want % 2**64 for have, want in zip(total, projections, strict=True)
    )
    if differing:
        msg = f"{differing} of {NUM_PROJECTIONS} projections of the shares differ"
        raise SharesDifferError(msg)
    if sum(link.blinding for link in links) % SCALAR_ORDER != blinding:
        raise SharesDifferError("the blindings of the shares differ")


def compute_party_sum(
    shares: Iterable[tuple[Share, int]],
    *,
    shape: ShareShape,
    projection: SharedProjection,
) -> PartySum:
    """Sum a party's shares, each times its update's number of examples.

    Args:
        shares: Pairs of a share and its weight, at least 1; read one at a time.
        shape: Of the round's shares.
        projection: The round's.

    Raises:
        ValueError: a weight below 1, or all together 2^31 or more; a bug.
    """
    values = np.zeros(shape.num_values, dtype=np.uint64)
    squares = np.zeros(NUM_SQUARES, dtype=np.uint64)
    remainder = np.zeros(NUM_PROJECTIONS, dtype=np.uint64)
    row_blindings = [0] * shape.num_rows
    opening = 0
    weights = []
    for share, weight in shares:
        weights.append(weight)
        _check_weights(weights)
        _add_weighted(values, share.values, weight)
        _add_weighted(squares, share.squares, weight)
        _add_weighted(remainder, share.masks, weight)
        row_blindings = [
            total + weight * blinding
            for total, blinding in zip(row_blindings, share.row_blindings, strict=True)
        ]
        opening += weight * share.opening
    remainder += _project(projection.squares, [squares])[0]
    return PartySum(
        values=values,
        remainder=remainder,
        row_blindings=tuple(total % SCALAR_ORDER for total in row_blindings),
        opening=opening % SCALAR_ORDER,
    )


def verify_party_sum(
    party_sum: PartySum,
    *,
    commitments: Sequence[bytes],
    links: Sequence[Link],
    weights: Sequence[int],
    projection: SharedProjection,
) -> None:
    """Check a party's sum against what it is the sum of; from public data alone.

    Args:
        party_sum: What the party published; lengths and ranges untrusted.
        commitments: Of the accepted agents, the share commitment for this party.
        links: Of the same agents in the same order, this party's link.
        weights: Their numbers of examples.
        projection: The round's.

    Raises:
        WrongPartialError: the party's sum is wrong, and the party is to blame.
        InvalidEncodingError: a share commitment is no acceptable point; then its agent
            should not have been accepted.
    """
    if (
        party_sum.values.shape != projection.values.shape[1:]
        or party_sum.remainder.shape != (NUM_PROJECTIONS,)
        or len(party_sum.row_blindings) != projection.num_rows
        or not all(0 <= s < SCALAR_ORDER for s in party_sum.row_blindings)
        or not 0 <= party_sum.opening < SCALAR_ORDER
    ):
        detail = "not a sum of shares of this round"
        raise WrongPartialError(PartialRefusal.WRONG_SHAPE, detail)
    opened = commit_scalars(party_sum.row_blindings, party_sum.opening)
    if opened != combine_points(commitments, weights):
        detail = "its blindings don't open the share commitments"
        raise WrongPartialError(PartialRefusal.WRONG_BLINDINGS, detail)
    want = np.zeros(NUM_PROJECTIONS, dtype=np.uint64)
    for link, weight in zip(links, weights, strict=True):
        _add_weighted(want, link.projections, weight)
    have = _project(projection.values, [party_sum.values])[0] + party_sum.remainder
    differing = int(np.count_nonzero(have != want))
    if differing:
        detail = f"{differing} of {NUM_PROJECTIONS} projections differ from its links"
        raise WrongPartialError(PartialRefusal.WRONG_PROJECTION, detail)


def open_aggregate(
    party_sums: Sequence[PartySum],
    rows: Sequence[bytes],
    *,
    row_length: int | None = None,
) -> NDArray[np.int64]:
    """Add the parties' sums up and check that they open the commitments.

    Args:
        party_sums: One of each party, in any order; each passed `verify_party_sum`.
        rows: The accepted agents' commitments, combined by `combine_rows` with their
            weights: m points.
        row_length: n; that of `choose_row_length` unless told.

    Returns:
        shape (d,) int64: Σ v_i x_i, exactly, |x| < 2^50.

    Raises:
        WrongSumError: they don't open. A party lied and it cannot be told which.
    """
    values = np.zeros(len(party_sums[0].values), dtype=np.uint64)
    for party_sum in party_sums:
        values += party_sum.values
    signed = values.view(np.int64)
    blindings = [
        sum(column) % SCALAR_ORDER
        for column in zip(*(s.row_blindings for s in party_sums), strict=True)
    ]
    if not verify_opening(rows, signed, blindings, row_length=row_length):
        msg = "the parties' sums don't open the agents' commitments"
        raise WrongSumError(msg)
    return signed


def _project(
    signs: NDArray[np.int8], vectors: Sequence[NDArray[np.uint64]]
) -> NDArray[np.uint64]:
    """Return the product of a matrix of -1, 0, 1 and each vector, modulo 2^64."""
    total = np.zeros((len(vectors), len(signs)), dtype=np.uint64)
    for begin in range(0, signs.shape[1], _COLUMNS):
        columns = signs[:, begin : begin + _COLUMNS].T.astype(np.float64)
        words = np.stack([vector[begin : begin + _COLUMNS] for vector in vectors])
        low = (words & _DIGIT_MASK).astype(np.float64) @ columns
        high = (words >> np.uint64(_DIGIT_BITS)).astype(np.float64) @ columns
        total += _to_words(low) + (_to_words(high) << np.uint64(_DIGIT_BITS))
    return total


def _to_words(exact: NDArray[np.float64]) -> NDArray[np.uint64]:
    return exact.astype(np.int64).view(np.uint64)


def _add_weighted(
    total: NDArray[np.uint64], addend: NDArray[np.uint64], weight: int
) -> None:
    factor = np.uint64(weight)
    for begin in range(0, len(total), _CHUNK):
        total[begin : begin + _CHUNK] += addend[begin : begin + _CHUNK] * factor


def _check_weights(weights: Sequence[int]) -> None:
    if min(weights) < 1 or sum(weights) > MAX_TOTAL_EXAMPLES:
        msg = f"weights from {min(weights)}, {sum(weights)} in all"
        raise ValueError(msg)
