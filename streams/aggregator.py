"""The aggregator: checks the blobs of answers and computes what sealed rounds yield.

It follows the ledger with the rounds decider's own functions, so it knows what awaits a
check and what is complete without believing anybody. Its conclusions are claims: the
decider checks that they fit, the audit recomputes them.

The mode decides how blobs are checked (`protocol.modes`); the aggregator never needs a
key for it.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

from adapters import heartbeats, telemetry
from adapters.ahead import Ahead
from adapters.blobs import BlobError, BlobStore
from adapters.round_blobs import Checking
from adapters.settings import load_settings
from protocol.log import OpenedLeaf
from protocol.modes import get_mode
from protocol.modes.mode import Answer
from protocol.modes.problem import UNFORESEEN, RoundError
from protocol.round_view import RoundView, WatchedRounds, watch
from protocol.strategies.arithmetic import verify_arithmetic
from protocol.tensors import MalformedBlobError
from protocol.validation import MAX_CHECKS
from schemas import events as e
from streams.app import Service, make_service
from streams.checking import complete, make_check
from streams.following import Follower, follow_ledger

log = logging.getLogger(__name__)

NUM_THREADS: Final = max(4, os.cpu_count() or 1)
"""Enough to hide the store's latency and use all cores; few enough that as many blobs
fit in memory."""


@dataclass(frozen=True, slots=True)
class Work:
    """A round that waits for the aggregator, or soon will.

    Attributes:
        view: The round.
        came: Agents whose answers can now be checked.
        due: Agents whose answers now await a check.
        is_complete: Whether it now awaits its result.
        traceparent: The trace it belongs to.
        is_over: Whether the ledger now says that its deadline has passed.
    """

    view: RoundView
    came: tuple[str, ...]
    due: tuple[str, ...]
    is_complete: bool
    traceparent: str
    is_over: bool = False


def follow_step(
    state: WatchedRounds, leaf: OpenedLeaf
) -> tuple[WatchedRounds, list[Work]]:
    """Move by one leaf and return the work that follows from it. Pure."""
    after = watch(state, leaf.sequenced)
    before, view = state.view, after.view
    if view is None:
        return after, []
    if before is not None and before.started != view.started:
        before = None
    # One at a time: comparing all that is known would cost the round's size squared.
    came = due = _find_new(before, view, leaf)
    if not (before is not None and before.is_ready):
        came = _list_waiting(view)
    is_over = _is_over(view, leaf)
    if is_over or not (before is not None and before.is_checkable):
        due = _list_waiting(view)
    work = Work(
        view,
        came if view.is_ready else (),
        due if view.is_checkable else (),
        view.is_complete and not (before is not None and before.is_complete),
        leaf.traceparent,
        is_over,
    )
    return after, [work] if work.came or work.due or work.is_complete else []


def _find_new(
    before: RoundView | None, view: RoundView, leaf: OpenedLeaf
) -> tuple[str, ...]:
    event = leaf.sequenced.event
    known = None if before is None else before.answers
    return (
        (event.agent_id,)
        if isinstance(event, Answer) and view.answers is not known
        else ()
    )


def _is_over(view: RoundView, leaf: OpenedLeaf) -> bool:
    """Return whether a leaf says that the time for answers is over, rightly."""
    event, started = leaf.sequenced.event, view.started
    return (
        isinstance(event, e.DeadlineReached)
        and event.round == started.round
        and leaf.sequenced.sequenced_at_ms > started.deadline_ms
    )


def _list_waiting(view: RoundView) -> tuple[str, ...]:
    return tuple(sorted(view.open.pending_of))


class Aggregator:
    """The heavy work on blobs; every method runs in a thread."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._checking = Checking(store.fetch, Ahead(NUM_THREADS, "aggregate"))

    def do(self, work: list[Work]) -> list[tuple[e.Event, str]]:
        """Return the claims that settle this work, checks first."""
        claims: list[tuple[e.Event, str]] = []
        for rounds in _group(work):
            latest = rounds[-1].view
            heartbeats.do(f"checking and summing round {latest.started.round}")
            try:
                self._prepare(latest, rounds)
                claims += self._check(latest, rounds)
                for item in rounds:
                    if item.is_complete:
                        claims += self._complete(item)
            except UNFORESEEN:
                # The round waits for its operator. Others, of other federations too,
                # do not wait for it.
                log.exception("round %d is left as it is", latest.started.round)
        heartbeats.do(heartbeats.FOLLOWING)
        return claims

    def _prepare(self, view: RoundView, rounds: list[Work]) -> None:
        came = {agent_id for item in rounds for agent_id in item.came}
        waiting = sorted(name for name in came if name in view.open.pending_of)
        if waiting:
            self._checking.get(view).prepare(view, waiting)

    def _check(
        self, view: RoundView, rounds: list[Work]
    ) -> Iterator[tuple[e.Event, str]]:
        """Yield claims about answers of one round."""
        traces = {name: item.traceparent for item in rounds for name in item.due}
        places = view.open.pending_of
        due = sorted((n for n in traces if n in places), key=lambda n: places[n])
        if not due:
            return
        with telemetry.span(
            "check", "update", kind=telemetry.INTERNAL, parent=traces[due[-1]]
        ):
            found = self._checking.get(view).check(view, due)
        if get_mode(view.config).awaits_checks and not any(
            item.is_over for item in rounds
        ):
            due = [name for name in due if not self._may_come(view, name, found[name])]
        checks = [make_check(places[name], *_explain(found[name])) for name in due]
        for start in range(0, len(due), MAX_CHECKS):
            part = slice(start, start + MAX_CHECKS)
            claim = e.UpdatesChecked(
                federation_id=view.config.federation_id,
                round=view.started.round,
                results=tuple(checks[part]),
            )
            yield claim, traces[due[part][-1]]

    def _may_come(self, view: RoundView, name: str, problem: RoundError | None) -> bool:
        """Return whether an answer waits for its blob, which the store lacks.

        Nobody can check later what the store had, so nothing is said of it in a hurry:
        its agent has until the deadline, like one that has not answered.
        """
        if problem is None or problem.blob is None:
            return False
        number = view.started.round
        log.warning("round %d: %s waits for its blob: %s", number, name, problem)
        return True

    def _complete(self, item: Work) -> Iterator[tuple[e.Event, str]]:
        with telemetry.span(
            "aggregate", "round", kind=telemetry.INTERNAL, parent=item.traceparent
        ) as current:
            view = item.view
            try:
                checker = self._checking.get(view)
                yield complete(view, checker, self._store), current
            except (BlobError, RoundError, MalformedBlobError) as error:
                # A blob that was there when it was checked, or what an aggregator
                # before this one published. The round cannot end, but others can go on:
                # the operator abandons it.
                number = view.started.round
                log.error("round %d has no sum: %s", number, error)  # noqa: TRY400


def _group(work: list[Work]) -> Iterator[list[Work]]:
    """Yield the work round by round, in order."""
    rounds: dict[tuple[str, bytes], list[Work]] = {}
    for item in work:
        place = item.view.config.federation_id, item.view.started.cause
        rounds.setdefault(place, []).append(item)
    yield from rounds.values()


def _explain(problem: RoundError | None) -> tuple[str, str]:
    return ("", "") if problem is None else (problem.reason, problem.detail)


def make_aggregator() -> Service:
    """Return the aggregator's Faust app."""
    load_settings().demand_minio()
    verify_arithmetic()
    service = make_service("aggregator", "AGGREGATOR")
    aggregator = Aggregator(BlobStore(service.settings))
    follower = Follower(service, WatchedRounds, WatchedRounds(), follow_step)
    follow_ledger(service, follower, aggregator.do)
    return service
