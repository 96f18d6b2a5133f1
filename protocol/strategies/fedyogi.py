"""FedYogi: the second moment moves towards the square, by a part of the square.

v = v - (1 - beta_2) g^2 sign(v - g^2), of the average update g.

Source: Reddi et al. 2021 (arXiv:2003.00295), algorithm 2.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from protocol.strategies.adaptive import make_adaptive
from protocol.strategies.strategy import Vector


def _update_second(second: Vector, squared: Vector, beta_2: float) -> Vector:
    side = np.sign(np.subtract(second, squared))
    towards = np.multiply(np.multiply(squared, side), 1.0 - beta_2)
    return np.subtract(second, towards)


FEDYOGI: Final = make_adaptive("FEDYOGI", _update_second)
