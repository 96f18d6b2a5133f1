"""What FedAdam and FedYogi share: two moments, and a step of one over the other's root.

There is no bias correction, as in Reddi et al. 2021 (arXiv:2003.00295), algorithm 2, so
no powers. The second moment starts at tau squared, the first at 0.

Why moments stay within bounds: the first is a mean of averages, each at most 2^63. The
second is one of squares, at most 2^126, or moves towards a square by less than that
square, from below past it at most once: both stay below 2^128 for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np

from protocol.encoding import MILLION
from protocol.strategies.strategy import (
    HIGHEST_MICROS,
    LEARNING_RATE,
    Moment,
    Parameter,
    Parameters,
    Strategy,
    Vector,
)

FIRST: Final = Moment(
    name="first_moment", largest=2.0**64, is_signed=True, start=lambda _: 0.0
)
SECOND: Final = Moment(
    name="second_moment",
    largest=2.0**128,
    is_signed=False,
    start=lambda chosen: chosen["tau"] * chosen["tau"],
)
PARAMETERS: Final = (
    Parameter(
        name="beta_1",
        default_micros=900_000,
        lowest_micros=0,
        highest_micros=MILLION - 1,
    ),
    Parameter(
        name="beta_2",
        default_micros=990_000,
        lowest_micros=0,
        highest_micros=MILLION - 1,
    ),
    replace(LEARNING_RATE, default_micros=10_000),
    Parameter(
        name="tau",
        default_micros=1_000,
        lowest_micros=1,
        highest_micros=HIGHEST_MICROS,
    ),
)
"""Defaults are those that Reddi et al. recommend or use most."""

UpdateSecond = Callable[[Vector, Vector, float], Vector]
"""Returns the second moment of the one before, the squared average, and beta_2."""


def make_adaptive(name: str, update_second: UpdateSecond) -> Strategy:
    """Return a strategy that differs from its sisters in its second moment only."""

    def step(
        average: Vector, parameters: Parameters, moments: tuple[Vector, ...]
    ) -> tuple[Vector, tuple[Vector, ...]]:
        first, second = moments
        beta_1 = parameters["beta_1"]
        first = np.add(np.multiply(first, beta_1), np.multiply(average, 1.0 - beta_1))
        second = update_second(
            second, np.multiply(average, average), parameters["beta_2"]
        )
        root = np.add(np.sqrt(second), parameters["tau"])
        scaled = np.multiply(first, parameters["learning_rate"])
        return np.divide(scaled, root), (first, second)

    return Strategy(
        name=name, parameters=PARAMETERS, step=step, moments=(FIRST, SECOND)
    )
