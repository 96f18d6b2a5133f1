"""Two sequencers at once: one that was frozen and wakes up, one that stands by."""

import os
import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from cli.stack.processes import kill_owned, last_lines, spawn_owned
from schemas import events as e
from streams.app import find_reading_problem
from tests.integration.harness import Federation, Puppet, World, wait_until

SUCCESSOR = "second-sequencer"


TAKEN_OVER_S = 180
"""Kafka says what a group has read once no transaction may change it: that of a member
that was killed stays open for a minute."""


def test_a_frozen_sequencer_that_wakes_up_cannot_fork_the_log(
    world: World, main: Federation
) -> None:
    number = main.request_round()
    main.wait(e.RoundStarted, round=number)
    # The guard leads a session of its own; the sequencer is in it.
    restarts = world.services.restarts().get("sequencer", 0)
    (frozen,) = world.services.pids("sequencer").values()
    os.killpg(frozen, signal.SIGSTOP)
    try:
        world.services.start(SUCCESSOR, "serve", "sequencer")
        main.wait(e.ModelVersionRegistered, 90, round=number)
    finally:
        os.killpg(frozen, signal.SIGCONT)
    # One that was frozen while idle joins again, and finds out when it has to write:
    # rounds give it something to write.
    for _ in range(5):
        main.run_round(90)
        if world.services.restarts().get("sequencer", 0) > restarts:
            break
    wait_until(
        lambda: world.services.restarts().get("sequencer", 0) > restarts,
        "the frozen sequencer finds that it is replaced",
    )
    # It notices at its next write or its next heartbeat, whichever comes first.
    said = world.services.log_of("sequencer", 300)
    assert "ProducerFenced" in said or "partitions were revoked" in said
    world.services.stop(SUCCESSOR)
    main.run_round(90)

    report = main.audit()
    assert report["is_sound"], report["findings"]


@pytest.mark.parametrize("turns", [1, pytest.param(3, marks=pytest.mark.nightly)])
def test_a_rebalance_in_the_middle_of_a_transaction_does_not_fork_the_log(
    world: World, main: Federation, turns: int
) -> None:
    """What was sent but not committed cannot be read back: whoever loses a partition
    and gets it again would write the same heights twice, in one transaction.
    """
    log = world.directory / "logs" / "standby.log"
    done = threading.Event()
    said: list[str] = []

    def talk() -> None:
        while not done.is_set():
            puppet = Puppet(world, main.name, f"talker-{len(said)}")
            puppet.say(
                e.AgentEnrolmentRequested(
                    federation_id=main.name,
                    agent_id=puppet.name,
                    public_key=puppet.key.public_key,
                )
            )
            said.append(puppet.name)
            time.sleep(0.01)

    talker = threading.Thread(target=talk)
    talker.start()
    try:
        for number in range(
            1, 1 + turns
        ):  # a member that is known joins without a rebalance
            restarts = world.services.restarts().get("sequencer", 0)
            standby = spawn_owned(
                [sys.executable, "-m", "cli.main", "serve", "sequencer"],
                env={
                    **os.environ,
                    **world.environment,
                    "MOOT_INSTANCE_ID": str(number),
                },
                log_path=log,
            )
            try:
                wait_until(
                    lambda: world.services.restarts().get("sequencer", 0) > restarts,  # noqa: B023  # called in this turn only
                    "the sequencer whose partitions were revoked starts again",
                )
                time.sleep(3)
            finally:
                kill_owned(standby)
            # Only who has written can lose anything by the next turn.
            later = f"talker-{len(said) + 1}"
            wait_until(lambda: later in said, "somebody else asks to join")  # noqa: B023  # called in this turn only
            main.wait(e.AgentEnrolmentRequested, TAKEN_OVER_S, agent_id=later)
    finally:
        done.set()
        talker.join()
    main.wait(e.AgentEnrolmentRequested, TAKEN_OVER_S, agent_id=said[-1])
    assert "partitions were revoked" in world.services.log_of("sequencer", 1000)

    report = main.audit()
    assert report["is_sound"], report["findings"] + [last_lines(log, 30)]


@pytest.mark.parametrize(
    "state", ["not joined", "well", "told", "ended", "cancelled", "fetches nothing"]
)
def test_a_member_that_reads_nothing_more_is_noticed(state: str) -> None:
    """aiokafka's own objects; Kafka expels only whom another overtakes in a race."""
    import asyncio

    async def look() -> str | None:
        async def end() -> None:
            raise RuntimeError("expelled")

        task = asyncio.ensure_future(end() if state == "ended" else asyncio.sleep(60))
        if state == "cancelled":
            task.cancel()
        await asyncio.sleep(0.01)
        told = RuntimeError("expelled") if state == "told" else None
        coordinator = SimpleNamespace(_pending_exception=told, _coordination_task=task)
        fetching = asyncio.get_running_loop().create_future()
        if state == "fetches nothing":
            fetching.cancel()
        fetcher = SimpleNamespace(error_future=fetching)
        joined = {"_coordinator": coordinator, "_fetcher": fetcher}
        if state == "not joined":
            joined = {}
        thread = SimpleNamespace(_consumer=SimpleNamespace(**joined))
        try:
            return find_reading_problem(SimpleNamespace(_thread=thread))
        finally:
            task.cancel()

    problem = asyncio.run(look())
    assert (problem is None) == (state in {"not joined", "well"})
