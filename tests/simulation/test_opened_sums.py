"""A sum is opened once: what an attacker can solve for, over many histories.

The attacker has every party but one, the log, the aggregator and the timer. Mutants of
the rules show that the search would find a hole: each of them is found.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from dataclasses import replace
from functools import partial

import pytest

import protocol.rounds
from adapters.modes.mpc.memory import SAID_FILE, PartyLog, create_party_log
from protocol.facts import name_cause
from protocol.modes.mpc import phases
from protocol.modes.mpc.party_memory import (
    Linked,
    PartyRefusesError,
    RefusalCode,
    Summed,
)
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.opened_sums import History, Memory, compute_rank, find_known

NUM_HISTORIES = 40
MAX_SEARCHED = 1_000
"""Histories in which a mutant must be found; the first that shows it ends the search.
"""
NUM_STAGES = 80
WHAT_MAY_HAPPEN = (
    "restart",
    "older log",
    "founded anew",
    "revoked",
    "changed",
    "absent",
    "RoundStarted",
    "RoundRefused",
    "asked again after a seal",
    "open, abandoned",
    "sealed, abandoned",
    "sealed, kept",
    "part kept off the log",
    "part rejected",
    "model that did not move",
    "published by aggregator",
    "published by a party",
)


def search(seeds, **options):
    """Return the first history in which something is known that must not be."""
    for seed in seeds:
        history = History(seed, **options).play(NUM_STAGES)
        if history.find_leak() is not None:
            return history
    return None


# The attacker


def test_the_attacker_finds_what_a_difference_shows():
    every = {"a": 3, "b": 4, "c": 5, "d": 6}
    but_one = {"a": 3, "b": 4, "c": 5}
    assert find_known([every], fewer_than=4) is None
    assert find_known([every, but_one], fewer_than=2) == ("d",)
    assert find_known([every, {"a": 3, "b": 4}], fewer_than=2) is None
    assert find_known([every, {"a": 3, "b": 4}], fewer_than=3) == ("a", "b")
    # One weight differs: then it is not the difference that shows it.
    assert find_known([but_one, {"a": 3, "b": 4, "c": 6}], fewer_than=2) == ("c",)
    disjoint = [{"a": 1, "b": 2}, {"c": 1, "d": 2}]
    assert find_known(disjoint, fewer_than=2) is None
    assert find_known([], fewer_than=2) is None


def test_four_sets_that_differ_by_many_can_leave_one_agent_alone():
    """Why disjoint, and not at a distance: any two of these differ by four agents."""
    sets = ("abcdx", "efgh", "abef", "cdgh")
    rows = [dict.fromkeys(chosen, 1) for chosen in sets]
    for one in sets:
        for other in sets:
            assert one == other or len(set(one) ^ set(other)) >= 4
    assert find_known(rows, fewer_than=2) == ("x",)
    assert find_known(rows[:-1], fewer_than=2) is None


def test_rank():
    rows = [{"a": 1, "b": 2}, {"a": 2, "b": 4}, {"b": 1}]
    assert compute_rank(rows, ["a", "b"]) == 2
    assert compute_rank(rows[:2], ["a", "b"]) == 1
    assert compute_rank(rows, []) == 0


# The rules


def test_nothing_is_known_of_fewer_than_min_cohort_agents():
    histories = [History(seed).play(NUM_STAGES) for seed in range(NUM_HISTORIES)]
    assert [h.seed for h in histories if h.find_leak() is not None] == []
    # There was something to find, and something to refuse.
    sums = [len(rows) for h in histories for rows in h.opened.values()]
    assert sum(sums) > NUM_HISTORIES
    assert max(sums) > 1
    declined = {code for h in histories for code in h.declined}
    assert {RefusalCode.AGENT_SUMMED_BEFORE, RefusalCode.BASE_LEFT} <= declined
    happened = sum((h.happened for h in histories), Counter())
    assert [what for what in WHAT_MAY_HAPPEN if happened[what] < 5] == []


def test_either_of_the_two_defences_is_enough(monkeypatch):
    """A party's memory against whoever runs the log; the log's rules for who forgot."""
    forgetful = [play_honestly(seed, make_memory=NoMemory) for seed in range(20)]
    assert [h.seed for h in forgetful if h.find_leak() is not None] == []
    for module in (protocol.rounds, phases):
        monkeypatch.setattr(
            module, "find_drawable_agents", lambda s: frozenset(s.agents)
        )
    assert search(range(20)) is None
    # And without both it is found.
    assert search(range(MAX_SEARCHED), make_memory=NoMemory, is_hostile=False)


class OnDisk:
    """The memory that parties have. Where it is killed, a line may have been begun."""

    def __init__(self, directory):
        self.directory, self.founding = directory, 0
        create_party_log(directory)
        self.log = PartyLog(directory)

    def permit_links(self, asked):
        return self.log.permit_links(asked)

    def permit_sum(self, asked, *, min_cohort):
        self.log.permit_sum(asked, min_cohort=min_cohort)

    def restart(self):
        self.log.close()
        with (self.directory / SAID_FILE).open("ab") as file:
            file.write(b'{"sha256":"')
        self.log = PartyLog(self.directory)


def test_the_memory_that_parties_have_decides_as_the_simulated_one(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    num_restarts = 0
    for seed in range(10):
        real = History(seed, make_memory=partial(OnDisk, tmp_path / str(seed)))
        real.play(NUM_STAGES).memory.log.close()
        simulated = History(seed).play(NUM_STAGES)
        assert (real.opened, real.declined) == (simulated.opened, simulated.declined)
        num_restarts += real.happened["restart"]
    assert num_restarts > 10


@pytest.mark.nightly
@pytest.mark.parametrize("begin", range(10_000, 15_000, 500))
def test_nothing_is_known_over_thousands_of_histories(begin):
    assert search(range(begin, begin + 500)) is None


def play_honestly(seed, **options):
    return History(seed, is_hostile=False, **options).play(NUM_STAGES)


def is_troubled(history):
    """Return whether something is not as it must be where nobody lies.

    Mishaps alone, restarts and abandonment among them, never make the party refuse
    anything, and a round whose parts are all there is completed.
    """
    return bool(history.declined) or "abandoned" in history.endings


def find_trouble(**options):
    histories = (play_honestly(seed, **options) for seed in range(MAX_SEARCHED))
    return next(filter(is_troubled, histories), None)


def test_without_liars_nothing_is_refused_and_what_is_public_is_completed():
    histories = [play_honestly(seed) for seed in range(NUM_HISTORIES)]
    assert not any(map(is_troubled, histories))
    assert {ending for h in histories for ending in h.endings} == {"published"}
    assert sum(h.num_published for h in histories) > 2 * NUM_HISTORIES
    assert all(h.find_leak() is None for h in histories)


# Mutants


class NoMemory(Memory):
    """A party that remembers nothing."""

    def permit_links(self, asked):
        return {}

    def permit_sum(self, asked, *, min_cohort):
        if len(asked.agents) < min_cohort:
            raise PartyRefusesError(RefusalCode.COHORT_TOO_SMALL, "")


class ByDigest(NoMemory):
    """One that compares digests of commitments, and keeps to one sum a round."""

    def permit_sum(self, asked, *, min_cohort):
        super().permit_sum(asked, min_cohort=min_cohort)
        digests = {digest for _, digest, _ in asked.updates}
        for given in self.known:
            if given == asked:
                return
            same_round = (given.round, given.cause) == (asked.round, asked.cause)
            if same_round or digests & {digest for _, digest, _ in given.updates}:
                raise PartyRefusesError(RefusalCode.AGENT_SUMMED_BEFORE, "")
        self.known.append(asked)


class Pairwise(NoMemory):
    """One that demands of every two sums of a base that they differ by min_cohort."""

    def permit_sum(self, asked, *, min_cohort):
        super().permit_sum(asked, min_cohort=min_cohort)
        for given in self.known:
            is_other = given.base_model == asked.base_model and given != asked
            if is_other and len(given.agents ^ asked.agents) < min_cohort:
                raise PartyRefusesError(RefusalCode.AGENT_SUMMED_BEFORE, "")
        self.known.append(asked)


class Forgetful(Memory):
    """One that begins anew when it is started again."""

    def restart(self):
        self.known = []


class ByRound(Memory):
    """One that keeps a round's sums apart, and not those of a base."""

    def permit_sum(self, asked, *, min_cohort):
        for given in self.known:
            is_same = isinstance(given, Summed) and given.round == asked.round
            if is_same and given != asked and given.agents & asked.agents:
                raise PartyRefusesError(RefusalCode.AGENT_SUMMED_BEFORE, "")
        self.known.append(asked)

    def permit_links(self, asked):
        assert isinstance(asked, Linked)
        return {}


class ByFounding(Memory):
    """One that begins anew with each founding of a federation."""

    def __init__(self):
        self.of = defaultdict(list)
        super().__init__()

    @property
    def known(self):
        return self.of[self.founding]

    @known.setter
    def known(self, known):
        self.of[getattr(self, "founding", 0)] = known


class ThisBaseOnly(Memory):
    """One that knows of a base model that it left not even that."""

    def permit_sum(self, asked, *, min_cohort):
        super().permit_sum(asked, min_cohort=min_cohort)
        base = asked.base_model
        self.known = [said for said in self.known if said.base_model == base]


class AnyBase(Memory):
    """One that keeps a federation's sums together, over whatever base model."""

    def permit_links(self, asked):
        return super().permit_links(replace(asked, base_model=bytes(32)))

    def permit_sum(self, asked, *, min_cohort):
        super().permit_sum(replace(asked, base_model=bytes(32)), min_cohort=min_cohort)


MUTANTS = NoMemory, ByDigest, Pairwise, Forgetful, ByRound, ByFounding, ThisBaseOnly


@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_memory_that_is_not_by_agents_and_durable_is_found_out(mutant):
    assert search(range(MAX_SEARCHED), make_memory=mutant) is not None


def test_a_memory_that_is_not_by_base_model_stops_honest_rounds():
    assert search(range(20), make_memory=AnyBase) is None
    trouble = find_trouble(make_memory=AnyBase)
    assert trouble is not None
    assert set(trouble.declined) == {RefusalCode.AGENT_SUMMED_BEFORE}


def test_abandoning_after_all_parts_is_found_out(monkeypatch):
    def abandon(state, request, leaf):
        return e.RoundAbandoned(
            round=request.round,
            reason=Reason.OPERATOR_ABANDONED,
            detail="",
            **name_cause(leaf),
        )

    monkeypatch.setattr(protocol.rounds, "_abandon", abandon)
    assert find_trouble() is not None


def test_drawing_who_may_have_been_summed_is_found_out(monkeypatch):
    def find_all(state):
        return frozenset(state.agents)

    for module in (protocol.rounds, phases):
        monkeypatch.setattr(module, "find_drawable_agents", find_all)
    trouble = find_trouble()
    assert trouble is not None
    assert set(trouble.declined) == {RefusalCode.AGENT_SUMMED_BEFORE}
