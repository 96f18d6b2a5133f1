"""`moot bench aggregation`: the exact sum beside numpy's addition."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import Accumulator
from protocol.encoding import update_to_blob
from protocol.model import compute_result
from schemas import events as e
from tests.bench.federation import Say, make_model
from tests.bench.report import (
    Section,
    Table,
    find_hot_spots,
    show,
    show_hot_spots,
    show_target,
)

SIZES: Final = ((10, 100_000), (10, 1_000_000), (100, 100_000), (100, 1_000_000))
QUICK_SIZES: Final = ((3, 10_000), (10, 10_000))
NUM_EXAMPLES: Final = 100
TARGET: Final = 3.0
MIN_REPEATS: Final = 3
MIN_TIME_S: Final = 0.3
MEGA: Final = 1e6


@dataclass(frozen=True, slots=True)
class Found:
    """Processor time of one cohort, seconds.

    Attributes:
        num_agents: Updates added.
        num_parameters: Their length.
        accumulator_s: `Accumulator.add` of each.
        mixed_s: numpy, int64 += int32.
        wide_s: numpy, int64 += int64.
        result_s: `compute_result`: blobs in, sum and model out.
    """

    num_agents: int
    num_parameters: int
    accumulator_s: float
    mixed_s: float
    wide_s: float
    result_s: float


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    found = []
    for num_agents, num_parameters in QUICK_SIZES if quick else SIZES:
        say(f"{num_agents} agents, {num_parameters:,} parameters")
        found.append(_measure(num_agents, num_parameters))
    say("profiling")
    sealed, base, blobs = _make_round(_make_updates(10, found[-1].num_parameters))
    weights = [NUM_EXAMPLES] * len(blobs)
    spots = find_hot_spots(
        lambda: compute_result("FEDAVG", sealed, weights, base, blobs)
    )
    rows = [
        (
            f"{item.num_agents} × {item.num_parameters:,}",
            *(
                show(item.num_agents * item.num_parameters / seconds / MEGA)
                for seconds in (
                    item.accumulator_s,
                    item.mixed_s,
                    item.wide_s,
                    item.result_s,
                )
            ),
            f"{item.accumulator_s / item.mixed_s:.2f}×",
            f"{item.accumulator_s / item.wide_s:.2f}×",
        )
        for item in found
    ]
    worst = max(item.accumulator_s / item.mixed_s for item in found)
    worst_wide = max(item.accumulator_s / item.wide_s for item in found)
    return Section(
        "aggregation",
        "Aggregation: the exact sum",
        (
            """\
A cohort's updates, int32, times their number of examples, into a sum of int64, in one
process, without I/O, into memory that is there. numpy adds the same arrays without
weights: int64 += int32, and int64 += int64 (made int64 beforehand). `compute_result` is
everything that an aggregator or an auditor computes for a round: parse every blob, add
up, FedAvg, write the sum's and the model's blob. Millions of elements a second, per
core; then how many times numpy's time the accumulator takes.""",
            show_target(worst, TARGET, "times numpy's int64 += int32"),
            Table.under(
                "agents × parameters | `Accumulator` | int64 += int32 | "
                "int64 += int64 | `compute_result` | to int32 | to int64",
                rows,
            ),
            f"""\
**Hot spot** of `compute_result`: {show_hot_spots(spots)}; inside them it is numpy.
Beside int64 += int64, which neither widens nor multiplies, the accumulator takes at
most {worst_wide:.1f} times as long. **Limit**: memory bandwidth. A sum reads 4 bytes of
update and reads and writes 8 of total for each element; the accumulator works in pieces
that stay in the processor's cache while they are widened and multiplied.""",
            """\
**Next**: nothing while fetching a blob takes several times longer than adding it (see
Rounds). Beyond that, pieces of the sum are independent, and numpy releases Python's
lock: threads.""",
        ),
    )


def _make_updates(num_agents: int, num_parameters: int) -> list[NDArray[np.int32]]:
    generator = np.random.default_rng(0)
    return [
        generator.integers(-(2**20), 2**20, num_parameters, np.int32)
        for _ in range(num_agents)
    ]


def _measure(num_agents: int, num_parameters: int) -> Found:
    updates = _make_updates(num_agents, num_parameters)
    accumulator = Accumulator(num_parameters)
    total = np.zeros(num_parameters, np.int64)

    def accumulate() -> None:
        for update in updates:
            accumulator.add(update, NUM_EXAMPLES)

    def add_with_numpy(
        arrays: Sequence[NDArray[np.int32]] | Sequence[NDArray[np.int64]],
    ) -> None:
        for array in arrays:
            np.add(total, array, out=total)

    accumulator_s = _time(accumulate)
    mixed_s = _time(lambda: add_with_numpy(updates))
    # A hundred long int64 updates are much memory for nothing: ten, times ten.
    few = [update.astype(np.int64) for update in updates[:10]]
    wide_s = _time(lambda: add_with_numpy(few)) * num_agents / len(few)
    sealed, base, blobs = _make_round(updates)
    weights = [NUM_EXAMPLES] * num_agents
    result_s = _time(lambda: compute_result("FEDAVG", sealed, weights, base, blobs))
    return Found(num_agents, num_parameters, accumulator_s, mixed_s, wide_s, result_s)


def _make_round(
    updates: Sequence[NDArray[np.int32]],
) -> tuple[e.RoundSealed, bytes, list[bytes]]:
    nowhere = e.BlobRef(uri="", sha256=bytes(32), size_bytes=1)
    sealed = e.RoundSealed(
        federation_id="bench",
        round=1,
        cause=bytes(32),
        cause_leaf_index=0,
        output_index=0,
        num_contributions=len(updates),
        contributions_sha256=bytes(32),
        num_examples=NUM_EXAMPLES * len(updates),
        base_model=nowhere,
        fractional_bits=20,
        num_parameters=len(updates[0]),
    )
    return sealed, make_model(len(updates[0])), [update_to_blob(u) for u in updates]


def _time(work: Callable[[], object]) -> float:
    """Return the least processor time of a call, seconds."""
    seconds: list[float] = []
    # Short calls more often: one page fault too many would be half of the time.
    while len(seconds) < MIN_REPEATS or sum(seconds) < MIN_TIME_S:
        began = time.thread_time()
        work()
        seconds.append(max(time.thread_time() - began, 1e-9))
    return min(seconds)
