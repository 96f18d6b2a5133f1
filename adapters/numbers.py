"""Numbers that users' code returned, bounded before anything encodes them.

A loss may be a tensor, NaN or 1e13; a data set may say that it has -1 examples, or more
than Avro holds. Everything that a module, a data set or a metric returned goes through
here, and only here, on its way to an event.

torch isn't imported: its scalars have `item()`, like numpy's.
"""

from __future__ import annotations

import math
import numbers
from typing import Any, Final

from protocol.encoding import compute_micros

MAX_COUNT: Final = 2**31 - 1  # = 2,147,483,647
"""Of examples: more than any federation allows one agent."""
_READABLE: Final = 10**18  # Python refuses to write out very long numbers


class BadNumberError(ValueError):
    """Users' code returned something that isn't such a number; the message says what
    it is about, and what was found.
    """


def read_number(value: object, what: str) -> float:
    """Return a number, which may be NaN or infinite.

    Args:
        value: Any object: a Python number, a numpy scalar, an array or tensor of one
            element.
        what: What it is, for the error.

    Raises:
        BadNumberError: it is none of these. A truth value is no number.
    """
    found: Any = _unpack(value, what)
    if isinstance(found, bool) or not isinstance(found, numbers.Real):
        raise BadNumberError(f"{what} is no number but {_name(value)}")
    try:
        return float(found)
    except OverflowError:
        return math.inf if found == abs(found) else -math.inf


def read_count(value: object, what: str) -> int:
    """Return how many there are: 1 to `MAX_COUNT`.

    Raises:
        BadNumberError: it is no whole number in that range.
    """
    found = _unpack(value, what)
    if isinstance(found, bool) or not isinstance(found, numbers.Integral):
        raise BadNumberError(f"{what} is no whole number but {_name(value)}")
    count = int(found)
    if not 1 <= count <= MAX_COUNT:
        found_text = str(count) if abs(count) < _READABLE else "far from it"
        raise BadNumberError(f"{what} must be 1 to {MAX_COUNT}: {found_text}")
    return count


def read_micros(value: object, what: str) -> int | None:
    """Return a number in millionths, rounded; None if it isn't finite, or too large.

    Such a number only informs: nothing fails for want of it.

    Raises:
        BadNumberError: it is no number.
    """
    return compute_micros(read_number(value, what))


def _unpack(value: object, what: str) -> object:
    """Return what numpy's and torch's scalars hold."""
    item = getattr(value, "item", None)
    if not callable(item):
        return value
    try:
        return item()
    except Exception as error:  # more than one element, or no data at all
        raise BadNumberError(f"{what} is no single number: {error}") from error


def _name(value: object) -> str:
    return f"{type(value).__module__}.{type(value).__qualname__}".removeprefix(
        "builtins."
    )
