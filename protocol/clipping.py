"""From a float update to integers within a federation's norm bound.

The norm proof shows an integer inequality for an update: |x| < 2^19 and Σ x² ≤ B². This
module makes integers that satisfy it, from any finite floats.

- The update is scaled by 2^fractional_bits and, if too long, shrunk; its direction
  stays.
- Rounding is stochastic: up with the probability of the fraction, so that an integer's
  expected value is the scaled one. Each draw takes 32 bits, so that holds to 2^-32 of a
  step.
- Rounding lengthens an update, by d/6 steps² if fractions are spread evenly and by d/4
  at most. So updates are shrunk to a radius a little below B, from which at least 39 %
  of roundings stay within B; the others are redrawn.
- That is conditional rounding: the result is biased towards zero, because long outcomes
  are redrawn. The bias is small where B² ≫ d/4, and it makes B the exact sensitivity of
  the sum. The alternative, rounding beyond B, would need more noise for the same
  privacy.
- After `MAX_ATTEMPTS` draws the last resort is rounding towards zero, which never
  lengthens an update. By the bound above, that happens less than once in 2^46.
- The integers' norm decides, and it is exact. Floats only choose the radius, in
  correctly rounded operations: same entropy, same integers, everywhere.

It deliberately adds no noise and knows no privacy budget.

Source: Kairouz, Liu, Steinke 2021 (arXiv:2102.06387): conditional randomised rounding,
and its bound on the rounded norm, here with β = e^(-1/2).
"""

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import NotFiniteError, check_fractional_bits

#: Committed values are less than this in magnitude.
COMMITTED_LIMIT: Final = 2**19  # = 524,288
#: Roundings that are tried before the last resort.
MAX_ATTEMPTS: Final = 64

_DRAW_BYTES: Final = 4
_LARGEST_EXPONENT: Final = 1_000
#: Squares below 2^38 each, so a sum of this many fits 64 bits.
_CHUNK: Final = 2**24  # = 16,777,216


class NormBoundTooSmallError(ValueError):
    """Rounding alone could exceed the bound: use fewer bits, or a larger bound.

    It concerns the federation's configuration, never a single update.
    """


class Clipped(NamedTuple):
    """An update within a norm bound.

    Attributes:
        values: shape (d,) int64, |x| < 2^19, Σ x² ≤ B². **Secret.**
        shrunk_by: How many times shorter it was made before rounding, at least 1.
            **Secret.**
    """

    values: NDArray[np.int64]
    shrunk_by: float


def compute_squared_norm(values: NDArray[np.int64]) -> int:
    """Return Σ x², exactly.

    Args:
        values: shape (d,) int64, |x| ≤ 2^19; any d.
    """
    chunks = (values[begin : begin + _CHUNK] for begin in range(0, len(values), _CHUNK))
    return sum(int(np.dot(chunk, chunk)) for chunk in chunks)


def compute_min_norm_bound(num_values: int) -> int:
    """Return the least norm bound with which updates of d values can be encoded.

    Args:
        num_values: d, at least 1.

    Returns:
        B in steps: with less, even radius 0 would be too large.
    """
    return math.isqrt(_compute_rounding_allowance(num_values)) + 1


def clip_and_encode(
    delta: NDArray[np.floating[Any]],
    *,
    fractional_bits: int,
    norm_bound: int,
    entropy: Callable[[int], bytes],
) -> Clipped:
    """Turn a difference of parameters into integers within the norm bound.

    Args:
        delta: shape (d,), any floating-point type, d ≥ 1. **Secret.**
        fractional_bits: The federation's precision f, 0 ≤ f ≤ 30: steps of 2^-f.
        norm_bound: B in steps: the largest L2 norm of the integers.
        entropy: Returns as many unpredictable bytes as asked; each rounding takes 4·d.

    Returns:
        The integers, and how much was lost.

    Raises:
        NotFiniteError: A NaN or an infinity in `delta`: the training diverged.
        NormBoundTooSmallError: B is below `compute_min_norm_bound`.
        ValueError: A parameter out of range, or not a vector; a bug.
    """
    if delta.ndim != 1 or not len(delta):
        raise ValueError(f"not a vector: shape {delta.shape}")
    check_fractional_bits(fractional_bits)
    if norm_bound < compute_min_norm_bound(len(delta)):
        raise NormBoundTooSmallError(
            f"a norm bound of {norm_bound} steps is too small for {len(delta)} values: "
            f"at least {compute_min_norm_bound(len(delta))}, or rounding exceeds it"
        )
    finite = np.isfinite(delta)
    if not finite.all():
        index = int(np.argmin(finite))
        raise NotFiniteError(f"parameter {index} of the update is {delta[index]}")
    scaled, shrunk_by = _clip(delta.astype(np.float64), fractional_bits, norm_bound)
    floor = np.floor(scaled)
    threshold = (scaled - floor) * 2.0 ** (8 * _DRAW_BYTES)
    for _ in range(MAX_ATTEMPTS):
        draws = np.frombuffer(entropy(_DRAW_BYTES * len(delta)), dtype="<u4")
        values = (floor + (draws < threshold)).astype(np.int64)
        if _is_within(values, norm_bound):
            return Clipped(values, shrunk_by)
    values = np.trunc(scaled).astype(np.int64)
    assert _is_within(values, norm_bound), "rounding towards zero made it longer"
    return Clipped(values, shrunk_by)


def _compute_rounding_allowance(num_values: int) -> int:
    # d/4 + √d/2, rounded up: what B² must leave for rounding at radius 0.
    return -(-num_values // 4) + math.isqrt(num_values) // 2 + 1


def _compute_radius(num_values: int, norm_bound: int) -> float:
    """Return the norm to which overlong updates are shrunk before rounding."""
    # The largest c with c² + c + d/4 + √d/2 ≤ B²: rounding a vector of norm c stays
    # within B with a probability of at least 1 - e^(-1/2).
    room = norm_bound * norm_bound - _compute_rounding_allowance(num_values)
    return math.sqrt(room + 0.25) - 0.5


def _clip(
    delta: NDArray[np.float64], fractional_bits: int, norm_bound: int
) -> tuple[NDArray[np.float64], float]:
    largest = float(np.abs(delta).max())
    if largest == 0:
        return delta, 1.0
    # A power of two brings the largest value to [½, 1), so that no square overflows.
    _, exponent = math.frexp(largest)
    unit = np.ldexp(delta, -exponent)
    # fsum, not a reduction: its result does not depend on the machine.
    norm = math.sqrt(math.fsum((unit * unit).tolist()))
    factor = min(
        _compute_radius(len(delta), norm_bound) / norm,
        (COMMITTED_LIMIT - 1) / float(np.abs(unit).max()),
        # 2^20 and more exceed the second limit; larger ones would overflow.
        2.0 ** min(exponent + fractional_bits, 20),
    )
    # Of the largest updates of all, how often doesn't fit a float.
    wanted = 2.0 ** min(exponent + fractional_bits, _LARGEST_EXPONENT)
    return unit * factor, max(1.0, wanted / factor)


def _is_within(values: NDArray[np.int64], norm_bound: int) -> bool:
    return (
        int(np.abs(values).max()) < COMMITTED_LIMIT
        and compute_squared_norm(values) <= norm_bound * norm_bound
    )
