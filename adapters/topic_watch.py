"""What Kafka says about a partition apart from its records, for sceptics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from confluent_kafka import (
    IsolationLevel,
    KafkaException,
    TopicCollection,
    TopicPartition,
)
from confluent_kafka.admin import (  # type: ignore[attr-defined]  # its public names
    AdminClient,
    OffsetSpec,
)

from adapters.kafka import (
    KafkaUnavailableError,
    describe_kafka,
    make_admin,
    make_consumer,
)
from adapters.settings import Settings

ANSWER_TIMEOUT_S: Final = 5.0
NO_WAIT_S: Final = 0.1
"""A client learns from an answer that comes later, too."""
HELD_AFTER_S: Final = 10.0
"""Our own transactions are open for a fraction of a second."""


class Place(NamedTuple):
    """A partition of a topic."""

    topic: str
    partition: int

    def __str__(self) -> str:
        return f"{self.topic}/{self.partition}"


class Ends(NamedTuple):
    """Where a partition begins and ends.

    Attributes:
        first: Offset of the first remaining record.
        stable: The last stable offset: how far committed records can be read.
        end: Offset of the next record to come.
    """

    first: int
    stable: int
    end: int


def find_ends(admin: AdminClient, places: Iterable[Place]) -> dict[Place, Ends]:
    """Return where partitions begin and end.

    Raises:
        KafkaUnavailableError: Kafka does not answer.
    """
    places = list(places)

    def ask(spec: OffsetSpec, level: IsolationLevel) -> list[int]:
        asked = {TopicPartition(*place): spec for place in places}
        answers = admin.list_offsets(
            asked, isolation_level=level, request_timeout=ANSWER_TIMEOUT_S
        )
        offsets = {
            Place(at.topic, at.partition): answer.result(ANSWER_TIMEOUT_S).offset
            for at, answer in answers.items()
        }
        return [int(offsets[place]) for place in places]

    try:
        # In this order, later answers are not smaller.
        first = ask(OffsetSpec.earliest(), IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]
        stable = ask(OffsetSpec.latest(), IsolationLevel.READ_COMMITTED)  # type: ignore[no-untyped-call]
        end = ask(OffsetSpec.latest(), IsolationLevel.READ_UNCOMMITTED)  # type: ignore[no-untyped-call]
    except (KafkaException, TimeoutError) as error:
        # The client remembers leaders: it would ask one that is gone, or with the epoch
        # before its restart, until its metadata expire, minutes later.
        with suppress(KafkaException):
            admin.list_topics(timeout=NO_WAIT_S)
        said = describe_kafka(error)
        msg = f"Kafka does not say where its partitions end: {said}"
        raise KafkaUnavailableError(msg) from error
    return {
        place: Ends(*found)
        for place, *found in zip(places, first, stable, end, strict=True)
    }


@dataclass(frozen=True, slots=True)
class Hold:
    """A partition whose readers an open transaction holds up.

    Whoever may write to a topic in transactions can leave one open, for as long as the
    broker's `transaction.max.timeout.ms`, and then open the next.

    Attributes:
        place: The partition.
        offset: The first offset of the transaction: the last stable offset.
        since_s: When it was first seen there, by the watcher's clock.
    """

    place: Place
    offset: int
    since_s: float

    def __str__(self) -> str:
        """Return it as text that does not change while it lasts."""
        return (
            f"{self.place}: an open transaction holds back everything from offset "
            f"{self.offset} on"
        )

    def describe_cure(self, bootstrap_servers: str) -> str:
        """Return whose it is, how to end it, and how to keep it from coming back."""
        topic, partition = self.place
        return (
            f"`kafka-transactions.sh --bootstrap-server {bootstrap_servers} "
            f"describe-producers --topic {topic} --partition {partition}` shows whose "
            f"it is, `… abort --topic {topic} --partition {partition} --start-offset "
            f"{self.offset}` ends it; without a right on a transactional id nobody "
            "can open one"
        )


class HoldWatch:
    """Tells an open transaction that stays from one about to end.

    Args:
        after_s: How long the last stable offset must stand still.
    """

    def __init__(self, after_s: float = HELD_AFTER_S) -> None:
        self._after_s = after_s
        self._standing: dict[Place, Hold] = {}

    def see(self, ends: Mapping[Place, Ends], now_s: float) -> list[Hold]:
        """Take what Kafka says and return the present holds.

        Args:
            ends: Of every watched partition.
            now_s: Now, in seconds of a clock that never goes back.
        """
        for place, found in ends.items():
            known = self._standing.get(place)
            if found.stable >= found.end:
                self._standing.pop(place, None)
            elif known is None or known.offset != found.stable:
                self._standing[place] = Hold(place, found.stable, now_s)
        return [
            hold
            for hold in self._standing.values()
            if now_s - hold.since_s >= self._after_s
        ]


class Lost(NamedTuple):
    """Offsets of a partition that Kafka deleted before anybody had read them."""

    place: Place
    first: int
    end: int

    def __str__(self) -> str:
        return (
            f"{self.place}: offsets {self.first} to {self.end - 1} were deleted before "
            f"they were sequenced: up to {self.end - self.first} records that Kafka "
            "had acknowledged are lost (aborted records and Kafka's own markers take "
            "offsets too)"
        )


def find_lost(ends: Mapping[Place, Ends], nexts: Mapping[Place, int]) -> list[Lost]:
    """Return what was deleted unread.

    Args:
        ends: Where the partitions begin now.
        nexts: The first unread offset of each; partitions not named were never read.
    """
    return [
        Lost(place, nexts.get(place, 0), found.first)
        for place, found in ends.items()
        if found.first > nexts.get(place, 0)
    ]


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """A partition as Kafka describes it.

    Attributes:
        topic_id: The topic's id; a new topic of the same name has another.
        first: Offset of the first remaining record.
        end: Offset of the next record to come.
    """

    topic_id: str
    first: int
    end: int


class TopicWatcher:
    """Asks about one partition, repeatedly. For one thread."""

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = TopicPartition(topic, partition)
        self._consumer = make_consumer(settings, "moot-watcher", log_level=2)
        self._admin = make_admin(settings)

    def look(self) -> PartitionFacts:
        """Return what Kafka says now.

        Raises:
            KafkaUnavailableError: it does not answer.
        """
        try:
            described = self._admin.describe_topics(
                TopicCollection([self._topic]), request_timeout=ANSWER_TIMEOUT_S
            )
            topic_id = str(described[self._topic].result(ANSWER_TIMEOUT_S).topic_id)
            bounds: Any = self._consumer.get_watermark_offsets(
                self._partition, timeout=ANSWER_TIMEOUT_S
            )
        except (KafkaException, TimeoutError) as error:
            msg = f"Kafka says nothing about {self._topic}: {describe_kafka(error)}"
            raise KafkaUnavailableError(msg) from error
        if bounds is None:
            raise KafkaUnavailableError(f"Kafka says nothing about {self._topic}")
        first, end = bounds
        return PartitionFacts(topic_id, first, end)

    def find_ends(self, topics: Iterable[str]) -> dict[Place, Ends]:
        """Return where the same partition of these topics ends.

        Raises:
            KafkaUnavailableError: Kafka does not answer.
        """
        number = self._partition.partition
        return find_ends(self._admin, [Place(topic, number) for topic in topics])

    def close(self) -> None:
        """Let go of Kafka."""
        self._consumer.close()
