"""What the examples share: classifiers of vectors, and arrays as Lightning data."""

from typing import Any, Final

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule, LightningModule
from sklearn.model_selection import train_test_split
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

from producers.arguments import check_float, check_instance, check_int
from producers.examples.partition import divide_by_label

MAX_HIDDEN: Final = 65_536
"""Widest hidden layer of an example; the largest then has 5 million parameters."""


class Classifier(LightningModule):
    """A network that gives a logit per class, trained by cross-entropy.

    Logs what Folkmoot asks of every module: "val_loss" and "val_accuracy".
    """

    def __init__(self, network: torch.nn.Module, learning_rate: float) -> None:
        """Wrap a network.

        Args:
            network: Maps inputs to logits, shape (batch, classes).
            learning_rate: Of stochastic gradient descent with momentum 0.9; 0 to 1,000.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        super().__init__()
        self.network = check_instance("network", network, torch.nn.Module)
        self.learning_rate = check_float(
            "learning_rate", learning_rate, 0.0, _MAX_LEARNING_RATE
        )

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        """Give the logits."""
        logits: torch.Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: list[torch.Tensor]) -> torch.Tensor:
        """Give the loss of one batch."""
        inputs, labels = batch
        return functional.cross_entropy(self(inputs), labels)

    def validation_step(self, batch: list[torch.Tensor]) -> None:
        """Log loss and accuracy."""
        inputs, labels = batch
        logits = self(inputs)
        self.log_dict(
            {
                "val_loss": functional.cross_entropy(logits, labels),
                "val_accuracy": (logits.argmax(dim=1) == labels).float().mean(),
            },
            batch_size=len(labels),
        )

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Give the optimiser; it starts afresh in every round."""
        return torch.optim.SGD(self.parameters(), lr=self.learning_rate, momentum=0.9)


class ArraysDataModule(LightningDataModule):
    """Training and validation data held as arrays."""

    def __init__(
        self,
        training: tuple[NDArray[Any], NDArray[Any]],
        validation: tuple[NDArray[Any], NDArray[Any]],
        batch_size: int,
    ) -> None:
        """Hold the data.

        Args:
            training: Inputs, shape (n, features), and labels, shape (n,).
            validation: Likewise.
            batch_size: For training, 1 to 65,536; validation runs in larger batches.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        super().__init__()
        self._batch_size = check_int("batch_size", batch_size, 1, _MAX_BATCH_SIZE)
        self._training = _dataset("training", training)
        self._validation = _dataset("validation", validation)

    def train_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Give the local training data, shuffled anew in every epoch."""
        return DataLoader(self._training, batch_size=self._batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Give the held-out data, the same at every organisation."""
        return DataLoader(self._validation, batch_size=_VALIDATION_BATCH_SIZE)

    def test_dataloader(self) -> DataLoader[tuple[torch.Tensor, ...]]:
        """Give the held-out data."""
        return self.val_dataloader()


class DividedDataModule(ArraysDataModule):
    """One organisation's part of a public data set, and the examples all hold out."""

    def __init__(
        self,
        inputs: NDArray[Any],
        labels: NDArray[Any],
        *,
        organisation: int,
        num_organisations: int,
        alpha: float,
        seed: int,
        min_examples: int,
        batch_size: int,
    ) -> None:
        """Take one organisation's part.

        Args:
            inputs: The whole data set, shape (n, features).
            labels: Shape (n,).
            organisation: Which one, 0 ≤ organisation < num_organisations.
            num_organisations: How many share the training data; 1 gives it all to one.
            alpha: Evenness of the division, 0.001 to 1,000; 0.3 leaves each with few
                labels.
            seed: Of the division, below 2^32; the same at every organisation.
            min_examples: Fewest examples of any organisation, 1 or more.
            batch_size: For training.

        Raises:
            ArgumentError: An argument has the wrong kind or is out of bounds.
        """
        for name, value in (("inputs", inputs), ("labels", labels)):
            check_instance(name, value, np.ndarray)
        check_int("min_examples", min_examples, 1, len(labels))
        # `train_test_split` leaves fewer; an organisation left with none is told so.
        check_int("num_organisations", num_organisations, 1, len(labels))
        check_int("organisation", organisation, 0, num_organisations - 1)
        check_int("seed", seed, 0, _MAX_SEED)
        check_float("alpha", alpha, _MIN_ALPHA, _MAX_ALPHA)
        train_inputs, test_inputs, train_labels, test_labels = train_test_split(
            inputs,
            labels,
            test_size=_TEST_FRACTION,
            random_state=_TEST_SEED,
            stratify=labels,
        )
        part = divide_by_label(
            train_labels,
            num_organisations=num_organisations,
            alpha=alpha,
            seed=seed,
            min_examples=min_examples,
        )[organisation]
        super().__init__(
            (train_inputs[part], train_labels[part]),
            (test_inputs, test_labels),
            batch_size,
        )


_VALIDATION_BATCH_SIZE: Final = 512
_TEST_FRACTION: Final = 0.2
_TEST_SEED: Final = 2017  # fixed: the same held-out examples for everybody, always
_MAX_LEARNING_RATE: Final = 1e3
_MAX_BATCH_SIZE: Final = 65_536
_MAX_SEED: Final = 2**32 - 1
_MIN_ALPHA: Final = 1e-3
_MAX_ALPHA: Final = 1e3


def _dataset(name: str, arrays: tuple[NDArray[Any], NDArray[Any]]) -> TensorDataset:
    inputs, labels = check_instance(name, arrays, tuple)
    return TensorDataset(
        torch.from_numpy(inputs.astype(np.float32)),
        torch.from_numpy(labels.astype(np.int64)),
    )
