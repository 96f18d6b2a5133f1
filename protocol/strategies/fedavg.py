"""FedAvg: the model moves by the average update, times a learning rate of 1.

Source: McMahan et al. 2017 (arXiv:1602.05629), algorithm 1; the learning rate at the
server is that of Reddi et al. 2021 (arXiv:2003.00295).
"""

from __future__ import annotations

from typing import Final

from protocol.strategies.strategy import LEARNING_RATE, Strategy, scale_average

FEDAVG: Final = Strategy(name="FEDAVG", parameters=(LEARNING_RATE,), step=scale_average)
