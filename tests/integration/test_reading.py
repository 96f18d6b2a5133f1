"""Readers of Kafka over time: idle, with Kafka gone and back, and never at an end."""

import threading

import pytest
from confluent_kafka import Producer

from adapters.kafka import (
    END,
    KafkaUnavailableError,
    PartitionReader,
    Record,
    create_topics,
    find_bounds,
    follow_partition,
    read_partition,
)
from adapters.settings import Settings
from cli.stack.stack import KAFKA, LocalStack
from schemas import topics
from tests.integration.harness import wait_until
from tests.integration.other_kafka import IDLE_MS, ImpatientKafka


@pytest.fixture(scope="module")
def settings(other_kafka: ImpatientKafka) -> Settings:
    other_kafka.delete_topics()
    create_topics(other_kafka.settings)
    return other_kafka.settings


def publish(settings: Settings, topic: str, *values: bytes) -> None:
    producer = Producer(
        {"bootstrap.servers": settings.bootstrap_servers, "log_level": 2}
    )
    for value in values:
        producer.produce(topic, value, key=b"k", partition=0)
    assert producer.flush(30) == 0


def read_some(reader: PartitionReader, count: int) -> list[Record]:
    found: list[Record] = []

    def is_enough() -> bool:
        found.extend(reader.poll(0.1))
        return len(found) >= count

    wait_until(is_enough, f"{count} records are read")
    return found


def test_a_reader_that_was_idle_goes_on_and_commits(settings: Settings) -> None:
    publish(settings, topics.ROUNDS, b"a", b"b")
    reader = PartitionReader(settings, topics.ROUNDS, 0, group="idle")
    first, second = read_some(reader, 2)
    reader.commit(first)
    threading.Event().wait(3 * IDLE_MS / 1_000)
    publish(settings, topics.ROUNDS, b"c")
    reader.commit(second)
    assert [record.value for record in read_some(reader, 1)] == [b"c"]
    reader.close()

    successor = PartitionReader(settings, topics.ROUNDS, 0, group="idle")
    assert [record.value for record in read_some(successor, 1)] == [b"c"]
    successor.close()


def test_a_reader_outlives_its_broker(
    other_kafka: LocalStack, settings: Settings
) -> None:
    publish(settings, topics.CONTROL, b"a")
    reader = PartitionReader(settings, topics.CONTROL, 0)
    assert [record.value for record in read_some(reader, 1)] == [b"a"]
    other_kafka.kill(KAFKA)
    for _ in range(10):
        assert reader.poll(0.1) == []
    other_kafka.start_service(KAFKA)
    publish(settings, topics.CONTROL, b"b")
    assert [record.value for record in read_some(reader, 1)] == [b"b"]
    reader.close()


def test_a_partition_is_read_up_to_where_it_ended_then(settings: Settings) -> None:
    publish(settings, topics.AGENTS, b"a", b"b")
    found = []
    for record in read_partition(settings, topics.AGENTS, 0):
        found.append(record.value)
        publish(settings, topics.AGENTS, b"more")  # faster than who reads
    assert found == [b"a", b"b"]
    end = find_bounds(settings, topics.AGENTS, 0).end
    assert not list(read_partition(settings, topics.AGENTS, 0, start=end))


def test_a_follower_says_where_the_end_is(settings: Settings) -> None:
    publish(settings, topics.PROOFS, b"a")
    following = follow_partition(settings, topics.PROOFS, 0)
    seen = [next(following) for _ in range(2)]
    assert isinstance(seen[0], Record)
    assert seen[1] is END
    publish(settings, topics.PROOFS, b"b")
    later = next(item for item in following if isinstance(item, Record))
    assert (later.value, next(following)) == (b"b", END)
    following.close()


def test_an_empty_partition_has_an_end(settings: Settings) -> None:
    assert not list(read_partition(settings, topics.REWARDS, 0))


@pytest.mark.parametrize("topic", ["no-such-topic", "no topic's name"])
def test_a_topic_that_is_not_there_is_said(settings: Settings, topic: str) -> None:
    with pytest.raises(KafkaUnavailableError, match=topic):
        list(read_partition(settings, topic, 0))


def test_silence_is_no_end(settings: Settings) -> None:
    away = settings.model_copy(update={"bootstrap_servers": "127.0.0.1:1"})
    with pytest.raises(KafkaUnavailableError, match="silent for 1 s"):
        list(read_partition(away, topics.CONTROL, 0, timeout_s=1))
