"""A record counts as read when the work on it is done, however the stream ends."""

import asyncio
import subprocess
import sys
from collections import defaultdict
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from faust.types.tuples import TP, Message
from intervaltree import IntervalTree

from adapters.alive import EXIT_FAILED
from streams.app import GapConsumer, fail_stop, hold


@pytest.mark.parametrize("committed", [None, 4])
def test_offsets_without_a_record_do_not_hold_up_what_counts_as_read(committed):
    """After each transaction Kafka's marker takes an offset."""
    tp = TP("topic", 0)
    consumer: Any = object.__new__(GapConsumer)
    consumer._committed_offset = {tp: committed}
    consumer._gap = defaultdict(IntervalTree)
    consumer._acked = {tp: []}
    consumer._acked_index = defaultdict(set)
    records = [6, 7, 9, 12, 14, 15]

    async def read() -> None:
        for before, offset in pairwise([committed or 5, *records]):
            if offset - before > 1:
                await consumer._add_gap(tp, before + 1, offset)

    asyncio.run(read())
    consumer._acked[tp] += records[:-2]
    assert consumer._new_offset(tp) == 13
    consumer._committed_offset[tp] = 13
    assert consumer._new_offset(tp) is None, "14 was handed out and is not done"
    consumer._acked[tp] += records[-2:]
    assert consumer._new_offset(tp) == 16


def hand_out() -> SimpleNamespace:
    """Return a record as a stream of Faust hands it out: one reference is its own."""
    message = Message(
        "topic", 0, 7, 0.0, 0, None, b"key", b"value", None, tp=TP("topic", 0)
    )
    message.incref()
    return SimpleNamespace(message=message, ack=lambda: message.ack(None))


def test_a_stream_that_goes_on_acknowledges_after_the_work():
    events = hand_out(), hand_out()
    with fail_stop(*map(hold, events)):
        pass
    assert not any(event.message.acked for event in events)
    for event in events:
        event.ack()  # the stream's own, before it hands out the next
    assert all(event.message.acked for event in events)


def test_a_stream_that_closes_in_the_middle_of_the_work_does_not_count_it():
    event = hand_out()
    with fail_stop(hold(event)):
        event.ack()
        assert not event.message.acked
    assert event.message.acked, "the work was done all the same"


def test_work_that_is_cancelled_is_not_read():
    event = hand_out()

    def work() -> None:
        with fail_stop(hold(event)):
            event.ack()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        work()
    assert not event.message.acked


def test_work_that_fails_ends_the_process():
    program = """
import logging
from streams.app import fail_stop
logging.basicConfig(force=True)
with fail_stop():
    raise ValueError("no")
print("went on")
"""
    finished = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert finished.returncode == EXIT_FAILED
    assert "cannot go on" in finished.stderr
    assert not finished.stdout
