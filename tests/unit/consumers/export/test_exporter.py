"""What the exporter does with a model that cannot be exported."""

from types import SimpleNamespace

import pytest

from adapters.blobs import BlobError
from adapters.kafka import END
from adapters.models import StateMismatchError
from consumers.export import exporter
from consumers.export.artifacts import ExportError
from consumers.export.exporter import Exporter
from consumers.export.metrics import make_evaluation
from protocol.tensors import MalformedBlobError
from protocol.validation import find_problem
from schemas.reasons import Reason
from tests.simulation.federation import exported, make_blob


class Published:
    """Takes what is published."""

    def __init__(self):
        self.claims = []

    def publish(self, claim, _key, _genesis, *, traceparent):
        assert traceparent
        assert find_problem(claim) is None
        self.claims.append(claim)


def good(number):
    model = SimpleNamespace(sha256=bytes(32))
    return SimpleNamespace(federation_id="fed", round=number, model=model)


def run_exporter(monkeypatch, error):
    """Export two models, of which the first fails."""
    one = Exporter.__new__(Exporter)  # without Kafka
    one._settings = one._registry = one._federation_id = one._key = None
    one._publisher, one._genesis = Published(), bytes(32)
    one._waiting = {n: (good(n), "") for n in (2, 1)}

    def compute(published):
        if published.round == 1:
            raise error
        return exported(2, make_blob("model 2"))

    monkeypatch.setattr(one, "_compute_claim", compute)
    monkeypatch.setattr(exporter, "follow_log", lambda *_: iter([END]))
    one.run(lambda: False)
    return one._publisher.claims


@pytest.mark.parametrize(
    "error",
    [
        ExportError("onnxruntime differs from torch by nan"),
        StateMismatchError("not this module's state"),
        MalformedBlobError("no header"),
    ],
)
def test_a_model_that_cannot_be_exported_is_said_to_be_so_and_the_next_is_exported(
    error, monkeypatch, caplog
):
    """One agent's update can make a model whose logits are no numbers."""
    first, second = run_exporter(monkeypatch, error)
    assert (first.round, first.onnx, first.evaluation) == (1, None, None)
    assert (first.no_onnx, first.no_evaluation) == ("NOT_EXPORTABLE", "NOT_MEASURED")
    assert (second.round, second.no_onnx) == (2, "")
    assert f"round 1: not exported: {error}" in caplog.text


def test_a_model_that_is_not_there_yet_is_not_said_to_be_unfit(monkeypatch, caplog):
    """It may be fetched tomorrow, and a version is registered once."""
    claims = run_exporter(monkeypatch, BlobError(Reason.MISSING_BLOB, "no blob"))
    assert [claim.round for claim in claims] == [2]
    assert "round 1: not exported: no blob" in caplog.text


@pytest.mark.parametrize("loss", [1e13, 1e300, float("inf"), float("nan")])
def test_a_metric_that_fits_no_long_is_left_out(loss):
    found, left_out = make_evaluation({"val_accuracy": 0.5, "val_loss": loss}, {}, 4)
    assert find_problem(exported(1, make_blob("model"), evaluation=found)) is None
    assert [(m.name, m.value_micros) for m in found.metrics] == [("accuracy", 500_000)]
    assert list(left_out) == ["val_loss"]


def test_metrics_are_millionths_with_a_direction():
    found, _ = make_evaluation({"val_accuracy": 1.0, "val_loss": 9e12}, {}, 4)
    assert [(m.name, m.value_micros, m.direction) for m in found.metrics] == [
        ("accuracy", 1_000_000, "HIGHER"),
        ("loss", 9 * 10**18, "LOWER"),
    ]
