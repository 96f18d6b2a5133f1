"""Which updates of a round are far apart, as bits, and which agents that flags.

The parties of an MPC round find the bits together (`streams.mpc.robustness`), and the
rounds decider draws the conclusion. This is what both must agree on.

**The bits.** Agents are in ascending order of agent_id; pair (i, j), i < j, comes in
lexicographic order: (0, 1), (0, 2), …. Encoded, the first pair is the most significant
bit of the first byte, and unused bits of the last byte are zero.

**Flagged** is an agent far from more than half of the others. Honest updates that lie
together flag none of their own, unless half of a cohort is elsewhere. A colluding
majority can flag the honest: the rule is for outliers, not for a hostile majority. And
updates that stay near the others, as backdoors may, are not flagged at all.

It deliberately does not say what happens to flagged agents.

Source: ADR 0020.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

COMPARISON_DOMAIN: Final = b"folkmoot/comparison/v1\n"
MAX_FAR_THRESHOLD: Final = 2**62
"""For squared distances: below it nothing wraps; see `protocol.modes.mpc.sketches`."""
MIN_COMPARED: Final = 3
"""Of two updates far apart, nobody can say which is the outlier."""


class MalformedBitsError(ValueError):
    """Not an encoding of one bit per pair; bad input."""


def compute_num_pairs(num_agents: int) -> int:
    """Return the number of pairs among this many agents."""
    return num_agents * (num_agents - 1) // 2


def encode_far(far: NDArray[np.bool_]) -> bytes:
    """Encode which pairs are far apart.

    Args:
        far: shape (N, N) bool, symmetric, no agent far from itself.

    Raises:
        ValueError: it is not; a bug.
    """
    _check_far(far)
    return np.packbits(far[np.triu_indices(len(far), k=1)]).tobytes()


def parse_far(data: bytes, *, num_agents: int) -> NDArray[np.bool_]:
    """Read which pairs are far apart; the inverse of `encode_far`.

    Args:
        data: The bits; untrusted.
        num_agents: N, at least 1.

    Returns:
        shape (N, N) bool, symmetric, no agent far from itself.

    Raises:
        MalformedBitsError: another size, or bits after the last pair.
    """
    num_pairs = compute_num_pairs(num_agents)
    size = (num_pairs + 7) // 8
    if len(data) != size:
        raise MalformedBitsError(f"{len(data)} bytes; {num_pairs} pairs take {size}")
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8)).astype(np.bool_)
    if bits[num_pairs:].any():
        raise MalformedBitsError(f"bits after the {num_pairs} pairs")
    return make_symmetric(bits[:num_pairs], num_agents=num_agents)


def make_symmetric(bits: NDArray[np.bool_], *, num_agents: int) -> NDArray[np.bool_]:
    """Return the matrix of one bit per pair.

    Args:
        bits: One bit per pair, in the order of pairs, shape (N (N - 1) / 2,).
        num_agents: N.
    """
    far = np.zeros((num_agents, num_agents), dtype=np.bool_)
    far[np.triu_indices(num_agents, k=1)] = bits
    return far | far.T


def flag(far: NDArray[np.bool_]) -> frozenset[int]:
    """Return the agents far from more than half of the others.

    Args:
        far: Which pairs are far apart, shape (N, N), symmetric, no agent far from
            itself.

    Returns:
        Indices of agents; empty if N is 1.

    Raises:
        ValueError: it is not such a matrix; a bug.

    >>> flag(parse_far(bytes([0b00101100]), num_agents=4))
    frozenset({3})
    """
    _check_far(far)
    num_others = len(far) - 1
    counts = far.sum(axis=1, dtype=np.int64)
    return frozenset(int(i) for i in np.flatnonzero(2 * counts > num_others))


def _check_far(far: NDArray[np.bool_]) -> None:
    if far.dtype != np.bool_ or far.ndim != 2 or far.shape[0] != far.shape[1]:  # noqa: PLR2004  # a matrix
        msg = f"a matrix of shape {far.shape}, {far.dtype}; must be square, bool"
        raise ValueError(msg)
    if far.diagonal().any() or (far != far.T).any():
        msg = "who is far from whom must be symmetric, and nobody far from themselves"
        raise ValueError(msg)


def compute_comparison_id(
    fact_id: bytes, updates: Sequence[bytes], far_threshold: int
) -> bytes:
    """Return what identifies a comparison of the same updates, 32 bytes.

    It covers digests of received bytes, and no fact as this version writes it: the
    parties' versions may differ.

    Args:
        fact_id: Id of the fact that started the comparison, 32 bytes.
        updates: Digest of each update's commitments, 32 bytes each, in order.
        far_threshold: The threshold.
    """
    return hashlib.sha256(
        COMPARISON_DOMAIN
        + fact_id
        + far_threshold.to_bytes(8, "big")
        + b"".join(updates)
    ).digest()
