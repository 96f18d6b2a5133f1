"""Sketches are linear and keep distances."""

import hashlib

import numpy as np
import pytest

from protocol.modes.mpc.far_pairs import MAX_FAR_THRESHOLD
from protocol.modes.mpc.norm_proof import expand_stream
from protocol.modes.mpc.sketches import MAX_LOAD, NUM_BUCKETS, Sketch, compute_threshold

SEED = bytes(range(32))
NUM_VALUES = 5_000


@pytest.fixture(scope="module")
def sketch():
    return Sketch.expand(SEED, num_values=NUM_VALUES)


def words(rng, *shape):
    return rng.integers(0, 2**64, shape, dtype=np.uint64)


def test_a_sketch_is_what_its_definition_says_value_by_value(sketch):
    key = hashlib.sha256(b"folkmoot/sketch/v1\n" + SEED).digest()
    stream = expand_stream(key, 2 * NUM_VALUES)
    values = words(np.random.default_rng(1), NUM_VALUES)
    expected = [0] * NUM_BUCKETS
    for k, value in enumerate(values):
        word = int.from_bytes(stream[2 * k : 2 * k + 2], "little")
        sign = -1 if word & 512 else 1
        expected[word % 512] += sign * int(value)
    assert [int(word) for word in sketch.compute(values)] == [
        total % 2**64 for total in expected
    ]


def test_sketches_of_shares_are_shares_of_the_sketch(sketch):
    rng = np.random.default_rng(2)
    values = rng.integers(-(2**18), 2**18, NUM_VALUES).astype(np.uint64)
    shares = words(rng, 2, NUM_VALUES)
    last = values - shares.sum(axis=0, dtype=np.uint64)
    total = sum(sketch.compute(share) for share in [*shares, last])
    np.testing.assert_array_equal(total, sketch.compute(values))


def test_rounds_have_their_own_sketches(sketch):
    other = Sketch.expand(bytes(32), num_values=NUM_VALUES)
    assert (other.buckets != sketch.buckets).mean() > 0.9
    assert 0.4 < (other.signs != sketch.signs).mean() < 0.6


def test_buckets_and_signs_are_even():
    sketch = Sketch.expand(SEED, num_values=512 * 1_000)
    load = np.bincount(sketch.buckets, minlength=512)
    assert len(load) == 512
    # 8 standard deviations; for all buckets together below 2^-40.
    assert abs(load - 1_000).max() < 8 * 1_000**0.5
    assert set(sketch.signs) == {1, 2**64 - 1}
    assert abs(int((sketch.signs == 1).sum()) - 256_000) < 8 * (512_000 / 4) ** 0.5


@pytest.mark.parametrize("shape", ["dense", "sparse"])
def test_squared_distances_are_right_on_average_within_a_sixteenth(shape):
    rng = np.random.default_rng(3)
    values = np.zeros(NUM_VALUES, dtype=np.int64)
    # One value has no error at all; few have the most that there can be.
    count = NUM_VALUES if shape == "dense" else 40
    values[:count] = rng.integers(-500, 500, count)
    true = int((values * values).sum())
    ratios = []
    for seed in range(400):
        sketch = Sketch.expand(seed.to_bytes(32, "big"), num_values=NUM_VALUES)
        sketched = sketch.compute(values.astype(np.uint64)).astype(np.int64)
        ratios.append(int((sketched * sketched).sum()) / true)
    # The mean of 400 has a deviation of 1/320; the deviation itself one of about 1/28.
    assert abs(np.mean(ratios) - 1) < 5 / 320
    assert np.std(ratios) < 1 / 16 * (1 + 5 / 28)
    if shape == "dense":
        assert np.std(ratios) > 1 / 16 * (1 - 5 / 28)


def test_a_sketch_that_could_wrap_is_refused():
    signs = np.ones(MAX_LOAD + 1, dtype=np.uint64)
    buckets = np.zeros(MAX_LOAD + 1, dtype=np.intp)
    Sketch(buckets[1:], signs[1:])
    with pytest.raises(ValueError, match="could wrap"):
        Sketch(buckets, signs)


def test_the_longest_distance_in_the_fullest_bucket_stays_below_the_limit():
    # ‖x - y‖ < 2^20, all of it in one bucket, as Cauchy-Schwarz has it at worst.
    assert MAX_LOAD * (2**20) ** 2 == 2**62 == MAX_FAR_THRESHOLD


def test_a_seed_of_another_size_is_refused():
    with pytest.raises(ValueError, match="31 bytes"):
        Sketch.expand(bytes(31), num_values=1)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(NUM_VALUES - 1, dtype=np.uint64),
        np.zeros((1, NUM_VALUES), dtype=np.uint64),
        np.zeros(NUM_VALUES, dtype=np.int64),
    ],
    ids=["short", "matrix", "signed"],
)
def test_values_of_another_shape_or_type_are_refused(sketch, values):
    with pytest.raises(ValueError, match="takes as many uint64"):
        sketch.compute(values)


@pytest.mark.parametrize(
    ("bound", "numerator", "denominator", "expected"),
    [
        (100, 1, 1, 10_000),
        (100, 3, 2, 22_500),
        (10, 1, 3, 11),  # 11.11…
        (2**31, 1, 1, 2**62),
        (1, 1, 1, 1),
    ],
)
def test_thresholds_are_rounded_down(bound, numerator, denominator, expected):
    threshold = compute_threshold(bound, numerator=numerator, denominator=denominator)
    assert threshold == expected


@pytest.mark.parametrize(
    ("bound", "numerator", "denominator"),
    [(0, 1, 1), (1, 0, 1), (1, 1, 0), (-1, 1, 1), (1, 1, 2), (2**31, 2, 1)],
)
def test_thresholds_out_of_range_are_refused(bound, numerator, denominator):
    with pytest.raises(ValueError, match="must be"):
        compute_threshold(bound, numerator=numerator, denominator=denominator)
