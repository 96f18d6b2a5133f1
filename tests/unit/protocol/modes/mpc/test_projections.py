"""Projections of products of bits see what their lemmas say, and are exact."""

import itertools
from functools import cache

import numpy as np
import pytest

from protocol.modes.mpc import projections
from protocol.modes.mpc.limbs import EXACT_LIMIT
from protocol.modes.mpc.projections import NUM_PROJECTIONS, Projection
from protocol.modes.mpc.share_link import NUM_SUM_PROJECTIONS
from tests.slow_norm_prover import expand

SEED = bytes(range(32))
BITS, SIGNS = (0, 1), (1, -1)


def make_all_rows(factors, num_rows, row_length):
    """Return every row a ⊗ b there is, as long as a matrix that is flattened."""
    return np.array(
        [
            [x * y for x in a for y in b]
            for a in itertools.product(factors, repeat=num_rows)
            for b in itertools.product(factors, repeat=row_length)
        ],
        dtype=np.int16,
    )


@cache
def multiply_all(modulus, factors, num_rows, row_length):
    """Return all matrices over a ring but 0, centred, and their products with rows."""
    numbers = np.arange(modulus) - modulus // 2
    size = num_rows * row_length
    matrices = np.array(list(itertools.product(numbers, repeat=size)), dtype=np.int16)
    matrices = matrices[matrices.any(axis=1)]
    products = matrices @ make_all_rows(factors, num_rows, row_length).T
    return np.abs(matrices).max(axis=1), products % modulus


def find_worst_miss(modulus, factors, num_rows, row_length):
    """Return how often a row misses a difference, of all differences and offsets."""
    _, products = multiply_all(modulus, factors, num_rows, row_length)
    return max((products == c).mean(axis=1).max() for c in range(modulus))


def find_worst_range(modulus, limit, beyond, factors=BITS):
    """Return how often a row stays within ±limit, for all with an entry beyond."""
    largest, products = multiply_all(modulus, factors, 2, 2)
    products = products[largest > beyond]
    worst = 0
    for y in range(modulus):
        moved = (products + y) % modulus
        is_within = (moved <= limit) | (moved >= modulus - limit)
        worst = max(worst, is_within.mean(axis=1).max())
    return worst


RINGS = [(8, 2, 2), (4, 2, 3), (2, 3, 3), (7, 1, 4)]


@pytest.mark.parametrize(("modulus", "num_rows", "row_length"), RINGS)
def test_a_row_misses_no_difference_more_often_than_three_times_in_four(
    modulus, num_rows, row_length
):
    assert find_worst_miss(modulus, BITS, num_rows, row_length) == 0.75


@pytest.mark.parametrize(("modulus", "num_rows", "row_length"), RINGS[:3])
def test_rows_of_signs_would_miss_some_differences_always(
    modulus, num_rows, row_length
):
    # Half of the modulus: 2^63 in shares.
    assert find_worst_miss(modulus, SIGNS, num_rows, row_length) == 1


@pytest.mark.parametrize(("modulus", "limit"), [(11, 1), (13, 1)])
def test_a_row_stays_in_range_no_more_often_than_three_times_in_four(modulus, limit):
    assert find_worst_range(modulus, limit, 4 * limit) == 0.75


@pytest.mark.parametrize(("modulus", "limit"), [(11, 1), (13, 1)])
@pytest.mark.parametrize("factor", [2, 3])
def test_entries_below_four_times_the_limit_stay_in_range_more_often(
    modulus, limit, factor
):
    # Twice the limit is what rows of independent entries need.
    assert find_worst_range(modulus, limit, factor * limit) > 0.75


@pytest.mark.parametrize(("count", "bits"), [(NUM_PROJECTIONS, 128), (78, 32)])
def test_there_are_as_many_rows_as_it_takes(count, bits):
    assert 3**count * 2**bits < 4**count
    assert 3 ** (count - 1) * 2**bits > 4 ** (count - 1)
    assert (NUM_PROJECTIONS, NUM_SUM_PROJECTIONS) == (309, 78)


# Expansion


def expand_projection(num_rows, row_length, num_projections=NUM_PROJECTIONS):
    return Projection.expand(
        SEED,
        num_projections=num_projections,
        num_rows=num_rows,
        row_length=row_length,
    )


@pytest.mark.parametrize("num_rows", [1, 7, 8, 9])
def test_bits_are_those_of_the_description(num_rows):
    projection = expand_projection(num_rows + 1, 16)
    slow = np.array(expand(SEED, num_rows, 16))

    assert projection.shape == (NUM_PROJECTIONS, num_rows + 1, 16)
    products = np.einsum("ti,tj->tij", projection.of_rows, projection.of_columns)
    assert (products == slow).all()


def test_bits_are_balanced_and_cannot_be_written():
    projection = expand_projection(200, 1024)

    for bits in (projection.of_rows, projection.of_columns):
        assert set(np.unique(bits)) == {0, 1}
        # Five standard deviations of a binomial distribution with p = ½.
        assert abs(bits.sum() - bits.size / 2) < 5 * (bits.size / 4) ** 0.5
        assert not bits.flags.writeable


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_seed_has_32_bytes(size):
    with pytest.raises(ValueError, match=f"a seed of {size} bytes"):
        Projection.expand(bytes(size), num_projections=1, num_rows=1, row_length=8)


# Products with shares


@pytest.mark.parametrize("num_values", [1, 7, 8, 9, 127, 128, 129, 16 * 8 + 1, 33 * 8])
@pytest.mark.parametrize("kind", ["full", "half", "drawn"])
def test_products_are_exact(num_values, kind):
    projection = expand_projection(33, 8)
    values = {
        "full": np.full(num_values, 2**64 - 1, dtype=np.uint64),
        "half": np.full(num_values, 2**63, dtype=np.uint64),
        "drawn": np.random.default_rng(num_values).integers(
            0, 2**64, num_values, dtype=np.uint64
        ),
    }[kind]
    rows = np.einsum("ti,tj->tij", projection.of_rows, projection.of_columns)
    rows = rows.reshape(NUM_PROJECTIONS, -1)[:, :num_values].astype(object)
    expected = [int(value) % 2**64 for value in rows @ values.astype(object)]

    assert projection.multiply_words(values).tolist() == expected


def test_products_of_the_longest_rows_are_exact():
    length = projections.MAX_ROW_LENGTH
    ones = np.ones((2, length), dtype=np.uint8)
    projection = Projection(np.ones((2, 3), dtype=np.uint8), ones)
    values = np.full(3 * length, 2**64 - 1, dtype=np.uint64)

    expected = -3 * length % 2**64
    assert projection.multiply_words(values).tolist() == [expected] * 2
    assert length << projections._DIGIT_BITS <= EXACT_LIMIT
