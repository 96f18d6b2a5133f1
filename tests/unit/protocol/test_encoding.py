"""Updates as fixed-point integers."""

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.encoding import (
    MAX_FRACTIONAL_BITS,
    NotFiniteError,
    OutOfRangeError,
    RefusalReason,
    UpdateRefusedError,
    compute_encoding_loss,
    encode_update,
    parse_update,
    update_to_blob,
)
from protocol.tensors import tensors_to_blob

fractional_bits = st.integers(0, MAX_FRACTIONAL_BITS)
updates = npst.arrays(
    "i4",
    st.integers(0, 20),
    elements=st.integers(-(2**31) + 1, 2**31 - 1),
)


@given(
    npst.arrays(
        st.sampled_from(["f2", "f4", "f8"]),
        st.integers(0, 20),
        elements=st.floats(-2, 2, width=16, exclude_min=True, exclude_max=True),
    ),
    fractional_bits,
)
def test_encoding_is_exact_scaling_rounded_half_to_even(delta, bits):
    # Python's round of a Fraction is exact, and half to even.
    expected = [round(Fraction(float(x)) * 2**bits) for x in delta]
    encoded = encode_update(delta, bits)
    assert encoded.dtype == np.int32
    assert encoded.tolist() == expected


def test_halves_go_to_even():
    delta = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5])
    assert encode_update(delta, 0).tolist() == [0, 2, 2, 0, -2, -2]


@given(updates, fractional_bits)
def test_encoding_undoes_decoding(update, bits):
    assert (encode_update(np.ldexp(update.astype("f8"), -bits), bits) == update).all()


@pytest.mark.parametrize(
    ("delta", "integers", "shrunk_by", "expected"),
    [
        ([1.0, -2.0], [1, -2], 10.0, None),
        ([1.0, -2.0], [1, -2], 10.5, (10, 0)),
        ([1.0, -2.0], [1, -2], float("inf"), (10**18, 0)),
        ([0.1] * 20, [0] + [1] * 19, 1.0, None),
        ([0.1] * 20, [0, 0] + [1] * 18, 1.0, (1, 10)),
        ([0.1] * 3 + [0.0] * 1_000, [0, 1, 1] + [0] * 1_000, 1.0, (1, 33)),
        ([0.0] * 5, [0] * 5, 1.0, None),
    ],
)
def test_a_loss_is_said_if_it_is_large(delta, integers, shrunk_by, expected):
    loss = compute_encoding_loss(
        np.array(delta), np.array(integers), shrunk_by=shrunk_by
    )
    if expected is None:
        assert loss is None
    else:
        assert (loss.shrunk_times, loss.zeroed_percent) == expected


@given(updates)
def test_parsing_undoes_writing(update):
    parsed = parse_update(update_to_blob(update), num_parameters=len(update))
    assert parsed.dtype == np.int32
    assert (parsed == update).all()


def test_encoding_leaves_its_argument_alone():
    delta = np.array([0.25])
    encode_update(delta, 4)
    assert delta.tolist() == [0.25]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(NotFiniteError, match="parameter 1"):
        encode_update(np.array([0, value], dtype="f4"), 16)


@pytest.mark.parametrize("value", [2.0**15, -(2.0**15), 3e38, 2.0**15 - 2**-18])
def test_what_does_not_fit_is_refused(value):
    with pytest.raises(OutOfRangeError, match=r"parameter 1 .* ±2\^15 for 16"):
        encode_update(np.array([0, value]), 16)


def test_a_product_beyond_all_floats_is_refused():
    with pytest.raises(OutOfRangeError):
        encode_update(np.array([1.7e308]), 30)


@pytest.mark.parametrize(
    ("value", "encoded"),
    [(2**31 - 1, 2**31 - 1), (-(2**31) + 1, -(2**31) + 1), (2**31 - 0.75, 2**31 - 1)],
)
def test_the_range_is_symmetric_and_used_to_its_ends(value, encoded):
    assert encode_update(np.array([float(value)]), 0).tolist() == [encoded]


@pytest.mark.parametrize("bits", [-1, 31])
def test_fractional_bits_have_a_range(bits):
    with pytest.raises(ValueError, match="fractional bits"):
        encode_update(np.zeros(1), bits)


@pytest.mark.parametrize("update", [np.zeros(1), np.zeros((1, 1), dtype="i4")])
def test_only_an_int32_vector_is_written(update):
    with pytest.raises(ValueError, match="int32 vector"):
        update_to_blob(update)


@pytest.mark.parametrize(
    ("blob", "reason"),
    [
        (b"", RefusalReason.MALFORMED_BLOB),
        (update_to_blob(np.zeros(2, dtype="i4"))[:-1], RefusalReason.MALFORMED_BLOB),
        (tensors_to_blob({}), RefusalReason.MALFORMED_BLOB),
        (
            tensors_to_blob({"sum": np.zeros(2, dtype="i4")}),
            RefusalReason.MALFORMED_BLOB,
        ),
        (
            tensors_to_blob({n: np.zeros(2, dtype="i4") for n in ("more", "update")}),
            RefusalReason.MALFORMED_BLOB,
        ),
        (
            tensors_to_blob({"update": np.array([1, np.nan], dtype="f4")}),
            RefusalReason.NOT_FINITE,
        ),
        (
            tensors_to_blob({"update": np.array([1, -np.inf])}),
            RefusalReason.NOT_FINITE,
        ),
        (
            tensors_to_blob({"update": np.zeros(2, dtype="f4")}),
            RefusalReason.WRONG_DTYPE,
        ),
        (
            tensors_to_blob({"update": np.zeros(2, dtype="i8")}),
            RefusalReason.WRONG_DTYPE,
        ),
        (
            tensors_to_blob({"update": np.zeros(2, dtype="u4")}),
            RefusalReason.WRONG_DTYPE,
        ),
        (update_to_blob(np.zeros(1, dtype="i4")), RefusalReason.WRONG_SHAPE),
        (update_to_blob(np.zeros(3, dtype="i4")), RefusalReason.WRONG_SHAPE),
        (
            tensors_to_blob({"update": np.zeros((2, 1), dtype="i4")}),
            RefusalReason.WRONG_SHAPE,
        ),
        (
            update_to_blob(np.array([0, -(2**31)], dtype="i4")),
            RefusalReason.OUT_OF_RANGE,
        ),
    ],
)
def test_a_blob_other_than_an_update_is_refused_with_a_reason(blob, reason):
    with pytest.raises(UpdateRefusedError) as refusal:
        parse_update(blob, num_parameters=2)
    assert refusal.value.reason is reason
    assert refusal.value.detail
    assert str(refusal.value).startswith(reason)


@given(st.binary(max_size=100))
def test_random_bytes_are_refused_and_nothing_else(blob):
    with pytest.raises(UpdateRefusedError):
        parse_update(blob, num_parameters=2)
