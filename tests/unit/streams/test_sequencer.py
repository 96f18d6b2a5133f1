"""What the sequencer demands of its topics before it writes."""

import asyncio
from types import SimpleNamespace
from unittest.mock import AsyncMock, MagicMock

import pytest

import streams.sequencer
from adapters.settings import Settings
from adapters.topic_watch import Ends
from schemas import topics
from streams.sequencer import InputsReplacedError, Sequencer
from tests.builders import LogBuilder, make_key
from tests.unit.adapters import test_kafka_log as test_ledger_reading
from tests.unit.adapters.test_schema_registry import Client, make_registry
from tests.unit.streams.test_following import signed_by

SETTINGS = Settings(
    bootstrap_servers="127.0.0.1:1", schema_registry_url="http://127.0.0.1:1"
)


@pytest.fixture
def sequencer():
    """Return one whose service has neither Kafka nor a registry."""
    service = MagicMock(
        settings=SETTINGS,
        num_partitions=1,
        key=make_key("SEQUENCER"),
        registry=make_registry(Client()),
    )
    return Sequencer(service)


@pytest.fixture
def log():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea")
    return log


forged = test_ledger_reading.forged


@pytest.fixture
def start(sequencer, log, monkeypatch):
    """Start on this ledger, and inputs that end there; returns the logs by key."""

    def start(records, changes=()):
        offsets = log.state.admission.offsets
        ends = {
            place: Ends(0, end, end)
            for place in sequencer._places
            for end in [dict(changes).get(place.topic, offsets.get(str(place), -1) + 1)]
        }
        monkeypatch.setattr(streams.sequencer, "find_ends", lambda *_: ends)
        monkeypatch.setattr(
            streams.sequencer, "read_partition", lambda *_, **__: records
        )
        states, _ = sequencer._recover(0)
        return states

    return start


def test_it_goes_on_where_the_ledger_ends(start, log):
    states = start(log.records, {topics.AGENTS: 10**6})
    assert states[b"clinics"].log == log.state.log
    assert states[b"clinics"].admission.offsets == log.state.admission.offsets


@pytest.mark.parametrize("topic", [topics.CONTROL, topics.AGENTS])
def test_an_input_topic_that_is_shorter_than_the_ledger_has_it_is_refused(
    start, log, topic
):
    last = log.state.admission.offsets[f"{topic}/0"]
    with pytest.raises(InputsReplacedError, match=f"{topic}/0 ends at {last},"):
        start(log.records, {topic: last})


def test_a_strangers_log_of_a_name_does_not_take_it(start, log, forged):
    """Nor does a block that another signed stop a living log."""
    assert start([forged]) == {}
    states = start([forged, *log.records, signed_by("mallory", log.records[1])])
    assert states[b"clinics"].log == log.state.log


def test_a_batch_of_a_thousand_names_waits_for_no_commit(sequencer):
    """Whoever invents names makes nobody wait for as many answers of Kafka."""
    service = sequencer._service
    service.send, service.send_raw = AsyncMock(), AsyncMock()
    service.commit = AsyncMock()
    sequencer._states = {0: {}}
    events = [
        SimpleNamespace(
            key=b"nobody-%d" % number,
            value=b"junk",
            headers={},
            message=SimpleNamespace(topic=topics.AGENTS, partition=0, offset=number),
        )
        for number in range(1_000)
    ]
    asyncio.run(sequencer.process(events))
    assert service.send.await_count == 1_000
    assert service.commit.await_count == 0
