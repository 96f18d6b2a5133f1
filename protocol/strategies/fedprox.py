"""FedProx: FedAvg of agents that are held back while they train.

Each adds mu/2 times the squared distance of its trained entries from the base model to
its loss. The sum and the step are FedAvg's.

Source: Li et al. 2020 (arXiv:1812.06127), equation 2.
"""

from __future__ import annotations

from typing import Final

from protocol.strategies.strategy import (
    HIGHEST_MICROS,
    LEARNING_RATE,
    Parameter,
    Strategy,
    scale_average,
)

MU: Final = Parameter(
    name="mu", default_micros=10_000, lowest_micros=0, highest_micros=HIGHEST_MICROS
)
FEDPROX: Final = Strategy(
    name="FEDPROX",
    parameters=(LEARNING_RATE, MU),
    step=scale_average,
    proximal=MU.name,
)
