"""What modes of aggregation add to the command line, and the list of it.

As elsewhere here, what takes time to import is imported when it is asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Final, TypeAlias

import typer

from cli.modes import mpc, plain

if TYPE_CHECKING:
    from schemas.events import LedgerEvent

Run: TypeAlias = Callable[[str | None, int | None, str | None], None]

COMMANDS: Final[Mapping[str, typer.Typer]] = mpc.COMMANDS
"""Groups of commands, by name."""
SERVICES: Final[Mapping[str, Run]] = mpc.SERVICES
"""Services: each takes its name, the fewest contributions that it combines, and where
it listens; None for what it is not told."""

read_parameters = mpc.read_parameters
name_changes = mpc.name_changes
start_demo = mpc.start_demo
forge_update = plain.forge_update


def describe(event: LedgerEvent) -> str:
    """Return an event of one of the modes as a line for people."""
    return next(filter(None, (plain.describe(event), mpc.describe(event))))
