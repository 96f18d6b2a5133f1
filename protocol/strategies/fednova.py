"""FedNova: agents that take more steps do not weigh more for it.

Each agent divides its update by the number of optimiser steps that it took, and says
how many. The average of what they say is multiplied by the average number of steps,
weighted by examples as well: the model moves as far as with FedAvg, and towards the
minimum of the loss that all have together, however differently fast they are.

The number of steps is the agent's claim, like its number of examples. It multiplies
everybody's update, so an operator bounds it; an agent that took more divides by the
bound and says the bound.

Source: Wang et al. 2020 (arXiv:2007.07481), equation 9 with plain SGD at the agents.
"""

from __future__ import annotations

from typing import Final

from protocol.encoding import MILLION
from protocol.strategies.strategy import (
    LEARNING_RATE,
    MAX_NUM_STEPS,
    Parameter,
    Strategy,
    scale_average,
)

MAX_STEPS: Final = Parameter(
    name="max_steps",
    default_micros=1_000 * MILLION,
    lowest_micros=MILLION,
    highest_micros=MAX_NUM_STEPS * MILLION,
)
FEDNOVA: Final = Strategy(
    name="FEDNOVA",
    parameters=(LEARNING_RATE, MAX_STEPS),
    step=scale_average,
    max_steps=MAX_STEPS.name,
)
