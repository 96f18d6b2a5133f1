"""Aggregation `plain`: the result of a sealed round."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from protocol.averaged_apart import encode_values
from protocol.encoding import UpdateRefusedError, update_to_blob
from protocol.exchanged_state import (
    Model,
    RefusedStateError,
    StateClass,
    model_from_blob,
    model_to_blob,
)
from protocol.model import (
    compute_max_model_size,
    compute_max_sum_size,
    compute_max_update_size,
    compute_result,
)
from protocol.tensors import MalformedBlobError, tensors_from_blob, tensors_to_blob
from schemas import events as e
from tests.simulation.federation import FEDERATION, make_blob

BASE = {
    "bias": np.array([1.0], dtype="f4"),
    "weight": np.array([[0.5, -0.5], [0.0, 2.0]], dtype="f4"),
}
BASE_BLOB = tensors_to_blob(BASE)
UPDATES = {
    "ana": (np.array([2, 4, 0, -4, 8], dtype="i4"), 3),
    "bea": (np.array([-2, 0, 4, 4, 0], dtype="i4"), 1),
}
BLOBS = {name: update_to_blob(vector) for name, (vector, _) in UPDATES.items()}


def sealed(*names: str, num_examples: int | None = None) -> e.RoundSealed:
    return e.RoundSealed(
        federation_id=FEDERATION,
        round=1,
        cause=bytes(32),
        cause_leaf_index=0,
        output_index=0,
        num_contributions=len(names),
        contributions_sha256=bytes(32),
        num_examples=num_examples or sum(UPDATES[name][1] for name in names),
        base_model=make_blob(BASE_BLOB),
        fractional_bits=3,
        num_parameters=5,
    )


def test_the_sum_is_weighted_and_the_mean_is_added_to_the_base_model() -> None:
    result = compute_result(
        "FEDAVG",
        sealed("ana", "bea"),
        [3, 1],
        BASE_BLOB,
        iter([BLOBS["ana"], BLOBS["bea"]]),
    )
    total = tensors_from_blob(result.sum_blob)["sum"]
    assert total.tolist() == [4, 12, 4, -8, 24]
    # The mean of 4 examples, in steps of 1/8.
    model = tensors_from_blob(result.model_blob)
    assert model["bias"].tolist() == [1.125]
    assert model["weight"].tolist() == [[0.875, -0.375], [-0.25, 2.75]]
    assert {t.dtype for t in model.values()} == {np.dtype("f4")}


def test_the_order_of_the_contributions_changes_nothing() -> None:
    one = compute_result(
        "FEDAVG", sealed("ana", "bea"), [3, 1], BASE_BLOB, [BLOBS["ana"], BLOBS["bea"]]
    )
    two = compute_result(
        "FEDAVG", sealed("bea", "ana"), [1, 3], BASE_BLOB, [BLOBS["bea"], BLOBS["ana"]]
    )
    assert one == two


def test_results_fit_the_sizes_that_readers_allow() -> None:
    result = compute_result("FEDAVG", sealed("ana"), [3], BASE_BLOB, [BLOBS["ana"]])
    assert len(BLOBS["ana"]) <= compute_max_update_size(5)
    assert len(result.sum_blob) <= compute_max_sum_size(5)
    assert len(result.model_blob) <= compute_max_model_size(make_blob(BASE_BLOB))


@pytest.mark.parametrize("blobs", [[], [BLOBS["ana"], BLOBS["bea"]]])
def test_there_is_one_blob_for_each_contribution(blobs: list[bytes]) -> None:
    with pytest.raises(ValueError, match="zip"):
        compute_result("FEDAVG", sealed("ana"), [3], BASE_BLOB, blobs)


def test_a_blob_that_is_no_update_is_refused() -> None:
    wrong = update_to_blob(np.zeros(4, dtype="i4"))
    with pytest.raises(UpdateRefusedError):
        compute_result("FEDAVG", sealed("ana"), [3], BASE_BLOB, [wrong])


def test_a_bad_base_model_is_refused() -> None:
    with pytest.raises(MalformedBlobError):
        compute_result("FEDAVG", sealed("ana"), [3], b"not safetensors", [BLOBS["ana"]])


def test_the_next_model_keeps_what_is_not_trained() -> None:
    others = {
        "counter": np.array(7, dtype="i8"),
        "mask": np.array([0, -np.inf], dtype="f8"),
        "table": np.arange(2**19, dtype="f4"),  # more than all trained entries
    }
    classes = {
        "counter": StateClass.KEPT,
        "mask": StateClass.FIXED,
        "table": StateClass.FIXED,
    }
    base = model_to_blob(Model(BASE | others, classes))
    result = compute_result("FEDAVG", sealed("ana"), [3], base, [BLOBS["ana"]])
    plain = compute_result("FEDAVG", sealed("ana"), [3], BASE_BLOB, [BLOBS["ana"]])
    assert result.sum_blob == plain.sum_blob
    moved = model_from_blob(result.model_blob)
    assert moved.classes == classes
    assert {n: a.tobytes() for n, a in moved.tensors.items()} == {
        n: a.tobytes()
        for n, a in (tensors_from_blob(plain.model_blob) | others).items()
    }
    assert len(result.model_blob) <= compute_max_model_size(make_blob(base))


def test_the_next_model_averages_apart_what_is_measured() -> None:
    """A variance of 570,000 beside weights: neither costs the other a bit."""
    measured = {
        "mean": np.array([1.0, -4.0], dtype="f4"),
        "var": np.array([1.0], dtype="f8"),
    }
    model = Model(
        BASE | measured,
        {"mean": StateClass.AVERAGED_APART, "var": StateClass.AVERAGED_UNSIGNED},
    )
    base = model_to_blob(model)
    after = {"ana": np.array([0.5, -4, 8e5]), "bea": np.array([1.5, -4, 3.0])}
    blobs = []
    for name, (vector, _) in UPDATES.items():
        said = encode_values(model.to_averaged(), after[name]).integers
        blobs.append(update_to_blob(np.concatenate((vector, said.astype("i4")))))
    both = replace(sealed("ana", "bea"), num_parameters=model.num_integers)
    result = compute_result("FEDAVG", both, [3, 1], base, blobs)
    moved = model_from_blob(result.model_blob)
    plain = compute_result(
        "FEDAVG", sealed("ana", "bea"), [3, 1], BASE_BLOB, BLOBS.values()
    )
    for name, array in tensors_from_blob(plain.model_blob).items():
        assert moved.tensors[name].tobytes() == array.tobytes()
    # By examples: (3 · -0.5 + 1 · 0.5) / 4; and a variance moves by 4 of its units.
    assert moved.tensors["mean"].tolist() == [0.75, -4]
    assert moved.tensors["var"].tolist() == [1 + (3 * 8 + 1 * 2) / 4]


@pytest.mark.parametrize("extra", [-1, 1])
def test_a_base_model_of_another_length_gives_no_result(extra: int) -> None:
    update = update_to_blob(np.zeros(5 + extra, dtype="i4"))
    wrong = replace(sealed("ana"), num_parameters=5 + extra)
    with pytest.raises(RefusedStateError, match="have 5 integers"):
        compute_result("FEDAVG", wrong, [3], BASE_BLOB, [update])


def test_a_first_model_without_padding_may_be_shorter_than_those_after_it() -> None:
    text = json.dumps(
        {
            "a": {"dtype": "F32", "shape": [5], "data_offsets": [0, 20]},
        },
        separators=(",", ":"),
    ).encode()
    assert len(text) % 8
    base = len(text).to_bytes(8, "little") + text + bytes(20)
    result = compute_result("FEDAVG", sealed("ana"), [3], base, [BLOBS["ana"]])
    assert len(base) < len(result.model_blob) <= compute_max_model_size(make_blob(base))


@pytest.mark.parametrize(
    "base",
    [
        tensors_to_blob(BASE | {"counter": np.array(7, dtype="i8")}),
        tensors_to_blob(BASE, metadata={"folkmoot/state/bias": "refused"}),
        tensors_to_blob(BASE, metadata={"folkmoot/state/bias": "new"}),
    ],
)
def test_a_base_model_whose_state_is_refused_gives_no_result(base: bytes) -> None:
    with pytest.raises(RefusedStateError):
        compute_result("FEDAVG", sealed("ana"), [3], base, [BLOBS["ana"]])
