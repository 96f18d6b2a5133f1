"""Whom a draw prefers: agents that answered when they were last drawn.

An agent that is drawn and does not answer costs the round its whole duration. So since
version 2 of the rules:

- `AttendanceChanged` notes who missed a round that it was drawn for.
- A round is drawn from those who missed none since they last answered, if they are
  enough (``min_cohort``); otherwise from all.
- Every tenth round is drawn from all. So agents that are gone for good cost the
  duration of one round in ten, however many they are, and nobody is left out for ever.
- Whoever answers in time has missed nothing. That also goes for an agent that was left
  out of a round and whose ticket would have won: its answer does not count
  (``NOT_IN_COHORT``), but shows that it is there.

In version 1 everybody is drawn alike, and nobody is noted.

Source: ADR 0044.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Final

from protocol.cohort import is_drawn
from protocol.decider import Sequenced
from protocol.facts import name_cause
from protocol.round_state import OpenRound, RoundsState
from schemas import events as e

OPEN_EVERY: Final = 10
"""Every round with such a number is drawn from all agents."""

Note = Callable[
    [RoundsState, OpenRound, Iterable[str], Sequenced], list[e.AttendanceChanged]
]


def _note_nobody(
    _state: RoundsState, _current: OpenRound, _missing: Iterable[str], _leaf: Sequenced
) -> list[e.AttendanceChanged]:
    return []


def _note_missing(
    state: RoundsState, current: OpenRound, missing: Iterable[str], leaf: Sequenced
) -> list[e.AttendanceChanged]:
    return [
        _change(leaf, current, agent_id, state.missed.get(agent_id, 0) + 1)
        for agent_id in missing
    ]


NOTES_OF_MISSING: Final[Mapping[int, Note]] = {1: _note_nobody, 2: _note_missing}
"""What is noted of those who have not answered by the deadline."""


def note_answer(
    state: RoundsState, agent_id: str, leaf: Sequenced
) -> list[e.AttendanceChanged]:
    """Return that an agent answers again, if it had missed rounds.

    Args:
        state: The state, in which a round is in progress.
        agent_id: An agent whose answer to it came in time.
        leaf: The answer.
    """
    if state.current is None or agent_id not in state.missed:
        return []
    return [_change(leaf, state.current, agent_id, 0)]


def _change(
    leaf: Sequenced, current: OpenRound, agent_id: str, num_missed: int
) -> e.AttendanceChanged:
    return e.AttendanceChanged(
        round=current.started.round,
        agent_id=agent_id,
        num_missed=num_missed,
        **name_cause(leaf),
    )


def choose_candidates(
    drawable: frozenset[str], missed: Mapping[str, int], number: int, *, fewest: int
) -> frozenset[str]:
    """Return the agents among whom a round's cohort is drawn.

    Args:
        drawable: All who may be drawn.
        missed: Whoever missed the last round that it was drawn for.
        number: The round's number, from 1.
        fewest: How many a round needs, at least 1.
    """
    present = drawable.difference(missed)
    is_for_all = number % OPEN_EVERY == 0 or len(present) < fewest
    return drawable if is_for_all else present


def find_cohort(
    drawable: frozenset[str], missed: Mapping[str, int], started: e.RoundStarted
) -> frozenset[str]:
    """Return who was drawn for a round.

    The fact says how many there are, which tells among whom they were drawn: knowing no
    rule, this holds under all that prefer those who missed nothing, or nobody.
    """
    drawn = frozenset(agent for agent in drawable if is_drawn(started, agent))
    return drawn if len(drawn) == started.num_drawn else drawn.difference(missed)
