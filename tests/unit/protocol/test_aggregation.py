"""The exact sum of a cohort's updates."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from protocol import aggregation
from protocol.aggregation import (
    MAX_TOTAL_EXAMPLES,
    Accumulator,
    TooManyExamplesError,
    sum_from_blob,
    sum_to_blob,
)
from protocol.tensors import MalformedBlobError, tensors_to_blob

D = 7
elements = st.integers(-(2**31), 2**31 - 1) | st.sampled_from([-(2**31), 2**31 - 1])
contributions = st.lists(
    st.tuples(
        npst.arrays("i4", D, elements=elements),
        st.integers(1, MAX_TOTAL_EXAMPLES // 8),
    ),
    max_size=8,
)


def weighted_sum(updates, num_parameters):
    accumulator = Accumulator(num_parameters)
    for update, num_examples in updates:
        accumulator.add(update, num_examples)
    return accumulator.total


def exact(updates):
    """Compute the sum in Python's integers, which never overflow."""
    return [sum(int(u[i]) * n for u, n in updates) for i in range(D)]


@given(contributions)
def test_the_sum_is_exact(updates):
    total = weighted_sum(updates, D)
    assert total.dtype == np.int64
    assert total.tolist() == exact(updates)


@given(contributions, st.randoms())
def test_the_order_of_arrival_does_not_matter(updates, random):
    shuffled = list(updates)
    random.shuffle(shuffled)
    left, right = weighted_sum(updates, D), weighted_sum(shuffled, D)
    assert sum_to_blob(left) == sum_to_blob(right)


@given(contributions)
def test_the_sum_is_the_same_in_the_ring_of_secret_shares(updates):
    ring = sum((u.astype(np.uint64) * np.uint64(n) for u, n in updates), np.uint64(0))
    assert (weighted_sum(updates, D).view(np.uint64) == ring).all()


@pytest.mark.parametrize("extreme", [-(2**31), 2**31 - 1])
def test_the_largest_possible_sum_is_exact(extreme):
    update = np.full(D, extreme, dtype="i4")
    total = weighted_sum([(update, MAX_TOTAL_EXAMPLES)], D)
    assert total.tolist() == [extreme * MAX_TOTAL_EXAMPLES] * D
    assert np.abs(total).max() < 2**62


def test_vectors_longer_than_a_chunk_are_summed_throughout(monkeypatch):
    monkeypatch.setattr(aggregation, "_CHUNK", 3)
    update = np.arange(D, dtype="i4")
    assert weighted_sum([(update, 2), (update, 3)], D).tolist() == (5 * update).tolist()


def test_nothing_sums_to_zero():
    assert weighted_sum([], 2).tolist() == [0, 0]
    assert weighted_sum([(np.zeros(0, dtype="i4"), 1)], 0).tolist() == []


def test_too_many_examples_are_refused_and_change_nothing():
    accumulator = Accumulator(1)
    one = np.ones(1, dtype="i4")
    accumulator.add(one, MAX_TOTAL_EXAMPLES)
    with pytest.raises(TooManyExamplesError):
        accumulator.add(one, 1)
    assert accumulator.total.tolist() == [MAX_TOTAL_EXAMPLES]
    assert accumulator.num_examples == MAX_TOTAL_EXAMPLES


@pytest.mark.parametrize(
    ("update", "num_examples"),
    [
        (np.ones(2, dtype="i8"), 1),
        (np.ones(2, dtype="f4"), 1),
        (np.ones(3, dtype="i4"), 1),
        (np.ones((2, 1), dtype="i4"), 1),
        (np.ones(2, dtype="i4"), 0),
        (np.ones(2, dtype="i4"), -1),
    ],
)
def test_a_bad_contribution_is_refused(update, num_examples):
    accumulator = Accumulator(2)
    with pytest.raises(ValueError, match=r"isn't|at least"):
        accumulator.add(update, num_examples)
    assert accumulator.num_examples == 0


def test_the_total_cannot_be_changed_from_outside():
    accumulator = Accumulator(1)
    with pytest.raises(ValueError, match="read-only"):
        accumulator.total[0] = 1


@given(npst.arrays("i8", D))
def test_reading_a_sum_undoes_writing(total):
    assert (sum_from_blob(sum_to_blob(total), num_parameters=D) == total).all()


@pytest.mark.parametrize("total", [np.zeros(1), np.zeros((1, 1), dtype="i8")])
def test_only_an_int64_vector_is_written(total):
    with pytest.raises(ValueError, match="int64 vector"):
        sum_to_blob(total)


@pytest.mark.parametrize(
    "blob",
    [
        b"",
        tensors_to_blob({}),
        tensors_to_blob({"update": np.zeros(2, dtype="i8")}),
        tensors_to_blob({n: np.zeros(2, dtype="i8") for n in ("more", "sum")}),
        tensors_to_blob({"sum": np.zeros(2, dtype="u8")}),
        tensors_to_blob({"sum": np.zeros(3, dtype="i8")}),
    ],
)
def test_a_bad_sum_is_refused(blob):
    with pytest.raises(MalformedBlobError):
        sum_from_blob(blob, num_parameters=2)
