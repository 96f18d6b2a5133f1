"""What an audit watches in the rounds of particular modes.

A watch is part of an audit's state (`consumers.audit.state`): a dataclass.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from consumers.audit.modes import mpc
from consumers.audit.report import Finding, Place, Rechecked, Report
from protocol.modes.mpc import party_memory
from protocol.modes.problem import Fetch
from protocol.round_view import RoundView
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


class Recheck(Protocol):
    """Checks again, with another library, a sample of what a sum rests on."""

    def __call__(
        self, view: RoundView, total: NDArray[np.int64], fetch: Fetch, /
    ) -> Rechecked:
        """Return what was checked, and what is wrong with it.

        Args:
            view: The round, of which everything was found to be right.
            total: Its sum; shape (d,) int64.
            fetch: How to fetch blobs.

        Raises:
            RoundError: a blob is missing.
        """
        ...


SECOND_OPINIONS: Final[Mapping[str, Recheck]] = {"mpc": mpc.recheck}
"""Of modes whose sums rest on more than an addition, by name."""


def make_watches() -> tuple[Watch, ...]:
    """Return the watches of all modes, before the first leaf."""
    return (mpc.OpenedSums(),)
