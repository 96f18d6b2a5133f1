"""A service told to stop in the middle of its work loses none of it."""

import os
import sys
import time

import pytest

from cli.stack.processes import kill_owned, spawn_owned
from schemas import events as e
from tests.integration.harness import Federation, Puppet, World, wait_until
from tests.paths import ROOT

SLOW = """
import asyncio
import time
from pathlib import Path

from streams.app import serve

marker = Path("{marker}")


def make_slow_aggregator():
    from streams.aggregator import Aggregator, make_aggregator

    do = Aggregator.do

    def slow(self, work):
        if work:
            marker.touch()
            time.sleep(1)
        return do(self, work)

    Aggregator.do = slow
    return make_aggregator()


def make_slow_sequencer():
    from streams.sequencer import Sequencer, make_sequencer

    process = Sequencer.process

    async def slow(self, batch):
        marker.touch()
        await asyncio.sleep(1)
        await process(self, batch)

    Sequencer.process = slow
    return make_sequencer()


serve(make_slow_{service}())
"""


@pytest.mark.parametrize("service", ["aggregator", "sequencer"])
def test_what_was_begun_is_done_by_the_next_process(
    world: World, main: Federation, service: str
) -> None:
    """Faust acknowledges what it handed out when it stops, whether it was done or not.

    Nobody would have looked at it any more.
    """
    marker = world.directory / f"slow-{service}-is-at-work"
    world.services.stop(service)
    process = spawn_owned(
        [sys.executable, "-c", SLOW.format(marker=marker, service=service)],
        env={**os.environ, **world.environment, "PYTHONPATH": str(ROOT)},
        log_path=world.directory / "logs" / "slow.log",
    )
    puppet = Puppet(world, main.name, f"asks-the-{service}")
    puppet.say(
        e.AgentEnrolmentRequested(
            federation_id=main.name,
            agent_id=puppet.name,
            public_key=puppet.key.public_key,
        )
    )
    number = main.request_round()
    try:
        wait_until(marker.exists, "it is at work")
        time.sleep(0.5)
        process.terminate()
        process.wait(30)
    finally:
        kill_owned(process)
        world.services.start(service, "serve", service)

    main.wait(e.AgentEnrolmentRequested, agent_id=puppet.name)
    main.wait(e.ModelVersionRegistered, 60, round=number)
    assert main.audit()["is_sound"]
