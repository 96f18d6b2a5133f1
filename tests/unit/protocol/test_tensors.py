"""Models and updates as bytes."""

import hashlib
import json

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.tensors import (
    MODEL_HEADER_BYTES,
    VECTOR_HEADER_BYTES,
    MalformedBlobError,
    ManifestMismatchError,
    TensorSpec,
    compute_json_depth,
    flatten,
    manifest_of,
    num_parameters,
    tensors_and_metadata_from_blob,
    tensors_from_blob,
    tensors_to_blob,
    unflatten,
)
from tests.paths import VECTORS

FILE = VECTORS / "protocol" / "tensors.json"

DTYPES = ["?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"]
arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: npst.arrays(
        dtype, npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    )
)
names = st.text(st.characters(codec="utf-8"), max_size=8).filter("__metadata__".__ne__)
models = st.dictionaries(names, arrays, max_size=4)
float_models = st.dictionaries(
    names,
    npst.arrays(
        "f4", npst.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
    ),
    max_size=4,
)


def same(left, right):
    return left.keys() == right.keys() and all(
        left[name].dtype == right[name].dtype
        and left[name].shape == right[name].shape
        and left[name].tobytes() == right[name].tobytes()
        for name in left
    )


def blob(header, data=b""):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="I8", shape=(1,), offsets=(0, 1)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


@given(models)
def test_reading_undoes_writing(tensors):
    assert same(tensors_from_blob(tensors_to_blob(tensors)), tensors)


@given(models)
def test_the_reference_library_reads_what_we_write(tensors):
    assert same(safetensors.numpy.load(tensors_to_blob(tensors)), tensors)


@given(models)
def test_we_read_what_the_reference_library_writes(tensors):
    theirs = safetensors.numpy.save(tensors, metadata={"format": "np"})
    assert same(tensors_from_blob(theirs), tensors)


@given(models, st.randoms())
def test_equal_tensors_give_equal_bytes_whatever_their_order_in_memory(tensors, random):
    shuffled = list(tensors.items())
    random.shuffle(shuffled)
    others = {
        name: np.array(array, array.dtype.newbyteorder(">"), order="F")
        for name, array in shuffled
    }
    assert tensors_to_blob(others) == tensors_to_blob(tensors)


@given(models)
def test_the_header_is_canonical(tensors):
    written = tensors_to_blob(tensors)
    length = int.from_bytes(written[:8], "little")
    text = written[8 : 8 + length]
    header = json.loads(text)
    assert length % 8 == 0
    assert list(header) == sorted(tensors)
    assert (
        text.rstrip(b" ")
        == json.dumps(
            header, ensure_ascii=False, separators=(",", ":"), sort_keys=True
        ).encode()
    )
    end = 0
    for fields in header.values():
        assert fields["data_offsets"][0] == end
        end = fields["data_offsets"][1]
    assert len(written) == 8 + length + end


@pytest.mark.parametrize("vector", json.loads(FILE.read_text("utf-8"))["good"])
def test_golden_vector(vector):
    tensors = {
        name: np.array(values, dtype=dtype)
        for name, (dtype, values) in vector["tensors"].items()
    }
    written = tensors_to_blob(tensors)
    assert written.hex() == vector["blob"]
    assert hashlib.sha256(written).hexdigest() == vector["sha256"]


@pytest.mark.parametrize(
    "vector", json.loads(FILE.read_text("utf-8"))["bad"], ids=lambda v: v["why"]
)
def test_bad_golden_vector(vector):
    with pytest.raises(MalformedBlobError):
        tensors_from_blob(bytes.fromhex(vector["blob"]))


@pytest.mark.parametrize(
    ("malformed", "why"),
    [
        (b"", "no header"),
        (b"\0" * 7, "no header"),
        (b"\xff" * 8, "no header"),
        ((100_000_001).to_bytes(8, "little") + b"{" * 16, "no header"),
        (blob(b"{}" + b" " * MODEL_HEADER_BYTES), "at most 1048576"),
        ((9).to_bytes(8, "little") + b"{}", "no header"),
        (blob(b""), "begin with"),
        (blob(b" {}"), "begin with"),
        (blob(b"[]"), "begin with"),
        (blob(b"{"), "JSON"),
        (blob(b"{} {}"), "JSON"),
        (blob(b'{"\xff":1}'), "JSON"),
        (blob(b'{"\\ud800":1}'), "JSON"),
        (blob(b'{"a":NaN}'), "NaN"),
        (blob(b'{"a":' + b"9" * 5000 + b"}"), "exactly"),
        (blob({"a": entry(shape=[10**19])}), "shape"),
        (blob(b'{"a":' + b"[" * 100_000), "JSON"),
        (blob(b'{"a":1,"a":2}'), "twice"),
        (blob(b'{"a":{"dtype":"I8","dtype":"U8"}}'), "twice"),
        (blob({"__metadata__": 1}), "texts"),
        (blob({"__metadata__": ["a"]}), "texts"),
        (blob({"__metadata__": {"a": 1}}), "texts"),
        (blob({"__metadata__": {"a": {}}}), "texts"),
        (blob(b'{"__metadata__":{"a":"\\ud800"}}'), "texts"),
        (blob(b'{"__metadata__":{"a":"b","a":"c"}}'), "twice"),
        (blob({"a": 1}), "exactly"),
        (blob({"a": {"dtype": "I8", "shape": []}}), "exactly"),
        (blob({"a": entry() | {"more": 1}}, b"x"), "exactly"),
        (blob({"a": entry("i8")}, b"x"), "type"),
        (blob({"a": entry("BF16", [], [0, 2])}, b"xx"), "type"),
        (blob({"a": entry() | {"dtype": 8}}, b"x"), "type"),
        (blob({"a": entry() | {"dtype": ["I8"]}}, b"x"), "type"),
        (blob({"a": entry() | {"shape": 1}}, b"x"), "shape"),
        (blob({"a": entry(shape=[-1])}, b"x"), "shape"),
        (blob({"a": entry(shape=[1.0])}, b"x"), "shape"),
        (blob({"a": entry(shape=[True])}, b"x"), "shape"),
        (blob({"a": entry(shape=[1] * 65)}, b"x"), "shape"),
        (blob({"a": entry(shape=[2**63])}, b"x"), "shape"),
        (blob({"a": entry(shape=[0, 2**40, 2**40], offsets=[0, 0])}), "large"),
        (blob({"a": entry() | {"data_offsets": 1}}, b"x"), "offsets"),
        (blob({"a": entry(offsets=[])}, b"x"), "offsets"),
        (blob({"a": entry(offsets=[0, 1, 1])}, b"x"), "offsets"),
        (blob({"a": entry(offsets=[-1, 0])}, b"x"), "offsets"),
        (blob({"a": entry(offsets=[0, 2])}, b"xx"), "offsets"),
        (blob({"a": entry(offsets=[1, 0])}, b"x"), "offsets"),
        (blob({"a": entry(offsets=[1, 2])}, b"xx"), "hole"),
        (blob({"a": entry(), "b": entry()}, b"x"), "hole or overlap"),
        (blob({"a": entry(), "b": entry(offsets=[2, 3])}, b"xxx"), "hole"),
        (blob({"a": entry()}), "not 0"),
        (blob({"a": entry()}, b"xx"), "not 2"),
        (blob({"a": entry("BOOL")}, b"\2"), "booleans"),
    ],
)
def test_malformed(malformed, why):
    with pytest.raises(MalformedBlobError, match=why):
        tensors_from_blob(malformed)


def test_a_header_may_take_what_is_expected_of_it():
    header = b"{}".ljust(VECTOR_HEADER_BYTES)
    assert tensors_from_blob(blob(header), max_header_bytes=VECTOR_HEADER_BYTES) == {}
    with pytest.raises(MalformedBlobError, match="at most 4096"):
        tensors_from_blob(blob(header + b" "), max_header_bytes=VECTOR_HEADER_BYTES)
    assert tensors_from_blob(blob(header + b" ")) == {}


@pytest.mark.parametrize(
    ("text", "depth"),
    [
        ("", 0),
        ("1", 0),
        ("{}", 1),
        ('{"a":[{"b":[]}]}', 4),
        ('["[[[[", "\\"[[[", "\\\\", []]', 2),
        ("[[]][[[]]]", 3),
        ("]]]]", 0),
        ("]]]]" + "[" * 100_000, 99_996),
        ('[["' + "[" * 100, 2),  # a string without an end
        ('[["\\', 2),
        ('["\\u005b", "é[", []]', 2),
    ],
)
def test_how_deep_brackets_nest(text, depth):
    assert compute_json_depth(text) == depth


@given(st.binary(max_size=200))
def test_random_bytes_raise_nothing_else(data):
    only_malformed(data)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets"]), inner)
    ),
    max_leaves=8,
)


@given(st.dictionaries(names, json_values, max_size=3), st.binary(max_size=16))
def test_random_headers_raise_nothing_else(header, data):
    only_malformed(blob(header, data))


@given(models, st.data())
def test_mutated_blobs_raise_nothing_else(tensors, data):
    mutated = bytearray(tensors_to_blob(tensors))
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(mutated) - 1))
        action = data.draw(st.sampled_from(["flip", "insert", "delete", "cut"]))
        if action == "flip":
            mutated[index] ^= 1 << data.draw(st.integers(0, 7))
        elif action == "insert":
            mutated.insert(index, data.draw(st.integers(0, 255)))
        elif action == "delete" and len(mutated) > 1:
            del mutated[index]
        else:
            del mutated[index + 1 :]
    only_malformed(bytes(mutated))


def only_malformed(data):
    try:
        tensors = tensors_from_blob(data)
    except MalformedBlobError:
        return
    # What we accept, the reference reader accepts, and sees the same.
    assert same(safetensors.numpy.load(data), tensors)


def test_arrays_that_were_read_cannot_be_changed():
    tensors = tensors_from_blob(tensors_to_blob({"a": np.zeros(2, dtype="f4")}))
    with pytest.raises(ValueError, match="read-only"):
        tensors["a"][0] = 1


@pytest.mark.parametrize(
    "tensors",
    [
        {"a": np.zeros(1, dtype="c8")},
        {"a": np.array(["text"])},
        {"a": np.array([object()])},
        {"__metadata__": np.zeros(1)},
        {"\ud800": np.zeros(1)},
    ],
)
def test_what_the_format_cannot_hold_is_refused(tensors):
    with pytest.raises(ValueError, match=r"can't (hold|encode)"):
        tensors_to_blob(tensors)


def test_a_manifest_names_the_tensors_in_order():
    tensors = {"b": np.zeros((2, 3), dtype="f4"), "a": np.zeros((), dtype="f4")}
    manifest = manifest_of(tensors)
    assert manifest == (TensorSpec("a", ()), TensorSpec("b", (2, 3)))
    assert num_parameters(manifest) == 7
    assert flatten(tensors, manifest).shape == (7,)


def test_flattening_lays_tensors_end_to_end_in_name_order():
    arrays = {"b": np.array([[1, 2], [3, 4]]), "a": np.array(9)}
    tensors = {name: array.astype("f4") for name, array in arrays.items()}
    assert flatten(tensors, manifest_of(tensors)).tolist() == [9, 1, 2, 3, 4]


@given(float_models)
def test_unflattening_undoes_flattening(tensors):
    manifest = manifest_of(tensors)
    vector = flatten(tensors, manifest)
    assert vector.dtype == np.float32
    assert vector.shape == (num_parameters(manifest),)
    assert same(unflatten(vector, manifest), dict(sorted(tensors.items())))


@pytest.mark.parametrize(
    "tensors",
    [
        {},
        {"b": np.zeros(2, dtype="f4")},
        {"a": np.zeros(3, dtype="f4")},
        {"a": np.zeros((2, 1), dtype="f4")},
        {"a": np.zeros(2, dtype="i4")},
        {"a": np.zeros(2, dtype="f8")},
        {"a": np.zeros(2, dtype="f4"), "b": np.zeros(0, dtype="f4")},
    ],
)
def test_tensors_of_another_manifest_are_refused(tensors):
    with pytest.raises(ManifestMismatchError, match="manifest"):
        flatten(tensors, (TensorSpec("a", (2,)),))


def test_a_manifest_in_another_order_is_refused():
    tensors = {"a": np.zeros(1), "b": np.zeros(1)}
    with pytest.raises(ManifestMismatchError, match="other order"):
        flatten(tensors, manifest_of(tensors)[::-1])


@pytest.mark.parametrize("shape", [(1,), (3,), (1, 2)])
def test_vectors_of_another_manifest_are_refused(shape):
    with pytest.raises(ManifestMismatchError, match="shape"):
        unflatten(np.zeros(shape, dtype="f4"), (TensorSpec("a", (2,)),))


texts = st.dictionaries(
    st.text(st.characters(codec="utf-8"), max_size=4),
    st.text(st.characters(codec="utf-8"), max_size=4),
    max_size=3,
)


@given(models, texts)
def test_metadata_is_read_and_written_canonically(tensors, metadata):
    items = sorted(metadata.items(), reverse=True)
    written = tensors_to_blob(tensors, metadata=dict(items))
    assert written == tensors_to_blob(tensors, metadata=metadata)
    found, texts = tensors_and_metadata_from_blob(written)
    assert same(found, tensors)
    assert texts == metadata
    assert same(safetensors.numpy.load(written), tensors)
    if not metadata:
        assert written == tensors_to_blob(tensors)
    theirs = safetensors.numpy.save(tensors, metadata=metadata or None)
    assert tensors_and_metadata_from_blob(theirs)[1] == metadata
