"""Conclusions from where a partition begins, may be read, and ends."""

from typing import Any

import pytest

from adapters import topic_watch
from adapters.kafka import KafkaUnavailableError, make_admin
from adapters.settings import Settings
from adapters.topic_config import Problem, Weight
from adapters.topic_watch import Ends, HoldWatch, Place, find_ends, find_lost
from cli.stack.processes import LOOPBACK, find_free_ports
from consumers.node import kafka as node_kafka
from consumers.node.feed import AlertCode, Alerts

UPDATES, PROOFS = Place("moot.updates", 0), Place("moot.proofs", 3)


def test_an_open_transaction_holds_when_it_stays():
    watch = HoldWatch(after_s=10)
    ends = {UPDATES: Ends(0, 5, 9), PROOFS: Ends(0, 4, 4)}
    assert watch.see(ends, 100.0) == []
    assert watch.see(ends, 109.9) == []
    (hold,) = watch.see(ends, 110.0)
    assert (hold.place, hold.offset, hold.since_s) == (UPDATES, 5, 100.0)
    assert watch.see({UPDATES: Ends(0, 5, 50)}, 200.0) == [hold], "more waits"
    assert watch.see({UPDATES: Ends(0, 50, 50)}, 201.0) == []


def test_transactions_that_end_hold_nobody():
    """Ours follow each other; something is always open."""
    watch = HoldWatch(after_s=10)
    for second in range(100):
        ends = {UPDATES: Ends(0, second, second + 3)}
        assert watch.see(ends, float(second)) == []


def test_the_next_open_transaction_begins_anew():
    watch = HoldWatch(after_s=10)
    watch.see({UPDATES: Ends(0, 5, 9)}, 0.0)
    assert watch.see({UPDATES: Ends(0, 7, 9)}, 11.0) == []
    assert [hold.offset for hold in watch.see({UPDATES: Ends(0, 7, 9)}, 21.0)] == [7]


def test_a_hold_names_the_command_that_ends_it():
    watch = HoldWatch(after_s=0)
    (hold,) = watch.see({PROOFS: Ends(0, 5, 9)}, 1.0)
    assert "moot.proofs/3" in str(hold)
    cure = hold.describe_cure("kafka.example:9092")
    assert "--topic moot.proofs --partition 3 --start-offset 5" in cure


@pytest.mark.parametrize(
    ("first", "nexts", "lost"),
    [
        (0, {}, None),
        (7, {UPDATES: 7}, None),
        (7, {UPDATES: 9}, None),
        (7, {UPDATES: 4}, (4, 7)),
        (7, {}, (0, 7)),
        (7, {PROOFS: 9}, (0, 7)),
    ],
)
def test_what_was_deleted_unread_is_lost(first, nexts, lost):
    found = find_lost({UPDATES: Ends(first, 9, 9)}, nexts)
    assert [(item.first, item.end) for item in found] == ([lost] if lost else [])
    for item in found:
        assert f"moot.updates/0: offsets {lost[0]} to 6 " in str(item)


def test_a_dead_kafka_is_waited_for_once(monkeypatch):
    (port,) = find_free_ports(1)
    servers = f"{LOOPBACK}:{port}"
    admin = make_admin(Settings(bootstrap_servers=servers, schema_registry_url=""))
    waits = []

    def spy(ask, name):
        def asked(*args, **kwargs):
            waits.append(kwargs[name])
            return ask(*args, **kwargs)

        return asked

    for ask, name in (("list_offsets", "request_timeout"), ("list_topics", "timeout")):
        monkeypatch.setattr(admin, ask, spy(getattr(admin, ask), name))
    monkeypatch.setattr(topic_watch, "ANSWER_TIMEOUT_S", 0.5)
    with pytest.raises(KafkaUnavailableError, match="does not say where"):
        find_ends(admin, [UPDATES])
    assert waits[0] == 0.5
    assert sum(waits[1:]) < 0.5 / 2


def test_an_alert_that_lasts_ends_with_its_cause():
    alerts = Alerts(lambda: 1.0)
    alerts.add(AlertCode.FORK, "one")
    alerts.keep(AlertCode.KAFKA_HELD, ["a", "b"])
    alerts.keep(AlertCode.KAFKA_HELD, ["b", "c"])
    assert [a.detail for a in alerts.all()] == ["one", "b", "c"]
    alerts.keep(AlertCode.KAFKA_HELD, [])
    assert alerts.codes() == {AlertCode.FORK}


def test_many_alerts_of_a_kind_hide_no_other():
    alerts = Alerts(lambda: 1.0)
    for number in range(1_000):
        alerts.add(AlertCode.KAFKA_REPLAYED, str(number))
    alerts.add(AlertCode.FORK, "one")
    assert AlertCode.FORK in alerts.codes()
    assert len(alerts.all()) < 100


def test_ledger_nodes_tell_of_configurations_that_lose_records(monkeypatch):
    def problem(topic, weight):
        return Problem(
            topic=topic,
            name="cleanup.policy",
            found="compact",
            wanted="delete",
            why="compaction keeps the last record alone",
            weight=weight,
        )

    found = [problem("moot.ledger", Weight.FATAL)]
    found.append(problem("moot.proofs", Weight.WARNING))
    monkeypatch.setattr(node_kafka, "check_topics", lambda _: found)
    source: Any = object.__new__(node_kafka.KafkaSource)
    source._settings = None
    assert source._find_misconfigured() == (str(found[0]),)
