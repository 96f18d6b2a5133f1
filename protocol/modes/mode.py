"""A round as a row of phases; a mode of aggregation as one such row.

The first phase of every round is that in which agents answer (`protocol.rounds`). A
mode says what an answer is, and which phases come after it: in each of them the same
authors owe one event of the same kind, and it ends when enough have spoken. The last
one ends in the claim about what the round comes to.

A mode decides nothing on its own: the decider asks it, in its turn.

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
    from protocol.model import RoundResult
    from protocol.round_view import RoundView

SEALED: Final = "sealed"
"""The name of the phase, in every mode, in which nothing changes the set any more."""
AGGREGATOR: Final = "aggregator"
"""Whom a round waits for when nobody else owes it anything."""

Answer: TypeAlias = e.UpdateSubmitted | e.UpdateCommitted
"""What a member of a cohort may say of its update, whatever the mode."""


class MapAll(Protocol):
    """As `map`: so many at a time, results in order, as many of them ahead."""

    @property
    def num_threads(self) -> int:
        """Return how many at a time."""
        ...

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterator[Any]:
        """Return the function's results."""
        ...


class OneByOne:
    """Maps without threads."""

    num_threads = 1

    def __call__(
        self, function: Callable[[Any], Any], items: Iterable[Any], /
    ) -> Iterator[Any]:
        """Return the function's results."""
        return map(function, items)


class Checker(Protocol):
    """Checks what is in the blobs of one round, for whoever wants to know.

    It remembers what it has found, and forgets what it did not find.
    """

    def prepare(self, view: RoundView, agent_ids: Sequence[str]) -> None:
        """Look at answers before it is time to judge them, as far as that goes."""
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
        """Return what is wrong with a part that was refused for a reason."""
        ...

    def compute(self, view: RoundView, base: bytes) -> RoundResult:
        """Return what a complete round, whose parts are good, comes to.

        Args:
            view: The round.
            base: The base model's blob, digest verified.

        Raises:
            RoundError: nothing follows: a blob is not there, or somebody lied, and
                nobody can say who.
        """
        ...


def _nobody(_config: e.FederationConfigured) -> tuple[str, ...]:
    return ()


def _never(_config: e.FederationConfigured) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Phase:
    """A time in a round: these authors each owe one event of this kind.

    Attributes:
        name: Its name, also in `OpenRound.begun`.
        begins: The kind of fact that begins it.
        begin: Makes that fact; None for the sealed phase, whose fact is every mode's.
        awaits: The kind of event that is owed; None if only the aggregator's claims.
        collects: What that is called, in `OpenRound.said`.
        debtors: Who owes one.
        debtor: What they are, for people.
        get_author: Returns who said an event of that kind.
        refuse: Says to whoever says one that no round waits for it.
        is_skipped: Whether a federation does without it.
        find_problem: Says why an event that comes in this phase, from an author who has
            not spoken in it, does not count all the same; empty if it does.
        note: What is kept of an event that counts.
        conclude: The facts that follow from an event that counts, after it is noted.
        is_over: Whether the next phase may begin.
        retracted_by: The kind of fact that makes an author owe the event again.
        limits_result: Whether the aggregator's time begins to run when it is over.
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
        name: Its name, which is that of its section of the configuration, too.
        answer: The kind of event by which agents answer.
        get_blob: Returns the blob that an answer is known by.
        find_answer_problem: Says what is wrong with an answer of this kind.
        find_configuration_problem: Says what is wrong with its section.
        tightens: Values of its section that may be changed, and only become smaller.
        list_speakers: Returns the public keys of whoever speaks in its rounds, besides
            agents and principals, by name.
        fields: Says what is wrong with the fields of its events, by their kind.
        awaits_checks: Whether the first phase lasts until answers are checked.
        is_checkable: Whether the aggregator's checks of answers count now.
        makes_checker: Makes a checker of a round, out of how to fetch and to map.
        needs_leaf: Whether answers are about the leaf that opened the round.
        result_shows_answers: Whether computing the result looks at every answer again,
            so that nobody need look at those that count before.
        is_for_nodes: Whether ledger nodes check what is in the blobs: it takes no right
            to read what agents submit.
        phases: The phases after the first, in their order.
        find_part: Returns who said what is at a leaf, if the aggregator may refuse it.
        refuse_part: Makes the fact that does.
        get_part_blob: Returns the blob of what was said there.
        sums_once: Whether an agent enters at most one sum over a base model.
        find_abandon_problem: Says why a round may not be given up now.
        others: Who said events that no phase awaits, and what follows from them, by
            their kind.
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
        """Return the phase that comes after the one that a round is in."""
        phase = self.find_phase(current)
        first = 0 if phase is None else self.phases.index(phase) + 1
        return next((p for p in self.phases[first:] if not p.is_skipped(config)), None)

    def has_noted(self, current: OpenRound, event: Any, leaf: Sequenced) -> bool:
        """Return whether an event is what a phase keeps of its author."""
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
