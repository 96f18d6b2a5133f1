"""The exporter: turns each published model into ONNX, measures it, claims the result.

It keeps no state: the log says which models await export. Publishing a claim twice is
harmless, so it may be killed at any moment.

A model that cannot become ONNX, or be measured, is a version without the one or the
other: an agent's update may have caused it, and later models are still exported. One
that cannot be fetched is named in this process's log; each start tries again.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable

from adapters import telemetry
from adapters.blobs import BlobError, BlobStore
from adapters.imports import load_class
from adapters.kafka import END, Publisher
from adapters.kafka_log import ReadBlock, follow_log
from adapters.models import StateMismatchError
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from consumers.export.metrics import make_evaluation
from ledger.signing import SigningKey
from protocol.exchanged_state import model_from_blob
from protocol.model import compute_max_model_size
from protocol.tensors import MalformedBlobError
from schemas.events import (
    AggregatePublished,
    BlobRef,
    FederationConfigured,
    ModelExported,
)
from schemas.reasons import Reason

log = logging.getLogger(__name__)


class Exporter:
    """Follows one federation's log and exports what waits."""

    def __init__(
        self,
        settings: Settings,
        federation_id: str,
        key: SigningKey,
        allowed_prefixes: tuple[str, ...],
    ) -> None:
        self._settings = settings
        self._federation_id = federation_id
        self._key = key
        self._allowed_prefixes = allowed_prefixes
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._publisher = Publisher(settings, self._registry)
        self._store = BlobStore(settings)
        self._max_model_size = 0
        self._genesis = b""
        self._waiting: dict[int, tuple[AggregatePublished, str]] = {}

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Export until told to stop.

        Raises:
            LogError: the log is broken.
            KafkaUnavailableError: Kafka is away; start again later.
        """
        import consumers.export.artifacts  # noqa: F401, PLC0415  # torch, before the first model waits

        for read in follow_log(self._settings, self._registry, self._federation_id):
            if should_stop():
                return
            if isinstance(read, ReadBlock):
                self._learn(read)
            elif read is END:
                # Only at the end is it certain that a model still waits.
                for number in sorted(self._waiting):
                    self._export(*self._waiting.pop(number))

    def _learn(self, read: ReadBlock) -> None:
        self._genesis = read.state.genesis
        for leaf in read.leaves:
            event = leaf.sequenced.event
            if isinstance(event, FederationConfigured):
                self._max_model_size = compute_max_model_size(event.initial_model)
            elif isinstance(event, AggregatePublished):
                self._waiting[event.round] = (event, leaf.traceparent)
            elif isinstance(event, ModelExported):
                self._waiting.pop(event.round, None)

    def _export(self, published: AggregatePublished, traceparent: str) -> None:
        from consumers.export.artifacts import ExportError  # noqa: PLC0415  # loads torch

        with telemetry.span(
            "export", "model", kind=telemetry.INTERNAL, parent=traceparent
        ) as current:
            try:
                claim = self._compute_claim(published)
            except BlobError as error:
                log.error("round %d: not exported: %s", published.round, error)  # noqa: TRY400
                return
            except (ExportError, StateMismatchError, MalformedBlobError) as error:
                log.error("round %d: not exported: %s", published.round, error)  # noqa: TRY400
                claim = _make_empty_claim(published)
            self._publisher.publish(
                claim, self._key, self._genesis, traceparent=current
            )
        log.info("round %d: said %s", claim.round, claim.no_evaluation or "its metrics")

    def _compute_claim(self, published: AggregatePublished) -> ModelExported:
        from consumers.export.artifacts import export_model  # noqa: PLC0415  # loads torch

        task = published.task
        blob = self._store.fetch(published.model, max_size_bytes=self._max_model_size)
        exported = export_model(
            module=load_class(task.module, self._allowed_prefixes),
            module_config=json.loads(task.module_config),
            data_module=load_class(task.data_module, self._allowed_prefixes),
            data_config=json.loads(task.data_config),
            tensors=model_from_blob(blob).tensors,
        )
        evaluation = None
        if exported.evaluation is None:
            log.warning(
                "round %d: not measured: %s", published.round, exported.no_evaluation
            )
        else:
            evaluation, left_out = make_evaluation(
                exported.evaluation.metrics,
                exported.evaluation.directions,
                exported.evaluation.num_examples,
            )
            for name, why in left_out.items():
                log.warning("round %d: no metric %s: %s", published.round, name, why)
        onnx: BlobRef | None = None
        if exported.onnx is None:
            log.warning("round %d: no ONNX: %s", published.round, exported.no_onnx)
        else:
            onnx = self._store.store(exported.onnx)
        return ModelExported(
            federation_id=published.federation_id,
            round=published.round,
            model_sha256=published.model.sha256,
            onnx=onnx,
            no_onnx="" if onnx else Reason.NOT_EXPORTABLE,
            evaluation=evaluation,
            no_evaluation="" if evaluation else Reason.NOT_MEASURED,
        )


def _make_empty_claim(published: AggregatePublished) -> ModelExported:
    return ModelExported(
        federation_id=published.federation_id,
        round=published.round,
        model_sha256=published.model.sha256,
        onnx=None,
        no_onnx=Reason.NOT_EXPORTABLE,
        evaluation=None,
        no_evaluation=Reason.NOT_MEASURED,
    )
