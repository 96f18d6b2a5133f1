"""Who is drawn once somebody has missed a round."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest

from protocol.attendance import OPEN_EVERY, choose_candidates
from protocol.cohort import is_drawn
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    MPC_CONFIG,
    Run,
    admitted,
    checked,
    committed,
    deadline,
    declined,
    request,
    revoked,
    start,
    update,
)

Rounds = Run[RoundsState, e.RoundFact]
SECOND = replace(CONFIG, rules_version=2)


def founded(config: e.FederationConfigured = SECOND, *more: str) -> Rounds:
    run = start(DECIDER).given(config)
    return run.given(*map(admitted, (*AGENTS, *more)))


def ask(run: Rounds) -> e.RoundStarted:
    """Request the next round, which starts."""
    run.now_ms += 1
    [started] = run.when(request(run.state.last_round + 1, run.now_ms))
    assert isinstance(started, e.RoundStarted), started
    return started


def end(run: Rounds, *silent: str) -> list[e.RoundFact]:
    """Let all drawn agents but these answer, and the round end without a model.

    Returns:
        What followed from the deadline.
    """
    current = run.state.current
    assert current is not None
    number = current.started.round
    for agent_id in sorted(set(current.cohort) - set(silent)):
        run.when(declined(agent_id, number))
    if run.state.current is not None and run.state.current.pending:
        lost = Reason.MISSING_BLOB
        run.when(checked(*run.state.current.pending, number=number, reason=lost))
    if run.state.current is None:
        return []
    at_ms = current.started.deadline_ms + 1
    return run.when(deadline(number), at_ms=at_ms)


def cohort(run: Rounds) -> set[str]:
    assert run.state.current is not None
    return set(run.state.current.cohort)


def notes(facts: list[e.RoundFact]) -> list[tuple[str, int]]:
    kinds = (fact for fact in facts if isinstance(fact, e.AttendanceChanged))
    return [(fact.agent_id, fact.num_missed) for fact in kinds]


def test_who_does_not_answer_is_noted_and_left_out_of_the_next_rounds() -> None:
    run = founded()
    ask(run)
    facts = end(run, "ana")
    assert notes(facts) == [("ana", 1)]
    assert [type(fact).__name__ for fact in facts] == [
        "ContributionRejected",
        "AttendanceChanged",
        "RoundAbandoned",
    ]
    assert [fact.output_index for fact in facts] == [0, 1, 2]
    for number in range(2, OPEN_EVERY):
        started = ask(run)
        assert (started.round, started.num_drawn) == (number, 3)
        assert cohort(run) == {"bea", "cem", "dan"}
        # Nobody is waited for: the last answer ends the round.
        assert end(run) == []


def test_every_tenth_round_is_drawn_from_all() -> None:
    run = founded()
    ask(run)
    end(run, "ana")
    for number in range(2, 2 * OPEN_EVERY + 1):
        ask(run)
        is_for_all = number % OPEN_EVERY == 0
        assert ("ana" in cohort(run)) == is_for_all
        # It has missed one more by then; nothing else is noted.
        assert notes(end(run, "ana")) == ([("ana", 1 + number // 10)] * is_for_all)


@pytest.mark.parametrize("answer", [update, declined])
def test_who_answers_again_is_noted_and_drawn_as_before(answer: Any) -> None:
    run = founded()
    ask(run)
    end(run, "ana")
    for _ in range(OPEN_EVERY - 2):
        ask(run)
        end(run)
    ask(run)
    facts = run.when(answer("ana", run.state.last_round))
    assert notes(facts) == [("ana", 0)]
    assert dict(run.state.missed) == {}
    end(run)
    ask(run)
    assert cohort(run) == set(AGENTS)


def find_left_out(run: Rounds, name: str) -> e.RoundStarted:
    """Go on until an agent is left out whose ticket would have won."""
    for _ in itertools.count():
        started = ask(run)
        if name not in cohort(run) and is_drawn(started, name):
            return started
        end(run, name)
    raise AssertionError


@pytest.mark.parametrize("answer", [update, declined])
def test_an_agent_that_was_left_out_shows_that_it_is_there(answer: Any) -> None:
    run = founded()
    ask(run)
    end(run, "ana")
    started = find_left_out(run, "ana")
    facts = run.when(answer("ana", started.round))
    assert [type(fact).__name__ for fact in facts] == [
        "ContributionRejected",
        "AttendanceChanged",
    ]
    assert facts[0].reason == Reason.NOT_IN_COHORT  # type: ignore[union-attr]
    assert notes(facts) == [("ana", 0)]
    # Once: a second answer adds nothing.
    assert notes(run.when(declined("ana", started.round))) == []
    end(run)
    ask(run)
    assert cohort(run) == set(AGENTS)


@pytest.mark.parametrize("bad", ["late", "earlier", "base", "examples", "begun"])
def test_what_is_no_timely_answer_shows_nothing(bad: str) -> None:
    run = founded()
    ask(run)
    end(run, "ana")
    started = find_left_out(run, "ana")
    number, at_ms, changes = started.round, run.now_ms, {}
    if bad == "late":
        at_ms = started.deadline_ms + 1
    elif bad == "earlier":
        number = 1
    elif bad == "base":
        changes = {"base_model_sha256": bytes(32)}
    elif bad == "examples":
        changes = {"num_examples": CONFIG.max_num_examples + 1}
    else:
        for agent_id in sorted(cohort(run)):
            index = run.next_index
            run.when(update(agent_id, number))
            run.when(checked(index, number=number))
        assert run.state.current is not None
        assert run.state.current.sealed is not None
    facts = run.when(update("ana", number, **changes), at_ms=at_ms)
    assert [type(fact).__name__ for fact in facts] == ["ContributionRejected"]
    assert dict(run.state.missed) == {"ana": 1}


def test_an_answer_that_came_too_late_is_none() -> None:
    """An agent that is always too slow costs as much as one that is gone."""
    run = founded()
    started = ask(run)
    for agent_id in ("bea", "cem", "dan"):
        run.when(update(agent_id))
    facts = run.when(update("ana"), at_ms=started.deadline_ms + 1)
    assert facts[0].reason == Reason.LATE  # type: ignore[union-attr]
    assert notes(run.when(deadline(1))) == [("ana", 1)]
    assert notes(run.when(update("ana"))) == []


def test_all_are_drawn_if_those_who_answer_are_too_few() -> None:
    run = founded(replace(SECOND, min_cohort=3))
    ask(run)
    end(run, "ana", "bea")
    started = ask(run)
    assert (started.num_drawn, cohort(run)) == (4, set(AGENTS))


def test_a_small_cohort_is_drawn_by_lot_from_those_who_answer() -> None:
    more = [f"agent{number}" for number in range(20)]
    run = founded(replace(SECOND, cohort_size=5), *more)
    seen: set[str] = set()
    missed: set[str] = set()
    for number in range(1, 200):
        started = ask(run)
        assert started.num_drawn == len(cohort(run)) == 5
        if number % OPEN_EVERY:
            assert not cohort(run) & missed
        seen |= cohort(run)
        missed |= {name for name, _ in notes(end(run, *more[:5]))}
    assert seen == {*AGENTS, *more}
    assert missed == set(more[:5])


def test_agents_already_in_a_sum_are_not_drawn_for_others_who_are_away() -> None:
    """Where a sum is opened once, those in it may not be drawn at all."""
    config = replace(MPC_CONFIG, rules_version=2)
    run = founded(config)
    ask(run)
    for agent_id in ("bea", "cem", "dan"):
        run.when(committed(agent_id))
    assert run.state.current is not None
    run.when(deadline(1), at_ms=run.state.current.started.deadline_ms + 1)
    assert dict(run.state.missed) == {"ana": 1}
    state = replace(run.state, summed=frozenset({"bea"}), current=None)
    run.state = state
    ask(run)
    assert cohort(run) == {"cem", "dan"}


def test_a_revoked_agent_is_forgotten() -> None:
    run = founded()
    ask(run)
    end(run, "ana")
    run.given(revoked("ana"))
    assert dict(run.state.missed) == {}


def test_the_first_rules_note_nobody_and_draw_everybody_alike() -> None:
    run = founded(CONFIG)
    for _ in range(3):
        ask(run)
        assert cohort(run) == set(AGENTS)
        assert notes(end(run, "ana")) == []
    assert run.state.missed == RoundsState().missed


def test_raised_rules_count_from_the_next_round_on() -> None:
    from protocol.changes import make_change

    run = founded(CONFIG)
    ask(run)
    run.given(make_change(SECOND, 1))
    assert notes(end(run, "ana")) == []
    ask(run)
    assert cohort(run) == set(AGENTS)
    assert notes(end(run, "ana")) == [("ana", 1)]
    ask(run)
    assert cohort(run) == set(AGENTS) - {"ana"}


def test_candidates() -> None:
    everybody = frozenset("abcd")

    def choose(missed: str, number: int, fewest: int) -> str:
        found = choose_candidates(
            everybody, dict.fromkeys(missed, 1), number, fewest=fewest
        )
        return "".join(sorted(found))

    assert choose("", 3, 2) == "abcd"
    assert choose("a", 3, 2) == "bcd"
    assert choose("ab", 3, 2) == "cd"
    assert choose("abc", 3, 2) == "abcd"
    assert choose("a", 10, 2) == choose("a", 20, 2) == "abcd"
    assert choose("xyz", 3, 2) == "abcd"
