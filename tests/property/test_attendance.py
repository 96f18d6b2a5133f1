"""A draw that prefers whoever answers, over any agents that come and go."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.attendance import OPEN_EVERY
from protocol.decider import step
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import events as e
from tests.examples import examples
from tests.simulation.federation import (
    CONFIG,
    Run,
    admitted,
    deadline,
    declined,
    request,
    start,
)

NAMES = tuple(f"agent{number}" for number in range(8))
NUM_ROUNDS = 3 * OPEN_EVERY

sizes = st.integers(2, len(NAMES)).flatmap(
    lambda size: st.tuples(st.just(size), st.integers(1, size))
)
presences = st.lists(
    st.frozensets(st.sampled_from(NAMES)), min_size=NUM_ROUNDS, max_size=NUM_ROUNDS
)
"""Who is there, round by round."""


def found(cohort_size: int, min_cohort: int) -> Run[RoundsState, e.RoundFact]:
    config = replace(
        CONFIG, rules_version=2, cohort_size=cohort_size, min_cohort=min_cohort
    )
    return start(DECIDER).given(config, *map(admitted, NAMES))


def play(
    run: Run[RoundsState, e.RoundFact], present: frozenset[str]
) -> tuple[e.RoundStarted, frozenset[str], bool]:
    """Play a round in which whoever is there answers.

    Returns:
        How it started, who was drawn, and whether it took its whole duration.
    """
    run.now_ms += 1
    [started] = run.when(request(run.state.last_round + 1, run.now_ms))
    assert isinstance(started, e.RoundStarted)
    assert run.state.current is not None
    cohort = run.state.current.cohort
    for agent_id in sorted(cohort & present):
        run.when(declined(agent_id, started.round))
    is_waited_for = run.state.current is not None
    if is_waited_for:
        run.when(deadline(started.round), at_ms=started.deadline_ms + 1)
    assert run.state.current is None
    return started, cohort, is_waited_for


@settings(max_examples=examples(100), deadline=None)
@given(sizes, presences)
def test_the_draw_follows_from_the_log_and_from_nothing_else(
    sizes: tuple[int, int], presences: list[frozenset[str]]
) -> None:
    run = found(*sizes)
    for present in presences:
        started, cohort, _ = play(run, present)
        assert len(cohort) == started.num_drawn
        assert min(sizes) <= len(cohort) <= sizes[0]
    state = DECIDER.initial
    for leaf, facts in zip(run.leaves, run.facts, strict=True):
        before = state
        state, again = step(DECIDER, before, leaf)
        # Whoever audits concludes the same, and whoever folds the log as it is does.
        assert again == facts
        assert DECIDER.evolve(before, leaf, facts) == state
    assert state == run.state


@settings(max_examples=examples(100), deadline=None)
@given(sizes, st.frozensets(st.sampled_from(NAMES)))
def test_agents_that_are_gone_cost_one_duration_in_a_period(
    sizes: tuple[int, int], gone: frozenset[str]
) -> None:
    """All of them together, once each has been missed, if the others are enough."""
    present = frozenset(NAMES) - gone
    cohort_size, min_cohort = sizes
    if len(present) < min_cohort:
        return
    run = found(cohort_size, min_cohort)
    late = []
    for _ in range(NUM_ROUNDS):
        known = set(run.state.missed)
        started, cohort, is_waited_for = play(run, present)
        if is_waited_for and cohort & gone <= known:
            late.append(started.round)
    assert all(number % OPEN_EVERY == 0 for number in late)
    # Each is missed once before that: never again outside the open rounds.
    assert set(run.state.missed) <= gone


@settings(max_examples=examples(50), deadline=None)
@given(st.integers(2, len(NAMES)), presences, st.sampled_from(NAMES))
def test_nobody_is_left_out_for_ever(
    cohort_size: int, presences: list[frozenset[str]], name: str
) -> None:
    """Whatever the others do, an agent is in the lot of every tenth round, and after
    its answer in all.
    """
    run = found(cohort_size, 1)
    for present in presences:
        play(run, present - {name})
    for _ in range(40 * OPEN_EVERY):
        started, cohort, _ = play(run, frozenset(NAMES))
        if started.round % OPEN_EVERY == 0 and cohort_size == len(NAMES):
            assert name in cohort
        if name in cohort:
            break
    else:
        raise AssertionError(name)
    assert name not in run.state.missed
