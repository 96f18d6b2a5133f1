"""The one place where text goes to a terminal.

Most of it contains others' words, so whatever is not plainly printable is escaped
(`adapters.log_lines`).
"""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

from adapters.log_lines import guard_logs, printable


def say(*lines: object, is_error: bool = False) -> None:
    """Print lines and flush; each stays one line, whatever is in it."""
    text = "".join(f"{printable(line)}\n" for line in lines)
    print(text, end="", file=sys.stderr if is_error else None, flush=True)


def clear() -> None:
    """Let what is printed next replace the screen, where there is one."""
    if sys.stdout.isatty():
        print("\x1b[H\x1b[2J", end="", flush=True)


def say_json(value: Any, *, is_wide: bool = False) -> None:
    """Print a value as JSON in ASCII."""
    say(*json.dumps(value, indent=2 if is_wide else None, allow_nan=False).split("\n"))


def say_error(error: object) -> None:
    """Print an error to standard error; its further lines are indented."""
    first, *rest = str(error).split("\n")
    say(f"error: {first}", *(f"  {line}" for line in rest), is_error=True)


def show_time(at_s: float) -> str:
    """Return a time as text, or the number if no calendar has it.

    Args:
        at_s: Seconds since 1970-01-01 UTC, by any clock.
    """
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))
    except (ValueError, OverflowError, OSError):
        return f"{at_s} s"


def prepare() -> None:
    """Make this process's printing and logging safe for any text."""
    guard_logs()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
