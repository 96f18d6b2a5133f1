"""Every strategy in whole rounds of every mode, before all judges."""

from __future__ import annotations

import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from consumers.audit.report import FindingCode
from consumers.node import rechecks
from protocol.aggregation import sum_from_blob
from protocol.changes import make_change
from protocol.exchanged_state import model_from_blob
from protocol.strategies import STRATEGIES, move, read_parameters
from protocol.strategies.state import start_moments, state_to_blob
from protocol.strategies.strategy import MAX_NUM_STEPS
from protocol.validation import find_problem
from schemas import events as e
from schemas.reasons import Reason
from tests.auditing import audit, found, only
from tests.builders import make_key
from tests.lies.lie import edit_state, say
from tests.mpc_builder import MpcLogBuilder
from tests.rechecking import counts, demand_attested, follow
from tests.speaking import AGGREGATOR, SpeakingLog
from tests.unit.consumers.audit import test_bundle as bundles

BUILDERS = [SpeakingLog, MpcLogBuilder]
AGENTS = ("ada", "bea", "cleo")
ADAPTIVE = {"strategy": "FEDADAM"}


def choose(**micros: int) -> tuple[e.StrategyParameter, ...]:
    return tuple(
        e.StrategyParameter(name=name, value_micros=value)
        for name, value in sorted(micros.items())
    )


def start(builder: Any, *, count: int = 3, **options: Any) -> Any:
    """Found a federation whose node is a quorum by itself; agents for some rounds."""
    more = {"num_parameters": 6, "cohort_size": count, "ledger_nodes": ("node0",)}
    log = builder(**{**more, **options})
    log.found()
    log.admit(*AGENTS)
    return log


def run_round(log: Any) -> None:
    for agent in log.request_round():
        log.answer(agent)
    log.settle()


def list_all(log: Any, kind: Any) -> list[Any]:
    return [event for event in log.leaves if isinstance(event, kind)]


def end(log: Any) -> Any:
    log.request_finality()
    log.request_finality()
    return log


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rechecks, "RETRY_S", 0.01)
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("name", STRATEGIES)
def test_what_a_strategy_carries_goes_from_round_to_round(
    name: str, builder: Any, tmp_path: Path
) -> None:
    strategy = STRATEGIES[name]
    chosen = choose(learning_rate=123_456)
    log = start(builder, strategy=name, strategy_parameters=chosen)
    for _ in range(3):
        run_round(log)
    end(log)
    sealed, published = (
        list_all(log, e.RoundSealed),
        list_all(log, e.AggregatePublished),
    )
    assert len(sealed) == len(published) == 3
    assert [s.base_state for s in sealed] == [None, *(p.state for p in published)][:3]
    assert {p.state is None for p in published} == {not strategy.moments}

    parameters = read_parameters(strategy, chosen)
    model = model_from_blob(log.blobs[sealed[0].base_model.sha256]).to_vector()
    moments = start_moments(strategy, parameters, len(model))
    for seal, result in zip(sealed, published, strict=True):
        total = sum_from_blob(log.blobs[result.sum.sha256], num_parameters=6)
        np.testing.assert_array_equal(total, log.compute_sum(seal))
        model, moments = move(
            strategy,
            model,
            total,
            num_examples=seal.num_examples,
            fractional_bits=seal.fractional_bits,
            parameters=parameters,
            moments=moments,
            num_weighted_steps=seal.num_weighted_steps,
        )
        after = model_from_blob(log.blobs[result.model.sha256]).to_vector()
        assert after.tobytes() == model.tobytes()
        if result.state is not None:
            assert log.blobs[result.state.sha256] == state_to_blob(strategy, moments)

    report = audit(log)
    assert report.is_sound, report.findings
    assert report.num_rounds_recomputed == 3
    bus = follow(tmp_path, log, names=("node0",))
    demand_attested(bus, log, unchecked=0)


@pytest.mark.parametrize("builder", BUILDERS)
def test_fednova_weighs_steps_and_fedavg_takes_none(builder: Any) -> None:
    log = start(builder, strategy="FEDNOVA")
    run_round(log)
    answers = list_all(log, e.UpdateSubmitted | e.UpdateCommitted)
    assert len({answer.num_steps for answer in answers}) == 3
    sealed = only(log, e.RoundSealed)
    assert sealed.num_weighted_steps == sum(
        a.num_examples * a.num_steps for a in answers
    )
    plain = start(builder)
    run_round(plain)
    assert only(plain, e.RoundSealed).num_weighted_steps is None
    assert only(plain, e.AggregatePublished).state is None


def refuse_steps(num_steps: int | None, **options: Any) -> list[Any]:
    """Return what becomes of an answer with so many steps."""

    def change(_log: Any, said: Any) -> Any:
        return replace(said, num_steps=num_steps)

    log = start(
        SpeakingLog,
        speak=say("ada", e.UpdateSubmitted, change),
        min_cohort=2,
        **options,
    )
    run_round(log)
    return [x for x in list_all(log, e.ContributionRejected) if x.agent_id == "ada"]


def test_an_answer_says_its_steps_exactly_where_they_are_counted() -> None:
    (rejected,) = refuse_steps(None, strategy="FEDNOVA")
    assert (rejected.reason, rejected.detail) == (
        Reason.WRONG_STRATEGY,
        "with the strategy FEDNOVA an answer comes with num_steps",
    )
    (rejected,) = refuse_steps(5)
    assert rejected.reason == Reason.WRONG_STRATEGY
    assert "without num_steps" in rejected.detail
    assert refuse_steps(5, strategy="FEDNOVA") == []


def test_nobody_says_more_steps_than_the_operator_allows() -> None:
    options: dict[str, Any] = {
        "strategy": "FEDNOVA",
        "strategy_parameters": choose(max_steps=300_000_000),
    }
    assert refuse_steps(300, **options) == []
    (rejected,) = refuse_steps(301, **options)
    assert rejected.reason == Reason.WRONG_STRATEGY
    assert rejected.detail == "max_steps is 300"
    # By default a thousand.
    assert refuse_steps(1_000, strategy="FEDNOVA") == []
    assert refuse_steps(1_001, strategy="FEDNOVA")


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize(
    ("num_steps", "is_good"),
    [(0, False), (-5, False), (1, True), (MAX_NUM_STEPS, True), (2**20 + 1, False)],
)
def test_steps_are_bounded(builder: Any, num_steps: int, is_good: bool) -> None:
    log = start(builder, strategy="FEDNOVA", ledger_nodes=())
    run_round(log)
    answer = list_all(log, e.UpdateSubmitted | e.UpdateCommitted)[0]
    problem = find_problem(replace(answer, num_steps=num_steps))
    assert (problem is None) == is_good
    assert is_good or "num_steps" in str(problem)


def test_a_bundle_has_what_a_strategy_carries(tmp_path: Path) -> None:
    log = start(SpeakingLog, **ADAPTIVE)
    for _ in range(2):
        run_round(log)
    end(log)
    path = tmp_path / "clinics.tar"
    assert bundles.write(path, log, []).is_sound
    read = bundles.read(path)
    assert read.is_sound
    assert read.num_rounds_recomputed == 2


# Blobs that are lost, or that nobody could have made


@pytest.mark.parametrize("builder", BUILDERS)
def test_a_state_lost_in_the_store_is_found_once(builder: Any) -> None:
    log = start(builder, **ADAPTIVE)
    for _ in range(2):
        run_round(log)
    end(log)
    del log.blobs[only(log, e.AggregatePublished).state.sha256]
    report = audit(log)
    assert found(report) == [
        (FindingCode.MISSING_BLOB, only(log, e.AggregatePublished).cause_leaf_index)
    ]
    # It follows from the round that made it, so the next one is computed as well.
    assert report.num_rounds_recomputed == 2


def test_a_node_that_cannot_compute_a_round_takes_its_state_from_the_store(
    tmp_path: Path,
) -> None:
    log = start(MpcLogBuilder, **ADAPTIVE)
    for _ in range(2):
        run_round(log)
    end(log)
    whole = counts(follow(tmp_path / "whole", log, names=("node0",))["node0"])
    del log.blobs[only(log, e.PartialAggregateSubmitted).partial.sha256]
    part = follow(tmp_path / "part", log, names=("node0",))
    demand_attested(part, log, unchecked=1)
    # All of the second round, its sum, model and state among it, none of the first's.
    assert counts(part["node0"])[0] == whole[0] - 3
    del log.blobs[only(log, e.AggregatePublished).state.sha256]
    demand_attested(follow(tmp_path / "none", log, names=("node0",)), log, unchecked=2)


NONSENSE = {
    "another": edit_state,
    "no file": lambda log, claim: replace(claim, state=log.blobs.store(b"trust me")),
    "not finite": lambda log, claim: replace(
        claim,
        state=log.blobs.store(
            state_to_blob(STRATEGIES["FEDADAM"], (np.full(6, np.nan), np.ones(6)))
        ),
    ),
}


@pytest.mark.parametrize("builder", BUILDERS)
@pytest.mark.parametrize("what", NONSENSE)
def test_a_state_that_is_none_ends_nothing_but_its_round(
    what: str, builder: Any, caplog: pytest.LogCaptureFixture
) -> None:
    lie = say(AGGREGATOR, e.AggregateSubmitted, NONSENSE[what])
    log = start(builder, speak=lie, **ADAPTIVE)
    for _ in range(2):
        with caplog.at_level(logging.ERROR):
            run_round(log)
    end(log)
    first = only(log, e.AggregatePublished)
    report = audit(log)
    assert (FindingCode.WRONG_STATE, first.cause_leaf_index) in found(report)
    if what == "another":
        # It is a state: the next round goes on from it, as everybody can see.
        assert len(list_all(log, e.AggregatePublished)) == 2
        assert len(report.findings) == 1
        return
    assert list_all(log, e.AggregatePublished) == [first]
    assert "has no sum" in caplog.text
    assert "Traceback" not in caplog.text
    assert len(report.findings) == 1


# Changes


@pytest.mark.parametrize("builder", BUILDERS)
def test_parameters_change_from_the_next_round_on(builder: Any) -> None:
    logs = [start(builder, **ADAPTIVE) for _ in range(2)]
    for log, micros in zip(logs, (1_000, 20_000), strict=True):
        run_round(log)
        config = replace(log.config, strategy_parameters=choose(learning_rate=micros))
        log.say(make_change(config, 1), make_key("OPERATOR"))
        log.settle()
        run_round(log)
        end(log)
        assert audit(log).is_sound
    (one, small), (two, large) = (list_all(log, e.AggregatePublished) for log in logs)
    assert one.model == two.model
    assert small.model != large.model


@pytest.mark.parametrize(
    ("micros", "is_refused"),
    [(299_000_000, False), (300_000_001, True), (None, True)],
)
def test_the_bound_on_steps_only_shrinks(
    micros: int | None,
    is_refused: bool,
) -> None:
    log = start(
        SpeakingLog,
        strategy="FEDNOVA",
        strategy_parameters=choose(max_steps=300_000_000),
    )
    chosen = () if micros is None else choose(max_steps=micros)
    config = replace(log.config, strategy_parameters=chosen)
    log.say(make_change(config, 1), make_key("OPERATOR"))
    log.settle()
    assert [x.reason for x in log.refused] == is_refused * [Reason.LOOSENS_PROTECTION]
    for refused in log.refused:
        assert "smaller than max_steps 300000000, not" in refused.detail


def test_the_strategy_itself_never_changes() -> None:
    log = start(SpeakingLog, **ADAPTIVE)
    config = replace(log.config, strategy="FEDYOGI")
    log.say(make_change(config, 1), make_key("OPERATOR"))
    log.settle()
    assert [refused.reason for refused in log.refused] == [Reason.NOT_CHANGEABLE]
