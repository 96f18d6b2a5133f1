"""The deciders: the only list of them.

Replay, and with it ledger nodes and audit, runs all of them over every leaf; each has
its own Faust app, ``streams/apps/<name>.py``. A new one is a row here, a topic for its
facts (`schemas.topics`) and its app. It changes no state root until it knows something.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from protocol import registry, rewards, rounds
from protocol.decider import Decider, Sequenced, step
from schemas.events import Fact

States: TypeAlias = Mapping[str, Any]
"""The state of every decider, by name."""

DECIDERS: Final[dict[str, Decider[Any, Any]]] = {
    "rounds": rounds.DECIDER,
    "registry": registry.DECIDER,
    "rewards": rewards.DECIDER,
}


def compute_initial_states() -> States:
    """Return the states before the first leaf of a log."""
    return {name: decider.initial for name, decider in DECIDERS.items()}


def step_all(states: States, leaf: Sequenced) -> tuple[States, tuple[Fact, ...]]:
    """Consume one leaf with every decider.

    Returns:
        The next states, and the facts that follow, in the order of `DECIDERS`.
    """
    after: dict[str, Any] = {}
    facts: list[Fact] = []
    for name, decider in DECIDERS.items():
        after[name], concluded = step(decider, states[name], leaf)
        facts += concluded
    return after, tuple(facts)
