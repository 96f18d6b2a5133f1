"""What all Faust apps of Folkmoot share.

Kafka's transactions usually make delivery exactly-once. Nothing relies on it: the
ledger says what was sequenced, derived ids say what was said before, and tables are
caches (ADR 0003).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Awaitable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import faust
from faust.transport.drivers import aiokafka

from adapters import alive, heartbeats, telemetry
from adapters.kafka import (
    MAX_RECORD_SIZE_BYTES,
    count_partitions,
    find_fetch_problem,
    make_headers,
)
from adapters.keys import key_path, load_or_create_key
from adapters.log_lines import guard_logs, quieten
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings, load_settings
from adapters.topic_config import demand_topics
from ledger.signing import SigningKey
from schemas import topics
from schemas.events import Event
from streams.fenced import is_lost, leave_or_join_again

log = logging.getLogger(__name__)

COMMIT_INTERVAL_S: Final = 1.0
"""How often Faust commits: the offsets of records that led to nothing can wait."""
BUSY_COMMIT_S: Final = 0.1
"""How long output may stay invisible because there is more to say. Otherwise a
transaction ends as soon as there is something to commit."""
RETRY_BACKOFF_MS: Final = 10
"""Kafka refuses a transaction's first request while it still ends the previous one."""
LOAD_S: Final = 0.1
"""How long a burst lasts. If records keep coming for longer, that is load."""
GATHER_S: Final = 0.1
"""How long a batch gathers under load. Kafka commits within a few milliseconds, in
which Faust hands out about ten records: so small a transaction costs more than they do.
"""
MAX_BUFFERED: Final = 250
"""Records that Faust buffers for a stream. Each may be 128 KiB of zeros that arrived as
a hundred bytes."""
LOOK_INTERVAL_S: Final = 5.0
HEARTBEATS: Final = 5
"""In the time after which Kafka gives up a member: four may be late, or lost."""
REBALANCE_FACTOR: Final = 1.2
"""Members have longer to join again than to be silent: one that just failed counts
among those that Kafka waits for."""


class Source(NamedTuple):
    """The partition that a record was read from."""

    topic: str
    partition: int


class GapConsumer(aiokafka.Consumer):
    """Faust's consumer, with gaps that end before the next record.

    Offsets without a record (Kafka's transaction markers) count as read. Faust 0.15
    counts the record after such a gap as part of it: it then has that offset twice,
    every commit ends there, and a killed service would read thousands of blocks again.
    """

    async def _add_gap(self, tp: Any, offset_from: int, offset_to: int) -> None:
        await super()._add_gap(tp, offset_from, offset_to - 1)


class PromptProducer(aiokafka.Producer):
    """Faust's producer, with short transactions that hold all that was sent."""

    def _settings_extra(self) -> Mapping[str, Any]:
        settings = self._settings
        return {
            **super()._settings_extra(),
            "transaction_timeout_ms": int(settings.transaction_timeout_s * 1_000),
            "retry_backoff_ms": RETRY_BACKOFF_MS,
        }

    def __post_init__(self) -> None:
        super().__post_init__()
        self._unconfirmed: defaultdict[str, list[Awaitable[Any]]] = defaultdict(list)

    async def send(
        self, *args: Any, transactional_id: str | None = None, **options: Any
    ) -> Awaitable[Any]:
        """Send a record; its transaction does not commit without it."""
        options["transactional_id"] = transactional_id
        with self._demanding_producer():
            sent = await super().send(*args, **options)
        if transactional_id is not None:
            self._unconfirmed[transactional_id].append(sent)
        return sent

    async def commit_transactions(
        self,
        tid_to_offset_map: Mapping[str, Mapping[Any, int]],
        group_id: str,
        start_new_transaction: bool = True,  # noqa: FBT001, FBT002  # Faust's
    ) -> None:
        """Commit transactions, once Kafka has everything sent in them.

        A transaction lacking a record that Kafka refused would still commit the offset
        of its cause: the record would be lost.
        """
        try:
            with self._demanding_producer():
                for transactional_id, offsets in tid_to_offset_map.items():
                    async with self._trn_locks[transactional_id]:
                        producer = self._transaction_producers.get(transactional_id)
                        if producer is None:
                            log.warning("%s is over: not committed", transactional_id)
                            self._unconfirmed.pop(transactional_id, None)
                            continue
                        await asyncio.gather(
                            *_send_offsets(producer, offsets, group_id),
                            *self._unconfirmed.pop(transactional_id, ()),
                        )
                        await producer.commit_transaction()
                        if start_new_transaction:
                            await producer.begin_transaction()
        except Exception:
            log.critical("cannot go on, nothing was committed", exc_info=True)
            alive.end_process()

    async def commit_rest(self) -> None:
        """End every transaction in which something was sent.

        Faust ends one only if it has offsets to commit. Kafka would abort the others
        when their time is up, with what was sent, and take the process for a stale one
        when it next has something to say, which may be much later.
        """
        group = self.app.conf.id
        for transactional_id in [name for name, s in self._unconfirmed.items() if s]:
            await self.commit_transactions({transactional_id: {}}, group)

    @property
    def _settings(self) -> Settings:
        transport: Any = self.transport
        settings: Settings = transport.settings
        return settings

    @contextmanager
    def _demanding_producer(self) -> Iterator[None]:
        """Let the process join again, or end, if Kafka knows its producer no more."""
        try:
            yield
        except Exception as error:
            # One that is told to stop has ended its transactions itself.
            if is_lost(error) and not self.app.should_stop:
                leave_or_join_again(
                    self._settings,
                    self.app,
                    f"Kafka ended a transaction of this process ({error!r})",
                )
            raise


def _send_offsets(
    producer: Any, offsets: Mapping[Any, int], group_id: str
) -> list[Awaitable[Any]]:
    # aiokafka would wait for ever for none to be committed.
    return [producer.send_offsets_to_transaction(offsets, group_id)] if offsets else []


class Transport(aiokafka.Transport):
    """Faust's transport with these clients."""

    Consumer = GapConsumer
    Producer = PromptProducer

    def __init__(self, url: Any, app: faust.App, settings: Settings) -> None:
        super().__init__(url, app)
        self.settings = settings


@dataclass(slots=True)
class Service:
    """A Faust app and what its agents need beside it."""

    name: str
    app: faust.App
    settings: Settings
    registry: SchemaRegistry
    key: SigningKey
    num_partitions: int
    cache_directory: Path
    _is_due: bool = False
    _busy_until_s: float = 0.0

    def topic(self, *names: str) -> Any:
        """Return a channel of raw bytes: Faust decodes nothing here."""
        return self.app.topic(
            *names,
            key_type=bytes,
            value_type=bytes,
            key_serializer="raw",
            value_serializer="raw",
        )

    async def send(
        self, event: Event, genesis: bytes, traceparent: str, cause: Source
    ) -> None:
        """Sign an event and send it in the transaction of the record that caused it."""
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
        sends to topics that the app does not read outside any transaction. So it is
        named here: the one that also commits the cause's offset, and fences off a
        process that believes it still owns the partition.
        """
        group = self.app.assignor.group_for_topic(cause.topic)
        await self.app.producer.send(
            topic,
            key,
            value,
            None,  # by the key, like every producer
            None,
            dict(headers),
            transactional_id=f"{self.app.conf.id}-{group}-{cause.partition}",
        )

    async def commit(self, *, has_said: bool, is_busy: bool) -> None:
        """Make what was said visible, and wait until it is.

        Args:
            has_said: Whether anything was said since the last call.
            is_busy: Whether there is more to say, so that a transaction may hold more.
        """
        self._is_due |= has_said
        if not self._is_due or (is_busy and time.monotonic() < self._busy_until_s):
            return
        self._is_due = False
        consumer = self.app.consumer
        # False: Faust was already committing, perhaps without the latest output.
        if not await consumer.commit():
            await consumer.commit()
        producer: Any = self.app.producer
        await producer.commit_rest()
        self._busy_until_s = time.monotonic() + BUSY_COMMIT_S


class Batches:
    """Records for a reader that takes all that wait, then makes them visible.

    Whatever arrives while a transaction commits is the next batch: one record if it
    comes alone. Under load a batch waits for more.
    """

    def __init__(self, max_size: int) -> None:
        self._waiting: asyncio.Queue[Any] = asyncio.Queue(max_size)
        self._is_full = asyncio.Event()
        self._waited_at_s = time.monotonic()

    async def put(self, event: Any) -> None:
        """Add a record from a stream; waits while a whole batch waits."""
        await self._waiting.put(hold(event))
        if self._waiting.full():
            self._is_full.set()

    async def take(self) -> list[Any]:
        """Return the waiting records, at least one, for `fail_stop`."""
        if self._waiting.empty():
            batch = [await self._waiting.get()]
            self._waited_at_s = time.monotonic()
        else:
            batch = []
            if time.monotonic() - self._waited_at_s > LOAD_S:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_full.wait(), GATHER_S)
        self._is_full.clear()
        while not self._waiting.empty() and len(batch) < self._waiting.maxsize:
            batch.append(self._waiting.get_nowait())
        return batch

    async def commit(self, service: Service) -> None:
        """Make a batch's output visible.

        If another whole batch is waiting already, waiting would gather no more.
        """
        await service.commit(has_said=True, is_busy=self._waiting.full())


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
    """Return a Faust app that signs with a given key; see `make_service`.

    Raises:
        TopicConfigError: Kafka's topics would lose records.
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
        datadir=str(directory),
        # `moot topics create` makes the topics; with a leader topic or declarations of
        # its own Faust does not start against Kafka 4.
        topic_disable_leader=True,
        topic_allow_declare=False,
        web_enabled=False,
        # Faust's own command line turns the web server on; keep it off the network.
        web_bind="127.0.0.1",
        broker_commit_interval=COMMIT_INTERVAL_S,
        consumer_auto_offset_reset="earliest",
        consumer_max_fetch_size=MAX_RECORD_SIZE_BYTES,
        producer_max_request_size=MAX_RECORD_SIZE_BYTES,
        producer_compression_type="lz4",
        stream_buffer_maxsize=MAX_BUFFERED,
        # Nothing needs to be gathered: process records as they arrive.
        stream_wait_empty=False,
        # A static member: a killed process and its successor are the same member, so
        # the successor need not wait for a session to expire; a second process with the
        # same id fences off the first.
        consumer_group_instance_id=f"moot-{name}-{settings.instance_id}",
        broker_session_timeout=settings.session_timeout_s,
        broker_heartbeat_interval=settings.session_timeout_s / HEARTBEATS,
        broker_rebalance_timeout=settings.session_timeout_s * REBALANCE_FACTOR,
    )
    app.transport = Transport(app.conf.broker_consumer, app, settings)
    app.producer_transport = Transport(app.conf.broker_producer, app, settings)
    # The topics' own number, not a setting: it decides what is refused.
    num_partitions = count_partitions(settings, topics.LEDGER)
    return Service(name, app, settings, registry, key, num_partitions, directory)


def hold(event: Any) -> Any:
    """Return a record that counts as read only when `fail_stop` is done with it.

    Its stream releases it when it hands out the next. Told to stop, Faust even
    acknowledges what was handed out before it cancels the tasks working on it, and
    commits that.
    """
    event.message.incref()
    return event


@contextmanager
def fail_stop(*events: Any) -> Iterator[None]:
    """Work on records that `hold` returned: all of it, or none of them counts as read.

    If the block fails, the process ends at once. Faust would log the error, acknowledge
    the record and continue with the next: a lost event. A process that dies here
    commits nothing; its successor reads the record again, and whoever runs the services
    restarts them and sees the log.
    """
    try:
        yield
    except Exception:
        log.critical("cannot go on, nothing was committed", exc_info=True)
        alive.end_process()
    for event in events:
        event.ack()


def find_reading_problem(consumer: Any) -> str | None:
    """Return why a Faust consumer can never read again, if so.

    Its client's fetching task may have ended. Or Kafka expels a member whose static id
    another process took. aiokafka 0.14 has no name for that error (its pull request
    1188): the task that keeps the membership ends, or waits for somebody to take the
    error; Faust asks for neither, so the process would hang silently.
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


def _watch_reading(service: Service, loop: asyncio.AbstractEventLoop) -> None:
    """Check repeatedly, from before the app is ready until it stops."""
    app = service.app
    if app.should_stop:
        return
    problem = find_reading_problem(app.consumer)
    if problem is not None:
        leave_or_join_again(
            service.settings,
            app,
            f"this process reads nothing more from Kafka ({problem})",
        )
    loop.call_later(LOOK_INTERVAL_S, _watch_reading, service, loop)


def serve(service: Service) -> None:
    """Run an app until it is told to stop; ends the process."""
    guard_logs()
    quieten("aiokafka", "faust", "mode")
    # Faust only has its handlers drop what is below the level: every request to Kafka
    # would make a few records for nothing.
    level = service.settings.log_level
    logging.disable(logging.getLevelNamesMapping()[level] - 1)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    # Not a task: Faust would wait for it when stopping.
    loop.call_later(LOOK_INTERVAL_S, _watch_reading, service, loop)
    worker = faust.Worker(
        service.app, loglevel=service.settings.log_level, redirect_stdouts=False
    )
    # Of some kinds there are many, each with a name.
    kind, _, name = service.name.partition("-")
    name = name or service.settings.instance_id
    with heartbeats.beating(service.settings, service.key, kind, name):
        worker.execute_from_commandline()
