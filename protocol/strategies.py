"""How the exact sum of a round becomes the next global model.

A strategy is a pure function of the base model, the exact sum and the federation's
parameters. Here floats appear for the first time after encoding, and only in
element-wise IEEE 754 operations (convert, add, divide, each correctly rounded): no
reductions, no transcendental functions, nothing whose result depends on the machine.
"""

from collections.abc import Callable
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.encoding import check_fractional_bits


def fedavg(
    base: NDArray[np.float32],
    total: NDArray[np.int64],
    num_examples: int,
    fractional_bits: int,
) -> NDArray[np.float32]:
    """Add the average update, weighted by examples, to the base model.

    Args:
        base: shape (d,) float32, finite: the cohort's starting point.
        total: shape (d,) int64: the sum of num_examples_i times update_i.
        num_examples: The sum of the cohort's num_examples_i, 1 ≤ n < 2^31.
        fractional_bits: The updates' precision, 0 ≤ f ≤ 30.

    Returns:
        shape (d,) float32, finite: base + total / (n · 2^f), computed in float64 and
        rounded once at the end. The same bits on every IEEE 754 machine.

    Raises:
        ValueError: Shapes, types or ranges differ from the above; a bug.

    Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1.
    """
    if (
        base.dtype != np.float32
        or total.dtype != np.int64
        or base.ndim != 1
        or base.shape != total.shape
    ):
        raise ValueError(
            f"base {base.dtype}{base.shape} and total {total.dtype}{total.shape} "
            "aren't float32 and int64 vectors of one length"
        )
    if not 1 <= num_examples <= MAX_TOTAL_EXAMPLES:
        raise ValueError(f"{num_examples} examples, not 1 to {MAX_TOTAL_EXAMPLES}")
    check_fractional_bits(fractional_bits)
    if not np.isfinite(base).all():
        raise ValueError("the base model isn't finite")
    step = total.astype(np.float64)
    step /= float(num_examples * 2**fractional_bits)  # the divisor is exact: 31 bits
    step += base
    return step.astype(np.float32)


Strategy: TypeAlias = Callable[
    [NDArray[np.float32], NDArray[np.int64], int, int], NDArray[np.float32]
]
"""`fedavg`'s signature: base, total, num_examples, fractional_bits to a model."""

STRATEGIES: Final[dict[str, Strategy]] = {"FEDAVG": fedavg}
"""By name in the configuration."""
