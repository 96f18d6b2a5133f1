"""The lottery of a round."""

from __future__ import annotations

import hashlib
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from protocol.cohort import compute_cohort_seed, draw_cohort

names = st.sets(st.text("abcdef0123-", min_size=1, max_size=8), max_size=20)
seeds = st.binary(min_size=32, max_size=32)


def test_the_seed_is_what_the_documentation_says() -> None:
    previous = bytes(range(32))
    expected = hashlib.sha256(
        b"folkmoot/cohort/v1\n" + previous + b"\0\0\0\0\0\0\0\7" + b"clinics"
    ).digest()
    assert compute_cohort_seed(previous, "clinics", 7) == expected


def test_the_draw_is_what_the_documentation_says() -> None:
    seed = bytes(32)
    tickets = {
        name: hashlib.sha256(seed + name.encode()).hexdigest() for name in "abcd"
    }
    lowest = sorted("abcd", key=tickets.__getitem__)[:2]
    assert draw_cohort(seed, "dcba", 2) == tuple(lowest)


def test_every_part_of_the_seed_counts() -> None:
    seeds = {
        compute_cohort_seed(previous, name, number)
        for previous in (bytes(32), b"\1" + bytes(31))
        for name in ("a", "b")
        for number in (1, 2, 2**63 - 1)
    }
    assert len(seeds) == 12


@given(seeds, names, st.integers(0, 25))
def test_a_cohort_is_drawn_without_replacement_in_any_order_of_the_agents(
    seed: bytes, agents: set[str], size: int
) -> None:
    cohort = draw_cohort(seed, agents, size)
    assert cohort == draw_cohort(seed, sorted(agents, reverse=True), size)
    assert len(set(cohort)) == len(cohort)
    assert len(cohort) == min(size, len(agents))
    assert agents.issuperset(cohort)


@given(seeds, names, st.integers(1, 25))
def test_a_larger_cohort_contains_the_smaller(
    seed: bytes, agents: set[str], size: int
) -> None:
    assert set(draw_cohort(seed, agents, size - 1)) <= set(
        draw_cohort(seed, agents, size)
    )


def test_everybody_is_drawn_about_equally_often() -> None:
    drawn = Counter(
        name
        for number in range(2_000)
        for name in draw_cohort(compute_cohort_seed(bytes(32), "f", number), "abcd", 1)
    )
    # Binomial(2000, 1/4), standard deviation 19.4; the seeds are fixed.
    assert all(abs(count - 500) < 80 for count in drawn.values())
