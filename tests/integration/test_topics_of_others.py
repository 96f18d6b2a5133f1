"""Topics that somebody else made, on a real broker: named, refused, cured when told."""

import json
import os
import subprocess
import sys

import pytest
from confluent_kafka import Producer
from confluent_kafka.admin import ConfigResource
from confluent_kafka.cimpl import NewTopic

from adapters.kafka import (
    KafkaUnavailableError,
    count_partitions,
    create_topics,
    find_bounds,
    make_admin,
)
from adapters.settings import Settings
from adapters.topic_config import TopicConfigError, check_topics, demand_topics
from schemas import topics
from tests.integration.harness import wait_until
from tests.integration.other_kafka import ImpatientKafka
from tests.paths import ROOT

OTHERS = {
    topics.LEDGER: {"cleanup.policy": "compact"},
    topics.CHECKPOINTS: {"retention.ms": "604800000"},
    topics.ATTESTATIONS: {"retention.bytes": "1000000"},
    topics.CONTROL: {"max.message.bytes": "1000"},
    # A broker's defaults: what a record's producer says is when it was made.
    topics.UPDATES: {"retention.ms": "604800000"},
}
FAULTS = {
    (topics.LEDGER, "cleanup.policy"),
    (topics.CHECKPOINTS, "retention.ms"),
    (topics.ATTESTATIONS, "retention.bytes"),
    (topics.CONTROL, "max.message.bytes"),
    (topics.UPDATES, "message.timestamp.type"),
}


@pytest.fixture
def kafka(other_kafka: ImpatientKafka) -> Settings:
    """A Kafka without topics."""
    other_kafka.delete_topics()
    return other_kafka.settings


def moot(kafka: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "MOOT_BOOTSTRAP_SERVERS": kafka.bootstrap_servers,
        "MOOT_SCHEMA_REGISTRY_URL": kafka.schema_registry_url,
        "MOOT_STATE_DIRECTORY": str(kafka.state_directory),
    }
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def make(kafka: Settings, name: str, partitions: int = 1, **config: str) -> None:
    options = {key.replace("_", "."): value for key, value in config.items()}
    new = NewTopic(name, partitions, 1, config=options)
    admin = make_admin(kafka)  # what it was asked ends with it
    admin.create_topics([new])[name].result(30)


def read_config(kafka: Settings, topic: str, name: str) -> str:
    resource = ConfigResource(ConfigResource.Type.TOPIC, topic)
    admin = make_admin(kafka)
    entries = admin.describe_configs([resource])[resource].result(30)
    return str(entries[name].value)


def fatal(kafka: Settings) -> set[tuple[str, str]]:
    return {(p.topic, p.name) for p in check_topics(kafka) if p.weight == "FATAL"}


def test_asking_makes_no_topic(kafka: Settings) -> None:
    with pytest.raises(KafkaUnavailableError):
        count_partitions(kafka, topics.LEDGER)
    assert topics.LEDGER not in make_admin(kafka).list_topics(timeout=30).topics
    with pytest.raises(TopicConfigError, match="moot topics create"):
        demand_topics(kafka)


def test_topics_of_others_are_named_refused_and_cured_if_told(
    kafka: Settings,
) -> None:
    for name, config in OTHERS.items():
        make(kafka, name, **({"max.message.bytes": "4194304"} | config))
    make(kafka, topics.PROOFS, 3)

    created = moot(kafka, "topics", "create")
    assert created.returncode == 1
    assert set(created.stdout.split()) == topics.EVENTS.keys() - {
        *OTHERS,
        topics.PROOFS,
    }
    for topic, name in FAULTS:
        assert f"FATAL: {topic}: {name} is " in created.stderr
        (cure,) = [
            line for line in created.stderr.splitlines() if f" {topic} --add" in line
        ]
        assert f"{name}=" in cure
    assert f"FATAL: {topics.PROOFS}: number of partitions is 3" in created.stderr
    assert read_config(kafka, topics.LEDGER, "cleanup.policy") == "compact", "untold"

    for service in (
        ("sequencer",),
        ("rounds",),
        ("timer", "--federation", "clinics"),
    ):
        refused = moot(kafka, "serve", *service)
        assert refused.returncode != 0
        assert "Traceback" not in refused.stderr
        for topic, name in FAULTS:
            assert f"{topic}: {name} is " in refused.stderr, service

    repaired = moot(kafka, "topics", "create", "--repair")
    assert repaired.returncode == 1, "no configuration takes partitions away"
    assert fatal(kafka) == {(topics.PROOFS, "number of partitions")}
    admin = make_admin(kafka)
    admin.delete_topics([topics.PROOFS])[topics.PROOFS].result(30)
    wait_until(
        lambda: topics.PROOFS not in admin.list_topics(timeout=30).topics,
        "it is gone",
    )
    again = moot(kafka, "topics", "create")
    assert (again.returncode, again.stdout.split()) == (0, [topics.PROOFS])
    demand_topics(kafka)
    checked = moot(kafka, "topics", "check", "--json")
    assert (checked.returncode, json.loads(checked.stdout)) == (0, [])


def test_a_record_stamped_1970_waits_for_the_sequencer(kafka: Settings) -> None:
    """A device without a clock battery: Kafka acknowledged what it said."""
    create_topics(kafka)
    make(kafka, "as.before", message_timestamp_type="CreateTime")
    producer = Producer({"bootstrap.servers": kafka.bootstrap_servers, "log_level": 2})
    refused: list[object] = []
    for topic in (topics.UPDATES, "as.before"):
        producer.produce(
            topic,
            b"from a device",
            timestamp=1_000,
            on_delivery=lambda error, _: error and refused.append(error),
        )
    assert producer.flush(30) == 0
    assert not refused
    # That the same record is deleted elsewhere shows that the broker has looked.
    wait_until(lambda: find_bounds(kafka, "as.before", 0) == (1, 1), "Kafka deletes it")
    assert find_bounds(kafka, topics.UPDATES, 0) == (0, 1)
