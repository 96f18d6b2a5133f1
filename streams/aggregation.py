"""The aggregator: checks the blobs of updates, adds up sealed rounds.

It follows the ledger with the rounds decider's own functions, so it knows what waits
for a check and what is sealed without believing anybody. What it concludes are claims:
the decider checks that they fit, the audit recomputes them.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from adapters import telemetry
from adapters.blobs import BlobError, BlobStore
from protocol.decider import step
from protocol.encoding import UpdateRefusedError, parse_update
from protocol.log import OpenedLeaf
from protocol.plain import (
    compute_max_model_size,
    compute_max_update_size,
    compute_result,
)
from protocol.rounds import DECIDER, RoundsState
from protocol.validation import MAX_CHECKS
from schemas import events as e
from schemas import topics
from streams.app import Source, fail_stop, make_service, serve
from streams.following import Follower

log = logging.getLogger(__name__)

NUM_FETCHERS: Final = 4
"""Blobs fetched at a time: enough to hide the store's latency, few enough that their
bytes (4 per parameter each) fit in memory."""
MAX_DETAIL_LENGTH: Final = 200


@dataclass(frozen=True, slots=True)
class ToCheck:
    """An update that waits for its blob's check."""

    update: e.UpdateSubmitted
    leaf_index: int
    num_parameters: int
    traceparent: str


@dataclass(frozen=True, slots=True)
class ToAggregate:
    """A sealed round that waits for its sum."""

    sealed: e.RoundSealed
    updates: tuple[e.BlobRef, ...]
    traceparent: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorState:
    """The rounds decider's state, and where the current round's updates are."""

    rounds: RoundsState = DECIDER.initial
    blobs: dict[str, e.BlobRef] | None = None


def follow_step(
    state: AggregatorState, leaf: OpenedLeaf
) -> tuple[AggregatorState, list[ToCheck | ToAggregate]]:
    """Move by one leaf and return the work that follows from it. Pure."""
    rounds, facts = step(DECIDER, state.rounds, leaf.sequenced)
    blobs = dict(state.blobs or {})
    work: list[ToCheck | ToAggregate] = []
    event = leaf.sequenced.event
    index = leaf.sequenced.leaf_index
    current = rounds.current
    if (
        isinstance(event, e.UpdateSubmitted)
        and current is not None
        and index in current.pending
    ):
        blobs[event.agent_id] = event.update
        size = current.started.num_parameters
        work.append(ToCheck(event, index, size, leaf.traceparent))
    for fact in facts:
        if isinstance(fact, e.RoundStarted):
            blobs = {}
        elif isinstance(fact, e.RoundSealed):
            updates = tuple(blobs[c.agent_id] for c in fact.contributions)
            work.append(ToAggregate(fact, updates, leaf.traceparent))
    return AggregatorState(rounds=rounds, blobs=blobs), work


class Aggregator:
    """The heavy work on blobs; every method runs in a thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(NUM_FETCHERS, "fetch")

    def check(self, batch: list[ToCheck]) -> Iterator[tuple[e.UpdatesChecked, str]]:
        """Yield claims about the blobs of updates of one round."""
        results = list(self._pool.map(self._check_one, batch))
        for start in range(0, len(batch), MAX_CHECKS):
            part = slice(start, start + MAX_CHECKS)
            claim = e.UpdatesChecked(
                federation_id=batch[0].update.federation_id,
                round=batch[0].update.round,
                results=tuple(results[part]),
            )
            yield claim, batch[part][-1].traceparent

    def _check_one(self, item: ToCheck) -> e.UpdateCheck:
        reason, detail = "", ""
        with telemetry.span(
            "check", "update", kind=telemetry.INTERNAL, parent=item.traceparent
        ):
            try:
                blob = self._store.fetch(
                    item.update.update,
                    max_size_bytes=compute_max_update_size(item.num_parameters),
                )
                parse_update(blob, num_parameters=item.num_parameters)
            except BlobError as error:
                reason, detail = error.reason, str(error)
            except UpdateRefusedError as error:
                reason, detail = error.reason, error.detail
        # A detail may quote the blob, which is an agent's to fill: a hundred of them
        # must fit a claim, whatever they quote.
        plain = detail.encode("ascii", "backslashreplace").decode()
        return e.UpdateCheck(
            leaf_index=item.leaf_index,
            reason=reason,
            detail=plain[:MAX_DETAIL_LENGTH],
        )

    def aggregate(self, work: ToAggregate) -> e.AggregateSubmitted:
        """Return the claim about a sealed round."""
        sealed = work.sealed
        base = self._store.fetch(
            sealed.base_model,
            max_size_bytes=compute_max_model_size(sealed.num_parameters),
        )
        result = compute_result(sealed, base, self._fetch_in_order(work))
        return e.AggregateSubmitted(
            federation_id=sealed.federation_id,
            round=sealed.round,
            base_model_sha256=sealed.base_model.sha256,
            num_contributions=len(sealed.contributions),
            num_examples=sealed.num_examples,
            sum=self._store.store(result.sum_blob),
            model=self._store.store(result.model_blob),
        )

    def _fetch_in_order(self, work: ToAggregate) -> Iterator[bytes]:
        """Fetch a few blobs ahead of the sum, never all of them."""
        size = compute_max_update_size(work.sealed.num_parameters)

        def fetch(ref: e.BlobRef) -> bytes:
            return self._store.fetch(ref, max_size_bytes=size)

        for start in range(0, len(work.updates), NUM_FETCHERS):
            yield from self._pool.map(fetch, work.updates[start : start + NUM_FETCHERS])


service = make_service("aggregator", "AGGREGATOR")
app = service.app
aggregator = Aggregator(BlobStore(service.settings))
follower = Follower(service, AggregatorState, AggregatorState(), follow_step)


def do(work: list[ToCheck | ToAggregate]) -> list[tuple[e.Event, str]]:
    """Return the claims that settle this work, checks first."""
    claims: list[tuple[e.Event, str]] = []
    rounds: dict[tuple[str, int], list[ToCheck]] = {}
    for item in work:
        if isinstance(item, ToCheck):
            place = (item.update.federation_id, item.update.round)
            rounds.setdefault(place, []).append(item)
    for batch in rounds.values():
        claims.extend(aggregator.check(batch))
    for item in work:
        if isinstance(item, ToAggregate):
            with telemetry.span(
                "aggregate", "round", kind=telemetry.INTERNAL, parent=item.traceparent
            ) as current:
                try:
                    claims.append((aggregator.aggregate(item), current))
                except BlobError as error:
                    # A blob that was there when it was checked. The round cannot
                    # end, but others can go on: the operator abandons it.
                    log.error("round %d has no sum: %s", item.sealed.round, error)  # noqa: TRY400
    return claims


@app.agent(service.topic(topics.LEDGER), name="aggregator", concurrency=1)
async def follow_ledger(stream: Any) -> None:
    """Do the work that a block brings; nothing is decided here."""
    async for event in stream.events():
        with fail_stop():
            source = Source(topics.LEDGER, event.message.partition)
            work = await follower.follow(event)
            for claim, cause in await asyncio.to_thread(do, work):
                await service.send(claim, cause, source)
            await service.confirm()


if __name__ == "__main__":
    serve(service)
