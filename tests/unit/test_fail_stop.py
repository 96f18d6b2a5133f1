"""A record counts as read when the work on it is done, however the stream ends."""

import asyncio
import subprocess
import sys
from types import SimpleNamespace

import pytest
from faust.types.tuples import TP, Message

from streams.app import EXIT_FAILED, fail_stop


def hand_out() -> SimpleNamespace:
    """Return a record as a stream of Faust hands it out: one reference is its own."""
    message = Message(
        "topic", 0, 7, 0.0, 0, None, b"key", b"value", None, tp=TP("topic", 0)
    )
    message.incref()
    return SimpleNamespace(message=message, ack=lambda: message.ack(None))


def test_a_stream_that_goes_on_acknowledges_after_the_work():
    events = hand_out(), hand_out()
    with fail_stop(*events):
        pass
    assert not any(event.message.acked for event in events)
    for event in events:
        event.ack()  # the stream's own, before it hands out the next
    assert all(event.message.acked for event in events)


def test_a_stream_that_closes_in_the_middle_of_the_work_does_not_count_it():
    event = hand_out()
    with fail_stop(event):
        event.ack()
        assert not event.message.acked
    assert event.message.acked, "the work was done all the same"


def test_work_that_is_cancelled_is_not_read():
    event = hand_out()

    def work() -> None:
        with fail_stop(event):
            event.ack()
            raise asyncio.CancelledError

    with pytest.raises(asyncio.CancelledError):
        work()
    assert not event.message.acked


def test_work_that_fails_ends_the_process():
    program = """
from streams.app import fail_stop
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
