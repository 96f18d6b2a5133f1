"""A mode that this file alone defines, out of existing events, runs a whole round.

Agents submit their updates in the clear, and every member of a board, the federation's
parties, consents before the round is sealed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from protocol.decider import Sequenced
from protocol.encoding import update_to_blob
from protocol.facts import name_cause
from protocol.log import OpenedLeaf
from protocol.modes import MODES, list_waited_for
from protocol.modes.mode import SEALED, Mode, Phase
from protocol.modes.plain import PlainChecker
from protocol.round_state import RoundsState
from protocol.round_view import WatchedRounds
from protocol.rounds import DECIDER
from schemas import events as e
from schemas.reasons import Reason
from streams.aggregator import Aggregator, follow_step
from tests.builders import BlobDict, LogBuilder
from tests.simulation.federation import (
    AGENTS,
    DURATION_MS,
    MPC_CONFIG,
    PARTIES,
    admitted,
    deadline,
    linked,
    request,
    start,
    update,
)


def everybody_consents(state: RoundsState) -> bool:
    assert state.current is not None
    return state.current.said.get("consents", {}).keys() == {*PARTIES}


def ask_the_board(state: RoundsState, leaf: Sequenced) -> e.CommitmentsClosed:
    assert state.current is not None
    return e.CommitmentsClosed(
        round=state.current.started.round,
        num_commitments=len(state.current.contributions),
        sum_seed=bytes(32),
        **name_cause(leaf),
    )


BOARD = Phase(
    name="asked",
    begins=e.CommitmentsClosed,
    begin=ask_the_board,
    awaits=e.SharesLinked,
    collects="consents",
    debtors=lambda config: PARTIES,
    debtor="member",
    get_author=lambda said: said.party,
    refuse=lambda said: f"nobody asked {said.party}",
    is_over=everybody_consents,
)
TOY = Mode(
    name="mpc",
    answer=e.UpdateSubmitted,
    get_blob=lambda said: said.update,
    awaits_checks=True,
    makes_checker=PlainChecker,
    phases=(BOARD, Phase(name=SEALED, begins=e.RoundSealed)),
)


@pytest.fixture(autouse=True)
def _toy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(MODES, "mpc", TOY)


class World:
    """A federation of this mode: the decider, and the aggregator that follows it."""

    def __init__(self) -> None:
        log = LogBuilder()
        log.found()
        (plain,) = log.leaves
        assert isinstance(plain, e.FederationConfigured)
        self.config = replace(plain, plain=None, mpc=MPC_CONFIG.mpc)
        self.blobs = BlobDict(log.blobs)
        self.run = start(DECIDER)
        self.state = WatchedRounds()
        self.aggregator = Aggregator(self.blobs)  # type: ignore[arg-type]
        self.claims: list[e.Event] = []

    def when(self, *events: e.LedgerEvent) -> list[Any]:
        """Sequence events, the facts that follow, and what the aggregator claims."""
        waiting: list[Any] = [*events]
        concluded: list[Any] = []
        while waiting:
            facts = self.run.when(waiting.pop(0))
            concluded += facts
            leaf: Any = None  # nobody looks at it
            opened = OpenedLeaf(leaf, self.run.leaves[-1], traceparent="")
            self.state, work = follow_step(self.state, opened)
            claims = [claim for claim, _ in self.aggregator.do(work)]
            self.claims += claims
            waiting = [*facts, *claims, *waiting]
        return concluded

    def waited_for(self) -> list[str]:
        state = self.run.state
        assert state.config is not None
        if state.current is None:
            return []
        return list_waited_for(state.config, state.current)


def kinds(facts: list[Any]) -> list[str]:
    return [type(fact).__name__ for fact in facts]


def test_a_round_runs_from_the_request_to_the_model() -> None:
    world = World()
    config = world.config
    world.when(config, *map(admitted, AGENTS))
    world.when(request(1))
    model = config.initial_model
    size = config.num_parameters
    for agent in AGENTS[:-1]:
        blob = update_to_blob(np.arange(size, dtype=np.int32))
        said = update(
            agent, base_model_sha256=model.sha256, update=world.blobs.store(blob)
        )
        assert kinds(world.when(said)) == ["ContributionAccepted"]
    assert world.waited_for() == [AGENTS[-1]]
    world.run.now_ms += DURATION_MS + 1
    assert kinds(world.when(deadline(1))) == [
        "ContributionRejected",
        "AttendanceChanged",
        "CommitmentsClosed",
    ]
    assert world.waited_for() == [f"member {name}" for name in PARTIES]
    for name in PARTIES[:-1]:
        assert world.when(linked(name)) == []
    (refusal,) = world.when(linked(PARTIES[0]))
    assert (refusal.reason, refusal.detail) == (
        Reason.UNEXPECTED_CLAIM,
        "nobody asked p0",
    )
    assert kinds(world.when(linked(PARTIES[-1]))) == [
        "RoundSealed",
        "AggregatePublished",
    ]
    assert world.waited_for() == []
    assert world.run.state.version == 1
