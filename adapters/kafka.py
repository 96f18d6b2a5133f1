"""Kafka through confluent-kafka: topics, publishing signed events, reading the ledger.

Kafka is trusted only for availability: whoever acts on a record verifies it.
"""

from __future__ import annotations

import logging
import socket
import sys
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, wait
from dataclasses import dataclass
from enum import Enum
from typing import Any, Final, NamedTuple

import aiokafka
from aiokafka.errors import KafkaConnectionError as AioKafkaConnectionError
from aiokafka.errors import KafkaError as AioKafkaError
from aiokafka.errors import UnknownTopicOrPartitionError
from confluent_kafka import (
    Consumer,
    ConsumerGroupState,
    KafkaError,
    KafkaException,
    Message,
    Producer,
    TopicPartition,
)
from confluent_kafka.admin import AdminClient
from confluent_kafka.cimpl import NewTopic

from adapters import alive, raw_records, telemetry
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from adapters.wording import describe_away
from ledger.signing import SigningKey
from protocol.envelope import (
    EVENT_ID_HEADER,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    choose_genesis,
    compute_fact_id,
    compute_input_id,
    sign_event,
)
from schemas import topics
from schemas.events import Event, Fact

log = logging.getLogger(__name__)

# Before any consumer exists, Faust's too.
raw_records.install()

MAX_RECORD_SIZE_BYTES: Final = topics.MAX_RECORD_SIZE_BYTES
MAX_EVENT_RECORD_SIZE_BYTES: Final = topics.MAX_EVENT_RECORD_SIZE_BYTES
SETTING: Final = "MOOT_BOOTSTRAP_SERVERS"
DELIVERY_TIMEOUT_S: Final = 30.0
ANSWER_TIMEOUT_S: Final = 10.0
CONNECT_S: Final = 3.0
POLL_S: Final = 0.1
FETCH_WAIT_MS: Final = 500
"""How long Kafka may wait for a record before it reports none; records never wait.
Shorter costs an idle reader more processor time."""


class KafkaUnavailableError(Exception):
    """Kafka did not do in time what was asked; the message says what."""


def make_away(settings: Settings, error: object) -> KafkaUnavailableError:
    """Return what to raise when Kafka does not answer.

    Args:
        settings: Where it should be.
        error: What its client says.
    """
    where, reason = settings.bootstrap_servers, describe_kafka(error)
    found = error.args[0] if isinstance(error, KafkaException) else None
    if isinstance(found, KafkaError) and found.code() >= 0:  # the broker's own word
        return KafkaUnavailableError(f"Kafka at {where} ({SETTING}) refuses: {reason}")
    return KafkaUnavailableError(describe_away("Kafka", where, SETTING, reason))


def describe_kafka(error: object) -> str:
    """Return what an error of Kafka's client says, without how it is made up."""
    found = error.args[0] if isinstance(error, KafkaException) else None
    return found.str() if isinstance(found, KafkaError) else str(error)


def demand_listener(settings: Settings) -> None:
    """Check that anything listens where Kafka should be: its clients take 10 s to say.

    Raises:
        KafkaUnavailableError: nothing does.
    """
    problems = []
    for server in settings.bootstrap_servers.split(","):
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), CONNECT_S).close()
        except (OSError, ValueError) as error:
            problems.append(getattr(error, "strerror", None) or str(error))
        else:
            return
    raise make_away(settings, ", ".join(dict.fromkeys(problems)))


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that do not exist yet; returns their names.

    Raises:
        KafkaUnavailableError: a topic could not be created.
    """
    admin = make_admin(settings)
    try:
        existing = set(admin.list_topics(timeout=ANSWER_TIMEOUT_S).topics)
    except KafkaException as error:
        raise make_away(settings, error) from error
    wanted = [
        NewTopic(
            topic,
            num_partitions=settings.num_partitions,
            replication_factor=settings.replication_factor,
            config=_make_config(topic, settings.replication_factor),
        )
        for topic in topics.EVENTS
        if topic not in existing
    ]
    if not wanted:
        return []
    for topic, future in admin.create_topics(wanted).items():
        try:
            future.result(DELIVERY_TIMEOUT_S)
        except KafkaException as error:
            if error.args[0].code() != KafkaError.TOPIC_ALREADY_EXISTS:
                said = describe_kafka(error)
                msg = f"Kafka did not create topic {topic}: {said}"
                raise KafkaUnavailableError(msg) from error
    return [new.topic for new in wanted]


def _make_config(topic: str, replication_factor: int) -> dict[str, str]:
    config = topics.config_of(topic)
    if replication_factor >= topics.MIN_REPLICAS:
        config["min.insync.replicas"] = str(topics.MIN_IN_SYNC)
    return config


def make_headers(
    event: Event, data: bytes, key: SigningKey, genesis: bytes, traceparent: str
) -> list[tuple[str, bytes]]:
    """Return the headers of a record: signature, event id, trace context.

    Args:
        event: The event.
        data: The event's single-object bytes.
        key: Its author's.
        genesis: Genesis hash of its log, 32 bytes.
        traceparent: W3C trace context, may be empty.
    """
    signature = sign_event(key, choose_genesis(event, genesis), data)
    if isinstance(event, Fact):
        event_id = compute_fact_id(event)
    else:
        event_id = compute_input_id(key.public_key, data)
    return [
        (SIGNATURE_HEADER, signature),
        (EVENT_ID_HEADER, event_id),
        (TRACEPARENT_HEADER, traceparent.encode()),
    ]


class Publisher:
    """Publishes signed events, and confirms that they arrived."""

    def __init__(self, settings: Settings, registry: SchemaRegistry) -> None:
        self._registry = registry
        self._settings = settings
        self._producer = Producer(
            {
                "bootstrap.servers": settings.bootstrap_servers,
                # The exception says what failed; the client would log it as well, even
                # when nobody publishes any more.
                "log_level": 2,
                # No loss, no reordering, no duplicates by the client's own retries.
                "enable.idempotence": True,
                # `moot topics create` makes them, with the right configuration.
                "allow.auto.create.topics": False,
                "acks": "all",
                "linger.ms": 2,
                # The topics limit batches, and this client splits none.
                "batch.size": MAX_EVENT_RECORD_SIZE_BYTES // 2,
                "compression.type": "lz4",
                "message.max.bytes": MAX_RECORD_SIZE_BYTES,
                "partitioner": "murmur2_random",
            }
        )

    def publish(
        self, event: Event, key: SigningKey, genesis: bytes, *, traceparent: str = ""
    ) -> tuple[int, int]:
        """Sign and publish one event, and wait until Kafka has it.

        Returns:
            Its partition and offset.

        Raises:
            KafkaUnavailableError: Kafka did not confirm it in time. It may still have
                arrived: publishing the same event again is harmless.
        """
        return self.publish_all([event], key, genesis, traceparent=traceparent)[0]

    def publish_all(
        self,
        events: Iterable[Event],
        key: SigningKey,
        genesis: bytes,
        *,
        traceparent: str = "",
    ) -> list[tuple[int, int]]:
        """Publish several events in order, and wait for all of them."""
        confirmed: list[tuple[int, int]] = []
        failures: list[KafkaError] = []

        def on_delivery(error: KafkaError | None, message: Message) -> None:
            if error is not None:
                failures.append(error)
            else:
                confirmed.append((message.partition() or 0, message.offset() or 0))

        for event in events:
            topic = topics.topic_of(event)
            with telemetry.span(
                "publish", topic, kind=telemetry.PRODUCER, parent=traceparent
            ) as current:
                data, value = self._registry.frame(event)
                self._producer.produce(
                    topic,
                    key=event.federation_id.encode(),
                    value=value,
                    headers=make_headers(event, data, key, genesis, current),  # type: ignore[arg-type]  # the stubs want a union of lists
                    on_delivery=on_delivery,
                )
        remaining = self._producer.flush(DELIVERY_TIMEOUT_S)
        if failures or remaining:
            what = failures[0].str() if failures else "no confirmation"
            raise make_away(self._settings, f"it did not accept the event: {what}")
        return confirmed


@dataclass(frozen=True, slots=True)
class Record:
    """A record as read: nothing in it is verified yet."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    appended_at_ms: int = -1
    """When the broker took it, by its clock, or what the producer says; -1 unknown. For
    liveness alone (ADR 0027)."""

    def header(self, name: str) -> bytes | None:
        """Return the last header of this name; None if there is none."""
        return next((v for n, v in reversed(self.headers) if n == name), None)


def find_fetch_problem(consumer: Any) -> str | None:
    """Return why an aiokafka consumer fetches nothing more, if so.

    It has no public way to say that its fetching task has ended.
    """
    fetching = consumer._fetcher.error_future  # noqa: SLF001  # the task, by that name
    if not fetching.done():
        return None
    return f"aiokafka fetches nothing more: {alive.describe_end(fetching)}"


class _Found(NamedTuple):
    """What one read of a partition found, and where the reader then was."""

    records: list[Any]
    position: int
    end: int


class PartitionReader:
    """Reads the committed records of one partition; for one thread.

    Not librdkafka, which stops for ever at batches that it cannot unpack, and trusts
    records about their offsets. This unpacks as the services do (ADR 0023). Unreadable
    records are passed over, with a warning and a count. One thread for all readers
    keeps the connections while nobody polls.

    Args:
        settings: Where Kafka is.
        topic: The topic.
        partition: The partition.
        start: First offset, without a group.
        group: Begin after what this group has committed instead.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        partition: int,
        *,
        start: int = 0,
        group: str | None = None,
    ) -> None:
        self._settings = settings
        self._place = aiokafka.TopicPartition(topic, partition)
        self._start = start
        self._group = group
        self._consumer: aiokafka.AIOKafkaConsumer | None = None
        self._asked: Future[_Found] | None = None
        self._is_away = False
        self.position = -1
        """Offset of the next record; -1 until Kafka has said anything."""
        self.end = -1
        """Where committed records ended at Kafka's last word; -1 until then."""

    @property
    def is_at_end(self) -> bool:
        """Whether everything was read that was committed at Kafka's last word."""
        return 0 <= self.end <= self.position

    def poll(self, timeout_s: float) -> list[Record]:
        """Return the next records; none if none come in time or Kafka is away.

        Raises:
            KafkaUnavailableError: the topic does not exist, or may not be read.
        """
        asked = self._asked or alive.run_in_background(self._read())
        self._asked = asked
        wait({asked}, timeout_s)
        if not asked.done():
            return []  # it is asked already, for the next time
        self._asked = None
        try:
            found = asked.result()
        except (AioKafkaConnectionError, TimeoutError) as error:
            self._say_away(error)
            time.sleep(timeout_s)
            return []
        except AioKafkaError as error:
            msg = f"could not read {self._place.topic}: {error!r}"
            raise KafkaUnavailableError(msg) from error
        self._is_away = False
        # Only now: records that another thread has read have not yet reached the
        # poller, who would think the partition read if the position came first.
        self.position, self.end = found.position, found.end
        return [
            Record(
                topic=record.topic,
                partition=record.partition,
                offset=record.offset,
                key=record.key,
                value=record.value,
                headers=record.headers,
                appended_at_ms=record.timestamp,
            )
            for record in found.records
            if not raw_records.is_stand_in(record.headers)
        ]

    def commit(self, record: Record) -> None:
        """Let the group begin after this record.

        Raises:
            KafkaUnavailableError: Kafka is away.
        """
        assert self._consumer is not None, "the record was read"
        offsets = {self._place: record.offset + 1}
        work = alive.run_in_background(self._consumer.commit(offsets))
        try:
            work.result(DELIVERY_TIMEOUT_S)
        except (AioKafkaError, TimeoutError) as error:
            msg = f"could not commit to {self._place.topic}: {error!r}"
            raise KafkaUnavailableError(msg) from error

    def close(self) -> None:
        """Let go of Kafka, without waiting for it."""
        if not sys.is_finalizing():  # the background loop ends first then
            alive.run_in_background(self._close(self._asked))

    def _say_away(self, error: Exception) -> None:
        level = logging.DEBUG if self._is_away else logging.WARNING
        log.log(level, "%s; trying again", make_away(self._settings, error))
        self._is_away = True

    async def _read(self) -> _Found:
        if self._consumer is None:
            self._consumer = await self._connect()
        consumer, place = self._consumer, self._place
        fetched = await consumer.getmany(place, timeout_ms=FETCH_WAIT_MS)
        problem = find_fetch_problem(consumer)
        if problem is not None:
            raise AioKafkaError(problem)
        records = fetched.get(place, [])
        end = consumer.last_stable_offset(place)
        if end is None:  # Kafka has said nothing yet
            return _Found(records, self.position, self.end)
        return _Found(records, await consumer.position(place), end)

    async def _close(self, asked: Future[_Found] | None) -> None:
        if asked is not None:
            asked.cancel()
        if self._consumer is not None:
            await self._consumer.stop()

    async def _connect(self) -> aiokafka.AIOKafkaConsumer:
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=self._settings.bootstrap_servers.split(","),
            group_id=self._group,
            enable_auto_commit=False,
            isolation_level="read_committed",
            auto_offset_reset="earliest",
            fetch_max_wait_ms=FETCH_WAIT_MS,
            max_partition_fetch_bytes=MAX_RECORD_SIZE_BYTES,
        )
        try:
            await consumer.start()
            await self._demand_topic(consumer)
            consumer.assign([self._place])
            if self._group is None:
                consumer.seek(self._place, max(self._start, 0))
        except BaseException:
            await consumer.stop()
            raise
        return consumer

    async def _demand_topic(self, consumer: aiokafka.AIOKafkaConsumer) -> None:
        if self._place.topic not in await consumer.topics():
            raise UnknownTopicOrPartitionError(f"there is no topic {self._place.topic}")


def make_consumer(settings: Settings, group: str, **config: Any) -> Consumer:
    """Return a consumer that sees only committed records and commits by hand."""
    return Consumer(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            "group.id": group,
            "isolation.level": "read_committed",
            "enable.auto.commit": False,
            "auto.offset.reset": "earliest",
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 100,
            **config,
        }
    )


def read_partition(
    settings: Settings,
    topic: str,
    partition: int,
    *,
    start: int = 0,
    timeout_s: float = DELIVERY_TIMEOUT_S,
) -> Iterator[Record]:
    """Yield the committed records of a partition in order, up to its present end.

    Args:
        settings: Where Kafka is.
        topic: The topic.
        partition: The partition.
        start: First offset; by default the beginning.
        timeout_s: How long Kafka may be silent before the end.

    Raises:
        KafkaUnavailableError: Kafka is away, or the partition does not exist.
    """
    reader = PartitionReader(settings, topic, partition, start=start)
    end, position, heard = -1, -1, time.monotonic()
    try:
        while not 0 <= end <= position:
            yield from reader.poll(POLL_S)
            # The end as first seen: a writer may be faster than this reader.
            end = reader.end if end < 0 else end
            if reader.position > position:
                position, heard = reader.position, time.monotonic()
            elif time.monotonic() - heard > timeout_s:
                msg = f"it was silent for {timeout_s:.0f} s while {topic} was read"
                raise make_away(settings, msg)
    finally:
        reader.close()


class Pause(Enum):
    """Nothing to read right now."""

    IDLE = "idle"
    END = "end"


IDLE: Final = Pause.IDLE
"""Nothing came for a moment; more may be on its way."""
END: Final = Pause.END
"""Everything that is committed has been read."""


def follow_partition(
    settings: Settings,
    topic: str,
    partition: int,
    *,
    start: int = 0,
) -> Iterator[Record | Pause]:
    """Yield the committed records of a partition for ever, with pauses between.

    `END` and `IDLE` let the caller do something else (stop, check a clock) meanwhile.

    Raises:
        KafkaUnavailableError: the partition cannot be read.
    """
    reader = PartitionReader(settings, topic, partition, start=start)
    was_at_end = False
    try:
        while True:
            found = reader.poll(POLL_S)
            yield from found
            if reader.is_at_end and (found or not was_at_end):
                yield END
            elif not found:
                yield IDLE
            was_at_end = reader.is_at_end
    finally:
        reader.close()


class Bounds(NamedTuple):
    """Where a partition begins and ends.

    Attributes:
        first: Offset of the first remaining record: 0 while none was deleted.
        end: Offset of the next record to come.
    """

    first: int
    end: int


def find_bounds(settings: Settings, topic: str, partition: int) -> Bounds:
    """Return where a partition begins and ends.

    Raises:
        KafkaUnavailableError: Kafka is away, or the partition does not exist.
    """
    consumer = make_consumer(settings, "moot-reader", log_level=3)
    try:
        bounds: Any = consumer.get_watermark_offsets(
            TopicPartition(topic, partition), timeout=DELIVERY_TIMEOUT_S
        )
    except KafkaException as error:
        raise make_away(settings, error) from error
    finally:
        consumer.close()
    if bounds is None:
        raise make_away(settings, f"no word of where {topic} ends")
    first, end = bounds
    return Bounds(int(first), int(end))


def find_committed(
    settings: Settings, group: str, places: Iterable[tuple[str, int]]
) -> dict[tuple[str, int], int]:
    """Return the offsets that a consumer group, which is not joined, continues from.

    Raises:
        KafkaUnavailableError: Kafka does not answer.
    """
    asked = [TopicPartition(*place) for place in places]
    consumer = make_consumer(settings, group, log_level=3)
    try:
        answers = consumer.committed(asked, timeout=DELIVERY_TIMEOUT_S)
    except KafkaException as error:
        raise make_away(settings, error) from error
    finally:
        consumer.close()
    return {(at.topic, at.partition): at.offset for at in answers if at.offset >= 0}


class Member(NamedTuple):
    """A member of a consumer group, as Kafka knows it.

    Attributes:
        member_id: Given by Kafka, another one each time it joins.
        instance_id: Its own; empty for one that is not static.
        host: Where it is.
        places: The topics and partitions that it reads; None while the group settles.
    """

    member_id: str
    instance_id: str
    host: str
    places: frozenset[tuple[str, int]] | None


def find_members(settings: Settings, group: str) -> list[Member]:
    """Return the present members of a consumer group.

    Raises:
        KafkaUnavailableError: Kafka does not answer.
    """
    admin = make_admin(settings)
    try:
        asked = admin.describe_consumer_groups(
            [group], request_timeout=ANSWER_TIMEOUT_S
        )
        found: Any = asked[group].result(ANSWER_TIMEOUT_S)
    except (KafkaException, TimeoutError) as error:
        raise make_away(settings, error) from error
    return [
        Member(
            member.member_id,
            member.group_instance_id or "",
            member.host,
            frozenset(
                (at.topic, at.partition) for at in member.assignment.topic_partitions
            )
            if found.state == ConsumerGroupState.STABLE
            else None,
        )
        for member in found.members
    ]


def make_admin(settings: Settings) -> AdminClient:
    """Return a quiet administrative client that creates no topic by asking."""
    return AdminClient(
        {
            "bootstrap.servers": settings.bootstrap_servers,
            # The exception says what failed; it would also be logged every 50 ms.
            "log_level": 2,
            # By default this client lets a willing broker create the topics that it
            # asks about, with the broker's retention.
            "allow.auto.create.topics": False,
        }
    )


def count_partitions(settings: Settings, topic: str) -> int:
    """Return how many partitions a topic has.

    Raises:
        KafkaUnavailableError: Kafka is away, or has no such topic.
    """
    admin = make_admin(settings)
    try:
        found = admin.list_topics(topic, timeout=ANSWER_TIMEOUT_S).topics[topic]
    except KafkaException as error:
        raise make_away(settings, error) from error
    if found.error is not None or not found.partitions:
        msg = f"there is no topic {topic}: `moot topics create` makes it"
        raise KafkaUnavailableError(msg)
    return len(found.partitions)
