"""Entries that are averaged apart from what is trained: their encoding, their bound.

Running statistics are measured, not learned, and have no common scale: a variance of
570,000 stands next to one of 0.1. In the trained values' encoding such numbers would
use up the norm bound until nothing learned is left. So they have their own.

- The unit of a value is the least power of two above its magnitude in the base model,
  and at least 1.
- In a round a value moves by 4 units at most. Whoever averages cuts the average to
  that, so no agent can move it further. An honest agent whose value is further away
  says 4 units and gets there in a few rounds: in each, a value can grow fivefold.
- Movements are counted in 2^-20 units, rounded towards zero: an average stays between
  the base model's value and the furthest of the agents'.
- The number of steps, up to 2^22, is written as six digits of four bits, each an
  integer of its own, -8 to 8. Sums of digits are exact, as sums of updates are, and the
  integers are small: n values have a norm of at most 19·√n steps. With a clip norm of
  8, ten thousand of them take 0.003 % of the norm bound, however far they moved.

It deliberately knows neither models nor modes.

Source: docs/adr/0046-running-statistics-are-averaged-in-digits.md.
"""

from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.clipping import compute_squared_norm
from protocol.encoding import NotFiniteError

MAX_UNITS: Final = 4
FRACTIONAL_BITS: Final = 20
DIGIT_BITS: Final = 4
NUM_DIGITS: Final = 6
"""Integers that each value takes in an update."""

_BASE: Final = 2**DIGIT_BITS  # = 16


class EncodedValues(NamedTuple):
    """What an agent says of its values.

    Attributes:
        integers: shape (6·n,) int64, -8 to 8: most significant digits of all values
            first. **Secret** in some modes.
        num_held_back: How many values could not be said in full.
    """

    integers: NDArray[np.int64]
    num_held_back: int


def encode_values(
    base: NDArray[np.float64],
    after: NDArray[np.float64],
    *,
    max_norm: int | None = None,
) -> EncodedValues:
    """Say how far values moved.

    Args:
        base: shape (n,) float64, finite: in the base model.
        after: shape (n,) float64: after training. **Secret.**
        max_norm: The largest L2 norm of the integers, at least 1; None for any. If it
            is too small for n values, all movements are halved until they fit.

    Raises:
        NotFiniteError: A NaN or an infinity in `after`: the training diverged.
        ValueError: Shapes differ; a bug.
    """
    if base.shape != after.shape or base.ndim != 1:
        raise ValueError(f"{after.shape} values after {base.shape}")
    if not np.isfinite(after).all():
        raise NotFiniteError("a value that is averaged is NaN or infinite")
    # Halves, so that no difference overflows.
    moved = (after / 2 - base / 2) / (_compute_units(base) / 2)
    is_far = np.abs(moved) > MAX_UNITS
    moved = np.clip(moved, -MAX_UNITS, MAX_UNITS)
    steps = np.trunc(moved * 2.0**FRACTIONAL_BITS).astype(np.int64)
    integers = _to_digits(steps)
    while max_norm is not None and compute_squared_norm(integers) > max_norm**2:
        is_far |= steps != 0
        steps = np.sign(steps) * (np.abs(steps) // 2)
        integers = _to_digits(steps)
    return EncodedValues(integers, int(np.count_nonzero(is_far)))


def apply_average(
    base: NDArray[np.float64], total: NDArray[np.int64], num_examples: int
) -> NDArray[np.float64]:
    """Move values by the average movement, weighted by examples, within the bound.

    Args:
        base: shape (n,) float64, finite: in the base model.
        total: shape (6·n,) int64: the sum of num_examples_i times integers_i.
        num_examples: The sum of the cohort's num_examples_i, 1 ≤ n < 2^31.

    Returns:
        shape (n,) float64, finite or beyond the largest float64 by overflow: element-
        wise IEEE 754 operations alone, so the same bits on every machine. A value that
        nobody moved keeps its bits.

    Raises:
        ValueError: Shapes, types or ranges differ from the above; a bug.
    """
    if total.dtype != np.int64 or total.shape != (NUM_DIGITS * len(base),):
        raise ValueError(f"{total.dtype}{total.shape} is no sum of {len(base)} values")
    if not 1 <= num_examples <= MAX_TOTAL_EXAMPLES:
        raise ValueError(f"{num_examples} examples, not 1 to {MAX_TOTAL_EXAMPLES}")
    steps = np.zeros(len(base), dtype=np.float64)
    for digits in total.reshape(NUM_DIGITS, -1):
        # Exact for sums of honest digits: at most 2^53.
        steps = steps * _BASE + digits
    moved = steps / float(num_examples * 2**FRACTIONAL_BITS)  # exact: at most 2^51
    moved = np.clip(moved, -MAX_UNITS, MAX_UNITS)
    with np.errstate(over="ignore"):
        return np.where(moved == 0, base, base + moved * _compute_units(base))


def flatten_values(arrays: Sequence[NDArray[np.floating]]) -> NDArray[np.float64]:
    """Lay arrays of any floating-point types end to end; shape (n,) float64."""
    parts = [np.asarray(array, dtype=np.float64).reshape(-1) for array in arrays]
    return np.concatenate([np.empty(0), *parts])


def _compute_units(base: NDArray[np.float64]) -> NDArray[np.float64]:
    _, exponents = np.frexp(base)
    # 2^1024 is no float64: for the largest values the unit is half of that.
    units: NDArray[np.float64] = np.ldexp(1.0, np.clip(exponents, 0, 1023))
    return units


def _to_digits(steps: NDArray[np.int64]) -> NDArray[np.int64]:
    digits = np.empty((NUM_DIGITS, len(steps)), dtype=np.int64)
    rest = steps
    for place in range(NUM_DIGITS - 1, 0, -1):
        digits[place] = (rest + _BASE // 2) % _BASE - _BASE // 2
        rest = (rest - digits[place]) // _BASE
    digits[0] = rest
    return digits.reshape(-1)
