"""File descriptors: how many there may be, and a few that are kept for what must work.

Each file, socket and pipe of a process takes one, out of as many as `ulimit -n` says.
Whoever may connect to us can use them up, unless somebody counts. Rules:

- `raise_limit`, once at the start of a process that serves.
- Connections of others leave some for the rest: `find_room`, asked before anybody is
  accepted (`adapters.listening`).
- What must not fail for want of a descriptor, such as storing a vote, has `SPARES`.
"""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

WANTED: Final = 4_096
"""More than any process of ours opens."""
_NONE_LEFT: Final = frozenset({errno.EMFILE, errno.ENFILE})
_NUM_SPARES: Final = 4

T = TypeVar("T")


def raise_limit() -> None:
    """Let this process, and those that it starts, open more files, if it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # the kernel may have a limit of its own
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def find_room(reserve: int) -> int:
    """Return how many connections there can be, with some descriptors kept back.

    Args:
        reserve: How many descriptors are for what this process opens later on.

    Raises:
        OSError: there is not even one left.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 2**31 - 1 if soft == resource.RLIM_INFINITY else soft
    taken = sum(int(opened.name) < limit for opened in Path("/dev/fd").iterdir())
    return limit - (taken - 1) - reserve  # but for the one that reads the list


class Spares:
    """A few descriptors that are open so that they can be given up. For all threads."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._lock = threading.Lock()

    def call(self, open_files: Callable[[], T]) -> T:
        """Call a function that opens files and closes them; again if there are none.

        Args:
            open_files: What it does before it fails, it must be able to do again.

        Raises:
            OSError: it failed for another reason, or twice.
        """
        self._take()
        try:
            return open_files()
        except OSError as error:
            if error.errno not in _NONE_LEFT:
                raise
        self._give_up()
        try:
            return open_files()
        finally:
            self._take()

    def _take(self) -> None:
        with self._lock, suppress(OSError):
            while len(self._held) < _NUM_SPARES:
                self._held.append(_open_nothing())

    def _give_up(self) -> None:
        with self._lock:
            while self._held:
                os.close(self._held.pop())


def _open_nothing() -> int:
    return os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC)


SPARES: Final = Spares()
"""Of this process."""
