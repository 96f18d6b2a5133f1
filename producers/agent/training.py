"""One agent's share of a round: train any Lightning module on any data module.

Training is Lightning's own (`adapters.lightning`), with what Folkmoot needs beside it:

- the training data is one DataLoader over a dataset of known length, which is the
  update's weight;
- local epochs are the task's; after each, validation runs if the module and the data
  have any, as schedulers and early stopping expect;
- a loss is reported if `training_step` returns one. With manual optimisation it need
  not.

The optimiser is the module's own (`configure_optimizers`) and starts afresh in every
round: its state isn't exchanged.

The same arguments give the same result on the same machine and number of threads.
Another machine may differ in the last bits, which is harmless: an update is an input to
the protocol, never recomputed. The seed drives initialisation and the order of
examples, nothing secret.

Importing this module loads torch.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_lightning import (
    Callback,
    LightningDataModule,
    LightningModule,
    Trainer,
)

from adapters import lightning
from adapters.lightning import Evaluation, PreparedTask, count_examples, prepare
from adapters.models import demand_determined, make_model, read_state
from producers.agent.proximal import ProximalTerm
from protocol.exchanged_state import Model, RefusedStateError, StateClass

TrainingError = lightning.TaskError


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingResult:
    """What local training produced.

    Attributes:
        tensors: The whole state of the model afterwards: arrays by name.
        num_examples: Size of the local training set, at least 1.
        loss: Mean training loss over the batches of the last epoch; None if
            `training_step` returns none, as with manual optimisation it need not.
        num_steps: Optimiser steps taken.
        num_batches: Batches trained on, in all epochs.
        batches_per_epoch: Batches in a pass over the local data.
    """

    tensors: Mapping[str, NDArray[Any]]
    num_examples: int
    loss: float | None
    num_steps: int
    num_batches: int = 0
    batches_per_epoch: int = 0


def initialise(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    seed: int,
    rules: Sequence[tuple[str, StateClass]] = (),
    data_module: type[LightningDataModule] | None = None,
    data_config: Mapping[str, Any] | None = None,
) -> Model:
    """Initialise a model.

    Args:
        module: The model's class.
        module_config: Its keyword arguments.
        seed: 0 ≤ seed < 2^32.
        rules: Classes by pattern of names, before those by kind.
        data_module: The class with data, for a module whose `setup` reads it or whose
            layers are lazy; None for none.
        data_config: Its keyword arguments.

    Returns:
        The model: its whole state, each entry with its class, as it is when training
        begins.

    Raises:
        RefusedStateError: The state, or a part of it, can't be exchanged, or the module
            holds something random besides.
    """
    with prepare(
        module=module,
        module_config=module_config,
        data_module=data_module,
        data_config=data_config,
        seed=seed,
    ) as task:
        lightning.make_layers(task)
        with prepare(
            module=module,
            module_config=module_config,
            data_module=data_module,
            data_config=data_config,
            seed=(seed + 1) % 2**32,
        ) as other:
            lightning.make_layers(other)
            demand_determined(task.model, other.model)
        if not lightning.has_lazy_layers(task.model):
            return make_model(task.model, rules)
        if data_module is None:
            msg = "the module has lazy layers, which take their shapes from a batch"
            raise RefusedStateError(msg)
        found = _FirstForward(rules)
        _fit(
            task,
            callbacks=[found],
            limit_train_batches=1,
            limit_val_batches=0,
            max_epochs=1,
        )
        return found.get()


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
    max_batches: int | None = None,
    max_time_s: float | None = None,
    proximal_weight: float = 0.0,
    held_back: Collection[str] = (),
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
        max_batches: Most batches of an epoch, in training and in validation; None: all.
        max_time_s: When to end early, with what was trained until then; None: never.
        proximal_weight: mu of the proximal term, at least 0; 0: there is none.
        held_back: Names of the entries that the proximal term holds back.

    Returns:
        The model after training, and what the round needs to know about it.

    Raises:
        StateMismatchError: `base` isn't a model of this class.
        TrainingError: The training data has no length, no examples or no batches,
            `training_step` never returns a loss, it took too long, or a gradient is
            sparse and a proximal term is asked for.
    """
    with prepare(
        module=module,
        module_config=module_config,
        data_module=data_module,
        data_config=data_config,
        tensors=base,
        seed=seed,
    ) as task:
        batches = _Batches()
        callbacks: list[Callback] = [batches]
        if timeout_s is not None:
            callbacks.append(_GiveUp(time.monotonic() + timeout_s))
        if proximal_weight:
            callbacks.append(ProximalTerm(proximal_weight, frozenset(held_back)))
        trainer = _fit(
            task,
            accelerator=accelerator,
            callbacks=callbacks,
            limit_train_batches=max_batches,
            limit_val_batches=max_batches,
            max_epochs=local_epochs,
            max_time=None if max_time_s is None else timedelta(seconds=max_time_s),
        )
        num_examples = _count_training_examples(trainer)
        batches.check(num_examples, is_automatic=task.model.automatic_optimization)
        return TrainingResult(
            tensors=read_state(task.model),
            num_examples=num_examples,
            loss=batches.mean_loss(),
            num_steps=trainer.global_step,
            num_batches=batches.num,
            batches_per_epoch=int(trainer.num_training_batches),
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

    Raises:
        StateMismatchError: `tensors` isn't a model of this class.
        TrainingError: As `adapters.lightning.evaluate`.
    """
    with prepare(
        module=module,
        module_config=module_config,
        data_module=data_module,
        data_config=data_config,
        tensors=tensors,
    ) as task:
        return lightning.evaluate(task, accelerator=accelerator)


def _fit(task: PreparedTask, **options: Any) -> Trainer:
    """Run Lightning's `fit`; returns the Trainer that did."""
    trainer = task.make_trainer(**options)
    trainer.fit(task.model, datamodule=task.data)
    return trainer


def _count_training_examples(trainer: Trainer) -> int:
    loader = trainer.train_dataloader
    if isinstance(loader, Mapping | list | tuple):
        # How many examples a step takes would be anybody's guess.
        raise TrainingError("the training data must be one DataLoader")
    return count_examples(loader)


class _Batches(Callback):
    """Counts batches and collects the training losses of the current epoch."""

    def __init__(self) -> None:
        self.num = 0
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
        self.num += 1
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, torch.Tensor):
            self._losses.append(float(loss))

    def check(self, num_examples: int, *, is_automatic: bool) -> None:
        """Check that something was trained.

        Raises:
            TrainingError: Nothing was.
        """
        if not self.num:
            raise TrainingError(
                f"the training data gives no batch: it has {num_examples} examples, "
                "and its DataLoader may drop an incomplete batch (drop_last)"
            )
        if is_automatic and not self._losses:
            raise TrainingError(
                "training_step returned no loss, so Lightning took no step: return "
                'the loss, or a dict with it as "loss"'
            )

    def mean_loss(self) -> float | None:
        """Return the mean loss of the last epoch; None without any."""
        return float(np.mean(self._losses)) if self._losses else None


class _GiveUp(Callback):
    """Ends training that takes too long."""

    def __init__(self, at_s: float) -> None:
        self._at_s = at_s

    def on_train_batch_end(self, *_: Any) -> None:
        self._check()

    def on_validation_batch_end(self, *_: Any) -> None:
        self._check()

    def _check(self) -> None:
        if time.monotonic() > self._at_s:
            raise TrainingError("training took too long")


class _FirstForward(Callback):
    """Reads a model's state when the first batch has given lazy layers their shapes.

    The batch is seen in evaluation mode, so that it leaves no trace in running
    statistics.
    """

    def __init__(self, rules: Sequence[tuple[str, StateClass]]) -> None:
        self._rules = rules
        self._model: Model | None = None

    def on_train_batch_start(
        self, _: Trainer, pl_module: LightningModule, *__: Any
    ) -> None:
        pl_module.eval()

    def on_before_backward(
        self, _: Trainer, pl_module: LightningModule, *__: Any
    ) -> None:
        if self._model is None and not lightning.has_lazy_layers(pl_module):
            self._model = make_model(pl_module, self._rules)

    def get(self) -> Model:
        """Return the model.

        Raises:
            RefusedStateError: Lazy layers had no shapes when the first loss was there.
        """
        if self._model is None:
            msg = "lazy layers still had no shapes after the first training_step's loss"
            raise RefusedStateError(msg)
        return self._model
