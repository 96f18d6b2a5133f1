"""One stack, one set of services and one trained federation for the whole session."""

from collections.abc import Iterator

import pytest

from schemas import events as e
from tests.integration.harness import (
    AGENTS,
    Federation,
    World,
    run_world,
    start_agents,
)

MAIN = "main"


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A stack with the sequencer, the deciders and the aggregator running."""
    with run_world(tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture(scope="session")
def main(world: World) -> Federation:
    """A federation of real agents, with one round behind it.

    Tests share it: each runs rounds of its own and leaves it with none open.
    """
    federation = world.found(MAIN, min_cohort=len(AGENTS))
    world.start_timer(MAIN)
    world.start_exporter(MAIN)
    start_agents(world, MAIN)
    keys = {
        name: federation.wait(e.AgentEnrolmentRequested, agent_id=name).public_key
        for name in AGENTS
    }
    federation.operator.admit(MAIN, keys)
    for name in AGENTS:
        federation.wait(e.AgentAdmitted, agent_id=name)
    federation.run_round(120)
    return federation
