"""`moot bench sequencer`: leaves a second through the real sequencer."""

from __future__ import annotations

import itertools
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cli.stack.processes import StackError, kill_owned, spawn_owned
from protocol.envelope import verify_event
from protocol.log import sequence
from schemas import codec
from tests.bench.federation import (
    BenchStack,
    FastProducer,
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
    Section,
    Table,
    find_hot_spots,
    measure_rate,
    median,
    show,
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
WALL: Final = "wall"
PER_CORE: Final = "per core"


@dataclass(frozen=True, slots=True)
class Throughput:
    """How fast records went through a process.

    Attributes:
        per_s: By the clock.
        per_cpu_s: By the process's processor time; None where it is unknown.
        block_sizes: Leaves of each block.
    """

    per_s: float
    per_cpu_s: float | None
    block_sizes: tuple[int, ...] = ()


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    count = 2_000 if quick else NUM_LEAVES
    with bench_stack(say) as stack:
        agents = make_agent_keys(NUM_AGENTS)
        offset = _prepare(stack, agents)
        say(f"sending {count} signed updates")
        _produce(stack, agents, count)
        say("sequencing them")
        live = _measure_sequencer(stack, offset, count)
        say("one update at a time")
        waits = 10 if quick else NUM_LATENCIES
        latencies_ms = measure_leaf_ms(stack, FEDERATION, waits)
        stack.supervisor.stop("sequencer")
        say("the same records through a Faust app that does nothing")
        ceiling = _measure_passthrough(stack, count)
    say("the same records without Kafka")
    return report(live, ceiling, latencies_ms, agents, count)


def _prepare(stack: BenchStack, agents: dict[str, SigningKey]) -> int:
    operator = stack.found(FEDERATION, 10, NUM_AGENTS)
    stack.serve("sequencer")
    offset = admit(stack, operator, FEDERATION, agents)
    stack.supervisor.stop("sequencer")
    return offset


def _produce(stack: BenchStack, agents: dict[str, SigningKey], count: int) -> None:
    producer = FastProducer(stack.settings, stack.registry, stack.genesis)
    names = list(agents)
    for number in range(count):
        name = names[number % len(names)]
        producer.send(make_update_event(FEDERATION, name, number), agents[name])
    producer.flush()


def _measure_sequencer(stack: BenchStack, offset: int, count: int) -> Throughput:
    stack.serve("sequencer")
    sizes: list[int] = []
    began, cpu_began = 0.0, None
    for record in stack.follow_ledger(FEDERATION, offset):
        sizes.append(len(stack.open_block(record).leaves))
        if len(sizes) == 1:
            # From the first block on: the process's start is not its throughput.
            began, cpu_began = time.perf_counter(), stack.cpu_s("sequencer")
        if sum(sizes) >= count:
            break
    elapsed = time.perf_counter() - began
    return _throughput(
        sum(sizes[1:]), elapsed, cpu_began, stack.cpu_s("sequencer"), sizes
    )


def _measure_passthrough(stack: BenchStack, count: int) -> Throughput:
    from adapters.kafka import Record, follow_partition

    stack.create_topic(OUTPUT_TOPIC)
    process = spawn_owned(
        [sys.executable, "-m", "tests.bench.passthrough"],
        env=stack.process_environment(),
        log_path=stack.supervisor.log_path("passthrough"),
    )
    try:
        sizes: list[int] = []
        began, cpu_began = 0.0, None
        for record in follow_partition(stack.settings, OUTPUT_TOPIC, 0):
            if not isinstance(record, Record):
                if process.poll() is not None:
                    raise StackError("the pass-through ended", "See its log.")
                continue
            sizes.append(int(record.header("count") or b"0"))
            if len(sizes) == 1:
                began, cpu_began = time.perf_counter(), measure_cpu_s(process.pid)
            if sum(sizes) >= count:
                break
        elapsed = time.perf_counter() - began
        cpu_ended = measure_cpu_s(process.pid)
        return _throughput(sum(sizes[1:]), elapsed, cpu_began, cpu_ended, sizes)
    finally:
        kill_owned(process)


def _throughput(
    count: int,
    elapsed_s: float,
    cpu_began: float | None,
    cpu_ended: float | None,
    sizes: Sequence[int],
) -> Throughput:
    if cpu_began is None or cpu_ended is None:
        per_cpu_s = None
    else:
        per_cpu_s = count / max(cpu_ended - cpu_began, 1e-9)
    return Throughput(count / max(elapsed_s, 1e-9), per_cpu_s, tuple(sizes))


class Offline:
    """The same batch in this process, without Kafka.

    Args:
        agents: Who signs: keys of their names.
        count: How many updates.
        block_size: Leaves of a block.
    """

    def __init__(
        self, agents: dict[str, SigningKey], count: int, block_size: int
    ) -> None:
        self._block_size = block_size
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
            verify_event(
                public_key,
                self._genesis,
                record.event or b"",
                record.signature or b"",
            )

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
    live: Throughput,
    ceiling: Throughput,
    latencies_ms: list[float],
    agents: dict[str, SigningKey],
    count: int,
) -> Section:
    """Say what was found, with the same records sequenced in this process."""
    block_size = round(median(live.block_sizes))
    offline = Offline(agents, count // 4, block_size)
    verify = measure_rate(offline.verify, len(offline.batch))
    decode = measure_rate(offline.decode, len(offline.batch))
    alone = measure_rate(offline.sequence, len(offline.batch))
    spots = find_hot_spots(offline.sequence)
    own = live.per_cpu_s

    def row(name: str, rate: float, basis: str) -> tuple[str, ...]:
        reached = own if basis == PER_CORE else live.per_s
        return name, show(rate), f"{reached / rate:.0%}" if reached else "", basis

    rows = [
        ("**sequencer, exactly-once, through Kafka**", show(live.per_s), "", WALL),
        *([("the same", show(own), "", PER_CORE)] if own else []),
        row("Faust that only copies bytes, exactly-once", ceiling.per_s, WALL),
        *([row("the same", ceiling.per_cpu_s, PER_CORE)] if ceiling.per_cpu_s else []),
        row("`sequence()` alone, without Kafka", alone, PER_CORE),
        row("decoding the events alone", decode, PER_CORE),
        row("Ed25519 verification alone", verify, PER_CORE),
    ]
    parts: list[str | Table] = [
        f"""\
{count:,} updates, signed by {len(agents)} admitted agents, lie on `moot.updates`. The
sequencer starts and turns them into blocks on `moot.ledger`: it verifies every
signature, checks every rule of admission, hashes the tree, signs blocks and
checkpoints, all in Kafka transactions. Measured by a `read_committed` consumer from the
first block to the last; blocks of {min(live.block_sizes[1:] or live.block_sizes)} to
{max(live.block_sizes)} leaves.""",
        show_target(live.per_s, TARGET, "leaves/s", at_least=True),
        Table(("", "leaves/s", "sequencer reaches", "by"), tuple(rows)),
        f"""\
One at a time, from an update's sending until its leaf can be read: median
{show(median(latencies_ms))} ms, 90th percentile
{show(latencies_ms[int(len(latencies_ms) * 0.9)])} ms. Most of it is what a Kafka
transaction takes: five requests, one after the other.""",
        f"**Hot spot** of `sequence()`: {show_hot_spots(spots)}.",
        _explain(live, ceiling, alone, verify),
        """\
**Next**: libsodium releases Python's lock, so a batch's signatures could be verified by
several threads before the rules look at them in order; federations are independent, so
partitions and replicas of the sequencer multiply the rate.""",
    ]
    return Section("sequencer", "Sequencer: leaves a second", tuple(parts))


def _explain(live: Throughput, ceiling: Throughput, alone: float, verify: float) -> str:
    text = (
        f"**Limit**: one core verifies {show(verify)} signatures a second, and "
        f"`sequence()`, which includes that, takes {alone / verify:.0%} of that rate."
    )
    if live.per_cpu_s and ceiling.per_cpu_s:
        total = 1e6 / live.per_cpu_s
        text += (
            f" Of the {total:.0f} µs of processor time for a leaf, the signature is "
            f"{1e6 / verify:.0f}, the rest of `sequence()` "
            f"{1e6 / alone - 1e6 / verify:.0f}, and Faust, aiokafka and unframing "
            f"{total - 1e6 / alone:.0f} (the app that only copies needs "
            f"{1e6 / ceiling.per_cpu_s:.0f})."
        )
    return text
