"""Heartbeats: processes say that they live, beside the ledger.

Every service, party, ledger node and agent says who it is, which version it runs, what
it does and since when, on a compacted topic that is not sequenced. Nothing follows from
a heartbeat but what people are shown: rounds, deciders and audits know none.

Rules:

- A heartbeat is signed with the key that the process signs its events with, so a reader
  that knows the log knows whose it is (`consumers.status`). Others are somebody's word.
- It says by when the next one comes; one that ends politely says so.
- It never fails its process, nor holds it up: what Kafka or the schema registry refuses
  is lost, with one line in the log.
- It says that a process runs, not that it gets on. What it does, and since when, says
  more.

Source: DESIGN.md section 11, ADR 0049.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from importlib import metadata
from typing import Final, NamedTuple

from confluent_kafka import KafkaException, Producer

from adapters import alive
from adapters.kafka import (
    KafkaUnavailableError,
    PartitionReader,
    Record,
    count_partitions,
    find_bounds,
    make_headers,
)
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings
from ledger.signing import InvalidSignatureError, SigningKey
from protocol.envelope import NO_GENESIS, SIGNATURE_HEADER, verify_event
from protocol.fields import NAME
from schemas import codec, topics
from schemas.events import Heartbeat

log = logging.getLogger(__name__)

MAX_DOING_LENGTH: Final = 200
MAX_NAME_LENGTH: Final = 64
MAX_VERSION_LENGTH: Final = 32
MAX_TIME_MS: Final = 2**53
MAX_NEXT_MS: Final = 3_600_000
BETWEEN_S: Final = 0.5
"""Between two heartbeats, however often a process changes what it does."""
GOODBYE_S: Final = 2.0
"""How long a process that ends waits for its last word to arrive."""
NUM_READ: Final = 20_000
"""Heartbeats of a partition that a reader looks at, the last ones. Whoever floods the
topic pushes others out of it, until they speak again."""
MAX_REMEMBERED: Final = 10_000
"""Processes that a reader remembers."""

FOLLOWING: Final = "following the ledger"
"""What a service does while nothing is to be done."""

# Who says it


class Heart:
    """Says again and again that this process lives. Made once a process.

    Args:
        settings: Where Kafka is, and how often.
        key: What the process signs with.
        kind: What it is: see `Heartbeat`.
        name: Which one of its kind.
        federation_id: The federation that it serves; empty for all.
    """

    def __init__(
        self,
        settings: Settings,
        key: SigningKey,
        kind: str,
        name: str,
        *,
        federation_id: str = "",
    ) -> None:
        self._interval_s = settings.heartbeat_s
        self._key = key
        self._registry = SchemaRegistry(settings.schema_registry_url)
        now_ms = _now_ms()
        self._who = Heartbeat(
            federation_id=federation_id,
            kind=kind,
            name=name[:MAX_NAME_LENGTH],
            public_key=key.public_key,
            version=find_version(),
            started_at_ms=now_ms,
            doing="starting",
            doing_since_ms=now_ms,
            said_at_ms=now_ms,
            next_within_ms=0,
        )
        self._doing = "starting", now_ms
        self._changed = threading.Event()
        self._lock = threading.Lock()
        self._has_ended = False
        self._is_failing = False
        self._producer = Producer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                # Whatever it would say, the next heartbeat says by being there.
                "log_level": 0,
                "allow.auto.create.topics": False,
                "partitioner": "murmur2_random",
                "message.max.bytes": topics.MAX_HEARTBEAT_RECORD_SIZE_BYTES,
                # An old one is of no use, nor is a queue of them.
                "message.timeout.ms": max(1_000, int(self._interval_s * 1_000)),
                "queue.buffering.max.messages": 100,
            }
        )

    def start(self) -> None:
        """Begin, in a thread."""
        alive.start_thread(self._beat, "heartbeat")

    def do(self, what: str) -> None:
        """Say what the process does from now on; for any thread."""
        if what != self._doing[0]:
            self._doing = what, _now_ms()
            self._changed.set()

    def end(self, how: str) -> None:
        """Say how the process ended, and nothing more."""
        # Unless the thread waits for the schema registry: nobody waits for that.
        if self._lock.acquire(timeout=GOODBYE_S):
            self._has_ended = True
            self._doing = how, _now_ms()
            self._say(next_within_ms=0)
            self._lock.release()
            self._producer.flush(GOODBYE_S)

    def _beat(self) -> None:
        while True:
            self._changed.clear()
            with self._lock:
                if self._has_ended:
                    return
                self._say(next_within_ms=int(self._interval_s * 1_000))
            time.sleep(min(BETWEEN_S, self._interval_s))
            self._changed.wait(max(0.0, self._interval_s - BETWEEN_S))

    def _say(self, *, next_within_ms: int) -> None:
        doing, since_ms = self._doing
        heartbeat = replace(
            self._who,
            doing=doing[:MAX_DOING_LENGTH],
            doing_since_ms=since_ms,
            said_at_ms=_now_ms(),
            next_within_ms=next_within_ms,
        )
        try:
            data, value = self._registry.frame(heartbeat)
            self._producer.produce(
                topics.HEARTBEATS,
                key=make_key(heartbeat),
                value=value,
                headers=make_headers(heartbeat, data, self._key, NO_GENESIS, ""),  # type: ignore[arg-type]  # the stubs want a union of lists
                on_delivery=lambda error, _: self._note(error),
            )
            self._producer.poll(0)
        except (BufferError, KafkaException) as error:
            self._note(error)
        except Exception as error:  # noqa: BLE001  # the registry's client has many
            self._note(error)

    def _note(self, error: object | None) -> None:
        """Warn of the first failure in a row."""
        if error is not None and not self._is_failing:
            log.warning("nobody hears that this process lives: %s", error)
        self._is_failing = error is not None


_heart: Heart | None = None


@contextmanager
def beating(
    settings: Settings,
    key: SigningKey,
    kind: str,
    name: str,
    *,
    federation_id: str = "",
) -> Iterator[None]:
    """Say that this process lives while the block runs, and how it ended: `Heart`."""
    global _heart  # noqa: PLW0603  # one for the process
    heart = _heart = Heart(settings, key, kind, name, federation_id=federation_id)
    heart.start()
    how = "stopped"
    try:
        yield
    except BaseException as error:
        if not isinstance(error, KeyboardInterrupt | SystemExit) or (
            isinstance(error, SystemExit) and error.code
        ):
            how = f"failed: {type(error).__name__}"
        raise
    finally:
        heart.end(how)
        _heart = None


def do(what: str) -> None:
    """Say what this process does from now on, if it has a heart."""
    if _heart is not None:
        _heart.do(what)


@cache
def find_version() -> str:
    """Return the version of Folkmoot that runs; "?" if it is not installed."""
    try:
        return metadata.version("folkmoot")[:MAX_VERSION_LENGTH]
    except metadata.PackageNotFoundError:
        return "?"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def make_key(heartbeat: Heartbeat) -> bytes:
    """Return the record key of a process's heartbeats: Kafka keeps the last of each."""
    place = (heartbeat.kind, heartbeat.name, heartbeat.federation_id)
    return "/".join((*place, heartbeat.public_key.hex())).encode()


# Who hears it


class Process(NamedTuple):
    """What tells processes apart: all of it is signed."""

    kind: str
    name: str
    federation_id: str
    public_key: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """A heartbeat whose signature is good, and when Kafka took it.

    Attributes:
        heartbeat: What was said.
        appended_at_ms: When it arrived, by the broker's clock.
    """

    heartbeat: Heartbeat
    appended_at_ms: int

    @property
    def process(self) -> Process:
        """Who said it."""
        said = self.heartbeat
        return Process(said.kind, said.name, said.federation_id, said.public_key)

    @property
    def at_ms(self) -> int:
        """When it was said: by its own clock, but not after it arrived.

        So an old one that a stranger sends again stays old, and a clock that is ahead
        makes nobody live longer.
        """
        return min(self.heartbeat.said_at_ms, self.appended_at_ms)


def open_heartbeat(
    registry: SchemaRegistry, record: Record
) -> tuple[Heard, bytes] | None:
    """Return what a record says, and the bytes to be checked; None if nothing.

    Anybody may write there: whatever is no sound heartbeat is passed over.

    Raises:
        Exception: the schema registry is away.
    """
    try:
        data = registry.unframe(record.value)
        heartbeat = codec.decode_as(Heartbeat, data)
    except (FramingError, codec.CodecError):
        return None
    if find_problem(heartbeat) is not None:
        return None
    return Heard(heartbeat, record.appended_at_ms), data


def find_problem(said: Heartbeat) -> str | None:
    """Return what is wrong with a heartbeat's fields; None if nothing."""
    times = (said.started_at_ms, said.doing_since_ms, said.said_at_ms)
    checks = (
        (bool(NAME.fullmatch(said.kind)), "kind is no name"),
        (0 < len(said.name) <= MAX_NAME_LENGTH, "name is empty or too long"),
        (
            not said.federation_id or bool(NAME.fullmatch(said.federation_id)),
            "federation_id is no name",
        ),
        (len(said.doing) <= MAX_DOING_LENGTH, "doing is too long"),
        (len(said.version) <= MAX_VERSION_LENGTH, "version is too long"),
        (all(0 <= at <= MAX_TIME_MS for at in times), "a time is out of range"),
        (0 <= said.next_within_ms <= MAX_NEXT_MS, "next_within_ms is out of range"),
    )
    return next((problem for is_good, problem in checks if not is_good), None)


class HeartbeatReader:
    """Hears all processes; for one thread."""

    def __init__(self, settings: Settings, registry: SchemaRegistry) -> None:
        self._settings = settings
        self._registry = registry
        self._readers: list[PartitionReader] = []
        self._heard: dict[Process, Heard] = {}

    def read(self, timeout_s: float) -> dict[Process, Heard]:
        """Return the last heartbeat of every process, read up to the topic's end.

        Args:
            timeout_s: How long Kafka may take.

        Raises:
            KafkaUnavailableError: it does not answer, or there is no such topic.
        """
        if not self._readers:
            self._readers = [*self._open()]
        until_s = time.monotonic() + timeout_s
        came: list[Record] = []
        for reader in self._readers:
            end = -1
            while True:
                came += reader.poll(max(0.0, min(0.5, until_s - time.monotonic())))
                # The end as first seen: there are always more to come.
                end = reader.end if end < 0 else end
                if 0 <= end <= reader.position:
                    break
                if time.monotonic() > until_s:
                    msg = f"Kafka was silent reading {topics.HEARTBEATS}"
                    raise KafkaUnavailableError(msg)
        self._learn(came)
        return dict(self._heard)

    def close(self) -> None:
        """Let go of Kafka."""
        for reader in self._readers:
            reader.close()

    def _open(self) -> Iterator[PartitionReader]:
        for number in range(count_partitions(self._settings, topics.HEARTBEATS)):
            bounds = find_bounds(self._settings, topics.HEARTBEATS, number)
            start = max(bounds.first, bounds.end - NUM_READ)
            yield PartitionReader(
                self._settings, topics.HEARTBEATS, number, start=start
            )

    def _learn(self, records: Iterable[Record]) -> None:
        opened = [
            (*found, record)
            for record in records
            if (found := open_heartbeat(self._registry, record)) is not None
        ]
        # The newest of each first: the older ones need no check. The last to arrive is
        # the newest of those of one millisecond.
        opened.reverse()
        opened.sort(key=lambda item: item[0].at_ms, reverse=True)
        done: set[Process] = set()
        for heard, data, record in opened:
            known = self._heard.get(heard.process)
            if heard.process in done or (known and known.at_ms > heard.at_ms):
                continue
            if _is_signed(heard.heartbeat, data, record):
                self._heard[heard.process] = heard
                done.add(heard.process)
        while len(self._heard) > MAX_REMEMBERED:
            oldest = min(self._heard.values(), key=lambda heard: heard.at_ms)
            del self._heard[oldest.process]


def _is_signed(heartbeat: Heartbeat, data: bytes, record: Record) -> bool:
    signature = record.header(SIGNATURE_HEADER) or b""
    try:
        verify_event(heartbeat.public_key, NO_GENESIS, data, signature)
    except InvalidSignatureError:
        return False
    return True
