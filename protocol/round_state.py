"""What the rounds decider knows: of a federation, and of its round in progress."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from protocol.configuration import read_configuration
from protocol.contributions import Contribution
from protocol.persistent import PersistentMap, PersistentSet
from schemas import events as e

Noted: TypeAlias = int | bytes
"""What is kept of something said: its leaf's index, or its content."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingUpdate:
    """An update, or its stand-in, whose blobs nobody has checked yet."""

    agent_id: str
    update_sha256: bytes
    num_examples: int
    leaf_hash: bytes
    num_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenRound:
    """The round in progress.

    Attributes:
        started: The fact that opened it.
        cohort: The agents drawn.
        owing: Drawn agents that have not answered: what they send may still count.
        pending: Updates to be checked, by leaf index.
        pending_of: Their leaf indexes, by agent.
        contributions: Accepted contributions, by agent.
        begun: The facts that began later phases, by name of the phase
            (`protocol.modes.mode.Phase`).
        said: What was said in them and counts, by what the phase collects, then by
            author.
        result_deadline_ms: Until when only the aggregator may say the round's result; 0
            where nobody else may, or while something is missing.
        told_at_ms: Stamp of the last block since sealing in which the timer spoke about
            this round; 0 before any.
    """

    started: e.RoundStarted
    cohort: frozenset[str]
    owing: PersistentSet[str]
    pending: PersistentMap[int, PendingUpdate] = field(default_factory=PersistentMap)
    pending_of: PersistentMap[str, int] = field(default_factory=PersistentMap)
    contributions: PersistentMap[str, Contribution] = field(
        default_factory=PersistentMap
    )
    begun: Mapping[str, e.RoundFact] = field(
        default_factory=dict, metadata={"is_spread": True}
    )
    said: Mapping[str, Mapping[str, Noted]] = field(
        default_factory=dict, metadata={"is_spread": True}
    )
    result_deadline_ms: int = 0
    told_at_ms: int = 0

    @property
    def sealed(self) -> e.RoundSealed | None:
        """Return the fact that sealed it, if any."""
        fact = self.begun.get("sealed")
        return fact if isinstance(fact, e.RoundSealed) else None

    @property
    def deadline_ms(self) -> int | None:
        """Return the deadline of the present phase; None if it has none."""
        if self.sealed is not None:
            return self.result_deadline_ms or None
        return None if self.begun else self.started.deadline_ms

    @property
    def is_result_late(self) -> bool:
        """Return whether the aggregator's time is over, once all was said."""
        return 0 < self.result_deadline_ms < self.told_at_ms

    @property
    def num_possible(self) -> int:
        """Return how many contributions are still possible."""
        return len(self.contributions) + len(self.pending)

    @property
    def ordered(self) -> tuple[Contribution, ...]:
        """Return the accepted contributions in ascending order of agent_id."""
        return tuple(item for _, item in sorted(self.contributions.items()))


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundsState:
    """What the rounds decider knows of a federation.

    Attributes:
        config: The parameters of the round in progress, or else the newest; None before
            the first leaf.
        change: Number of the change that brought them; 0 as founded.
        waiting: The last change, if it waits for the round in progress to end.
        agents: Active agents.
        last_round: Number of the last round that started; 0 if none.
        last_requested_at_ms: Latest time of a round request; -1 before any.
        version: Version of the current global model; 0 is the initial one.
        model: The current global model.
        strategy_state: What the strategy carries with it; None before the first
            published round, and if it carries nothing.
        current: The round in progress, if any.
        missed: How many rounds that it was drawn for an agent has missed in a row;
            without those that answered the last one.
        summed: Where a sum is opened once, agents that are or were in a sealed set on
            the current global model: a sum over them was opened, or may have been.
        draw_size: Tree size of the checkpoint that the next cohort is drawn from; 0
            without ledger nodes.
        draw_entropy: What the last such checkpoint gave, 32 bytes; initially zeros.
        drawn_size: Its tree size; initially 0.
    """

    config: e.FederationConfigured | None = None
    change: int = 0
    waiting: e.FederationChanged | None = None
    agents: PersistentSet[str] = field(default_factory=PersistentSet)
    last_round: int = 0
    last_requested_at_ms: int = -1
    version: int = 0
    model: e.BlobRef | None = None
    strategy_state: e.BlobRef | None = None
    current: OpenRound | None = None
    missed: PersistentMap[str, int] = field(default_factory=PersistentMap)
    summed: frozenset[str] = frozenset()
    draw_size: int = 0
    draw_entropy: bytes = bytes(32)
    drawn_size: int = 0


def find_drawable_agents(state: RoundsState) -> frozenset[str]:
    """Return the agents that may be drawn for a round on the current global model."""
    return frozenset(state.agents) - state.summed


def find_newest(state: RoundsState) -> tuple[e.FederationConfigured | None, int]:
    """Return the configuration of the next round, and the number of its change."""
    if state.waiting is None:
        return state.config, state.change
    return read_configuration(state.waiting), state.waiting.number


def is_drawable(state: RoundsState) -> bool:
    """Return whether the checkpoint for drawing the next cohort is known."""
    return state.drawn_size == state.draw_size


def describe_few(state: RoundsState, config: e.FederationConfigured) -> str:
    """Return why no round can be drawn: how many agents there are, and are needed."""
    num_summed = len(frozenset(state.agents) & state.summed)
    summed = (
        f"; {num_summed} more are in a sum over this base model already"
        if num_summed
        else ""
    )
    return (
        f"{len(find_drawable_agents(state))} active agents{summed}, min_cohort is "
        f"{config.min_cohort}"
    )
