"""A thread or a task that ends by an exception ends its process, and says why."""

import asyncio
import subprocess
import sys
import time

import pytest

from adapters import alive

PROGRAM = """
import asyncio, logging, threading
from adapters import alive
logging.basicConfig(force=True)

def fail():
    raise ValueError("why")

async def fail_later():
    await asyncio.sleep(0.01)
    fail()

async def main():
    alive.start_task(fail_later(), "the work")
    await asyncio.sleep(60)

{}
threading.Event().wait(60)
print("went on")
"""


@pytest.mark.parametrize(
    "work", ['alive.start_thread(fail, "the work")', "asyncio.run(main())"]
)
def test_what_fails_ends_the_process(work):
    finished = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(work)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == alive.EXIT_FAILED
    assert "'the work' cannot go on" in finished.stderr
    assert "ValueError: why" in finished.stderr
    assert not finished.stdout


def test_what_ends_by_itself_or_is_cancelled_ends_nothing(monkeypatch):
    ended = []
    monkeypatch.setattr(alive, "end_process", lambda: ended.append(True))
    alive.start_thread(lambda: None, "short").join()

    async def main():
        alive.start_task(asyncio.sleep(0), "short")
        endless = alive.start_task(asyncio.sleep(60), "endless")
        await asyncio.sleep(0.01)
        endless.cancel()
        await asyncio.sleep(0.01)

    asyncio.run(main())
    assert not ended


def test_the_first_that_ends_ends_those_beside_it():
    seen = []

    async def endless():
        try:
            await asyncio.sleep(60)
        finally:
            seen.append("cancelled")

    async def fail():
        await asyncio.sleep(0.01)
        raise ValueError("why")

    with pytest.raises(ValueError, match="why"):
        asyncio.run(alive.run_together(endless(), fail()))
    assert seen == ["cancelled"]


def test_the_background_goes_on_while_nobody_asks():
    ticks = []

    async def tick():
        while len(ticks) < 5:
            ticks.append(time.monotonic())
            await asyncio.sleep(0.01)
        return len(ticks)

    work = alive.run_in_background(tick())
    time.sleep(0.2)
    assert work.done()
    assert work.result() == 5


def test_the_background_is_one_loop():
    async def loop():
        return asyncio.get_running_loop()

    first, second = (alive.run_in_background(loop()).result() for _ in range(2))
    assert first is second
