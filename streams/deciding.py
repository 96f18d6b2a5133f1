"""A decider as a Faust app: leaves in, signed facts out."""

from __future__ import annotations

from typing import Any

from adapters import telemetry
from protocol.decider import step
from protocol.deciders import DECIDERS
from protocol.log import OpenedLeaf
from schemas import topics
from schemas.events import Event
from streams.app import Service, make_service
from streams.following import Follower, follow_ledger


def make_decider(name: str) -> Service:
    """Return the Faust app of a decider, by its name in `DECIDERS`.

    It sends every fact that the decider concludes to that fact's topic.
    """
    service = make_service(name, "DECIDER")
    decider = DECIDERS[name]

    def decide(state: Any, leaf: OpenedLeaf) -> tuple[Any, list[tuple[Event, str]]]:
        after, facts = step(decider, state, leaf.sequenced)
        return after, [(fact, leaf.traceparent) for fact in facts]

    follower = Follower(service, type(decider.initial), decider.initial, decide)
    follow_ledger(service, follower, _trace)
    return service


def _trace(facts: list[tuple[Event, str]]) -> list[tuple[Event, str]]:
    """Put a span around the conclusion of each fact."""
    traced = []
    for fact, cause in facts:
        with telemetry.span(
            "process", topics.LEDGER, kind=telemetry.CONSUMER, parent=cause
        ) as current:
            traced.append((fact, current))
    return traced
