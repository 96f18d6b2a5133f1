"""`moot bench hops`: how long it takes until something is on the ledger.

Run as a program it measures the tree on its path, once, and prints JSON. So a tree of
another state can be measured alternately with this one: see `BEFORE`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Final

from confluent_kafka import Producer

from adapters.kafka import Record, follow_partition
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
from tests.bench.report import Section, Table, count_cores, median, show, show_target
from tests.bench.rounds import Load

BEFORE: Final = "BENCH_BEFORE"
"""Names a checkout, with its virtual environment, to measure alternately with this."""
NUM_PASSES: Final = 3
NUM_LATENCIES: Final = 60
NUM_AGENTS: Final = 10
NUM_PARAMETERS: Final = 1_000
NUM_ROUNDS: Final = 12
NUM_MPC_ROUNDS: Final = 8
LATENCY_TARGET_MS: Final = 25.0
PLAIN_TARGET_S: Final = 0.35
MPC_TARGET_S: Final = 1.3
LARGE_SIZES: Final = ((10, 100_000), (10, 1_000_000), (100, 100_000))
LARGE_TARGET: Final = 1.3
FEDERATION: Final = "hops"
TOPIC: Final = "bench.hops"


@dataclass(frozen=True, slots=True)
class Found:
    """What one pass found.

    Attributes:
        ready_s: From the start of the sequencer until it has written its first blocks.
        latency_ms: From an update's sending to its leaf, nothing else going on.
        transaction_ms: As long for a bare Kafka transaction of one record.
        plain_s: A round of PLAIN.
        plain_cpu_s: Processor time of all processes for one, Kafka and MinIO included.
        mpc_s: A round of MPC.
        mpc_cpu_s: Processor time likewise.
    """

    ready_s: float
    latency_ms: float
    transaction_ms: float
    plain_s: float
    plain_cpu_s: float
    mpc_s: float
    mpc_cpu_s: float


@dataclass(frozen=True, slots=True)
class Round:
    """A round of MPC that takes computing, and the processor time of all processes."""

    seconds: float
    cpu_s: float


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    trees = {"now": Path(__file__).parents[2]}
    if before := os.environ.get(BEFORE):
        trees = {"before": Path(before).resolve(), **trees}
    found: dict[str, list[Found]] = {name: [] for name in trees}
    for number in range(1 if quick else NUM_PASSES):
        for name, tree in trees.items():
            found[name].append(Found(**_run_pass(tree, *["--quick"] * quick)))
            say(f"pass {number + 1}, {name}: {found[name][-1]}")
    rounds: dict[str, dict[str, Round]] = {}
    for size in () if quick else LARGE_SIZES:
        rounds[_name(size)] = {
            name: Round(**_run_pass(tree, *map(str, size)))
            for name, tree in trees.items()
        }
        say(f"{_name(size)}: {rounds[_name(size)]}")
    return report(found, rounds)


def _run_pass(tree: Path, *arguments: str) -> dict[str, float]:
    # "-P": this folder is not where its modules come from, the tree is.
    done = subprocess.run(
        [str(tree / ".venv" / "bin" / "python"), "-P", __file__, *arguments],
        cwd=tree,
        env={**os.environ, "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
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
        agents = make_agent_keys(NUM_AGENTS)
        admit(stack, operator, FEDERATION, agents)
        ready_s = time.perf_counter() - began
        count = 5 if quick else NUM_LATENCIES
        latency_ms = median(measure_leaf_ms(stack, FEDERATION, count))
        transaction_ms = _measure_transaction(stack, count)
        stack.serve("rounds", "aggregator")
        load = _Plain(stack, NUM_AGENTS, NUM_PARAMETERS)
        plain = load.measure(2 if quick else NUM_ROUNDS, say)
        size = Size(NUM_AGENTS, NUM_PARAMETERS, 1 if quick else NUM_MPC_ROUNDS)
        mpc = _measure_mpc(stack, size, say)
        return Found(
            ready_s=ready_s,
            latency_ms=latency_ms,
            transaction_ms=transaction_ms,
            plain_s=plain.round_s,
            plain_cpu_s=plain.cpu_s["all"],
            mpc_s=mpc.seconds,
            mpc_cpu_s=mpc.cpu_s,
        )


def measure_large(say: Say, num_agents: int, num_values: int) -> Round:
    """Measure a round of MPC that takes computing, on a stack of its own."""
    with bench_stack(say) as stack:
        stack.serve("sequencer", "rounds", "aggregator")
        return _measure_mpc(stack, Size(num_agents, num_values, 1, is_warm=False), say)


def _measure_mpc(stack: BenchStack, size: Size, say: Say) -> Round:
    start = getattr(stack.supervisor, "start_parties", None)
    if start is None:
        from cli.modes.mpc import start_parties

        start = partial(start_parties, stack.supervisor)
    parties = start(stack.settings, PARTY_NAMES)
    seconds, cpu_s = _Mpc(stack, size, parties).measure(say)
    return Round(median(seconds), cpu_s["all"])


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
    found: Mapping[str, Sequence[Found]], rounds: Mapping[str, Mapping[str, Round]]
) -> Section:
    """Say what was found."""
    cores = count_cores()
    medians = {
        name: Found(
            **{
                field: median(asdict(item)[field] for item in passes)
                for field in asdict(passes[0])
            }
        )
        for name, passes in found.items()
    }
    now = medians["now"]
    alternating = ", the states alternating" if len(found) > 1 else ""
    rows = [
        ("an update until its leaf can be read, ms", "latency_ms"),
        ("limit: a bare Kafka transaction, ms", "transaction_ms"),
        ("a round of PLAIN, s", "plain_s"),
        ("processor time of one, all processes, s", "plain_cpu_s"),
        ("a round of MPC, s", "mpc_s"),
        ("processor time of one, all processes, s", "mpc_cpu_s"),
        ("start of the sequencer until the first blocks, s", "ready_s"),
    ]
    parts: list[str | Table] = [
        f"""\
Real Kafka, MinIO and services; medians of {len(found["now"])} passes, each on a
stack of its own{alternating}. An update is sent when nothing else happens, and seen by
a `read_committed` reader. Rounds are of {NUM_AGENTS} agents and {NUM_PARAMETERS:,}
parameters: next to nothing is computed, but with MPC agents commit and prove, and four
others verify it. `{BEFORE}=DIRECTORY` has another checkout measured
alternately.""",
        Table(
            ("", *medians),
            tuple(
                (what, *(show(getattr(item, field)) for item in medians.values()))
                for what, field in rows
            ),
        ),
    ]
    for value, target, unit in (
        (now.latency_ms, LATENCY_TARGET_MS, "ms to the leaf"),
        (now.plain_s, PLAIN_TARGET_S, "s a round of PLAIN"),
        (now.mpc_s, MPC_TARGET_S, "s a round of MPC"),
    ):
        parts.append(show_target(value, target, unit))
    parts.append(
        f"""\
**Limits**: an update takes {now.latency_ms / now.transaction_ms:.1f} times as long as a
bare transaction, which one client writes and another reads. A round of PLAIN needs
{show(now.plain_cpu_s)} s of processor time, so on {cores} cores
{show(now.plain_cpu_s / cores)} s at least, and takes
{now.plain_s / (now.plain_cpu_s / cores):.1f} times that; a round of MPC
{show(now.mpc_cpu_s / cores)} s and {now.mpc_s / (now.mpc_cpu_s / cores):.1f} times
that."""
    )
    if rounds:
        parts += _report_large(rounds, cores)
    return Section("hops", "Hops: until something is on the ledger", tuple(parts))


def _report_large(
    rounds: Mapping[str, Mapping[str, Round]], cores: int
) -> list[str | Table]:
    states = list(next(iter(rounds.values())))
    worst = max(
        item["now"].seconds / (item["now"].cpu_s / cores) for item in rounds.values()
    )
    return [
        f"""\
Rounds of MPC that take computing, one each, no warm-up, in seconds; beside them the
processor time of all processes, shared among {cores} cores:""",
        Table(
            (
                "agents × parameters",
                *(f"{what} {state}" for state in states for what in ("round", "least")),
                "round / least now",
            ),
            tuple(
                (
                    size,
                    *(
                        show(value)
                        for state in states
                        for value in (
                            found[state].seconds,
                            found[state].cpu_s / cores,
                        )
                    ),
                    f"{found['now'].seconds / (found['now'].cpu_s / cores):.2f}×",
                )
                for size, found in rounds.items()
            ),
        ),
        show_target(worst, LARGE_TARGET, "times the least"),
    ]


def _name(size: tuple[int, int]) -> str:
    return f"{size[0]} × {size[1]:,}"


def _main(arguments: Sequence[str]) -> None:
    def say(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    found: Found | Round
    match arguments:
        case [num_agents, num_values]:
            found = measure_large(say, int(num_agents), int(num_values))
        case _:
            found = measure(say, quick="--quick" in arguments)
    sys.stdout.write(json.dumps(asdict(found)) + "\n")


if __name__ == "__main__":
    _main(sys.argv[1:])
