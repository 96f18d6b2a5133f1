"""Topics' configuration compared with what it must be: what is fatal, and its cure."""

from dataclasses import replace

import pytest

import adapters.topic_config
from adapters.settings import Settings
from adapters.topic_config import (
    FoundTopic,
    TopicConfigError,
    Weight,
    demand_topics,
    describe,
    find_problems,
    is_fatal,
)
from schemas import topics

SETTINGS = Settings(
    bootstrap_servers="kafka.example:9092", schema_registry_url="http://127.0.0.1:1"
)
DAY_MS = 86_400_000
FAR = str(2**63 - 1)
"""Kafka's default bound of a stamp's age: none."""


def found(topic="", *, num_partitions=1, num_replicas=1, **changes):
    """Return topics as we make them, but for one."""
    changes = {name.replace("_", "."): value for name, value in changes.items()}
    as_made = {
        name: FoundTopic(1, num_replicas, {**topics.config_of(name), **IN_SYNC})
        for name in topics.EVENTS
    }
    if topic:
        config = as_made[topic].config | changes
        as_made[topic] = FoundTopic(num_partitions, num_replicas, config)
    return as_made


IN_SYNC = {"min.insync.replicas": "1", "message.timestamp.before.max.ms": FAR}


def test_topics_as_we_make_them_are_right():
    assert find_problems(found()) == []


LOSES_EVENTS = [topic for topic in topics.EVENTS if topic != topics.HEARTBEATS]


@pytest.mark.parametrize("topic", LOSES_EVENTS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("cleanup_policy", "compact"),
        ("cleanup_policy", "compact,delete"),
        ("cleanup_policy", "delete, compact"),
        ("retention_bytes", "1073741824"),
        ("retention_ms", "60000"),
        ("retention_ms", "0"),
        ("max_message_bytes", "1000"),
        ("num_partitions", 3),
    ],
)
def test_what_loses_records_is_fatal_on_every_topic(topic, name, value):
    if topic == topics.LEDGER and name == "num_partitions":
        return  # the others are compared with it: a test of their own
    problems = find_problems(found(topic, **{name: value}))
    assert [(p.topic, p.weight) for p in problems] == [(topic, Weight.FATAL)]
    assert topic in str(problems[0])
    assert str(value) in str(problems[0])


@pytest.mark.parametrize(
    "changes",
    [
        {"cleanup_policy": "delete"},
        {"num_partitions": 3},
        {"num_partitions": 0},
    ],
)
def test_nothing_is_lost_for_want_of_a_heartbeat(changes):
    problems = find_problems(found(topics.HEARTBEATS, **changes))
    assert [(p.topic, p.weight) for p in problems] == [
        (topics.HEARTBEATS, Weight.WARNING)
    ]
    assert not is_fatal(problems)


@pytest.mark.parametrize("topic", topics.KEPT_FOR_EVER)
def test_the_record_has_no_end(topic):
    ten_years = str(3_650 * DAY_MS)
    (problem,) = find_problems(found(topic, retention_ms=ten_years))
    assert problem.weight == Weight.FATAL
    assert problem.setting == "-1"


@pytest.mark.parametrize("topic", topics.SEQUENCED_TOPICS)
def test_an_input_may_expire_but_not_within_a_day(topic):
    assert find_problems(found(topic, retention_ms=str(7 * DAY_MS))) == []
    assert is_fatal(find_problems(found(topic, retention_ms=str(DAY_MS - 1))))


@pytest.mark.parametrize(
    ("retention_ms", "before_ms", "fatal"),
    [
        (str(7 * DAY_MS), FAR, True),
        (str(7 * DAY_MS), str(7 * DAY_MS), True),
        (str(7 * DAY_MS), str(5 * DAY_MS), False),
        (str(7 * DAY_MS), None, True),
        ("-1", FAR, False),
    ],
)
def test_a_clock_of_1970_may_not_decide_how_long_a_record_is_kept(
    retention_ms, before_ms, fatal
):
    topic = topics.UPDATES
    problems = find_problems(
        found(
            topic,
            retention_ms=retention_ms,
            message_timestamp_type="CreateTime",
            message_timestamp_before_max_ms=before_ms,
        )
    )
    (problem,) = problems
    assert problem.name == "message.timestamp.type"
    assert is_fatal(problems) == fatal


def test_partitions_are_compared_with_the_ledgers():
    problems = find_problems(found(topics.LEDGER, num_partitions=3))
    assert {p.topic for p in problems} == topics.EVENTS.keys() - {topics.LEDGER}
    assert all("--partitions 3" in p.why for p in problems)
    (many,) = find_problems(found(topics.UPDATES, num_partitions=3))
    assert "made again" in many.why, "Kafka takes no partition away"


def test_replicas_that_lag_may_not_lead():
    problems = find_problems(
        found(topics.LEDGER, unclean_leader_election_enable="true", num_replicas=2)
    )
    assert is_fatal(problems)
    alone = found(topics.LEDGER, unclean_leader_election_enable="true")
    assert find_problems(alone) == [], "a single replica never lags"


def test_replicas_and_how_many_acknowledge():
    many = found(num_replicas=3)
    problems = find_problems(many, num_brokers=3)
    assert {(p.name, p.weight, p.setting) for p in problems} == {
        ("min.insync.replicas", Weight.WARNING, "2")
    }
    few = find_problems(found(), num_brokers=3)
    assert {(p.name, p.weight) for p in few} == {("number of replicas", Weight.WARNING)}
    assert find_problems(found(), num_brokers=1) == []
    assert is_fatal(find_problems(found(topics.LEDGER, min_insync_replicas="2")))


def test_a_larger_limit_and_another_compression_are_named():
    big = find_problems(found(topics.UPDATES, max_message_bytes="1048588"))
    packed = find_problems(found(topics.UPDATES, compression_type="zstd"))
    assert [p.weight for p in big + packed] == [Weight.WARNING] * 2


def test_a_topic_without_a_policy_deletes_nothing():
    found_one = found(topics.LEDGER, cleanup_policy="", retention_ms="60000")
    assert find_problems(found_one) == []


def test_a_missing_topic_is_named_with_the_command_that_makes_it():
    without = found() | {topics.REJECTED: FoundTopic(0)}
    (problem,) = find_problems(without)
    assert problem.weight == Weight.FATAL
    assert "moot topics create" in problem.why


def test_what_kafka_does_not_say_is_said():
    for unknown in (FoundTopic(None), FoundTopic(1)):
        problems = find_problems(found() | {topics.UPDATES: unknown})
        assert problems
        assert not is_fatal(problems)
        assert any("DescribeConfigs" in p.why for p in problems)


@pytest.mark.parametrize("name", topics.config_of(topics.LEDGER))
@pytest.mark.parametrize("value", [None, "?"])
def test_a_key_that_is_not_reported_stops_nobody(name, value):
    """Managed clusters hide keys, and others mean something else by a value."""
    if (name, value) == ("message.timestamp.type", "?"):
        value = None
    as_made = found()
    config = {**as_made[topics.LEDGER].config, name: value}
    as_made[topics.LEDGER] = replace(as_made[topics.LEDGER], config=config)
    problems = find_problems(as_made)
    assert not is_fatal(problems)
    if value is None:
        assert name in {p.name for p in problems}


def test_the_cure_is_a_command_for_each_topic():
    problems = find_problems(
        found(topics.LEDGER, cleanup_policy="compact", retention_ms="1")
        | {topics.UPDATES: found(topics.UPDATES, retention_ms="1")[topics.UPDATES]}
    )
    lines = describe(problems, SETTINGS).splitlines()
    assert "moot topics create --repair" in "\n".join(lines)
    begin = (
        "  kafka-configs.sh --bootstrap-server kafka.example:9092 --alter "
        "--entity-type topics --entity-name "
    )
    retention = f"retention.ms={topics.INPUT_RETENTION_MS}"
    assert lines[-2:] == [
        f"{begin}moot.updates --add-config {retention}",
        f"{begin}moot.ledger --add-config cleanup.policy=delete,retention.ms=-1",
    ]


def test_services_refuse_what_is_fatal_and_warn_of_the_rest(monkeypatch, caplog):
    answers = [
        find_problems(found(topics.UPDATES, max_message_bytes="1048588")),
        find_problems(found(topics.LEDGER, cleanup_policy="compact")),
    ]
    monkeypatch.setattr(adapters.topic_config, "check_topics", lambda _: answers.pop(0))
    demand_topics(SETTINGS)
    assert "max.message.bytes is 1048588" in caplog.text
    with pytest.raises(TopicConfigError, match=r"cleanup\.policy is compact"):
        demand_topics(SETTINGS)


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, None),
        ("delete", "delete"),
        ("\x1b[31mdelete", r"'\x1b[31mdelete'"),
        ("x" * 10_000, "x" * 200),
    ],
)
def test_a_broker_writes_nothing_to_a_terminal(value, shown):
    assert adapters.topic_config._clean(value) == shown
