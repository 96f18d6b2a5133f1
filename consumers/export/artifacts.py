"""A global model as an ONNX file that others can run, checked and measured.

Every exported model:

- is a valid ONNX file whose input "inputs" and output "logits" take any batch size;
- gives the same logits in onnxruntime as in torch, within stated tolerances, on the
  whole validation set; otherwise there is no file but an `ExportError`;
- comes with the accuracy and loss of the file itself, measured with onnxruntime: what
  users will get, not what torch would have given;
- is the same bytes for the same model and torch version: what the exporter notes about
  the machine (paths, stack traces) is removed.

Models are classifiers by the examples' convention: `forward(inputs)` gives logits,
shape (batch, classes), and a validation batch is a pair of inputs and labels.

It deliberately stores and encrypts nothing. Importing it loads torch.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final, cast

import numpy as np
import onnx
import onnxruntime
import torch
from numpy.typing import NDArray
from pytorch_lightning import LightningDataModule, LightningModule

from adapters.models import write_state

#: Largest difference allowed between onnxruntime's logits and torch's:
#: ABSOLUTE + RELATIVE * |torch's|. Both compute in float32, in different orders.
ABSOLUTE_TOLERANCE: Final = 1e-4
RELATIVE_TOLERANCE: Final = 1e-4

_INPUT: Final = "inputs"
_OUTPUT: Final = "logits"
_OPSET: Final = 20  # ONNX 1.15, 2023: old enough for the runtimes in use


class ExportError(Exception):
    """The model can't be exported, or the export isn't the same model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedModel:
    """A model as ONNX, with its quality.

    Attributes:
        onnx: The file.
        accuracy: Fraction of the validation set classified correctly, 0 to 1.
        loss: Mean cross-entropy over the validation set, in nats.
        num_examples: Size of the validation set, at least 1.
        largest_difference: Between onnxruntime's logits and torch's, absolute.
    """

    onnx: bytes
    accuracy: float
    loss: float
    num_examples: int
    largest_difference: float


def export_model(
    *,
    module: type[LightningModule],
    module_config: Mapping[str, Any],
    data_module: type[LightningDataModule],
    data_config: Mapping[str, Any],
    tensors: Mapping[str, NDArray[Any]],
) -> ExportedModel:
    """Export a model, check the export and measure it.

    Args:
        module: The model's class.
        module_config: Its keyword arguments.
        data_module: The class with the validation data.
        data_config: Its keyword arguments.
        tensors: The model: exactly the entries of the module's state, by name.

    Returns:
        The ONNX file, and its results on the validation set.

    Raises:
        StateMismatchError: `tensors` isn't a model of this class.
        ExportError: The data or the model doesn't have the form above, the exporter
            failed, or onnxruntime and torch disagree.
    """
    model = module(**module_config).eval()
    write_state(model, tensors)
    batches = _validation_batches(data_module(**data_config))
    exported = _to_onnx(model, batches[0][0])

    run = _runner(exported)
    answers = []
    largest_difference = 0.0
    for inputs, labels in batches:
        logits = run(inputs)
        with torch.inference_mode():
            expected = model(torch.from_numpy(inputs)).numpy()
        if logits.shape != expected.shape or logits.shape[:1] != labels.shape:
            msg = f"logits of shape {logits.shape}, torch's are {expected.shape}"
            raise ExportError(msg)
        difference = np.abs(logits - expected)
        allowed = ABSOLUTE_TOLERANCE + RELATIVE_TOLERANCE * np.abs(expected)
        if not (difference <= allowed).all():  # so that a NaN fails as well
            raise ExportError(f"onnxruntime differs from torch by {difference.max()}")
        largest_difference = max(largest_difference, float(difference.max()))
        answers.append((logits, labels))
    accuracy, loss, num_examples = _score(answers)
    return ExportedModel(
        onnx=exported,
        accuracy=accuracy,
        loss=loss,
        num_examples=num_examples,
        largest_difference=largest_difference,
    )


def _validation_batches(
    data: LightningDataModule,
) -> list[tuple[NDArray[np.float32], NDArray[np.int64]]]:
    data.prepare_data()
    data.setup("validate")
    try:
        batches = [
            (inputs.numpy(), labels.numpy()) for inputs, labels in data.val_dataloader()
        ]
    except (AttributeError, TypeError, ValueError) as error:
        msg = "a validation batch isn't a pair of tensors, inputs and labels"
        raise ExportError(msg) from error
    if not batches:
        raise ExportError("there is no validation data")
    return batches


def _to_onnx(model: LightningModule, inputs: NDArray[np.float32]) -> bytes:
    """Convert a model, its batch size left open.

    Args:
        model: In evaluation mode.
        inputs: Any batch of at least one example.

    Returns:
        The file, without traces of the machine that made it.
    """
    # With one example the exporter would take the batch size for a constant.
    example = torch.from_numpy(np.repeat(inputs[:1], 2, axis=0))
    try:
        with _quiet_exporter(), torch.inference_mode():
            program = torch.onnx.export(
                model,
                (example,),
                dynamic_shapes=({0: torch.export.Dim("batch")},),
                dynamo=True,
                input_names=[_INPUT],
                opset_version=_OPSET,
                output_names=[_OUTPUT],
                verbose=False,
            )
        exported = cast("torch.onnx.ONNXProgram", program).model_proto
        _strip(exported)
        onnx.checker.check_model(exported, full_check=True)
    except Exception as error:  # the exporter runs the model's own code
        msg = f"{type(model).__name__} can't be exported: {error}"
        raise ExportError(msg) from error
    written: bytes = exported.SerializeToString(deterministic=True)
    return written


def _strip(message: Any) -> None:
    """Remove comments: the exporter writes paths and stack traces into them."""
    for field, value in message.ListFields():
        if field.name in {"doc_string", "metadata_props"}:
            message.ClearField(field.name)
        elif field.message_type is not None:
            for part in [value] if hasattr(value, "ListFields") else value:
                _strip(part)


def _runner(
    exported: bytes,
) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    """Load a model into onnxruntime; returns a function from inputs to logits."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # small models; and the same sums every time
    session = onnxruntime.InferenceSession(
        exported, options, providers=["CPUExecutionProvider"]
    )

    def run(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        (logits,) = session.run([_OUTPUT], {_INPUT: inputs})
        return np.asarray(logits)

    return run


def _score(
    answers: Sequence[tuple[NDArray[np.float32], NDArray[np.int64]]],
) -> tuple[float, float, int]:
    """Compute accuracy, mean cross-entropy in nats and number of examples."""
    logits = np.concatenate([each for each, _ in answers]).astype(np.float64)
    labels = np.concatenate([each for _, each in answers])
    shifted = logits - logits.max(axis=1, keepdims=True)  # so that exp can't overflow
    picked = shifted[np.arange(len(labels)), labels]
    losses = np.log(np.exp(shifted).sum(axis=1)) - picked
    accuracy = np.mean(logits.argmax(axis=1) == labels)
    return float(accuracy), float(losses.mean()), len(labels)


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
