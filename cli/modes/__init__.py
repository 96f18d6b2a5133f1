"""What each aggregation mode adds to the command line.

Slow imports wait until they are needed, as elsewhere here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import typer

from cli.modes import mpc, plain

if TYPE_CHECKING:
    from cli.stack.services import ServiceOptions
    from schemas.events import LedgerEvent

COMMANDS: Final[Mapping[str, typer.Typer]] = mpc.COMMANDS
"""Groups of commands, by name."""
SERVICES: Final[Mapping[str, Callable[[ServiceOptions], None]]] = mpc.SERVICES
"""Their part of `cli.stack.services.SERVICES`."""

IMPORTS: Final[Sequence[str]] = mpc.IMPORTS
"""Modules that services import, and that take their time."""

read_parameters = mpc.read_parameters
name_changes = mpc.name_changes
start_demo = mpc.start_demo
forge_update = plain.forge_update


def describe(event: LedgerEvent) -> str:
    """Return a mode's event as one line of text."""
    return next(filter(None, (plain.describe(event), mpc.describe(event))))


def make_trials(clip_norm: float) -> dict[str, dict[str, Any]]:
    """Return each mode's parameters to try out what an agent's answer takes, by name.

    Args:
        clip_norm: The largest norm of an update, where a mode has one; above 0.
    """
    return {
        "plain": plain.make_trial(clip_norm),
        "mpc": mpc.make_trial(clip_norm),
    }
