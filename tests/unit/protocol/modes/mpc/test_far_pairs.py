"""Bits say which updates are far apart; an agent far from most others is flagged."""

import itertools

import numpy as np
import pytest

from protocol.modes.mpc.far_pairs import (
    MalformedBitsError,
    compute_num_pairs,
    encode_far,
    flag,
    make_symmetric,
    parse_far,
)


def matrix(num_agents, *pairs):
    far = np.zeros((num_agents, num_agents), dtype=np.bool_)
    for i, j in pairs:
        far[i, j] = far[j, i] = True
    return far


def test_bits_are_in_the_order_of_pairs():
    far = matrix(5, (0, 1), (1, 2), (3, 4))
    # 01 02 03 04 12 13 14 23 | 24 34
    assert encode_far(far) == bytes([0b10001000, 0b01000000])


@pytest.mark.parametrize("num_agents", [1, 2, 3, 4, 5, 17])
def test_bits_come_back(num_agents):
    rng = np.random.default_rng(num_agents)
    bits = rng.integers(0, 2, compute_num_pairs(num_agents)).astype(np.bool_)
    far = make_symmetric(bits, num_agents=num_agents)
    for (i, j), bit in zip(
        itertools.combinations(range(num_agents), 2), bits, strict=True
    ):
        assert far[i, j] == far[j, i] == bit
    data = encode_far(far)
    np.testing.assert_array_equal(parse_far(data, num_agents=num_agents), far)


@pytest.mark.parametrize(
    "data",
    [b"", bytes(2), bytes([0b00000010]), bytes([0b00000001])],
    ids=["short", "long", "a seventh bit", "an eighth bit"],
)
def test_malformed_bits_are_refused(data):
    with pytest.raises(MalformedBitsError):
        parse_far(data, num_agents=4)


def test_an_agent_far_from_more_than_half_is_flagged():
    # Among five, two of the others are half and no more.
    assert flag(matrix(5, (0, 1), (0, 2))) == frozenset()
    assert flag(matrix(5, (0, 1), (0, 2), (0, 3))) == {0}
    # Among four, two of three are.
    assert flag(matrix(4, (0, 1), (0, 2))) == {0}
    assert flag(matrix(2, (0, 1))) == {0, 1}
    assert flag(matrix(1)) == frozenset()


def test_outliers_are_flagged_whether_or_not_they_are_near_each_other():
    outliers = [(i, j) for i in (2, 5) for j in range(10) if j not in {2, 5}]
    assert flag(matrix(10, *outliers)) == {2, 5}
    assert flag(matrix(10, *outliers, (2, 5))) == {2, 5}


@pytest.mark.parametrize(
    "far",
    [
        np.zeros((2, 3), dtype=np.bool_),
        np.zeros(4, dtype=np.bool_),
        np.zeros((2, 2), dtype=np.int64),
        np.array([[False, True], [False, False]]),
        np.array([[True, False], [False, False]]),
    ],
    ids=["oblong", "vector", "integers", "one-sided", "far from oneself"],
)
def test_a_malformed_matrix_is_refused(far):
    with pytest.raises(ValueError, match="must be"):
        flag(far)
    with pytest.raises(ValueError, match="must be"):
        encode_far(far)
