"""Sketches of secret shares, on which parties compare updates.

The norm proof bounds an update's length, but not its direction. So the parties compare
updates in pairs, on sketches of their secret shares (see `streams.mpc.robustness`), and
open one bit per pair: whether it is far apart. Here are the sketch and the threshold;
`protocol.modes.mpc.far_pairs` draws the conclusions.

**Sketch.** A count-sketch: value k of an update is added to bucket h(k) with sign s(k);
512 buckets. All updates of a round have the same h and s, from a seed that follows from
the closed set and all parties' links: no agent that commits knows it (ADR 0033). A
sketch is linear modulo 2^64: the sketches of an update's shares are shares of its
sketch.

- Sketched, the squared distance of two updates has the true one as its expectation, and
  a standard deviation of at most 1/16 of it: √(2 / 512), over h and s (Charikar, Chen,
  Farach-Colton 2002; Thorup, Zhang 2012). So the threshold is not sharp, and an update
  within a few times 1/16 of it may fall on either side.
- The seed is a hash and no beacon: the last party to link can retry for a sketch that
  looks nearer than it is, by lying in links about the sum. Each try gains little, as
  the distance says, and parties are trusted with the comparison anyway.

**Nothing wraps.** With at most `MAX_LOAD` values in a bucket, the sketch of x has at
most `MAX_LOAD` times the squared norm of x (Cauchy-Schwarz). Norms are proven to be
below 2^19, so squared distances are below 2^40 and sketched ones below 2^62. Thresholds
are at most 2^62. So a difference modulo 2^64 has the sign of the difference.

It deliberately has neither keys nor messages.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.modes.mpc.far_pairs import MAX_FAR_THRESHOLD
from protocol.modes.mpc.projections import SEED_SIZE, expand_stream

SKETCH_DOMAIN: Final = b"folkmoot/sketch/v1\n"
NUM_BUCKETS: Final = 512
MAX_LOAD: Final = 2**22  # = 4,194,304
"""The most values that may fall in one bucket."""
_SIGN_BIT: Final = 9  # = log2(NUM_BUCKETS)


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
    def expand(cls, seed: bytes, *, num_values: int) -> Sketch:
        """Return the sketch of a round's seed.

        A value takes two bytes, little-endian, of AES-256 in counter mode from a first
        block of zeros, under SHA256(`SKETCH_DOMAIN` || seed): the nine low bits are its
        bucket, the next is 1 if its sign is -1, and six are not used.

        Args:
            seed: 32 bytes.
            num_values: d, at least 1.

        Raises:
            ValueError: the seed is not 32 bytes, or d is too large; a bug.
        """
        if len(seed) != SEED_SIZE:
            raise ValueError(f"a seed of {len(seed)} bytes, not {SEED_SIZE}")
        key = hashlib.sha256(SKETCH_DOMAIN + seed).digest()
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
            shape (512,) uint64. **Secret** like the values.

        Raises:
            ValueError: another shape or type; a bug.
        """
        if values.dtype != np.uint64 or values.shape != self.buckets.shape:
            raise ValueError(
                f"values of shape {values.shape}, {values.dtype}; a sketch of "
                f"{len(self.buckets)} values takes as many uint64"
            )
        sketch = np.zeros(NUM_BUCKETS, dtype=np.uint64)
        np.add.at(sketch, self.buckets, values * self.signs)
        return sketch


def compute_threshold(norm_bound: int, *, numerator: int, denominator: int) -> int:
    """Return the squared distance above which a pair is far: ⌊(c B)²⌋.

    Two updates within the norm bound are never more than 2 B apart, and √2 B if they
    are as long as possible and unrelated.

    Args:
        norm_bound: B in encoded units, at least 1.
        numerator: Of c, at least 1.
        denominator: Of c, at least 1.

    Returns:
        In squared encoded units, 1 to `MAX_FAR_THRESHOLD`.

    Raises:
        ValueError: an argument or the result is out of range.
    """
    if min(norm_bound, numerator, denominator) < 1:
        raise ValueError("norm bound, numerator and denominator must be positive")
    threshold = (numerator * norm_bound) ** 2 // denominator**2
    check_threshold(threshold)
    return threshold


def check_threshold(threshold: int) -> None:
    """Refuse a threshold that sketches can't be compared with.

    Raises:
        ValueError: it is not 1 to `MAX_FAR_THRESHOLD`.
    """
    if not 1 <= threshold <= MAX_FAR_THRESHOLD:
        msg = f"a threshold of {threshold}; must be 1 to {MAX_FAR_THRESHOLD}"
        raise ValueError(msg)
