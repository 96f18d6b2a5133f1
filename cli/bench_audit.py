"""`moot bench audit`: leaves a second that an audit, and a restart, get through."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from adapters.kafka import read_partition
from adapters.ledger import find_partition
from cli.bench_federation import BenchStack, FastProducer, Say, bench_stack
from cli.bench_log import LogMaker, Store, forget
from cli.bench_report import (
    HotSpot,
    Section,
    Table,
    find_hot_spots,
    measure_rate,
    show,
    show_hot_spots,
    show_target,
)
from cli.processes import StackError
from consumers.audit import audit_log
from protocol import rounds
from protocol.decider import step
from protocol.envelope import SIGNATURE_HEADER, sign_event, verify_event
from protocol.log import LogState, SequencerState, open_block, read_block
from schemas import topics

if TYPE_CHECKING:
    from consumers.audit_report import Report

NUM_AGENTS: Final = 100
NUM_LEAVES: Final = 50_000
NUM_LEAVES_WITH_BLOBS: Final = 4_000
NUM_PARAMETERS: Final = 10_000
NUM_SIGNATURES: Final = 5_000
JOBS: Final = 4
TARGET: Final = 5_000.0
MEGA: Final = 1e6


@dataclass(frozen=True, slots=True)
class Pace:
    """How long something took that has so many leaves."""

    leaves: int
    wall_s: float
    cpu_s: float
    blob_bytes: int = 0

    @property
    def per_s(self) -> float:
        """Leaves a second by the clock."""
        return self.leaves / self.wall_s

    @property
    def per_cpu_s(self) -> float:
        """Leaves a second of processor time, all threads together."""
        return self.leaves / self.cpu_s


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    with bench_stack(say) as stack:
        return _run_on(stack, say, quick=quick)


def _run_on(stack: BenchStack, say: Say, *, quick: bool) -> Section:
    count = 2_000 if quick else NUM_LEAVES
    say(f"making a log of {count:,} leaves")
    plain = LogMaker("plain", NUM_AGENTS, 8, forget, is_summed=False)
    _publish(stack, plain, count)
    few = 500 if quick else NUM_LEAVES_WITH_BLOBS
    say(f"making a log of {few:,} leaves with blobs")
    store: Store = stack.store.store
    blobs = LogMaker("blobs", NUM_AGENTS, NUM_PARAMETERS, store, is_summed=True)
    _publish(stack, blobs, few)
    say("verifying signatures alone")
    verify = _measure_verification()
    say("auditing without blobs")
    without = _audit(stack, plain, with_blobs=False)
    say("auditing with blobs")
    with_blobs = _audit(stack, blobs, with_blobs=True)
    say("restarting: sequencer")
    sequencer = _pace(plain.num_leaves, lambda: _fold_as_sequencer(stack))
    say("restarting: decider")
    decider = _pace(plain.num_leaves, lambda: _fold_as_decider(stack))
    say("profiling")
    spots = _profile(stack, blobs)
    return _report(verify, without, with_blobs, sequencer, decider, spots)


def _publish(stack: BenchStack, maker: LogMaker, num_leaves: int) -> None:
    """Put a made log where the sequencer would have."""
    producer = FastProducer(stack.settings, stack.registry)
    key = maker.keys["SEQUENCER"]
    for block, checkpoint in maker.make(num_leaves):
        traceparent = next(filter(None, block.event.traceparents), "")
        producer.send(block.event, key, traceparent)
        producer.send(checkpoint, key, traceparent)
    producer.flush()


def _measure_verification() -> float:
    from ledger.signing import SigningKey

    key = SigningKey(bytes(32))
    messages = [b"%0256d" % number for number in range(NUM_SIGNATURES)]
    signatures = [sign_event(key, message) for message in messages]

    def verify() -> None:
        for message, signature in zip(messages, signatures, strict=True):
            verify_event(key.public_key, message, signature)

    return measure_rate(verify, NUM_SIGNATURES)


def _audit(stack: BenchStack, maker: LogMaker, *, with_blobs: bool) -> Pace:
    """Audit as `moot audit` does, checkpoints included."""
    found: list[Report] = []

    def audit() -> None:
        partition = find_partition(stack.settings, topics.LEDGER, maker.federation_id)
        report = audit_log(
            read_partition(stack.settings, topics.LEDGER, partition),
            federation_id=maker.federation_id,
            unframe=stack.registry.unframe_trusted,
            fetch_blob=stack.store.fetch if with_blobs else None,
            checkpoints=read_partition(stack.settings, topics.CHECKPOINTS, partition),
            operator_key=maker.keys["OPERATOR"].public_key,
            jobs=JOBS,
        )
        found.append(report)

    pace = _pace(maker.num_leaves, audit)
    report = found[0]
    if not report.is_sound or report.num_leaves != maker.num_leaves:
        first = report.findings[0] if report.findings else "leaves are missing"
        raise StackError(f"the audit found {first}", "A bug of the benchmark or worse.")
    return Pace(pace.leaves, pace.wall_s, pace.cpu_s, report.blob_bytes)


def _profile(stack: BenchStack, maker: LogMaker) -> list[HotSpot]:
    """Return where an audit's time goes, waiting for Kafka left out."""
    ledger, checkpoints = (
        list(read_partition(stack.settings, topic, 0))
        for topic in (topics.LEDGER, topics.CHECKPOINTS)
    )
    return find_hot_spots(
        lambda: audit_log(
            ledger,
            federation_id=maker.federation_id,
            unframe=stack.registry.unframe_trusted,
            checkpoints=checkpoints,
        )
    )


def _pace(leaves: int, work: Callable[[], Any]) -> Pace:
    cpu_began, began = time.process_time(), time.perf_counter()
    work()
    return Pace(leaves, time.perf_counter() - began, time.process_time() - cpu_began)


def _fold_as_sequencer(stack: BenchStack) -> None:
    """Do what `streams.sequencer` does before its first block."""
    state = SequencerState()
    for record in read_partition(stack.settings, topics.LEDGER, 0):
        if record.key == b"plain":
            data = stack.registry.unframe_trusted(record.value or b"")
            state = read_block(state, data, record.header(SIGNATURE_HEADER))


def _fold_as_decider(stack: BenchStack) -> None:
    """Do what `streams.following` does when its cache is of no use."""
    log, state = LogState(), rounds.DECIDER.initial
    for record in read_partition(stack.settings, topics.LEDGER, 0):
        if record.key == b"plain":
            data = stack.registry.unframe_trusted(record.value or b"")
            log, _, leaves = open_block(log, data, record.header(SIGNATURE_HEADER))
            for leaf in leaves:
                state, _ = step(rounds.DECIDER, state, leaf.sequenced)


def _report(
    verify: float,
    without: Pace,
    with_blobs: Pace,
    sequencer: Pace,
    decider: Pace,
    spots: list[HotSpot],
) -> Section:
    def row(name: str, pace: Pace) -> tuple[str, ...]:
        return (
            name,
            f"{pace.leaves:,}",
            show(pace.per_s),
            show(pace.per_cpu_s),
            f"{pace.per_cpu_s / verify:.0%}",
            show(pace.blob_bytes / MEGA / pace.wall_s) if pace.blob_bytes else "",
        )

    return Section(
        "audit",
        "Audit and restart: leaves a second",
        (
            f"""\
A log as the services would have written it: rounds of {NUM_AGENTS} agents, about two
leaves for each update, made by their own functions and published to Kafka with its
checkpoints. The audit reads it from offset 0 and replays all of it: the sequencer's
signatures and every author's, chain and tree, admission, both deciders, every fact and
every checkpoint byte for byte. With blobs (models of {NUM_PARAMETERS:,} parameters) it
also fetches every update from MinIO, verifies its digest, and computes every sum and
model again.""",
            show_target(
                value=without.per_cpu_s,
                target=TARGET,
                unit="leaves/s per core, signatures included",
                at_least=True,
            ),
            Table(
                (
                    "",
                    "leaves",
                    "leaves/s, wall",
                    "leaves/s, per core",
                    "of Ed25519's rate",
                    "blobs, MB/s",
                ),
                (
                    row("**audit without blobs**", without),
                    row("**audit with blobs**", with_blobs),
                    row("restart: sequencer folds its log", sequencer),
                    row("restart: a decider whose cache is lost", decider),
                    (
                        "limit: Ed25519 verification alone",
                        "",
                        "",
                        show(verify),
                        "100%",
                        "",
                    ),
                ),
            ),
            f"**Hot spot** of the audit without blobs: {show_hot_spots(spots)}.",
            f"""\
**Limit**: a leaf's signature takes {1e6 / verify:.0f} µs of the
{1e6 / without.per_cpu_s:.0f} µs that the audit spends on a leaf. A restart verifies the
sequencer's signature of each block and trusts its own admission for the leaves in it,
so it is faster: a log of a million leaves takes the sequencer
{1e6 / sequencer.per_cpu_s:.0f} s. A decider usually finds its state in its table and
starts at once.""",
            """\
**Next**: signatures are independent of each other and could be verified by a process
per core, ahead of the replay; a sequencer could start from a snapshot that its own
checkpoint vouches for.""",
        ),
    )
