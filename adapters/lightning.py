"""A task's module and data under Lightning's own loops, at agents and exporter alike.

Whatever Lightning does with a module and a data module, it does here: `prepare_data`,
`setup`, `configure_model`, batch hooks, `self.trainer`, validation, callbacks. So what
trains under Lightning trains here, and what is measured is what Lightning measures.

- A model's state is written once its layers exist, as a checkpoint's would be: after
  `setup` and `configure_model`, before `configure_optimizers`. Lazy layers take their
  shapes from it.
- `self.logger` takes everything and keeps nothing. Checkpoints go to a folder that is
  deleted afterwards.
- The same arguments give the same result on the same machine and number of threads.

Both agents that train and consumers that measure need this, and neither may import the
other. Importing this module doesn't load torch; calling its functions does.
"""

from __future__ import annotations

import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from numpy.typing import NDArray

from adapters.models import write_state

if TYPE_CHECKING:
    from pytorch_lightning import LightningDataModule, LightningModule, Trainer

BATCH_HOOKS: Final = (
    "on_before_batch_transfer",
    "transfer_batch_to_device",
    "on_after_batch_transfer",
)
"""What Lightning lets a module, or else its data module, do to every batch."""


class TaskError(Exception):
    """The module or the data module doesn't do what is asked of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """A model's results on data that it wasn't trained on.

    Attributes:
        metrics: What the module logged, by its own names, ascending; any float.
        num_examples: Size of the data set, at least 1.
        step: Whose results they are: ``validation_step`` or ``test_step``.
        directions: Names of metrics, and ``HIGHER`` or ``LOWER``, as the module's
            ``metric_directions`` has it; anything, if the module's author erred.
    """

    metrics: Mapping[str, float]
    num_examples: int
    step: str = "validation_step"
    directions: Any = field(default_factory=dict)

    @property
    def accuracy(self) -> float:
        """What the module logged as "val_accuracy"."""
        return self._find("val_accuracy")

    @property
    def loss(self) -> float:
        """What the module logged as "val_loss"."""
        return self._find("val_loss")

    def _find(self, name: str) -> float:
        if name not in self.metrics:
            raise TaskError(f"the module doesn't log {name} in its {self.step}")
        return self.metrics[name]


@dataclass(slots=True, kw_only=True)
class PreparedTask:
    """A module and its data, ready for Lightning's loops.

    Attributes:
        model: The module; its layers exist, and the state is in it, once a loop of
            Lightning's has begun.
        data: The data module; None if there is none.
        is_loaded: Whether the state is in the model.
    """

    model: LightningModule
    data: LightningDataModule | None
    is_loaded: bool = False
    _make_trainer: Callable[..., Trainer]

    def make_trainer(self, **options: Any) -> Trainer:
        """Return a Trainer that computes and leaves nothing behind.

        Args:
            **options: Of `pytorch_lightning.Trainer`, beside those that are always so.
        """
        return self._make_trainer(**options)

    def has(self, step: str, loader: str) -> bool:
        """Return whether the module has this step, and data for it."""
        from pytorch_lightning.utilities.model_helpers import (  # noqa: PLC0415  # loads torch
            is_overridden,
        )

        return is_overridden(step, self.model) and (
            is_overridden(loader, self.model) or is_overridden(loader, self.data)
        )

    def list_batch_hooks(self) -> list[str]:
        """Return what changes batches on their way to the module, as `Class.hook`."""
        from pytorch_lightning.utilities.model_helpers import (  # noqa: PLC0415  # loads torch
            is_overridden,
        )

        return [
            f"{type(owner).__name__}.{name}"
            for name in BATCH_HOOKS
            for owner in (self.data, self.model)
            if owner is not None and is_overridden(name, owner)
        ]


@contextmanager
def prepare(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    data_module: type[LightningDataModule] | None = None,
    data_config: Mapping[str, Any] | None = None,
    tensors: Mapping[str, NDArray[Any]] | None = None,
    seed: int = 0,
) -> Iterator[PreparedTask]:
    """Make a task's module and data, seeded, for the time of the context.

    Args:
        module: The model's class.
        module_config: Its keyword arguments.
        data_module: The class with the data; None for none.
        data_config: Its keyword arguments.
        tensors: What the state shall be: exactly the entries of the module's, by name;
            None to leave it as the module makes it.
        seed: 0 ≤ seed < 2^32.

    Raises:
        StateMismatchError: From a loop: `tensors` isn't a model of this class.
    """
    with (
        _quiet(),
        _reproducible(seed),
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
    ):
        model = module(**module_config)
        data = None if data_module is None else data_module(**(data_config or {}))
        task = PreparedTask(
            model=model,
            data=data,
            _make_trainer=lambda **options: _make_trainer(Path(folder), **options),
        )
        if tensors is not None:
            _write_when_made(task, tensors)
        yield task


def evaluate(
    task: PreparedTask, *, prefer_test: bool = False, **options: Any
) -> Evaluation:
    """Measure a model by its own validation or test step, in Lightning's loop.

    Args:
        task: The model and its data.
        prefer_test: Whether its test step is meant, on its test data, and the
            validation step only if there's none; otherwise the other way round.
        **options: Of the Trainer.

    Raises:
        StateMismatchError: The state isn't one of this module's.
        TaskError: There is nothing to measure it with or on, it logs nothing, or the
            data has no length.
    """
    steps = [("validation_step", "val_dataloader"), ("test_step", "test_dataloader")]
    if prefer_test:
        steps.reverse()
    step = next((step for step, loader in steps if task.has(step, loader)), None)
    if step is None:
        name = type(task.model).__name__
        raise TaskError(
            f"nothing measures {name}: it has no validation_step, or its data module "
            "no val_dataloader, and no test_step with a test_dataloader either"
        )
    trainer = task.make_trainer(**options)
    if step == "validation_step":
        results = trainer.validate(task.model, datamodule=task.data, verbose=False)
        loaders = trainer.val_dataloaders
    else:
        results = trainer.test(task.model, datamodule=task.data, verbose=False)
        loaders = trainer.test_dataloaders
    metrics = {name: value for each in results for name, value in each.items()}
    num_examples = count_examples(loaders)
    if not metrics:
        raise TaskError(
            f"{type(task.model).__name__} logs no metric in its {step}, such as "
            'self.log("val_accuracy", …)'
        )
    return Evaluation(
        metrics=dict(sorted(metrics.items())),
        num_examples=num_examples,
        step=step,
        directions=getattr(task.model, "metric_directions", {}),
    )


def count_examples(loaders: Any) -> int:
    """Return the number of examples behind a DataLoader, or several.

    Raises:
        TaskError: One has no dataset of known length, or there are no examples.
    """
    num_examples = 0
    try:
        for loader in _list_loaders(loaders):
            num_examples += len(loader.dataset)
    except (AttributeError, TypeError) as error:
        msg = "the data isn't a DataLoader over a dataset of known length"
        raise TaskError(msg) from error
    if num_examples < 1:
        raise TaskError("the data has no examples")
    return num_examples


def _list_loaders(loaders: Any) -> list[Any]:
    if isinstance(loaders, Mapping):
        return [*loaders.values()]
    return [*loaders] if isinstance(loaders, list | tuple) else [loaders]


def make_layers(task: PreparedTask) -> None:
    """Run Lightning as far as the module's layers exist: no batch, no optimiser.

    Nothing happens if its constructor made them all.
    """
    from pytorch_lightning import LightningModule  # noqa: PLC0415  # loads torch
    from pytorch_lightning.utilities.model_helpers import (  # noqa: PLC0415  # as above
        is_overridden,
    )

    hooks = ("setup", "configure_model")
    if not (
        isinstance(task.model, LightningModule)
        and any(is_overridden(hook, task.model) for hook in hooks)
    ):
        return

    def stop() -> None:
        raise _LayersExistError

    model: Any = task.model
    before = model.configure_model
    _when_made(model, stop)
    trainer = task.make_trainer(max_epochs=1)
    with suppress(_LayersExistError):
        if task.data is None:
            trainer.fit(task.model, train_dataloaders=[None])
        else:
            trainer.fit(task.model, datamodule=task.data)
    model.configure_model = before


class _LayersExistError(Exception):
    """Ends a loop of Lightning's, and nobody sees it."""


def _when_made(model: Any, then: Callable[[], None]) -> None:
    """Let a module's last hook before its optimisers do something more.

    The hook is the instance's own: a subclass would change the module's name.
    """
    make = model.configure_model

    def configure_model() -> None:
        make()
        then()

    model.configure_model = configure_model


def _write_when_made(task: PreparedTask, tensors: Mapping[str, NDArray[Any]]) -> None:
    def write() -> None:
        _materialise(task.model, tensors)
        write_state(task.model, tensors)
        task.is_loaded = True

    _when_made(task.model, write)


def _materialise(model: LightningModule, tensors: Mapping[str, NDArray[Any]]) -> None:
    """Give lazy parameters and buffers the shapes of a state's entries."""
    from torch.nn.parameter import is_lazy  # noqa: PLC0415  # loads torch

    entries = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name, entry in entries.items():
        if is_lazy(entry) and name in tensors:
            entry.materialize(tensors[name].shape)


def has_lazy_layers(model: LightningModule) -> bool:
    """Return whether some parameters are made only by the first batch."""
    from torch.nn.parameter import is_lazy  # noqa: PLC0415  # loads torch

    return any(is_lazy(entry) for entry in (*model.parameters(), *model.buffers()))


def _make_trainer(folder: Path, **options: Any) -> Trainer:
    from pytorch_lightning import Trainer  # noqa: PLC0415  # loads torch
    from pytorch_lightning.loggers.logger import DummyLogger  # noqa: PLC0415

    always = {
        "accelerator": "cpu",
        "default_root_dir": folder,
        "deterministic": True,
        "devices": 1,
        "enable_autolog_hparams": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "enable_progress_bar": False,
        "log_every_n_steps": 1,
        "logger": DummyLogger(),
        "num_sanity_val_steps": 0,
        "use_distributed_sampler": False,
    }
    return Trainer(**{**always, **options})


@contextmanager
def _reproducible(seed: int) -> Iterator[None]:
    """Seed torch, numpy and random; restore their state, unless a loop fails."""
    import torch  # noqa: PLC0415
    from pytorch_lightning import seed_everything  # noqa: PLC0415
    from pytorch_lightning.utilities.seed import isolate_rng  # noqa: PLC0415

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
#: Small data needs no worker processes, a GPU stays free unless asked for, not all
#: validate, and how Lightning calls torch is not ours to mend.
_EXPECTED_WARNINGS = (
    r".*does not have many workers.*",
    r"GPU available but not used.*",
    r".*Skipping val loop.*",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated.*",
)
