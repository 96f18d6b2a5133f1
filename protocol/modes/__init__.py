"""Aggregation modes: one module or folder for each, and the list of them."""

from __future__ import annotations

from typing import Final

from protocol.configuration import list_modes
from protocol.modes.mode import AGGREGATOR, SEALED, Mode, find_missing
from protocol.modes.mpc.phases import MPC
from protocol.modes.plain import PLAIN
from protocol.round_state import OpenRound
from schemas import events as e

MODES: Final[dict[str, Mode]] = {mode.name: mode for mode in (PLAIN, MPC)}


def get_mode(config: e.FederationConfigured) -> Mode:
    """Return the mode of a federation."""
    (name,) = list_modes(config)
    return MODES[name]


def list_waited_for(config: e.FederationConfigured, current: OpenRound) -> list[str]:
    """Return whom a round in progress waits for, for people."""
    phase = get_mode(config).find_phase(current)
    if phase is None:
        return sorted(current.owing) or [AGGREGATOR]
    missing = find_missing(phase, config, current)
    if not missing and current.is_result_late:
        # The aggregator has had its time.
        missing = [*phase.debtors(config)]
    return [f"{phase.debtor} {name}" for name in missing] or [AGGREGATOR]


def is_complete(config: e.FederationConfigured, current: OpenRound) -> bool:
    """Return whether all has been said that the claim about a round rests on."""
    phase = get_mode(config).find_phase(current)
    return (
        phase is not None
        and phase.name == SEALED
        and not find_missing(phase, config, current)
    )


def find_refused_part(fact: e.Fact) -> tuple[str, str] | None:
    """Return whose part of a result a fact refuses, and why; None if it does not."""
    for mode in MODES.values():
        for phase in mode.phases:
            if phase.retracted_by is not None and isinstance(fact, phase.retracted_by):
                return phase.get_author(fact), getattr(fact, "reason", "")
    return None
