"""The agent's side of each aggregation mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from producers.modes.mpc import MpcSide
from producers.modes.plain import PlainSide
from producers.modes.side import AgentSide, Site
from protocol.modes import get_mode

SIDES: Final[dict[str, Callable[[Site], AgentSide]]] = {
    "plain": PlainSide,
    "mpc": MpcSide,
}


def make_side(site: Site) -> AgentSide:
    """Return an agent's side of its federation's mode."""
    return SIDES[get_mode(site.config).name](site)
