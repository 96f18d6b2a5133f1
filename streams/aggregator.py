"""The aggregator: checks the blobs of updates, adds up sealed rounds.

It follows the ledger with the rounds decider's own functions, so it knows what waits
for a check and what is sealed without believing anybody. What it concludes are claims:
the decider checks that they fit, the audit recomputes them.

Of an MPC round it verifies norm proofs as they come, links once all parties have
given theirs, and the parts of the sum; it sees no update, and needs no key for any of
it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final, TypeAlias

from adapters import telemetry
from adapters.blobs import BlobError, BlobStore
from adapters.round_blobs import make_fetch
from protocol.decider import step
from protocol.encoding import UpdateRefusedError, parse_update
from protocol.log import OpenedLeaf
from protocol.model import (
    compute_max_model_size,
    compute_max_update_size,
    compute_result,
)
from protocol.modes.mpc.round import MpcRound, Owed, follow
from protocol.modes.problem import RoundError
from protocol.persistent import PersistentMap
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from protocol.validation import MAX_CHECKS
from schemas import events as e
from schemas import topics
from streams.app import Service, Source, fail_stop, make_service
from streams.completing import complete, make_check, make_claim
from streams.following import Follower
from streams.mpc.verifying import Verifying

log = logging.getLogger(__name__)

NUM_FETCHERS: Final = 4
"""Blobs fetched at a time: enough to hide the store's latency, few enough that their
bytes (4 per parameter each) fit in memory."""


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
    weights: tuple[int, ...]
    updates: tuple[e.BlobRef, ...]
    initial_model: e.BlobRef
    traceparent: str


@dataclass(frozen=True, slots=True)
class ToVerify:
    """An MPC round that waits for something from the aggregator, or soon will.

    Attributes:
        secret: The round.
        agents: Whose proofs can be verified since.
        traceparent: The trace it belongs to.
    """

    secret: MpcRound
    agents: tuple[str, ...]
    traceparent: str


Work: TypeAlias = ToCheck | ToAggregate | ToVerify


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatorState:
    """The rounds decider's state, and where the current round's updates are."""

    rounds: RoundsState = DECIDER.initial
    blobs: PersistentMap[str, e.BlobRef] = field(default_factory=PersistentMap)
    secret: MpcRound | None = None


def follow_step(
    state: AggregatorState, leaf: OpenedLeaf
) -> tuple[AggregatorState, list[Work]]:
    """Move by one leaf and return the work that follows from it. Pure."""
    rounds, facts = step(DECIDER, state.rounds, leaf.sequenced)
    secret = follow(state.secret, rounds, leaf.sequenced)
    if secret is not None:
        return _follow_mpc(state, rounds, secret, leaf)
    blobs = state.blobs
    work: list[Work] = []
    event = leaf.sequenced.event
    index = leaf.sequenced.leaf_index
    current = rounds.current
    if (
        isinstance(event, e.UpdateSubmitted)
        and current is not None
        and index in current.pending
    ):
        blobs = blobs.insert(event.agent_id, event.update)
        size = current.started.num_parameters
        work.append(ToCheck(event, index, size, leaf.traceparent))
    for fact in facts:
        if isinstance(fact, e.RoundStarted):
            blobs = PersistentMap()
        elif isinstance(fact, e.RoundSealed) and current is not None:
            counted = current.ordered
            updates = tuple(blobs[c.agent_id] for c in counted)
            weights = tuple(c.num_examples for c in counted)
            assert rounds.config is not None, "a round is open"
            model = rounds.config.initial_model
            work.append(ToAggregate(fact, weights, updates, model, leaf.traceparent))
    return AggregatorState(rounds=rounds, blobs=blobs), work


def _follow_mpc(
    state: AggregatorState, rounds: RoundsState, secret: MpcRound, leaf: OpenedLeaf
) -> tuple[AggregatorState, list[Work]]:
    before = state.secret
    owed = None if before is None else before.owed_by_aggregator()
    work: list[Work] = []
    agents = _find_provable(before, secret, leaf)
    if agents or secret.owed_by_aggregator() not in {None, owed}:
        work.append(ToVerify(secret, agents, leaf.traceparent))
    return AggregatorState(rounds=rounds, secret=secret), work


def _find_provable(
    before: MpcRound | None, secret: MpcRound, leaf: OpenedLeaf
) -> tuple[str, ...]:
    """Return whose proofs can be verified from this leaf on."""
    event = leaf.sequenced.event
    if not secret.started_leaf_hash:
        return ()
    if before is None or before.started_leaf_hash != secret.started_leaf_hash:
        return tuple(sorted(secret.waiting))
    if isinstance(event, e.UpdateCommitted) and (
        secret.view.answers is not before.view.answers
    ):
        return (event.agent_id,)
    return ()


class Aggregator:
    """The heavy work on blobs; every method runs in a thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(NUM_FETCHERS, "fetch")
        self._verifying = Verifying(make_fetch(store.fetch))

    def do(self, work: list[Work]) -> list[tuple[e.Event, str]]:
        """Return the claims that settle this work, checks first."""
        secret = [item for item in work if isinstance(item, ToVerify)]
        if secret:
            return self._do_mpc(secret)
        claims: list[tuple[e.Event, str]] = []
        rounds: dict[tuple[str, int], list[ToCheck]] = {}
        for item in work:
            if isinstance(item, ToCheck):
                place = (item.update.federation_id, item.update.round)
                rounds.setdefault(place, []).append(item)
        for batch in rounds.values():
            claims.extend(self.check(batch))
        for item in work:
            if isinstance(item, ToAggregate):
                with telemetry.span(
                    "aggregate",
                    "round",
                    kind=telemetry.INTERNAL,
                    parent=item.traceparent,
                ) as current:
                    try:
                        claims.append((self.aggregate(item), current))
                    except BlobError as error:
                        number = item.sealed.round
                        # A blob that was there when it was checked. The round cannot
                        # end, but others can go on: the operator abandons it.
                        log.error("round %d has no sum: %s", number, error)  # noqa: TRY400
        return claims

    def _do_mpc(self, work: list[ToVerify]) -> list[tuple[e.Event, str]]:
        self.verify_proofs(work)
        claims: list[tuple[e.Event, str]] = []
        for item in work:
            with telemetry.span(
                "verify", "round", kind=telemetry.INTERNAL, parent=item.traceparent
            ) as current:
                try:
                    claims += [(claim, current) for claim in self.settle(item.secret)]
                except (BlobError, RoundError) as error:
                    # Others can go on: the operator abandons the round.
                    number = item.secret.started.round
                    log.error("round %d has no sum: %s", number, error)  # noqa: TRY400
        return claims

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
        return make_check(item.leaf_index, reason, detail)

    def aggregate(self, work: ToAggregate) -> e.AggregateSubmitted:
        """Return the claim about a sealed round."""
        sealed = work.sealed
        base = self._store.fetch(
            sealed.base_model,
            max_size_bytes=compute_max_model_size(work.initial_model),
        )
        blobs = self._fetch_in_order(work)
        result = compute_result(sealed, work.weights, base, blobs)
        return make_claim(sealed, result, self._store)

    def verify_proofs(self, work: list[ToVerify]) -> None:
        """Verify the norm proofs that came, together; nothing is said of them yet."""
        latest = work[-1].secret
        agents = {agent_id for item in work for agent_id in item.agents}
        here = sorted(agents & latest.view.answers.keys())
        if here and latest.started_leaf_hash:
            self._verifying.verify_proofs(latest, here)

    def settle(self, secret: MpcRound) -> Iterator[e.Event]:
        """Yield the claims that an MPC round waits for."""
        owed = secret.owed_by_aggregator()
        if owed is Owed.CHECKS:
            yield from self._check_commitments(secret)
        elif owed is Owed.RESULT:
            yield complete(secret, self._verifying.get(secret), self._store)

    def _check_commitments(self, secret: MpcRound) -> Iterator[e.UpdatesChecked]:
        agents = sorted(secret.waiting)
        self._verifying.verify_proofs(secret, agents)
        reasons = self._verifying.get(secret).find_reasons(secret, agents)
        results = sorted(
            (
                make_check(secret.get_committed(agent_id).leaf_index, *_explain(reason))
                for agent_id, reason in reasons.items()
            ),
            key=lambda check: check.leaf_index,
        )
        for start in range(0, len(results), MAX_CHECKS):
            yield e.UpdatesChecked(
                federation_id=secret.config.federation_id,
                round=secret.started.round,
                results=tuple(results[start : start + MAX_CHECKS]),
            )

    def _fetch_in_order(self, work: ToAggregate) -> Iterator[bytes]:
        """Fetch a few blobs ahead of the sum, never all of them."""
        size = compute_max_update_size(work.sealed.num_parameters)

        def fetch(ref: e.BlobRef) -> bytes:
            return self._store.fetch(ref, max_size_bytes=size)

        for start in range(0, len(work.updates), NUM_FETCHERS):
            yield from self._pool.map(fetch, work.updates[start : start + NUM_FETCHERS])


def _explain(problem: RoundError | None) -> tuple[str, str]:
    return ("", "") if problem is None else (problem.reason, problem.detail)


def make_aggregator() -> Service:
    """Return the aggregator's Faust app."""
    service = make_service("aggregator", "AGGREGATOR")
    aggregator = Aggregator(BlobStore(service.settings))
    follower = Follower(service, AggregatorState, AggregatorState(), follow_step)

    @service.app.agent(service.topic(topics.LEDGER), name=service.name, concurrency=1)
    async def follow_ledger(stream: Any) -> None:
        async for event in stream.events():
            with fail_stop(event):
                source = Source(topics.LEDGER, event.message.partition)
                work = await follower.follow(event)
                genesis = follower.get_genesis(event.key)
                for claim, cause in await asyncio.to_thread(aggregator.do, work):
                    await service.send(claim, genesis, cause, source)
                await service.confirm()

    return service
