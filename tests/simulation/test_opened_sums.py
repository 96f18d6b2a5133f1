"""A sum is opened once: what an attacker can solve for, over many histories.

The attacker has every party but one, the log, the aggregator and the timer. Mutants of
the rules show that the search would find a hole: each of them is found.
"""

from __future__ import annotations

import os

import pytest

import protocol.rounds
from protocol.parties import (
    Linked,
    PartyRefusesError,
    RefusalCode,
    Summed,
)
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.opened_sums import History, Memory, compute_rank, find_known

NUM_HISTORIES = 60
MAX_SEARCHED = 1_000
"""Histories in which a mutant must be found; the first that shows it ends the search.
"""
NUM_STAGES = 80


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


@pytest.mark.nightly
def test_nothing_is_known_over_thousands_of_histories():
    num_histories = int(os.environ.get("MOOT_HISTORIES", "5000"))
    assert search(range(10_000, 10_000 + num_histories)) is None


def play_honestly(seed):
    return History(seed, is_hostile=False).play(NUM_STAGES)


def is_troubled(history):
    """Return whether something is not as it must be where nobody lies.

    Mishaps alone, restarts and abandonment among them, never make the party refuse
    anything, and a round whose parts are all there is completed.
    """
    return bool(history.declined) or "abandoned" in history.endings


def find_trouble():
    return next(filter(is_troubled, map(play_honestly, range(MAX_SEARCHED))), None)


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


@pytest.mark.parametrize("mutant", [NoMemory, ByDigest, Pairwise, Forgetful, ByRound])
def test_a_memory_that_is_not_by_agents_and_durable_is_found_out(mutant):
    assert search(range(MAX_SEARCHED), make_memory=mutant) is not None


def test_abandoning_after_all_parts_is_found_out(monkeypatch):
    def abandon(state, request, leaf):
        return e.RoundAbandoned(
            round=request.round,
            reason=Reason.OPERATOR_ABANDONED,
            detail="",
            **protocol.rounds._cause(leaf),
        )

    monkeypatch.setattr(protocol.rounds, "_abandon", abandon)
    assert find_trouble() is not None


def test_drawing_who_may_have_been_summed_is_found_out(monkeypatch):
    def find_all(state):
        return state.agents

    monkeypatch.setattr(protocol.rounds, "find_drawable_agents", find_all)
    trouble = find_trouble()
    assert trouble is not None
    assert set(trouble.declined) == {RefusalCode.AGENT_SUMMED_BEFORE}
