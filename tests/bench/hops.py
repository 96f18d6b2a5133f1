"""`moot bench hops`: how long it takes until something is on the ledger.

Run as a program it measures once and prints JSON. So another checkout can be measured
alternately with this one: see `BEFORE`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from confluent_kafka import Producer

from adapters.kafka import Record, follow_partition
from cli.modes.mpc import start_parties
from tests.bench.federation import (
    BenchStack,
    Say,
    admit,
    bench_stack,
    list_processes,
    make_agent_keys,
    measure_leaf_ms,
    measure_waits,
)
from tests.bench.privacy_rounds import PARTY_NAMES, SecretLoad, Size
from tests.bench.report import count_cores, make_table, median, name_size, show_target
from tests.bench.rounds import Load, find_round_s
from tests.paths import ROOT

BEFORE: Final = "BENCH_BEFORE"
"""Names a checkout, with its virtual environment, to measure alternately with this."""
NUM_PASSES: Final = 3
NUM_LATENCIES: Final = 60
NUM_AGENTS: Final = 10
NUM_PARAMETERS: Final = 1_000
NUM_ROUNDS: Final = 12
NUM_MPC_ROUNDS: Final = 8
LARGE_SIZES: Final = ((10, 100_000), (10, 1_000_000), (100, 100_000))
LARGE_TARGET: Final = 1.3
FEDERATION: Final = "hops"
TOPIC: Final = "bench.hops"
FIGURES: Final = {
    "latency_ms": "an update until its leaf can be read, ms",
    "transaction_ms": "limit: a bare Kafka transaction of one record, ms",
    "plain_s": "a round of PLAIN, s",
    "plain_cpu_s": "processor time of one, all processes, s",
    "mpc_s": "a round of MPC, s",
    "mpc_cpu_s": "processor time of one, all processes, s",
    "ready_s": "start of the sequencer until the first blocks, s",
}
TARGETS: Final = {
    "latency_ms": (25.0, "ms to the leaf"),
    "plain_s": (0.35, "s a round of PLAIN"),
    "mpc_s": (1.3, "s a round of MPC"),
}

Found = dict[str, float]
"""By the keys of `FIGURES`; of one large round, its seconds and processor time."""


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    trees = {"now": ROOT}
    if before := os.environ.get(BEFORE):
        trees = {"before": Path(before).resolve(), **trees}
    found: dict[str, list[Found]] = {name: [] for name in trees}
    for number in range(1 if quick else NUM_PASSES):
        for name, tree in trees.items():
            found[name].append(_run_pass(tree, *["--quick"] * quick))
            say(f"pass {number + 1}, {name}: {found[name][-1]}")
    large = {}
    for size in () if quick else LARGE_SIZES:
        large[size] = {
            name: _run_pass(tree, *map(str, size)) for name, tree in trees.items()
        }
        say(f"{size}: {large[size]}")
    return report(found, large)


def _run_pass(tree: Path, *arguments: str) -> Found:
    python = str(tree / ".venv" / "bin" / "python")
    done = subprocess.run(
        [python, "-m", "tests.bench.hops", *arguments],
        cwd=tree,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: Found = json.loads(done.stdout.splitlines()[-1])
    return found


class _WithAll:
    """Counts the processor time of all processes."""

    def _cpu_s(self) -> dict[str, float]:
        return {"all": measure_tree_s()}


class _Plain(_WithAll, Load):
    pass


class _Mpc(_WithAll, SecretLoad):
    pass


def measure(say: Say, *, quick: bool) -> Found:
    """Measure once, on a stack of its own."""
    with bench_stack(say) as stack:
        began = time.perf_counter()
        stack.serve("sequencer")
        operator = stack.found(FEDERATION, NUM_PARAMETERS, NUM_AGENTS)
        admit(stack, operator, FEDERATION, make_agent_keys(NUM_AGENTS))
        ready_s = time.perf_counter() - began
        count = 5 if quick else NUM_LATENCIES
        latency_ms = median(measure_leaf_ms(stack, FEDERATION, count))
        transaction_ms = _measure_transaction(stack, count)
        stack.serve("rounds", "aggregator")
        load = _Plain(stack, NUM_AGENTS, NUM_PARAMETERS)
        seen, cpu_s = load.measure(2 if quick else NUM_ROUNDS, say)
        size = Size(NUM_AGENTS, NUM_PARAMETERS, 1 if quick else NUM_MPC_ROUNDS)
        mpc = _measure_mpc(stack, size, say)
    return {
        "ready_s": ready_s,
        "latency_ms": latency_ms,
        "transaction_ms": transaction_ms,
        "plain_s": find_round_s(seen),
        "plain_cpu_s": cpu_s["all"],
        "mpc_s": mpc["seconds"],
        "mpc_cpu_s": mpc["cpu_s"],
    }


def measure_large(say: Say, num_agents: int, num_values: int) -> Found:
    """Measure a round of MPC that takes computing, on a stack of its own."""
    with bench_stack(say) as stack:
        stack.serve("sequencer", "rounds", "aggregator")
        return _measure_mpc(stack, Size(num_agents, num_values, 1, is_warm=False), say)


def _measure_mpc(stack: BenchStack, size: Size, say: Say) -> Found:
    parties = start_parties(stack.supervisor, stack.settings, PARTY_NAMES)
    seen, cpu_s = _Mpc(stack, size, parties).measure(say)
    return {"seconds": find_round_s(seen), "cpu_s": cpu_s["all"]}


def _measure_transaction(stack: BenchStack, count: int) -> float:
    """Return how long one record takes that is written in a transaction of its own."""
    stack.create_topic(TOPIC)
    producer = Producer(
        {
            "bootstrap.servers": stack.settings.bootstrap_servers,
            "log_level": 2,
            "linger.ms": 0,
            "transactional.id": TOPIC,
        }
    )
    producer.init_transactions(30)

    def send(_number: int) -> None:
        producer.begin_transaction()
        producer.produce(TOPIC, value=b"value")
        producer.commit_transaction(30)

    records = follow_partition(stack.settings, TOPIC, 0)
    reader = (record for record in records if isinstance(record, Record))
    return median(measure_waits(send, reader, count))


def measure_tree_s() -> float:
    """Return the processor time of this process and all that descend from it."""
    processes = list(list_processes())
    own = {os.getpid()}
    while more := {p.pid for p in processes if p.parent in own} - own:
        own |= more
    return sum(p.cpu_s for p in processes if p.pid in own)


def report(
    found: Mapping[str, Sequence[Found]],
    large: Mapping[tuple[int, int], Mapping[str, Found]],
) -> Sequence[str]:
    """Say what was found, by state of the checkout."""
    cores = count_cores()
    medians = {
        name: {key: median(one[key] for one in passes) for key in FIGURES}
        for name, passes in found.items()
    }
    now = medians["now"]
    rows = [
        {"": what, **{name: one[key] for name, one in medians.items()}}
        for key, what in FIGURES.items()
    ]
    limits = {
        "a leaf to a bare transaction": now["latency_ms"] / now["transaction_ms"],
        **{
            f"a round of {mode.upper()} to its processor time": (
                cores * now[f"{mode}_s"] / now[f"{mode}_cpu_s"]
            )
            for mode in ("plain", "mpc")
        },
    }
    parts = [
        make_table(rows),
        *(show_target(now[key], *target) for key, target in TARGETS.items()),
        f"**Limits**, the processor time shared among {cores} cores:",
        make_table({"": what, "times": ratio} for what, ratio in limits.items()),
    ]
    if large:
        ratios = {
            s: one["now"]["seconds"] / one["now"]["cpu_s"] for s, one in large.items()
        }
        parts += [
            "**Rounds of MPC that take computing**, s; *least* likewise shared:",
            make_table(
                {
                    **name_size(*size),
                    **{
                        f"{what} {state}": value
                        for state, one in states.items()
                        for what, value in (
                            ("round", one["seconds"]),
                            ("least", one["cpu_s"] / cores),
                        )
                    },
                    "round / least now": f"{cores * ratios[size]:.2f}×",
                }
                for size, states in large.items()
            ),
            show_target(cores * max(ratios.values()), LARGE_TARGET, "times the least"),
        ]
    return parts


def _main(arguments: Sequence[str]) -> None:
    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    match arguments:
        case [num_agents, num_values]:
            found = measure_large(say, int(num_agents), int(num_values))
        case _:
            found = measure(say, quick="--quick" in arguments)
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
