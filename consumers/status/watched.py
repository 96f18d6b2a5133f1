"""A federation's log as far as its status needs it: a fold over the leaves.

The deciders run here as they do in a replay, so what they owe the log is known: a fact
that follows from a leaf and is not there yet. Deliberately not here: what audits check.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from protocol.admission import AdmissionState
from protocol.deciders import States, compute_initial_states, step_all
from protocol.log import OpenedLeaf, fold_admission
from protocol.modes import get_mode
from protocol.registry import RegistryState
from protocol.round_state import RoundsState
from schemas import events as e
from schemas import topics

MAX_REFUSALS: Final = 5
"""Refusals that are shown, the last ones."""
MAX_BLOCKS: Final = 1_000
"""Blocks whose stamps are remembered, to know since when nothing became final."""
ANSWERING: Final = "answering"
"""What the first phase of a round is called."""

DECIDER_OF: Final[Mapping[str, str]] = {
    topics.ROUNDS: "rounds",
    topics.AGGREGATES: "rounds",
    topics.REGISTRY: "registry",
    topics.REWARDS: "rewards",
}
"""Which decider says the facts of a topic."""

Refusal = (
    e.EventRejected
    | e.ContributionRejected
    | e.ClaimRejected
    | e.RoundRefused
    | e.RoundAbandoned
)


class Turn(NamedTuple):
    """A fact's place among those of its topic."""

    topic: str
    cause_leaf_index: int
    output_index: int


class Stamped(NamedTuple):
    """A leaf's event, and its block's stamp."""

    at_ms: int
    event: e.LedgerEvent


class Size(NamedTuple):
    """How long the log was after a block, and the block's stamp."""

    size: int
    at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchedLog:
    """What is known after a block.

    Attributes:
        admission: What admission knows.
        states: What the deciders know.
        size: Number of leaves.
        block_at_ms: Stamp of the last block; 0 before any.
        phase: Number of the round in progress and name of its phase; None if there is
            no round.
        round_at_ms: Since when there is this round, or none.
        phase_at_ms: Since when it is in this phase.
        owed: Facts that follow from the log and are not on it, and since when.
        published_at_ms: When models were published that nobody has exported, by round.
        version: The last registered version.
        ended: How the last round ended.
        refusals: The last refusals of all kinds.
        num_refusals: How many there were.
        blocks: The last blocks.
    """

    admission: AdmissionState = field(default_factory=AdmissionState)
    states: States = field(default_factory=compute_initial_states)
    size: int = 0
    block_at_ms: int = 0
    phase: tuple[int, str] | None = None
    round_at_ms: int = 0
    phase_at_ms: int = 0
    owed: Mapping[Turn, int] = field(default_factory=dict)
    published_at_ms: Mapping[int, int] = field(default_factory=dict)
    version: e.ModelVersionRegistered | None = None
    ended: Stamped | None = None
    refusals: tuple[Stamped, ...] = ()
    num_refusals: int = 0
    blocks: tuple[Size, ...] = ()

    @property
    def rounds(self) -> RoundsState:
        """Return the rounds decider's state."""
        return self.states["rounds"]  # type: ignore[no-any-return]  # its own

    @property
    def registry(self) -> RegistryState:
        """Return the registry decider's state."""
        return self.states["registry"]  # type: ignore[no-any-return]  # its own


def learn(log: WatchedLog, leaves: Sequence[OpenedLeaf]) -> WatchedLog:
    """Move by one block.

    Args:
        log: What is known before it.
        leaves: Its leaves, at least one.

    Raises:
        UnknownRulesError: this program does not know the rules that hold.
    """
    for leaf in leaves:
        log = _learn_leaf(log, leaf)
    last = leaves[-1].sequenced
    block = Size(last.tree_size, last.sequenced_at_ms)
    return replace(
        log,
        admission=fold_admission(log.admission, leaves),
        size=block.size,
        block_at_ms=block.at_ms,
        blocks=(*log.blocks, block)[-MAX_BLOCKS:],
    )


def _learn_leaf(log: WatchedLog, leaf: OpenedLeaf) -> WatchedLog:
    event, at_ms = leaf.sequenced.event, leaf.sequenced.sequenced_at_ms
    states, facts = step_all(log.states, leaf.sequenced)
    owed = dict(log.owed)
    if isinstance(event, e.Fact):
        owed.pop(_find_turn(event), None)
    owed |= {_find_turn(fact): at_ms for fact in facts}
    published = dict(log.published_at_ms)
    if isinstance(event, e.AggregatePublished):
        published[event.round] = at_ms
    elif isinstance(event, e.ModelExported):
        published.pop(event.round, None)
    ends = isinstance(event, e.AggregatePublished | e.RoundAbandoned)
    is_refusal = isinstance(event, Refusal)
    log = replace(
        log,
        states=states,
        owed=owed,
        published_at_ms=published,
        version=event if isinstance(event, e.ModelVersionRegistered) else log.version,
        ended=Stamped(at_ms, event) if ends else log.ended,
        refusals=(*log.refusals, Stamped(at_ms, event))[-MAX_REFUSALS:]
        if is_refusal
        else log.refusals,
        num_refusals=log.num_refusals + is_refusal,
    )
    phase = find_phase(log.rounds)
    if phase == log.phase and log.round_at_ms:
        return log
    number = None if phase is None else phase[0]
    before = None if log.phase is None else log.phase[0]
    is_same_round = number == before and log.round_at_ms
    return replace(
        log,
        phase=phase,
        phase_at_ms=at_ms,
        round_at_ms=log.round_at_ms if is_same_round else at_ms,
    )


def find_phase(rounds: RoundsState) -> tuple[int, str] | None:
    """Return the number of the round in progress and the name of its phase."""
    if rounds.config is None or rounds.current is None:
        return None
    phase = get_mode(rounds.config).find_phase(rounds.current)
    name = ANSWERING if phase is None else phase.name
    return rounds.current.started.round, name


def _find_turn(fact: e.Fact) -> Turn:
    return Turn(topics.topic_of(fact), fact.cause_leaf_index, fact.output_index)
