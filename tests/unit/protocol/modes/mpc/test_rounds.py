"""The rules of an MPC round: commit, close, link, sum."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from protocol.modes.mpc.phases import compute_sum_seed
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import events as e
from schemas.reasons import Reason
from tests.sealed import list_sealed
from tests.simulation.federation import (
    AGENTS,
    COMPARING_CONFIG,
    COMPARISON,
    CONFIG,
    DURATION_MS,
    MPC_CONFIG,
    NOW_MS,
    PARTIES,
    Run,
    admitted,
    aggregate,
    checked,
    committed,
    compared,
    deadline,
    declined,
    linked,
    make_blob,
    partial,
    request,
    revoked,
    start,
    update,
)

Rounds = Run[RoundsState, e.RoundFact]
DEADLINE_MS = NOW_MS + DURATION_MS

_clock = itertools.count(NOW_MS)


def opened(*agents: str, **changes: Any) -> Rounds:
    run = start(DECIDER).given(replace(MPC_CONFIG, **changes))
    run.given(*map(admitted, agents or AGENTS))
    assert kinds(run.when(request(1, next(_clock)))) == ["RoundStarted"]
    return run


def closed(*agents: str, **changes: Any) -> tuple[Rounds, dict[str, int]]:
    """A round whose every agent has committed, and where."""
    agents = agents or AGENTS
    run = opened(*agents, **changes)
    indexes = {}
    for agent_id in agents:
        indexes[agent_id] = run.next_index
        facts = run.when(committed(agent_id))
    assert kinds(facts) == ["CommitmentsClosed"]
    return run, indexes


def linked_by_all(*agents: str, **changes: Any) -> tuple[Rounds, dict[str, int]]:
    run, indexes = closed(*agents, **changes)
    for party in PARTIES:
        assert run.when(linked(party)) == []
    return run, indexes


def sealed(*agents: str) -> Rounds:
    run, indexes = linked_by_all(*agents)
    facts = run.when(checked(*indexes.values()))
    assert kinds(facts)[-1] == "RoundSealed"
    return run


def kinds(facts: list[e.RoundFact]) -> list[str]:
    return [type(fact).__name__ for fact in facts]


def reasons(facts: list[e.RoundFact]) -> list[tuple[str, str]]:
    return [(type(fact).__name__, getattr(fact, "reason", "")) for fact in facts]


def rejected(reason: Reason) -> list[tuple[str, str]]:
    return [("ContributionRejected", reason)]


UNEXPECTED = [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]


def test_a_whole_round() -> None:
    run = sealed()
    for party in PARTIES:
        assert run.when(partial(party, 4, 40)) == []
    (published,) = run.when(aggregate(4, 40))
    assert isinstance(published, e.AggregatePublished)
    assert run.state.current is None
    assert run.state.version == 1
    assert kinds(run.when(request(2, next(_clock)))) == ["RoundStarted"]


# Committing


def test_the_set_is_closed_when_everybody_answered() -> None:
    run = opened()
    for agent_id in AGENTS[:3]:
        assert run.when(committed(agent_id)) == []
    facts = run.when(declined("dan"), at_ms=NOW_MS + 7)
    assert kinds(facts) == ["ContributionRejected", "CommitmentsClosed"]
    fact = facts[-1]
    assert isinstance(fact, e.CommitmentsClosed)
    assert fact.num_commitments == 3
    leaves = [leaf for leaf in run.leaves if isinstance(leaf.event, e.UpdateCommitted)]
    assert (
        fact.sum_seed
        == hashlib.sha256(
            b"folkmoot/sum-projection/v1\n"
            + (1).to_bytes(8, "big")
            + b"".join(leaf.leaf_hash for leaf in leaves)
            + b"clinics"
        ).digest()
    )


def test_the_seed_does_not_depend_on_the_order_of_arrival() -> None:
    seeds = set()
    for order in itertools.permutations(AGENTS[:3]):
        run = opened(*AGENTS[:3])
        for agent_id in order:
            facts = run.when(committed(agent_id))
        seeds.add(run.state.current.begun["closed"].sum_seed)  # type: ignore[union-attr]
    assert len(seeds) == 1
    assert isinstance(facts[0], e.CommitmentsClosed)
    other = opened(*AGENTS[:3])
    for agent_id in AGENTS[:3]:
        other.when(committed(agent_id, num_examples=11))
    assert other.state.current.begun["closed"].sum_seed not in seeds  # type: ignore[union-attr]


def test_the_seed_is_of_one_round_of_one_federation_and_of_its_set() -> None:
    hashes = [bytes(32), b"\1" * 32]
    seeds = [
        compute_sum_seed("clinics", 1, hashes),
        compute_sum_seed("banks", 1, hashes),
        compute_sum_seed("clinics", 2, hashes),
        compute_sum_seed("clinics", 1, hashes[:1]),
        compute_sum_seed("clinics", 1, hashes[::-1]),
    ]
    assert len(set(seeds)) == len(seeds)


def test_the_set_is_closed_at_the_deadline() -> None:
    run = opened().given(committed("ana"), committed("bea"))
    *silent, fact = run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert reasons(silent) == rejected(Reason.NO_ANSWER) * 2
    assert isinstance(fact, e.CommitmentsClosed)
    assert fact.num_commitments == 2
    assert reasons(run.when(committed("cem"))) == rejected(Reason.LATE)


def test_too_few_commitments_end_the_round() -> None:
    run = opened().given(committed("ana"))
    *silent, fact = run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert reasons(silent) == rejected(Reason.NO_ANSWER) * 3
    assert reasons([fact]) == [("RoundAbandoned", Reason.NOT_ENOUGH_CONTRIBUTIONS)]


def test_a_commitment_is_for_this_round_its_model_and_its_parties() -> None:
    run = opened()
    assert reasons(run.when(committed("eve"))) == rejected(Reason.NOT_IN_COHORT)
    assert reasons(run.when(committed("ana", 2))) == rejected(Reason.WRONG_ROUND)
    bad = committed("ana", base_model_sha256=bytes(32))
    assert reasons(run.when(bad)) == rejected(Reason.WRONG_BASE_MODEL)
    bad = committed("ana", num_examples=1_001)
    assert reasons(run.when(bad)) == rejected(Reason.TOO_MANY_EXAMPLES)
    shares = committed("ana").shares
    for others in (shares[:-1], shares[::-1], (*shares, shares[0]), ()):
        facts = run.when(committed("ana", shares=others))
        assert reasons(facts) == rejected(Reason.WRONG_PARTIES)
    assert run.when(committed("ana")) == []
    assert reasons(run.when(committed("ana"))) == rejected(Reason.DUPLICATE)
    assert reasons(run.when(declined("ana"))) == rejected(Reason.DUPLICATE)


def test_an_update_in_the_clear_is_refused() -> None:
    assert reasons(opened().when(update("ana"))) == rejected(Reason.WRONG_AGGREGATION)


def test_a_plain_federation_takes_no_commitments() -> None:
    run = start(DECIDER).given(CONFIG, *map(admitted, AGENTS), request(1))
    facts = run.when(committed("ana"))
    assert reasons(facts) == rejected(Reason.WRONG_AGGREGATION)


# Closed


def test_an_agent_speaks_once_and_then_may_go() -> None:
    run, _ = closed("ana", "bea")
    for event in (committed("ana"), declined("ana")):
        assert reasons(run.when(event)) == rejected(Reason.LATE)
    # No deadline says anything about a closed round.
    for at_ms in (DEADLINE_MS + 1, DEADLINE_MS + 10 * DURATION_MS):
        assert run.when(deadline(1), at_ms=at_ms) == []
    assert len(run.state.current.pending) == 2  # type: ignore[union-attr]


def test_a_revoked_agent_is_out_at_every_stage() -> None:
    for make in (closed, linked_by_all):
        run, indexes = make()
        assert reasons(run.when(revoked("dan"))) == rejected(Reason.REVOKED_AGENT)
        assert indexes["dan"] not in run.state.current.pending  # type: ignore[union-attr]
    facts = run.when(checked(*(indexes[agent_id] for agent_id in AGENTS[:3])))
    assert kinds(facts)[-1] == "RoundSealed"


def test_revocations_may_end_a_closed_round() -> None:
    run, _ = closed("ana", "bea")
    facts = run.when(revoked("ana"))
    assert kinds(facts) == ["ContributionRejected", "RoundAbandoned"]


# Linking and checking


def test_parties_link_once_the_set_is_closed() -> None:
    run = opened("ana", "bea").given(committed("ana"))
    assert reasons(run.when(linked("p0"))) == UNEXPECTED
    run.given(committed("bea"))
    assert run.when(linked("p0")) == []
    assert reasons(run.when(linked("p0"))) == UNEXPECTED
    assert reasons(run.when(linked("p1", 2))) == UNEXPECTED


def test_nothing_is_checked_before_every_party_has_linked() -> None:
    run, indexes = closed("ana", "bea")
    run.given(linked("p0"), linked("p2"))
    facts = run.when(checked(*indexes.values()))
    assert reasons(facts) == UNEXPECTED * 2
    run.when(linked("p1"))
    facts = run.when(checked(*indexes.values()))
    assert kinds(facts) == ["ContributionAccepted"] * 2 + ["RoundSealed"]


@pytest.mark.parametrize("reason", ["", Reason.INVALID_PROOF])
def test_nothing_is_checked_before_the_set_is_closed(reason: str) -> None:
    run = opened("ana", "bea")
    index = run.next_index
    run.given(committed("ana"))
    assert reasons(run.when(checked(index, reason=reason))) == UNEXPECTED
    assert index in run.state.current.pending  # type: ignore[union-attr]


def test_a_rejected_commitment_is_not_in_the_sum() -> None:
    run, indexes = linked_by_all("ana", "bea", "cem")
    bad = checked(indexes["cem"], reason=Reason.SHARES_DIFFER)
    assert reasons(run.when(bad)) == rejected(Reason.SHARES_DIFFER)
    facts = run.when(checked(indexes["ana"], indexes["bea"]))
    assert kinds(facts)[-1] == "RoundSealed"
    contributions = list_sealed(run.facts)
    assert [c.agent_id for c in contributions] == ["ana", "bea"]
    expected = committed("ana").commitments.sha256
    assert contributions[0].update_sha256 == expected


def test_too_many_bad_commitments_end_the_round() -> None:
    run, indexes = linked_by_all("ana", "bea")
    facts = run.when(checked(indexes["ana"], reason=Reason.INVALID_PROOF))
    assert kinds(facts) == ["ContributionRejected", "RoundAbandoned"]


# Summing


def test_every_party_gives_its_part_of_the_sealed_sum() -> None:
    run = sealed("ana", "bea")
    assert reasons(run.when(partial("p0", 3, 20))) == UNEXPECTED
    assert reasons(run.when(partial("p0", 2, 21))) == UNEXPECTED
    assert reasons(run.when(partial("p0", 2, 20, 2))) == UNEXPECTED
    assert run.when(partial("p0", 2, 20)) == []
    assert reasons(run.when(partial("p0", 2, 20))) == UNEXPECTED
    assert reasons(run.when(aggregate(2, 20))) == UNEXPECTED
    run.given(partial("p1", 2, 20), partial("p2", 2, 20))
    assert kinds(run.when(aggregate(2, 20))) == ["AggregatePublished"]


@pytest.mark.parametrize("make", [closed, linked_by_all])
def test_no_part_comes_before_the_round_is_sealed(make: Any) -> None:
    run, _ = make("ana", "bea")
    assert reasons(run.when(partial("p0", 2, 20))) == UNEXPECTED


def test_a_wrong_part_names_its_party_which_may_give_another() -> None:
    run = sealed("ana", "bea")
    run.given(partial("p0", 2, 20))
    index = run.next_index
    run.given(partial("p1", 2, 20), partial("p2", 2, 20))
    (fact,) = run.when(checked(index, reason=Reason.WRONG_PARTIAL, detail="S"))
    assert isinstance(fact, e.PartialRejected)
    assert (fact.party, fact.partial_leaf_index) == ("p1", index)
    assert (fact.reason, fact.detail) == (Reason.WRONG_PARTIAL, "S")
    assert reasons(run.when(aggregate(2, 20))) == UNEXPECTED
    # What was said of the rejected part cannot be said again.
    again = run.when(checked(index, reason=Reason.WRONG_PARTIAL))
    assert reasons(again) == UNEXPECTED
    assert run.when(partial("p1", 2, 20)) == []
    assert kinds(run.when(aggregate(2, 20))) == ["AggregatePublished"]


def test_a_good_part_needs_no_claim() -> None:
    run = sealed("ana", "bea")
    index = run.next_index
    run.given(partial("p0", 2, 20))
    assert reasons(run.when(checked(index))) == UNEXPECTED


def give_up(number: int = 1) -> e.RoundAbandonRequested:
    return e.RoundAbandonRequested(
        federation_id="clinics", round=number, explanation="p1 is gone"
    )


OPERATOR_ABANDONED = [("RoundAbandoned", Reason.OPERATOR_ABANDONED)]


def test_the_operator_may_give_up_a_round_whose_party_is_gone() -> None:
    for run in (closed()[0], linked_by_all()[0], sealed_two_of_four()):
        assert reasons(run.when(give_up())) == OPERATOR_ABANDONED
        assert run.state.current is None


# A sum is opened once


def sealed_two_of_four() -> Rounds:
    """A round over two of four agents, whom both the federation could do without."""
    run = opened(cohort_size=2)
    return seal(run, 1)


def seal(run: Rounds, number: int) -> Rounds:
    """Let the cohort do all that it has to, on whatever base model it is."""
    state = run.state
    assert state.current is not None
    started = state.current.started
    cohort = sorted(state.current.cohort)
    indexes = []
    for agent_id in cohort:
        indexes.append(run.next_index)
        base = started.base_model.sha256
        run.when(committed(agent_id, number, base_model_sha256=base))
    run.given(*(linked(party, number) for party in PARTIES))
    facts = run.when(checked(*indexes, number=number))
    assert kinds(facts)[-1] == "RoundSealed"
    return run


def drawn(run: Rounds, number: int) -> tuple[str, ...]:
    """Ask for a round and return its cohort."""
    (fact,) = run.when(request(number, next(_clock)))
    assert isinstance(fact, e.RoundStarted), fact
    assert run.state.current is not None
    assert len(run.state.current.cohort) == fact.num_drawn
    return tuple(sorted(run.state.current.cohort))


@pytest.mark.parametrize("num_parts", [0, 1, 2])
def test_an_agent_that_may_have_been_summed_is_not_drawn_again_for_this_base(
    num_parts: int,
) -> None:
    run = sealed_two_of_four()
    first = run.state.summed
    assert len(first) == 2
    run.given(*(partial(party, 2, 20) for party in PARTIES[:num_parts]))
    assert reasons(run.when(give_up())) == OPERATOR_ABANDONED
    second = drawn(run, 2)
    assert set(second) == set(AGENTS) - first
    seal(run, 2)
    assert run.state.summed == set(AGENTS)
    # Nobody would be left: this one can only be completed.
    facts = run.when(give_up(2))
    assert reasons(facts) == [("RoundRefused", Reason.NOT_ENOUGH_AGENTS)]
    assert "0 active agents; 4 more are in a sum over this base" in facts[0].detail  # type: ignore[union-attr]
    run.given(*(partial(party, 2, 20, 2) for party in PARTIES))
    published = run.when(aggregate(2, 20, 2))
    assert kinds(published) == ["AggregatePublished"]
    # The base has moved: everybody may be drawn again.
    assert run.state.summed == frozenset()
    assert len(drawn(run, 3)) == 2


def test_an_agent_in_no_sealed_set_is_drawn_again() -> None:
    for run in (opened(), closed()[0], linked_by_all()[0]):
        assert reasons(run.when(give_up())) == OPERATOR_ABANDONED
        assert drawn(run, 2) == AGENTS


def test_a_sum_that_moves_nothing_leaves_its_agents_summed() -> None:
    run = sealed_two_of_four()
    summed = run.state.summed
    run.given(*(partial(party, 2, 20) for party in PARTIES))
    assert run.state.model is not None
    run.when(aggregate(2, 20, model=run.state.model))
    assert run.state.version == 1
    assert run.state.summed == summed
    second = drawn(run, 2)
    assert set(second) == set(AGENTS) - summed


def test_too_few_that_are_in_no_sum_start_no_round() -> None:
    run = sealed_two_of_four()
    leaving, staying = sorted(set(AGENTS) - run.state.summed)
    assert reasons(run.when(give_up())) == OPERATOR_ABANDONED
    run.given(revoked(leaving))
    facts = run.when(request(2, next(_clock)))
    assert reasons(facts) == [("RoundRefused", Reason.NOT_ENOUGH_AGENTS)]
    assert isinstance(facts[0], e.RoundRefused)
    assert facts[0].detail == (
        "1 active agents; 2 more are in a sum over this base model already, "
        "min_cohort is 2"
    )
    # Somebody new makes them enough.
    run.given(admitted("eve"))
    assert set(drawn(run, 2)) == {"eve", staying}


def test_a_round_whose_parts_are_all_there_is_not_given_up() -> None:
    run = sealed_two_of_four().given(*(partial(party, 2, 20) for party in PARTIES))
    facts = run.when(give_up())
    assert reasons(facts) == [("RoundRefused", Reason.ALL_PARTS_GIVEN)]
    assert kinds(run.when(aggregate(2, 20))) == ["AggregatePublished"]


def test_in_the_clear_nobody_is_spared_and_any_round_is_given_up() -> None:
    run = start(DECIDER).given(CONFIG, *map(admitted, AGENTS))
    run.when(request(1, next(_clock)))
    first = run.next_index
    run.given(*map(update, AGENTS))
    facts = run.when(checked(*range(first, first + len(AGENTS))))
    assert kinds(facts)[-1] == "RoundSealed"
    assert reasons(run.when(give_up())) == OPERATOR_ABANDONED
    assert drawn(run, 2) == AGENTS


def all_parts_given() -> Rounds:
    run = sealed_two_of_four()
    return run.given(*(partial(party, 2, 20) for party in PARTIES))


def test_a_party_completes_what_the_aggregator_does_not() -> None:
    claim = aggregate(2, 20, party="p1")
    run = all_parts_given()
    end_ms = run.now_ms + DURATION_MS
    assert reasons(run.when(claim)) == UNEXPECTED
    # Its own word on the time does not count, nor does an early timer's.
    run.when(deadline(1), at_ms=end_ms)
    assert reasons(run.when(claim)) == UNEXPECTED
    assert reasons(run.when(claim, at_ms=end_ms + 1)) == UNEXPECTED
    assert run.when(deadline(1)) == []
    assert kinds(run.when(claim)) == ["AggregatePublished"]
    # Others that say the same are too late, and change nothing.
    state = run.state
    for party in ("p0", "p2", ""):
        assert reasons(run.when(aggregate(2, 20, party=party))) == UNEXPECTED
    assert run.state == state


def test_the_aggregator_may_still_complete_it_then() -> None:
    run = all_parts_given()
    run.when(deadline(1), at_ms=run.now_ms + DURATION_MS + 1)
    assert kinds(run.when(aggregate(2, 20))) == ["AggregatePublished"]


def test_its_time_begins_when_all_parts_are_there() -> None:
    run = sealed_two_of_four()
    run.given(*(partial(party, 2, 20) for party in PARTIES[:2]))
    run.when(deadline(1), at_ms=run.now_ms + 10 * DURATION_MS)
    place = run.next_index
    run.given(partial("p2", 2, 20))
    assert reasons(run.when(aggregate(2, 20, party="p0"))) == UNEXPECTED
    # And again when one is rejected and comes anew.
    run.when(deadline(1), at_ms=run.now_ms + DURATION_MS + 1)
    assert kinds(run.when(checked(place, reason=Reason.WRONG_PARTIAL))) == [
        "PartialRejected"
    ]
    assert reasons(run.when(aggregate(2, 20, party="p0"))) == UNEXPECTED
    run.given(partial("p2", 2, 20), deadline(1))
    assert reasons(run.when(aggregate(2, 20, party="p0"))) == UNEXPECTED


def test_parts_that_open_nothing_are_rejected_by_whoever_is_there() -> None:
    run = sealed_two_of_four()
    places = range(run.next_index, run.next_index + len(PARTIES))
    run.given(*(partial(party, 2, 20) for party in PARTIES))
    wrong = replace(checked(*places, reason=Reason.WRONG_SUM), party="p0")
    assert reasons(run.when(wrong)) == UNEXPECTED * len(PARTIES)
    run.when(deadline(1), at_ms=run.now_ms + DURATION_MS + 1)
    assert reasons(run.when(wrong)) == [("PartialRejected", Reason.WRONG_SUM)] * 3
    summed = run.state.summed
    assert reasons(run.when(give_up())) == OPERATOR_ABANDONED
    # Some party knows the sum.
    assert not summed & set(drawn(run, 2))


def test_a_party_says_nothing_of_updates() -> None:
    run, indexes = linked_by_all()
    run.when(deadline(1), at_ms=run.now_ms + 10 * DURATION_MS)
    said = replace(checked(*indexes.values()), party="p0")
    assert reasons(run.when(said)) == UNEXPECTED * len(indexes)


def party_declined(party: str, number: int = 1) -> e.PartyDeclined:
    return e.PartyDeclined(
        federation_id="clinics",
        round=number,
        party=party,
        reason="AGENT_SUMMED_BEFORE",
        detail="ana is in the sum of round 7",
    )


def test_a_round_ends_when_a_party_declines() -> None:
    for run in (closed()[0], linked_by_all()[0], sealed_two_of_four()):
        (fact,) = run.when(party_declined("p1"))
        assert isinstance(fact, e.RoundAbandoned)
        assert fact.reason == Reason.PARTY_DECLINED
        assert fact.detail == (
            "party p1: AGENT_SUMMED_BEFORE: ana is in the sum of round 7"
        )
        assert run.state.current is None


def test_a_party_that_nobody_waits_for_cannot_decline() -> None:
    run = opened()
    assert reasons(run.when(party_declined("p1"))) == UNEXPECTED
    run = sealed_two_of_four().given(partial("p1", 2, 20))
    assert reasons(run.when(party_declined("p1"))) == UNEXPECTED
    assert reasons(run.when(party_declined("p0", 2))) == UNEXPECTED
    assert run.state.current is not None


# Comparing

NOBODY = bytes(1)
DAN_IS_FAR = bytes([0b00101100])  # ana-dan, bea-dan, cem-dan
ALL_ARE_FAR = bytes([0b11111100])


def comparing() -> Rounds:
    changes = {name: getattr(COMPARING_CONFIG, name) for name in ("mpc", "min_cohort")}
    run, indexes = linked_by_all(**changes)
    facts = run.when(checked(*indexes.values()))
    assert kinds(facts) == ["ContributionAccepted"] * 4 + ["ComparisonStarted"]
    fact = facts[-1]
    assert isinstance(fact, e.ComparisonStarted)
    assert fact.agent_ids == AGENTS
    assert fact.far_threshold == COMPARISON.far_threshold
    return run


def test_an_agent_far_from_most_others_is_left_out_before_the_sum() -> None:
    run = comparing()
    for party in PARTIES[:-1]:
        assert run.when(compared(party, DAN_IS_FAR)) == []
    facts = run.when(compared(PARTIES[-1], DAN_IS_FAR))
    assert reasons(facts) == [
        ("ContributionRejected", Reason.FAR_FROM_OTHERS),
        ("RoundSealed", ""),
    ]
    refused, fact = facts
    assert isinstance(refused, e.ContributionRejected)
    assert refused.agent_id == "dan"
    assert refused.detail == "far from 3 of the 3 others"
    assert isinstance(fact, e.RoundSealed)
    assert [c.agent_id for c in list_sealed(run.facts)] == list(AGENTS[:3])
    for party in PARTIES:
        assert run.when(partial(party, 3, 30)) == []
    assert kinds(run.when(aggregate(3, 30))) == ["AggregatePublished"]


def test_nobody_is_left_out_if_nobody_is_far() -> None:
    run = comparing()
    run.given(*(compared(party, NOBODY) for party in PARTIES[:-1]))
    assert kinds(run.when(compared(PARTIES[-1], NOBODY))) == ["RoundSealed"]


def test_too_few_that_are_near_each_other_end_the_round() -> None:
    run = comparing()
    run.given(*(compared(party, ALL_ARE_FAR) for party in PARTIES[:-1]))
    facts = run.when(compared(PARTIES[-1], ALL_ARE_FAR))
    assert reasons(facts) == [
        *rejected(Reason.FAR_FROM_OTHERS) * 4,
        ("RoundAbandoned", Reason.NOT_ENOUGH_CONTRIBUTIONS),
    ]


def test_bits_count_once_from_each_party_and_only_if_they_are_the_same() -> None:
    run = comparing()
    first, second, *_ = PARTIES
    for bits in (b"", bytes(2), bytes([1])):  # of four agents, six pairs
        assert reasons(run.when(compared(first, bits))) == UNEXPECTED
    assert run.when(compared(first, DAN_IS_FAR)) == []
    assert reasons(run.when(compared(first, DAN_IS_FAR))) == UNEXPECTED
    assert reasons(run.when(compared(second, NOBODY))) == UNEXPECTED
    assert reasons(run.when(compared(second, DAN_IS_FAR, 2))) == UNEXPECTED
    for party in PARTIES[1:]:
        run.given(compared(party, DAN_IS_FAR))
    assert run.state.current is not None
    assert run.state.current.sealed is not None


def test_a_federation_that_does_not_compare_waits_for_no_bits() -> None:
    for run in (linked_by_all()[0], sealed()):
        assert reasons(run.when(compared("p0", NOBODY))) == UNEXPECTED


def test_nothing_is_summed_before_it_is_compared() -> None:
    run = comparing()
    assert reasons(run.when(partial("p0", 4, 40))) == UNEXPECTED
    assert reasons(run.when(aggregate(4, 40))) == UNEXPECTED
    assert run.when(deadline(1), at_ms=next(_clock) + 10 * DURATION_MS) == []


def test_an_agent_revoked_during_the_comparison_does_not_contribute() -> None:
    run = comparing()
    assert reasons(run.when(revoked("dan"))) == rejected(Reason.REVOKED_AGENT)
    run.given(*(compared(party, DAN_IS_FAR) for party in PARTIES[:-1]))
    (fact,) = run.when(compared(PARTIES[-1], DAN_IS_FAR))
    assert isinstance(fact, e.RoundSealed)
    assert [c.agent_id for c in list_sealed(run.facts)] == list(AGENTS[:3])
    run = comparing()
    run.given(revoked("dan"))
    facts = run.when(revoked("ana"))
    assert kinds(facts) == ["ContributionRejected", "RoundAbandoned"]


def test_noise_is_waited_for_where_privacy_is_promised_and_nowhere_else() -> None:
    noise = e.PartyNoise(
        commitments=make_blob("noise"), proof=make_blob("proof"), blindings=bytes(48)
    )
    run, _ = closed("ana", "bea")
    assert reasons(run.when(replace(linked("p0"), noise=noise))) == UNEXPECTED
    assert run.state.current is not None
    privacy = e.RoundPrivacy(
        sigma=2**15, norm_bound=9, weight=1, inverse_delta=10**5, order=16
    )
    started = replace(run.state.current.started, privacy=privacy)
    run.state = replace(run.state, current=replace(run.state.current, started=started))
    assert reasons(run.when(linked("p0"))) == UNEXPECTED
    assert run.when(replace(linked("p0"), noise=noise)) == []
