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


class World:
    """The ledger's partition, and a service's directory.

    Attributes:
        records: What the partition holds.
        reads: The offsets from which it was read.
        num_commits: How often what was read was made to count.
    """

    def __init__(self, records, directory, monkeypatch):
        self.records, self.reads, self.num_commits = records, [], 0
        monkeypatch.setattr(streams.following, "read_partition", self._read)
        self._service = SimpleNamespace(
            cache_directory=directory,
            registry=make_registry(Client()),
            settings=None,
            commit=self._commit,
        )

    async def _commit(self, *, has_said, is_busy):
        self.num_commits += has_said and not is_busy

    def _read(self, _settings, _topic, _partition, *, start):
        self.reads.append(start)
        return [record for record in self.records if record.offset >= start]

    def start(self, state_type=int, step=None):
        """Return the follower of a process that starts."""
        step = step or (lambda seen, leaf: (seen + 1, [leaf.sequenced.leaf_index]))
        return Follower(self._service, state_type, state_type(), step)


def take(follower, records):
    """Return what follows from records, each of which is cached."""
    found = []
    for record in records:
        event = SimpleNamespace(
            key=record.key,
            value=record.value,
            headers=dict(record.headers),
            message=SimpleNamespace(partition=0, offset=record.offset),
        )
        found += asyncio.run(follower.follow(event))
        asyncio.run(follower.keep(record.key))
        follower._keep_after_s.clear()
    return found


def leaves_of(record):
    """Return the indexes of a block's leaves."""
    block = codec.decode(unframe(record.value))
    return range(block.first_leaf_index, block.first_leaf_index + len(block.leaves))


def follow(records, directory, monkeypatch):
    """Return the indexes of the leaves that a decider sees in these records."""
    return take(World(records, directory, monkeypatch).start(), records)


def test_a_service_that_starts_reads_on_from_its_cache(log, tmp_path, monkeypatch):
    records = renumbered(log.records)
    world = World(records, tmp_path, monkeypatch)
    seen = take(world.start(), records[:-2])
    assert seen
    assert world.reads == [], "nobody reads what it has seen"
    # It was killed before it cached the record after those: that one is read again,
    # and nothing is said of it.
    assert take(world.start(), records[-1:]) == [*leaves_of(records[-1])]
    assert world.reads == [len(records) - 2]


def test_a_cache_that_is_ahead_is_of_no_use(log, tmp_path, monkeypatch):
    """A transaction was aborted: its record comes again."""
    records = renumbered(log.records)
    world = World(records, tmp_path, monkeypatch)
    everything = take(world.start(), records)
    again = take(world.start(), records[-1:])
    assert again == [*leaves_of(records[-1])]
    assert again == everything[-len(again) :]
    assert world.reads == [0]


def test_a_cache_of_another_founding_is_of_no_use(log, tmp_path, monkeypatch, caplog):
    """Kafka was made anew, and the federation founded again under its name."""
    records = renumbered(log.records)
    take(World(records, tmp_path, monkeypatch).start(), records)
    other = LogBuilder(num_parameters=7)
    other.found()
    for name in ("ada", "bea", "cleo", "dora"):
        other.admit(name)
    world = World(renumbered(other.records), tmp_path, monkeypatch)
    assert other.genesis != log.genesis
    later = world.records[len(records) :]
    assert take(world.start(), later)[-1] == len(other.leaves) - 1
    assert "to another log" in caplog.text
    assert world.reads[-1] == 0


def test_a_cache_that_cannot_be_written_or_read_stops_nobody(
    log, tmp_path, monkeypatch, caplog
):
    records = renumbered(log.records)
    directory = tmp_path / "away"
    assert follow(records, directory, monkeypatch) == [*range(len(log.leaves))]
    assert "the state is not cached" in caplog.text
    world = World(records, tmp_path, monkeypatch)
    take(world.start(), records[:-1])
    (cached,) = tmp_path.glob("*.state")
    cached.write_bytes(cached.read_bytes()[:-1])
    assert take(world.start(), records[-1:]) == [*leaves_of(records[-1])]
    assert "of no use" in caplog.text
    assert world.reads == [0]


def test_a_state_is_cached_now_and_then(log, tmp_path, monkeypatch):
    records = renumbered(log.records)
    world = World(records, tmp_path, monkeypatch)
    follower = world.start()
    key = records[0].key
    take(follower, records)
    assert world.num_commits == len(records), "nothing is cached that may come again"
    asyncio.run(follower.keep(key))
    first = [path.read_bytes() for path in tmp_path.glob("*.state")]
    follower._known[key] = replace(follower._known[key], state=-1)
    asyncio.run(follower.keep(key))
    assert [path.read_bytes() for path in tmp_path.glob("*.state")] == first
    follower._keep_after_s[key] = 0.0
    asyncio.run(follower.keep(key))
    assert [path.read_bytes() for path in tmp_path.glob("*.state")] != first


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
    log, foreign, place, tmp_path, monkeypatch, caplog
):
    records = [*log.records]
    records.insert(place, foreign(records[1]))
    found = follow(renumbered(records), tmp_path, monkeypatch)
    assert found == [*range(len(log.leaves))]
    assert "passing over offset" in caplog.text


def test_an_unknown_id_or_a_block_that_does_not_fit_ends_the_service(
    log, tmp_path, monkeypatch
):
    unknown = replace(log.records[1], value=b"\0\xff\xff\xff\xff..")
    with pytest.raises(FramingError) as error:
        follow(renumbered([*log.records, unknown]), tmp_path, monkeypatch)
    assert error.value.reason == Reason.UNKNOWN_SCHEMA
    with pytest.raises(LogError):
        follow(renumbered([*log.records, log.records[1]]), tmp_path, monkeypatch)


@dataclass(frozen=True)
class Before:
    count: int = 0


@dataclass(frozen=True)
class After:
    count: int = 0
    named: int = 0


def test_a_state_of_another_version_is_read_from_the_log_again(
    log, tmp_path, monkeypatch
):
    """What is new in it follows from leaves that the older one had read."""
    records = renumbered(log.records)
    world = World(records, tmp_path, monkeypatch)

    def count_before(state, _leaf):
        return Before(state.count + 1), []

    def count_after(state, leaf):
        named = state.named + hasattr(leaf.sequenced.event, "agent_id")
        return After(state.count + 1, named), []

    take(world.start(Before, count_before), records[:-1])
    follower = world.start(After, count_after)
    take(follower, records[-1:])
    named = sum(hasattr(event, "agent_id") for event in log.leaves)
    assert named > 1
    assert follower.get_state(records[-1].key) == After(len(log.leaves), named)
