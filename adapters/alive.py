"""Threads and tasks that cannot die unnoticed.

A thread that dies of an exception says so on standard error, where nobody looks, and
the process goes on without it: a node that hears nothing more, a party that compares
nothing. A task says so when it is collected, or never. So nothing else in the tree
starts a thread or a task (`tests/architecture` checks): one that fails ends its
process, with a line in the log, and whoever runs the services restarts it.

Pools are exempt: whoever submits work to one asks for its result.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from typing import Any, Final, NoReturn, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

EXIT_FAILED: Final = 70  # EX_SOFTWARE of sysexits.h
AGAIN_AFTER_S: Final = 1.0
"""What fails at each start should not keep a core busy."""

# The loop keeps only a weak reference to a task.
_tasks: set[asyncio.Task[Any]] = set()

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock: Final = threading.Lock()


def end_process() -> NoReturn:
    """End at once, committing nothing; whoever runs the services restarts it."""
    logging.shutdown()
    os._exit(EXIT_FAILED)


def begin_again() -> NoReturn:
    """Become a fresh process of the same program, committing nothing.

    Its id, arguments and environment stay, so whoever runs it need not notice; memory,
    threads, connections and locks go.
    """
    logging.shutdown()
    time.sleep(AGAIN_AFTER_S)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606


def start_thread(work: Callable[[], object], name: str) -> threading.Thread:
    """Start a thread that does not keep the process alive, and ends it if it fails."""

    def run() -> None:
        try:
            work()
        except BaseException:  # a Rust library's panic is no Exception
            log.critical("the thread %r cannot go on", name, exc_info=True)
            end_process()

    thread = threading.Thread(target=run, name=name, daemon=True)
    thread.start()
    return thread


def start_task(work: Coroutine[Any, Any, object], name: str) -> asyncio.Task[Any]:
    """Start a task that nobody waits for, and that ends the process if it fails."""

    def see(task: asyncio.Task[Any]) -> None:
        _tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.critical("the task %r cannot go on", name, exc_info=error)
            end_process()

    task = asyncio.get_running_loop().create_task(work, name=name)
    _tasks.add(task)
    task.add_done_callback(see)
    return task


def run_in_background(work: Coroutine[Any, Any, T]) -> Future[T]:
    """Run a coroutine in the process's one loop that runs in a thread.

    The loop runs on between calls, and holds what belongs to a loop: connections.

    Returns:
        The result to come; an error shows only to those who ask for it.
    """
    return asyncio.run_coroutine_threadsafe(work, _background())


def _background() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603  # one for the process
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            start_thread(_loop.run_forever, "background loop")
        return _loop


def describe_end(task: asyncio.Future[Any]) -> str:
    """Say how a task ended that should have gone on."""
    return repr(None if task.cancelled() else task.exception())


async def run_together(*work: Coroutine[Any, Any, object]) -> None:
    """Run tasks until the first ends, then cancel the others and wait for them.

    Raises:
        Exception: what the first to end raised.
    """
    loop = asyncio.get_running_loop()
    tasks = [loop.create_task(item) for item in work]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
