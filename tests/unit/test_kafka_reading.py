"""What readers of Kafka ask about a partition beside its records."""

import pytest
from confluent_kafka import KafkaException

import adapters.kafka
import adapters.ledger
import cli.audit
from adapters.kafka import Bounds, KafkaUnavailableError, find_bounds
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
    with pytest.raises(KafkaUnavailableError, match="could not find the bounds"):
        find_bounds(SETTINGS, topics.LEDGER, 0)
    assert broker.num_open == 0


def test_an_audit_is_told_where_each_topic_begins(broker, monkeypatch):
    broker.bounds |= {topics.CHECKPOINTS: (0, 5), topics.ATTESTATIONS: (3, 3)}
    monkeypatch.setattr(adapters.ledger, "find_partition", lambda *_: 0)
    monkeypatch.setattr(cli.audit, "SETTLE_S", 0.0)
    source = cli.audit.KafkaSource(SETTINGS, "clinics", with_blobs=False)
    streams = source.open({})
    assert streams.settled_offset == 9
    assert streams.first_offsets == {
        topics.LEDGER: 2,
        topics.CHECKPOINTS: 0,
        topics.ATTESTATIONS: 3,
    }
