"""A global model becomes a file that others can run."""

import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest

torch = pytest.importorskip("torch")

from adapters.models import StateMismatchError  # noqa: E402
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


pytestmark = pytest.mark.usefixtures("one_thread")


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


def test_a_file_that_computes_something_else_is_no_file(tensors, exported, monkeypatch):
    monkeypatch.setattr(artifacts, "_to_onnx", lambda *_: exported.onnx)
    right = artifacts._runner

    def wrong(onnx_file):
        run = right(onnx_file)
        return lambda inputs: [result + np.float32(0.01) for result in run(inputs)]

    monkeypatch.setattr(artifacts, "_runner", wrong)
    found = export_model(**MODEL, tensors=tensors)
    assert found.onnx is None
    assert "differs from torch" in found.no_onnx
    assert found.evaluation == exported.evaluation


def test_a_model_that_gives_nans_is_no_file(tensors, exported, monkeypatch):
    monkeypatch.setattr(artifacts, "_to_onnx", lambda *_: exported.onnx)
    broken = {name: np.full_like(array, np.nan) for name, array in tensors.items()}
    found = export_model(**MODEL, tensors=broken)
    assert found.onnx is None
    assert "differs from torch by nan" in found.no_onnx


class _Unexportable(BreastCancerModule):
    def forward(self, inputs):
        # It depends on the data.
        return super().forward(inputs if inputs.sum() > 0 else inputs - 1e-9)


def test_a_model_that_cannot_be_converted_is_measured(tensors, exported):
    found = export_model(**MODEL | {"module": _Unexportable}, tensors=tensors)
    assert found.onnx is None
    assert "_Unexportable can't be exported" in found.no_onnx
    assert found.accuracy == pytest.approx(exported.accuracy)


class _Triples(BreastCancerDataModule):
    def val_dataloader(self):
        return [(1, 2, 3)]


class _Nothing(BreastCancerDataModule):
    def val_dataloader(self):
        return []


@pytest.mark.parametrize("data_module", [_Triples, _Nothing])
def test_other_validation_data_measures_and_shows_nothing(data_module, tensors):
    found = export_model(**MODEL | {"data_module": data_module}, tensors=tensors)
    assert (found.onnx, found.evaluation) == (None, None)
    assert "nothing shows what forward() is called with" in found.no_onnx
    assert found.no_evaluation


class _Broken(BreastCancerDataModule):
    def __init__(self):
        raise KeyError("x")


def test_what_cannot_be_made_is_one_kind_of_error(tensors):
    with pytest.raises(ExportError, match="KeyError"):
        export_model(**MODEL | {"data_module": _Broken}, tensors=tensors)
