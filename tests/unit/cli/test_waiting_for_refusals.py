"""What an operator's command reads of refusals, of which anybody can cause many."""

import pytest

import cli.operate
from adapters.kafka import Bounds, Record
from cli.stack.processes import StackError
from schemas import events as e
from schemas import topics
from tests.builders import frame
from tests.unit.adapters.test_schema_registry import Client, make_registry

POSITION = (topics.CONTROL, 0, 77)
END = 1_000_000


def refusal_of(position):
    topic, partition, offset = position
    return e.EventRejected(
        federation_id="",
        reason="UNKNOWN_FEDERATION",
        detail="nobody's",
        source_topic=topic,
        source_partition=partition,
        source_offset=offset,
        value_sha256=bytes(32),
        value_size_bytes=0,
        value=b"",
    )


def record_at(offset, event):
    return Record(topics.REJECTED, 0, offset, b"", frame(event), ())


def test_a_refusal_is_found_among_the_latest_and_nothing_is_read_twice(monkeypatch):
    kept = [record_at(END - 1, refusal_of((topics.CONTROL, 0, 76)))]
    starts = []

    def read(_settings, _topic, _partition, *, start):
        starts.append(start)
        return (record for record in kept if record.offset >= start)

    monkeypatch.setattr(cli.operate, "count_partitions", lambda *_: 1)
    monkeypatch.setattr(cli.operate, "find_bounds", lambda *_: Bounds(5, END))
    monkeypatch.setattr(cli.operate, "read_partition", read)
    registry, nexts = make_registry(Client()), {}

    cli.operate._look_for_refusal(None, registry, POSITION, nexts)
    cli.operate._look_for_refusal(None, registry, POSITION, nexts)
    kept.append(record_at(END, refusal_of(POSITION)))
    with pytest.raises(StackError, match="UNKNOWN_FEDERATION"):
        cli.operate._look_for_refusal(None, registry, POSITION, nexts)
    assert starts == [END - cli.operate.LATEST_REFUSALS, END, END]
