"""Values that are averaged apart from what is trained."""

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol.averaged_apart import (
    FRACTIONAL_BITS,
    MAX_UNITS,
    NUM_DIGITS,
    apply_average,
    encode_values,
    flatten_values,
)
from protocol.clipping import compute_squared_norm
from protocol.encoding import NotFiniteError
from tests.paths import VECTORS

CASES = json.loads((VECTORS / "protocol" / "averaged.json").read_text("utf-8"))

numbers = st.floats(width=32, allow_nan=False, allow_infinity=False)
pairs = st.integers(0, 5).flatmap(
    lambda n: st.tuples(
        npst.arrays("f8", n, elements=numbers),
        st.lists(
            st.tuples(npst.arrays("f8", n, elements=numbers), st.integers(1, 2**20)),
            min_size=1,
            max_size=4,
        ),
    )
)


def unit_of(value):
    return max(1.0, 2.0 ** min(math.frexp(value)[1], 1_023))


def average(base, said):
    total = sum(weight * encode_values(base, after).integers for after, weight in said)
    return apply_average(base, total, sum(weight for _, weight in said))


@given(pairs)
def test_an_average_is_that_of_the_values_as_far_as_they_may_move(drawn):
    base, said = drawn
    found = average(base, said)
    num_examples = sum(weight for _, weight in said)
    for index, value in enumerate(base):
        unit = unit_of(value)
        reach = MAX_UNITS * unit
        wanted = [
            (min(max(after[index], value - reach), value + reach), weight)
            for after, weight in said
        ]
        mean = math.fsum(w * weight for w, weight in wanted) / num_examples
        assert abs(found[index] - mean) <= unit * 2.0**-FRACTIONAL_BITS
        # Never beyond what somebody has: a variance doesn't fall below zero.
        hull = [value, *(w for w, _ in wanted)]
        slack = 1e-12 * max(map(abs, hull))
        assert min(hull) - slack <= found[index] <= max(hull) + slack


@given(pairs)
def test_the_integers_are_small_however_far_values_moved(drawn):
    base, said = drawn
    for after, _ in said:
        encoded = encode_values(base, after)
        assert encoded.integers.shape == (NUM_DIGITS * len(base),)
        assert compute_squared_norm(encoded.integers) <= 345 * len(base)
        assert np.abs(encoded.integers).max(initial=0) <= 8
        far = [
            abs(a / 2 - b / 2) > MAX_UNITS * (unit_of(b) / 2)
            for a, b in zip(after, base, strict=True)
        ]
        assert encoded.num_held_back == sum(far)


@given(npst.arrays("f8", st.integers(0, 5), elements=numbers))
def test_what_nobody_moved_keeps_its_bits(base):
    assert average(base, [(base.copy(), 3)]).tobytes() == base.tobytes()


def test_a_value_that_is_far_away_gets_there_in_a_few_rounds():
    value, rounds = np.array([1.0]), 0
    while value[0] != 570_000:
        value = average(value, [(np.array([570_000.0]), 1)])
        rounds += 1
    assert rounds == 7


@pytest.mark.parametrize("total", [2**62, -(2**62)])
@pytest.mark.parametrize("base", [0.0, -3.0, 1e300, 1.7e308])
def test_no_sum_moves_a_value_further_than_the_bound(total, base):
    sums = np.zeros(NUM_DIGITS, dtype="i8")
    sums[0] = total
    moved = apply_average(np.array([base]), sums, 1)[0]
    assert moved == base + math.copysign(MAX_UNITS, total) * unit_of(base)


@pytest.mark.parametrize("max_norm", [1, 10, 100, 1_000])
def test_a_bound_that_is_too_small_slows_everything_down(max_norm):
    base, after = np.zeros(500), np.random.default_rng(0).normal(size=500)
    free = encode_values(base, after)
    encoded = encode_values(base, after, max_norm=max_norm)
    assert compute_squared_norm(encoded.integers) <= max_norm**2
    if max_norm == 1_000:  # none of the digits is above 8
        assert np.array_equal(encoded.integers, free.integers)
        assert encoded.num_held_back == 0
    else:
        moved = apply_average(base, encoded.integers, 1)
        assert (np.abs(moved) <= np.abs(after)).all()
        assert encoded.num_held_back > 400


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_diverged_is_refused(value):
    with pytest.raises(NotFiniteError):
        encode_values(np.zeros(2), np.array([0, value]))


@pytest.mark.parametrize(
    ("total", "num_examples"),
    [
        (np.zeros(6, dtype="i4"), 1),
        (np.zeros(5, dtype="i8"), 1),
        (np.zeros(6, dtype="i8"), 0),
        (np.zeros(6, dtype="i8"), 2**31),
    ],
)
def test_other_sums_are_a_bug(total, num_examples):
    with pytest.raises(ValueError, match=r"sum|examples"):
        apply_average(np.zeros(1), total, num_examples)
    with pytest.raises(ValueError, match="values after"):
        encode_values(np.zeros(1), np.zeros(2))


def test_values_of_all_types_are_laid_end_to_end():
    arrays = [np.ones((2, 1), dtype="f2"), np.array(3.0), np.zeros((0, 4), dtype="f4")]
    assert flatten_values(arrays).tolist() == [1, 1, 3]
    assert flatten_values([]).dtype == np.float64


@pytest.mark.parametrize("case", CASES)
def test_golden_vector(case):
    base = np.frombuffer(bytes.fromhex(case["base"]), "<f8")
    total = np.array(case["total"], dtype="i8")
    for said, after in zip(case["integers"], case["after"], strict=True):
        values = np.frombuffer(bytes.fromhex(after), "<f8")
        assert encode_values(base, values).integers.tolist() == said
    if case["integers"]:
        pairs = zip(case["weights"], np.array(case["integers"]), strict=True)
        assert np.array_equal(sum(weight * said for weight, said in pairs), total)
    averaged = apply_average(base, total, case["num_examples"])
    assert averaged.astype("<f8").tobytes().hex() == case["averaged"]
