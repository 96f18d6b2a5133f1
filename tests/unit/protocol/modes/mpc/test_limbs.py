"""Digits represent the integers that they were taken from, whatever was done to
them.
"""

import numpy as np
import pytest

from protocol.modes.mpc.limbs import NUM_LIMBS, from_limbs, to_limbs

EDGES = [0, 1, 2**16 - 1, 2**16, 2**255, 2**256 - 1]


def test_digits_stand_for_the_integers_they_were_taken_from():
    limbs = to_limbs(EDGES)

    assert limbs.shape == (NUM_LIMBS, len(EDGES))
    assert from_limbs(limbs.astype(np.int64)) == EDGES


@pytest.mark.parametrize("value", [-1, 2**256])
def test_only_256_bits_have_digits(value):
    with pytest.raises(OverflowError):
        to_limbs([value])


@pytest.mark.parametrize("limit", [2**62 - 1, -(2**62) + 1])
def test_the_largest_sums_of_64_bits_carry(limit):
    planes = np.full((NUM_LIMBS, 3), limit, dtype=np.int64)

    assert from_limbs(planes) == [sum(limit << 16 * i for i in range(NUM_LIMBS))] * 3


def test_sums_of_mixed_signs_carry():
    planes = np.array([[5, -5], [-1, 1], [0, -(2**60)]], dtype=np.int64)

    expected = [5 - 2**16, -5 + 2**16 - 2**92]
    assert from_limbs(planes) == expected
