"""How the exact sum of a round becomes the next global model, one module a strategy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.encoding import MILLION, check_fractional_bits
from protocol.strategies.arithmetic import verify_arithmetic
from protocol.strategies.fedadam import FEDADAM
from protocol.strategies.fedavg import FEDAVG
from protocol.strategies.fednova import FEDNOVA
from protocol.strategies.fedprox import FEDPROX
from protocol.strategies.fedyogi import FEDYOGI
from protocol.strategies.strategy import (
    MAX_NUM_STEPS,
    Parameters,
    Strategy,
    Vector,
)
from schemas import events as e

STRATEGIES: Final[dict[str, Strategy]] = {
    strategy.name: strategy for strategy in (FEDAVG, FEDPROX, FEDADAM, FEDYOGI, FEDNOVA)
}
"""By name in the configuration."""
_FLOAT64: Final = np.dtype(np.float64)
_CHUNK: Final = 2**14  # = 16,384
"""Values moved at a time: what a step makes on its way stays in the processor's cache.
No result depends on it."""


def find_parameters_problem(
    strategy: Strategy, chosen: tuple[e.StrategyParameter, ...]
) -> str | None:
    """Return what is wrong with parameters chosen for a strategy; None if nothing."""
    known = {parameter.name: parameter for parameter in strategy.parameters}
    names = [parameter.name for parameter in chosen]
    if names != sorted(set(names)) or not set(names) <= set(known):
        return (
            f"strategy_parameters of {strategy.name} may be {', '.join(known)}, each "
            "once, in ascending order of name"
        )
    for name, micros in ((each.name, each.value_micros) for each in chosen):
        lowest, highest = known[name].lowest_micros, known[name].highest_micros
        if not lowest <= micros <= highest:
            return f"{name} of {strategy.name} must be {lowest} to {highest} millionths"
    return None


def list_parameters(
    strategy: Strategy, chosen: Iterable[e.StrategyParameter]
) -> dict[str, int]:
    """Return all parameters of a strategy in millionths, by name, ascending."""
    micros = {each.name: each.value_micros for each in chosen}
    return {
        each.name: micros.get(each.name, each.default_micros)
        for each in strategy.parameters
    }


def read_parameters(
    strategy: Strategy, chosen: Iterable[e.StrategyParameter]
) -> Parameters:
    """Return all parameters of a strategy, by name: each divided once."""
    micros = list_parameters(strategy, chosen)
    return {name: value / MILLION for name, value in micros.items()}


def carries_state(config: e.FederationConfigured) -> bool:
    """Return whether a federation's strategy carries something between rounds."""
    return bool(STRATEGIES[config.strategy].moments)


def counts_steps(config: e.FederationConfigured) -> bool:
    """Return whether a federation's agents divide updates by their steps."""
    return STRATEGIES[config.strategy].counts_steps


def read_max_steps(config: e.FederationConfigured) -> int:
    """Return how many steps an agent may say it took, where steps are counted."""
    strategy = STRATEGIES[config.strategy]
    micros = list_parameters(strategy, config.strategy_parameters)
    return micros[strategy.max_steps] // MILLION


def keeps_bounds(
    before: Iterable[e.StrategyParameter], after: Iterable[e.StrategyParameter]
) -> bool:
    """Return whether a change of parameters raises no bound on what one agent may do.

    Args:
        before: Those of any strategy.
        after: Those of the same one.
    """
    old, new = tuple(before), tuple(after)
    return all(
        list_parameters(strategy, new)[strategy.max_steps]
        <= list_parameters(strategy, old)[strategy.max_steps]
        for strategy in STRATEGIES.values()
        if strategy.counts_steps
    )


def read_proximal_weight(config: e.FederationConfigured) -> float:
    """Return the weight of the proximal term in local training; 0 if there is none."""
    strategy = STRATEGIES[config.strategy]
    if not strategy.proximal:
        return 0.0
    return read_parameters(strategy, config.strategy_parameters)[strategy.proximal]


def move(
    strategy: Strategy,
    base: NDArray[np.float32],
    total: NDArray[np.int64],
    *,
    num_examples: int,
    fractional_bits: int,
    parameters: Parameters,
    moments: tuple[Vector, ...] = (),
    num_weighted_steps: int | None = None,
) -> tuple[NDArray[np.float32], tuple[Vector, ...]]:
    """Take one step. Pure.

    Args:
        strategy: Which.
        base: shape (d,) float32, finite: the cohort's starting point.
        total: shape (d,) int64: the sum of num_examples_i times update_i.
        num_examples: The sum of the cohort's num_examples_i, 1 ≤ n < 2^31.
        fractional_bits: The updates' precision, 0 ≤ f ≤ 30.
        parameters: All that the strategy has, within their ranges.
        moments: Those of the strategy, each of shape (d,) float64, within its bounds.
        num_weighted_steps: The sum of num_examples_i times num_steps_i, if the strategy
            counts steps; None if not.

    Returns:
        The next model, shape (d,) float32, finite: base + step, computed in float64 and
        rounded once at the end; and the next moments. The average that the strategy is
        given is total / (n · 2^f), times num_weighted_steps / n where steps are
        counted. The same bits on every IEEE 754 machine.

    Raises:
        ValueError: Shapes, types or ranges differ from the above; a bug.
        ArithmeticModeError: This thread does not compute as IEEE 754 says.
    """
    if (
        base.dtype != np.float32
        or total.dtype != np.int64
        or base.ndim != 1
        or base.shape != total.shape
        or len(moments) != len(strategy.moments)
        or any((m.dtype, m.shape) != (_FLOAT64, base.shape) for m in moments)
    ):
        raise ValueError(
            f"base {base.dtype}{base.shape}, total {total.dtype}{total.shape} and "
            f"{len(moments)} moments aren't float32, int64 and float64 vectors of one "
            "length"
        )
    if not 1 <= num_examples <= MAX_TOTAL_EXAMPLES:
        raise ValueError(f"{num_examples} examples, not 1 to {MAX_TOTAL_EXAMPLES}")
    # As if each had taken one step, where nobody counts them.
    steps = num_examples if num_weighted_steps is None else num_weighted_steps
    if (num_weighted_steps is not None) != strategy.counts_steps or not (
        num_examples <= steps <= num_examples * MAX_NUM_STEPS
    ):
        raise ValueError(f"{num_weighted_steps} steps of {num_examples} examples")
    check_fractional_bits(fractional_bits)
    if not np.isfinite(base).all():
        raise ValueError("the base model isn't finite")
    verify_arithmetic()
    divisor = float(num_examples * 2**fractional_bits)  # exact: 31 bits
    mean_steps = steps / num_examples
    after = np.empty_like(base)
    next_moments = tuple(np.empty_like(values) for values in moments)
    for begin in range(0, len(base), _CHUNK):
        part = slice(begin, begin + _CHUNK)
        average = np.divide(total[part].astype(np.float64), divisor)
        if strategy.counts_steps:
            average = np.multiply(average, mean_steps)
        step, moved = strategy.step(
            average, parameters, tuple(values[part] for values in moments)
        )
        after[part] = np.add(base[part].astype(np.float64), step)
        for values, new in zip(next_moments, moved, strict=True):
            values[part] = new
    return after, next_moments
