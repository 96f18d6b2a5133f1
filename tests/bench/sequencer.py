"""`moot bench sequencer`: leaves a second through the real sequencer."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from adapters.kafka import Record, follow_partition
from cli.stack.processes import StackError, kill_owned, spawn_owned
from protocol.envelope import verify_event
from protocol.log import sequence
from schemas import codec
from tests.bench.federation import (
    BenchStack,
    Say,
    admit,
    bench_stack,
    make_agent_keys,
    make_update_event,
    measure_cpu_s,
    measure_leaf_ms,
)
from tests.bench.passthrough import OUTPUT_TOPIC
from tests.bench.report import (
    MEGA,
    make_table,
    measure_rate,
    median,
    show_hot_spots,
    show_target,
)
from tests.builders import LogBuilder, make_key

if TYPE_CHECKING:
    from ledger.signing import SigningKey

FEDERATION: Final = "bench"
NUM_AGENTS: Final = 100
NUM_LEAVES: Final = 20_000
NUM_LATENCIES: Final = 50
TARGET: Final = 2_000.0


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast records went through a process.

    Attributes:
        per_s: By the clock.
        per_cpu_s: By the process's processor time; None where it is unknown.
        sizes: Leaves of each block.
    """

    per_s: float
    per_cpu_s: float | None
    sizes: Sequence[int]


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    count = 2_000 if quick else NUM_LEAVES
    with bench_stack(say) as stack:
        agents = make_agent_keys(NUM_AGENTS)
        operator = stack.found(FEDERATION, 10, NUM_AGENTS)
        stack.serve("sequencer")
        offset = admit(stack, operator, FEDERATION, agents)
        stack.supervisor.stop("sequencer")
        say(f"sending {count} signed updates")
        for name, number in zip(itertools.cycle(agents), range(count), strict=False):
            event = make_update_event(FEDERATION, name, number)
            stack.producer.send(event, agents[name])
        stack.producer.flush()
        say("sequencing them")
        live = _measure_sequencer(stack, offset, count)
        say("one update at a time")
        waits = measure_leaf_ms(stack, FEDERATION, 10 if quick else NUM_LATENCIES)
        stack.supervisor.stop("sequencer")
        say("the same records through a Faust app that does nothing")
        ceiling = _measure_passthrough(stack, count)
    say("the same records without Kafka")
    return report(live, ceiling, waits, Offline(agents, count // 4, live.sizes))


def _measure_sequencer(stack: BenchStack, offset: int, count: int) -> Throughput:
    stack.serve("sequencer")
    records = stack.follow_ledger(FEDERATION, offset)
    sizes = (len(stack.open_block(record).leaves) for record in records)
    return measure_throughput(sizes, count, lambda: stack.cpu_s("sequencer"))


def measure_throughput(
    sizes: Iterable[int], count: int, measure_cpu: Callable[[], float | None]
) -> Throughput:
    """Measure from the first block on: a process's start is not its throughput.

    Args:
        sizes: Leaves of each block, as they come.
        count: Of how many.
        measure_cpu: Returns the process's processor time so far.
    """
    seen: list[int] = []
    began, cpu_began = 0.0, None
    for size in sizes:
        seen.append(size)
        if len(seen) == 1:
            began, cpu_began = time.perf_counter(), measure_cpu()
        if sum(seen) >= count:
            break
    done, elapsed, cpu_ended = sum(seen[1:]), time.perf_counter() - began, measure_cpu()
    per_cpu_s = None
    if cpu_began is not None and cpu_ended is not None:
        per_cpu_s = done / max(cpu_ended - cpu_began, 1e-9)
    return Throughput(done / max(elapsed, 1e-9), per_cpu_s, seen)


def _measure_passthrough(stack: BenchStack, count: int) -> Throughput:
    stack.create_topic(OUTPUT_TOPIC)
    process = spawn_owned(
        [sys.executable, "-m", "tests.bench.passthrough"],
        env=stack.process_environment(),
        log_path=stack.supervisor.log_path("passthrough"),
    )

    def read_sizes() -> Iterator[int]:
        for record in follow_partition(stack.settings, OUTPUT_TOPIC, 0):
            if isinstance(record, Record):
                yield int(record.header("count") or b"0")
            elif process.poll() is not None:
                raise StackError("the pass-through ended", "See its log.")

    try:
        return measure_throughput(
            read_sizes(), count, lambda: measure_cpu_s(process.pid)
        )
    finally:
        kill_owned(process)


class Offline:
    """The same batch in this process, without Kafka.

    Args:
        agents: Who signs: keys of their names.
        count: How many updates.
        sizes: Leaves of blocks, of which the median is taken.
    """

    def __init__(
        self, agents: dict[str, SigningKey], count: int, sizes: Sequence[int]
    ) -> None:
        self._block_size = round(median(sizes))
        log = LogBuilder(
            federation_id=FEDERATION, cohort_size=len(agents), ledger_nodes=()
        )
        log.found()
        log.admit(*agents)
        self._founded, self._genesis, self._now_ms = log.state, log.genesis, log.now_ms
        authors = [*itertools.islice(itertools.cycle(agents), count)]
        for number, name in enumerate(authors):
            log.say(make_update_event(FEDERATION, name, number), agents[name])
        self.batch = log.take_waiting()
        self._authors = [agents[name].public_key for name in authors]

    def verify(self) -> None:
        """Verify every signature, and do nothing else."""
        for public_key, record in zip(self._authors, self.batch, strict=True):
            event, signature = record.event or b"", record.signature or b""
            verify_event(public_key, self._genesis, event, signature)

    def decode(self) -> None:
        """Decode every event, and do nothing else."""
        for record in self.batch:
            codec.decode(record.event or b"")

    def sequence(self) -> None:
        """Do all that the sequencer does but for Kafka."""
        state, key = self._founded, make_key("SEQUENCER")
        for start in range(0, len(self.batch), self._block_size):
            part = self.batch[start : start + self._block_size]
            state, _, refused = sequence(state, part, key=key, now_ms=self._now_ms)
            assert not refused, "the benchmark's load is admissible"


def report(
    live: Throughput, ceiling: Throughput, waits_ms: Sequence[float], offline: Offline
) -> Sequence[str]:
    """Say what was found, with the same records sequenced in this process."""
    verify, decode, alone = (
        measure_rate(work, len(offline.batch))
        for work in (offline.verify, offline.decode, offline.sequence)
    )
    own = live.per_cpu_s
    rates = (
        ("**sequencer, exactly-once, through Kafka**", live.per_s, None, "wall"),
        ("the same", own, None, "per core"),
        ("Faust that only copies, exactly-once", ceiling.per_s, live.per_s, "wall"),
        ("the same", ceiling.per_cpu_s, own, "per core"),
        ("`sequence()` alone, without Kafka", alone, own, "per core"),
        ("decoding the events alone", decode, own, "per core"),
        ("Ed25519 verification alone", verify, own, "per core"),
    )
    parts = [
        show_target(live.per_s, TARGET, "leaves/s", at_least=True),
        make_table(
            {
                "": name,
                "leaves/s": rate,
                "sequencer reaches": f"{reached / rate:.0%}" if reached else None,
                "by": basis,
            }
            for name, rate, reached, basis in rates
            if rate
        ),
        f"Blocks of {min(live.sizes[1:] or live.sizes)} to {max(live.sizes)} leaves.",
        make_table(
            [
                {
                    "": "one update at a time, until its leaf can be read",
                    "median, ms": median(waits_ms),
                    "90th percentile, ms": waits_ms[int(len(waits_ms) * 0.9)],
                }
            ]
        ),
    ]
    if own and ceiling.per_cpu_s:
        parts.append(
            make_table(
                [
                    {
                        "": "processor time, µs a leaf",
                        "signature": MEGA / verify,
                        "the rest of `sequence()`": MEGA / alone - MEGA / verify,
                        "Faust, aiokafka, unframing": MEGA / own - MEGA / alone,
                        "all": MEGA / own,
                        "the app that only copies": MEGA / ceiling.per_cpu_s,
                    }
                ]
            )
        )
    return [*parts, show_hot_spots("`sequence()`", offline.sequence)]
