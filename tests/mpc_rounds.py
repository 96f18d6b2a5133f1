"""MPC rounds assembled from parts, as no log would lead to them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from protocol.decider import Sequenced
from protocol.modes.mpc.phases import list_party_names
from protocol.modes.mpc.round import Committed, MpcRound, Partial, see
from protocol.persistent import PersistentMap, PersistentSet
from protocol.round_state import OpenRound, RoundsState
from protocol.round_view import Answered, RoundView
from protocol.round_view import follow as follow_view
from schemas import codec
from schemas import events as e
from tests.simulation.federation import GENESIS, linked, partial

PLACES = {"links": 10_000, "far": 20_000, "partials": 30_000}
"""Leaf indexes of what parties say, unless a part has its own."""


def make_mpc_round(
    config: e.FederationConfigured, started: e.RoundStarted, **parts: Any
) -> MpcRound:
    """Return a round that has begun; see `change_mpc_round` for its parts."""
    opened = OpenRound(started=started, cohort=frozenset(), owing=PersistentSet())
    view = RoundView(config=config, genesis=GENESIS, open=opened)
    return change_mpc_round(MpcRound(view), **parts)


def change_mpc_round(secret: MpcRound, **parts: Any) -> MpcRound:
    """Return a round with other parts, by the names of `MpcRound`'s properties.

    For `has_all_comparisons` and `has_all_partials` every party has said something.
    """
    view = secret.view
    opened, said = view.open, view.said
    names = [party.name for party in secret.mpc.parties]
    for name, value in parts.items():
        if name in {"config", "genesis", "started_leaf_hash"}:
            view = replace(view, **{name: value})
        elif name == "commitments":
            answers = {
                who: Answered(leaf_index=c.leaf_index, event=c.event)
                for who, c in value.items()
            }
            view = replace(view, answers=PersistentMap(answers))
        elif name == "waiting":
            opened = replace(opened, pending_of=value)
        elif name in {"closed", "comparison", "sealed"}:
            begun = {**opened.begun, name: value}
            if value is None:
                begun.pop(name)
            opened = replace(opened, begun=begun)
        elif name == "contributions":
            ours = {item.agent_id: item for item in value}
            opened = replace(opened, contributions=PersistentMap(ours))
        elif name in {"links", "partials"}:
            opened, said = _say(opened, said, name, value)
        elif name == "has_all_comparisons":
            opened = replace(
                opened, said={**opened.said, "far": dict.fromkeys(names, b"")}
            )
        else:
            raise TypeError(name)
    return MpcRound(replace(view, open=opened, said=said))


def follow(
    secret: MpcRound | None, rounds: RoundsState, leaf: Sequenced
) -> MpcRound | None:
    """Move by one leaf; see `protocol.round_view.follow`."""
    view = None if secret is None else secret.view
    return see(follow_view(view, rounds, leaf))


def has_all_links(state: RoundsState) -> bool:
    """Return whether every party has linked its shares of the round in progress."""
    config, current = state.config, state.current
    return (
        config is not None
        and current is not None
        and current.said.get("links", {}).keys() == {*list_party_names(config)}
    )


def owed_by_aggregator(secret: MpcRound) -> str | None:
    """Return what the round waits for from the aggregator; None if nothing."""
    view = secret.view
    if secret.sealed is not None:
        return "RESULT" if view.is_complete else None
    return "CHECKS" if view.is_checkable and secret.waiting else None


def _say(
    opened: OpenRound,
    said: PersistentMap[int, bytes],
    name: str,
    value: Mapping[str, Any],
) -> tuple[OpenRound, PersistentMap[int, bytes]]:
    places: dict[str, int] = {}
    for number, (party, what) in enumerate(sorted(value.items())):
        at = PLACES[name] + number
        event: e.Event
        if isinstance(what, Partial):
            at = what.leaf_index
            event = replace(partial(party, 1, 1), partial=what.blob)
        else:
            event = replace(linked(party), links=what)
        places[party] = at
        said = said.insert(at, codec.encode(event))
    return replace(opened, said={**opened.said, name: places}), said


__all__ = [
    "Committed", "change_mpc_round", "follow", "has_all_links", "make_mpc_round",
    "owed_by_aggregator",
]  # fmt: skip
