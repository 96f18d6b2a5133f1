"""Handwritten digits: 8x8 pixels, ten classes, 1,797 examples; in scikit-learn.

About 19,000 parameters; an epoch takes less than a tenth of a second. The example to
start with.

Source: E. Alpaydin, C. Kaynak 1998, Optical Recognition of Handwritten Digits, UCI
Machine Learning Repository (CC BY 4.0).
"""

from typing import Final

import torch
from sklearn.datasets import load_digits

from producers.arguments import check_int
from producers.examples.classification import (
    MAX_HIDDEN,
    Classifier,
    DividedDataModule,
)

_NUM_PIXELS: Final = 64
_NUM_CLASSES: Final = 10
_MAX_BRIGHTNESS: Final = 16.0  # of a pixel


class DigitsModule(Classifier):
    """A network with one hidden layer."""

    def __init__(self, hidden: int = 256, learning_rate: float = 0.1) -> None:
        """Build the network.

        Args:
            hidden: Width of the hidden layer, 1 to 65,536; 75 * hidden + 10 parameters.
            learning_rate: Of the optimiser.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        check_int("hidden", hidden, 1, MAX_HIDDEN)
        network = torch.nn.Sequential(
            torch.nn.Linear(_NUM_PIXELS, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, _NUM_CLASSES),
        )
        super().__init__(network, learning_rate)


class DigitsDataModule(DividedDataModule):
    """One organisation's digits, and the held-out ones shared by all."""

    def __init__(
        self,
        organisation: int = 0,
        num_organisations: int = 1,
        alpha: float = 0.3,
        seed: int = 0,
        batch_size: int = 16,
    ) -> None:
        """Take one organisation's part; arguments as for `DividedDataModule`.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        inputs, labels = load_digits(return_X_y=True)
        super().__init__(
            inputs / _MAX_BRIGHTNESS,
            labels,
            organisation=organisation,
            num_organisations=num_organisations,
            alpha=alpha,
            seed=seed,
            min_examples=16,
            batch_size=batch_size,
        )
