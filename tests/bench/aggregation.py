"""`moot bench aggregation`: the exact sum beside numpy's addition, without I/O."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import Accumulator
from protocol.encoding import update_to_blob
from protocol.model import compute_result
from schemas import events as e
from tests.bench.federation import Say, make_model
from tests.bench.report import MEGA, make_table, name_size, show_hot_spots, show_target

SIZES: Final = ((10, 100_000), (10, 1_000_000), (100, 100_000), (100, 1_000_000))
QUICK_SIZES: Final = ((3, 10_000), (10, 10_000))
NUM_EXAMPLES: Final = 100
ADAPTIVE: Final = ("FEDADAM", "FEDYOGI")
TARGET: Final = 3.0
MIN_REPEATS: Final = 3
MIN_TIME_S: Final = 0.3


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    rows, ratios = [], []
    for size in QUICK_SIZES if quick else SIZES:
        say("{} agents, {:,} parameters".format(*size))
        took = _measure(*size)
        accumulator_s, mixed_s, wide_s, *_ = took.values()
        ratios.append(accumulator_s / mixed_s)
        elements = size[0] * size[1] / MEGA
        rows.append(
            name_size(*size)
            | {name: elements / seconds for name, seconds in took.items()}
            | {
                "to int32": f"{accumulator_s / mixed_s:.2f}×",
                "to int64": f"{accumulator_s / wide_s:.2f}×",
            }
        )
    say("profiling")
    return (
        show_target(max(ratios), TARGET, "times numpy's int64 += int32"),
        make_table(rows),
        show_hot_spots("`compute_result`", _make_round(_make_updates(10, size[1]))),
    )


def _make_updates(num_agents: int, num_parameters: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(0)
    return [
        generator.integers(-(2**20), 2**20, num_parameters, np.int32)
        for _ in range(num_agents)
    ]


def _measure(num_agents: int, num_parameters: int) -> dict[str, float]:
    """Return processor seconds of a cohort."""
    updates = _make_updates(num_agents, num_parameters)
    accumulator = Accumulator(num_parameters)
    total = np.zeros(num_parameters, np.int64)

    def accumulate() -> None:
        for update in updates:
            accumulator.add(update, NUM_EXAMPLES)

    def add_with_numpy(arrays: Sequence[NDArray[Any]]) -> None:
        for array in arrays:
            np.add(total, array, out=total)

    # A hundred long int64 updates are much memory for nothing: ten, times ten.
    few = [update.astype(np.int64) for update in updates[:10]]
    return {
        "`Accumulator`": _time(accumulate),
        "int64 += int32": _time(lambda: add_with_numpy(updates)),
        "int64 += int64": _time(lambda: add_with_numpy(few)) * num_agents / len(few),
        "`compute_result`": _time(_make_round(updates)),
        **{name: _time(_make_round(updates, name)) for name in ADAPTIVE},
    }


def _make_round(
    updates: Sequence[NDArray[np.int32]], strategy: str = "FEDAVG"
) -> Callable[[], object]:
    """Return all that an aggregator or an auditor computes for a round."""
    sealed = e.RoundSealed(
        federation_id="bench",
        round=1,
        cause=bytes(32),
        cause_leaf_index=0,
        output_index=0,
        num_contributions=len(updates),
        contributions_sha256=bytes(32),
        num_examples=NUM_EXAMPLES * len(updates),
        base_model=e.BlobRef(uri="", sha256=bytes(32), size_bytes=1),
        fractional_bits=20,
        num_parameters=len(updates[0]),
    )
    base, blobs = make_model(len(updates[0])), [update_to_blob(u) for u in updates]
    weights = [NUM_EXAMPLES] * len(updates)
    first = compute_result(strategy, sealed, weights, base, blobs)
    return lambda: compute_result(
        strategy, sealed, weights, base, blobs, state_blob=first.state_blob
    )


def _time(work: Callable[[], object]) -> float:
    """Return the least processor time of a call, seconds."""
    seconds: list[float] = []
    # Short calls more often: one page fault too many would be half of the time.
    while len(seconds) < MIN_REPEATS or sum(seconds) < MIN_TIME_S:
        began = time.thread_time()
        work()
        seconds.append(max(time.thread_time() - began, 1e-9))
    return min(seconds)
