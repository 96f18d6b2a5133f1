"""A round as a sequence of phases; an aggregation mode as one such sequence.

In the first phase of every round agents answer (`protocol.rounds`). A mode defines
answers and the phases after them: in each, the same authors owe one event of the same
kind, and it ends when enough have spoken. The last one ends in the claim about the
round's result.

A mode decides nothing on its own: the decider asks it, when its turn comes.

Source: DESIGN.md section 11.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias

from protocol.decider import Sequenced
from protocol.modes.problem import Fetch, Problem, RoundError
from protocol.round_state import Noted, OpenRound, RoundsState
from schemas import events as e

if TYPE_CHECKING:
    from protocol.model import Base, RoundResult
    from protocol.round_view import RoundView

SEALED: Final = "sealed"
"""The name, in every mode, of the phase in which the set no longer changes."""
AGENT: Final = "agent"
AGGREGATOR: Final = "aggregator"
"""Whom a round waits for when nobody else owes it anything."""

Answer: TypeAlias = e.UpdateSubmitted | e.UpdateCommitted
"""How a member of a cohort may answer, in any mode."""


class MapAll(Protocol):
    """Like `map`, in threads: results in order, at most `num_threads` ahead."""

    @property
    def num_threads(self) -> int:
        """How many calls run at a time."""
        ...

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterator[Any]:
        """Return the function's results."""
        ...


class OneByOne:
    """Like `map`, without threads."""

    num_threads = 1

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterator[Any]:
        """Return the function's results."""
        return map(function, items)


class Checker(Protocol):
    """Checks what is in the blobs of one round.

    It remembers what it found, and forgets what was missing.
    """

    def prepare(self, view: RoundView, agent_ids: Sequence[str]) -> None:
        """Check answers before they must be judged, as far as possible."""
        ...

    def check(
        self, view: RoundView, agent_ids: Sequence[str]
    ) -> Mapping[str, RoundError | None]:
        """Return why answers do not count; None for those that do."""
        ...

    def check_parts(self, view: RoundView, /) -> Mapping[str, RoundError | None]:
        """Return what is wrong with the parts of a complete round, by author."""
        ...

    def check_refused(
        self, view: RoundView, author: str, reason: str, /
    ) -> RoundError | None:
        """Return what is wrong with a part refused for a reason."""
        ...

    def compute(self, view: RoundView, base: Base) -> RoundResult:
        """Return the result of a complete round whose parts are good.

        Args:
            view: The round.
            base: What the sum is applied to.

        Raises:
            RoundError: there is no result: a blob is missing, or somebody lied, and
                nobody can say who.
        """
        ...


def _nobody(_config: e.FederationConfigured) -> tuple[str, ...]:
    return ()


def _never(_config: e.FederationConfigured) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """A stretch of a round in which these authors each owe one event of this kind.

    Attributes:
        name: Its name, also in `OpenRound.begun`.
        begins: The kind of fact that begins it.
        begin: Makes that fact; None for the sealed phase, whose fact all modes share.
        awaits: The kind of event owed; None for the aggregator's claims only.
        collects: What these events are called in `OpenRound.said`.
        debtors: Returns who owes one.
        debtor: What the debtors are, for messages.
        get_author: Returns the author of such an event.
        refuse: Returns why no round waits for such an event.
        is_skipped: Returns whether a federation skips the phase.
        find_problem: Returns why an author's first event in this phase still does not
            count; empty if it does.
        note: Returns what is kept of an event that counts.
        conclude: Returns the facts that follow from a counted event, after it is noted.
        is_over: Returns whether the next phase may begin.
        retracted_by: The kind of fact that makes an author owe the event again.
        limits_result: Whether the aggregator's time begins when it is over.
    """

    name: str
    begins: type[e.RoundFact]
    begin: Callable[[RoundsState, Sequenced], e.RoundFact] | None = None
    awaits: type[e.LedgerEvent] | None = None
    collects: str = ""
    debtors: Callable[[e.FederationConfigured], tuple[str, ...]] = _nobody
    debtor: str = ""
    get_author: Callable[[Any], str] = lambda _: ""
    refuse: Callable[[Any], str] = lambda _: "the round does not wait for this"
    is_skipped: Callable[[e.FederationConfigured], bool] = _never
    find_problem: Callable[[RoundsState, Any, Sequenced], str] = lambda *_: ""
    note: Callable[[Any, Sequenced], Noted] = lambda _, leaf: leaf.leaf_index
    conclude: Callable[[RoundsState, Any, Sequenced], list[e.RoundFact]] = lambda *_: []
    is_over: Callable[[RoundsState], bool] = lambda _: False
    retracted_by: type[e.RoundFact] | None = None
    limits_result: bool = False


Other: TypeAlias = tuple[
    Callable[[Any], str],
    Callable[[RoundsState, Any, Sequenced], list[e.RoundFact]],
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mode:
    """One way to combine updates.

    Attributes:
        name: Its name, also of its section of the configuration.
        answer: The kind of event with which agents answer.
        get_blob: Returns the blob that identifies an answer.
        find_answer_problem: Returns what is wrong with an answer of this kind.
        find_configuration_problem: Returns what is wrong with its section.
        tightens: Values of its section that may change, and only shrink.
        list_speakers: Returns the public keys of its other speakers, besides agents and
            principals, by name.
        list_helpers: Returns the public keys of services that its speakers need and
            that say nothing in its rounds, by kind.
        fields: Find problems in the fields of its events, by kind.
        awaits_checks: Whether the first phase lasts until answers are checked.
        is_checkable: Returns whether the aggregator's checks of answers count now.
        makes_checker: Makes a round's checker from functions to fetch and to map.
        needs_leaf: Whether answers are about the leaf that opened the round.
        result_shows_answers: Whether computing the result checks every answer again, so
            that counted ones need no earlier check.
        is_for_nodes: Whether ledger nodes check what is in the blobs: that takes no
            right to read what agents submit.
        phases: The phases after the first, in order.
        find_part: Returns whose part is at a leaf, if the aggregator may refuse it.
        refuse_part: Makes the fact that refuses it.
        get_part_blob: Returns that part's blob.
        sums_once: Whether an agent enters at most one sum over a base model.
        find_abandon_problem: Returns why a round may not be abandoned now.
        others: Authors of events that no phase awaits, and what follows from them, by
            kind.
    """

    name: str
    answer: type[Answer]
    get_blob: Callable[[Any], e.BlobRef]
    find_answer_problem: Callable[[e.FederationConfigured, Any], Problem | None] = (
        lambda *_: None
    )
    find_configuration_problem: Callable[[e.FederationConfigured], Problem | None] = (
        lambda _: None
    )
    tightens: tuple[str, ...] = ()
    list_speakers: Callable[[e.FederationConfigured], Mapping[str, bytes]] = lambda _: (
        dict[str, bytes]()
    )
    list_helpers: Callable[[e.FederationConfigured], Mapping[str, bytes]] = lambda _: (
        dict[str, bytes]()
    )
    fields: Mapping[type, Callable[[Any], str | None]] = field(default_factory=dict)
    awaits_checks: bool
    is_checkable: Callable[[e.FederationConfigured, OpenRound], bool] = lambda *_: True
    makes_checker: Callable[[RoundView, Fetch, MapAll], Checker]
    needs_leaf: bool = False
    result_shows_answers: bool = False
    is_for_nodes: bool = False
    phases: tuple[Phase, ...]
    find_part: Callable[[OpenRound, int], str | None] = lambda *_: None
    refuse_part: (
        Callable[[str, e.UpdateCheck, e.UpdatesChecked, Sequenced], e.RoundFact] | None
    ) = None
    get_part_blob: Callable[[Any], e.BlobRef] | None = None
    sums_once: bool = False
    find_abandon_problem: Callable[[RoundsState], Problem | None] = lambda _: None
    others: Mapping[type[e.LedgerEvent], Other] = field(default_factory=dict)

    def find_phase(self, current: OpenRound) -> Phase | None:
        """Return the phase that a round is in; None in the first."""
        for phase in reversed(self.phases):
            if phase.name in current.begun:
                return phase
        return None

    def find_next(
        self, config: e.FederationConfigured, current: OpenRound
    ) -> Phase | None:
        """Return the phase after the one that a round is in."""
        phase = self.find_phase(current)
        first = 0 if phase is None else self.phases.index(phase) + 1
        return next((p for p in self.phases[first:] if not p.is_skipped(config)), None)

    def has_noted(self, current: OpenRound, event: Any, leaf: Sequenced) -> bool:
        """Return whether an event is the one that a phase keeps of its author."""
        kinds = ((phase.awaits, phase) for phase in self.phases)
        phase = next((p for kind, p in kinds if kind and isinstance(event, kind)), None)
        if phase is None:
            return False
        said = current.said.get(phase.collects, {})
        return said.get(phase.get_author(event)) == phase.note(event, leaf)


def find_missing(
    phase: Phase, config: e.FederationConfigured, current: OpenRound
) -> list[str]:
    """Return who still owes an event of a phase, in the order of its debtors."""
    said = current.said.get(phase.collects, {})
    return [author for author in phase.debtors(config) if author not in said]
