"""`moot bench audit`: leaves a second that an audit, and a restart, get through."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

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
    Say,
    audit_ledger,
    bench_stack,
    demand_sound,
    list_processes,
)
from tests.bench.log import LogMaker
from tests.bench.report import (
    MEGA,
    make_table,
    measure_rate,
    show_hot_spots,
    show_target,
)
from tests.builders import make_key, unframe

NUM_AGENTS: Final = 100
NUM_LEAVES: Final = 50_000
NUM_LEAVES_WITH_BLOBS: Final = 4_000
NUM_PARAMETERS: Final = 10_000
NUM_SIGNATURES: Final = 5_000
JOBS: Final = 4
TARGET: Final = 5_000.0
NUM_NODES: Final = 4
NUM_LEAVES_IN_BUNDLE: Final = 1_000_000
BUNDLE_TARGET_S: Final = 180.0
BUNDLE_TARGET_MB: Final = 500.0
SAMPLE_S: Final = 0.25


@dataclass(frozen=True, slots=True)
class Long:
    """What the audit of a long log in a bundle took.

    Attributes:
        leaves: Its leaves.
        attestations: Records of ledger nodes.
        wall_s: By the clock, the start of the program included.
        cpu_s: Processor time of all processes.
        peak_bytes: Resident memory of all processes together, at most; 0 if unknown.
    """

    leaves: int
    attestations: int
    wall_s: float
    cpu_s: float
    peak_bytes: int


@dataclass(frozen=True, slots=True)
class Pace:
    """How long something took that has so many leaves."""

    leaves: int
    wall_s: float
    cpu_s: float
    blob_bytes: int = 0


def run(say: Say, *, quick: bool) -> Sequence[str]:
    """Measure, and return what was found."""
    longs = _measure_long(say, 2_000 if quick else NUM_LEAVES_IN_BUNDLE)
    plain = LogMaker("plain", NUM_AGENTS, 8)
    with bench_stack(say) as stack:
        blobs = LogMaker("blobs", NUM_AGENTS, NUM_PARAMETERS, stack.store.store)
        for maker, count in (
            (plain, 2_000 if quick else NUM_LEAVES),
            (blobs, 500 if quick else NUM_LEAVES_WITH_BLOBS),
        ):
            say(f"making a log of {count:,} leaves")
            _publish(stack, maker, count)
        say("verifying signatures alone")
        verify = _measure_verification()
        say("auditing, and restarting")
        paces = {
            "**audit without blobs**": _audit(stack, plain, with_blobs=False),
            "**audit with blobs**": _audit(stack, blobs, with_blobs=True),
            "restart: sequencer folds its log": _pace(
                plain.num_leaves, lambda: _fold_as_sequencer(stack)
            ),
            "restart: a decider whose cache is lost": _pace(
                plain.num_leaves, lambda: _fold_as_decider(stack)
            ),
        }
        say("profiling")
        return [*report(longs, verify, paces), _profile(stack)]


def _measure_long(say: Say, num_leaves: int) -> dict[int, Long]:
    """Make a long log, and audit it with one process and with two."""
    with tempfile.TemporaryDirectory(prefix="moot-bench-") as folder:
        path = Path(folder) / "long.tar"
        say(f"making a bundle of {num_leaves:,} leaves")
        make_bundle(path, num_leaves)
        found = {}
        for jobs in (1, 2):
            say(f"auditing it with {jobs} processes")
            found[jobs] = audit_bundle(path, jobs)
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
    program = [sys.executable, "-m", "cli.main", "audit", str(path), "--json"]
    with tempfile.TemporaryFile() as out:
        process = subprocess.Popen(
            [*program, "--jobs", str(jobs)], stdout=out, start_new_session=True
        )
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
        leaves=report["num_leaves"],
        attestations=report["num_attestations"],
        wall_s=wall_s,
        cpu_s=after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime,
        peak_bytes=peak,
    )


def measure_rss_bytes(leader: int) -> int:
    """Return the resident memory of all processes of a session; 0 if unknown.

    Pages that they share count for each.
    """
    pages = sum(p.pages for p in list_processes() if p.session == leader)
    return pages * os.sysconf("SC_PAGE_SIZE")


def _publish(stack: BenchStack, maker: LogMaker, num_leaves: int) -> None:
    """Put a made log where the sequencer would have."""
    for made in maker.make(num_leaves):
        for record in (made.ledger, made.checkpoint):
            # As this stack's schema registry frames it.
            event = codec.decode(unframe(record.value or b""))
            _, value = stack.registry.frame(event)  # type: ignore[arg-type]  # it is one
            key = record.key or b""
            stack.producer.send_raw(record.topic, key, value, record.headers)
    stack.producer.flush()


def _measure_verification() -> float:
    key = SigningKey(bytes(32))
    messages = [b"%0256d" % number for number in range(NUM_SIGNATURES)]
    signatures = [sign_event(key, NO_GENESIS, message) for message in messages]

    def verify() -> None:
        for message, signature in zip(messages, signatures, strict=True):
            verify_event(key.public_key, NO_GENESIS, message, signature)

    return measure_rate(verify, NUM_SIGNATURES)


def _pace(leaves: int, work: Callable[[], Any]) -> Pace:
    cpu_began, began = time.process_time(), time.perf_counter()
    size = work()
    wall_s = time.perf_counter() - began
    return Pace(leaves, wall_s, time.process_time() - cpu_began, size or 0)


def _audit(stack: BenchStack, maker: LogMaker, *, with_blobs: bool) -> Pace:
    """Audit as `moot audit` does, checkpoints included."""

    def audit() -> int:
        found = audit_ledger(
            stack,
            maker.federation_id,
            make_key("OPERATOR").public_key,
            fetch_blob=stack.store.fetch if with_blobs else None,
            num_fetches=JOBS,
        )
        demand_sound(found, maker.num_leaves)
        return found.blob_bytes

    return _pace(maker.num_leaves, audit)


def _profile(stack: BenchStack) -> str:
    """Say where an audit's time goes, waiting for Kafka left out."""
    ledger, checkpoints = (
        list(stack.read(topic, "blobs"))
        for topic in (topics.LEDGER, topics.CHECKPOINTS)
    )
    return show_hot_spots(
        "the audit without blobs",
        lambda: run_audit(
            ledger,
            federation_id="blobs",
            unframe=stack.registry.unframe_trusted,
            checkpoints=checkpoints,
        ),
    )


def _fold_as_sequencer(stack: BenchStack) -> None:
    """Do what `streams.sequencer` does before its first block."""
    state = SequencerState()
    for record in stack.read(topics.LEDGER, "plain"):
        data = stack.registry.unframe_trusted(record.value or b"")
        state = read_block(state, data, record.header(SIGNATURE_HEADER))


def _fold_as_decider(stack: BenchStack) -> None:
    """Do what `streams.following` does when its cache is of no use."""
    log, state = LogState(), rounds.DECIDER.initial
    for record in stack.read(topics.LEDGER, "plain"):
        data = stack.registry.unframe_trusted(record.value or b"")
        log, _, leaves = open_block(log, data, record.header(SIGNATURE_HEADER))
        for leaf in leaves:
            state, _ = step(rounds.DECIDER, state, leaf.sequenced)


def report(
    longs: dict[int, Long], verify: float, paces: dict[str, Pace]
) -> Sequence[str]:
    """Say what was found.

    Args:
        longs: By number of processes.
        verify: Signatures that are verified in a second, alone.
        paces: The audit without blobs comes first.
    """
    alone, both = longs.values()
    without, *_ = paces.values()
    rows = [
        {
            "": name,
            "leaves": pace.leaves,
            "leaves/s, wall": pace.leaves / pace.wall_s,
            "leaves/s, per core": pace.leaves / pace.cpu_s,
            "µs a leaf": MEGA * pace.cpu_s / pace.leaves,
            "of Ed25519's rate": f"{pace.leaves / pace.cpu_s / verify:.0%}",
            "blobs, MB/s": pace.blob_bytes / MEGA / pace.wall_s or None,
        }
        for name, pace in paces.items()
    ]
    limit = {
        "": "limit: Ed25519 verification alone",
        "leaves/s, per core": verify,
        "µs a leaf": MEGA / verify,
        "of Ed25519's rate": "100%",
    }
    allowed_s = BUNDLE_TARGET_S * both.leaves / NUM_LEAVES_IN_BUNDLE
    peak = both.peak_bytes / MEGA
    size = f"{both.leaves:,} leaves, {both.attestations:,} records of ledger nodes"
    return (
        f"**A long log, offline**: {size}.",
        show_target(both.wall_s, allowed_s, "s for it with two processes"),
        show_target(peak, BUNDLE_TARGET_MB, "MB of memory, both processes"),
        make_table(
            {
                "processes": str(jobs),
                "wall, s": long.wall_s,
                "processor, s": long.cpu_s,
                "leaves/s, wall": long.leaves / long.wall_s,
                "peak memory, MB": long.peak_bytes / MEGA,
                "faster": f"{alone.wall_s / long.wall_s:.2f}×",
            }
            for jobs, long in longs.items()
        ),
        "**From Kafka**, one process:",
        show_target(
            without.leaves / without.cpu_s,
            TARGET,
            "leaves/s per core, signatures included",
            at_least=True,
        ),
        make_table([*rows, {name: limit.get(name) for name in rows[0]}]),
    )
