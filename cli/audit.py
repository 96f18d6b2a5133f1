"""`moot audit`: read a federation's whole log, check it, and say what was found.

Exit codes: 0 the log is sound; 1 it is wrong, and the findings say where; 2 it could
not be read, and the message says what to do; 3 it follows rules that this version does
not know, and what comes before them is sound; 130 interrupted. An audit that fails
gives no verdict, so 1 always means that the log is wrong.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, Final, Protocol

import typer

from cli.audit_show import fold, render
from cli.show import say, say_error, say_json
from cli.stack.processes import read_at_most

if TYPE_CHECKING:
    from adapters.kafka import Record
    from adapters.settings import Settings
    from consumers.audit.auditor import Audited, Progress
    from consumers.audit.blobs import FetchBlob
    from consumers.audit.bundle import Bundle, BundleWriter
    from consumers.audit.monitor import Alert
    from consumers.audit.parallel import Helpers
    from consumers.audit.records import Unframe
    from consumers.audit.report import Report
    from consumers.audit.state import AuditState, Position
    from ledger.policy import Policy

EXIT_WRONG: Final = 1
EXIT_UNREADABLE: Final = 2
EXIT_UNKNOWN: Final = 3
READ_TIMEOUT_S: Final = 15.0
SETTLE_S: Final = 0.5
"""A transaction's records appear on its topics within moments of each other."""
INTERVAL_S: Final = 2.0
"""Between a monitor's passes."""


class CannotAuditError(Exception):
    """The log could not be read; the message says what to do."""


class _StoppedError(Exception):
    """The monitor was told to stop."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What the command line asked for.

    Attributes:
        federation: Its name; empty to take the bundle's.
        bundle: The bundle to audit; None to read Kafka.
        operator_key: Public key of the operator that the reader trusts, hex; None
            takes the log's word for it.
        policy: File with the C2SP policy that a checkpoint must satisfy.
        with_blobs: Whether blobs are fetched, and every round computed again.
        lists_refused: Whether refused records are listed.
        write_bundle: Where to write a bundle.
        continue_from: A saved state to go on from.
        save: Where to save the state.
        is_followed: Whether to keep running as a monitor.
        stale_after_s: Seconds until a monitor alerts that nothing becomes final or can
            be read; 0 for never, None for the default.
        keeps_going: Whether a monitor keeps running after a fork.
        as_json: Whether to print JSON.
        second_opinion: Whether another library opens a sample of every sum again.
        jobs: Number of processes; one per core by default.
    """

    federation: str = ""
    bundle: Path | None = None
    operator_key: str | None = None
    policy: Path | None = None
    with_blobs: bool = True
    lists_refused: bool = False
    write_bundle: Path | None = None
    continue_from: Path | None = None
    save: Path | None = None
    is_followed: bool = False
    stale_after_s: float | None = None
    keeps_going: bool = False
    as_json: bool = False
    second_opinion: bool = False
    jobs: int | None = None


def audit(options: Options) -> None:
    """Replay the log, check everything in it, and print a verdict.

    Raises:
        typer.Exit: always, with the exit code.
    """
    started = time.monotonic()
    try:
        _check(options)
        if options.is_followed:
            exit_code = follow(options)
        else:
            report = _audit_once(options)
            _demand_log(report, options)
            exit_code = 0 if report.is_sound else EXIT_WRONG
            if report.is_unknown:
                exit_code = EXIT_UNKNOWN
    except Exception as error:
        text = _describe(error, options)
        if options.as_json:
            say_json({"is_sound": None, "error": text}, is_wide=True)
        if os.environ.get("MOOT_DEBUG"):
            raise
        say_error(text)
        raise typer.Exit(EXIT_UNREADABLE) from None
    if options.is_followed:
        pass  # what there was to say was said
    elif options.as_json:
        say_json(report.to_json(), is_wide=True)
    else:
        text = render(report, time.monotonic() - started)
        say(*fold(text, shutil.get_terminal_size().columns))
    raise typer.Exit(exit_code)


def _describe(error: Exception, options: Options) -> str:
    """Return why there is no verdict."""
    if isinstance(error, CannotAuditError):
        return str(error)
    text = f"The audit could not go on: {type(error).__name__}: {error}."
    if options.continue_from is not None:
        text += f" If {options.continue_from} is damaged, audit from the beginning."
    return text + " MOOT_DEBUG=1 shows where it comes from."


def _check(options: Options) -> None:
    """Refuse options that exclude each other."""
    if not options.federation and options.bundle is None:
        raise CannotAuditError("Name a federation (--federation) or a bundle.")
    _parse_key(options.operator_key)
    if options.write_bundle is not None and (
        options.bundle is not None
        or options.continue_from is not None
        or options.is_followed
    ):
        raise CannotAuditError(
            "--bundle writes a whole log from Kafka: leave out --from, --follow and "
            "the bundle to read."
        )
    if options.second_opinion and not options.with_blobs:
        raise CannotAuditError("--second-opinion needs blobs: leave out --no-blobs.")
    if options.is_followed and options.bundle is not None:
        raise CannotAuditError("A bundle does not grow: leave out --follow.")
    if not options.is_followed and (
        options.stale_after_s is not None or options.keeps_going
    ):
        raise CannotAuditError("--stale-after and --keep-going need --follow.")


def _demand_log(report: Report, options: Options) -> None:
    if report.num_blocks or report.findings or report.unjudged:
        return
    if options.bundle is not None:
        raise CannotAuditError(f"{options.bundle} holds no block of a federation.")
    from cli.federations import describe_federations

    raise CannotAuditError(
        f"There is no federation {report.federation_id!r} on this Kafka. "
        f"{describe_federations(_load_settings())}"
    )


def _demand_judged(report: Report) -> None:
    if report.is_unknown:
        raise CannotAuditError(report.unjudged)


def _parse_key(text: str | None) -> bytes | None:
    from ledger.signing import PUBLIC_KEY_SIZE

    if text is None:
        return None
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != PUBLIC_KEY_SIZE:
        msg = f"--operator-key: expected {2 * PUBLIC_KEY_SIZE} hex digits, got {text!r}"
        raise CannotAuditError(msg)
    return key


def _load_policy(path: Path | None) -> Policy | None:
    from ledger.policy import (
        MAX_POLICY_SIZE_BYTES,
        InvalidPolicyError,
        parse_policy,
    )

    if path is None:
        return None
    try:
        return parse_policy(_read_file(path, MAX_POLICY_SIZE_BYTES))
    except InvalidPolicyError as error:
        msg = f"{path} is not a policy: {error}. `moot node policy` writes one."
        raise CannotAuditError(msg) from error


def _load_state(path: Path | None, federation: str) -> AuditState | None:
    from consumers.audit.state import StateError, load_state

    if path is None:
        return None
    try:
        state = load_state(_read_file(path))
    except StateError as error:
        raise CannotAuditError(f"{path}: {error}.") from error
    if state.report.federation_id != federation:
        raise CannotAuditError(
            f"{path} belongs to {state.report.federation_id!r}, not to {federation!r}."
        )
    return state


def _read_file(path: Path, max_size_bytes: int | None = None) -> bytes:
    try:
        if max_size_bytes is None:
            return path.read_bytes()
        return read_at_most(path, max_size_bytes)
    except OSError as error:
        raise CannotAuditError(f"cannot read {path}: {error.strerror}.") from error


def _save_state(path: Path | None, audited: Audited) -> None:
    """Save where a sound audit ended; otherwise keep what was saved before."""
    from adapters.durable import write_output
    from consumers.audit.state import save_state

    if path is None:
        return
    if not audited.report.is_sound:
        say(f"{path} was not written: the log is not sound", is_error=True)
        return
    try:
        write_output(path, save_state(audited.state))
    except OSError as error:
        raise CannotAuditError(f"cannot write {path}: {error.strerror}.") from error


# Where a log comes from


@dataclass(frozen=True, slots=True, kw_only=True)
class Streams:
    """A log's records, up to an end.

    Attributes:
        ledger: Blocks.
        checkpoints: Checkpoints.
        attestations: What ledger nodes say.
        settled_offset: As in `consumers.audit.auditor.run_audit`.
        first_offsets: Likewise.
    """

    ledger: Iterator[Record]
    checkpoints: Iterator[Record]
    attestations: Iterator[Record]
    settled_offset: int | None
    first_offsets: Mapping[str, int] = field(default_factory=dict)


class Source(Protocol):
    """A place to read a log from."""

    unframe: Unframe
    fetch: FetchBlob | None

    def open(self, positions: Mapping[str, Position]) -> Streams:
        """Return the records from these positions on, or from the beginning."""
        ...


class KafkaSource:
    """A log on Kafka, with its schema registry and its blobs."""

    def __init__(
        self, settings: Settings, federation: str, *, with_blobs: bool
    ) -> None:
        from adapters.kafka import make_admin
        from adapters.topic_watch import HoldWatch

        self._settings = settings
        self._federation = federation
        self.unframe: Unframe = _make_unframe(settings)
        self.fetch: FetchBlob | None = _open_store(settings) if with_blobs else None
        self._admin = make_admin(settings)
        self._holds = HoldWatch()
        self.held = ""

    def find_held(self) -> None:
        """Look for an open transaction that holds up reading; `held` describes it."""
        from adapters.kafka import KafkaUnavailableError
        from adapters.kafka_log import find_partition
        from adapters.topic_watch import Place, find_ends
        from schemas import topics

        try:
            partition = find_partition(self._settings, topics.LEDGER, self._federation)
            places = [
                Place(topic, partition)
                for topic in (topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS)
            ]
            ends = find_ends(self._admin, places)
        except KafkaUnavailableError:
            return  # reading will report it
        self.held = "; ".join(
            f"{hold}: {hold.describe_cure(self._settings.bootstrap_servers)}"
            for hold in self._holds.see(ends, time.monotonic())
        )

    def open(self, positions: Mapping[str, Position]) -> Streams:
        """Return the records up to the present end."""
        from adapters.kafka import find_bounds
        from adapters.kafka_log import find_partition
        from schemas import topics

        partition = find_partition(self._settings, topics.LEDGER, self._federation)
        # The order matters: a block below the first offset has its checkpoint below the
        # second, and the ledger is read to an end later than all.
        ledger = find_bounds(self._settings, topics.LEDGER, partition)
        time.sleep(SETTLE_S)
        # What nodes attest has its checkpoint too, so attestations come first.
        attestations = find_bounds(self._settings, topics.ATTESTATIONS, partition)
        time.sleep(SETTLE_S)
        others = {
            topics.ATTESTATIONS: attestations,
            topics.CHECKPOINTS: find_bounds(
                self._settings, topics.CHECKPOINTS, partition
            ),
        }
        time.sleep(SETTLE_S)

        def read(topic: str) -> Iterator[Record]:
            end = others[topic].end if topic in others else None
            return self._read(topic, partition, positions.get(topic), end)

        return Streams(
            ledger=read(topics.LEDGER),
            checkpoints=read(topics.CHECKPOINTS),
            attestations=read(topics.ATTESTATIONS),
            settled_offset=ledger.end,
            first_offsets={
                topic: bounds.first
                for topic, bounds in {topics.LEDGER: ledger, **others}.items()
            },
        )

    def _read(
        self, topic: str, partition: int, position: Position | None, end: int | None
    ) -> Iterator[Record]:
        from adapters.kafka import read_partition

        options = {} if position is None else {"start": position.offset}
        for record in read_partition(
            self._settings, topic, partition, timeout_s=READ_TIMEOUT_S, **options
        ):
            if end is not None and record.offset >= end:
                return
            yield record


class BundleSource:
    """A log in a bundle."""

    def __init__(self, bundle: Bundle, *, with_blobs: bool) -> None:
        self._bundle = bundle
        self.unframe: Unframe = bundle.unframe
        has_blobs = with_blobs and bundle.has_blobs
        self.fetch: FetchBlob | None = bundle.fetch if has_blobs else None

    def open(self, positions: Mapping[str, Position]) -> Streams:
        """Return the records of the bundle."""
        from schemas import topics

        def read(topic: str) -> Iterator[Record]:
            start = positions[topic].offset if topic in positions else 0
            return (r for r in self._bundle.records(topic) if r.offset >= start)

        return Streams(
            ledger=read(topics.LEDGER),
            checkpoints=read(topics.CHECKPOINTS),
            attestations=read(topics.ATTESTATIONS),
            # A bundle leaves out what had no checkpoint yet, so nobody has to be
            # believed that something is too new.
            settled_offset=None,
        )


def _load_settings() -> Settings:
    from adapters.settings import SettingsError, load_settings

    try:
        return load_settings()
    except SettingsError as error:
        raise CannotAuditError(str(error)) from error


def _open_store(settings: Settings) -> FetchBlob:
    from adapters.blobs import BlobStore
    from adapters.settings import SettingsError

    try:
        return BlobStore(settings).fetch
    except SettingsError as error:
        raise CannotAuditError(f"{error} Or leave blobs out: --no-blobs.") from error


def _make_unframe(settings: Settings) -> Callable[[bytes], bytes]:
    """Return how to unframe; errors say what to do if the schema registry is away."""
    from adapters.schema_registry import FramingError, SchemaRegistry

    registry = SchemaRegistry(settings.schema_registry_url)

    def unframe(value: bytes) -> bytes:
        try:
            return registry.unframe_trusted(value)
        except FramingError:
            raise
        except Exception as error:
            raise CannotAuditError(f"{error}.") from error

    return unframe


@contextmanager
def _explained() -> Iterator[None]:
    """Turn the adapters' errors into advice."""
    from adapters.blobs import StoreFailedError
    from adapters.kafka import KafkaUnavailableError
    from consumers.audit.bundle import BundleError

    try:
        yield
    except BundleError as error:
        raise CannotAuditError(f"{error}.") from error
    except KafkaUnavailableError as error:
        raise CannotAuditError(f"{error}.") from error
    except StoreFailedError as error:
        msg = f"{error}. Or leave blobs out with --no-blobs."
        raise CannotAuditError(msg) from error


# One audit


def _audit_once(options: Options) -> Report:
    """Audit once, from Kafka or a bundle.

    Raises:
        CannotAuditError: something could not be read.
    """
    from adapters.kafka import demand_listener
    from consumers.audit.bundle import Bundle, BundleWriter

    with ExitStack() as stack:
        if options.bundle is not None:
            stack.enter_context(_explained())
            bundle = stack.enter_context(Bundle(options.bundle))
            federation = bundle.manifest.federation_id
            if options.federation not in {"", federation}:
                raise CannotAuditError(
                    f"{options.bundle} belongs to {federation!r}, not to "
                    f"{options.federation!r}."
                )
            source: Source = BundleSource(bundle, with_blobs=options.with_blobs)
            if options.second_opinion and source.fetch is None:
                msg = f"{options.bundle} holds no blobs: leave out --second-opinion."
                raise CannotAuditError(msg)
        else:
            settings = _load_settings()
            federation = options.federation
            stack.enter_context(_explained())
            demand_listener(settings)
            source = KafkaSource(settings, federation, with_blobs=options.with_blobs)
        start = _load_state(options.continue_from, federation)
        streams = source.open({} if start is None else start.positions)
        writer = None
        if options.write_bundle is not None:
            writer = stack.enter_context(BundleWriter(options.write_bundle))
            source, streams = _keep(writer, source, streams)
        on_progress = None
        if options.bundle is None and streams.settled_offset is not None:
            on_progress = stack.enter_context(_progress(streams.settled_offset))
        audited = _run(
            options, federation, source, streams, start, on_progress=on_progress
        )
        if writer is not None and audited.report.num_blocks:
            _write_bundle(writer, audited, streams)
    _save_state(options.save, audited)
    if options.bundle is None:
        audited.report.notes += _note_topics(settings)
    else:
        audited.report.notes += _bundle_notes(audited.report, bundle)
    return audited.report


def _bundle_notes(report: Report, bundle: Bundle) -> Iterator[str]:
    """Yield what rests on the bundle's author."""
    yield (
        "A bundle holds what its author put in: the log may go on, and attestations "
        "may be missing. Demand finality with --policy."
    )
    if not bundle.has_blobs:
        yield "The bundle's author left its blobs out."
    if report.refusals:
        yield (
            "What the schema registry knew is the bundle's word: a record refused for "
            "its framing or schema may have been a different one."
        )


def _note_topics(settings: Settings) -> list[str]:
    """Return what is wrong with the topics' configuration, on their operator's word."""
    from adapters.kafka import KafkaUnavailableError
    from adapters.topic_config import Weight, check_topics

    try:
        problems = check_topics(settings)
    except KafkaUnavailableError as error:
        return [f"The topics' configuration could not be read: {error}"]
    notes = [
        f"As configured now, a topic could lose records: {problem}."
        for problem in problems
        if problem.weight == Weight.FATAL
    ]
    if any(not problem.found for problem in problems):
        notes.append("Kafka hides how some topics are configured: `moot topics check`.")
    return notes


@dataclass(frozen=True, slots=True)
class _Kept:
    """A source whose answers are copied into a bundle."""

    unframe: Unframe
    fetch: FetchBlob | None


def _keep(
    writer: BundleWriter, source: Source, streams: Streams
) -> tuple[Any, Streams]:
    fetch = None if source.fetch is None else writer.fetch(source.fetch)
    kept = _Kept(writer.unframe(source.unframe), fetch)
    return kept, Streams(
        ledger=writer.records(streams.ledger),
        checkpoints=writer.records(streams.checkpoints),
        attestations=writer.records(streams.attestations),
        settled_offset=streams.settled_offset,
    )


def _write_bundle(writer: BundleWriter, audited: Audited, streams: Streams) -> None:
    from protocol.admission import make_policy

    admission = audited.state.replay.admission
    writer.write(
        audited.report.federation_id,
        json.dumps(audited.report.to_json(), indent=1).encode() + b"\n",
        policy=make_policy(admission).to_text().encode()
        if admission.node_sets
        else None,
        settled_offset=streams.settled_offset,
        end_offset=None if audited.report.stopped else _find_end(audited),
    )


def _find_end(audited: Audited) -> int | None:
    """Return the offset of the first block too new for a checkpoint."""
    waiting = audited.state.checkpoints
    return waiting[0].offset if waiting else None


def _run(
    options: Options,
    federation: str,
    source: Source,
    streams: Streams,
    start: AuditState | None,
    *,
    on_progress: Callable[[Progress], None] | None = None,
    helpers: Helpers | None = None,
) -> Audited:
    """Run `consumers.audit.auditor.run_audit` on a source."""
    from consumers.audit.auditor import run_audit

    num_cores = os.cpu_count() or 1
    return run_audit(
        streams.ledger,
        federation_id=federation,
        unframe=source.unframe,
        fetch_blob=source.fetch,
        checkpoints=streams.checkpoints,
        attestations=streams.attestations,
        settled_offset=streams.settled_offset,
        first_offsets=streams.first_offsets,
        operator_key=_parse_key(options.operator_key),
        policy=_load_policy(options.policy),
        start=start,
        on_progress=on_progress,
        num_fetches=2 * num_cores,
        jobs=options.jobs or num_cores,
        helpers=helpers,
        lists_refused=options.lists_refused,
        second_opinion=options.second_opinion,
    )


# A monitor


def follow(options: Options) -> int:
    """Audit, then keep auditing what arrives until SIGTERM or SIGINT.

    Returns:
        The exit code: 1 after a fork or a truncation, whether or not the monitor kept
        running; else 0.

    Raises:
        CannotAuditError: the settings or the saved state cannot be used.
    """
    from consumers.audit.parallel import Helpers

    settings = _load_settings()
    stopped = Event()
    previous = {
        number: signal.signal(number, lambda *_: stopped.set())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    # Later only a few signatures arrive at a time: more processes would idle.
    helpers = Helpers(0)
    try:
        source = KafkaSource(
            settings, options.federation, with_blobs=options.with_blobs
        )
        start = _load_state(options.continue_from, options.federation)
        return _watch(options, source, start, helpers, stopped)
    finally:
        helpers.close()
        for number, handler in previous.items():
            signal.signal(number, handler)


def _watch(
    options: Options,
    source: KafkaSource,
    state: AuditState | None,
    helpers: Helpers,
    stopped: Event,
) -> int:
    from consumers.audit.monitor import DEFAULT_STALE_AFTER_S, Monitor

    stale_after_s = options.stale_after_s
    if stale_after_s is None:
        stale_after_s = DEFAULT_STALE_AFTER_S
    monitor = Monitor(stale_after_s or None)
    exit_code, trouble = 0, ""

    def stop_early(_progress: Progress) -> None:
        if stopped.is_set():
            raise _StoppedError

    while not stopped.is_set():
        try:
            with _explained():
                streams = source.open({} if state is None else state.positions)
                audited = _run(
                    options,
                    options.federation,
                    source,
                    streams,
                    state,
                    on_progress=stop_early,
                    helpers=None if state is None else helpers,
                )
            # A log that is missing, or has vanished, cannot be watched.
            _demand_log(audited.report, options)
            _demand_judged(audited.report)
            trouble = ""
        except _StoppedError:
            break  # what was found stands
        except CannotAuditError as error:
            if str(error) != trouble:  # not every two seconds
                say_error(error)
            trouble = str(error)
            for alert in monitor.miss(trouble, time.monotonic()):
                _print_alert(alert, as_json=options.as_json)
            stopped.wait(INTERVAL_S)
            continue
        state = audited.state
        source.find_held()
        for alert in monitor.judge(
            audited.report, time.monotonic(), time.time(), held=source.held
        ):
            _print_alert(alert, as_json=options.as_json)
            if alert.is_fatal:
                exit_code = EXIT_WRONG
        if exit_code and not options.keeps_going:
            return exit_code
        if audited.report.is_sound:
            _save_state(options.save, audited)
        stopped.wait(INTERVAL_S)
    return exit_code


def _print_alert(alert: Alert, *, as_json: bool) -> None:
    say(json.dumps(alert.to_json()) if as_json else alert)


@contextmanager
def _progress(end_offset: int) -> Iterator[Any]:
    """Show the audit's progress on stderr."""
    from rich import progress
    from rich.console import Console

    started = time.monotonic()
    with progress.Progress(
        progress.TextColumn("auditing"),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn(
            "{task.fields[leaves]:,} leaves, {task.fields[rate]:,.0f}/s"
        ),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=True,
    ) as bar:
        task = bar.add_task("", total=max(end_offset, 1), leaves=0, rate=0.0)

        def on_progress(done: Progress) -> None:
            elapsed = time.monotonic() - started
            bar.update(
                task,
                # The log may have grown meanwhile.
                completed=min(done.offset + 1, end_offset),
                leaves=done.num_leaves,
                rate=done.num_leaves / max(elapsed, 1e-9),
            )

        yield on_progress
