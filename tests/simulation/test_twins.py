"""Ledger nodes among twins and forgers: never two truths, and always an end to trouble.

In full (`tests.simulation.full`) ten thousand scenarios of four nodes one of which is
two, unmodified; fewer of four with other liars, of seven, and of changing node sets. A
failure names its seed: what makes that kind of scenario makes the same one of it again.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Final

import pytest
from _pytest.mark import ParameterSet

from ledger.attestations import NodeSet
from ledger.consensus import Consensus
from tests.simulation.broken_nodes import WithoutR2, WithoutR3
from tests.simulation.ledger_world import (
    MAX_ROUNDS,
    BrokenWorldError,
    FakeKey,
    World,
    make_nodes,
    use_fake_signatures,
)

FOUR: Final = make_nodes("abcd")
SEVEN: Final = make_nodes("abcdefg")
ERAS: Final = (FOUR, make_nodes("cdef", 1), make_nodes("cdefghi", 2))


def make_twins(seed: int, kind: type[Consensus] = Consensus) -> World:
    """One of four is two, with the code of an honest node."""
    twin = "abcd"[seed % 4]
    return World(seed, FOUR, twins=twin, kind=kind, twin_kind=Consensus)


def make_liars(seed: int) -> World:
    """One of four is a forger, or two that never fall silent; in a few none is."""
    liar = "abcd"[seed % 4]
    if seed % 10 == 9:
        return World(seed, FOUR)
    return World(seed, FOUR, **{"forger" if seed % 3 else "twins": liar})


def make_seven(seed: int) -> World:
    """Two of seven are dishonest."""
    if seed % 3:
        return World(seed, SEVEN, twins=("ab", "cf", "ag")[seed % 3])
    return World(seed, SEVEN, twins="d", forger="b")


def make_eras(seed: int) -> World:
    """Two of four nodes leave, then three come; one of those who stay lies."""
    liar = "abcdef"[seed % 6]
    return World(seed, *ERAS, twins=liar, max_height=14)


@dataclass
class Tally:
    """What happened in many scenarios, to see that they are not all the same."""

    final: Counter[int] = field(default_factory=Counter)
    rounds: Counter[int] = field(default_factory=Counter)
    epochs: Counter[int] = field(default_factory=Counter)
    eras: Counter[int] = field(default_factory=Counter)
    crashed: Counter[str] = field(default_factory=Counter)
    accused: int = 0


def play(make: Callable[[int], World], seeds: range, num_steps: int) -> Tally:
    """Play scenarios from start to end; every one must come to a good end."""
    tally = Tally()
    for seed in seeds:
        world = make(seed)
        try:
            world.live(num_steps)
            tally.final[len(world.finals)] += 1
            tally.rounds[world.heal()] += 1
            world.check_honesty()
        except Exception as error:
            error.add_note(f"seed {seed}")
            raise
        tally.epochs[max(m.consensus.epoch for m in world.honest)] += 1
        tally.eras[max(m.era for m in world.honest)] += 1
        tally.crashed += world.crashed
        tally.accused += bool(world.evidence)
    return tally


CRASHES: Final = {
    "before the votes were stored",
    "after the votes were stored",
    "after sending",
    "with a new certificate",
    "between final and cosigned",
    "idle",
}


def in_full(*parameters: object) -> ParameterSet:
    return pytest.param(*parameters, marks=pytest.mark.full)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (make_twins, 0),
        *(in_full(make_twins, part) for part in range(1, 10)),
        (make_liars, 0),
        *(in_full(make_liars, part) for part in range(1, 3)),
    ],
)
def test_four_nodes_agree_and_go_on(monkeypatch, make, part):
    use_fake_signatures(monkeypatch)
    tally = play(make, range(1_000 * part, 1_000 * (part + 1)), num_steps=60)
    # Every scenario ended well, or play had raised. They are worth something, since:
    assert tally.rounds.total() == 1_000
    assert max(tally.rounds) < MAX_ROUNDS
    assert tally.final[0] < 750  # blocks became final in the midst of trouble,
    assert sum(tally.final[n] for n in tally.final if n > 2) > 50  # and many,
    assert sum(tally.epochs[n] for n in tally.epochs if n > 1) > 150  # over epochs,
    assert tally.crashed.keys() == CRASHES  # between crashes everywhere,
    assert tally.accused > 100  # and liars were convicted.


@pytest.mark.parametrize("number", [100, in_full(300)])
def test_seven_nodes_agree_and_go_on(monkeypatch, number):
    use_fake_signatures(monkeypatch)
    tally = play(make_seven, range(number), num_steps=120)
    assert tally.rounds.total() == number
    assert tally.final[0] < number * 5 / 6
    assert tally.accused > number / 10


@pytest.mark.parametrize("number", [200, in_full(600)])
def test_nodes_agree_while_they_change(monkeypatch, number):
    use_fake_signatures(monkeypatch)
    tally = play(make_eras, range(number), num_steps=120)
    assert tally.rounds.total() == number
    assert tally.eras[1] > number / 6
    assert tally.eras[2] > number / 20


@pytest.mark.parametrize("make", [make_twins, make_liars])
def test_with_real_signatures_it_is_the_same(monkeypatch, make):
    scenarios = range(20)
    use_fake_signatures(monkeypatch)
    fake = play(make, scenarios, num_steps=60)
    monkeypatch.undo()
    monkeypatch.delattr(FakeKey, "sign")  # what is under it is Ed25519
    assert play(make, scenarios, num_steps=60) == fake


def finds(breach: str, make: Callable[[int], World], num_scenarios: int) -> bool:
    """Return whether something is noticed in any of many scenarios.

    A world that is broken may first show it in another way.
    """
    for seed in range(num_scenarios):
        try:
            play(make, range(seed, seed + 1), num_steps=60)
        except BrokenWorldError as error:
            if str(error).startswith(breach):
                return True
    return False


@pytest.mark.parametrize("kind", [WithoutR2, WithoutR3])
def test_an_honest_node_that_is_not_is_accused(monkeypatch, kind):
    use_fake_signatures(monkeypatch)
    make = partial(make_twins, kind=kind)
    assert finds("an honest node was accused", make, 500)


def test_two_of_four_are_no_quorum(monkeypatch):
    use_fake_signatures(monkeypatch)
    monkeypatch.setattr(NodeSet, "quorum", property(lambda _: 2))
    assert finds("two final blocks at height", make_twins, 500)
