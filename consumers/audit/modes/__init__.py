"""What an audit watches in the rounds of particular modes.

A watch is part of an audit's state (`consumers.audit.state`): a dataclass.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Final, Protocol

from consumers.audit.modes import mpc
from consumers.audit.report import Finding, Place, Report
from protocol.modes.mpc import party_memory
from schemas import events as e

STATE_MODULES: Final[tuple[ModuleType, ...]] = (mpc, party_memory)
"""Modules whose classes make up the state of a watch."""


class Watch(Protocol):
    """Looks for what no decider judges: what the leaves of many rounds amount to."""

    def follow(
        self, event: e.LedgerEvent, config: e.FederationConfigured | None, place: Place
    ) -> Finding | None:
        """Follow an admissible leaf, given the configuration after it; returns what has
        just become wrong.
        """
        ...

    def list_notes(self, report: Report) -> Iterator[str]:
        """Yield what had to be believed, as text."""
        ...


def make_watches() -> tuple[Watch, ...]:
    """Return the watches of all modes, before the first leaf."""
    return (mpc.OpenedSums(),)
