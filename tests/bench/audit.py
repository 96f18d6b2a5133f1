"""`moot bench audit`: leaves a second that an audit, and a restart, get through."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from adapters.kafka import read_partition
from cli.stack.processes import StackError
from consumers.audit.auditor import run_audit
from consumers.audit.bundle import BundleWriter
from ledger.signing import SigningKey
from protocol import rounds
from protocol.decider import step
from protocol.envelope import NO_GENESIS, SIGNATURE_HEADER, sign_event, verify_event
from protocol.log import LogState, SequencerState, open_block, read_block
from schemas import codec, topics
from tests.bench.federation import (
    BenchStack,
    FastProducer,
    Say,
    audit_ledger,
    bench_stack,
    demand_sound,
    list_processes,
)
from tests.bench.log import LogMaker
from tests.bench.report import (
    HotSpot,
    Section,
    Table,
    find_hot_spots,
    measure_rate,
    show,
    show_hot_spots,
    show_target,
)
from tests.builders import make_key, unframe

if TYPE_CHECKING:
    from consumers.audit.report import Report

NUM_AGENTS: Final = 100
NUM_LEAVES: Final = 50_000
NUM_LEAVES_WITH_BLOBS: Final = 4_000
NUM_PARAMETERS: Final = 10_000
NUM_SIGNATURES: Final = 5_000
JOBS: Final = 4
TARGET: Final = 5_000.0
MEGA: Final = 1e6
NUM_NODES: Final = 4
NUM_LEAVES_IN_BUNDLE: Final = 1_000_000
BUNDLE_TARGET_S: Final = 180.0
BUNDLE_TARGET_MB: Final = 500.0
SAMPLE_S: Final = 0.25


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


@dataclass(frozen=True, slots=True)
class Long:
    """What the audit of a long log in a bundle took.

    Attributes:
        jobs: Processes.
        leaves: Its leaves.
        attestations: Records of ledger nodes.
        wall_s: By the clock, the start of the program included.
        cpu_s: Processor time of all processes.
        peak_bytes: Resident memory of all processes together, at most; 0 if unknown.
    """

    jobs: int
    leaves: int
    attestations: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


def run(say: Say, *, quick: bool) -> Section:
    """Measure, and say what was found."""
    longs = _measure_long(say, 2_000 if quick else NUM_LEAVES_IN_BUNDLE)
    with bench_stack(say) as stack:
        return _run_on(stack, say, longs, quick=quick)


def _measure_long(say: Say, num_leaves: int) -> list[Long]:
    """Make a long log, and audit it with one process and with two."""
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as folder:
        path = Path(folder) / "long.tar"
        say(f"making a bundle of {num_leaves:,} leaves")
        make_bundle(path, num_leaves)
        found = []
        for jobs in (1, 2):
            say(f"auditing it with {jobs} processes")
            found.append(audit_bundle(path, jobs))
        return found


def make_bundle(path: Path, num_leaves: int) -> None:
    """Make a log with ledger nodes as a bundle; nothing but its file grows."""
    maker = LogMaker("long", NUM_AGENTS, 8, num_nodes=NUM_NODES)
    with BundleWriter(path) as writer:
        learn = writer.unframe(unframe)
        for made in maker.make(num_leaves):
            said = (record for _, record in made.said)
            for record in (made.ledger, made.checkpoint, *said):
                learn((record.value or b"")[: codec.FRAMING_SIZE])
                writer.keep(record)
        writer.write(maker.federation_id, b"{}", policy=None, settled_offset=None)


def audit_bundle(path: Path, jobs: int) -> Long:
    """Audit a bundle as a user does, and watch what it takes.

    Raises:
        StackError: it is not sound.
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began, peak = time.perf_counter(), 0
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [
                sys.executable, "-m", "cli.main", "audit", str(path), "--json",
                "--jobs", str(jobs),
            ],
            stdout=out,
            start_new_session=True,
        )  # fmt: skip
        while process.poll() is None:
            peak = max(peak, measure_rss_bytes(process.pid))
            time.sleep(SAMPLE_S)
        wall_s = time.perf_counter() - began
        out.seek(0)
        report = json.loads(out.read() or b"{}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if not report.get("is_sound"):
        msg = f"the audit of the bundle says {json.dumps(report)[:500]}"
        raise StackError(msg, "A bug of the benchmark or worse.")
    return Long(
        jobs=jobs,
        leaves=report["num_leaves"],
        attestations=report["num_attestations"],
        wall_s=wall_s,
        cpu_s=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        peak_bytes=peak,
    )


def measure_rss_bytes(leader: int) -> int:
    """Return the resident memory of all processes of a session; 0 if unknown.

    Pages that they share count for each.

    Args:
        leader: Process id of the session's leader.
    """
    pages = sum(p.pages for p in list_processes() if p.session == leader)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _run_on(stack: BenchStack, say: Say, longs: list[Long], *, quick: bool) -> Section:
    count = 2_000 if quick else NUM_LEAVES
    say(f"making a log of {count:,} leaves")
    plain = LogMaker("plain", NUM_AGENTS, 8)
    _publish(stack, plain, count)
    few = 500 if quick else NUM_LEAVES_WITH_BLOBS
    say(f"making a log of {few:,} leaves with blobs")
    blobs = LogMaker("blobs", NUM_AGENTS, NUM_PARAMETERS, stack.store.store)
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
    return _report(longs, verify, without, with_blobs, sequencer, decider, spots)


def _publish(stack: BenchStack, maker: LogMaker, num_leaves: int) -> None:
    """Put a made log where the sequencer would have."""
    producer = FastProducer(stack.settings, stack.registry)
    for made in maker.make(num_leaves):
        for record in (made.ledger, made.checkpoint):
            # As this stack's schema registry frames it.
            event = codec.decode(unframe(record.value or b""))
            _, value = stack.registry.frame(event)  # type: ignore[arg-type]  # it is one
            key = record.key or b""
            producer.send_raw(record.topic, key, value, record.headers)
    producer.flush()


def _measure_verification() -> float:
    key = SigningKey(bytes(32))
    messages = [b"%0256d" % number for number in range(NUM_SIGNATURES)]
    signatures = [sign_event(key, NO_GENESIS, message) for message in messages]

    def verify() -> None:
        for message, signature in zip(messages, signatures, strict=True):
            verify_event(key.public_key, NO_GENESIS, message, signature)

    return measure_rate(verify, NUM_SIGNATURES)


def _audit(stack: BenchStack, maker: LogMaker, *, with_blobs: bool) -> Pace:
    """Audit as `moot audit` does, checkpoints included."""
    found: list[Report] = []

    def audit() -> None:
        key = make_key("OPERATOR").public_key
        fetch = stack.store.fetch if with_blobs else None
        found.append(
            audit_ledger(
                stack, maker.federation_id, key, fetch_blob=fetch, num_fetches=JOBS
            )
        )

    pace = _pace(maker.num_leaves, audit)
    demand_sound(found[0], maker.num_leaves)
    return replace(pace, blob_bytes=found[0].blob_bytes)


def _profile(stack: BenchStack, maker: LogMaker) -> list[HotSpot]:
    """Return where an audit's time goes, waiting for Kafka left out."""
    ledger, checkpoints = (
        list(read_partition(stack.settings, topic, 0))
        for topic in (topics.LEDGER, topics.CHECKPOINTS)
    )
    return find_hot_spots(
        lambda: (
            run_audit(
                ledger,
                federation_id=maker.federation_id,
                unframe=stack.registry.unframe_trusted,
                checkpoints=checkpoints,
            ).report
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
    longs: list[Long],
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

    alone, together = longs
    return Section(
        "audit",
        "Audit and restart: leaves a second",
        (
            f"""\
**A long log, offline**: {together.leaves:,} leaves in a bundle, rounds of {NUM_AGENTS}
agents, {NUM_NODES} ledger nodes that attest every block and cosign every checkpoint
({together.attestations:,} records). `moot audit` checks hashes, chain, tree, every
signature, the deciders, checkpoints, attestations and what is final; blobs are left
out.""",
            show_target(
                together.wall_s,
                BUNDLE_TARGET_S * together.leaves / NUM_LEAVES_IN_BUNDLE,
                "s for it with two processes",
            ),
            show_target(
                together.peak_bytes / MEGA,
                BUNDLE_TARGET_MB,
                "MB of memory, both processes",
            ),
            Table.under(
                " | wall, s | processor, s | leaves/s, wall | peak memory, MB | faster",
                (
                    (
                        f"{long.jobs} processes" if long.jobs > 1 else "1 process",
                        show(long.wall_s),
                        show(long.cpu_s),
                        show(long.leaves / long.wall_s),
                        show(long.peak_bytes / MEGA),
                        f"{alone.wall_s / long.wall_s:.2f}×",
                    )
                    for long in longs
                ),
            ),
            f"""\
**From Kafka**: a log as the services would have written it: rounds of {NUM_AGENTS}
agents, about three leaves for each update, made by their own functions and published to
Kafka with its checkpoints. One process audits it. The audit reads it from offset 0 and
replays all of it: the sequencer's signatures and every author's, chain and tree,
admission, the deciders, every fact and every checkpoint byte for byte. With blobs
(models of {NUM_PARAMETERS:,} parameters) it also fetches every update from MinIO,
verifies its digest, and computes every sum and model again.""",
            show_target(
                without.per_cpu_s,
                TARGET,
                "leaves/s per core, signatures included",
                at_least=True,
            ),
            Table.under(
                " | leaves | leaves/s, wall | "
                "leaves/s, per core | of Ed25519's rate | blobs, MB/s",
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
**Next**: with helpers the replay itself is the limit, which is one process by nature;
after it comes decoding. A sequencer could start from a snapshot that its own checkpoint
vouches for.""",
        ),
    )
