"""Which updates of a round point elsewhere: sketches of shares, and who is flagged.

The norm proof bounds an update's length. It does not say that the update points where
others do. So the parties compare updates in pairs, on sketches of their secret shares
(see `streams.robustness`), and open one bit per pair: whether it is far apart. Here are
the parts that need no other party: the sketch, the threshold, and what follows from the
bits.

**Sketch.** A count-sketch: value k of an update is added to bucket h(k) with sign s(k);
512 buckets. All updates of a round have the same h and s, from the round's projection
seed, which nobody knew before the commitments were closed (ADR 0019). A sketch is
linear modulo 2^64: the sketches of an update's shares are shares of its sketch.

- Sketched, the squared distance of two updates has the true one as its expectation, and
  a standard deviation of 1/16 of it at the most: √(2 / 512), over h and s (Charikar,
  Chen, Farach-Colton 2002; Thorup, Zhang 2012). So the threshold is not sharp, and an
  update within a few times 1/16 of it may fall on either side.
- The seed is a hash and no beacon: the last one to commit can try again and again for a
  sketch that looks nearer than it is. Each try gains little, as the distance says.

**Nothing wraps.** With at most `MAX_LOAD` values in a bucket, the sketch of x has at
most `MAX_LOAD` times the squared norm of x (Cauchy-Schwarz). Norms are proven to be
below 2^19, so squared distances are below 2^40 and sketched ones below 2^62. Thresholds
are at most 2^62. So a difference modulo 2^64 has the sign of the difference.

**The bits.** Agents are in ascending order of agent_id; pair (i, j), i < j, comes in
lexicographic order: (0, 1), (0, 2), …. Encoded, the first pair is the most significant
bit of the first byte, and what is left of the last byte is zero.

**Flagged** is who is far from more than half of the others. Honest updates that lie
together flag nobody among them, unless half of a cohort is elsewhere. A majority that
colludes can flag the honest: the rule is for outliers, not for a hostile majority. And
whoever stays near the others, as backdoors may, is not flagged at all.

It deliberately has neither keys nor messages, and does not say what follows for who is
flagged.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.norm_proof import expand_stream

SKETCH_DOMAIN: Final = b"folkmoot/sketch/v1\n"
NUM_BUCKETS: Final = 512
MAX_LOAD: Final = 2**22  # = 4,194,304
"""The most values that may fall in one bucket."""
MAX_THRESHOLD: Final = 2**62
_SEED_SIZE: Final = 32
_SIGN_BIT: Final = 9  # = log2(NUM_BUCKETS)


class MalformedBitsError(ValueError):
    """Not an encoding of one bit per pair; bad input."""


@dataclass(frozen=True, slots=True, eq=False)
class Sketch:
    """How a round's updates are sketched; public.

    Attributes:
        buckets: h: for each value, its bucket; shape (d,) intp, below `NUM_BUCKETS`.
        signs: s: for each value, 1 or -1 modulo 2^64; shape (d,) uint64.
    """

    buckets: NDArray[np.intp]
    signs: NDArray[np.uint64]

    def __post_init__(self) -> None:
        """Refuse what could wrap.

        Raises:
            ValueError: more than `MAX_LOAD` values in a bucket.
        """
        load = int(np.bincount(self.buckets, minlength=NUM_BUCKETS).max())
        if load > MAX_LOAD:
            msg = f"{load} values in one bucket, more than {MAX_LOAD}: sums could wrap"
            raise ValueError(msg)

    @classmethod
    def expand(cls, projection_seed: bytes, *, num_values: int) -> Sketch:
        """Return the sketch that a round's projection seed stands for.

        A value takes two bytes, little-endian, of AES-256 in counter mode from a first
        block of zeros, under SHA256(`SKETCH_DOMAIN` || seed): the nine low bits are its
        bucket, the next is 1 if its sign is -1, and six are not used.

        Args:
            projection_seed: 32 bytes.
            num_values: d, at least 1.

        Raises:
            ValueError: the seed is not 32 bytes, or d is too large; a bug.
        """
        if len(projection_seed) != _SEED_SIZE:
            msg = f"a seed of {len(projection_seed)} bytes, not {_SEED_SIZE}"
            raise ValueError(msg)
        key = hashlib.sha256(SKETCH_DOMAIN + projection_seed).digest()
        words = np.frombuffer(expand_stream(key, 2 * num_values), dtype="<u2")
        negative = (words >> _SIGN_BIT & 1).astype(np.uint64)
        return cls(
            buckets=(words & (NUM_BUCKETS - 1)).astype(np.intp),
            signs=1 - 2 * negative,  # modulo 2^64
        )

    def compute(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return the sketch of a vector; linear modulo 2^64.

        Args:
            values: An update or a share of one, shape (d,) uint64. **Secret.**

        Returns:
            shape (512,) uint64. **Secret** as the values are.

        Raises:
            ValueError: another shape or type; a bug.
        """
        if values.dtype != np.uint64 or values.shape != self.buckets.shape:
            msg = (
                f"values of shape {values.shape}, {values.dtype}; a sketch of "
                f"{len(self.buckets)} values takes as many uint64"
            )
            raise ValueError(msg)
        sketch = np.zeros(NUM_BUCKETS, dtype=np.uint64)
        np.add.at(sketch, self.buckets, values * self.signs)
        return sketch


def compute_threshold(norm_bound: int, *, numerator: int, denominator: int) -> int:
    """Return the squared distance above which a pair is far: ⌊(c B)²⌋.

    Two updates within the norm bound are never more than 2 B apart, and √2 B if they
    are as long as they may be and have nothing to do with each other.

    Args:
        norm_bound: B in encoded units, at least 1.
        numerator: Of c, at least 1.
        denominator: Of c, at least 1.

    Returns:
        In squared encoded units, 1 to `MAX_THRESHOLD`.

    Raises:
        ValueError: an argument or the result is out of range.
    """
    if min(norm_bound, numerator, denominator) < 1:
        msg = "norm bound, numerator and denominator must be positive"
        raise ValueError(msg)
    threshold = (numerator * norm_bound) ** 2 // denominator**2
    check_threshold(threshold)
    return threshold


def check_threshold(threshold: int) -> None:
    """Refuse a threshold that sketches can't be compared to.

    Raises:
        ValueError: it is not 1 to `MAX_THRESHOLD`.
    """
    if not 1 <= threshold <= MAX_THRESHOLD:
        msg = f"a threshold of {threshold}; must be 1 to {MAX_THRESHOLD}"
        raise ValueError(msg)


def compute_num_pairs(num_agents: int) -> int:
    """Return how many pairs there are among so many agents."""
    return num_agents * (num_agents - 1) // 2


def encode_far(far: NDArray[np.bool_]) -> bytes:
    """Encode which pairs are far apart.

    Args:
        far: shape (N, N) bool, symmetric, nobody far from themselves.

    Raises:
        ValueError: it isn't; a bug.
    """
    _check_far(far)
    return np.packbits(far[np.triu_indices(len(far), k=1)]).tobytes()


def parse_far(data: bytes, *, num_agents: int) -> NDArray[np.bool_]:
    """Read which pairs are far apart; the inverse of `encode_far`.

    Args:
        data: The bits; untrusted.
        num_agents: N, at least 1.

    Returns:
        shape (N, N) bool, symmetric, nobody far from themselves.

    Raises:
        MalformedBitsError: another size, or bits after the last pair.
    """
    num_pairs = compute_num_pairs(num_agents)
    size = (num_pairs + 7) // 8
    if len(data) != size:
        msg = f"{len(data)} bytes; {num_pairs} pairs take {size}"
        raise MalformedBitsError(msg)
    bits = np.unpackbits(np.frombuffer(data, dtype=np.uint8)).astype(np.bool_)
    if bits[num_pairs:].any():
        msg = f"bits after the {num_pairs} pairs"
        raise MalformedBitsError(msg)
    return make_symmetric(bits[:num_pairs], num_agents=num_agents)


def make_symmetric(bits: NDArray[np.bool_], *, num_agents: int) -> NDArray[np.bool_]:
    """Return the matrix of one bit per pair.

    Args:
        bits: In the order of pairs, shape (N (N - 1) / 2,).
        num_agents: N.
    """
    far = np.zeros((num_agents, num_agents), dtype=np.bool_)
    far[np.triu_indices(num_agents, k=1)] = bits
    return far | far.T


def flag(far: NDArray[np.bool_]) -> frozenset[int]:
    """Return who is far from more than half of the others.

    Args:
        far: Which pairs are far apart, shape (N, N), symmetric, nobody far from
            themselves.

    Returns:
        Indices of agents; nobody if N is 1.

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
