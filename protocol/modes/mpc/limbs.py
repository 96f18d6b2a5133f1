"""Field elements as digits, which floats multiply exactly and fast.

NumPy has no 255-bit integers, and BLAS has no integers at all. But a matrix product of
integers in float64 is exact, in whatever order BLAS adds, as long as no sum of
magnitudes exceeds 2^53. So vectors over the field are split into digits of 16 bits,
their products computed digit by digit, and the results rejoined.

Every caller states why its sums stay below 2^53.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

LIMB_BITS: Final = 16
NUM_LIMBS: Final = 16
#: Magnitudes up to here, and all sums up to here, are exact in float64.
EXACT_LIMIT: Final = 2**53  # = 9,007,199,254,740,992

_SIZE: Final = NUM_LIMBS * LIMB_BITS // 8
#: Sums of 64 bits carry so far beyond the last digit.
_CARRY_LIMBS: Final = 5


def to_limbs(values: Iterable[int]) -> NDArray[np.uint16]:
    """Return the digits of integers.

    Args:
        values: 0 ≤ v < 2^256.

    Returns:
        shape (16, count): the least significant digits first.
    """
    data = b"".join(value.to_bytes(_SIZE, "little") for value in values)
    return np.frombuffer(data, dtype="<u2").reshape(-1, NUM_LIMBS).T


def from_limbs(planes: NDArray[np.int64]) -> list[int]:
    """Return the integers given by sums of products of digits.

    Args:
        planes: shape (any, count), integers of any sign, below 2^62 in magnitude.

    Returns:
        Σ_l planes[l] · 2^(16 l) for each column, exactly.
    """
    num_digits = len(planes) + _CARRY_LIMBS
    digits = np.empty((planes.shape[1], num_digits), dtype="<u2")
    carry = np.zeros_like(planes[0])
    for place in range(num_digits):
        if place < len(planes):
            carry = carry + planes[place]
        digits[:, place] = carry & 0xFFFF
        carry = carry >> LIMB_BITS  # rounds down: what remains is two's complement
    data = digits.tobytes()
    size = 2 * num_digits
    return [
        int.from_bytes(data[begin : begin + size], "little", signed=True)
        for begin in range(0, len(data), size)
    ]
