"""What commands show: one place where text goes to a terminal.

Others' words are in nearly all of it, so everything is written out that does not stand
for itself (`adapters.log_lines`).
"""

from __future__ import annotations

import io
import json
import sys
import time
from typing import Any

from adapters.log_lines import guard_logs, printable


def say(*lines: object, is_error: bool = False) -> None:
    """Print lines, at once; each is one line, whatever is in it.

    Args:
        *lines: What to print.
        is_error: Whether it goes to standard error.
    """
    text = "".join(f"{printable(line)}\n" for line in lines)
    print(text, end="", file=sys.stderr if is_error else None, flush=True)


def say_json(value: Any, *, is_wide: bool = False) -> None:
    """Print JSON's types; what is not ASCII is escaped.

    Args:
        value: What to print.
        is_wide: Whether it may take many lines.
    """
    say(*json.dumps(value, indent=2 if is_wide else None, allow_nan=False).split("\n"))


def say_error(error: object) -> None:
    """Print why something could not be done, to standard error.

    What comes after a line break begins with a space: it is no line of its own.
    """
    first, *rest = str(error).split("\n")
    say(f"error: {first}", *(f"  {line}" for line in rest), is_error=True)


def show_time(at_s: float) -> str:
    """Return a time as people read it, or the number if no calendar has it.

    Args:
        at_s: Seconds since 1970-01-01 UTC, by anybody's clock.
    """
    try:
        return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(at_s))
    except (ValueError, OverflowError, OSError):
        return f"{at_s} s"


def prepare() -> None:
    """Make printing and logging of this process safe, whatever is printed."""
    guard_logs()
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a character gets its escape.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
