"""A library says the same once in a while, however often it tries."""

import logging
from types import SimpleNamespace

import pytest

from adapters import log_lines


@pytest.fixture
def heard(monkeypatch):
    """What reaches the log, and a clock to move."""
    lines = []

    class Listener(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    clock = SimpleNamespace(now_s=100.0)
    monkeypatch.setattr(log_lines.time, "monotonic", lambda: clock.now_s)
    monkeypatch.setattr(logging.root, "handlers", [Listener()])
    library = logging.getLogger("chatty")
    library.setLevel(logging.INFO)
    log_lines.quieten("chatty")
    yield lines, clock
    library.handlers, library.propagate = [], True


def test_an_outage_is_one_line_and_a_count(heard):
    lines, clock = heard
    connecting, sending = map(logging.getLogger, ("chatty.conn", "chatty.sender"))
    for number in range(800):
        connecting.error("cannot connect to %s: try %d", "kafka:9092", number)
        sending.warning(f"attempt {number} of <object at 0x{number:x}> failed")
    assert lines == [
        "cannot connect to kafka:9092: try 0",
        "attempt 0 of <object at 0x0> failed",
    ]
    clock.now_s += log_lines.QUIET_S
    connecting.error("cannot connect to %s: try %d", "kafka:9092", 800)
    assert lines[2:] == [
        "799 more like this within 60 s: cannot connect to %s: try %d",
        "799 more like this within 60 s: attempt # of <object at #> failed",
        "cannot connect to kafka:9092: try 800",
    ]


def test_other_lines_and_what_is_critical_are_heard_at_once(heard):
    lines, _ = heard
    library = logging.getLogger("chatty")
    library.info("joined")
    library.info("joined")
    library.warning("left")
    library.error("left")
    library.warning("left")
    library.critical("gone")
    library.critical("gone")
    library.debug("not even the first")
    logging.getLogger("chatty.of_its_own").warning("left")
    assert lines == ["joined", "joined", "left", "left", "gone", "gone", "left"]
