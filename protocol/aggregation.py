"""The exact sum of a cohort's updates, in any order, on any machine.

- The sum is Σ num_examples_i · update_i over 64-bit integers. Integer addition is
  associative and commutative, so order of arrival, partitioning and regional partial
  sums don't change one bit.
- It's exact, not just modulo 2^64: with |x| ≤ 2^31 for an int32 and a total weight
  below 2^31, |sum| < 2^62. Every addition checks that.
- The same integers read modulo 2^64 are the ring in which secret shares are added, so
  every way of aggregating gives the same sum.

It deliberately knows no agents, rounds or privacy: its caller decides what may be
summed.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.tensors import (
    VECTOR_HEADER_BYTES,
    MalformedBlobError,
    tensors_from_blob,
    tensors_to_blob,
)

#: The one tensor in a sum's blob.
SUM_TENSOR: Final = "sum"
#: The largest total weight of a sum; one more and it might not be exact.
MAX_TOTAL_EXAMPLES: Final = 2**31 - 1  # = 2,147,483,647

#: Elements summed at a time: the products stay in cache, and the calls are few.
_CHUNK: Final = 2**18  # = 262,144


class TooManyExamplesError(ValueError):
    """The total weight would reach 2^31 and the sum might not be exact."""


class Accumulator:
    """A running weighted sum of updates.

    Example:
        >>> accumulator = Accumulator(2)
        >>> accumulator.add(np.array([1, -2], dtype=np.int32), num_examples=10)
        >>> accumulator.add(np.array([5, 5], dtype=np.int32), num_examples=1)
        >>> accumulator.total.tolist(), accumulator.num_examples
        ([15, -15], 11)
    """

    def __init__(self, num_parameters: int) -> None:
        """Start from zero.

        Args:
            num_parameters: d, the length of every update.
        """
        self._total = np.zeros(num_parameters, dtype=np.int64)
        self.num_examples = 0
        """Total weight so far, 0 ≤ n < 2^31."""
        self._products = np.empty(min(num_parameters, _CHUNK), dtype=np.int64)

    @property
    def total(self) -> NDArray[np.int64]:
        """The sum so far, shape (d,) int64, |x| < 2^62; read-only, not a copy."""
        view = self._total.view()
        view.flags.writeable = False
        return view

    def add(self, update: NDArray[np.int32], num_examples: int) -> None:
        """Add one update.

        Args:
            update: shape (d,) int32.
            num_examples: Its weight, at least 1.

        Raises:
            TooManyExamplesError: The total weight would reach 2^31.
            ValueError: Another shape or type, or a weight below 1; a bug, since
                `parse_update` and the deciders have refused those.

        A refused update leaves the sum as it was.
        """
        if update.dtype != np.int32 or update.shape != self._total.shape:
            msg = f"{update.dtype}{update.shape} isn't int32{self._total.shape}"
            raise ValueError(msg)
        if num_examples < 1:
            raise ValueError(f"{num_examples} examples; at least 1")
        if self.num_examples + num_examples > MAX_TOTAL_EXAMPLES:
            msg = f"{self.num_examples} + {num_examples} examples reach 2^31"
            raise TooManyExamplesError(msg)
        weight = np.int64(num_examples)
        for begin in range(0, len(update), _CHUNK):
            chunk = update[begin : begin + _CHUNK]
            products = self._products[: len(chunk)]
            products[:] = chunk
            products *= weight
            self._total[begin : begin + _CHUNK] += products
        self.num_examples += num_examples


def sum_to_blob(total: NDArray[np.int64]) -> bytes:
    """Write a sum as a canonical safetensors file.

    Args:
        total: shape (d,) int64.

    Returns:
        A file with the one tensor "sum", of type I64: equal sums give equal bytes, so
        two aggregators agree exactly if their blobs' digests do.

    Raises:
        ValueError: Not an int64 vector; a bug.
    """
    if total.dtype != np.int64 or total.ndim != 1:
        raise ValueError(f"not an int64 vector: {total.dtype}, {total.ndim} dimensions")
    return tensors_to_blob({SUM_TENSOR: total})


def sum_from_blob(blob: bytes, *, num_parameters: int) -> NDArray[np.int64]:
    """Read a claimed sum.

    Args:
        blob: The aggregator's blob, digest verified; otherwise untrusted.
        num_parameters: d, from the federation's model.

    Returns:
        shape (d,) int64; a read-only view into `blob`.

    Raises:
        MalformedBlobError: It isn't a sum for this model.
    """
    tensors = tensors_from_blob(blob, max_header_bytes=VECTOR_HEADER_BYTES)
    total = tensors.get(SUM_TENSOR)
    if (
        total is None
        or len(tensors) != 1
        or total.dtype != np.int64
        or total.shape != (num_parameters,)
    ):
        found = {name: f"{a.dtype}{a.shape}" for name, a in tensors.items()}
        msg = f"not the one tensor {SUM_TENSOR!r}, int64({num_parameters},): {found}"
        raise MalformedBlobError(msg)
    return total
