"""The status of a federation, from real logs and what processes say."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from adapters.heartbeats import Heard
from cli.status import render, show_duration, to_json
from consumers.status.view import (
    GRACE_MS,
    OVERDUE_MS,
    SILENT_FACTOR,
    FederationStatus,
    Presence,
    compute_status,
    judge,
)
from consumers.status.watched import WatchedLog, learn
from ledger.attestations import NodeSet
from schemas import events as e
from tests.builders import LogBuilder, make_key, read_blocks
from tests.mpc_builder import start_mpc_log

INTERVAL_MS = 10_000
AGENTS = ("ada", "bea", "cleo")
SERVICES = {
    "sequencer": "SEQUENCER",
    "rounds": "DECIDER",
    "registry": "DECIDER",
    "rewards": "DECIDER",
    "aggregator": "AGGREGATOR",
    "timer": "TIMER",
    "exporter": "EXPORTER",
}


def watched(log: LogBuilder) -> WatchedLog:
    state = WatchedLog()
    for read in read_blocks(log):
        state = learn(state, read.leaves)
    return state


def heard(
    kind: str,
    name: str = "0",
    *,
    signer: str = "",
    at_ms: int,
    appended_at_ms: int | None = None,
    **changes: Any,
) -> Heard:
    said = e.Heartbeat(
        federation_id="clinics" if kind in {"timer", "exporter", "agent"} else "",
        kind=kind,
        name=name,
        public_key=make_key(signer or SERVICES.get(kind, name)).public_key,
        version="0.1.0",
        started_at_ms=at_ms - 60_000,
        doing="working",
        doing_since_ms=at_ms - 30_000,
        said_at_ms=at_ms,
        next_within_ms=INTERVAL_MS,
    )
    said = replace(said, **changes)
    return Heard(said, at_ms if appended_at_ms is None else appended_at_ms)


def everybody(log: LogBuilder, *, away: tuple[str, ...] = ()) -> list[Heard]:
    """All processes of a federation but some, by kind or name."""
    at_ms = log.now_ms
    found = [heard(kind, at_ms=at_ms) for kind in SERVICES]
    found += [heard("agent", name, at_ms=at_ms) for name in AGENTS]
    found += [
        heard("ledger-node", name, at_ms=at_ms, federation_id="clinics")
        for name in log.ledger_nodes
    ]
    return [
        item
        for item in found
        if not {item.heartbeat.kind, item.heartbeat.name} & {*away}
    ]


def started(**options: Any) -> LogBuilder:
    log = LogBuilder(ledger_nodes=(), **options)
    log.found()
    log.admit(*AGENTS)
    return log


def look(
    log: LogBuilder, *away: str, later_ms: int = 0, more: tuple[Heard, ...] = ()
) -> FederationStatus:
    """Return the status a while after everybody was heard, but some."""
    people = [*everybody(log, away=away), *more]
    return compute_status(watched(log), people, log.now_ms + later_ms)


def waits(status: FederationStatus) -> list[tuple[str, str, str]]:
    return [
        (
            "" if wait.who is None else wait.who.kind,
            "" if wait.who is None else wait.who.name,
            wait.what,
        )
        for wait in status.waits
    ]


# One process


@pytest.mark.parametrize(
    ("said_ago_ms", "appended_ago_ms", "next_within_ms", "expected"),
    [
        (0, 0, 10_000, Presence.HERE),
        (31_000, 31_000, 10_000, Presence.HERE),
        (33_000, 33_000, 10_000, Presence.AWAY),
        (33_000, 0, 10_000, Presence.DOUBTFUL),  # a slow clock, or a copy
        (-3_600_000, 0, 10_000, Presence.HERE),  # a clock that is ahead
        (-3_600_000, 33_000, 10_000, Presence.AWAY),  # and keeps nobody alive
        (0, 0, 0, Presence.ENDED),
        (10**9, 10**9, 0, Presence.ENDED),
        (33_000, 33_000, 600_000, Presence.HERE),  # it speaks seldom
    ],
)
def test_whether_a_process_is_there(
    said_ago_ms: int, appended_ago_ms: int, next_within_ms: int, expected: Presence
) -> None:
    assert (SILENT_FACTOR, GRACE_MS) == (3, 2_000)
    now_ms = 1_800_000_000_000
    item = heard(
        "timer",
        at_ms=now_ms - said_ago_ms,
        appended_at_ms=now_ms - appended_ago_ms,
        next_within_ms=next_within_ms,
    )
    assert judge(item, now_ms) is expected


# What is waited for


def test_a_federation_that_is_founded_waits_for_agents() -> None:
    log = LogBuilder(ledger_nodes=())
    log.found()
    status = look(log)
    [wait] = status.waits
    assert wait.who is None
    assert "0 active agents, min_cohort is 2" in wait.what
    assert "moot agent admit" in wait.cure
    assert status.round is None
    assert not status.needs_attention


def test_then_it_waits_for_the_operator() -> None:
    log = started()
    status = look(log, later_ms=5_000)
    assert waits(status) == [("", "", "for the operator to request a round")]
    assert status.waits[0].cure == "`moot round start -f clinics`"
    assert "waits 5 s for the operator to request a round" in "\n".join(render(status))


def test_a_round_waits_for_whoever_has_not_answered_until_its_deadline() -> None:
    log = started()
    log.request_round()
    log.submit("bea")
    log.settle()
    at_ms = log.now_ms
    status = look(log, "cleo", later_ms=2_000)
    assert status.round is not None
    assert (status.round.number, status.round.phase) == (1, "answering")
    assert (status.round.num_drawn, status.round.num_answered) == (3, 1)
    assert waits(status) == [
        ("agent", "ada", "to answer"),
        ("agent", "cleo", "to answer"),
    ]
    ada, cleo = status.waits
    assert ada.who is not None
    assert cleo.who is not None
    assert (ada.who.presence, ada.cure) == (Presence.HERE, "")
    assert (cleo.who.presence, "moot agent run cleo" in cleo.cure) == (
        Presence.UNHEARD,
        True,
    )
    assert ada.until_ms == cleo.until_ms == status.round.until_ms
    assert status.round.until_ms is not None
    assert status.round.until_ms > at_ms
    # It goes on without her.
    assert not status.needs_attention
    text = "\n".join(render(status, {"cleo": "City Clinic"}))
    assert "1 of 3 answered" in text
    assert "goes on without in" in text
    assert "agent cleo               NEVER HEARD; City Clinic" in text


def test_a_deadline_that_nobody_announces_waits_for_the_timer() -> None:
    log = started()
    log.request_round()
    over_ms = 60_000 + OVERDUE_MS + 1
    people = [replace_time(item, over_ms) for item in everybody(log, away=("timer",))]
    status = compute_status(watched(log), people, log.now_ms + over_ms)
    assert waits(status)[0] == ("timer", "", "to say that the deadline has passed")
    assert status.waits[0].cure == "start it again: `moot serve timer -f clinics`"
    assert status.needs_attention
    assert "overdue since" in "\n".join(render(status))


def replace_time(item: Heard, more_ms: int) -> Heard:
    said = item.heartbeat
    return Heard(
        replace(said, said_at_ms=said.said_at_ms + more_ms),
        item.appended_at_ms + more_ms,
    )


def test_answers_wait_for_the_aggregator_and_then_for_the_sum() -> None:
    log = started()
    log.request_round()
    for name in AGENTS:
        log.submit(name)
    log.settle()
    assert waits(look(log)) == [
        ("aggregator", "0", "to check answers or publish the sum")
    ]
    log.check()
    status = look(log, "aggregator")
    assert status.round is not None
    assert status.round.phase == "sealed"
    [wait] = status.waits
    assert wait.cure == "start it again: `moot serve aggregator`"
    assert status.needs_attention


def test_a_published_model_waits_for_the_exporter() -> None:
    log = started()
    log.request_round()
    for name in AGENTS:
        log.submit(name)
    log.settle()
    log.check()
    log.aggregate()
    assert waits(look(log)) == [
        ("", "", "for the operator to request a round"),
        ("exporter", "0", "to export the model of round 1"),
    ]
    log.export()
    status = look(log)
    assert waits(status) == [("", "", "for the operator to request a round")]
    assert status.version is not None
    assert status.version.version == 1
    text = "\n".join(render(status))
    assert "model: version 1, round 1, accuracy" in text
    assert "the last ended" in text


def test_what_a_decider_owes_the_log_is_waited_for() -> None:
    """It is known without a word of the decider's: the log implies its facts."""
    log = started(send_fact=lambda _fact: [])
    log.request_round()
    [block_ms] = {log.now_ms}
    status = look(log, "rounds")
    assert waits(status) == [("rounds", "", "to conclude what follows from the log")]
    assert status.waits[0].since_ms == block_ms
    assert status.waits[0].cure == "start it again: `moot serve rounds`"
    # One that is there is given a moment.
    status = look(log)
    assert waits(status)[0] == ("agent", "ada", "to answer")
    status = look(log, later_ms=OVERDUE_MS + 1)
    assert waits(status)[0] == ("rounds", "0", "to conclude what follows from the log")
    assert status.waits[0].cure == ""


def test_without_a_sequencer_nothing_reaches_the_log() -> None:
    log = started()
    log.request_round()
    status = look(log, "sequencer")
    assert waits(status)[0] == ("sequencer", "", "to put on the log what is said")
    assert {wait.cure for wait in status.waits} == {
        "start it again: `moot serve sequencer`"
    }
    assert status.needs_attention


def test_a_party_that_is_gone_is_waited_for_without_end() -> None:
    log = start_mpc_log(silent={"p1"})
    cohort = log.request_round()
    for name in cohort:
        log.commit(name)
    log.settle()
    people = everybody(log)
    people += [heard("party", name, at_ms=log.now_ms) for name in ("p0", "p2")]
    status = compute_status(watched(log), people, log.now_ms)
    assert status.round is not None
    assert status.round.phase == "closed"
    assert waits(status) == [("party", "p1", "to say its part")]
    [wait] = status.waits
    assert wait.until_ms is None
    assert wait.cure == (
        "start it again: `moot serve party --name p1`, or `moot round abandon` gives "
        "the round up"
    )
    assert status.needs_attention
    parties = {m.name: m.presence for m in status.members if m.kind == "party"}
    assert parties == {
        "p0": Presence.HERE,
        "p1": Presence.UNHEARD,
        "p2": Presence.HERE,
    }


def test_the_dealer_of_a_federation_that_compares_is_needed_too() -> None:
    log = start_mpc_log("ada", "bea", "cleo", "dora", far_threshold=1_000)
    people = [
        *everybody(log),
        heard("dealer", "deal", signer="dealer", at_ms=log.now_ms),
    ]
    status = compute_status(watched(log), people, log.now_ms)
    [dealer] = [m for m in status.members if m.kind == "dealer"]
    assert (dealer.name, dealer.presence) == ("deal", Presence.HERE)


# Who is there


def test_all_that_are_needed_are_listed_with_what_they_do() -> None:
    status = look(started())
    found = [(m.kind, m.name, m.presence) for m in status.members]
    assert found == [
        *((kind, "0", Presence.HERE) for kind in SERVICES),
        *(("agent", name, Presence.HERE) for name in AGENTS),
    ]
    assert {member.doing for member in status.members} == {"working"}
    assert not status.others


def test_a_revoked_agent_is_not_needed() -> None:
    log = started()
    log.revoke("bea")
    status = look(log)
    assert [m.name for m in status.members if m.kind == "agent"] == ["ada", "cleo"]


def test_a_stranger_is_nobody_of_ours() -> None:
    """Whatever it calls itself: the log says whose key counts."""
    log = started()
    log.request_round()
    at_ms = log.now_ms
    strangers = (
        heard("rounds", signer="stranger", at_ms=at_ms, federation_id="clinics"),
        heard("agent", "ada", signer="stranger", at_ms=at_ms),
        # A key of ours, in a place of somebody else's.
        heard("sequencer", signer="ada", at_ms=at_ms, federation_id="clinics"),
    )
    status = look(log, "rounds", "ada", "sequencer", more=strangers)
    for kind in ("rounds", "sequencer"):
        [member] = [m for m in status.members if m.kind == kind]
        assert member.presence is Presence.UNHEARD
    assert [m.kind for m in status.others] == ["rounds", "agent", "sequencer"]
    assert status.needs_attention
    text = "\n".join(render(status))
    assert "say that they serve it, with keys that the log does not name" in text


def test_processes_of_other_federations_are_not_shown() -> None:
    log = started()
    other = heard("timer", at_ms=log.now_ms, federation_id="banks")
    theirs = heard("rounds", signer="their decider", at_ms=log.now_ms)
    status = look(log, "timer", more=(other, theirs))
    [timer] = [m for m in status.members if m.kind == "timer"]
    assert timer.presence is Presence.UNHEARD
    assert not status.others


def test_one_of_two_instances_is_enough() -> None:
    log = started()
    at_ms = log.now_ms
    gone = heard("rounds", "1", at_ms=at_ms - 100_000)
    status = look(log, more=(gone,))
    [rounds] = [m for m in status.members if m.kind == "rounds"]
    assert (rounds.name, rounds.presence, rounds.num_instances) == (
        "0",
        Presence.HERE,
        1,
    )
    status = look(log, more=(heard("rounds", "1", at_ms=at_ms),))
    [rounds] = [m for m in status.members if m.kind == "rounds"]
    assert rounds.num_instances == 2
    assert "2 instances" in "\n".join(render(status))


def test_one_that_ended_says_how_and_one_that_was_killed_is_silent() -> None:
    log = started()
    at_ms = log.now_ms
    ended = heard(
        "timer", at_ms=at_ms - 60_000, next_within_ms=0, doing="failed: OSError"
    )
    killed = heard("exporter", at_ms=at_ms - 60_000)
    status = look(log, "timer", "exporter", more=(ended, killed))
    found = {m.kind: m for m in status.members}
    assert found["timer"].presence is Presence.ENDED
    assert found["exporter"].presence is Presence.AWAY
    text = "\n".join(render(status))
    assert "timer                    ENDED 1 min ago, failed: OSError" in text
    assert "exporter                 AWAY, last heard 1 min ago, working" in text
    assert status.needs_attention


def test_one_that_is_doubtful_needs_attention_and_no_restart() -> None:
    """A stranger who repeats its words must not keep a dead process from being seen."""
    log = started()
    log.request_round()
    at_ms = log.now_ms
    repeated = heard("timer", at_ms=at_ms - 60_000, appended_at_ms=at_ms)
    status = look(log, "timer", more=(repeated,))
    [timer] = [m for m in status.members if m.kind == "timer"]
    assert timer.presence is Presence.DOUBTFUL
    assert status.needs_attention
    assert "its clock is slow, or somebody repeats its words" in "\n".join(
        render(status)
    )


# Finality


def test_how_far_the_log_is_final_and_whose_word_is_missing() -> None:
    log = LogBuilder()
    log.found()
    log.admit(*AGENTS)
    log.request_finality()
    log.finalise()
    size = watched(log).admission.finalised_size
    assert size > 0
    log.request_round()
    status = look(log, later_ms=1_000)
    assert status.finality is not None
    assert (status.finality.size, status.finality.num_there) == (size, 4)
    assert (status.finality.quorum, status.finality.num_nodes) == (3, 4)
    assert status.finality.behind_since_ms is not None
    assert "node0" not in [name for _, name, _ in waits(status)]

    status = look(log, "node0", "node2")
    stuck = [wait for wait in status.waits if wait.what == "to attest"]
    assert [wait.who.name for wait in stuck if wait.who] == ["node0", "node2"]
    assert "`moot serve ledger-node --name node0 -f clinics`" in stuck[0].cure
    assert status.needs_attention

    state = watched(log)
    done = compute_status(state, everybody(log), log.now_ms, final_size=state.size)
    assert done.finality is not None
    assert done.finality.behind_since_ms is None
    assert f"final: {state.size} of {state.size}, all is final" in "\n".join(
        render(done)
    )
    assert isinstance(state.admission.node_sets[-1], NodeSet)


# What was refused, who missed rounds


def test_refusals_and_missed_rounds_are_shown() -> None:
    log = started()
    log.request_round()
    log.submit("ada")
    log.submit("bea")
    log.settle()
    log.check()
    log.pass_deadline()
    status = look(log)
    assert status.missed == {"cleo": 1}
    assert status.num_refusals == 1
    text = "\n".join(render(status))
    assert "refused: 1 so far, the last:" in text
    assert "NO_ANSWER" in text
    assert "missed 1 round in a row" in text


def test_only_the_last_refusals_are_kept_and_all_are_counted() -> None:
    log = started()
    for _ in range(9):
        log.request_round(77)
    state = watched(log)
    assert len(state.refusals) == 5
    assert state.num_refusals == 9


# As text and JSON


def test_json_has_all_of_it() -> None:
    log = started()
    log.request_round()
    plain = to_json(look(log, "rounds"))
    assert plain["round"]["phase"] == "answering"
    assert plain["needs_attention"] is True
    assert {m["presence"] for m in plain["members"]} == {"here", "never heard"}
    assert plain["waits"][0]["who"]["kind"] == "agent"
    assert plain["ended"] is None


@pytest.mark.parametrize(
    ("duration_ms", "expected"),
    [
        (-5, "0 s"),
        (999, "0 s"),
        (59_999, "59 s"),
        (60_000, "1 min"),
        (61_000, "1 min 1 s"),
        (3_600_000, "1 h"),
        (3_660_000, "1 h 1 min"),
        (90_000_000, "1 d 1 h"),
    ],
)
def test_durations(duration_ms: int, expected: str) -> None:
    assert show_duration(duration_ms) == expected
