"""How the deciders follow the ledger: what they pass over, and what ends them."""

import asyncio
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

import streams.following
from adapters.kafka import Record, make_headers
from adapters.schema_registry import FramingError
from protocol.log import LogError
from schemas import codec
from schemas.reasons import Reason
from streams.following import Follower
from tests.builders import LogBuilder, make_key, unframe
from tests.unit.adapters.test_schema_registry import Client, make_registry


def found():
    log = LogBuilder()
    log.found()
    return log


GENESIS = found().genesis


@pytest.fixture
def log():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea")
    return log


def follow(records, monkeypatch):
    """Return the indexes of the leaves that a decider sees in these records."""

    def read(_settings, _topic, _partition, *, start):
        return records[start:]

    monkeypatch.setattr(streams.following, "read_partition", read)
    service = SimpleNamespace(
        table=dict, registry=make_registry(Client()), settings=None
    )
    follower = Follower(
        service, int, 0, lambda seen, leaf: (seen + 1, [leaf.sequenced.leaf_index])
    )
    found = []
    for record in records:
        event = SimpleNamespace(
            key=record.key,
            value=record.value,
            headers=dict(record.headers),
            message=SimpleNamespace(partition=0, offset=record.offset),
        )
        found += asyncio.run(follower.follow(event))
    return found


def test_a_state_that_kafka_does_not_take_is_not_cached(log, monkeypatch):
    """One federation's agents, by the ten thousand, would end it for all others."""
    table = {}
    service = SimpleNamespace(
        table=lambda: table, registry=make_registry(Client()), settings=None
    )
    follower = Follower(
        service, str, "", lambda seen, leaf: (seen + "x" * 1_000, [leaf])
    )
    size = []
    for record in renumbered(log.records):
        event = SimpleNamespace(
            key=record.key,
            value=record.value,
            headers=dict(record.headers),
            message=SimpleNamespace(partition=0, offset=record.offset),
        )
        assert asyncio.run(follower.follow(event))
        size.append(len(table[record.key]))
        monkeypatch.setattr(streams.following, "MAX_SNAPSHOT_BYTES", size[0])
    assert len(size) > 1
    assert set(size) == {size[0]}
    assert len(follower.get_state(record.key)) > size[0]


def signed_by(name: str, record: Record) -> Record:
    event = codec.decode(unframe(record.value))
    headers = make_headers(event, codec.encode(event), make_key(name), GENESIS, "")
    return replace(record, headers=tuple(headers))


def renumbered(records):
    return [replace(record, offset=i) for i, record in enumerate(records)]


@pytest.mark.parametrize(
    "foreign",
    [
        lambda record: replace(record, value=None),
        lambda record: replace(record, value=b"\1 not our framing"),
        lambda record: replace(record, headers=()),
        lambda record: signed_by("mallory", record),
    ],
    ids=["tombstone", "framing", "unsigned", "stranger"],
)
@pytest.mark.parametrize("place", [1, 2])
def test_a_strangers_record_changes_nothing_and_stops_nobody(
    log, foreign, place, monkeypatch, caplog
):
    records = [*log.records]
    records.insert(place, foreign(records[1]))
    found = follow(renumbered(records), monkeypatch)
    assert found == [*range(len(log.leaves))]
    assert "passing over offset" in caplog.text


def test_an_unknown_id_or_a_block_that_does_not_fit_ends_the_service(log, monkeypatch):
    unknown = replace(log.records[1], value=b"\0\xff\xff\xff\xff..")
    with pytest.raises(FramingError) as error:
        follow(renumbered([*log.records, unknown]), monkeypatch)
    assert error.value.reason == Reason.UNKNOWN_SCHEMA
    with pytest.raises(LogError):
        follow(renumbered([*log.records, log.records[1]]), monkeypatch)


@dataclass(frozen=True)
class Before:
    count: int = 0


@dataclass(frozen=True)
class After:
    count: int = 0
    named: int = 0


def test_a_state_of_another_version_is_read_from_the_log_again(log, monkeypatch):
    """What is new in it follows from leaves that the older one had read."""
    table, records = {}, renumbered(log.records)
    monkeypatch.setattr(
        streams.following,
        "read_partition",
        lambda _settings, _topic, _partition, *, start: records[start:],
    )
    service = SimpleNamespace(
        table=lambda: table, registry=make_registry(Client()), settings=None
    )

    def count_before(state, _leaf):
        return Before(state.count + 1), []

    def count_after(state, leaf):
        named = state.named + hasattr(leaf.sequenced.event, "agent_id")
        return After(state.count + 1, named), []

    for state_type, step, part in (
        (Before, count_before, records[:-1]),
        (After, count_after, records[-1:]),
    ):
        follower = Follower(service, state_type, state_type(), step)
        for record in part:
            event = SimpleNamespace(
                key=record.key,
                value=record.value,
                headers=dict(record.headers),
                message=SimpleNamespace(partition=0, offset=record.offset),
            )
            asyncio.run(follower.follow(event))
    state = follower.get_state(record.key)
    named = sum(hasattr(event, "agent_id") for event in log.leaves)
    assert named > 1
    assert state == After(len(log.leaves), named)
