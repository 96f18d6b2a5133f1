"""Random projections: what they see of a long vector, and what they miss.

A projection R has K rows of m · n entries, 0 or 1 each. Row t is the product of two
vectors of random bits, a_t for the rows of a matrix X and b_t for its columns:

    R_t,ij = a_ti · b_tj,    (R X)_t = Σ_ij a_ti X_ij b_tj

So K (m + n) bits stand for K m n, and products with R cost two small matrix products.

**Alternating sum.** Fix all bits of a row but a_i and b_j. Then (R X)_t is a function f
of those two, and f(1,1) - f(1,0) - f(0,1) + f(0,0) = X_ij. Both lemmas follow.

**Lemma 1 (differences).** Let X be a matrix over any ring, with an entry X_ij that is
not 0, and c an element. Then (R X)_t = c with a probability of at most 3/4: if all four
values of f were c, their alternating sum would be 0. So all of K = 309 rows miss X,
whatever offsets c_t there are, with (3/4)^309 < 2^-128. Nothing is asked of X_ij: 2^63
modulo 2^64 is seen as well as 1.

**Lemma 2 (wraparound).** Let X be a matrix modulo r, with an entry whose representative
nearest to zero is beyond 4 L in magnitude, 4 L < r / 2, and y any number. Then
(R X)_t + y is within ±L modulo r with a probability of at most 3/4: if all four values
were, their alternating sum would be within ±4 L, and X_ij with it.

Both are tight. With factors of 1 and -1 the alternating sum is 4 X_ij: an X_ij of 2^63
is never seen, whatever the row. And 2 L in place of 4 L, which does for rows that are
no products, does not do here. Tests try all matrices over small rings.

In both lemmas X, the offsets c and y are fixed before R is drawn. Every user of a
projection says what fixes them.

No published source is known for this use; the argument is complete as it stands here.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.modes.mpc.limbs import EXACT_LIMIT

#: K: all rows miss a difference, or a wraparound, with a probability below 2^-128.
NUM_PROJECTIONS: Final = 309
SEED_SIZE: Final = 32
#: Longest row: digits of 32 bits, summed this often, are exact in float64.
MAX_ROW_LENGTH: Final = 2**14  # = 16,384

assert 3**NUM_PROJECTIONS * 2**128 < 4**NUM_PROJECTIONS

_DIGIT_BITS: Final = 32
_DIGIT_MASK: Final = np.uint64(2**_DIGIT_BITS - 1)
#: Rows of words that are multiplied at a time: digits and products stay in cache.
_ROWS_AT_ONCE: Final = 64

assert MAX_ROW_LENGTH << _DIGIT_BITS <= EXACT_LIMIT


def expand_stream(key: bytes, num_bytes: int) -> bytearray:
    """Return the first bytes of AES-256 in counter mode, counting from zero."""
    encryptor = Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor()
    stream = bytearray(num_bytes)
    encryptor.update_into(stream, stream)
    return stream


@dataclass(frozen=True, slots=True, eq=False)
class Projection:
    """A projection R of matrices.

    Attributes:
        of_rows: a, shape (K, m) uint8, 0 or 1, read-only.
        of_columns: b, shape (K, n) uint8, likewise.
    """

    of_rows: NDArray[np.uint8] = field(repr=False)
    of_columns: NDArray[np.uint8] = field(repr=False)

    @classmethod
    def expand(
        cls, seed: bytes, *, num_projections: int, num_rows: int, row_length: int
    ) -> Projection:
        """Return a seed's projection.

        Bits are those of AES-256 in counter mode, with the seed as its key and a first
        block of zeros, the least significant of a byte first. The b_t come first, n
        bits each, one t after the other; then the a_t, m bits each, every one of which
        begins with a new byte.

        Args:
            seed: 32 bytes.
            num_projections: K.
            num_rows: m.
            row_length: n, a multiple of 8.

        Raises:
            ValueError: the seed is not 32 bytes; a bug.
        """
        if len(seed) != SEED_SIZE:
            raise ValueError(f"a seed of {len(seed)} bytes, not {SEED_SIZE}")
        num_column_bytes, num_row_bytes = row_length // 8, -(-num_rows // 8)
        size = num_projections * (num_column_bytes + num_row_bytes)
        stream = np.frombuffer(expand_stream(seed, size), dtype=np.uint8)
        end = num_projections * num_column_bytes
        bits = []
        for part, count in ((stream[:end], row_length), (stream[end:], num_rows)):
            packed = part.reshape(num_projections, -1)
            unpacked = np.unpackbits(packed, axis=1, count=count, bitorder="little")
            unpacked.flags.writeable = False
            bits.append(unpacked)
        of_columns, of_rows = bits
        return cls(of_rows, of_columns)

    @property
    def shape(self) -> tuple[int, int, int]:
        """K, m and n."""
        return (*self.of_rows.shape, self.of_columns.shape[1])

    def multiply_words(self, values: NDArray[np.uint64]) -> NDArray[np.uint64]:
        """Return R X modulo 2^64.

        Args:
            values: X row by row, shape (at most m · n,) uint64; the rest is zero.

        Returns:
            shape (K,) uint64.
        """
        num_projections, _, length = self.shape
        columns = self.of_columns.T.astype(np.float64)
        total = np.zeros(num_projections, dtype=np.uint64)
        step = _ROWS_AT_ONCE * length
        for place, begin in enumerate(range(0, len(values), step)):
            some = values[begin : begin + step]
            if len(some) % length:
                padding = np.zeros(-len(some) % length, dtype=np.uint64)
                some = np.concatenate((some, padding))
            words = some.reshape(-1, length)
            low = (words & _DIGIT_MASK).astype(np.float64) @ columns
            high = (words >> np.uint64(_DIGIT_BITS)).astype(np.float64) @ columns
            products = _to_words(low)
            products += _to_words(high) << np.uint64(_DIGIT_BITS)
            first = place * _ROWS_AT_ONCE
            bits = self.of_rows[:, first : first + len(words)].T
            total += (products * bits).sum(axis=0, dtype=np.uint64)
        return total


def _to_words(exact: NDArray[np.float64]) -> NDArray[np.uint64]:
    return exact.astype(np.int64).view(np.uint64)
