"""Days in the life of a federation: pauses, silence, outages, and rounds between.

Nobody may die without being started again and saying why, and the log stays sound.
"""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from adapters.settings import Settings
from cli.stack.stack import KAFKA
from schemas import events as e
from tests.integration.harness import AGENTS, Federation, World, wait_until
from tests.integration.outages import outage

ROUND_TIMEOUT_S = 180.0
CLEANUP_S = 10.0
"""How often Kafka looks for transactions whose time is up."""
LAST_WORDS = (
    "cannot go on",
    "partitions were revoked",
    "this process ends",
    "joining again",
    "whether another took over is unknown",
    "does not answer",
)
"""What a process says that ends of itself."""


class Life:
    """A federation's services and agents, and what may happen to them."""

    def __init__(self, world: World, main: Federation, draw: random.Random) -> None:
        self._world = world
        self._main = main
        self._draw = draw
        settings: Settings = world.settings
        self._pause_s = (
            max(settings.session_timeout_s, settings.transaction_timeout_s) + CLEANUP_S
        )
        """Longer than every time-out."""
        self.killed: list[str] = []

    def run_round(self) -> None:
        self._main.run_round(ROUND_TIMEOUT_S)

    def rest(self) -> None:
        """Nothing happens for a while."""
        time.sleep(self._pause_s)

    def suspend_all(self) -> None:
        """The machine sleeps, as far as services and agents can tell."""
        self._suspend(self._world.services.names(), self._pause_s)

    def suspend_some_in_a_round(self) -> None:
        names = self._world.services.names()
        chosen = self._draw.sample(names, self._draw.randint(1, len(names)))
        number = self._main.request_round()
        time.sleep(self._draw.uniform(0, 2))
        self._suspend(chosen, self._pause_s)
        self._main.wait(e.ModelVersionRegistered, ROUND_TIMEOUT_S, round=number)

    def restart_kafka(self) -> None:
        """Every coordinator goes and comes again."""
        with outage(self._world.stack, KAFKA):
            time.sleep(self._draw.uniform(1, 10))

    def kill_one(self) -> None:
        name = self._draw.choice([*AGENTS, *self._world.services.names()])
        self.killed.append(name)
        self._world.services.kill(name)

    def _suspend(self, names: list[str], pause_s: float) -> None:
        pids = [*self._world.services.pids(*names).values()]
        for pid in pids:
            os.killpg(pid, signal.SIGSTOP)
        try:
            time.sleep(pause_s)
        finally:
            for pid in pids:
                os.killpg(pid, signal.SIGCONT)


@pytest.mark.timeout(3 * 3_600)
@pytest.mark.parametrize(
    "duration_s", [0, pytest.param(2 * 3_600, marks=pytest.mark.nightly)]
)
def test_nobody_dies_unseen(world: World, main: Federation, duration_s: float) -> None:
    """At least once each; in two hours, again and again."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    draw = random.Random(seed)
    life = Life(world, main, draw)
    before = world.services.restarts()
    deadline = time.monotonic() + duration_s
    while True:
        events: list[Callable[[], None]] = [
            life.suspend_all,
            life.suspend_some_in_a_round,
            life.restart_kafka,
            life.kill_one,
        ]
        if duration_s:
            events += [life.rest] * 3
        draw.shuffle(events)
        for happen in events:
            print(happen.__name__)
            happen()
            life.run_round()
        if time.monotonic() > deadline:
            break

    names = world.services.names()
    wait_until(
        lambda: all(
            process.poll() is None
            for process in world.services.supervisor._processes.values()
        ),
        "everybody is there",
    )
    for name in names:
        ended = world.services.restarts().get(name, 0) - before.get(name, 0)
        ended -= life.killed.count(name)
        if ended > 0:
            said = world.services.supervisor.log_path(name).read_text()
            assert any(words in said for words in LAST_WORDS), (name, ended, said)
    report = main.audit()
    assert report["is_sound"], report["findings"]
