"""Work grows with the input, and not with its square: every parser, at n and at 4n."""

import itertools
import time
from contextlib import suppress

import pytest

from tests.fuzz.mutations import FILLERS
from tests.fuzz.targets import TARGETS, Target

NUM_TIMES = 4
"""How many times as long the second input is."""
MAX_RATIO = 2.5 * NUM_TIMES
"""Work that is linear gives 4, with a square 16."""
LARGEST_BYTES = 2**15
NOTHING_S = 0.002
"""What takes less at 4n is no work, whatever the ratio."""
INFINITE_S = float("inf")


def measure(target, data):
    """Return the processor time that an input takes."""
    started = time.thread_time()
    with suppress(*target.errors):
        target.parse(data)
    return time.thread_time() - started


def shapes_of(target):
    """Yield functions from a size to an input that may cost much, by name."""
    yield from target.shapes.items()
    seed = max(target.seeds(), key=len)[:2_048]
    middle = len(seed) // 2
    for at, filler in itertools.product((0, middle, len(seed)), FILLERS):
        yield (
            f"{filler!r} at {at} of a good one",
            lambda n, at=at, f=filler: seed[:at] + f * (n // len(f)) + seed[at:],
        )


def find_ratio(target, shape, n):
    """Return how much longer 4n takes than n; 0 if it takes no time at all.

    Other processes make a measurement longer and never shorter, so the least of some
    counts; a ratio that is high by bad luck is measured again.
    """
    repair = target.repair or bytes
    short, long = repair(shape(n)), repair(shape(NUM_TIMES * n))
    at_n, at_4n, spent_s = INFINITE_S, INFINITE_S, 0.0
    while True:
        took_s = measure(target, long)
        at_4n = min(at_4n, took_s)
        if at_4n < NOTHING_S:
            return 0.0
        at_n = min(at_n, *(measure(target, short) for _ in range(3)))
        spent_s += took_s
        if at_4n / at_n < MAX_RATIO or spent_s > 1.0:
            return at_4n / at_n


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target.name)
def test_work_is_linear_in_foreign_bytes(target: Target):
    n = min(target.max_bytes, LARGEST_BYTES) // NUM_TIMES
    for name, shape in shapes_of(target):
        ratio = find_ratio(target, shape, n)
        assert ratio < MAX_RATIO, f"{name}: {ratio:.1f} times as long at {4 * n} bytes"


def test_what_is_quadratic_is_seen():
    def parse(data):
        for start in range(0, len(data), 16):
            data[start:].count(b"x")

    target = Target(name="bad", parse=parse, errors=(), seeds=lambda: [b"x"])
    assert find_ratio(target, lambda n: b"x" * n, 2**14) > MAX_RATIO
