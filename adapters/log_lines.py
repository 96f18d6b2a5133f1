"""Other people's text, made safe for terminals and logs.

Names, explanations, details and addresses are others' words, and a terminal obeys them:
escape sequences move the cursor and change titles, bidirectional overrides reorder what
is read, and a line break forges a line of ours. So everything that is not plainly
visible is escaped: by `cli.show` in what a command prints, and here in what any process
logs.
"""

from __future__ import annotations

import logging
import re
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final

_IDLE: Final = ("torch.utils.flop_counter",)
"""Loggers that warn, when imported, of what we do without: triton, to count flops."""
QUIET_S: Final = 60.0
"""How long a library's like lines are only counted."""
_NUMBERS: Final = re.compile(r"0x[0-9a-f]+|[0-9a-f]*[0-9][0-9a-f]*")
_UNSEEN: Final = frozenset(
    "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
    + "".join(map(chr, (*range(0xFE00, 0xFE10), *range(0xE0100, 0xE01F0))))
)
"""Characters that Unicode counts as printable but that show nothing."""


def printable(text: object) -> str:
    """Return a text as one line that looks like what it is.

    Controls, line breaks, direction marks, invisible characters, surrogates and
    unassigned code points become escapes as Python writes them.
    """
    line = str(text)
    if line.isascii() and line.isprintable():
        return line
    return "".join(
        char
        if char.isprintable() and char not in _UNSEEN
        else char.encode("unicode_escape").decode()
        for char in line
    )


def indent(lines: str) -> str:
    """Return lines that begin with a space, so that none looks like ours."""
    return "\n".join(f"  {printable(line)}" for line in lines.rstrip("\n").split("\n"))


class _Record(logging.LogRecord):
    """A log record whose message is one line, and whose traceback forges none."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.exc_info and self.exc_info[0] is not None:
            # A formatter that finds this does not make its own.
            self.exc_text = indent("".join(traceback.format_exception(*self.exc_info)))

    def getMessage(self) -> str:  # noqa: N802  # logging's name
        """Return the message."""
        return printable(super().getMessage())


def _show_uncaught(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    if sys.stderr is not None and not issubclass(kind, SystemExit):
        text = "".join(traceback.format_exception(kind, error, trace))
        sys.stderr.write(f"error: uncaught:\n{indent(text)}\n")


@dataclass(slots=True)
class _Kind:
    """What libraries said in like words: since when, and how often unheard."""

    since_s: float
    num_unheard: int = 0


class _OnceInAWhile(logging.Handler):
    """Hands on a library's lines, but of each kind of complaint one in `QUIET_S`.

    While Kafka is away its clients say so at every attempt, which is thousands of lines
    of which the first says everything. The next line of any kind after that time tells
    how many there were.
    """

    def __init__(self) -> None:
        super().__init__()
        self._kinds: dict[tuple[str, int, str], _Kind] = {}

    def emit(self, record: logging.LogRecord) -> None:
        """Hand a line on, or count it."""
        now_s = time.monotonic()
        for key, kind in [*self._kinds.items()]:
            if now_s - kind.since_s >= QUIET_S:
                del self._kinds[key]
                if kind.num_unheard:
                    name, level, words = key
                    record_of = logging.getLogger(name).makeRecord
                    text = "%d more like this within %.0f s: %s"
                    values = (kind.num_unheard, now_s - kind.since_s, words)
                    logging.root.handle(
                        record_of(name, level, "", 0, text, values, None)
                    )
        if not logging.WARNING <= record.levelno < logging.CRITICAL:
            logging.root.handle(record)
            return
        # Its template, or for a finished text that without addresses and numbers.
        key = record.name, record.levelno, _NUMBERS.sub("#", str(record.msg))
        if key in self._kinds:
            self._kinds[key].num_unheard += 1
            return
        self._kinds[key] = _Kind(now_s)
        logging.root.handle(record)


def quieten(*names: str) -> None:
    """Let these libraries say the same once in a while, instead of at every attempt."""
    handler = _OnceInAWhile()
    for name in names:
        library = logging.getLogger(name)
        library.handlers = [handler]
        library.propagate = False


def guard_logs() -> None:
    """Confine whatever this process logs, or dies of, to lines of its own."""
    logging.setLogRecordFactory(_Record)
    for name in _IDLE:
        logging.getLogger(name).setLevel(logging.ERROR)
    sys.excepthook = _show_uncaught
    threading.excepthook = lambda args: _show_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )
