"""A global model becomes a file that others can run."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from pytorch_lightning import LightningModule  # noqa: E402

from adapters.models import StateMismatchError, read_state  # noqa: E402
from consumers.export import artifacts  # noqa: E402
from consumers.export.artifacts import ExportError, export_model  # noqa: E402
from producers.agent.training import evaluate, initial_tensors, train  # noqa: E402
from producers.examples.breast_cancer import (  # noqa: E402
    BreastCancerDataModule,
    BreastCancerModule,
)

MODEL = {
    "module": BreastCancerModule,
    "module_config": {},
    "data_module": BreastCancerDataModule,
    "data_config": {},
}


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(num_threads)


@pytest.fixture(scope="module")
def tensors():
    base = initial_tensors(module=BreastCancerModule, module_config={}, seed=1)
    return train(**MODEL, base=base, local_epochs=2, seed=1).tensors


@pytest.fixture(scope="module")
def exported(tensors):
    return export_model(**MODEL, tensors=tensors)


def test_the_file_is_valid_onnx_with_an_open_batch_size(exported):
    model = onnx.load_from_string(exported.onnx)
    onnx.checker.check_model(model, full_check=True)

    session = onnxruntime.InferenceSession(exported.onnx)
    for batch_size in (1, 3):
        inputs = np.zeros((batch_size, 30), dtype=np.float32)
        (logits,) = session.run(["logits"], {"inputs": inputs})
        assert logits.shape == (batch_size, 2)


def test_the_file_is_as_good_as_the_model(exported, tensors):
    expected = evaluate(**MODEL, tensors=tensors)
    assert exported.num_examples == expected.num_examples == 114
    assert exported.accuracy == pytest.approx(expected.accuracy)
    assert exported.loss == pytest.approx(expected.loss, rel=1e-4)
    assert exported.accuracy > 0.85
    assert exported.largest_difference < artifacts.ABSOLUTE_TOLERANCE


def test_the_file_says_nothing_about_the_machine(exported):
    for trace in (b"stack_trace", b"site-packages", b".py"):
        assert trace not in exported.onnx


def test_the_same_model_gives_the_same_bytes(exported, tensors):
    assert export_model(**MODEL, tensors=tensors).onnx == exported.onnx


def test_another_process_writes_the_same_bytes(exported, tensors, tmp_path):
    np.savez(tmp_path / "tensors.npz", **tensors)
    program = """
import sys, numpy as np
from consumers.export.artifacts import export_model
from producers.examples.breast_cancer import BreastCancerDataModule, BreastCancerModule
exported = export_model(
    module=BreastCancerModule, module_config={},
    data_module=BreastCancerDataModule, data_config={},
    tensors=dict(np.load(sys.argv[1])),
)
sys.stdout.buffer.write(exported.onnx)
"""
    other = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "tensors.npz"],
        capture_output=True,
        check=True,
    )
    assert other.stdout == exported.onnx


def test_a_model_of_another_class_is_refused(tensors):
    with pytest.raises(StateMismatchError):
        export_model(**MODEL | {"module_config": {"hidden": 8}}, tensors=tensors)


def test_a_file_that_computes_something_else_is_refused(tensors, monkeypatch):
    right = artifacts._runner

    def wrong(exported):
        run = right(exported)
        return lambda inputs: run(inputs) + np.float32(0.01)

    monkeypatch.setattr(artifacts, "_runner", wrong)
    with pytest.raises(ExportError, match="differs from torch"):
        export_model(**MODEL, tensors=tensors)


def test_a_model_that_gives_nans_is_refused(tensors):
    broken = {name: np.full_like(array, np.nan) for name, array in tensors.items()}
    with pytest.raises(ExportError, match="differs from torch by nan"):
        export_model(**MODEL, tensors=broken)


class _Unexportable(LightningModule):
    def forward(self, inputs):
        return inputs if inputs.sum() > 0 else -inputs  # depends on the data


def test_a_model_that_cannot_be_converted_is_refused():
    model = MODEL | {"module": _Unexportable}
    with pytest.raises(ExportError, match="_Unexportable can't be exported"):
        export_model(**model, tensors=read_state(_Unexportable()))


class _Triples(BreastCancerDataModule):
    def val_dataloader(self):
        return [(1, 2, 3)]


class _Nothing(BreastCancerDataModule):
    def val_dataloader(self):
        return []


@pytest.mark.parametrize("data_module", [_Triples, _Nothing])
def test_validation_data_of_another_form_is_refused(data_module, tensors):
    with pytest.raises(ExportError, match="validation"):
        export_model(**MODEL | {"data_module": data_module}, tensors=tensors)
