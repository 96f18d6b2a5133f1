"""`moot audit`: read a federation's whole log, check it, and say what was found.

Exit codes: 0 the log is sound; 1 it is wrong, and the findings say where; 2 it could
not be read, and the message says what to do.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import typer

if TYPE_CHECKING:
    from collections import Counter

    from adapters.kafka import Record
    from adapters.settings import Settings
    from consumers.audit import Progress
    from consumers.audit_report import Report

EXIT_WRONG: Final = 1
EXIT_UNREADABLE: Final = 2
READ_TIMEOUT_S: Final = 15.0
SETTLE_S: Final = 0.5
"""A transaction's records appear on its topics within moments of each other."""
PUBLIC_KEY_SIZE: Final = 32


class CannotAuditError(Exception):
    """The log could not be read; the message says what to do."""


def audit(
    *,
    federation: str,
    operator_key: str | None = None,
    no_blobs: bool = False,
    as_json: bool = False,
    jobs: int | None = None,
) -> None:
    """Replay the log from its beginning, check everything in it, and print a verdict.

    Args:
        federation: Its name.
        operator_key: Public key of the operator that the reader trusts, hex; None
            takes the log's word for it.
        no_blobs: Leave MinIO out, and with it the recomputation of every round.
        as_json: Print the report as JSON.
        jobs: Blobs fetched at a time; twice the cores by default.

    Raises:
        typer.Exit: always, with the exit code.
    """
    started = time.monotonic()
    try:
        report = _read_and_audit(
            federation,
            _parse_key(operator_key),
            with_blobs=not no_blobs,
            jobs=jobs or 2 * (os.cpu_count() or 1),
        )
        _demand_log(report)
    except CannotAuditError as error:
        if as_json:
            print(json.dumps({"is_sound": None, "error": str(error)}, indent=2))
        print(f"error: {error}", file=sys.stderr)
        raise typer.Exit(EXIT_UNREADABLE) from None
    if as_json:
        print(json.dumps(report.to_json(), indent=2))
    else:
        print(render(report, time.monotonic() - started))
    raise typer.Exit(0 if report.is_sound else EXIT_WRONG)


def _demand_log(report: Report) -> None:
    if report.num_blocks or report.findings:
        return
    msg = (
        f"There is no federation {report.federation_id!r} on this Kafka. Check the "
        "name, and that MOOT_BOOTSTRAP_SERVERS is the right one."
    )
    raise CannotAuditError(msg)


def _parse_key(text: str | None) -> bytes | None:
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


def _read_and_audit(
    federation: str, operator_key: bytes | None, *, with_blobs: bool, jobs: int
) -> Report:
    """Put the adapters around `consumers.audit.audit_log`.

    Raises:
        CannotAuditError: something that is needed is away.
    """
    from adapters.blobs import BlobStore
    from adapters.kafka import find_end, read_partition
    from adapters.ledger import find_partition
    from adapters.settings import SettingsError, load_settings
    from consumers.audit import audit_log
    from schemas import topics

    try:
        settings = load_settings()
    except SettingsError as error:
        raise CannotAuditError(str(error)) from error
    with _explained(settings):
        partition = find_partition(settings, topics.LEDGER, federation)
        # The order matters: a block below the first offset has its checkpoint below
        # the second, and the ledger is read to an end that is later than both.
        settled_offset = find_end(settings, topics.LEDGER, partition)
        time.sleep(SETTLE_S)
        last_checkpoint = find_end(settings, topics.CHECKPOINTS, partition)
        time.sleep(SETTLE_S)

        def read_checkpoints() -> Iterator[Record]:
            for record in read_partition(
                settings, topics.CHECKPOINTS, partition, timeout_s=READ_TIMEOUT_S
            ):
                if record.offset >= last_checkpoint:
                    return
                yield record

        with _progress(settled_offset) as on_progress:
            return audit_log(
                read_partition(
                    settings, topics.LEDGER, partition, timeout_s=READ_TIMEOUT_S
                ),
                federation_id=federation,
                unframe=_make_unframe(settings),
                fetch_blob=BlobStore(settings).fetch if with_blobs else None,
                checkpoints=read_checkpoints(),
                settled_offset=settled_offset,
                operator_key=operator_key,
                on_progress=on_progress,
                jobs=jobs,
            )


def _make_unframe(settings: Settings) -> Callable[[bytes], bytes]:
    """Return how to unframe, with a sentence for a schema registry that is away."""
    from adapters.schema_registry import FramingError, SchemaRegistry

    registry = SchemaRegistry(settings.schema_registry_url)

    def unframe(value: bytes) -> bytes:
        try:
            return registry.unframe_trusted(value)
        except FramingError:
            raise
        except Exception as error:
            msg = (
                "The schema registry could not be asked at "
                f"{settings.schema_registry_url}: {error}. Check "
                "MOOT_SCHEMA_REGISTRY_URL."
            )
            raise CannotAuditError(msg) from error

    return unframe


@contextmanager
def _explained(settings: Settings) -> Iterator[None]:
    """Turn what the adapters raise into what the reader can do about it."""
    from confluent_kafka import KafkaException
    from minio.error import MinioException
    from urllib3.exceptions import HTTPError

    from adapters.kafka import KafkaUnavailableError

    try:
        yield
    except (KafkaUnavailableError, KafkaException) as error:
        msg = f"Kafka could not be read: {error} Check MOOT_BOOTSTRAP_SERVERS."
        raise CannotAuditError(msg) from error
    except (MinioException, HTTPError) as error:
        msg = (
            f"MinIO could not be read at {settings.minio_endpoint}: {error} Check "
            "MOOT_MINIO_ENDPOINT and its keys, or leave blobs out with --no-blobs."
        )
        raise CannotAuditError(msg) from error


@contextmanager
def _progress(end_offset: int) -> Iterator[Any]:
    """Show how far the audit is, on stderr."""
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


@dataclass(frozen=True, slots=True)
class _Line:
    name: str
    value: str


def render(report: Report, elapsed_s: float) -> str:
    """Return a report for people."""
    lines = [
        _Line("log", f"{report.num_blocks:,} blocks, {report.num_leaves:,} leaves, "
              f"{_show_size(report.log_bytes)}"),
        _Line("signatures", f"{report.num_signatures:,} verified"),
        _Line("checkpoints", _show_checkpoints(report)),
        _Line("leaves", _show_counts(report.events)),
        _Line("facts", "as the deciders conclude: " + _show_counts(report.facts)),
        _Line("pending", f"{len(report.pending)} facts" if report.pending else ""),
        _Line("refused", _show_counts(report.refusals)),
        _Line("rejected", _show_counts(report.rejections)),
        _Line("models", f"{report.num_rounds_recomputed:,} rounds recomputed, "
              "sum and model bit for bit"),
        _Line("blobs", f"{report.num_blobs:,} verified, "
              f"{_show_size(report.blob_bytes)}"),
        _Line("operator", report.operator_key
              + (" (the one you trust)" if report.is_operator_key_pinned else "")),
        _Line("sequencer", report.sequencer_key),
        _Line("tree root", report.tree_root),
        _Line("took", f"{elapsed_s:.1f} s"),
    ]  # fmt: skip
    width = max(len(line.name) for line in lines)
    out = [_verdict(report), ""]
    out += [f"  {line.name:<{width}}  {line.value}" for line in lines if line.value]
    if report.findings:
        out += ["", "Findings:"]
    for number, finding in enumerate(report.findings, start=1):
        out.append(f"  {number}. {finding.code} at {finding.place}: {finding.message}")
        for name, value in (
            ("expected", finding.expected),
            ("found", finding.found),
            ("blob", finding.blob_sha256),
        ):
            if value:
                out.append(f"       {name + ':':<9} {value}")
    if report.stopped:
        out += ["", f"The audit ended early: {report.stopped}."]
    if report.notes:
        out += ["", "What this rests on:"]
        out += [f"  - {note}" for note in report.notes]
    return "\n".join(out)


def _verdict(report: Report) -> str:
    if report.is_sound:
        return f"SOUND: the log of {report.federation_id} is what it must be."
    count = len(report.findings)
    return (
        f"WRONG: the log of {report.federation_id} is not what it must be, "
        f"{count} finding{'s' if count > 1 else ''}."
    )


def _show_checkpoints(report: Report) -> str:
    text = f"{report.num_checkpoints:,} verified"
    if report.num_unsigned_blocks:
        text += f", the last {report.num_unsigned_blocks:,} blocks are too new for one"
    return text


def _show_counts(counts: Counter[str]) -> str:
    return ", ".join(f"{count:,} {name}" for name, count in sorted(counts.items()))


def _show_size(size_bytes: int) -> str:
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:  # noqa: PLR2004  # binary units
            return f"{size:,.0f} {unit}" if unit == "B" else f"{size:,.1f} {unit}"
        size /= 1024
    return f"{size:,.1f} GiB"
