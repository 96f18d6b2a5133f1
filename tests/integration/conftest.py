"""What a session shares: one stack, one federation of agents, one more Kafka."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.stack import backends
from cli.stack.fork_server import IS_SUPPORTED, ForkServer
from cli.stack.services import FAUST_SERVICES
from schemas import events as e
from tests.integration.harness import (
    AGENTS,
    LIGHT_AGENT,
    PRELOADED,
    REAL_AGENT,
    Federation,
    World,
    run_world,
    start_agents,
)
from tests.integration.other_kafka import ImpatientKafka

HERE = Path(__file__).parent
MAIN = "main"
LAST = ("test_held_up", "test_raw_records", "test_hostile_kafka")
"""Modules that spoil what others read of the world, in an order in which they go."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put those at the end."""

    def place(item: pytest.Item) -> int:
        stem = item.path.stem if item.path.parent == HERE else ""
        return LAST.index(stem) if stem in LAST else -1

    items.sort(key=place)


@pytest.fixture(scope="session", autouse=True)
def _no_settings() -> Iterator[None]:
    """A user's settings are none of ours."""
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("MOOT_")]:
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _brief_kafka() -> Iterator[None]:
    """Kafka compiles little: it lives briefly here, and starts with 2/3 of the work."""
    with pytest.MonkeyPatch.context() as patch:
        brief = (*backends._KAFKA_JVM, *backends._BRIEF_JVM)
        patch.setattr(backends, "_KAFKA_JVM", brief)
        yield


@pytest.fixture(scope="session")
def is_night(request: pytest.FixtureRequest) -> bool:
    """Whether there is time: processes begin as a user's do, and agents train."""
    marks = request.config.option.markexpr
    return "nightly" in marks and "not nightly" not in marks


@pytest.fixture(scope="session")
def fork_server(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[ForkServer | None]:
    """What programs are forked from, where they can be."""
    if not IS_SUPPORTED:
        yield None
        return
    server = ForkServer(tmp_path_factory.mktemp("forks") / "server.log")
    server.preload(*PRELOADED)
    yield server
    server.close()


@pytest.fixture(scope="session")
def world(
    tmp_path_factory: pytest.TempPathFactory,
    fork_server: ForkServer | None,
    is_night: bool,
) -> Iterator[World]:
    """A stack with the sequencer, the deciders and the aggregator running."""
    forks = None if is_night else fork_server
    with run_world(tmp_path_factory.mktemp("world"), forks) as running:
        yield running


@pytest.fixture(scope="session")
def main(world: World, is_night: bool) -> Federation:
    """A federation of agents, with one round behind it.

    Tests share it: each runs rounds of its own and leaves it with none open.
    """
    federation = world.found(MAIN, min_cohort=len(AGENTS))
    world.start_timer(MAIN)
    world.start_exporter(MAIN)
    start_agents(world, MAIN, program=REAL_AGENT if is_night else LIGHT_AGENT)
    keys = {
        name: federation.wait(e.AgentEnrolmentRequested, agent_id=name).public_key
        for name in AGENTS
    }
    federation.operator.admit(MAIN, keys)
    for name in AGENTS:
        federation.wait(e.AgentAdmitted, agent_id=name)
    federation.run_round(120)
    return federation


@pytest.fixture(scope="session")
def other_kafka(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ImpatientKafka]:
    """A second Kafka, alone, on which topics come and go."""
    with ImpatientKafka(tmp_path_factory.mktemp("other")) as running:
        yield running


@pytest.fixture(scope="session")
def spoiled(world: World) -> World:
    """The world at the session's end: what others started in it is stopped."""
    world.services.stop(*{*world.services.names()} - {*FAUST_SERVICES})
    return world
