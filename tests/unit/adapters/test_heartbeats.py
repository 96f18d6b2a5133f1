"""Whose heartbeats count, and which of them is the last."""

from __future__ import annotations

import logging
import socket
import time
from dataclasses import replace
from typing import Any

import pytest

from adapters import heartbeats
from adapters.heartbeats import (
    MAX_DOING_LENGTH,
    MAX_NEXT_MS,
    MAX_REMEMBERED,
    MAX_TIME_MS,
    Heard,
    Heart,
    HeartbeatReader,
    beating,
    find_problem,
    make_key,
)
from adapters.kafka import Record, make_headers
from adapters.settings import Settings
from protocol.envelope import NO_GENESIS, SIGNATURE_HEADER
from schemas import codec, topics
from schemas import events as e
from tests.builders import frame, unframe
from tests.builders import make_key as make_signing_key

NOW_MS = 1_800_000_000_000
SAID = e.Heartbeat(
    federation_id="clinics",
    kind="agent",
    name="ada",
    public_key=make_signing_key("ada").public_key,
    version="0.1.0",
    started_at_ms=NOW_MS - 10,
    doing="waiting for a round",
    doing_since_ms=NOW_MS - 5,
    said_at_ms=NOW_MS,
    next_within_ms=10_000,
)


class Registry:
    """A schema registry whose answers are at hand."""

    unframe = staticmethod(lambda value: unframe(value or b""))


def make_reader() -> HeartbeatReader:
    settings = Settings(bootstrap_servers="x:1", schema_registry_url="http://x")
    return HeartbeatReader(settings, Registry())  # type: ignore[arg-type]


def record(
    said: e.Heartbeat, *, signer: str = "ada", appended_at_ms: int | None = None
) -> Record:
    data = codec.encode(said)
    headers = make_headers(said, data, make_signing_key(signer), NO_GENESIS, "")
    return Record(
        topic=topics.HEARTBEATS,
        partition=0,
        offset=0,
        key=make_key(said),
        value=frame(said),
        headers=tuple(headers),
        appended_at_ms=said.said_at_ms if appended_at_ms is None else appended_at_ms,
    )


def hear(*records: Record) -> list[Heard]:
    reader = make_reader()
    reader._learn(records)
    return [*reader._heard.values()]


def test_a_process_is_heard() -> None:
    assert hear(record(SAID)) == [Heard(SAID, NOW_MS)]


def test_nobody_speaks_for_another() -> None:
    assert hear(record(SAID, signer="stranger")) == []
    unsigned = replace(record(SAID), headers=())
    assert hear(unsigned) == []
    later = replace(SAID, doing="lies", said_at_ms=NOW_MS + 1)
    assert hear(record(SAID), record(later, signer="stranger")) == [Heard(SAID, NOW_MS)]


def test_a_heartbeat_is_no_event_of_a_log_and_no_event_is_a_heartbeat() -> None:
    """The signature covers that it is one, and that it belongs to no log."""
    data = codec.encode(SAID)
    for genesis in (b"g" * 32, bytes(31) + b"\1"):
        [_, *rest] = make_headers(SAID, data, make_signing_key("ada"), NO_GENESIS, "")
        signature = make_signing_key("ada").sign(
            b"folkmoot/event/v1\n" + genesis + data
        )
        forged = replace(record(SAID), headers=((SIGNATURE_HEADER, signature), *rest))
        assert hear(forged) == []
    other = e.AgentEnrolmentRequested(
        federation_id="clinics", agent_id="ada", public_key=SAID.public_key
    )
    assert hear(replace(record(SAID), value=frame(other))) == []


@pytest.mark.parametrize(
    "value", [None, b"", b"\0", b"x" * 100, frame(SAID)[:-1], frame(SAID) + b"x"]
)
def test_what_is_no_heartbeat_is_passed_over(value: bytes | None) -> None:
    assert hear(replace(record(SAID), value=value)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"kind": ""},
        {"kind": "Agent"},
        {"kind": "a\nb"},
        {"name": ""},
        {"name": "x" * 65},
        {"federation_id": "-"},
        {"doing": "x" * (MAX_DOING_LENGTH + 1)},
        {"version": "x" * 33},
        {"started_at_ms": -1},
        {"doing_since_ms": MAX_TIME_MS + 1},
        {"said_at_ms": 2**62},
        {"next_within_ms": -1},
        {"next_within_ms": MAX_NEXT_MS + 1},
    ],
)
def test_fields_are_bounded(changes: dict[str, Any]) -> None:
    bad = replace(SAID, **changes)
    assert find_problem(SAID) is None
    assert find_problem(bad) is not None
    assert hear(record(bad, appended_at_ms=NOW_MS)) == []


def test_the_last_word_counts_in_any_order() -> None:
    later = replace(SAID, doing="training", said_at_ms=NOW_MS + 5)
    for records in ([SAID, later], [later, SAID]):
        [found] = hear(*map(record, records))
        assert found.heartbeat == later
    reader = make_reader()
    reader._learn([record(later)])
    reader._learn([record(SAID)])
    [found] = reader._heard.values()
    assert found.heartbeat == later


def test_the_last_word_of_a_millisecond_is_the_last_to_arrive() -> None:
    """One that ends may just have spoken."""
    goodbye = replace(SAID, doing="stopped", next_within_ms=0)
    [found] = hear(record(SAID), record(goodbye))
    assert found.heartbeat == goodbye
    reader = make_reader()
    reader._learn([record(SAID)])
    reader._learn([record(goodbye)])
    [found] = reader._heard.values()
    assert found.heartbeat == goodbye


def test_an_old_word_that_is_sent_again_is_old() -> None:
    again = record(SAID, appended_at_ms=NOW_MS + 10**6)
    [found] = hear(record(SAID), again)
    assert found.at_ms == NOW_MS
    later = replace(SAID, doing="stopped", next_within_ms=0, said_at_ms=NOW_MS + 5)
    [found] = hear(record(SAID), record(later), again)
    assert found.heartbeat == later


def test_a_clock_that_is_ahead_does_not_silence_what_comes_after() -> None:
    ahead = record(replace(SAID, said_at_ms=NOW_MS + 10**7), appended_at_ms=NOW_MS)
    mended = record(replace(SAID, doing="more", said_at_ms=NOW_MS + 100))
    [found] = hear(ahead, mended)
    assert found.heartbeat.doing == "more"


def test_processes_differ_in_all_that_they_sign() -> None:
    others = [
        replace(SAID, name="bea"),
        replace(SAID, kind="timer"),
        replace(SAID, federation_id="banks"),
    ]
    found = hear(*map(record, [SAID, *others]))
    assert len(found) == 4
    assert len({make_key(item.heartbeat) for item in found}) == 4


def test_a_flood_of_names_is_forgotten_again(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_REMEMBERED >= 10_000
    monkeypatch.setattr(heartbeats, "MAX_REMEMBERED", 10)
    reader = make_reader()
    for number in range(30):
        said = replace(SAID, name=f"n{number}", said_at_ms=NOW_MS + number)
        reader._learn([record(said)])
    assert {p.name for p in reader._heard} == {f"n{number}" for number in range(20, 30)}


# A process without Kafka


@pytest.fixture
def nowhere() -> Settings:
    """Settings of a Kafka and a schema registry that are not there."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port = held.getsockname()[1]
    return Settings(
        bootstrap_servers=f"127.0.0.1:{port}",
        schema_registry_url=f"http://127.0.0.1:{port}",
        heartbeat_s=0.1,
    )


def test_what_nobody_hears_neither_fails_nor_floods_the_log(
    nowhere: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    def find_lines() -> list[str]:
        return [line for line in caplog.messages if "nobody hears" in line]

    with (
        caplog.at_level(logging.WARNING, "adapters.heartbeats"),
        beating(nowhere, make_signing_key("ada"), "agent", "ada"),
    ):
        heartbeats.do("working")
        # The schema registry's client tries several times.
        until = time.monotonic() + 60
        while not find_lines():
            assert time.monotonic() < until
            time.sleep(0.1)
        time.sleep(0.5)
    assert len(find_lines()) == 1


def test_how_a_process_ended_is_its_last_word(
    nowhere: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(Heart, "end", lambda _self, how: said.append(how))
    errors = (SystemExit(0), SystemExit(2), KeyboardInterrupt(), OSError("x"))
    with beating(nowhere, make_signing_key("ada"), "agent", "ada"):
        pass
    for error in errors:
        with (
            pytest.raises(type(error)),
            beating(nowhere, make_signing_key("ada"), "agent", "ada"),
        ):
            raise error
    assert said == [
        "stopped",
        "stopped",
        "failed: SystemExit",
        "stopped",
        "failed: OSError",
    ]


def test_without_a_heart_nothing_is_said() -> None:
    heartbeats.do("anything")
