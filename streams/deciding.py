"""A decider as a Faust app: leaves in, signed facts out."""

from __future__ import annotations

from typing import Any, TypeVar

from adapters import telemetry
from protocol.decider import Decider, step
from protocol.deciders import DECIDERS
from protocol.log import OpenedLeaf
from schemas import topics
from schemas.events import Fact
from streams.app import Service, Source, fail_stop, make_service
from streams.following import Follower

State = TypeVar("State")
FactT = TypeVar("FactT", bound=Fact)


def make_decider(name: str) -> Service:
    """Return the Faust app of a decider, by its name in `DECIDERS`."""
    service = make_service(name, "DECIDER")
    _follow(service, DECIDERS[name])
    return service


def _follow(service: Service, decider: Decider[State, FactT]) -> None:
    """Send every fact that a decider concludes to its topic."""

    def decide(state: State, leaf: OpenedLeaf) -> tuple[State, list[tuple[Fact, str]]]:
        after, facts = step(decider, state, leaf.sequenced)
        return after, [(fact, leaf.traceparent) for fact in facts]

    follower = Follower(service, type(decider.initial), decider.initial, decide)

    @service.app.agent(service.topic(topics.LEDGER), name=service.name, concurrency=1)
    async def follow_ledger(stream: Any) -> None:
        async for event in stream.events():
            with fail_stop(event):
                source = Source(topics.LEDGER, event.message.partition)
                facts = await follower.follow(event)
                genesis = follower.get_genesis(event.key)
                for fact, cause in facts:
                    with telemetry.span(
                        "process", topics.LEDGER, kind=telemetry.CONSUMER, parent=cause
                    ) as current:
                        await service.send(fact, genesis, current, source)
                await service.confirm()
