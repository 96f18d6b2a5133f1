"""Floats become integers within the norm bound, whatever they are."""

import math

import numpy as np
import pytest

from protocol import clipping
from protocol.clipping import (
    COMMITTED_LIMIT,
    MAX_ATTEMPTS,
    NormBoundTooSmallError,
    clip_and_encode,
    compute_min_norm_bound,
    compute_squared_norm,
)
from protocol.encoding import NotFiniteError
from tests.vectors.shares.generate import SeededEntropy


def clip(delta, *, bits=16, bound=2**16, seed=0):
    return clip_and_encode(
        np.asarray(delta),
        fractional_bits=bits,
        norm_bound=bound,
        entropy=SeededEntropy(seed),
    ).values


def is_within(values, bound):
    exact = sum(int(value) ** 2 for value in values)
    return exact <= bound**2 and int(np.abs(values).max()) < COMMITTED_LIMIT


def test_integers_stay_as_they_are():
    delta = np.array([0, 1, -1, 5, -300], dtype=np.float32) / 2**16
    values = clip(delta)
    assert values.dtype == np.int64
    assert values.tolist() == [0, 1, -1, 5, -300]


@pytest.mark.parametrize("length", [1e-30, 0.5, 1.0, 10.0, 1e4, 1e30, 1e200])
def test_clipping_says_how_much_shorter_it_made_an_update(length):
    delta = np.array([0.6, -0.8]) * length
    found = clip_and_encode(
        delta, fractional_bits=10, norm_bound=2**10, entropy=SeededEntropy(0)
    )
    assert found.shrunk_by == pytest.approx(max(1.0, length), rel=2e-3)


def test_an_update_that_is_not_too_long_is_only_rounded():
    delta = np.random.default_rng(1).normal(0, 1e-4, 1000)
    scaled = delta * 2**16
    values = clip(delta)
    assert (np.abs(values - scaled) < 1).all()
    assert (values != np.floor(scaled)).any()
    assert (values != np.ceil(scaled)).any()


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-6, 1.0, 6e4])
def test_the_bound_holds(dtype, scale):
    delta = np.random.default_rng(2).uniform(-scale, scale, 5000).astype(dtype)
    for bound in (compute_min_norm_bound(5000), 300, 2**16, 2**21):
        assert is_within(clip(delta, bound=bound), bound)


@pytest.mark.parametrize(
    "delta",
    [
        [1.7e308] * 50,
        [5e-324] * 50,
        [1.7e308] + [5e-324] * 49,
        [-1.7e308] * 49 + [0.0],
        [0.0] * 50,
        [-0.0],
    ],
)
@pytest.mark.parametrize("bits", [0, 30])
def test_extreme_floats(delta, bits):
    for bound in (100, 2**19, 2**40):
        assert is_within(clip(delta, bits=bits, bound=bound), bound)


def test_a_too_long_update_keeps_its_direction():
    delta = np.random.default_rng(3).normal(0, 1, 2000)
    bound = 2**18
    values = clip(delta, bound=bound)
    cosine = values @ delta / np.linalg.norm(values) / np.linalg.norm(delta)
    assert cosine > 1 - 1e-6
    assert math.isqrt(compute_squared_norm(values)) > 0.999 * bound


def test_a_value_out_of_range_shrinks_the_whole_update():
    values = clip([64.0, 32.0, -16.0], bits=16, bound=2**40)
    assert values.tolist()[0] == COMMITTED_LIMIT - 1
    assert abs(int(values[1]) - 2**18) <= 1
    assert abs(int(values[2]) + 2**17) <= 1


def test_rounding_is_unbiased():
    # 20,000 draws of 0.3 steps: the mean's standard error is 0.0033.
    delta = np.full(20_000, 0.3 / 2**16)
    assert abs(clip(delta, bound=2**16).mean() - 0.3) < 4 * 0.0033
    assert abs(clip(-delta, bound=2**16).mean() + 0.3) < 4 * 0.0033


def test_the_same_entropy_gives_the_same_integers():
    delta = np.random.default_rng(4).normal(0, 1, 100)
    assert clip(delta).tolist() == clip(delta).tolist()
    assert clip(delta).tolist() != clip(delta, seed=1).tolist()


def test_a_golden_example():
    # Any change of scaling, radius or draws changes it.
    delta = np.array([0.5, -0.25, 0.125, 3.0, 1e-3, -1e-5])
    assert clip(delta, bits=4, bound=40, seed="golden").tolist() == GOLDEN


GOLDEN = [7, -3, 1, 39, 0, 0]


def test_too_long_roundings_are_drawn_again():
    class Entropy:
        calls = 0

        def __call__(self, num_bytes):
            self.calls += 1
            # Up, up, up, ... and in the third attempt down.
            return bytes(num_bytes) if self.calls < 3 else b"\xff" * num_bytes

    entropy = Entropy()
    delta = np.full(400, 0.9)
    bound = compute_min_norm_bound(400) + 5
    values = clip_and_encode(
        delta, fractional_bits=0, norm_bound=bound, entropy=entropy
    ).values
    assert entropy.calls == 3
    assert is_within(values, bound)


def test_the_last_resort_rounds_towards_zero():
    calls = []

    def up(num_bytes):
        calls.append(num_bytes)
        return bytes(num_bytes)

    delta = np.full(400, 0.9)
    bound = compute_min_norm_bound(400) + 5
    values, _ = clip_and_encode(delta, fractional_bits=0, norm_bound=bound, entropy=up)
    assert calls == [4 * 400] * MAX_ATTEMPTS
    assert values.tolist() == [0] * 400


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_refused(value):
    with pytest.raises(NotFiniteError, match=f"parameter 1 of the update is {value}"):
        clip([1.0, value, 2.0])


@pytest.mark.parametrize("num_values", [1, 4, 5, 100, 10**5])
def test_the_least_norm_bound(num_values):
    least = compute_min_norm_bound(num_values)
    allowance = num_values / 4 + math.sqrt(num_values) / 2
    assert least**2 > allowance
    assert (least - 1) ** 2 <= allowance + 2
    delta = np.ones(num_values, dtype=np.float32)
    assert is_within(clip(delta, bound=least), least)
    with pytest.raises(NormBoundTooSmallError, match=f"at least {least}"):
        clip(delta, bound=least - 1)


def test_least_norm_bounds_by_hand():
    # √(⌈d/4⌉ + ⌊√d⌋/2 + 1), and the next integer.
    known = {1: 2, 4: 2, 5: 3, 9: 3, 100: 6, 10**6: 501}
    assert {d: compute_min_norm_bound(d) for d in known} == known


@pytest.mark.parametrize(("num_values", "bound"), [(1, 2), (100, 6), (10**6, 2**16)])
def test_the_radius_leaves_room_for_rounding(num_values, bound):
    radius = clipping._compute_radius(num_values, bound)
    rounded = radius**2 + radius + num_values / 4 + math.sqrt(num_values) / 2
    assert bound**2 - 2 <= rounded <= bound**2


def test_most_roundings_at_the_radius_are_within_the_bound():
    # At least 39 % must be; with 500 trials 32 % would be more than 3 sigma away.
    bound = 40
    scaled = np.full(1000, clipping._compute_radius(1000, bound) / math.sqrt(1000))
    calls = []

    def entropy(num_bytes):
        calls.append(num_bytes)
        return drawn(num_bytes)

    drawn = SeededEntropy("radius")
    for _ in range(500):
        clip_and_encode(scaled, fractional_bits=0, norm_bound=bound, entropy=entropy)
    assert 500 / len(calls) > 0.32
    assert (1 - 0.39) ** MAX_ATTEMPTS < 2**-45


@pytest.mark.parametrize(
    ("values", "bound", "expected"),
    [
        ([3, -4], 5, True),
        ([3, -4], 4, False),
        ([2**19 - 1], 2**20, True),
        ([1 - 2**19], 2**20, True),
        ([2**19], 2**20, False),
        ([-(2**19)], 2**20, False),
    ],
)
def test_what_is_within_the_bounds(values, bound, expected):
    assert clipping._is_within(np.array(values), bound) is expected


@pytest.mark.parametrize("bits", [-1, 31])
def test_fractional_bits_out_of_range(bits):
    with pytest.raises(ValueError, match="fractional bits"):
        clip([1.0], bits=bits)


@pytest.mark.parametrize("shape", [(0,), (2, 2)])
def test_only_vectors(shape):
    with pytest.raises(ValueError, match="not a vector"):
        clip(np.zeros(shape))


def test_the_squared_norm_is_exact(monkeypatch):
    values = np.full(1000, -(2**19), dtype=np.int64)
    values[0] = 1
    exact = 999 * 2**38 + 1
    assert compute_squared_norm(values) == exact
    monkeypatch.setattr(clipping, "_CHUNK", 7)
    assert compute_squared_norm(values) == exact
    assert compute_squared_norm(values[:0]) == 0


def test_a_chunk_of_the_largest_squares_fits_64_bits():
    assert clipping._CHUNK * COMMITTED_LIMIT**2 < 2**63
    assert COMMITTED_LIMIT == 2**19
