"""A global model as others will use it: measured, and as an ONNX file if it can be one.

Metrics and file don't depend on each other: a model without one may have the other, and
a sentence says why one is missing.

- The metrics are what the module logs in its validation step, or else its test step, in
  Lightning's own loop (`adapters.lightning`): what Lightning would give.
- The file computes `forward`, with the arguments that the validation step gives it. One
  argument is called "inputs", several have the names of `forward`; one result is called
  "logits", whatever it means, several "output_0" and so on. The batch size is left
  open, and so are dimensions that differ between the first batches.
- It gives what torch gives, in onnxruntime, within stated tolerances, for every batch
  of the validation data. Otherwise there is no file.
- What batch hooks do (such as `on_after_batch_transfer`) is not part of the file: its
  inputs are what comes after them, and its metadata says so.
- It is the same bytes for the same model and torch version: what the exporter notes
  about the machine (paths, stack traces) is removed.

It deliberately stores and encrypts nothing. Importing it loads torch.
"""

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule, LightningModule
from torch.utils._pytree import tree_flatten, tree_map, tree_map_only

from adapters.lightning import Evaluation, PreparedTask, evaluate, make_layers, prepare
from adapters.models import StateMismatchError
from adapters.outages import describe, is_exhausted, is_short_of_memory
from protocol.exchanged_state import RefusedStateError

#: Largest difference allowed between onnxruntime's results and torch's:
#: ABSOLUTE + RELATIVE * |torch's|. Both compute in float32, in different orders.
ABSOLUTE_TOLERANCE: Final = 1e-4
RELATIVE_TOLERANCE: Final = 1e-4

#: Batches that show the file's inputs and which of their dimensions differ.
SHOWN_BATCHES: Final = 8

_INPUT: Final = "inputs"
_OUTPUT: Final = "logits"
_BATCH: Final = "batch"
_HOOKS_KEY: Final = "folkmoot.inputs"
_OPSET: Final = 20  # ONNX 1.15, 2023: old enough for the runtimes in use

Array = NDArray[Any]


class ExportError(Exception):
    """The model can't be exported, or the export isn't the same model."""


#: Not what a step or `forward` of a module's raises; all else is, whatever it is.
_NO_PART_OF_IT: Final = (
    ExportError,
    MemoryError,
    RefusedStateError,
    StateMismatchError,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """What others get of a model.

    Attributes:
        onnx: The file; None if there is none.
        no_onnx: Why there is none; empty if there is one.
        evaluation: Its results; None if there are none.
        no_evaluation: Why there are none; empty if there are some.
        largest_difference: Between onnxruntime's results and torch's, absolute.
        batch_hooks: What changes batches before the module, and so isn't in the file,
            as `Class.hook`.
    """

    onnx: bytes | None
    no_onnx: str
    evaluation: Evaluation | None
    no_evaluation: str
    largest_difference: float = 0.0
    batch_hooks: tuple[str, ...] = ()

    @property
    def accuracy(self) -> float:
        """What the module logged as "val_accuracy"."""
        return self._demand().accuracy

    @property
    def loss(self) -> float:
        """What the module logged as "val_loss"."""
        return self._demand().loss

    @property
    def num_examples(self) -> int:
        """Size of the validation set, at least 1."""
        return self._demand().num_examples

    def _demand(self) -> Evaluation:
        if self.evaluation is None:
            raise ExportError(self.no_evaluation)
        return self.evaluation


def export_model(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    data_module: type[LightningDataModule],
    data_config: Mapping[str, Any],
    tensors: Mapping[str, Array],
) -> ExportedModel:
    """Measure a model, export it, check the export.

    Args:
        module: The model's class.
        module_config: Its keyword arguments.
        data_module: The class with the validation data.
        data_config: Its keyword arguments.
        tensors: The model: exactly the entries of the module's state, by name.

    Returns:
        The results and the ONNX file, or why there are none.

    Raises:
        StateMismatchError: `tensors` isn't a model of this class.
        RefusedStateError: The module's own state can't be read.
        ExportError: The module or the data module can't be made.
    """
    try:
        return _export(
            prepare(
                module=module,
                module_config=module_config,
                data_module=data_module,
                data_config=data_config,
                tensors=tensors,
            )
        )
    except _NO_PART_OF_IT:
        raise
    except Exception as error:  # the module's own code
        names = f"{module.__name__} or {data_module.__name__}"
        raise ExportError(f"{names} can't be made: {_tell(error)}") from error


def _export(prepared: AbstractContextManager[PreparedTask]) -> ExportedModel:
    with prepared as task:
        hooks = tuple(task.list_batch_hooks())
        check: _Check | None = None
        no_onnx = ""
        try:
            calls = _watch(task)
            check = _Check(_to_onnx(task.model, calls, hooks))
            check.call(*calls.first)
        except ExportError as error:
            no_onnx = str(error)
        except _NO_PART_OF_IT:
            raise
        except Exception as error:  # noqa: BLE001  # the module's own code
            no_onnx = _tell(error)
        evaluation, no_evaluation = _measure(task, check)
        if check is not None and check.problem:
            no_onnx = check.problem
    return ExportedModel(
        onnx=None if no_onnx or check is None else check.exported,
        no_onnx=no_onnx,
        evaluation=evaluation,
        no_evaluation=no_evaluation,
        largest_difference=0.0 if check is None else check.largest_difference,
        batch_hooks=hooks,
    )


@dataclass(slots=True)
class _Calls:
    """How a module's validation step calls its `forward`.

    Attributes:
        first: The first call's arguments by name, and its result.
        open: Which dimensions of which tensor, counted over all arguments, differ.
    """

    first: tuple[dict[str, Any], Any]
    open: set[tuple[int, int]] = field(default_factory=set)


def _watch(task: PreparedTask) -> _Calls:
    """See how the first batches are given to `forward`.

    Raises:
        ExportError: Nothing shows it.
        StateMismatchError: The state isn't this module's.
    """
    model = task.model
    seen: list[_Calls] = []

    def look(arguments: dict[str, Any], result: Any) -> None:
        if not seen:
            seen.append(_Calls((_copy(arguments), _copy(result))))
            return
        before = _list_tensors(seen[0].first[0])
        for index, (old, new) in enumerate(
            zip(before, _list_tensors(arguments), strict=False)
        ):
            pairs = zip(old.shape, new.shape, strict=False)
            seen[0].open |= {(index, d) for d, (m, n) in enumerate(pairs) if m != n}

    problem = ""
    with _calls_to(model, look):
        try:
            evaluate(
                task,
                limit_val_batches=SHOWN_BATCHES,
                limit_test_batches=SHOWN_BATCHES,
            )
        except _NO_PART_OF_IT:
            raise
        except Exception as error:  # noqa: BLE001  # the module's own code
            problem = f" ({_tell(error)})"
    if seen:
        return seen[0]
    if not task.is_loaded:
        make_layers(task)
    example = model.example_input_array
    if example is None:
        raise ExportError(
            "nothing shows what forward() is called with: the validation step doesn't "
            f"call it{problem}, and the module has no example_input_array"
        )
    return _ask(model, example)


def _ask(model: LightningModule, example: Any) -> _Calls:
    """Call a module with Lightning's `example_input_array`, which is its author's."""
    if isinstance(example, Mapping):
        arguments = _bind(model, (), example)
    else:
        args = example if isinstance(example, tuple) else (example,)
        arguments = _bind(model, args, {})
    model.eval()
    with torch.inference_mode():
        result = model(*arguments.values())
    return _Calls((_copy(arguments), _copy(result)))


def _measure(
    task: PreparedTask, check: "_Check | None"
) -> tuple[Evaluation | None, str]:
    """Measure a model, and compare each batch with the file; or say why not."""
    with _calls_to(task.model, check.call if check else lambda *_: None):
        try:
            return evaluate(task), ""
        except _NO_PART_OF_IT:
            raise
        except Exception as error:  # noqa: BLE001  # the module's own code
            return None, _tell(error)


class _Check:
    """Compares what a file computes in onnxruntime with what torch does.

    Attributes:
        exported: The file.
        problem: How they differ; empty while they don't.
        largest_difference: Absolute.
    """

    def __init__(self, exported: bytes) -> None:
        self.exported = exported
        self.problem = ""
        self.largest_difference = 0.0
        self._run = _runner(exported)

    def call(self, arguments: dict[str, Any], result: Any) -> None:
        """Compare one call of `forward`; the first difference is kept."""
        if self.problem:
            return
        try:
            found = self._run([_to_array(t) for t in _list_tensors(arguments)])
            expected = [_to_array(tensor) for tensor in _list_tensors(result)]
        except Exception as error:  # noqa: BLE001  # onnxruntime's are of many kinds
            self.problem = f"onnxruntime doesn't take every batch: {_tell(error)}"
            return
        shapes = [[array.shape for array in each] for each in (found, expected)]
        if shapes[0] != shapes[1]:
            self.problem = f"results of shapes {shapes[0]}, torch's are {shapes[1]}"
            return
        for mine, theirs in zip(found, expected, strict=True):
            with np.errstate(invalid="ignore"):  # infinities
                self._compare(mine.astype(np.float64), theirs.astype(np.float64))

    def _compare(self, mine: NDArray[np.float64], theirs: NDArray[np.float64]) -> None:
        if not mine.size:
            return
        difference = np.abs(mine - theirs)
        allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(theirs)
        # So that a NaN fails as well; a mask's infinities are the same in both.
        is_near = (difference <= allowed) | (mine == theirs)
        if not is_near.all():
            self.problem = f"onnxruntime differs from torch by {difference.max()}"
            return
        near = difference[np.isfinite(difference)]
        largest = float(near.max(initial=0.0))
        self.largest_difference = max(self.largest_difference, largest)


def _to_onnx(model: LightningModule, calls: _Calls, hooks: Sequence[str]) -> bytes:
    """Convert a model, its batch size and other varying dimensions left open.

    Args:
        model: Its layers exist.
        calls: How it is called.
        hooks: What changes batches before it.

    Returns:
        The file, without traces of the machine that made it.
    """
    arguments, result = calls.first
    shown = _list_tensors(arguments)
    if not shown:
        raise ExportError("forward() isn't called with tensors")
    num_examples = len(shown[0]) if shown[0].ndim else 0
    spec = _Shapes(num_examples, calls.open)
    # With one example the exporter would take the batch size for a constant.
    example = tree_map(spec.cut, arguments)
    spec.restart()
    names = _name_inputs(arguments)
    num_outputs = len(_list_tensors(result))
    model.eval()
    try:
        with _quiet_exporter(), _alone(model), torch.inference_mode():
            program = torch.onnx.export(
                model,
                tuple(example.values()),
                dynamic_shapes=tuple(
                    tree_map(spec.open, each) for each in arguments.values()
                ),
                dynamo=True,
                input_names=names,
                opset_version=_OPSET,
                output_names=[_OUTPUT]
                if num_outputs == 1
                else [f"output_{index}" for index in range(num_outputs)],
                verbose=False,
            )
        exported = cast("torch.onnx.ONNXProgram", program).model_proto
        _strip(exported)
        if hooks:
            note = exported.metadata_props.add()
            note.key = _HOOKS_KEY
            note.value = f"batches as {' and '.join(hooks)} leave them"
        onnx.checker.check_model(exported, full_check=True)
    except Exception as error:  # the exporter runs the model's own code
        msg = f"{type(model).__name__} can't be exported: {_tell(error)}"
        raise ExportError(msg) from error
    written: bytes = exported.SerializeToString(deterministic=True)
    return written


class _Shapes:
    """Cuts an example out of a batch, and says which of its dimensions are open.

    Both walk over the tensors of all arguments in the same order.
    """

    def __init__(self, num_examples: int, varying: set[tuple[int, int]]) -> None:
        self._num_examples = num_examples
        self._varying = varying
        self._index = -1

    def restart(self) -> None:
        """Begin with the first tensor again."""
        self._index = -1

    def cut(self, value: Any) -> Any:
        """Return two examples of a tensor of the batch; anything else as it is."""
        if not isinstance(value, torch.Tensor):
            return value
        if not self._is_batch(value):
            return value
        return value[:1].repeat_interleave(2, dim=0)

    def open(self, value: Any) -> Any:
        """Return the open dimensions of a tensor; None for anything else."""
        if not isinstance(value, torch.Tensor):
            return None
        self._index += 1
        dims = {
            d: torch.export.Dim.DYNAMIC for i, d in self._varying if i == self._index
        }
        if self._is_batch(value):
            dims[0] = torch.export.Dim(_BATCH)
        return dims

    def _is_batch(self, value: torch.Tensor) -> bool:
        return value.ndim > 0 and len(value) == self._num_examples


def _name_inputs(arguments: Mapping[str, Any]) -> list[str]:
    if len(_list_tensors(arguments)) == 1:
        return [_INPUT]
    names = []
    for name, value in arguments.items():
        count = len(_list_tensors(value))
        names += [name] if count == 1 else [f"{name}_{index}" for index in range(count)]
    return names


def _strip(message: Any) -> None:
    """Remove comments: the exporter writes paths and stack traces into them."""
    for field_, value in message.ListFields():
        if field_.name in {"doc_string", "metadata_props"}:
            message.ClearField(field_.name)
        elif field_.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _runner(exported: bytes) -> Callable[[Sequence[Array]], list[Array]]:
    """Load a model into onnxruntime; returns a function from inputs to results."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # small models; and the same sums every time
    try:
        session = onnxruntime.InferenceSession(
            exported, options, providers=["CPUExecutionProvider"]
        )
    except Exception as error:  # onnxruntime's are of many kinds
        raise ExportError(f"onnxruntime can't load it: {_tell(error)}") from error
    names = [each.name for each in session.get_inputs()]

    def run(inputs: Sequence[Array]) -> list[Array]:
        given = dict(zip(names, inputs, strict=True))
        return [np.asarray(each) for each in session.run(None, given)]

    return run


@contextmanager
def _calls_to(
    model: LightningModule, then: Callable[[dict[str, Any], Any], None]
) -> Iterator[None]:
    """Call a function with each call's arguments, by name, and its result."""

    def hook(_: Any, args: Any, kwargs: Any, result: Any) -> None:
        then(_bind(model, args, kwargs), result)

    handle = model.register_forward_hook(hook, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _bind(
    model: LightningModule, args: Any, kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the arguments that a call of `forward` gives, by name, in its order."""
    signature = inspect.signature(model.forward)
    with suppress(TypeError):
        bound = signature.bind(*args, **kwargs).arguments
        kinds = {p.kind for n, p in signature.parameters.items() if n in bound}
        if kinds <= {
            inspect.Parameter.POSITIONAL_ONLY,
            inspect.Parameter.POSITIONAL_OR_KEYWORD,
        }:
            return dict(bound)
    return {f"input_{index}": value for index, value in enumerate(args)} | dict(kwargs)


@contextmanager
def _alone(model: LightningModule) -> Iterator[None]:
    """Take a module's trainer away: it's no part of the function."""
    trainer = model._trainer  # noqa: SLF001  # reading `trainer` raises without one
    model.trainer = None
    try:
        yield
    finally:
        model._trainer = trainer  # noqa: SLF001


def _list_tensors(value: Any) -> list[torch.Tensor]:
    return [each for each in tree_flatten(value)[0] if isinstance(each, torch.Tensor)]


def _copy(value: Any) -> Any:
    return tree_map_only(
        torch.Tensor, lambda tensor: tensor.detach().cpu().clone(), value
    )


def _to_array(tensor: torch.Tensor) -> Array:
    array: Array = tensor.detach().cpu().numpy()
    return array


def _tell(error: Exception) -> str:
    """Return what users' code raised, as one line, not too long.

    Raises:
        Exception: the same error, if it is this machine's: no model is at fault.
    """
    if is_exhausted(error) or is_short_of_memory(error):
        raise error
    return describe(error)


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's remarks about packages that aren't installed."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
