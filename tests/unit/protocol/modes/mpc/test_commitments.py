"""Commitments bind, add up, and have one spelling."""

import hashlib
import json

import numpy as np
import pytest
from py_arkworks_bls12381 import G1Point

from protocol.modes.mpc import commitments as c
from tests.oracle import compress_G1, curve_order, hash_to_G1
from tests.paths import VECTORS
from tests.vectors.norm_proof.generate import (
    IDENTITY,
    OUTSIDE,
    build_commitments,
    make_values,
    render,
)

FILE = VECTORS / "norm_proof" / "commitments.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))
LARGEST = 2**19 - 1


def unhex(texts):
    return [bytes.fromhex(text) for text in texts]


def scalars(texts):
    return [c.parse_scalar(bytes.fromhex(text)) for text in texts]


def opens(rows, values, blindings, **others):
    return c.verify_opening(rows, np.array(values, np.int64), blindings, **others)


def test_the_generator_gives_the_vectors():
    assert render(build_commitments()) == FILE.read_text(encoding="utf-8")


def test_the_order_is_that_of_the_group():
    assert curve_order == c.SCALAR_ORDER
    assert c.get_generator(0) * c.to_scalar(c.SCALAR_ORDER) == G1Point.identity()


@pytest.mark.parametrize("name", VECTORS["generators"])
def test_generators_are_those_of_another_implementation(name):
    index = name[1:]
    message = b"G" + int(index).to_bytes(4, "big") if index else name.encode()
    point = hash_to_G1(message, c.GENERATOR_DOMAIN, hashlib.sha256)

    expected = compress_G1(point).to_bytes(48, "big")
    assert bytes.fromhex(VECTORS["generators"][name]) == expected


def test_generators_of_short_rows_begin_those_of_long_ones():
    assert c.get_generators(300)[:256] == c.get_generators(256)
    assert len({c.encode_point(g) for g in c.get_generators(300)}) == 300


def test_the_vectors_update_is_committed_to():
    update = VECTORS["update"]
    values = np.array(update["values"], np.int64)

    rows = c.commit_rows(values, scalars(update["blindings"]), row_length=512)
    assert [row.hex() for row in rows] == update["rows"]


def test_a_row_is_committed_to_as_a_vector():
    values = make_values(5, 512)

    (row,) = c.commit_rows(values, [77])
    assert row == c.commit_scalars(values.tolist(), 77)
    assert c.parse_point(row) == c.commit_vector(values.tolist(), 77)


@pytest.mark.parametrize("value", [0, 1, -1, LARGEST, -LARGEST])
def test_rows_of_equal_values_are_committed_to(value):
    values = np.full(513, value, np.int64)

    first, last = c.commit_rows(values, [1, 2])
    assert first == c.commit_scalars([value] * 512, 1)
    assert last == c.commit_scalars([value], 2)


def test_scalars_are_taken_modulo_the_order():
    r = c.SCALAR_ORDER

    assert c.commit_scalars([-1, r + 5], -2) == c.commit_scalars([r - 1, 5], r - 2)
    assert c.commit_scalar(-1, r + 5) == c.commit_scalar(r - 1, 5)
    assert c.encode_scalar(-1) == c.encode_scalar(r - 1)


def test_a_commitment_to_a_scalar_is_what_it_is_said_to_be():
    points = [c.get_scalar_generator(), c.get_blinding_generator()]
    for value, blinding in ((0, 1), (1, 0), (2**255, 3), (c.SCALAR_ORDER - 1, 2**200)):
        expected = c.sum_products(points, [value, blinding])
        assert c.commit_scalar(value, blinding) == c.encode_point(expected)


@pytest.mark.parametrize("value", [LARGEST + 1, -LARGEST - 1, -(2**63)])
def test_values_out_of_range_are_not_committed_to(value):
    with pytest.raises(ValueError, match="clip it first"):
        c.commit_rows(np.array([0, value], np.int64), [1])


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(4, np.int32),
        np.zeros((2, 2), np.int64),
        np.zeros(0, np.int64),
        np.zeros(4),
    ],
)
def test_only_vectors_of_int64_are_committed_to(values):
    with pytest.raises(ValueError, match="not a vector of int64"):
        c.commit_rows(values, [1])


@pytest.mark.parametrize("blindings", [[1], [1, 2, 3]])
def test_each_row_has_a_blinding(blindings):
    with pytest.raises(ValueError):
        c.commit_rows(np.zeros(600, np.int64), blindings)


def test_the_vectors_sum_opens():
    total = VECTORS["sum"]
    rows = c.combine_rows([unhex(u) for u in total["updates"]], total["weights"])

    assert [row.hex() for row in rows] == total["rows"]
    assert opens(rows, total["values"], scalars(total["blindings"]))


def test_weights_may_be_zero_and_negative():
    first, second = c.commit_scalars([5], 7), c.commit_scalars([3], 11)

    combined = c.combine_points([first, second], [2, -3])
    assert combined == c.commit_scalars([1], -19)
    assert c.combine_points([first, second], [0, 1]) == second


def test_nothing_cannot_be_combined():
    with pytest.raises(ValueError, match="no commitments"):
        c.combine_points([], [])
    with pytest.raises(ValueError, match="no commitments"):
        c.combine_rows([], [])


def test_what_is_combined_has_equal_lengths():
    point = c.commit_scalars([1], 1)

    with pytest.raises(ValueError, match="2 points and 1 scalars"):
        c.combine_points([point, point], [1])
    with pytest.raises(ValueError):
        c.combine_rows([[point], [point, point]], [1, 1])


@pytest.mark.parametrize("bad", [IDENTITY, OUTSIDE, b""])
def test_only_acceptable_commitments_are_combined(bad):
    good = c.commit_scalars([1], 1)

    with pytest.raises(c.InvalidEncodingError, match="point 1: "):
        c.combine_points([good, bad], [1, 1])


def test_values_of_64_bits_open():
    values = [2**63 - 1, -(2**63), 0, 2**32, -(2**32), 2**32 - 1, -1]
    row = c.commit_scalars(values, 5)

    assert opens([row], values, [5])
    assert opens([row], values, [5 + c.SCALAR_ORDER])
    assert not opens([row], [*values[:-1], 0], [5])


@pytest.mark.parametrize("num_rows", [1, 16, 17, 33])
def test_openings_of_many_rows_are_exact(num_rows):
    rng = np.random.default_rng(num_rows)
    values = rng.integers(-(2**63), 2**63 - 1, (num_rows, 256))
    blindings = list(range(num_rows))
    rows = [
        c.commit_scalars(row.tolist(), blinding)
        for row, blinding in zip(values, blindings, strict=True)
    ]

    assert opens(rows, values.reshape(-1), blindings, row_length=256)
    values[-1, -1] ^= 1
    assert not opens(rows, values.reshape(-1), blindings, row_length=256)


def make_opening():
    values = make_values(4)
    blindings = [123, 456]
    return list(c.commit_rows(values, blindings)), values, blindings


@pytest.mark.parametrize("index", [0, 511, 512, 599])
@pytest.mark.parametrize("by", [1, -1, 2**40])
def test_a_wrong_value_does_not_open(index, by):
    rows, values, blindings = make_opening()
    values[index] += by

    assert not opens(rows, values, blindings)


def test_wrong_blindings_do_not_open():
    rows, values, blindings = make_opening()

    assert opens(rows, values, blindings)
    assert not opens(rows, values, [124, 456])
    assert not opens(rows, values, [456, 123])
    assert not opens(rows, values, [124, 455])


def test_swapped_rows_do_not_open():
    rows, values, blindings = make_opening()

    assert not opens(rows[::-1], values, blindings)


def test_other_numbers_do_not_open():
    rows, values, blindings = make_opening()

    assert not opens(rows[:1], values, blindings)
    assert not opens(rows, values, blindings[:1])
    assert not opens(rows, values[:512], blindings)
    assert not opens(rows, values, blindings, row_length=1024)
    assert not opens([], [], [])


def test_errors_in_two_rows_do_not_cancel():
    rows, values, blindings = make_opening()
    values[0] += 1
    values[512] -= 1

    assert not opens(rows, values, blindings)


def test_openings_are_of_acceptable_commitments():
    rows, values, blindings = make_opening()

    with pytest.raises(c.InvalidEncodingError, match="NOT_IN_SUBGROUP"):
        opens([rows[0], OUTSIDE], values, blindings)


@pytest.mark.parametrize("bad", VECTORS["bad_points"], ids=lambda bad: bad["why"])
def test_bad_points_are_refused(bad):
    with pytest.raises(c.InvalidEncodingError) as caught:
        c.parse_point(bytes.fromhex(bad["point"]))

    assert caught.value.reason == bad["reason"]
    assert caught.value.detail in str(caught.value)


@pytest.mark.parametrize("bad", VECTORS["bad_scalars"], ids=lambda bad: bad["why"])
def test_bad_scalars_are_refused(bad):
    with pytest.raises(c.InvalidEncodingError) as caught:
        c.parse_scalar(bytes.fromhex(bad["scalar"]))

    assert caught.value.reason == bad["reason"]


def test_points_and_scalars_survive_the_journey():
    point = c.commit_vector([1, 2, 3], 4)

    assert c.parse_point(c.encode_point(point)) == point
    for value in (0, 1, c.SCALAR_ORDER - 1):
        assert c.parse_scalar(c.encode_scalar(value)) == value
    assert c.parse_scalars(c.encode_scalar(1) + c.encode_scalar(2)) == [1, 2]


def test_scalars_end_where_their_bytes_end():
    with pytest.raises(c.InvalidEncodingError, match="WRONG_SIZE"):
        c.parse_scalars(c.encode_scalar(1) + b"\0")


def test_every_bit_of_a_point_counts():
    point = c.commit_scalars([1], 2)
    for bit in range(8 * c.POINT_SIZE):
        flipped = bytearray(point)
        flipped[bit // 8] ^= 1 << bit % 8
        try:
            assert c.encode_point(c.parse_point(bytes(flipped))) == flipped
        except c.InvalidEncodingError:
            continue


@pytest.mark.parametrize(
    "num_values", [1, 300, 20_000, 10**5, 10**6, 10**7, 16_000_000]
)
def test_the_chosen_row_length_has_room_for_masks_and_squares(num_values):
    length = c.choose_row_length(num_values)

    assert length & (length - 1) == 0
    assert c.compute_num_rows(num_values, length) + 309 + 4 <= length


def test_row_lengths_never_fall():
    lengths = [c.choose_row_length(d) for d in range(1, 2_000_000, 997)]

    assert lengths == sorted(lengths)
    assert lengths[0] == c.MIN_ROW_LENGTH


def test_rows_end_in_zeros():
    rows = c.to_rows(np.arange(1, 6), 4)

    assert rows.tolist() == [[1, 2, 3, 4], [5, 0, 0, 0]]
    assert c.compute_num_rows(4, 4) == 1
    assert c.compute_num_rows(5, 4) == 2
