"""Aggregation modes, one module or folder each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, Final, NamedTuple

from protocol.modes.mode import (
    AGENT,
    AGGREGATOR,
    SEALED,
    Mode,
    Other,
    Phase,
    find_missing,
)
from protocol.modes.mpc.phases import MPC
from protocol.modes.plain import PLAIN
from protocol.round_state import OpenRound
from schemas import events as e

MODES: Final[dict[str, Mode]] = {mode.name: mode for mode in (PLAIN, MPC)}

DEFAULT_SECTIONS: Final[dict[str, Any]] = {PLAIN.name: e.Plain()}
"""For a configuration whose operator chooses no mode."""


class Kinds(NamedTuple):
    """Which mode or phase each kind of event or fact belongs to.

    Attributes:
        answers: The mode whose agents answer with it.
        awaited: The phase that waits for it.
        others: Its author, and what follows from it, if no phase waits for it.
        speakers: Its author, if neither an agent nor a principal.
        begins: The name of the phase that it begins.
        retracts: The phase that then waits again for what it takes back.
        fields: Finds problems in its fields.
    """

    answers: Mapping[type, Mode]
    awaited: Mapping[type, Phase]
    others: Mapping[type, Other]
    speakers: Mapping[type, Callable[[Any], str]]
    begins: Mapping[type, str]
    retracts: Mapping[type, Phase]
    fields: Mapping[type, Callable[[Any], str | None]]


def list_kinds() -> Kinds:
    """Return the kinds of all modes."""
    return _sort(tuple(MODES.values()))


@cache
def _sort(modes: tuple[Mode, ...]) -> Kinds:
    phases = [phase for mode in modes for phase in mode.phases]
    awaited = {phase.awaits: phase for phase in phases if phase.awaits}
    others = {kind: what for mode in modes for kind, what in mode.others.items()}
    return Kinds(
        answers={mode.answer: mode for mode in modes},
        awaited=awaited,
        others=others,
        speakers={kind: phase.get_author for kind, phase in awaited.items()}
        | {kind: get_author for kind, (get_author, _) in others.items()},
        begins={phase.begins: phase.name for phase in phases},
        retracts={p.retracted_by: p for p in phases if p.retracted_by},
        fields={kind: find for mode in modes for kind, find in mode.fields.items()},
    )


def list_modes(config: e.FederationConfigured) -> list[str]:
    """Return the modes that a configuration has a section for."""
    return [mode for mode in MODES if getattr(config, mode) is not None]


def name_mode(config: e.FederationConfigured) -> str:
    """Return a federation's mode in readable form, such as PLAIN."""
    (mode,) = list_modes(config)
    return mode.upper()


def get_mode(config: e.FederationConfigured) -> Mode:
    """Return the mode of a federation."""
    (name,) = list_modes(config)
    return MODES[name]


class Debtor(NamedTuple):
    """Whom a round waits for.

    Attributes:
        kind: `AGENT`, `AGGREGATOR`, or what the phase calls its debtors.
        name: Its name among them; empty for the aggregator.
    """

    kind: str
    name: str = ""

    def __str__(self) -> str:
        """Return it as text."""
        if self.kind == AGENT:
            return self.name
        return f"{self.kind} {self.name}" if self.name else self.kind


def list_debtors(config: e.FederationConfigured, current: OpenRound) -> list[Debtor]:
    """Return whom a round in progress waits for."""
    phase = get_mode(config).find_phase(current)
    if phase is None:
        owing = [Debtor(AGENT, name) for name in sorted(current.owing)]
        return owing or [Debtor(AGGREGATOR)]
    missing = find_missing(phase, config, current)
    if not missing and current.is_result_late:
        # The aggregator's time is over.
        missing = [*phase.debtors(config)]
    return [Debtor(phase.debtor, name) for name in missing] or [Debtor(AGGREGATOR)]


def list_waited_for(config: e.FederationConfigured, current: OpenRound) -> list[str]:
    """Return whom a round in progress waits for, as text."""
    return [str(debtor) for debtor in list_debtors(config, current)]


def list_helpers(config: e.FederationConfigured) -> Mapping[str, bytes]:
    """Return the public keys of services that a mode needs besides, by kind."""
    return get_mode(config).list_helpers(config)


def name_speakers(config: e.FederationConfigured) -> str:
    """Return what a mode calls its other speakers, such as "party"; empty without."""
    phases = get_mode(config).phases
    return next((phase.debtor for phase in phases if phase.debtor), "")


def is_complete(config: e.FederationConfigured, current: OpenRound) -> bool:
    """Return whether everything was said that the claim about a round rests on."""
    phase = get_mode(config).find_phase(current)
    return (
        phase is not None
        and phase.name == SEALED
        and not find_missing(phase, config, current)
    )


class RefusedPart(NamedTuple):
    """A part of a result that does not count."""

    round: int
    author: str
    reason: str


def find_refused_part(fact: e.LedgerEvent) -> RefusedPart | None:
    """Return whose part of a result a fact refuses, and why; None if none."""
    phase = list_kinds().retracts.get(type(fact))
    if phase is None:
        return None
    refused: Any = fact
    return RefusedPart(refused.round, phase.get_author(refused), refused.reason)
