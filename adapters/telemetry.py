"""Traces: one round is one trace, from the request to the registered model.

The W3C trace context travels in every record's ``traceparent`` header, and through a
block in its ``traceparents``. Span names and attributes follow OpenTelemetry's semantic
conventions for messaging. Spans are exported when an OTLP endpoint is set; without one
they are still made, for their ids, and dropped.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Span, TracerProvider
from opentelemetry.trace import SpanContext, SpanKind, TraceFlags
from opentelemetry.trace.propagation import set_span_in_context

TRACEPARENT: Final = re.compile(r"00-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})")
CONSUMER: Final = SpanKind.CONSUMER
PRODUCER: Final = SpanKind.PRODUCER
INTERNAL: Final = SpanKind.INTERNAL

_provider = TracerProvider()
_exporting = False


def configure(service: str, otlp_endpoint: str | None) -> None:
    """Name this process in its spans, and export them if there is an endpoint.

    Args:
        service: The service's name, such as ``moot-sequencer``.
        otlp_endpoint: URL of an OTLP/HTTP collector, such as
            ``http://localhost:4318``; None exports nothing.
    """
    global _provider, _exporting  # noqa: PLW0603  # one provider a process, as in OTel
    _provider = TracerProvider(resource=Resource.create({"service.name": service}))
    _exporting = otlp_endpoint is not None
    if otlp_endpoint is None:
        return
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import (  # noqa: PLC0415
        OTLPSpanExporter,
    )
    from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415

    exporter = OTLPSpanExporter(endpoint=otlp_endpoint.rstrip("/") + "/v1/traces")
    _provider.add_span_processor(
        BatchSpanProcessor(exporter, schedule_delay_millis=500)
    )


def shut_down() -> None:
    """Export what is left."""
    _provider.shutdown()


def is_exporting() -> bool:
    """Return whether spans are exported: hot loops skip them if not."""
    return _exporting


def clean(traceparent: str | bytes | None) -> str:
    """Return a trace context as received if it is well formed, otherwise nothing.

    It came from outside and goes on the ledger, so nothing else may pass.
    """
    if isinstance(traceparent, bytes):
        traceparent = traceparent.decode("ascii", "replace")
    if traceparent is None or TRACEPARENT.fullmatch(traceparent) is None:
        return ""
    return traceparent


@contextmanager
def span(
    operation: str,
    destination: str,
    *,
    kind: SpanKind,
    parent: str = "",
    **attributes: str | int,
) -> Iterator[str]:
    """Run a block as a span; yields the ``traceparent`` for its outputs.

    Args:
        operation: ``publish``, ``process``, or our own word, such as ``train``.
        destination: The topic, or the subject of the work.
        kind: Producer, consumer or internal.
        parent: W3C trace context of the cause; empty starts a new trace.
        **attributes: Further attributes; a double underscore stands for a dot.
    """
    tracer = _provider.get_tracer("folkmoot")
    named = {key.replace("__", "."): value for key, value in attributes.items()}
    if kind is not INTERNAL:
        named |= {
            "messaging.system": "kafka",
            "messaging.operation.name": operation,
            "messaging.operation.type": "send" if kind is PRODUCER else "process",
            "messaging.destination.name": destination,
        }
    with tracer.start_as_current_span(
        f"{operation} {destination}",
        context=_context(parent),
        kind=kind,
        attributes=named,
    ) as current:
        yield _traceparent(current)  # type: ignore[arg-type]  # the SDK's own span


def _context(parent: str) -> Context:
    match = TRACEPARENT.fullmatch(parent)
    if match is None:
        # An empty context, not the current one: the parent is data, never ambient.
        return trace.set_span_in_context(trace.INVALID_SPAN)
    trace_id, span_id, flags = match.groups()
    remote = SpanContext(
        trace_id=int(trace_id, 16),
        span_id=int(span_id, 16),
        is_remote=True,
        trace_flags=TraceFlags(int(flags, 16)),
    )
    return set_span_in_context(trace.NonRecordingSpan(remote))


def _traceparent(current: Span) -> str:
    context = current.get_span_context()
    assert context is not None, "a span that is in progress has a context"
    return (
        f"00-{trace.format_trace_id(context.trace_id)}"
        f"-{trace.format_span_id(context.span_id)}-{context.trace_flags:02x}"
    )
