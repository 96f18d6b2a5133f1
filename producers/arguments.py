"""Checks of constructor arguments that a federation's task chooses.

Whoever writes a task chooses the arguments of the classes that it names, so a class
that an agent allows has to bound each of them before it does anything with it: sizes
and counts first of all. The examples do, and a model of your own can do it with the
same functions.

What is wrong is said without the value: it may be an agent's own.
"""

from typing import Any, TypeVar

T = TypeVar("T")


class ArgumentError(ValueError):
    """An argument is of the wrong kind or out of bounds; the message says which."""


def check_int(name: str, value: Any, low: int, high: int) -> int:
    """Return a whole number within bounds.

    Args:
        name: The argument's, for people.
        value: Anything; untrusted.
        low: The smallest that is allowed.
        high: The largest that is allowed.

    Raises:
        ArgumentError: It's none, or a bool, or out of bounds.
    """
    if type(value) is not int or not low <= value <= high:
        msg = f"{name} must be a whole number from {low} to {high}"
        raise ArgumentError(msg)
    return value


def check_float(name: str, value: Any, low: float, high: float) -> float:
    """Return a number within bounds.

    Args:
        name: The argument's, for people.
        value: Anything; untrusted.
        low: The smallest that is allowed.
        high: The largest that is allowed; finite.

    Raises:
        ArgumentError: It's none, or a bool, not finite, or out of bounds.
    """
    # A NaN is in no interval.
    if type(value) not in {int, float} or not low <= value <= high:
        msg = f"{name} must be a number from {low:g} to {high:g}"
        raise ArgumentError(msg)
    return float(value)


def check_instance(name: str, value: Any, kind: type[T]) -> T:
    """Return a value of a kind that no JSON has.

    Raises:
        ArgumentError: It's of another kind.
    """
    if not isinstance(value, kind):
        msg = f"{name} must be a {kind.__name__}: no task can give one"
        raise ArgumentError(msg)
    return value
