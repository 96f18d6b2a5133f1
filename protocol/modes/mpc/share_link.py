"""Proof that shares add up to the commitments, and sums to the shares.

Parties hold shares modulo 2^64 of an update that is committed to modulo r. Projections
(`protocol.modes.mpc.projections`) are the bridge: K rows, from a seed that nobody knew
before everything involved was fixed (ADR 0033).

**Link.** For agent i, R_i is the projection of its norm proof: its seed is a hash over
the commitments and the digests of all sealed shares. Party j publishes
P_ij = R_i x_ij + Q_i a_ij + y_ij modulo 2^64, with Q_i the columns of R_i for the four
squares a, and b_ij = μ_ij + Σ_k e^k s_ijk modulo r, e being the proof's challenge. The
norm proof has proved w_i = R_i x_i + Q_i a_i + y_i and s_z = μ_i + Σ_k e^k s_ik of what
the agent committed to. `verify_link` demands Σ_j P_ij = w_i modulo 2^64 and
Σ_j b_ij = s_z.

- Shares that add up to anything else did so before R_i and e were known. All K = 309
  rows miss a difference, whatever it is modulo 2^64 and whatever the masks' offsets
  are, with 2^-128 (lemma 1); e misses one of blindings with (m + 2) / r.
- Any P-1 of the P_ij and b_ij are uniform, since y_ij and μ_ij are; the last follows
  from w_i and s_z, which are public. So links show nothing that the proof doesn't.
- A link may be repeated, with the same bytes. The same masks under another projection
  or another challenge would reveal a combination of the update: a party links one
  commitment in one statement with one proof (see `protocol.modes.mpc.party_memory`).
- Where a link fails, the agent or one of the parties lied; nobody can tell which.

**Sum.** R' is another projection, with K' = 78 rows, of the values alone: its seed is a
hash over the round's closed set. With its link, party j publishes
P'_ij = R' x_ij + y'_ij. The mask y'_ij is the party's own (`SumMasks`): another for
another R' or R_i. Of the accepted agents with weights v_i it publishes S_j = Σ v_i x_ij
and Y'_j = Σ v_i y'_ij modulo 2^64; for the m rows T_j = Σ v_i s_ij, and
t_j = Σ v_i t_ij, modulo r. `verify_party_sum` demands that (T_j, t_j) opens the
weighted share commitments, and R' S_j + Y'_j = Σ v_i P'_ij modulo 2^64.
`open_aggregate` demands that (Σ S_j, Σ T_j) opens the weighted commitments of the
agents.

- A wrong sum is never accepted: that would break the binding of the commitments.
- A party whose T_j or t_j is wrong is always named, or has broken that binding.
- A party whose S_j or Y'_j is wrong is named, except with probability 2^-32, if it was
  a fault, or a lie that ignored R'. A party that knows R' can lie unnamed, by a vector
  of its kernel or by masks that make up for the lie; then the opening fails. So more
  rows would not find more. Commitments to share vectors would (PRIVACY.md section 3b),
  at several times the work of the commitment to the update.
- An honest party is never named: both checks hold by construction, whatever agents
  share, once `protocol.modes.mpc.shares.parse_share` has passed their share.
- P'_ij reveals nothing while y'_ij is unknown, and Y'_j follows from S_j and the P'_ij.
- The squares' shares are in no sum: their sum would reveal more about the agents' norms
  than the sum of updates does.

It deliberately adds no noise to sums yet, and does not know who may be summed (see
`protocol.modes.mpc.party_memory`).
"""

from __future__ import annotations

import hmac
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    combine_points,
    commit_scalars,
    verify_opening,
)
from protocol.modes.mpc.projections import NUM_PROJECTIONS, Projection, expand_stream
from protocol.modes.mpc.shares import WORD_SIZE, Share, ShareShape
from protocol.refusals import RefusedError

SUM_MASK_DOMAIN: Final = b"folkmoot/sum-masks/v1\n"
#: K': rows of the sum's projection, which miss a fault with (3/4)^78 < 2^-32.
NUM_SUM_PROJECTIONS: Final = 78

assert 3**NUM_SUM_PROJECTIONS * 2**32 < 4**NUM_SUM_PROJECTIONS

#: Elements of a share that are summed at a time: the products stay in cache.
_CHUNK: Final = 2**15  # = 32,768


class SharesDifferError(ValueError):
    """Shares of an update don't add up to what its proof is about."""


class PartialRefusal(StrEnum):
    """Why a party's sum can't be its own."""

    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_BLINDINGS = "WRONG_BLINDINGS"
    WRONG_PROJECTION = "WRONG_PROJECTION"


class WrongPartialError(RefusedError[PartialRefusal]):
    """A party's sum contradicts what it, and the agents, had published."""


class WrongSumError(ValueError):
    """The parties' sums together don't open the agents' commitments."""


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """A party's statement about its share of one update.

    Attributes:
        projections: P_ij, shape (K,) uint64.
        blinding: b_ij, modulo r.
        sum_projections: P'_ij, shape (K',) uint64.
    """

    projections: NDArray[np.uint64]
    blinding: int
    sum_projections: NDArray[np.uint64]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PartySum:
    """A party's part of the sum.

    Attributes:
        values: S_j, shape (d,) uint64.
        masks: Y'_j, shape (K',) uint64.
        row_blindings: T_j, m integers modulo r.
        opening: t_j, modulo r.
    """

    values: NDArray[np.uint64]
    masks: NDArray[np.uint64]
    row_blindings: tuple[int, ...]
    opening: int


@dataclass(frozen=True, slots=True)
class SumMasks:
    """A party's own masks for its statements under one projection of a sum.

    Attributes:
        key: The party's key for masks, 32 bytes. **Secret.**
        sum_seed: The seed of R', 32 bytes.
    """

    key: bytes = field(repr=False)
    sum_seed: bytes

    def expand(self, seed: bytes) -> NDArray[np.uint64]:
        """Return the masks y'_ij for the statement about one share.

        They are AES-256 in counter mode, from a first block of zeros, under the key
        HMAC-SHA256(key, `SUM_MASK_DOMAIN` || seed of R' || seed of R_i).

        Args:
            seed: The seed of R_i, 32 bytes: a hash of this very share, among others.

        Returns:
            shape (K',) uint64. **Secret.**
        """
        named = SUM_MASK_DOMAIN + self.sum_seed + seed
        derived = hmac.digest(self.key, named, "sha256")
        stream = expand_stream(derived, NUM_SUM_PROJECTIONS * WORD_SIZE)
        return np.frombuffer(stream, dtype="<u8").astype(np.uint64, copy=False)


def expand_sum_projection(seed: bytes, *, num_rows: int, row_length: int) -> Projection:
    """Return R' from its seed, 32 bytes, for m rows of n columns."""
    return Projection.expand(
        seed,
        num_projections=NUM_SUM_PROJECTIONS,
        num_rows=num_rows,
        row_length=row_length,
    )


def compute_link(
    share: Share,
    *,
    projection: Projection,
    challenges: Sequence[int],
    sum_projection: Projection,
    masks: NDArray[np.uint64],
) -> Link:
    """Link a party's share of an update.

    Args:
        share: The party's.
        projection: R_i, of its norm proof: for the m rows and the squares.
        challenges: The powers e^1 to e^(m+2) of the proof's challenge: for rows,
            squares and masks.
        sum_projection: R'.
        masks: y'_ij, as `SumMasks` expands them.

    Returns:
        The link: always the same for the same arguments.
    """
    *bound, mask_blinding = share.blindings
    blinding = mask_blinding + sum(
        power * blinding for power, blinding in zip(challenges, bound, strict=True)
    )
    # The row of the squares is the last one of R_i.
    squares = projection.of_columns[:, : len(share.squares)] * share.squares
    projected = squares.sum(axis=1, dtype=np.uint64) * projection.of_rows[:, -1]
    return Link(
        projections=projection.multiply_words(share.values) + projected + share.masks,
        blinding=blinding % SCALAR_ORDER,
        sum_projections=sum_projection.multiply_words(share.values) + masks,
    )


def verify_link(
    links: Sequence[Link], *, projections: Sequence[int], blinding: int
) -> None:
    """Check that the shares of one update add up to its commitments.

    Args:
        links: All parties' links of this update.
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
    shares: Iterable[tuple[Share, NDArray[np.uint64], int]], *, shape: ShareShape
) -> PartySum:
    """Sum a party's shares, each times its update's number of examples.

    Args:
        shares: A share, the masks y'_ij of its link, and its weight, at least 1; read
            one at a time.
        shape: The shape of the round's shares.

    Raises:
        ValueError: a weight below 1, or 2^31 or more in total; a bug.
    """
    values = np.zeros(shape.num_values, dtype=np.uint64)
    sum_masks = np.zeros(NUM_SUM_PROJECTIONS, dtype=np.uint64)
    row_blindings = [0] * shape.num_rows
    opening = 0
    weights = []
    for share, masks, weight in shares:
        weights.append(weight)
        _check_weights(weights)
        _add_weighted(values, share.values, weight)
        _add_weighted(sum_masks, masks, weight)
        row_blindings = [
            total + weight * blinding
            for total, blinding in zip(row_blindings, share.row_blindings, strict=True)
        ]
        opening += weight * share.opening
    return PartySum(
        values=values,
        masks=sum_masks,
        row_blindings=tuple(total % SCALAR_ORDER for total in row_blindings),
        opening=opening % SCALAR_ORDER,
    )


def verify_party_sum(
    party_sum: PartySum,
    *,
    commitments: Sequence[bytes],
    links: Sequence[Link],
    weights: Sequence[int],
    shape: ShareShape,
    sum_projection: Projection,
) -> None:
    """Check a party's sum against its summands, from public data alone.

    Args:
        party_sum: The party's publication; lengths and ranges untrusted.
        commitments: The accepted agents' share commitments for this party.
        links: This party's links of the same agents, in the same order.
        weights: Their numbers of examples.
        shape: The shape of the round's shares.
        sum_projection: R'.

    Raises:
        WrongPartialError: the party's sum is wrong, and the party is to blame.
        InvalidEncodingError: a share commitment is no acceptable point; its agent
            should not have been accepted.
    """
    if (
        party_sum.values.shape != (shape.num_values,)
        or party_sum.masks.shape != (NUM_SUM_PROJECTIONS,)
        or len(party_sum.row_blindings) != shape.num_rows
        or not all(0 <= s < SCALAR_ORDER for s in party_sum.row_blindings)
        or not 0 <= party_sum.opening < SCALAR_ORDER
    ):
        detail = "not a sum of shares of this round"
        raise WrongPartialError(PartialRefusal.WRONG_SHAPE, detail)
    opened = commit_scalars(party_sum.row_blindings, party_sum.opening)
    if opened != combine_points(commitments, weights):
        detail = "its blindings don't open the share commitments"
        raise WrongPartialError(PartialRefusal.WRONG_BLINDINGS, detail)
    want = np.zeros(NUM_SUM_PROJECTIONS, dtype=np.uint64)
    for link, weight in zip(links, weights, strict=True):
        _add_weighted(want, link.sum_projections, weight)
    have = sum_projection.multiply_words(party_sum.values) + party_sum.masks
    differing = int(np.count_nonzero(have != want))
    if differing:
        detail = (
            f"{differing} of {NUM_SUM_PROJECTIONS} projections differ from its links"
        )
        raise WrongPartialError(PartialRefusal.WRONG_PROJECTION, detail)


def open_aggregate(
    party_sums: Sequence[PartySum],
    rows: Sequence[bytes],
    *,
    row_length: int | None = None,
) -> NDArray[np.int64]:
    """Add the parties' sums up and check that they open the commitments.

    Args:
        party_sums: One per party, in any order; each passed `verify_party_sum`.
        rows: The accepted agents' commitments, combined by `combine_rows` with their
            weights: m points.
        row_length: n; by default that of `choose_row_length`.

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
        raise WrongSumError("the parties' sums don't open the agents' commitments")
    return signed


def _add_weighted(
    total: NDArray[np.uint64], addend: NDArray[np.uint64], weight: int
) -> None:
    factor = np.uint64(weight)
    for begin in range(0, len(total), _CHUNK):
        total[begin : begin + _CHUNK] += addend[begin : begin + _CHUNK] * factor


def _check_weights(weights: Sequence[int]) -> None:
    if min(weights) < 1 or sum(weights) > MAX_TOTAL_EXAMPLES:
        raise ValueError(f"weights from {min(weights)}, {sum(weights)} in all")
