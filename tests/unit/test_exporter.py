"""What the exporter does with a model that cannot be exported."""

from types import SimpleNamespace

import pytest

from adapters.blobs import BlobError
from adapters.kafka import END
from adapters.models import StateMismatchError
from consumers import exporter
from consumers.artifacts import ExportError
from consumers.exporter import Exporter
from protocol.tensors import MalformedBlobError
from schemas.reasons import Reason


class Published:
    """Takes what is published."""

    def __init__(self):
        self.rounds = []

    def publish(self, claim, _key, *, traceparent):
        assert traceparent
        self.rounds.append(claim.round)


@pytest.mark.parametrize(
    "error",
    [
        ExportError("onnxruntime differs from torch by nan"),
        StateMismatchError("not this module's state"),
        MalformedBlobError("no header"),
        BlobError(Reason.MISSING_BLOB, "no blob"),
    ],
)
def test_a_model_that_cannot_be_exported_does_not_stop_the_next(
    error, monkeypatch, caplog
):
    """One agent's update can make a model whose logits are no numbers."""
    one = Exporter.__new__(Exporter)  # without Kafka
    one._settings = one._registry = one._federation_id = one._key = None
    one._publisher = Published()
    one._waiting = {n: (SimpleNamespace(round=n), "") for n in (2, 1)}

    def compute(published):
        if published.round == 1:
            raise error
        return SimpleNamespace(round=published.round, accuracy_micros=1)

    monkeypatch.setattr(one, "_compute_claim", compute)
    monkeypatch.setattr(exporter, "follow_log", lambda *_: iter([END]))
    one.run(lambda: False)
    assert one._publisher.rounds == [2]
    assert f"round 1: not exported: {error}" in caplog.text
