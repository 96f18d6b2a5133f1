"""Ctrl-C, for commands that have started something: it stops once, and in order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, Final, Self

EXIT_INTERRUPTED: Final = 130  # 128 and SIGINT's number, as shells have it
_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupts:
    """Turns the first signal that asks for an end into one `KeyboardInterrupt`.

    It is raised only in a block that allows it. Before that it waits, and after it
    nothing interrupts: whatever was started is stopped, and the folder removed.
    """

    def __init__(self) -> None:
        self._is_allowed = False
        self._is_asked = False
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        """Take the signals, but those that our parent has us ignore."""
        self._previous = {
            number: signal.signal(number, self._hear)
            for number in _SIGNALS
            if signal.getsignal(number) != signal.SIG_IGN
        }
        return self

    def __exit__(self, *_: object) -> None:
        """Give them back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let a block be interrupted.

        Raises:
            KeyboardInterrupt: somebody asked for the end.
        """
        self._is_allowed = True
        try:
            if self._is_asked:
                raise KeyboardInterrupt
            yield
        finally:
            self._is_allowed = False

    def _hear(self, _number: int, _frame: FrameType | None) -> None:
        if not self._is_asked:
            os.write(2, b"\nstopping\n")  # a stream may be in the middle of a write
        self._is_asked = True
        if self._is_allowed:
            self._is_allowed = False
            raise KeyboardInterrupt
