"""Ledger nodes among twins and forgers: never two truths, and always an end to trouble.

Ten thousand scenarios of four nodes, fewer of seven and of changing node sets. A
failure names its seed; ``World(seed, ...)`` as in `SCENARIOS` repeats it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

import pytest

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


def make_four(seed: int, kind: type[Consensus] = Consensus) -> World:
    """One of four is two, or a forger; in some scenarios all are honest."""
    liar = "abcd"[seed % 4]
    if seed % 5 == 3:
        return World(seed, FOUR, forger=liar, kind=kind)
    return World(seed, FOUR, twins="" if seed % 10 == 9 else liar, kind=kind)


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


@pytest.mark.parametrize("part", range(10))
def test_four_nodes_agree_and_go_on(monkeypatch, part):
    use_fake_signatures(monkeypatch)
    tally = play(make_four, range(1_000 * part, 1_000 * (part + 1)), num_steps=60)
    # Every scenario ended well, or play had raised. They are worth something, since:
    assert tally.rounds.total() == 1_000
    assert max(tally.rounds) < MAX_ROUNDS
    assert tally.final[0] < 750  # blocks became final in the midst of trouble,
    assert sum(tally.final[n] for n in tally.final if n > 2) > 50  # and many,
    assert sum(tally.epochs[n] for n in tally.epochs if n > 1) > 150  # over epochs,
    assert tally.crashed.keys() == CRASHES  # between crashes everywhere,
    assert tally.accused > 100  # and liars were convicted.


def test_seven_nodes_agree_and_go_on(monkeypatch):
    use_fake_signatures(monkeypatch)
    tally = play(make_seven, range(300), num_steps=120)
    assert tally.rounds.total() == 300
    assert tally.final[0] < 250
    assert tally.accused > 30


def test_nodes_agree_while_they_change(monkeypatch):
    use_fake_signatures(monkeypatch)
    tally = play(make_eras, range(600), num_steps=120)
    assert tally.rounds.total() == 600
    assert tally.eras[1] > 100
    assert tally.eras[2] > 30


def test_with_real_signatures_it_is_the_same(monkeypatch):
    scenarios = range(30)
    use_fake_signatures(monkeypatch)
    fake = play(make_four, scenarios, num_steps=60)
    monkeypatch.undo()
    monkeypatch.delattr(FakeKey, "sign")  # what is under it is Ed25519
    assert play(make_four, scenarios, num_steps=60) == fake


def find_breach(make: Callable[[int], World], num_scenarios: int) -> str:
    for seed in range(num_scenarios):
        try:
            play(make, range(seed, seed + 1), num_steps=60)
        except BrokenWorldError as error:
            return str(error)
    return "nobody noticed"


@pytest.mark.parametrize("kind", [WithoutR2, WithoutR3])
def test_an_honest_node_that_is_not_is_accused(monkeypatch, kind):
    use_fake_signatures(monkeypatch)
    breach = find_breach(lambda seed: make_four(seed, kind), 500)
    assert breach.startswith("an honest node was accused")


def test_two_of_four_are_no_quorum(monkeypatch):
    use_fake_signatures(monkeypatch)
    monkeypatch.setattr(NodeSet, "quorum", property(lambda _: 2))
    breach = find_breach(make_four, 500)
    assert breach.startswith("two final blocks at height")
