"""A federation's log in which whoever speaks in its rounds may lie.

Agents, parties and the aggregator are the real ones. What they mean to say passes
through `speak`, where it can be changed: that is how tests lie.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Final, TypeAlias

import numpy as np
from numpy.typing import NDArray

from protocol.contributions import Contribution
from protocol.encoding import parse_update
from protocol.log import OpenedLeaf
from protocol.round_view import RoundView, WatchedRounds
from schemas import events as e
from streams.aggregator import Aggregator, follow_step
from tests.builders import LogBuilder, make_key
from tests.sealed import list_contributions

AGGREGATOR: Final = "AGGREGATOR"
Speak: TypeAlias = "Callable[[Any, str, Any], Iterable[e.Event]]"
"""Returns what an author says in a log, for what it means to say."""


def speak_honestly(log: Any, author: str, event: Any) -> Iterable[e.Event]:
    """Say what was meant."""
    return [event]


def speak_in_turn(*speaks: Speak) -> Speak:
    """Return what changes what is said by one after the other."""

    def speak(log: Any, author: str, event: Any) -> Iterable[e.Event]:
        events = [event]
        for change in speaks:
            events = [said for event in events for said in change(log, author, event)]
        return events

    return speak


@dataclass(kw_only=True)
class SpeakingLog(LogBuilder):
    """One federation of any mode, with the real aggregator.

    Args:
        speak: What an agent, a party or the aggregator says for what it means to say.
    """

    speak: Speak = speak_honestly

    def __post_init__(self) -> None:
        """Start with an empty log and an aggregator that has meant nothing."""
        super().__post_init__()
        self.values: dict[tuple[int, str], NDArray[np.int64]] = {}
        self.aggregator = Aggregator(self.blobs)  # type: ignore[arg-type]  # it promises the same
        self.aggregator_state = WatchedRounds()
        self.meant: list[e.Event] = []
        """What the aggregator meant to say."""
        self.said: list[tuple[str, e.Event]] = []
        self.told: Counter[Any] = Counter()
        """How often each lie was told."""

    @property
    def view(self) -> RoundView:
        """The round in progress, as the aggregator sees it."""
        view = self.aggregator_state.view
        assert view is not None, "no round is open"
        return view

    @property
    def is_complete(self) -> bool:
        """Whether a round waits for its result."""
        view = self.aggregator_state.view
        return view is not None and view.is_complete

    @property
    def awaits_blobs(self) -> bool:
        """Whether answers wait for their blobs, until the deadline."""
        view = self.aggregator_state.view
        return view is not None and not view.is_complete and bool(view.open.pending_of)

    def tell(self, author: str, event: e.Event) -> None:
        """Let somebody say something, or what it says instead."""
        for said in self.speak(self, author, event):
            self.said.append((author, said))
            self.say(said, make_key(author))

    def get_said(self, author: str, kind: Any) -> Any:
        """Return the first event of a kind that somebody said."""
        return next(x for who, x in self.said if who == author and isinstance(x, kind))

    def request_round(self, number: int | None = None) -> tuple[str, ...]:
        """Ask for a round, drawn from a final checkpoint if there are ledger nodes."""
        if self.ledger_nodes:
            self.request_finality()
            self.finalise()
        return super().request_round(number)

    def answer(self, agent: str) -> None:
        """Let an agent answer the round, in the way of the federation's mode."""
        self.submit(agent)

    @property
    def config(self) -> e.FederationConfigured:
        """What it was founded with."""
        config = self._rounds.config
        assert config is not None, "not founded"
        return config

    def submit(self, agent: str, *, blob: bytes | None = None) -> None:
        """Let an agent submit its update for the current round, or another blob."""
        update = self.make_update(agent, blob=blob)
        values = parse_update(
            self.blobs[update.update.sha256], num_parameters=self.num_parameters
        )
        self.values[update.round, agent] = values.astype(np.int64)
        self.tell(agent, update)

    def _notice(self, leaf: OpenedLeaf) -> None:
        self.aggregator_state, work = follow_step(self.aggregator_state, leaf)
        for event, _ in self.aggregator.do(work):
            self.meant.append(event)
            self.tell(AGGREGATOR, event)

    def list_contributions(self, sealed: e.RoundSealed) -> tuple[Contribution, ...]:
        """Return what a sealed round is over."""
        return list_contributions(self.leaves, sealed)

    def list_summed(self, sealed: e.RoundSealed) -> tuple[str, ...]:
        """Return whose updates a sealed round is over."""
        return tuple(c.agent_id for c in self.list_contributions(sealed))

    def compute_sum(self, sealed: e.RoundSealed) -> NDArray[np.int64]:
        """Return what a sealed round must come to, from the updates in the clear."""
        return sum(
            (
                c.num_examples * self.values[sealed.round, c.agent_id]
                for c in self.list_contributions(sealed)
            ),
            start=np.zeros(self.num_parameters, dtype=np.int64),
        )
