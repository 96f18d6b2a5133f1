"""Field elements as digits, so that floats multiply them exactly and fast.

NumPy has no integers of 255 bits, and BLAS has no integers at all. But a matrix product
of integers in float64 is exact, in whatever order BLAS adds, as long as no sum of
magnitudes exceeds 2^53. So vectors over the field are split into digits of 16 bits,
their products computed digit by digit, and the results joined again.

Whoever multiplies states why its sums stay below 2^53 (or 2^24 in float32).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

LIMB_BITS: Final = 16
NUM_LIMBS: Final = 16
#: Magnitudes up to here, and all sums up to here, are exact in float64.
EXACT_LIMIT: Final = 2**53  # = 9,007,199,254,740,992
EXACT_LIMIT_FLOAT32: Final = 2**24  # = 16,777,216

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


def from_limbs(planes: NDArray[Any]) -> list[int]:
    """Return the integers that sums of products of digits stand for.

    Args:
        planes: shape (any, count), integers of any sign: int64 below 2^62 in magnitude,
            or objects below 2^78.

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


def multiply_limbs(products: NDArray[np.int64]) -> NDArray[np.int64]:
    """Add up the products of digits that stand at the same place.

    Args:
        products: shape (16, a, 16, b): digit of the left times digit of the right;
            below 2^58 in magnitude.

    Returns:
        shape (31, a·b), for `from_limbs`.
    """
    left, rows, right, columns = products.shape
    planes = np.zeros((left + right - 1, rows, columns), dtype=np.int64)
    for place in range(left):
        planes[place : place + right] += products[place].transpose(1, 0, 2)
    return planes.reshape(len(planes), -1)
