"""The rules of the model registry."""

from __future__ import annotations

import pytest

from protocol.registry import DECIDER, RegistryState
from schemas import events as e
from tests.simulation.federation import (
    BASE,
    CONFIG,
    FEDERATION,
    NOW_MS,
    Run,
    evaluation,
    exported,
    make_blob,
    start,
)


def published(number: int) -> e.AggregatePublished:
    return e.AggregatePublished(
        federation_id=FEDERATION,
        round=number,
        cause=bytes(32),
        cause_leaf_index=0,
        output_index=0,
        base_model_sha256=BASE.sha256,
        num_contributions=2,
        num_examples=20,
        sum=make_blob(f"sum {number}"),
        model=make_blob(f"model {number}"),
        task=CONFIG.task,
    )


def founded() -> Run[RegistryState, e.RegistryFact]:
    return start(DECIDER).given(CONFIG)


def test_an_exported_model_becomes_a_version() -> None:
    run = founded().given(published(3))
    export = exported(3, make_blob("model 3"))
    (fact,) = run.when(export, at_ms=NOW_MS + 7)
    assert fact == e.ModelVersionRegistered(
        federation_id=FEDERATION,
        round=3,
        cause=run.leaves[-1].leaf_hash,
        cause_leaf_index=run.leaves[-1].leaf_index,
        output_index=0,
        version=1,
        parent_version=0,
        model=make_blob("model 3"),
        onnx=export.onnx,
        no_onnx="",
        evaluation=export.evaluation,
        no_evaluation="",
        registered_at_ms=NOW_MS + 7,
    )


def test_versions_count_published_models_not_exports() -> None:
    run = founded().given(published(1), published(4), published(5))
    (last,) = run.when(exported(5, make_blob("model 5")))
    (first,) = run.when(exported(1, make_blob("model 1")))
    assert (last.version, last.parent_version) == (3, 2)
    assert (first.version, first.parent_version) == (1, 0)


@pytest.mark.parametrize(
    "export",
    [
        exported(2, make_blob("model 1")),
        exported(1, make_blob("model 2")),
        exported(1, BASE),
    ],
    ids=["round", "model", "base"],
)
def test_an_export_of_anything_else_is_void(export: e.ModelExported) -> None:
    run = founded().given(published(1))
    assert run.when(export) == []
    assert len(run.when(exported(1, make_blob("model 1")))) == 1


def test_a_version_is_registered_once() -> None:
    run = founded().given(published(1), exported(1, make_blob("model 1")))
    assert run.when(exported(1, make_blob("model 1"), evaluation=evaluation(1))) == []
    assert run.state.waiting == {}


def test_an_export_cannot_come_before_its_model() -> None:
    run = founded()
    assert run.when(exported(1, make_blob("model 1"))) == []
    run.given(published(1))
    assert list(run.state.waiting) == [1]
