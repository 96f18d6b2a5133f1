"""Checks of constructor arguments that a federation's task chooses.

A task's author chooses the arguments of the classes that it names, so a class that an
agent allows must bound each of them before using it: sizes and counts first of all. The
examples do so with these functions, and so can your own model.

Messages leave out the value: it may be an agent's own.
"""

from typing import Any, TypeVar

T = TypeVar("T")


class ArgumentError(ValueError):
    """An argument has the wrong kind or is out of bounds; the message says which."""


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number within bounds.

    Args:
        name: The argument's, for the message.
        value: Anything; untrusted.
        low: The smallest that is allowed.
        high: The largest that is allowed.

    Raises:
        ArgumentError: It is no whole number, or out of bounds.
    """
    if type(value) is not int or not low <= value <= high:
        raise ArgumentError(f"{name} must be a whole number from {low} to {high}")
    return value


def check_float(name: str, value: Any, low: float, high: float) -> float:
    """Return a number within bounds.

    Args:
        name: The argument's, for the message.
        value: Anything; untrusted.
        low: The smallest that is allowed.
        high: The largest that is allowed; finite.

    Raises:
        ArgumentError: It is no finite number, or out of bounds.
    """
    # A NaN is in no interval.
    if type(value) not in {int, float} or not low <= value <= high:
        raise ArgumentError(f"{name} must be a number from {low:g} to {high:g}")
    return float(value)


def check_instance(name: str, value: Any, kind: type[T]) -> T:
    """Return a value of a kind that JSON does not have.

    Raises:
        ArgumentError: It's of another kind.
    """
    if not isinstance(value, kind):
        raise ArgumentError(f"{name} must be a {kind.__name__}: no task can give one")
    return value
