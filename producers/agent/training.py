"""One agent's share of a round: train any Lightning module on any data module.

A module must do what Lightning asks of it anyway, and three things more:

- `forward(inputs)` is the model's answer, for the exported artifact;
- `validation_step` logs "val_loss" and "val_accuracy" (a fraction);
- the data module's training and validation data are one DataLoader each, over a
  dataset of known length.

The optimiser is the module's own (`configure_optimizers`) and starts afresh in every
round: its state isn't exchanged.

The same arguments give the same result on the same machine and number of threads.
Another machine may differ in the last bits, which is harmless: an update is an input to
the protocol, never recomputed. The seed drives initialisation and the order of
examples, nothing secret.

Importing this module loads torch.
"""

import logging
import tempfile
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
    seed_everything,
)
from pytorch_lightning.utilities.seed import isolate_rng

from adapters.models import make_model, read_state, write_state
from protocol.exchanged_state import Model, StateClass


class TrainingError(Exception):
    """The module or the data module doesn't do what this file asks of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What local training produced.

    Attributes:
        tensors: The whole state of the model afterwards: arrays by name.
        num_examples: Size of the local training set, at least 1.
        loss: Mean training loss over the batches of the last epoch.
        num_steps: Optimiser steps taken.
    """

    tensors: Mapping[str, NDArray[Any]]
    num_examples: int
    loss: float
    num_steps: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model's results on the validation data.

    Attributes:
        accuracy: Fraction of examples classified correctly, 0 to 1.
        loss: Mean loss.
        num_examples: Size of the validation set, at least 1.
    """

    accuracy: float
    loss: float
    num_examples: int


def initialise(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    seed: int,
    rules: Sequence[tuple[str, StateClass]] = (),
) -> Model:
    """Initialise a model.

    Args:
        module: The model's class.
        module_config: Its keyword arguments.
        seed: 0 ≤ seed < 2^32.
        rules: Classes by pattern of names, before those by kind.

    Returns:
        The model: its whole state, each entry with its class.

    Raises:
        RefusedStateError: The state, or a part of it, can't be exchanged.
    """
    with _reproducible(seed):
        return make_model(module(**module_config), rules)


def initial_tensors(
    *, module: type[LightningModule], module_config: Mapping[str, Any], seed: int
) -> Mapping[str, NDArray[Any]]:
    """Return the arrays of `initialise`, by name, sorted by name."""
    return initialise(module=module, module_config=module_config, seed=seed).tensors


def train(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    data_module: type[LightningDataModule],
    data_config: Mapping[str, Any],
    base: Mapping[str, NDArray[Any]],
    local_epochs: int,
    seed: int,
    timeout_s: float | None = None,
    accelerator: str = "cpu",
) -> TrainingResult:
    """Train the base model on local data.

    Args:
        module: The model's class.
        module_config: Its keyword arguments.
        data_module: The class with the local data.
        data_config: Its keyword arguments.
        base: The round's global model: exactly the entries of the module's state.
        local_epochs: Passes over the local data, at least 1.
        seed: 0 ≤ seed < 2^32.
        timeout_s: When to give up, checked after each batch; None: never. The task sets
            the number of epochs, so an agent gives up when its round has ended.
        accelerator: Where to train, in Lightning's words; one device.

    Returns:
        The model after training, and what the round needs to know about it.

    Raises:
        StateMismatchError: `base` isn't a model of this class.
        TrainingError: The training data has no length or no examples,
            `training_step` returns no loss, or it took too long.
    """
    with _quiet(), _reproducible(seed), tempfile.TemporaryDirectory() as folder:
        model = module(**module_config)
        write_state(model, base)
        losses = _EpochLoss()
        callbacks: list[Callback] = [losses]
        if timeout_s is not None:
            callbacks.append(_GiveUp(time.monotonic() + timeout_s))
        trainer = _trainer(
            folder,
            accelerator=accelerator,
            callbacks=callbacks,
            limit_val_batches=0,
            max_epochs=local_epochs,
        )
        trainer.fit(model, datamodule=data_module(**data_config))
        num_examples = _num_examples(trainer.train_dataloader)
        return TrainingResult(
            tensors=read_state(model),
            num_examples=num_examples,
            loss=losses.mean(),
            num_steps=trainer.global_step,
        )


def evaluate(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    data_module: type[LightningDataModule],
    data_config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
    accelerator: str = "cpu",
) -> Evaluation:
    """Measure a model on the data module's validation data. Arguments as for `train`;
    ``tensors`` are exactly the entries of the module's state.

    Returns:
        What the module logged as "val_accuracy" and "val_loss".

    Raises:
        StateMismatchError: `tensors` isn't a model of this class.
        TrainingError: The module doesn't log both, or the validation data has no
            length or no examples.
    """
    with _quiet(), _reproducible(0), tempfile.TemporaryDirectory() as folder:
        model = module(**module_config)
        write_state(model, tensors)
        trainer = _trainer(folder, accelerator=accelerator)
        data = data_module(**data_config)
        results = trainer.validate(model, datamodule=data, verbose=False)
        metrics = results[0] if results else {}
        if not {"val_accuracy", "val_loss"} <= metrics.keys():
            msg = f"{module.__name__} doesn't log val_accuracy and val_loss"
            raise TrainingError(msg)
        return Evaluation(
            accuracy=metrics["val_accuracy"],
            loss=metrics["val_loss"],
            num_examples=_num_examples(trainer.val_dataloaders),
        )


class _EpochLoss(Callback):
    """Collects the training losses of the current epoch."""

    def __init__(self) -> None:
        self._losses: list[float] = []

    def on_train_epoch_start(self, *_: Any) -> None:
        self._losses = []

    def on_train_batch_end(
        self,
        trainer: Trainer,  # noqa: ARG002
        pl_module: LightningModule,  # noqa: ARG002
        outputs: Any,
        batch: Any,  # noqa: ARG002
        batch_idx: int,  # noqa: ARG002
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            self._losses.append(float(loss))

    def mean(self) -> float:
        if not self._losses:
            msg = "training_step returned no loss, or there was nothing to train on"
            raise TrainingError(msg)
        return float(np.mean(self._losses))


class _GiveUp(Callback):
    """Ends training that takes too long."""

    def __init__(self, at_s: float) -> None:
        self._at_s = at_s

    def on_train_batch_end(self, *_: Any) -> None:
        if time.monotonic() > self._at_s:
            raise TrainingError("training took too long")


def _trainer(folder: str, **options: Any) -> Trainer:
    """Build a Trainer that computes and leaves nothing behind."""
    return Trainer(
        default_root_dir=folder,
        deterministic=True,
        devices=1,
        enable_checkpointing=False,
        enable_model_summary=False,
        enable_progress_bar=False,
        log_every_n_steps=1,
        logger=False,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        **options,
    )


def _num_examples(loader: Any) -> int:
    try:
        num_examples = len(loader.dataset)
    except (AttributeError, TypeError) as error:
        msg = "the data isn't one DataLoader over a dataset of known length"
        raise TrainingError(msg) from error
    if num_examples < 1:
        raise TrainingError("the data has no examples")
    return num_examples


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random; restore their state, unless training fails."""
    deterministic = torch.are_deterministic_algorithms_enabled()
    with isolate_rng():
        seed_everything(seed, workers=True, verbose=False)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(deterministic)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence what Lightning says on every run, and nothing else."""
    loggers = [logging.getLogger(f"{n}.utilities.rank_zero") for n in _LIGHTNING]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in _EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


_LIGHTNING = ("pytorch_lightning", "lightning_fabric")
#: Small data needs no worker processes, a GPU stays free unless asked for, and how
#: Lightning calls torch is not ours to mend.
_EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r"GPU available but not used.*",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
