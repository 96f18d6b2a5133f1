"""Numbers that users' code returned, before anything encodes them."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from adapters.numbers import (
    MAX_COUNT,
    BadNumberError,
    read_count,
    read_micros,
    read_number,
)


class Scalar:
    """A tensor of one element, as torch's: only `item()` says what it holds."""

    def __init__(self, value):
        self._value = value

    def item(self):
        if isinstance(self._value, Exception):
            raise self._value
        return self._value


NUMBERS = [
    (0.25, 250_000),
    (3, 3_000_000),
    (-0.0000005, 0),
    (np.float32(0.5), 500_000),
    (np.int64(-2), -2_000_000),
    (np.array(0.5), 500_000),
    (np.array([[0.5]]), 500_000),
    (Fraction(1, 4), 250_000),
    (Scalar(0.5), 500_000),
    (9.2e12, 9_200_000_000_000_000_000),
    (1e13, None),
    (-1e300, None),
    (10**400, None),
    (math.nan, None),
    (math.inf, None),
    (Scalar(math.nan), None),
]
NO_COUNTS = [
    *(0, -1, MAX_COUNT + 1, 10**5_000, -(10**400), 1.0, np.float64(3), math.nan),
]
NONE = [
    *(None, True, np.bool_(True), Scalar(False), "0.5", b"1", [0.5], 1j, {}, object()),
    np.array([1.0, 2.0]),
    np.array([]),
    Scalar(RuntimeError("a Tensor with 2 elements cannot be converted to Scalar")),
]


@pytest.mark.parametrize(("value", "micros"), NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_that_informs_fits_or_is_left_out(value, micros):
    assert read_micros(value, "the loss") == micros


@pytest.mark.parametrize("read", [read_number, read_count, read_micros])
@pytest.mark.parametrize("value", NONE)
def test_what_is_no_number_is_named(read, value):
    with pytest.raises(BadNumberError, match="the loss"):
        read(value, "the loss")


@pytest.mark.parametrize("value", [1, 12, np.int32(7), np.uint64(9), Scalar(3)])
def test_a_count_is_a_whole_number(value):
    found = read_count(value, "num_examples")
    assert type(found) is int
    assert found == getattr(value, "item", lambda: value)()


@pytest.mark.parametrize("value", NO_COUNTS, ids=range(len(NO_COUNTS)))
def test_a_count_has_bounds(value):
    with pytest.raises(BadNumberError, match="num_examples") as caught:
        read_count(value, "num_examples")
    assert len(str(caught.value)) < 200
    assert read_count(MAX_COUNT, "num_examples") == MAX_COUNT
