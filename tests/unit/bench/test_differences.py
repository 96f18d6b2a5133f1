"""`moot bench differences`: what it computes of two sums; no training here."""

import numpy as np
import pytest

from tests.bench.differences import Update, compute_cosines

AGENTS = ("ada", "bea", "cleo", "dora", "eve", "finn")


def draw(seed, *, common=0.0):
    """Return updates that have as much in common as is said."""
    generator = np.random.default_rng(seed)
    shared = common * np.random.default_rng(99).normal(size=2_000)
    return {
        name: Update(shared + generator.normal(size=2_000), 10 + place)
        for place, name in enumerate(AGENTS)
    }


@pytest.mark.parametrize("common", [0.0, 3.0])
def test_the_same_updates_show_the_missing_one_to_the_last_bit(common):
    updates = draw(1, common=common)
    for cosines in compute_cosines(updates, updates):
        assert cosines == pytest.approx([1] * len(AGENTS))


def test_updates_that_have_nothing_to_do_with_each_other_show_little():
    """It is one term of eleven, and of six without what the first sum's others say."""
    whole, own = compute_cosines(draw(1), draw(2))
    assert all(0.15 < cosine < 0.45 for cosine in whole)
    assert all(0.25 < cosine < 0.55 for cosine in own)


def test_what_all_have_in_common_is_not_an_agents_own():
    whole, own = compute_cosines(draw(1, common=3.0), draw(2, common=3.0))
    assert min(whole) > 0.6
    assert max(own) < 0.55
