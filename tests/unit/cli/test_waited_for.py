"""`moot federation show` says whom a round waits for."""

import itertools

from protocol.modes import list_waited_for
from protocol.rounds import DECIDER
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    MPC_CONFIG,
    NOW_MS,
    PARTIES,
    admitted,
    checked,
    committed,
    declined,
    linked,
    partial,
    request,
    start,
    update,
)

_clock = itertools.count(NOW_MS)


def opened(config):
    run = start(DECIDER).given(config, *map(admitted, AGENTS))
    return run.given(request(1, next(_clock)))


def waited_for(run):
    return list_waited_for(run.state.config, run.state.current)


def test_a_round_in_the_clear():
    run = opened(CONFIG)
    assert waited_for(run) == list(AGENTS)
    indexes = []
    for agent_id in AGENTS[:3]:
        indexes.append(run.next_index)
        run.given(update(agent_id))
    assert waited_for(run) == ["dan"]
    run.given(declined("dan"))
    assert waited_for(run) == ["aggregator"]
    run.given(checked(*indexes))
    assert waited_for(run) == ["aggregator"]


def test_an_mpc_round():
    run = opened(MPC_CONFIG)
    indexes = []
    for agent_id in AGENTS:
        assert agent_id in waited_for(run)
        indexes.append(run.next_index)
        run.given(committed(agent_id))
    assert waited_for(run) == [f"party {name}" for name in PARTIES]
    run.given(linked("p0"), linked("p2"))
    assert waited_for(run) == ["party p1"]
    run.given(linked("p1"))
    assert waited_for(run) == ["aggregator"]
    run.given(checked(*indexes), partial("p1", 4, 40))
    assert waited_for(run) == ["party p0", "party p2"]
    run.given(partial("p0", 4, 40), partial("p2", 4, 40))
    assert waited_for(run) == ["aggregator"]
