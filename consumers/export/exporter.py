"""The exporter: turns each published model into ONNX, measures it, claims the result.

The log says which models await export. Publishing a claim twice is harmless, so it may
be killed at any moment.

No model holds up another:

- One that cannot be exported or measured becomes a version without ONNX or metrics, and
  with the reason: an agent's update may have caused it. Users' code runs in a process
  of its own (`consumers.export.apart`), where it may do anything.
- One that ends that process is tried again before that is said. How often is on disk,
  in case it ends this process as well (`adapters.attempts`).
- An outage is no model's fault: of Kafka, of the schema registry, of MinIO, a blob that
  is not there yet, a full disk, code that this exporter may not run. Then the model
  waits, and others are taken meanwhile.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from adapters import heartbeats, telemetry
from adapters.attempts import Attempts
from adapters.blobs import BlobError, BlobStore
from adapters.kafka import END, Publisher
from adapters.kafka_log import ReadBlock, follow_log
from adapters.numbers import BadNumberError, read_count
from adapters.outages import describe, is_outage
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from consumers.export.apart import (
    ChildError,
    Ending,
    ExportProcess,
    ExportTask,
    Measured,
    Outcome,
    Stopped,
)
from consumers.export.metrics import make_evaluation
from ledger.signing import SigningKey
from protocol.model import compute_max_model_size
from schemas.events import (
    AggregatePublished,
    Evaluation,
    FederationConfigured,
    ModelExported,
)
from schemas.reasons import Reason

log = logging.getLogger(__name__)

NUM_TRIES: Final = 3
"""Of a model that ends the exporting process: memory may have been short for a moment.
"""
AGAIN_S: Final = 10.0
"""Between two looks at models that wait for something, and after an outage."""
DEFAULT_LIMIT_S: Final = 3_600.0
"""For one model. A model of 100 million parameters takes a minute; one that takes an
hour has most likely lost its way, and others wait for it."""


class Exporter:
    """Follows one federation's log and exports what waits.

    Args:
        settings: Where Kafka, the schema registry and MinIO are.
        federation_id: The federation.
        key: The exporter's.
        allowed_prefixes: Prefixes of the modules that a task may use.
        directory: Where attempts are counted; None counts only in this process.
        limit_s: How long one model may take.
    """

    def __init__(
        self,
        settings: Settings,
        federation_id: str,
        key: SigningKey,
        allowed_prefixes: tuple[str, ...],
        *,
        directory: Path | None = None,
        limit_s: float = DEFAULT_LIMIT_S,
    ) -> None:
        self._settings = settings
        self._federation_id = federation_id
        self._key = key
        self._allowed_prefixes = allowed_prefixes
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._publisher = Publisher(settings, self._registry)
        self._store = BlobStore(settings)
        self._attempts = Attempts(directory)
        self._process = ExportProcess(limit_s)
        self._max_model_size = 0
        self._genesis = b""
        self._waiting: dict[int, tuple[AggregatePublished, str]] = {}
        self._not_before_s: dict[int, float] = {}

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Export until told to stop; outages are waited for.

        Raises:
            LogError: the log is broken.
            ChildError: the exporting process cannot start.
        """
        self._process.start()
        try:
            while not should_stop():
                try:
                    self._follow(should_stop)
                except Stopped:
                    return
                except Exception as error:
                    if not is_outage(error):
                        raise
                    log.warning("waiting: %s", describe(error))
                    _sleep(AGAIN_S, should_stop)
                else:
                    return
        finally:
            self._process.end()

    def _follow(self, should_stop: Callable[[], bool]) -> None:
        is_at_end = False
        self._waiting.clear()
        for read in follow_log(self._settings, self._registry, self._federation_id):
            if should_stop():
                return
            if isinstance(read, ReadBlock):
                is_at_end = False
                self._learn(read)
                continue
            # Only at the end is it certain that a model still waits.
            is_at_end = is_at_end or read is END
            if is_at_end:
                self._export_waiting(should_stop)
                heartbeats.do(heartbeats.FOLLOWING)

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

    def _export_waiting(self, should_stop: Callable[[], bool]) -> None:
        for number, (published, traceparent) in sorted(self._waiting.items()):
            if time.monotonic() < self._not_before_s.get(number, 0.0):
                continue
            with telemetry.span(
                "export", "model", kind=telemetry.INTERNAL, parent=traceparent
            ) as current:
                heartbeats.do(f"exporting the model of round {number}")
                claim = self._make_claim(published, should_stop)
                if claim is None:
                    self._not_before_s[number] = time.monotonic() + AGAIN_S
                    continue
                self._publisher.publish(
                    claim, self._key, self._genesis, traceparent=current
                )
            del self._waiting[number]
            reasons = {claim.no_onnx, claim.no_evaluation} - {""}
            said = ", ".join(sorted(reasons)) or "its metrics"
            log.info("round %d: said %s", number, said)

    def _make_claim(
        self, published: AggregatePublished, should_stop: Callable[[], bool]
    ) -> ModelExported | None:
        """Return what there is to say about a model; None if it waits."""
        try:
            return self._find_claim(published, should_stop)
        except (ChildError, Stopped):
            raise
        except Exception as error:
            if is_outage(error):
                raise
            log.exception("round %d: not exported", published.round)
            return _make_empty_claim(published)

    def _find_claim(
        self, published: AggregatePublished, should_stop: Callable[[], bool]
    ) -> ModelExported | None:
        number, model = published.round, published.model
        if model.size_bytes > self._max_model_size:
            log.error(
                "round %d: not exported: a model of %d bytes, at most %d are allowed",
                number,
                model.size_bytes,
                self._max_model_size,
            )
            return _make_empty_claim(published)
        try:
            blob = self._store.fetch(model, max_size_bytes=self._max_model_size)
        except BlobError as error:
            # It may be there tomorrow, and a version is registered once.
            log.error("round %d: not exported yet: %s", number, error)  # noqa: TRY400
            return None
        outcome = self._export(published, blob, should_stop)
        if outcome.ending is Ending.WAITS:
            log.error("round %d: not exported yet: %s", number, outcome.why)
            return None
        if outcome.ending is not Ending.EXPORTED:
            log.error("round %d: not exported: %s", number, outcome.why)
            return _make_empty_claim(published)
        if outcome.why:
            log.error("round %d: %s", number, outcome.why)
        evaluation = _make_evaluation(outcome.measured, number)
        onnx = self._store.store(outcome.onnx) if outcome.onnx else None
        return replace(
            _make_empty_claim(published),
            onnx=onnx,
            no_onnx=Reason.NOT_EXPORTABLE if onnx is None else "",
            evaluation=evaluation,
            no_evaluation=Reason.NOT_MEASURED if evaluation is None else "",
        )

    def _export(
        self,
        published: AggregatePublished,
        blob: bytes,
        should_stop: Callable[[], bool],
    ) -> Outcome:
        """Run the export, more than once if it ends the process that it runs in."""
        task = published.task
        export_task = ExportTask(
            module=task.module,
            module_config=task.module_config,
            data_module=task.data_module,
            data_config=task.data_config,
            allowed_prefixes=self._allowed_prefixes,
        )
        item = f"round-{published.round}-{published.model.sha256.hex()[:16]}"
        if not self._attempts.begin(item):
            why = "each time that it was begun, this exporter ended"
            return Outcome(ending=Ending.REFUSED, why=why)
        try:
            for left in reversed(range(NUM_TRIES)):
                outcome = self._process.export(export_task, blob, should_stop)
                if outcome.ending is not Ending.FAILED:
                    break
                log.warning(
                    "round %d: %s; %d more tries", published.round, outcome.why, left
                )
        finally:
            # Not if this process ends here: that is what is counted.
            self._attempts.end(item)
        return outcome


def _sleep(for_s: float, should_stop: Callable[[], bool]) -> None:
    until_s = time.monotonic() + for_s
    while time.monotonic() < until_s and not should_stop():
        time.sleep(0.1)


def _make_evaluation(measured: Measured | None, number: int) -> Evaluation | None:
    """Return what was measured; None if nothing, or no number of it fits."""
    if measured is None:
        return None
    try:
        num_examples = read_count(measured.num_examples, "num_examples")
    except BadNumberError as error:
        log.error("round %d: not measured: %s", number, error)  # noqa: TRY400
        return None
    evaluation, left_out = make_evaluation(
        measured.metrics, measured.directions, num_examples
    )
    for name, why in left_out.items():
        log.warning("round %d: no metric %s: %s", number, name, why)
    return evaluation


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
