"""All deciders: what the list holds, and what evolve may not do."""

from __future__ import annotations

import re
from types import FunctionType
from typing import Any, get_args, get_type_hints

import pytest

from cli.commands.serve import serve
from cli.stack.services import FAUST_SERVICES, SERVICES
from protocol import registry, rewards, rounds
from protocol.deciders import DECIDERS
from schemas import events as e
from tests.builders import LogBuilder, build_log
from tests.mpc_builder import build_mpc_log
from tests.paths import ROOT

MODULES = {"rounds": rounds, "registry": registry, "rewards": rewards}
KINDS: dict[str, Any] = {
    "rounds": e.RoundFact,
    "registry": e.RegistryFact,
    "rewards": e.RewardFact,
}
FOLDING = {
    # What `evolve` is made of. None of these says what follows from a leaf.
    "rounds": {"evolve", "_evolve_input", "_evolve_fact", "_counts", "_answer"}
    | {"_change", "_open", "_end", "_evolve_said", "_evolve_phase", "_kinds", "_mode"},
    "registry": {"evolve"},
    "rewards": {"evolve", "_name_nodes", "_unpaid", "_remember", "_compute_gain"}
    | {"find_accuracy", "_forget", "_sealed"},
}


def test_every_fact_has_a_decider_and_every_decider_an_app() -> None:
    assert set(KINDS) == set(DECIDERS) == set(MODULES)
    concluded = [fact for kind in KINDS.values() for fact in get_args(kind) or (kind,)]
    assert set(concluded) == set(get_args(e.Fact))
    assert len(concluded) == len(set(concluded))
    apps = {path.stem for path in (ROOT / "streams" / "apps").glob("[!_]*.py")}
    assert apps == {*FAUST_SERVICES} == {*DECIDERS, "sequencer", "aggregator"}


def test_the_help_of_moot_serve_names_every_service() -> None:
    hints = get_type_hints(serve, include_extras=True)
    (argument,) = hints["service"].__metadata__
    assert {*SERVICES} <= {*re.findall(r"[a-z-]+", argument.help)}


@pytest.mark.parametrize("build", [build_log, build_mpc_log])
@pytest.mark.parametrize("name", DECIDERS)
def test_the_log_gives_the_state_without_any_rule(
    name: str, build: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first audit: ``fold(facts) == state``, with what is on the log alone."""
    log: LogBuilder = build()
    decider = DECIDERS[name]
    leaves = [item.sequenced for item in log.opened]
    facts: dict[int, list[Any]] = {}
    for leaf in leaves:
        if isinstance(leaf.event, KINDS[name]):
            facts.setdefault(leaf.event.cause_leaf_index, []).append(leaf.event)

    def decide_nothing(*_: object, **__: object) -> None:
        pytest.fail("evolve asks a rule")

    for other, value in list(vars(MODULES[name]).items()):
        is_own = isinstance(value, FunctionType) and value.__module__ == (
            MODULES[name].__name__
        )
        if is_own and other not in FOLDING[name]:
            monkeypatch.setattr(MODULES[name], other, decide_nothing)
    state = decider.initial
    for leaf in leaves:
        follows = facts.get(leaf.leaf_index, [])
        follows.sort(key=lambda fact: fact.output_index)
        state = decider.evolve(state, leaf, follows)
    assert state == log._states[name]
    assert state != decider.initial
