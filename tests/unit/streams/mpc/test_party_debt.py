"""What a restarted party owes a round that was already under way."""

import pytest

from protocol.modes.mpc.round import MpcRound
from protocol.persistent import PersistentMap
from protocol.round_view import WatchedRounds
from protocol.rounds import DECIDER
from schemas import events as e
from streams.mpc.party import find_owed
from tests.mpc_rounds import change_mpc_round, make_mpc_round
from tests.simulation.federation import (
    AGENTS,
    MPC_CONFIG,
    admitted,
    make_blob,
    request,
    start,
)

WAITING = PersistentMap((name, 0) for name in AGENTS)
TRACE = "00-0123456789abcdef0123456789abcdef-0123456789abcdef-01"


@pytest.fixture
def secret() -> MpcRound:
    run = start(DECIDER).given(MPC_CONFIG, *map(admitted, AGENTS)).given(request(1))
    started = run.state.current.started
    return make_mpc_round(MPC_CONFIG, started)


def debt(secret: MpcRound | None) -> list[MpcRound]:
    view = None if secret is None else secret.view
    work = find_owed("p1", WatchedRounds(view=view), TRACE)
    assert {item.traceparent for item in work} <= {TRACE}
    return [item.secret for item in work]


def test_nothing_without_an_mpc_round():
    assert debt(None) == []


def test_nothing_while_agents_answer(secret):
    assert debt(secret) == []
    assert debt(change_mpc_round(secret, waiting=WAITING)) == []


def test_links_until_they_are_on_the_ledger(secret):
    closed = change_mpc_round(
        secret,
        waiting=WAITING,
        closed=e.CommitmentsClosed(
            federation_id=MPC_CONFIG.federation_id,
            round=1,
            cause=bytes(32),
            cause_leaf_index=9,
            output_index=0,
            num_commitments=len(AGENTS),
            sum_seed=bytes(32),
        ),
        started_leaf_hash=bytes(32),
    )
    assert debt(closed) == [closed]
    others = change_mpc_round(closed, links={"p0": make_blob("links")})
    assert debt(others) == [others]
    assert debt(change_mpc_round(closed, links={"p1": make_blob("links")})) == []
    # What is proved is about the leaf that opened the round.
    assert debt(change_mpc_round(closed, started_leaf_hash=b"")) == []


def test_its_part_until_it_counts(secret):
    sealed = e.RoundSealed(
        federation_id=MPC_CONFIG.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=9,
        output_index=0,
        num_contributions=0,
        contributions_sha256=bytes(32),
        num_examples=0,
        base_model=MPC_CONFIG.initial_model,
        fractional_bits=MPC_CONFIG.fractional_bits,
        num_parameters=MPC_CONFIG.num_parameters,
    )
    linked = change_mpc_round(secret, links={"p1": make_blob("links")}, sealed=sealed)
    assert debt(linked) == [linked]
