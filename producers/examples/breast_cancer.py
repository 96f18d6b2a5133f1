"""Breast tumours, malignant or benign: 30 measurements, 569 examples; in scikit-learn.

A table the size of a hospital's; about 1,000 parameters.

The measurements are standardised by constants that are part of the example, as a
federation would publish them: no organisation fits a scaler of its own (the same number
would mean different things to the shared model), and nobody uses the held-out examples.

Source: W. Wolberg, O. Mangasarian, N. Street, W. Street 1993, Breast Cancer Wisconsin
(Diagnostic), UCI Machine Learning Repository (CC BY 4.0).
"""

from typing import Final

import numpy as np
import torch
from sklearn.datasets import load_breast_cancer

from producers.arguments import check_int
from producers.examples.classification import (
    MAX_HIDDEN,
    Classifier,
    DividedDataModule,
)

_NUM_FEATURES: Final = 30
_NUM_CLASSES: Final = 2  # 0 malignant, 1 benign

#: Mean and standard deviation of each measurement over the training examples, to three
#: digits.
_SCALES: Final = (
    (14.3, 3.62),  # mean radius
    (19.4, 4.36),  # mean texture
    (93.2, 25.0),  # mean perimeter
    (673.0, 365.0),  # mean area
    (0.0964, 0.014),  # mean smoothness
    (0.105, 0.053),  # mean compactness
    (0.0907, 0.0821),  # mean concavity
    (0.05, 0.0399),  # mean concave points
    (0.18, 0.0271),  # mean symmetry
    (0.0626, 0.00696),  # mean fractal dimension
    (0.416, 0.285),  # radius error
    (1.23, 0.548),  # texture error
    (2.94, 2.08),  # perimeter error
    (41.9, 47.5),  # area error
    (0.00707, 0.0031),  # smoothness error
    (0.0255, 0.0177),  # compactness error
    (0.0321, 0.0314),  # concavity error
    (0.0119, 0.00623),  # concave points error
    (0.0204, 0.00805),  # symmetry error
    (0.00381, 0.00277),  # fractal dimension error
    (16.5, 4.92),  # worst radius
    (25.8, 6.21),  # worst texture
    (109.0, 34.2),  # worst perimeter
    (904.0, 583.0),  # worst area
    (0.132, 0.0227),  # worst smoothness
    (0.254, 0.153),  # worst compactness
    (0.272, 0.208),  # worst concavity
    (0.115, 0.0658),  # worst concave points
    (0.288, 0.0592),  # worst symmetry
    (0.0835, 0.0169),  # worst fractal dimension
)


class BreastCancerModule(Classifier):
    """A network with one small hidden layer."""

    def __init__(self, hidden: int = 32, learning_rate: float = 0.05) -> None:
        """Build the network.

        Args:
            hidden: Width of the hidden layer, 1 to 65,536; 33 * hidden + 2 parameters.
            learning_rate: Of the optimiser.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        check_int("hidden", hidden, 1, MAX_HIDDEN)
        network = torch.nn.Sequential(
            torch.nn.Linear(_NUM_FEATURES, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, _NUM_CLASSES),
        )
        super().__init__(network, learning_rate)


class BreastCancerDataModule(DividedDataModule):
    """One organisation's tumours, and the held-out ones shared by all."""

    def __init__(
        self,
        organisation: int = 0,
        num_organisations: int = 1,
        alpha: float = 0.3,
        seed: int = 0,
        batch_size: int = 8,
    ) -> None:
        """Take one organisation's part; arguments as for `DividedDataModule`.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        inputs, labels = load_breast_cancer(return_X_y=True)
        means, deviations = np.array(_SCALES).T
        super().__init__(
            (inputs - means) / deviations,
            labels,
            organisation=organisation,
            num_organisations=num_organisations,
            alpha=alpha,
            seed=seed,
            min_examples=8,
            batch_size=batch_size,
        )
