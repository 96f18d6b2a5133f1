"""What Kafka says about a partition, beside its records: for those who distrust it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from confluent_kafka import KafkaException, TopicCollection, TopicPartition
from confluent_kafka.admin import AdminClient

from adapters.kafka import KafkaUnavailableError, make_consumer
from adapters.settings import Settings

ANSWER_TIMEOUT_S: Final = 5.0


@dataclass(frozen=True, slots=True)
class PartitionFacts:
    """A partition as Kafka describes it.

    Attributes:
        topic_id: The topic's id: another one under the same name has another.
        first: Offset of the first record that is left.
        end: Offset that the next record will have.
    """

    topic_id: str
    first: int
    end: int


class TopicWatcher:
    """Asks about one partition, again and again. For one thread.

    Args:
        settings: Where Kafka is.
        topic: The topic.
        partition: The partition.
    """

    def __init__(self, settings: Settings, topic: str, partition: int) -> None:
        self._topic = topic
        self._partition = TopicPartition(topic, partition)
        self._consumer = make_consumer(settings, "moot-watcher", log_level=2)
        self._admin = AdminClient(
            {"bootstrap.servers": settings.bootstrap_servers, "log_level": 2}
        )

    def look(self) -> PartitionFacts:
        """Return what Kafka says now.

        Raises:
            KafkaUnavailableError: it says nothing.
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
            msg = f"Kafka says nothing about {self._topic}: {error}"
            raise KafkaUnavailableError(msg) from error
        if bounds is None:
            msg = f"Kafka says nothing about {self._topic}"
            raise KafkaUnavailableError(msg)
        first, end = bounds
        return PartitionFacts(topic_id, first, end)

    def close(self) -> None:
        """Let go of Kafka."""
        self._consumer.close()
