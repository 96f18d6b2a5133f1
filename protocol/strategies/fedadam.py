"""FedAdam: the second moment is a mean of squares that forgets.

v = beta_2 v + (1 - beta_2) g^2, of the average update g.

Source: Reddi et al. 2021 (arXiv:2003.00295), algorithm 2.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from protocol.strategies.adaptive import make_adaptive
from protocol.strategies.strategy import Vector


def _update_second(second: Vector, squared: Vector, beta_2: float) -> Vector:
    return np.add(np.multiply(second, beta_2), np.multiply(squared, 1.0 - beta_2))


FEDADAM: Final = make_adaptive("FEDADAM", _update_second)
