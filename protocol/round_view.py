"""A round as the log records it: what was said and counts, and who must act next.

All who act in a round (agents and parties, the aggregator, nodes, the audit) follow it
with `follow`, beside the rounds decider's own step. It keeps what counts, not all that
was said: an event that the decider refused is not here.

Deliberately not here: rules (`protocol.rounds`) and what is in the blobs (the mode's).
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

from protocol.contributions import Contribution
from protocol.decider import Sequenced, step
from protocol.modes import get_mode, is_complete
from protocol.modes.mode import Answer
from protocol.persistent import PersistentMap
from protocol.round_state import OpenRound, RoundsState
from protocol.rounds import DECIDER
from schemas import codec
from schemas import events as e


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """An agent's answer that counts, or did on arrival, and its place."""

    leaf_index: int
    event: Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundView:
    """The round in progress.

    Attributes:
        config: The federation's parameters.
        genesis: Hash of the log's genesis, 32 bytes: secrets of one log, and statements
            about them, are useless in another.
        open: What the rounds decider knows of it.
        started_leaf_hash: Hash of the leaf with the fact that opened it; empty before
            that is on the log.
        answers: What agents answered, by agent; including those rejected since.
        said: Events that phases waited for, encoded, by leaf index; including those
            taken back since.
    """

    config: e.FederationConfigured
    genesis: bytes
    open: OpenRound
    started_leaf_hash: bytes = b""
    answers: PersistentMap[str, Answered] = field(default_factory=PersistentMap)
    said: PersistentMap[int, bytes] = field(default_factory=PersistentMap)

    @property
    def started(self) -> e.RoundStarted:
        """Return the fact that opened it."""
        return self.open.started

    @property
    def identity(self) -> bytes:
        """What tells it from any other round, even on another branch of the log."""
        return self.started.cause + self.started_leaf_hash

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        """Return what it was sealed with, by agent_id; nothing before that."""
        return () if self.open.sealed is None else self.open.ordered

    @property
    def is_ready(self) -> bool:
        """Whether answers can be checked: some are about the leaf that opened it."""
        return bool(self.started_leaf_hash) or not get_mode(self.config).needs_leaf

    @property
    def is_checkable(self) -> bool:
        """Whether answers can be judged, so that the log can say what they are."""
        mode = get_mode(self.config)
        return self.is_ready and mode.is_checkable(self.config, self.open)

    @property
    def is_complete(self) -> bool:
        """Whether everything is there that its result follows from."""
        return is_complete(self.config, self.open)

    def get_said(self, leaf_index: int) -> Any:
        """Return what was said at a leaf in one of its phases."""
        return _decode(self.said[leaf_index])


def list_parts(view: RoundView) -> dict[str, int]:
    """Return the leaf indexes of the parts of a sealed round's result, by author."""
    phase = get_mode(view.config).find_phase(view.open)
    said = {} if phase is None else view.open.said.get(phase.collects, {})
    return {author: at for author, at in said.items() if isinstance(at, int)}


@lru_cache(maxsize=256)
def _decode(data: bytes) -> Any:
    return codec.decode(data)


def follow(
    view: RoundView | None, rounds: RoundsState, leaf: Sequenced
) -> RoundView | None:
    """Move by one leaf.

    Args:
        view: The round before it; None if there was none.
        rounds: The rounds decider's state after the leaf.
        leaf: The leaf.

    Returns:
        The round after it; None if none is in progress.
    """
    config, current = rounds.config, rounds.current
    if config is None or current is None:
        return None
    if view is None or view.started != current.started:
        view = RoundView(config=config, genesis=leaf.genesis, open=current)
    event, index = leaf.event, leaf.leaf_index
    changes: dict[str, Any] = {}
    if isinstance(event, e.RoundStarted):
        # Agents hear of it when the log does: an answer may come first.
        if event.cause == current.started.cause and not view.started_leaf_hash:
            changes["started_leaf_hash"] = leaf.leaf_hash
    elif isinstance(event, Answer):
        if index in current.pending:
            answered = Answered(leaf_index=index, event=event)
            changes["answers"] = view.answers.insert(event.agent_id, answered)
    elif get_mode(config).has_noted(current, event, leaf):
        changes["said"] = view.said.insert(index, codec.encode(event))
    return replace(view, open=current, **changes)


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedRounds:
    """What is known after a leaf: the rounds decider's state, the round in progress."""

    rounds: RoundsState = DECIDER.initial
    view: RoundView | None = None


def watch(state: WatchedRounds, leaf: Sequenced) -> WatchedRounds:
    """Move by one leaf. Pure."""
    rounds, _ = step(DECIDER, state.rounds, leaf)
    return WatchedRounds(rounds=rounds, view=follow(state.view, rounds, leaf))
