"""What all Faust apps of Folkmoot have in common.

Kafka's transactions make delivery exactly-once in the ordinary case. Nothing relies
on it: the ledger says what was sequenced, derived ids say what was said before, and
tables are caches (ADR 0003).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import faust
from confluent_kafka.cimpl import NewTopic
from faust.transport.drivers import aiokafka

from adapters import alive, telemetry
from adapters.kafka import (
    MAX_RECORD_SIZE_BYTES,
    count_partitions,
    find_fetch_problem,
    make_admin,
    make_headers,
)
from adapters.keys import key_path, load_or_create_key
from adapters.log_lines import guard_logs
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings, load_settings
from adapters.topic_config import demand_topics
from ledger.signing import SigningKey
from schemas import topics
from schemas.events import Event

log = logging.getLogger(__name__)

COMMIT_INTERVAL_S: Final = 0.1
"""Records become visible when their transaction commits, so this is the latency of
every hop between processors. Shorter costs more transactions than it saves time."""
MAX_BUFFERED: Final = 1_000
"""Records that Faust holds ready for a stream: a block's worth. Each may be 128 KiB of
zeros that came as a hundred bytes."""
TABLE: Final = "states"
LOOK_INTERVAL_S: Final = 5.0


class Source(NamedTuple):
    """The partition that a record was read from."""

    topic: str
    partition: int


class GapConsumer(aiokafka.Consumer):
    """Faust's consumer, with gaps that end before the next record.

    Offsets that hold no record (Kafka's transaction markers) count as read. Faust 0.15
    counts the record after such a gap in: it has that offset twice, so every commit
    ends there, and a service that was killed would read thousands of blocks again.
    """

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        await super()._add_gap(tp, offset_from, offset_to - 1)


class GapTransport(aiokafka.Transport):
    """Faust's transport with that consumer."""

    Consumer = GapConsumer


@dataclass(frozen=True, slots=True)
class Service:
    """A Faust app and what its agents need beside it."""

    name: str
    app: faust.App
    settings: Settings
    registry: SchemaRegistry
    key: SigningKey
    num_partitions: int
    _unconfirmed: list[Awaitable[Any]] = field(default_factory=list, repr=False)

    def topic(self, *names: str) -> Any:
        """Return a channel of raw bytes: decoding is not Faust's business here."""
        return self.app.topic(
            *names,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

    def table(self) -> Any:
        """Return the table of state snapshots, a cache that may be deleted."""
        raw: Any = faust.Schema(
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )
        _ensure_changelog(
            self.settings, f"moot-{self.name}-{TABLE}-changelog", self.num_partitions
        )
        return self.app.Table(
            TABLE,
            schema=raw,
            # Faust asks the schema when it writes, and these when it reads again.
            key_type=bytes,
            value_type=bytes,
            partitions=self.num_partitions,
        )

    async def send(
        self, event: Event, genesis: bytes, traceparent: str, cause: Source
    ) -> None:
        """Sign an event and send it in the transaction of the record that caused it.

        `confirm` waits until Kafka has it.

        Args:
            event: The event.
            genesis: Genesis hash of the log that it is said in, 32 bytes.
            traceparent: W3C trace context.
            cause: Where the record was.
        """
        topic = topics.topic_of(event)
        with telemetry.span(
            "publish", topic, kind=telemetry.PRODUCER, parent=traceparent
        ) as current:
            data, value = self.registry.frame(event)
            headers = make_headers(event, data, self.key, genesis, current)
            key = event.federation_id.encode()
            await self.send_raw(topic, key, value, headers, cause)

    async def send_raw(
        self,
        topic: str,
        key: bytes,
        value: bytes,
        headers: Iterable[tuple[str, bytes]],
        cause: Source,
    ) -> None:
        """Send framed bytes in the transaction of the record that caused them.

        Faust names a transaction after the partition that a record is *sent* to, and
        sends outside of any what goes to a topic that the app does not read. So the
        transaction is named here: the one that also commits the cause's offset, and
        that fences a process which believes it still owns the partition.
        """
        group = self.app.assignor.group_for_topic(cause.topic)
        sent = await self.app.producer.send(
            topic,
            key,
            value,
            None,  # by the key, as everybody else does
            None,
            dict(headers),
            transactional_id=f"{self.app.conf.id}-{group}-{cause.partition}",
        )
        self._unconfirmed.append(sent)

    async def confirm(self) -> None:
        """Wait until Kafka has what was sent.

        Comes before the cause is acknowledged: a process that died after its offset
        was committed, and before Kafka had the record, would lose it.
        """
        waiting = list(self._unconfirmed)
        self._unconfirmed.clear()
        await asyncio.gather(*waiting)


def make_service(name: str, role: str) -> Service:
    """Return a Faust app by name, with settings from the environment.

    Args:
        name: The service, such as ``sequencer``; the app and its consumer group are
            ``moot-<name>``.
        role: The principal whose key it signs with; the key file is
            ``<state directory>/keys/<role>.key``.
    """
    settings = load_settings()
    key = load_or_create_key(key_path(settings.state_directory / "keys", role))
    return make_service_with_key(name, settings, key)


def make_service_with_key(name: str, settings: Settings, key: SigningKey) -> Service:
    """Return a Faust app that signs with a key of its own; see `make_service`.

    Raises:
        TopicConfigError: Kafka's topics would lose what is written to them.
    """
    demand_topics(settings)
    telemetry.configure(f"moot-{name}", settings.otlp_endpoint)
    registry = SchemaRegistry(settings.schema_registry_url)
    directory = settings.state_directory / "faust" / name
    directory.mkdir(parents=True, exist_ok=True)
    app = faust.App(
        f"moot-{name}",
        broker=";".join(
            f"aiokafka://{server}" for server in settings.bootstrap_servers.split(",")
        ),
        processing_guarantee="exactly_once",
        store="rocksdb://?driver=rocksdict",
        datadir=str(directory),
        # Topics are made by `moot topics create`; with a leader topic or declarations
        # of its own Faust does not start against Kafka 4.
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        # Faust's own command line turns the web server on; not for the whole network.
        web_bind="127.0.0.1",
        broker_commit_interval=COMMIT_INTERVAL_S,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=MAX_RECORD_SIZE_BYTES,
        producer_max_request_size=MAX_RECORD_SIZE_BYTES,
        producer_compression_type="lz4",
        stream_buffer_maxsize=MAX_BUFFERED,
        # Nothing waits to be joined: process as soon as it arrives.
        stream_wait_empty=False,
        # A static member: a killed process and its successor are the same member, so
        # the successor need not wait for a session to expire; a second process with
        # the same id fences the first.
        consumer_group_instance_id=f"moot-{name}-{settings.instance_id}",
        broker_session_timeout=10.0,
        broker_heartbeat_interval=2.0,
        broker_rebalance_timeout=12.0,
    )
    app.transport = GapTransport(app.conf.broker_consumer, app)
    # The topics' own number, not a setting: it decides what is refused.
    num_partitions = count_partitions(settings, topics.LEDGER)
    return Service(name, app, settings, registry, key, num_partitions)


@contextmanager
def fail_stop(*events: Any) -> Iterator[None]:
    """Work on records: all of it, or none of them counts as read.

    If the block fails the process ends at once. Faust would log the error, acknowledge
    the record and go on with the next: a lost event. A process that dies here commits
    nothing; its successor reads the record again, and whoever runs the services
    restarts them and sees the log.

    Told to stop, Faust acknowledges what was handed out before it cancels the block,
    and commits that. So the block holds a reference to each record until its end.

    Args:
        *events: The records, as Faust hands them out.
    """
    for event in events:
        event.message.incref()
    try:
        yield
    except Exception:
        log.critical("cannot go on, nothing was committed", exc_info=True)
        alive.end_process()
    for event in events:
        event.ack()


def find_reading_problem(consumer: Any) -> str | None:
    """Return why a Faust consumer can never read again, if so.

    Its client's task that fetches may have ended. Or Kafka expels a member whose
    static id another process took. aiokafka 0.14 has no name for that error (its pull
    request 1188): the task that keeps the membership ends, or waits for somebody to
    take the error, and Faust asks for neither, so that the process would sit there
    without a word.
    """
    # Neither library has a public name for any of this.
    client = consumer._thread._consumer  # noqa: SLF001
    coordinator = getattr(client, "_coordinator", None)
    if coordinator is None:
        return None  # not joined yet
    fetching = find_fetch_problem(client)
    if fetching is not None:
        return fetching
    pending = coordinator._pending_exception  # noqa: SLF001
    if pending is not None:
        return str(pending)
    task = coordinator._coordination_task  # noqa: SLF001
    return alive.describe_end(task) if task.done() else None


def _watch_reading(app: faust.App, loop: asyncio.AbstractEventLoop) -> None:
    """Look again and again, from before the app is ready until it stops."""
    if app.should_stop:
        return
    problem = find_reading_problem(app.consumer)
    if problem is not None:
        log.critical(
            "this process reads nothing more from Kafka (if it was expelled from its "
            "group, is there another one with the same MOOT_INSTANCE_ID?): %s",
            problem,
        )
        alive.end_process()
    loop.call_later(LOOK_INTERVAL_S, _watch_reading, app, loop)


def serve(service: Service) -> None:
    """Run an app until it is told to stop; ends the process."""
    guard_logs()
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Not a task: Faust would wait for it when it stops.
    loop.call_later(LOOK_INTERVAL_S, _watch_reading, service.app, loop)
    worker = faust.Worker(
        service.app, loglevel=service.settings.log_level, redirect_stdouts=False
    )
    worker.execute_from_commandline()


def _ensure_changelog(settings: Settings, topic: str, num_partitions: int) -> None:
    """Create a table's changelog topic, compacted, unless it exists."""
    admin = make_admin(settings)
    if topic in admin.list_topics(timeout=30).topics:
        return
    new = NewTopic(
        topic,
        num_partitions=num_partitions,
        replication_factor=settings.replication_factor,
        config={
            "cleanup.policy": "compact",
            "max.message.bytes": str(MAX_RECORD_SIZE_BYTES),
        },
    )
    admin.create_topics([new])[topic].result(30)
