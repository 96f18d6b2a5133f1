"""Which entries of a model's state are exchanged, and with which values."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.exchanged_state import (
    STATE_PREFIX,
    Kind,
    Model,
    RefusedStateError,
    StateClass,
    classify,
    model_from_blob,
    model_to_blob,
)
from protocol.tensors import (
    MalformedBlobError,
    ManifestMismatchError,
    tensors_from_blob,
    tensors_to_blob,
)
from schemas.reasons import Reason
from tests.paths import VECTORS

FILE = VECTORS / "protocol" / "models.json"
TRAINED, APART, UNSIGNED, KEPT, FIXED, REFUSED = StateClass
OTHER = (KEPT, FIXED)

shapes = npst.array_shapes(min_dims=0, max_dims=2, min_side=0, max_side=3)
floats = npst.arrays(
    "f4", shapes, elements=st.floats(width=32, allow_nan=False, allow_infinity=False)
)
any_arrays = st.sampled_from(
    ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
).flatmap(
    lambda dtype: npst.arrays(
        dtype,
        shapes,
        elements={"allow_nan": False} if dtype[0] == "f" else None,
    )
)
names = st.text(st.characters(codec="utf-8"), max_size=6).filter("__metadata__".__ne__)


@st.composite
def models(draw):
    trained = draw(st.dictionaries(names, floats, max_size=3))
    others = draw(st.dictionaries(names, any_arrays, max_size=3))
    tensors = trained | others | {"w": np.array([1, 2], dtype="f4")}
    classes = {n: draw(st.sampled_from(OTHER)) for n in others if n != "w"}
    tied = draw(st.dictionaries(names, st.sampled_from(sorted(tensors)), max_size=2))
    return Model(
        tensors, classes, {n: name for n, name in tied.items() if n not in tensors}
    )


def data_of(tensors):
    return {n: (str(a.dtype), a.shape, a.tobytes()) for n, a in tensors.items()}


def same(left, right):
    return (data_of(left.tensors), left.tied) == (
        data_of(right.tensors),
        right.tied,
    ) and all(left.get_class(n) is right.get_class(n) for n in left.tensors)


@given(models())
def test_reading_undoes_writing(model):
    written = model_to_blob(model)
    assert same(model_from_blob(written), model)
    assert data_of(safetensors.numpy.load(written)) == data_of(model.tensors)


@given(models())
def test_equal_models_give_equal_bytes_whatever_their_order(model):
    tensors = dict(sorted(model.tensors.items(), reverse=True))
    classes = {n: model.get_class(n) for n in tensors}  # the trained ones too
    assert model_to_blob(Model(tensors, classes, model.tied)) == model_to_blob(model)


@given(st.dictionaries(names, floats, max_size=3))
def test_a_model_without_metadata_is_one_of_which_everything_is_trained(tensors):
    tensors |= {"w": np.ones(2, dtype="f4")}
    blob = tensors_to_blob(tensors)
    model = model_from_blob(blob)
    assert {model.get_class(n) for n in tensors} == {TRAINED}
    assert model_to_blob(model) == blob
    assert b"__metadata__" not in blob


@given(models(), st.data())
def test_training_moves_the_trained_entries_and_nothing_else(model, data):
    size = len(model.to_vector())
    vector = data.draw(npst.arrays("f4", size, elements=st.floats(-1e6, 1e6, width=32)))
    moved = model.replace_moved(vector)
    assert moved.to_vector().tobytes() == vector.tobytes()
    assert moved.classes == model.classes
    left = {n: a for n, a in moved.tensors.items() if n in model.classes}
    assert data_of(left) == data_of({n: model.tensors[n] for n in model.classes})
    update = model.compute_update(moved.tensors)
    assert update.trained.tobytes() == (vector - model.to_vector()).tobytes()
    assert len(update.base) == len(update.after) == 0


@given(models(), st.data())
def test_mutated_models_raise_nothing_else(model, data):
    mutated = bytearray(model_to_blob(model))
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(mutated) - 1))
        mutated[index] = data.draw(st.integers(0, 255))
    try:
        found = model_from_blob(bytes(mutated))
    except MalformedBlobError:
        return
    assert same(model_from_blob(model_to_blob(found)), found)


@pytest.mark.parametrize("vector", json.loads(FILE.read_text("utf-8"))["good"])
def test_golden_vector(vector):
    tensors = {
        name: np.array(values, dtype=dtype)
        for name, (dtype, values) in vector["tensors"].items()
    }
    classes = {n: StateClass(c) for n, c in vector["classes"].items()}
    model = Model(tensors, classes, vector.get("tied", {}))
    written = model_to_blob(model)
    assert written.hex() == vector["blob"]
    assert hashlib.sha256(written).hexdigest() == vector["sha256"]
    assert same(model_from_blob(written), model)


@pytest.mark.parametrize(
    "vector", json.loads(FILE.read_text("utf-8"))["bad"], ids=lambda v: v["why"]
)
def test_bad_golden_vector(vector):
    blob = bytes.fromhex(vector["blob"])
    assert tensors_from_blob(blob)  # a file, and yet no model
    with pytest.raises(RefusedStateError) as caught:
        model_from_blob(blob)
    assert caught.value.reason == Reason.STATE_REFUSED


def f4(*values):
    return np.array(values, dtype="f4")


@pytest.mark.parametrize(
    ("array", "allowed"),
    [
        (f4(1, -0.0, 3e38), (TRAINED, APART, UNSIGNED, KEPT, FIXED)),
        (f4(1, -1e-30), (TRAINED, APART, KEPT, FIXED)),
        (f4(1, np.inf), OTHER),
        (f4(-np.inf), OTHER),
        (f4(np.nan), ()),
        (np.array([1.0]), (APART, UNSIGNED, *OTHER)),
        (np.array([-1.0]), (APART, *OTHER)),
        (np.array([6e4], dtype="f2"), (APART, UNSIGNED, *OTHER)),
        (np.array([np.nan]), ()),
        (np.array([np.inf], dtype="f2"), OTHER),
        (np.array([np.nan], dtype="f2"), ()),
        (np.array(3), OTHER),
        (np.array([2**63], dtype="u8"), OTHER),
        (np.array([True]), OTHER),
        (np.array([1j], dtype="c8"), ()),
        (np.array([1j]), ()),
        (np.array(["text"]), ()),
        (np.array([object()]), ()),
        (np.array([1], dtype="g"), ()),  # long double
    ],
)
def test_each_class_has_its_values(array, allowed):
    for state_class in StateClass:
        entry = {"w": f4(1), "x": array}
        if state_class in allowed:
            Model(entry, {"x": state_class})
            continue
        with pytest.raises(RefusedStateError, match="'x'"):
            Model(entry, {"x": state_class})


@pytest.mark.parametrize(
    ("array", "cure"),
    [
        (np.ones(1), r"call \.float\(\)"),
        (np.ones(1, dtype="f2"), "mixed precision"),
        (np.array([3]), "kept or fixed"),
        (np.array([1j], dtype="c8"), "real and imaginary parts"),
    ],
)
def test_what_cannot_be_trained_is_refused_with_what_to_do(array, cure):
    with pytest.raises(RefusedStateError, match=cure):
        Model({"w": f4(1), "x": array}, {})


MEASURED = Model(
    {
        "w": f4(1, 2),
        "var": np.array([[1, 0]], dtype="f2"),
        "mean": np.array([-3.0, 0]),
        "scale": f4(1),
    },
    {"var": UNSIGNED, "mean": APART, "scale": KEPT},
)


def test_what_is_averaged_apart_follows_what_is_trained():
    assert MEASURED.num_integers == 2 + 6 * 4
    assert MEASURED.to_averaged().tolist() == [-3, 0, 1, 0]
    after = {**MEASURED.tensors, "mean": np.array([5.0, 1]), "scale": f4(9)}
    update = MEASURED.compute_update(after)
    assert update.trained.tolist() == [0, 0]
    assert update.base.tolist() == [-3, 0, 1, 0]
    assert update.after.tolist() == [5, 1, 1, 0]


def test_averages_are_brought_into_the_range_of_their_class_and_type():
    averaged = np.array([-np.inf, -7, 1e9, -0.1])
    moved = MEASURED.replace_moved(f4(3, 4), averaged)
    assert moved.tensors["mean"].tolist() == [-np.finfo("f8").max, -7]
    assert moved.tensors["var"].tolist() == [[65504, 0]]
    assert moved.tensors["var"].dtype == np.float16
    assert moved.tensors["scale"].tolist() == [1]
    assert same(model_from_blob(model_to_blob(moved)), moved)
    with pytest.raises(ManifestMismatchError):
        MEASURED.replace_moved(f4(3, 4), averaged[:3])


def test_training_may_not_leave_a_variance_below_zero():
    after = {**MEASURED.tensors, "var": np.array([[-1, 0]], dtype="f2")}
    with pytest.raises(RefusedStateError, match="'var' below zero"):
        MEASURED.compute_update(after)


def test_an_entry_with_several_names_is_in_the_file_once():
    model = Model({"a": f4(1, 2), "b": f4(3)}, {"b": FIXED}, {"head": "a", "x": "b"})
    written = model_to_blob(model)
    assert model_from_blob(written).tied == model.tied
    assert safetensors.numpy.load(written).keys() == {"a", "b"}
    moved = model_from_blob(model_to_blob(model.replace_moved(f4(5, 6))))
    assert moved.tied == model.tied
    assert model.num_integers == 2


@pytest.mark.parametrize(
    "tied", [{"a": "a"}, {"a": "b"}, {"head": "nowhere"}, {"x": "y", "y": "a"}]
)
def test_another_name_is_of_an_entry_and_of_no_entry_itself(tied):
    with pytest.raises(RefusedStateError, match="another name"):
        Model({"a": f4(1), "b": f4(2)}, {}, tied)


@pytest.mark.parametrize(
    "tensors", [{}, {"x": f4(1)}, {"x": f4(1), "empty": np.zeros((0, 5), dtype="f4")}]
)
def test_a_model_of_which_nothing_is_trained_is_refused(tensors):
    with pytest.raises(RefusedStateError, match="nothing of the model is trained"):
        Model(tensors, {n: FIXED for n in tensors if n == "x"})


@pytest.mark.parametrize(
    ("metadata", "why"),
    [
        ({STATE_PREFIX + "w": "learned"}, "learned"),
        ({STATE_PREFIX + "w": "Fixed"}, "Fixed"),
        ({STATE_PREFIX + "w": ""}, "isn't known"),
        ({STATE_PREFIX + "w": "refused"}, "'w'.*is refused"),
        ({STATE_PREFIX + "v": "fixed"}, "doesn't have"),
        ({STATE_PREFIX: "fixed"}, "doesn't have"),
        ({"folkmoot/states/w": "fixed"}, "isn't known"),
        ({"folkmoot/": "2"}, "isn't known"),
        ({"folkmoot/tied/v": "u"}, "another name"),
        ({"folkmoot/tied/w": "x"}, "another name"),
    ],
)
def test_what_a_model_says_that_is_not_known_is_refused(metadata, why):
    tensors = {"w": f4(1), "x": f4(2)}
    with pytest.raises(RefusedStateError, match=why):
        model_from_blob(tensors_to_blob(tensors, metadata=metadata))


def test_what_other_programs_say_is_ignored_and_forgotten():
    metadata = {"format": "pt", STATE_PREFIX + "w": "trained"}
    model = model_from_blob(tensors_to_blob({"w": f4(1)}, metadata=metadata))
    assert model_to_blob(model) == tensors_to_blob({"w": f4(1)})


BASE = Model(
    {"w": f4(1, 2), "table": f4(0.0, np.inf), "count": np.array(3)},
    {"table": FIXED, "count": KEPT},
)


def test_an_update_is_about_trained_entries_alone():
    after = {"w": f4(1.5, 1), "table": f4(0, np.inf), "count": np.array(9)}
    assert BASE.compute_update(after).trained.tolist() == [0.5, -1]


def test_what_diverged_is_left_to_who_encodes_it():
    update = BASE.compute_update({**BASE.tensors, "w": f4(np.nan, 1)})
    assert np.isnan(update.trained[0])


@pytest.mark.parametrize(
    ("after", "why"),
    [
        ({"table": f4(-0.0, np.inf)}, "'table', which is fixed"),
        ({"w": f4(1, 2, 3)}, "'w'"),
        ({"w": np.array([1.0, 2.0])}, "'w' was float32"),
        ({"count": np.array(3, dtype="i4")}, "'count' was int64"),
        ({"more": f4(1)}, "'more'"),
        ({"count": None}, "'count'"),
    ],
)
def test_what_training_may_not_do_is_refused(after, why):
    tensors = {n: a for n, a in (BASE.tensors | after).items() if a is not None}
    with pytest.raises(RefusedStateError, match=why):
        BASE.compute_update(tensors)


STATE = {
    "layer.weight": f4(1),
    "backbone.weight": f4(1),
    "norm.running_mean": f4(0),
    "norm.running_var": f4(1),
    "norm.num_batches_tracked": np.array(0),
    "mask": f4(0, -np.inf),
    "spectrum": np.array([1j]),
    "cache": f4(1),
}
KINDS = {
    "layer.weight": Kind.LEARNED,
    "backbone.weight": Kind.FROZEN,
    "norm.running_mean": Kind.BUFFER,
    "norm.running_var": Kind.VARIANCE,
    "mask": Kind.BUFFER,
    "cache": Kind.SCRATCH,
    "norm.num_batches_tracked": Kind.BUFFER,
    "spectrum": Kind.BUFFER,
}


def test_the_class_follows_from_the_kind():
    assert classify(STATE, KINDS) == {
        "layer.weight": TRAINED,
        "backbone.weight": FIXED,
        "norm.running_mean": APART,
        "norm.running_var": UNSIGNED,
        "norm.num_batches_tracked": KEPT,
        "mask": FIXED,
        "spectrum": APART,
        "cache": KEPT,
    }


def test_the_first_rule_that_fits_wins():
    rules = [("norm.running_*", KEPT), ("norm.*", FIXED), ("*.weight", TRAINED)]
    assert classify(STATE, KINDS, rules) == {
        "layer.weight": TRAINED,
        "backbone.weight": TRAINED,
        "norm.running_mean": KEPT,
        "norm.running_var": KEPT,
        "norm.num_batches_tracked": FIXED,
        "mask": FIXED,
        "spectrum": APART,
        "cache": KEPT,
    }


def test_a_rule_fits_an_entry_by_any_of_its_names():
    tensors, kinds = {"emb": f4(1)}, {"emb": Kind.LEARNED}
    rules, tied = [("head", FIXED)], {"head": "emb"}
    assert classify(tensors, kinds, rules, tied) == {"emb": FIXED}


def test_a_rule_that_fits_nothing_is_refused():
    with pytest.raises(RefusedStateError, match=r"called 'Norm\.\*'"):
        classify(STATE, KINDS, [("Norm.*", KEPT)])
