"""What readers of Kafka ask about a partition beside its records."""

import asyncio
import threading
from concurrent.futures import Future, wait
from types import SimpleNamespace

import pytest
from aiokafka.structs import ConsumerRecord
from confluent_kafka import KafkaException

import adapters.kafka
import adapters.kafka_log
import cli.audit
from adapters.kafka import (
    Bounds,
    KafkaUnavailableError,
    PartitionReader,
    find_bounds,
    read_partition,
)
from adapters.settings import Settings
from schemas import topics

SETTINGS = Settings(
    bootstrap_servers="127.0.0.1:1", schema_registry_url="http://127.0.0.1:1"
)


class Broker:
    """Answers what it was told to, and counts who has not let go of it."""

    def __init__(self, bounds):
        self.bounds = bounds
        self.num_open = 0

    def make_consumer(self, *_args, **_options):
        self.num_open += 1
        return self

    def get_watermark_offsets(self, partition, *, timeout):
        assert timeout > 0
        bounds = self.bounds[partition.topic]
        if isinstance(bounds, Exception):
            raise bounds
        return bounds

    def close(self):
        self.num_open -= 1


@pytest.fixture
def broker(monkeypatch):
    broker = Broker({topics.LEDGER: (2, 9)})
    monkeypatch.setattr(adapters.kafka, "make_consumer", broker.make_consumer)
    return broker


def test_a_partition_has_a_beginning_and_an_end(broker):
    assert find_bounds(SETTINGS, topics.LEDGER, 0) == Bounds(first=2, end=9)
    assert broker.num_open == 0


@pytest.mark.parametrize("answer", [None, KafkaException("away")])
def test_a_broker_that_does_not_say_is_away(broker, answer):
    broker.bounds[topics.LEDGER] = answer
    with pytest.raises(
        KafkaUnavailableError, match=r"at 127.0.0.1:1 \(MOOT_BOOTSTRAP_SERVERS\)"
    ):
        find_bounds(SETTINGS, topics.LEDGER, 0)
    assert broker.num_open == 0


def test_an_audit_is_told_where_each_topic_begins(broker, monkeypatch):
    broker.bounds |= {topics.CHECKPOINTS: (0, 5), topics.ATTESTATIONS: (3, 3)}
    monkeypatch.setattr(adapters.kafka_log, "find_partition", lambda *_: 0)
    monkeypatch.setattr(cli.audit, "SETTLE_S", 0.0)
    source = cli.audit.KafkaSource(SETTINGS, "clinics", with_blobs=False)
    streams = source.open({})
    assert streams.settled_offset == 9
    assert streams.first_offsets == {
        topics.LEDGER: 2,
        topics.CHECKPOINTS: 0,
        topics.ATTESTATIONS: 3,
    }


class SlowConsumer:
    """Has three records, and hands them out when it is told to."""

    def __init__(self):
        self.may_answer = threading.Event()
        self._fetcher = SimpleNamespace(error_future=Future())

    async def getmany(self, place, **_options):
        await asyncio.to_thread(self.may_answer.wait, 10)
        return {place: [make_record(place, offset) for offset in range(3)]}

    async def position(self, _place):
        return 3

    def last_stable_offset(self, _place):
        return 3

    async def stop(self):
        pass


def make_record(place, offset):
    return ConsumerRecord(*place, offset, 0, 0, b"key", b"value", None, 3, 5, ())


@pytest.fixture
def slow(monkeypatch):
    consumer = SlowConsumer()

    async def connect(_self):
        return consumer

    monkeypatch.setattr(PartitionReader, "_connect", connect)
    return consumer


def test_a_reader_is_where_the_records_are_that_it_gave(slow):
    reader = PartitionReader(SETTINGS, topics.UPDATES, 0)
    assert reader.poll(0.01) == []
    slow.may_answer.set()
    wait({reader._asked}, 10)
    assert not reader.is_at_end
    assert reader.position == -1
    assert [record.offset for record in reader.poll(10)] == [0, 1, 2]
    assert reader.is_at_end
    reader.close()


def test_what_comes_just_after_a_poll_is_read_too(slow, monkeypatch):
    poll = PartitionReader.poll

    def poll_too_early(reader, timeout_s):
        found = poll(reader, timeout_s)
        if not found:
            slow.may_answer.set()
            wait({reader._asked}, 10)
        return found

    monkeypatch.setattr(PartitionReader, "poll", poll_too_early)
    assert len(list(read_partition(SETTINGS, topics.UPDATES, 0))) == 3
