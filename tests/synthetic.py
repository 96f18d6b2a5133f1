"""A model of any size on trivial data: training takes one optimiser step per epoch."""

from typing import Final

import numpy as np
import torch

from producers.arguments import check_int
from producers.examples.classification import ArraysDataModule, Classifier

_NUM_FEATURES: Final = 16
_NUM_CLASSES: Final = 2
_PARAMETERS_PER_UNIT: Final = _NUM_FEATURES + 1 + _NUM_CLASSES
_MIN_PARAMETERS: Final = _PARAMETERS_PER_UNIT + _NUM_CLASSES
_MAX_PARAMETERS: Final = 2**24
_MAX_ORGANISATION: Final = 2**31
_NUM_EXAMPLES: Final = 8
_NUM_TEST_EXAMPLES: Final = 64


class SyntheticModule(Classifier):
    """A network with one hidden layer, as wide as the size requires."""

    def __init__(self, num_parameters: int, learning_rate: float = 0.01) -> None:
        """Build the network.

        Args:
            num_parameters: Desired size, 21 to 2^24; the network has at most that many,
                and at most 18 fewer.
            learning_rate: Of the optimiser.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        check_int("num_parameters", num_parameters, _MIN_PARAMETERS, _MAX_PARAMETERS)
        hidden = (num_parameters - _NUM_CLASSES) // _PARAMETERS_PER_UNIT
        network = torch.nn.Sequential(
            torch.nn.Linear(_NUM_FEATURES, hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(hidden, _NUM_CLASSES),
        )
        super().__init__(network, learning_rate)


class SyntheticDataModule(ArraysDataModule):
    """Two clouds of points; each organisation has its own sample."""

    def __init__(self, organisation: int = 0, batch_size: int = _NUM_EXAMPLES) -> None:
        """Draw the sample.

        Args:
            organisation: Which one, 0 to 2^31; also the seed.
            batch_size: For training.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        check_int("organisation", organisation, 0, _MAX_ORGANISATION)
        training = _sample(_NUM_EXAMPLES, seed=organisation + 1)
        super().__init__(training, _sample(_NUM_TEST_EXAMPLES, seed=0), batch_size)


def _sample(num_examples: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    labels = np.arange(num_examples) % _NUM_CLASSES
    centres = np.where(labels == 0, -1.0, 1.0)[:, np.newaxis]
    return random.normal(centres, 1.0, (num_examples, _NUM_FEATURES)), labels
