"""File descriptors: how many there may be, and spares for what must not fail.

Each file, socket and pipe of a process takes one of the number that `ulimit -n` allows.
Clients can use them up unless somebody counts. Rules:

- `raise_limit`, once, when a serving process starts.
- Incoming connections leave some for the rest: `find_room`, called before any is
  accepted (`adapters.listening`).
- What must not fail for want of a descriptor, such as storing a vote, uses `SPARES`.
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
    """Let this process and its children open more files, if allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = WANTED if hard == resource.RLIM_INFINITY else min(WANTED, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with suppress(OSError, ValueError):  # the kernel may have its own limit
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def find_room(reserve: int) -> int:
    """Return how many connections fit, keeping some descriptors back.

    Args:
        reserve: How many descriptors this process needs for what it opens later.

    Raises:
        OSError: not even one is left.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    limit = 2**31 - 1 if soft == resource.RLIM_INFINITY else soft
    taken = sum(int(opened.name) < limit for opened in Path("/dev/fd").iterdir())
    return limit - (taken - 1) - reserve  # without the one that reads the list


class Spares:
    """A few open descriptors that can be given up. For all threads."""

    def __init__(self) -> None:
        self._held: list[int] = []
        self._lock = threading.Lock()

    def call(self, open_files: Callable[[], T]) -> T:
        """Call a function that opens and closes files; retry if descriptors ran out.

        Args:
            open_files: Must be able to repeat what it did before failing.

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
"""This process's."""
