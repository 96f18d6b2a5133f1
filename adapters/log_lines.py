"""Other people's text, made safe for terminals and logs.

Names, explanations, details and addresses are others' words, and a terminal obeys them:
escape sequences move the cursor and change titles, bidirectional overrides reorder what
is read, and a line break forges a line of ours. So everything that is not plainly
visible is escaped: by `cli.show` in what a command prints, and here in what any process
logs.
"""

from __future__ import annotations

import logging
import sys
import threading
import traceback
from types import TracebackType
from typing import Any, Final

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


def guard_logs() -> None:
    """Confine whatever this process logs, or dies of, to lines of its own."""
    logging.setLogRecordFactory(_Record)
    sys.excepthook = _show_uncaught
    threading.excepthook = lambda args: _show_uncaught(
        args.exc_type, args.exc_value or args.exc_type(), args.exc_traceback
    )
