"""`moot federation status` on a real stack: who is there, killed, or ended."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest

from schemas import events as e
from tests.integration.harness import Federation, Puppet, World, wait_until

NAME = "watched"


@pytest.fixture(scope="module")
def watched(world: World) -> Federation:
    """A federation with a timer and an exporter."""
    federation = world.found(NAME, min_cohort=1, round_duration_ms=600_000)
    federation.wait(e.FederationConfigured)
    world.start_timer(NAME)
    world.start_exporter(NAME)
    return federation


def look(world: World, *arguments: str) -> tuple[int, dict[str, Any]]:
    done = world.moot("federation", "status", "-f", NAME, "--json", *arguments)
    assert done.returncode in {0, 1}, done.stderr
    return done.returncode, json.loads(done.stdout)


def find(status: dict[str, Any], kind: str, name: str = "") -> dict[str, Any]:
    [member] = [
        m for m in status["members"] if m["kind"] == kind and name in {"", m["name"]}
    ]
    return member


def test_who_is_there_who_was_killed_and_who_said_goodbye(
    world: World, watched: Federation
) -> None:
    # The timer and the exporter may only just have started.
    wait_until(lambda: look(world)[0] == 0, "everybody is heard")
    code, status = look(world)
    services = [m for m in status["members"] if m["kind"] != "agent"]
    assert {m["presence"] for m in services} == {"here"}
    assert {m["kind"] for m in services} == {
        *("sequencer", "rounds", "registry", "rewards"),
        *("aggregator", "timer", "exporter"),
    }
    assert find(status, "timer")["doing"] == "watching deadlines"
    assert find(status, "sequencer")["version"] == "0.1.0"

    with world.services.kept_down(f"timer-{NAME}"):
        killed_s = time.time()
        wait_until(
            lambda: find(look(world)[1], "timer")["presence"] == "away",
            "the timer is missed",
        )
        code, status = look(world)
        assert code == 1
        assert status["needs_attention"] is True
        timer = find(status, "timer")
        # It was last heard before it was killed.
        assert timer["since_ms"] <= killed_s * 1_000 + 1_000
        assert find(status, "exporter")["presence"] == "here"
    wait_until(
        lambda: find(look(world)[1], "timer")["presence"] == "here", "it is back"
    )

    world.services.stop(f"exporter-{NAME}")
    exporter = find(look(world)[1], "exporter")
    assert (exporter["presence"], exporter["doing"]) == ("ended", "stopped")
    world.start_exporter(NAME)


def test_what_a_round_waits_for_and_what_to_do(
    world: World, watched: Federation
) -> None:
    ada, bea = Puppet(world, NAME, "ada"), Puppet(world, NAME, "bea")
    watched.admit(ada, bea)
    number = watched.request_round()
    started = watched.wait(e.RoundStarted, round=number)
    ada.submit(started)
    watched.wait(e.ContributionAccepted, round=number)

    _, status = look(world)
    assert status["round"]["number"] == number
    assert status["round"]["phase"] == "answering"
    assert status["round"]["until_ms"] == started.deadline_ms
    assert status["round"]["num_answered"] == 1
    [wait] = status["waits"]
    assert (wait["who"]["kind"], wait["who"]["name"]) == ("agent", "bea")
    # A puppet has no heart: nobody heard her, and the round goes on without her.
    assert wait["who"]["presence"] == "never heard"
    assert "moot agent run bea" in wait["cure"]
    assert wait["until_ms"] == started.deadline_ms

    with world.services.kept_down("aggregator"):
        bea.submit(started)
        watched.wait(e.UpdateSubmitted, agent_id="bea")
        _, status = look(world)
        assert [w["who"]["kind"] for w in status["waits"]] == ["aggregator"]
        shown = world.moot("federation", "status", "-f", NAME).stdout
        assert f"round {number}: answering for " in shown
        assert "2 of 2 answered" in shown
    watched.wait(e.ModelVersionRegistered, round=number)
    _, status = look(world)
    assert status["round"] is None
    assert status["version"]["round"] == number
    assert status["ended"]["event"] == "AggregatePublished"
    [wait] = status["waits"]
    assert wait["what"] == "for the operator to request a round"


def test_a_stranger_paints_no_screen(world: World, watched: Federation) -> None:
    """Whoever may write to the topic: what is not signed by the named key is apart."""
    from adapters.heartbeats import find_version, make_key
    from adapters.kafka import make_headers
    from protocol.envelope import NO_GENESIS
    from schemas import codec, topics

    stranger = Puppet(world, NAME, "stranger")
    now_ms = int(time.time() * 1_000)
    with world.services.kept_down(f"timer-{NAME}"):
        wait_until(
            lambda: find(look(world)[1], "timer")["presence"] == "away",
            "the timer is missed",
        )
        said = e.Heartbeat(
            federation_id=NAME,
            kind="timer",
            name="0",
            public_key=stranger.key.public_key,
            version=find_version(),
            started_at_ms=now_ms,
            doing="everything is fine",
            doing_since_ms=now_ms,
            said_at_ms=now_ms,
            next_within_ms=600_000,
        )
        data, value = world.registry.frame(said)
        headers = make_headers(said, data, stranger.key, NO_GENESIS, "")
        for content in (value, value[:-1], b"junk", None):
            world.produce(
                topics.HEARTBEATS, content, key=make_key(said), headers=headers
            )
        # And old words of the timer's own, sent again.
        own = [
            record
            for record in world.records(topics.HEARTBEATS)
            if record.value is not None and b"watching deadlines" in record.value
        ]
        old = own[-1]
        world.produce(
            topics.HEARTBEATS, old.value, key=old.key, headers=list(old.headers)
        )
        _, status = look(world)
        assert find(status, "timer")["presence"] in {"away", "doubtful"}
        assert status["needs_attention"]
        assert "everything is fine" in [m["doing"] for m in status["others"]]
    assert codec.decode_as(e.Heartbeat, data) == said


def test_the_stack_and_all_that_runs_on_it(world: World, watched: Federation) -> None:
    done = world.moot("status", "--json")
    found = json.loads(done.stdout)
    assert {m["kind"] for m in found["processes"]} >= {"sequencer", "timer", "rounds"}
    assert NAME in [f["federation_id"] for f in found["federations"]]
    shown = world.moot("status").stdout
    assert f"federation {NAME}" in shown
