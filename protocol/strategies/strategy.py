"""A server strategy: from the average update of a round to the model's next step.

Floats appear here for the first time after encoding. Every operation is element-wise
and one that IEEE 754 rounds correctly (convert, add, subtract, multiply, divide, square
root), each in a call of its own, so that no compiler fuses two of them: the same bits
on every machine. No powers, exponentials or reductions.

A step cannot leave the range of float32, whatever anybody says. An average is at most
2^63 (an int64 over at least 1), times at most `MAX_NUM_STEPS` where steps are counted;
parameters are at most `HIGHEST_MICROS`, and what is carried is within bounds
(`Moment.largest`). So the longest step is below 2^95, and half a unit in the last place
of the largest float32 is 2^103: there is no rule for results that are not finite,
because there are none.

Source: CHOICES.md section F; Reddi et al. 2021 (arXiv:2003.00295).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocol.encoding import MILLION

Vector: TypeAlias = NDArray[np.float64]
Parameters: TypeAlias = Mapping[str, float]
"""All parameters of a strategy, by name."""
Step: TypeAlias = Callable[
    [Vector, Parameters, tuple[Vector, ...]], tuple[Vector, tuple[Vector, ...]]
]
"""Returns what is added to the model, and the next moments, of the average update, the
parameters and the moments; all shape (n,) float64, for any n: no element's result
depends on another element. Its arguments stay as they are."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameter:
    """A number that an operator may choose.

    Attributes:
        name: Its name in the configuration.
        default_micros: What it is unless chosen, in millionths. Released, it never
            changes: logs that say nothing mean this.
        lowest_micros: The least it may be, in millionths, at least 0.
        highest_micros: The most it may be, in millionths; at most `HIGHEST_MICROS` if a
            step is computed with it.
    """

    name: str
    default_micros: int
    lowest_micros: int
    highest_micros: int


MAX_NUM_STEPS: Final = 2**20  # = 1,048,576
"""Optimiser steps that an agent may ever say it took in a round."""
HIGHEST_MICROS: Final = 1_000 * MILLION  # = 1,000,000,000
"""No parameter of a step is larger: steps stay far inside float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """A vector that a strategy carries from round to round.

    Attributes:
        name: Its tensor's name in the state's blob.
        largest: The largest magnitude that it may have.
        is_signed: Whether it may be negative.
        start: What all its values are before the first round.
    """

    name: str
    largest: float
    is_signed: bool
    start: Callable[[Parameters], float]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Strategy:
    """One way to move the model.

    Attributes:
        name: Its name in the configuration.
        parameters: What may be chosen, in ascending order of name.
        step: See `Step`.
        moments: What is carried, in ascending order of name.
        proximal: Name of the parameter that weighs the proximal term in local training;
            empty if there is no such term.
        max_steps: Name of the parameter that bounds how many steps an agent may say it
            took; empty if steps are not counted. It only ever shrinks: all updates are
            multiplied by the mean, so it bounds what one agent may do to them.
    """

    name: str
    parameters: tuple[Parameter, ...]
    step: Step
    moments: tuple[Moment, ...] = ()
    proximal: str = ""
    max_steps: str = ""

    @property
    def counts_steps(self) -> bool:
        """Whether agents divide updates by the steps they took, and say how many."""
        return bool(self.max_steps)


LEARNING_RATE: Final = Parameter(
    name="learning_rate",
    default_micros=MILLION,
    lowest_micros=1,
    highest_micros=HIGHEST_MICROS,
)
"""What a step is multiplied by."""


def scale_average(
    average: Vector, parameters: Parameters, _moments: tuple[Vector, ...]
) -> tuple[Vector, tuple[Vector, ...]]:
    """Return the average update times the learning rate; a `Step`."""
    return np.multiply(average, parameters["learning_rate"]), ()
