"""`moot status` and `moot federation status`: who is there, what is waited for.

What they show is computed by `consumers.status`; here it is read and printed.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

from adapters.heartbeats import Heard, HeartbeatReader
from adapters.kafka import (
    END,
    KafkaUnavailableError,
    Record,
    find_bounds,
    follow_partition,
)
from adapters.kafka_log import ReadBlock, find_partition
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings, SettingsError
from adapters.wording import counted
from cli.describe import describe, describe_metrics, to_jsonable
from cli.environment import find_settings
from cli.federations import follow_existing, list_federations
from cli.names import find_names
from cli.operate import make_registry
from cli.show import clear, say, say_json, show_time
from cli.stack.backends import KAFKA
from cli.stack.processes import StackError
from cli.stack.stack import StackStatus, read_status
from consumers.status.view import (
    FederationStatus,
    Member,
    Presence,
    Wait,
    compute_status,
    describe_process,
)
from consumers.status.watched import Stamped, WatchedLog, learn
from ledger.checkpoint import make_log_key
from ledger.cosigning import CosignatureCollector
from ledger.note import InvalidNoteError
from protocol.admission import AdmissionState
from protocol.modes.mode import AGENT
from schemas import codec, topics
from schemas import events as e

EVERY_S: Final = 2.0
"""Between two looks, with --watch."""
READ_WITHIN_S: Final = 60.0
"""How long Kafka may bring nothing before the end of the log is reached."""
HEAR_WITHIN_S: Final = 10.0
NUM_ATTESTATIONS: Final = 2_000
"""Messages of ledger nodes that are looked at, the last ones."""
MAX_SHOWN: Final = 12
"""Agents, waits and strangers on one screen."""


class _Finality:
    """Follows what ledger nodes cosign, far enough to say what is final."""

    def __init__(
        self, settings: Settings, registry: SchemaRegistry, federation_id: str
    ) -> None:
        self._registry = registry
        self._key = federation_id.encode()
        partition = find_partition(settings, topics.ATTESTATIONS, federation_id)
        bounds = find_bounds(settings, topics.ATTESTATIONS, partition)
        self._records = follow_partition(
            settings,
            topics.ATTESTATIONS,
            partition,
            start=max(bounds.first, bounds.end - NUM_ATTESTATIONS),
        )
        self._notes: deque[bytes] = deque(maxlen=NUM_ATTESTATIONS)
        self._is_read = False

    def find_size(self, admission: AdmissionState) -> int:
        """Return the size of the largest checkpoint that a quorum has cosigned."""
        for record in self._read():
            if record.key == self._key:
                self._notes.extend(self._open(record))
        nodes = admission.node_sets[-1]
        key = admission.principals["SEQUENCER"]
        collector = CosignatureCollector(
            make_log_key(admission.federation_id, admission.genesis, key),
            nodes.vkeys(),
            nodes.quorum,
        )
        for note in self._notes:
            try:
                collector.add(note)
            except InvalidNoteError:
                continue  # anybody's
        return collector.largest()

    def _read(self) -> Iterator[Record]:
        until_s = time.monotonic() + HEAR_WITHIN_S
        for record in islice(self._records, 2 * NUM_ATTESTATIONS):
            if isinstance(record, Record):
                yield record
                continue
            self._is_read |= record is END
            if self._is_read or time.monotonic() > until_s:
                return

    def _open(self, record: Record) -> Iterator[bytes]:
        try:
            data = self._registry.unframe_trusted(record.value or b"")
            if codec.kind_of(data) is e.CheckpointCosigned:
                event = codec.decode_as(e.CheckpointCosigned, data)
                yield event.checkpoint.encode()
        except (FramingError, codec.CodecError):
            return


class _Processes:
    """Hears who is there, or says why it cannot."""

    def __init__(self, settings: Settings, registry: SchemaRegistry) -> None:
        self._reader = HeartbeatReader(settings, registry)
        self.problem = ""

    def hear(self) -> list[Heard]:
        """Return the last heartbeat of every process."""
        try:
            heard = self._reader.read(HEAR_WITHIN_S)
        except KafkaUnavailableError as error:
            self.problem = str(error)
            return []
        self.problem = ""
        return [*heard.values()]

    def close(self) -> None:
        """Let go of Kafka."""
        self._reader.close()


@contextmanager
def _hearing(settings: Settings, registry: SchemaRegistry) -> Iterator[_Processes]:
    processes = _Processes(settings, registry)
    try:
        yield processes
    finally:
        processes.close()


def follow_federation(
    settings: Settings,
    registry: SchemaRegistry,
    federation_id: str,
    processes: _Processes,
) -> Iterator[FederationStatus]:
    """Yield a federation's status again and again.

    Raises:
        StackError: there is no such federation, or Kafka does not answer.
    """
    finality: _Finality | None = None
    log = WatchedLog()
    is_read, looked_s, moved_s = False, 0.0, time.monotonic()
    for read in follow_existing(settings, registry, federation_id):
        now_s = time.monotonic()
        if isinstance(read, ReadBlock):
            log, moved_s = learn(log, read.leaves), now_s
            continue
        is_read |= read is END
        if not is_read:
            if now_s - moved_s > READ_WITHIN_S:
                msg = f"Kafka brings no more of the log of {federation_id!r}"
                raise StackError(msg, "`moot status` shows the stack.")
            continue
        if now_s - looked_s < EVERY_S and looked_s:
            continue
        looked_s = now_s
        size = 0
        if log.admission.node_sets:
            finality = finality or _Finality(settings, registry, federation_id)
            size = finality.find_size(log.admission)
        heard = processes.hear()
        now_ms = time.time_ns() // 1_000_000
        yield compute_status(log, heard, now_ms, final_size=size)


def show_status(
    settings: Settings, federation_id: str, *, as_json: bool, is_watched: bool
) -> int:
    """Print a federation's status, once or for ever; returns an exit code.

    Returns:
        0, or 1 if somebody should do something.
    """
    names = find_names(settings, federation_id)
    registry = make_registry(settings)
    with _hearing(settings, registry) as processes:
        for status in follow_federation(settings, registry, federation_id, processes):
            if as_json:
                say_json(to_json(status))
            else:
                if is_watched:
                    clear()
                say(*render(status, names))
                if processes.problem:
                    say(f"nobody could be heard: {processes.problem}")
            if not is_watched:
                return int(status.needs_attention)
    raise AssertionError("a log that is followed does not end")


# As text


def render(status: FederationStatus, names: Any = None) -> list[str]:
    """Return a federation's status as lines of text.

    Args:
        status: The status.
        names: Names of agents that are not on the log, by agent_id.
    """
    names = names or {}
    now_ms = status.now_ms

    def ago(at_ms: int) -> str:
        return show_duration(now_ms - at_ms)

    leaves = counted(status.num_leaves, "leaf", "leaves")
    last = ago(status.block_at_ms)
    lines = [f"{status.federation_id}: {leaves}, the last {last} ago"]
    lines += _render_round(status, ago)
    for wait in status.waits[:MAX_SHOWN]:
        lines += _render_wait(wait, now_ms, ago)
    if len(status.waits) > MAX_SHOWN:
        lines.append(f"  and for {len(status.waits) - MAX_SHOWN} more")
    if status.finality is not None:
        final = status.finality
        behind = (
            "all is final"
            if final.behind_since_ms is None
            else f"the rest waits for {ago(final.behind_since_ms)}"
        )
        lines.append(
            f"final: {final.size} of {status.num_leaves}, {behind}; "
            f"{final.num_there} of {counted(final.num_nodes, 'ledger node')} there, "
            f"{final.quorum} needed"
        )
    if status.version is not None:
        version = status.version
        lines.append(
            f"model: version {version.version}, round {version.round}, "
            f"{describe_metrics(version)}"
        )
    if status.num_refusals:
        lines.append(f"refused: {status.num_refusals} so far, the last:")
        lines += [
            f"  {ago(refusal.at_ms)} ago: {describe(refusal.event)}"
            for refusal in status.refusals
        ]
    lines.append("processes:")
    lines += _render_members(status, names, ago)
    if status.others:
        lines.append("say that they serve it, with keys that the log does not name:")
        lines += [
            f"  {_render_member(member, ago)}" for member in status.others[:MAX_SHOWN]
        ]
    return lines


def _render_round(status: FederationStatus, ago: Callable[[int], str]) -> Iterator[str]:
    current = status.round
    if current is not None:
        until = ""
        if current.until_ms is not None:
            left_ms = current.until_ms - status.now_ms
            when = show_time(current.until_ms / 1_000)
            until = (
                f", until {when}Z (in {show_duration(left_ms)})"
                if left_ms > 0
                else f", overdue since {when}Z ({show_duration(-left_ms)})"
            )
        yield (
            f"round {current.number}: {current.phase} for "
            f"{ago(current.phase_began_ms)}{until}; "
            f"{current.num_answered} of {current.num_drawn} answered"
        )
    elif status.ended is not None:
        yield (
            f"no round is open; the last ended {ago(status.ended.at_ms)} ago: "
            f"{describe(status.ended.event)}"
        )
    else:
        yield "no round has ended yet, none is open"


def _render_wait(wait: Wait, now_ms: int, ago: Callable[[int], str]) -> Iterator[str]:
    who = "" if wait.who is None else f"{_name(wait.who)} "
    line = f"  waits {ago(wait.since_ms)} for {who}{wait.what}".replace(
        "for for", "for"
    )
    if wait.who is not None:
        line += f" ({_describe_presence(wait.who, ago)})"
    yield line
    if wait.until_ms is not None and wait.until_ms > now_ms:
        left = show_duration(wait.until_ms - now_ms)
        yield f"    goes on without in {left}"
    if wait.cure:
        yield f"    {wait.cure}"


def _render_members(
    status: FederationStatus, names: Any, ago: Callable[[int], str]
) -> Iterator[str]:
    services = [member for member in status.members if member.kind != AGENT]
    agents = [member for member in status.members if member.kind == AGENT]
    for member in services:
        yield f"  {_render_member(member, ago)}"
    # Those that are away first: there may be thousands.
    agents.sort(key=lambda member: (member.is_there, member.name))
    for member in agents[:MAX_SHOWN]:
        line = f"  {_render_member(member, ago)}"
        if number := status.missed.get(member.name, 0):
            line += f"; missed {counted(number, 'round')} in a row"
        if name := names.get(member.name):
            line += f"; {name}"
        yield line
    if len(agents) > MAX_SHOWN:
        there = sum(member.is_there for member in agents)
        yield f"  … {counted(len(agents), 'agent')} in all, {there} there"


def _name(member: Member) -> str:
    """Return a process's kind, and its name if it tells one from another."""
    is_one = not member.name or member.name == "0"
    return member.kind if is_one else f"{member.kind} {member.name}"


def _render_member(member: Member, ago: Callable[[int], str]) -> str:
    shown = f"{_name(member):<24} {_describe_presence(member, ago)}"
    if member.version and member.is_there:
        shown += f", version {member.version}"
    return shown


def _describe_presence(member: Member, ago: Callable[[int], str]) -> str:
    match member.presence:
        case Presence.HERE:
            shown = f"here, {member.doing} for {ago(member.since_ms)}"
        case Presence.DOUBTFUL:
            shown = (
                f"doubtful, {member.doing}: its clock is slow, or somebody repeats its "
                "words"
            )
        case Presence.AWAY:
            shown = f"AWAY, last heard {ago(member.since_ms)} ago, {member.doing}"
        case Presence.ENDED:
            shown = f"ENDED {ago(member.since_ms)} ago, {member.doing}"
        case Presence.UNHEARD:
            return "NEVER HEARD"
    if member.num_instances > 1:
        shown += f", {counted(member.num_instances, 'instance')}"
    return shown


def show_duration(duration_ms: int) -> str:
    """Return a duration as text, in one or two units; negative ones as 0 s."""
    seconds = max(0, duration_ms) // 1_000
    for name, size, inner, inner_size in (
        ("d", 86_400, "h", 3_600),
        ("h", 3_600, "min", 60),
        ("min", 60, "s", 1),
    ):
        if seconds >= size:
            rest = seconds % size // inner_size
            return f"{seconds // size} {name}" + (f" {rest} {inner}" if rest else "")
    return f"{seconds} s"


def to_json(status: FederationStatus) -> dict[str, Any]:
    """Return a federation's status as JSON types."""
    ended = None if status.ended is None else _stamped_to_json(status.ended)
    return {
        **to_jsonable(asdict(status)),
        "refusals": [_stamped_to_json(refusal) for refusal in status.refusals],
        "ended": ended,
        "needs_attention": status.needs_attention,
    }


def _stamped_to_json(item: Stamped) -> dict[str, Any]:
    name = type(item.event).__name__
    return {"at_ms": item.at_ms, "event": name, **to_jsonable(item.event)}


# All federations of a Kafka


@dataclass(frozen=True)
class Overview:
    """All processes and federations of one Kafka."""

    processes: Sequence[Member]
    federations: Sequence[FederationStatus]
    problem: str


def look_around(settings: Settings) -> Overview:
    """Return what runs on this Kafka.

    Raises:
        KafkaUnavailableError: it does not answer.
    """
    registry = make_registry(settings)
    with _hearing(settings, registry) as processes:
        federations = [
            next(follow_federation(settings, registry, name, processes))
            for name in list_federations(settings)
        ]
        heard = processes.hear()
    now_ms = time.time_ns() // 1_000_000
    members = [describe_process(item, now_ms) for item in heard]
    members.sort(key=lambda member: (member.kind, member.name))
    return Overview(members, federations, processes.problem)


def render_overview(overview: Overview) -> Iterable[str]:
    """Yield what runs on a Kafka as lines of text."""
    now_ms = time.time_ns() // 1_000_000

    def ago(at_ms: int) -> str:
        return show_duration(now_ms - at_ms)

    if overview.problem:
        yield f"nobody could be heard: {overview.problem}"
    if overview.processes:
        yield "processes, by their own word:"
    for member in overview.processes:
        yield f"  {_render_member(member, ago)}"
    for status in overview.federations:
        yield f"federation {status.federation_id}"
        yield from (f"  {line}" for line in _render_round(status, ago))
        for wait in status.waits[:MAX_SHOWN]:
            yield from (f"  {line}" for line in _render_wait(wait, now_ms, ago))


def show_around(directory: Path, *, as_json: bool, is_watched: bool) -> StackStatus:
    """Print the state of a local stack and what runs on it, once or for ever.

    Returns:
        The state of the stack.
    """
    is_remote = "MOOT_BOOTSTRAP_SERVERS" in os.environ
    while True:
        stack = read_status(directory)
        overview = _look_at(stack, is_remote=is_remote)
        if as_json:
            say_json(_around_to_json(stack, overview))
        else:
            if is_watched:
                clear()
            say(*_render_stack(stack))
            if overview is not None:
                say(*render_overview(overview))
        if not is_watched:
            return stack
        time.sleep(EVERY_S)


def _look_at(stack: StackStatus, *, is_remote: bool) -> Overview | None:
    """Return what runs on the Kafka of this environment; None if none is known."""
    kafka = next((s for s in stack.services if s.name == KAFKA), None)
    if not is_remote and (kafka is None or not kafka.healthy):
        return None
    try:
        if stack.endpoints is not None and not is_remote:
            os.environ.update(stack.endpoints.environment())
        return look_around(find_settings())
    except (KafkaUnavailableError, SettingsError, StackError) as error:
        return Overview((), (), str(error))


def _render_stack(stack: StackStatus) -> Iterator[str]:
    yield f"{stack.directory}: {stack.state}"
    width = max((len(service.name) for service in stack.services), default=0)
    for service in stack.services:
        word = "healthy" if service.healthy else "NOT HEALTHY"
        yield f"  {service.name:<{width}} {word:<12} {service.endpoint}"


def _around_to_json(stack: StackStatus, overview: Overview | None) -> dict[str, Any]:
    services = [
        {
            "name": service.name,
            "pid": service.pid,
            "healthy": service.healthy,
            "endpoint": service.endpoint,
            "log": str(service.log_path),
        }
        for service in stack.services
    ]
    found: dict[str, Any] = {"state": stack.state, "services": services}
    if overview is not None:
        found |= {
            "problem": overview.problem,
            "processes": to_jsonable([asdict(item) for item in overview.processes]),
            "federations": [to_json(item) for item in overview.federations],
        }
    return found
