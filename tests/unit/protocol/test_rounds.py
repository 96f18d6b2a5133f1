"""The rules of a round: given these leaves, when this one comes, then these facts."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import replace
from typing import Any

import pytest

from protocol.cohort import compute_cohort_seed, draw_cohort, is_drawn
from protocol.contributions import Contribution, compute_contributions_digest
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import events as e
from schemas.reasons import Reason
from tests.sealed import list_sealed
from tests.simulation.federation import (
    AGENTS,
    BASE,
    CONFIG,
    DURATION_MS,
    FEDERATION,
    NOW_MS,
    Run,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    exported,
    make_blob,
    revoked,
    start,
    update,
)
from tests.simulation.federation import (
    request as make_request,
)

Rounds = Run[RoundsState, e.RoundFact]
DEADLINE_MS = NOW_MS + DURATION_MS


_clock = itertools.count(NOW_MS)


def request(number: int) -> e.RoundRequested:
    return make_request(number, next(_clock))


def founded(*agents: str, **changes: Any) -> Rounds:
    run = start(DECIDER).given(replace(CONFIG, **changes))
    return run.given(*(admitted(agent_id) for agent_id in agents))


def opened(*agents: str, **changes: Any) -> Rounds:
    """Round 1 is open, and all these agents were drawn."""
    run = founded(*agents or AGENTS, **changes)
    assert kinds(run.when(request(1))) == ["RoundStarted"]
    return run


def submit(run: Rounds, *agents: str, **changes: Any) -> list[int]:
    """Sequence good updates and return their leaf indexes."""
    indexes = []
    for agent_id in agents:
        indexes.append(run.next_index)
        assert run.when(update(agent_id, **changes)) == []
    return indexes


def sealed(*agents: str) -> Rounds:
    run = opened(*agents)
    facts = run.when(checked(*submit(run, *agents)))
    assert kinds(facts)[-1] == "RoundSealed"
    return run


def kinds(facts: list[e.RoundFact]) -> list[str]:
    return [type(fact).__name__ for fact in facts]


def reasons(facts: list[e.RoundFact]) -> list[tuple[str, str]]:
    return [(type(fact).__name__, getattr(fact, "reason", "")) for fact in facts]


# A round starts


def test_a_round_starts_with_everything_an_agent_needs() -> None:
    run = founded(*AGENTS)
    (fact,) = run.when(request(1), at_ms=NOW_MS + 5)
    leaf = run.leaves[-1]
    seed = compute_cohort_seed(leaf.previous_block_hash, CONFIG.federation_id, 1)
    assert fact == e.RoundStarted(
        federation_id=CONFIG.federation_id,
        round=1,
        cause=leaf.leaf_hash,
        cause_leaf_index=leaf.leaf_index,
        output_index=0,
        num_drawn=len(AGENTS),
        cohort_seed=seed,
        last_ticket=max(hashlib.sha256(seed + a.encode()).digest() for a in AGENTS),
        base_version=0,
        base_model=BASE,
        task=CONFIG.task,
        num_parameters=CONFIG.num_parameters,
        fractional_bits=CONFIG.fractional_bits,
        deadline_ms=NOW_MS + 5 + DURATION_MS,
    )


def test_no_more_agents_are_drawn_than_the_cohort_size() -> None:
    run = founded(*AGENTS, cohort_size=3)
    (fact,) = run.when(request(1))
    assert isinstance(fact, e.RoundStarted)
    drawn = draw_cohort(fact.cohort_seed, AGENTS, 3)
    assert fact.num_drawn == len(drawn) == 3
    assert run.state.current is not None
    assert run.state.current.cohort == set(drawn)
    assert [is_drawn(fact, name) for name in AGENTS] == [n in drawn for n in AGENTS]


def test_a_revoked_agent_is_not_drawn() -> None:
    run = founded(*AGENTS).given(revoked("bea"))
    (fact,) = run.when(request(1))
    assert isinstance(fact, e.RoundStarted)
    assert run.state.current is not None
    assert run.state.current.cohort == {"ana", "cem", "dan"}


def test_a_second_round_waits_for_the_first() -> None:
    facts = opened().when(request(2))
    assert reasons(facts) == [("RoundRefused", Reason.ROUND_OPEN)]


def test_a_sealed_round_is_still_in_progress() -> None:
    facts = sealed("ana", "bea").when(request(2))
    assert reasons(facts) == [("RoundRefused", Reason.ROUND_OPEN)]


@pytest.mark.parametrize("number", [0, 2, 2**63 - 1])
def test_rounds_are_numbered_without_gaps(number: int) -> None:
    facts = founded(*AGENTS).when(request(number))
    assert reasons(facts) == [("RoundRefused", Reason.WRONG_ROUND)]


def test_a_round_is_not_repeated() -> None:
    run = sealed("ana", "bea")
    run.given(aggregate(2, 20))
    assert reasons(run.when(request(1))) == [("RoundRefused", Reason.WRONG_ROUND)]


def test_a_round_needs_min_cohort_active_agents() -> None:
    run = founded("ana", "bea").given(revoked("bea"))
    facts = run.when(request(1))
    assert reasons(facts) == [("RoundRefused", Reason.NOT_ENOUGH_AGENTS)]


def test_a_refused_request_uses_up_no_number() -> None:
    run = founded("ana").given(request(1), admitted("bea"))
    assert kinds(run.when(request(1))) == ["RoundStarted"]


# An update counts, or not


def test_an_update_waits_for_its_check_and_then_counts() -> None:
    run = opened()
    (index,) = submit(run, "ana")
    (fact,) = run.when(checked(index))
    assert fact == e.ContributionAccepted(
        federation_id=CONFIG.federation_id,
        round=1,
        agent_id="ana",
        cause=run.leaves[-1].leaf_hash,
        cause_leaf_index=run.leaves[-1].leaf_index,
        output_index=0,
        update_leaf_index=index,
        update_sha256=update("ana").update.sha256,
        num_examples=10,
    )


@pytest.mark.parametrize(
    "answer",
    [update("eve"), declined("eve")],
    ids=["update", "decline"],
)
def test_only_the_cohort_may_answer(answer: e.LedgerEvent) -> None:
    run = opened()
    run.given(admitted("eve"))
    facts = run.when(answer)
    assert reasons(facts) == [("ContributionRejected", Reason.NOT_IN_COHORT)]


def test_an_update_is_for_the_rounds_base_model() -> None:
    facts = opened().when(update("ana", base_model_sha256=bytes(32)))
    assert reasons(facts) == [("ContributionRejected", Reason.WRONG_BASE_MODEL)]


def test_an_update_claims_at_most_max_num_examples() -> None:
    run = opened()
    facts = run.when(update("ana", num_examples=CONFIG.max_num_examples + 1))
    assert reasons(facts) == [("ContributionRejected", Reason.TOO_MANY_EXAMPLES)]
    assert run.when(update("bea", num_examples=CONFIG.max_num_examples)) == []


def test_an_update_that_never_counted_may_be_corrected() -> None:
    run = opened().given(update("ana", base_model_sha256=bytes(32)))
    submit(run, "ana")


def test_a_second_update_does_not_replace_the_first() -> None:
    run = opened()
    (first,) = submit(run, "ana")
    facts = run.when(update("ana", num_examples=11))
    assert reasons(facts) == [("ContributionRejected", Reason.DUPLICATE)]
    (accepted,) = run.when(checked(first))
    assert isinstance(accepted, e.ContributionAccepted)
    assert accepted.num_examples == 10


@pytest.mark.parametrize("reason", ["", Reason.MALFORMED_BLOB])
def test_one_answer_is_all_an_agent_has_even_if_its_blob_was_bad(reason: str) -> None:
    run = opened()
    run.given(checked(*submit(run, "ana"), reason=reason))
    for answer in (update("ana", num_examples=11), declined("ana")):
        facts = run.when(answer)
        assert reasons(facts) == [("ContributionRejected", Reason.DUPLICATE)]


def test_an_agent_that_submitted_cannot_decline_nor_the_other_way_round() -> None:
    run = opened()
    submit(run, "ana")
    run.given(declined("bea"))
    for answer in (declined("ana"), update("bea")):
        facts = run.when(answer)
        assert reasons(facts) == [("ContributionRejected", Reason.DUPLICATE)]


@pytest.mark.parametrize("number", [2, 7])
def test_an_answer_to_a_round_to_come_is_refused(number: int) -> None:
    for run in (founded(*AGENTS), opened()):
        for answer in (update("ana", number + 5), declined("ana", number + 5)):
            facts = run.when(answer)
            assert reasons(facts) == [("ContributionRejected", Reason.WRONG_ROUND)]


def test_an_answer_to_an_earlier_round_is_late() -> None:
    run = sealed("ana", "bea").given(aggregate(2, 20), admitted("cem"), request(2))
    model = make_blob("model 1")
    for answer in (update("ana", 1), declined("ana", 1)):
        assert reasons(run.when(answer)) == [("ContributionRejected", Reason.LATE)]
    submit(run, "ana", number=2, base_model_sha256=model.sha256)


def test_updates_up_to_the_deadline_count_and_later_ones_do_not() -> None:
    run = opened()
    assert run.when(update("ana"), at_ms=DEADLINE_MS) == []
    facts = run.when(update("bea"), at_ms=DEADLINE_MS + 1)
    assert reasons(facts) == [("ContributionRejected", Reason.LATE)]
    facts = run.when(declined("cem"))
    assert reasons(facts) == [("ContributionRejected", Reason.LATE)]


def test_an_update_after_the_seal_is_late() -> None:
    run = opened()
    run.given(checked(*submit(run, "ana", "bea")))
    assert kinds(run.when(deadline(1), at_ms=DEADLINE_MS + 1))[-1] == "RoundSealed"
    facts = run.when(update("cem"))
    assert reasons(facts) == [("ContributionRejected", Reason.LATE)]


@pytest.mark.parametrize(
    "reason",
    [
        Reason.MISSING_BLOB,
        Reason.OVERSIZED_BLOB,
        Reason.CORRUPT_BLOB,
        Reason.MALFORMED_BLOB,
        Reason.WRONG_SHAPE,
        Reason.WRONG_DTYPE,
        Reason.NOT_FINITE,
        Reason.OUT_OF_RANGE,
    ],
)
def test_a_bad_blob_is_refused_for_the_aggregators_reason(reason: Reason) -> None:
    run = opened()
    (index,) = submit(run, "ana")
    (fact,) = run.when(checked(index, reason=reason, detail="why"))
    assert isinstance(fact, e.ContributionRejected)
    assert (fact.agent_id, fact.update_leaf_index) == ("ana", index)
    assert (fact.reason, fact.detail) == (reason, "why")
    assert run.state.current is not None
    assert set(run.state.current.owing) == {*AGENTS} - {"ana"}


@pytest.mark.parametrize(
    "reason",
    [
        Reason.TRAINING_FAILED,
        Reason.NOT_FINITE,
        Reason.OUT_OF_RANGE,
        Reason.TASK_NOT_ALLOWED,
    ],
)
def test_a_decline_is_an_answer_with_the_agents_reason(reason: Reason) -> None:
    run = opened()
    facts = run.when(declined("ana", reason=reason))
    assert reasons(facts) == [("ContributionRejected", reason)]
    assert run.state.current is not None
    assert set(run.state.current.owing) == {*AGENTS} - {"ana"}


@pytest.mark.parametrize("reason", ["DUPLICATE", "LATE", "I feel like it", ""])
def test_a_decline_cannot_give_a_reason_that_only_we_give(reason: str) -> None:
    run = opened()
    facts = run.when(declined("ana", reason=reason))
    assert reasons(facts) == [("ContributionRejected", Reason.TRAINING_FAILED)]
    assert run.state.current is not None
    assert set(run.state.current.owing) == {*AGENTS} - {"ana"}


def test_a_refused_answer_is_no_answer() -> None:
    """Or somebody could answer for another agent, round or model."""
    run = opened()
    run.given(update("ana", base_model_sha256=bytes(32)), declined("ana", 2))
    assert run.state.current is not None
    assert set(run.state.current.owing) == {*AGENTS}


# Claims of the aggregator about blobs


def test_a_check_of_what_does_not_wait_is_refused() -> None:
    run = opened()
    (index,) = submit(run, "ana")
    facts = run.when(checked(0, index, 99))
    assert reasons(facts) == [
        ("ClaimRejected", Reason.UNEXPECTED_CLAIM),
        ("ContributionAccepted", ""),
        ("ClaimRejected", Reason.UNEXPECTED_CLAIM),
    ]
    assert [fact.output_index for fact in facts] == [0, 1, 2]


def test_a_check_counts_once() -> None:
    run = opened()
    (index,) = submit(run, "ana")
    run.given(checked(index))
    for claim in (checked(index), checked(index, reason=Reason.MISSING_BLOB)):
        facts = run.when(claim)
        assert reasons(facts) == [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]


def test_a_check_for_another_round_is_refused() -> None:
    run = opened()
    (index,) = submit(run, "ana")
    facts = run.when(checked(index, number=2))
    assert reasons(facts) == [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]


def test_a_check_without_a_round_is_refused() -> None:
    facts = founded(*AGENTS).when(checked(3))
    assert reasons(facts) == [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]


# A round ends


def test_a_round_is_sealed_when_everybody_answered() -> None:
    run = opened("ana", "bea", "cem")
    cem, ana = submit(run, "cem", "ana")
    assert kinds(run.when(declined("bea"))) == ["ContributionRejected"]
    facts = run.when(checked(cem, ana))
    assert kinds(facts) == [
        "ContributionAccepted",
        "ContributionAccepted",
        "RoundSealed",
    ]
    seal = facts[-1]
    assert seal == e.RoundSealed(
        federation_id=CONFIG.federation_id,
        round=1,
        cause=run.leaves[-1].leaf_hash,
        cause_leaf_index=run.leaves[-1].leaf_index,
        output_index=2,
        num_contributions=2,
        contributions_sha256=compute_contributions_digest(
            Contribution(
                agent_id=agent_id,
                update_sha256=update(agent_id).update.sha256,
                num_examples=10,
            )
            for agent_id in ("ana", "cem")
        ),
        num_examples=20,
        base_model=BASE,
        fractional_bits=CONFIG.fractional_bits,
        num_parameters=CONFIG.num_parameters,
    )


def test_a_decline_can_be_the_last_answer() -> None:
    run = opened("ana", "bea", "cem")
    run.given(checked(*submit(run, "ana", "bea")))
    assert kinds(run.when(declined("cem"))) == ["ContributionRejected", "RoundSealed"]


def test_a_deadline_seals_a_round_with_enough_contributions() -> None:
    run = opened()
    run.given(checked(*submit(run, "ana", "bea")))
    facts = run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert reasons(facts[:-1]) == [("ContributionRejected", Reason.NO_ANSWER)] * 2
    assert [fact.agent_id for fact in facts[:-1]] == ["cem", "dan"]
    assert kinds(facts)[-1] == "RoundSealed"


def test_a_deadline_abandons_a_round_with_too_few() -> None:
    run = opened()
    run.given(checked(*submit(run, "ana")))
    facts = run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert reasons(facts) == [
        *[("ContributionRejected", Reason.NO_ANSWER)] * 3,
        ("RoundAbandoned", Reason.NOT_ENOUGH_CONTRIBUTIONS),
    ]
    assert run.state.current is None


def test_a_round_without_enough_good_answers_is_abandoned_at_once() -> None:
    run = opened("ana", "bea").given(declined("ana"))
    facts = run.when(declined("bea"))
    assert reasons(facts) == [
        ("ContributionRejected", Reason.TRAINING_FAILED),
        ("RoundAbandoned", Reason.NOT_ENOUGH_CONTRIBUTIONS),
    ]


def test_the_next_round_follows_an_abandoned_one_with_the_same_model() -> None:
    run = opened("ana", "bea").given(declined("ana"), declined("bea"))
    assert reasons(run.when(request(1))) == [("RoundRefused", Reason.WRONG_ROUND)]
    (fact,) = run.when(request(2))
    assert isinstance(fact, e.RoundStarted)
    assert (fact.base_version, fact.base_model) == (0, BASE)


@pytest.mark.parametrize("at_ms", [NOW_MS, DEADLINE_MS - 1, DEADLINE_MS])
def test_a_timer_that_is_early_changes_nothing(at_ms: int) -> None:
    """Whatever the timer says it observed: the block's stamp is what counts."""
    run = opened()
    run.given(checked(*submit(run, "ana", "bea")))
    assert run.when(deadline(1, observed_at_ms=2**62), at_ms=at_ms) == []
    assert run.when(update("cem")) == []
    facts = run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert reasons(facts) == [("ContributionRejected", Reason.NO_ANSWER)]
    assert run.when(deadline(1, observed_at_ms=1), at_ms=DEADLINE_MS + 1) == []
    facts = run.when(checked(run.next_index - 3))
    assert kinds(facts) == ["ContributionAccepted", "RoundSealed"]


def test_a_deadline_for_another_round_changes_nothing() -> None:
    run = opened()
    run.given(checked(*submit(run, "ana", "bea")))
    for number in (2, 99):
        assert run.when(deadline(number), at_ms=DEADLINE_MS + 1) == []
    assert run.state.current is not None
    assert set(run.state.current.owing) == {"cem", "dan"}


def test_a_deadline_without_a_round_changes_nothing() -> None:
    assert founded(*AGENTS).when(deadline(1)) == []


def test_updates_that_came_in_time_are_checked_before_the_round_ends() -> None:
    run = opened()
    (ana,) = submit(run, "ana")
    (bea,) = submit(run, "bea")
    facts = run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert reasons(facts) == [("ContributionRejected", Reason.NO_ANSWER)] * 2
    assert reasons(run.when(update("cem"))) == [("ContributionRejected", Reason.LATE)]
    assert kinds(run.when(checked(ana))) == ["ContributionAccepted"]
    facts = run.when(checked(bea, reason=Reason.MISSING_BLOB))
    assert reasons(facts) == [
        ("ContributionRejected", Reason.MISSING_BLOB),
        ("RoundAbandoned", Reason.NOT_ENOUGH_CONTRIBUTIONS),
    ]


def test_a_repeated_deadline_changes_nothing() -> None:
    run = opened()
    run.given(checked(*submit(run, "ana", "bea")))
    run.when(deadline(1), at_ms=DEADLINE_MS + 1)
    assert run.when(deadline(1, NOW_MS + 1)) == []
    assert run.when(deadline(1, NOW_MS + 2)) == []


def test_an_agent_revoked_before_the_seal_is_excluded_even_if_accepted() -> None:
    run = opened("ana", "bea", "cem", "dan")
    ana, bea, cem = submit(run, "ana", "bea", "cem")
    run.given(checked(ana))
    assert reasons(run.when(revoked("ana"))) == [
        ("ContributionRejected", Reason.REVOKED_AGENT)
    ]
    assert kinds(run.when(checked(bea))) == ["ContributionAccepted"]
    assert kinds(run.when(checked(cem))) == ["ContributionAccepted"]
    facts = run.when(revoked("dan"))
    assert kinds(facts) == ["ContributionRejected", "RoundSealed"]
    assert [c.agent_id for c in list_sealed(run.facts)] == ["bea", "cem"]


def test_a_check_of_a_revoked_agents_update_comes_too_late() -> None:
    run = opened("ana", "bea", "cem")
    (ana,) = submit(run, "ana")
    run.given(revoked("ana"))
    assert kinds(run.when(checked(ana))) == ["ClaimRejected"]


def test_revoking_an_agent_that_was_not_drawn_leaves_the_round_alone() -> None:
    run = opened().given(admitted("eve"))
    assert run.when(revoked("eve")) == []
    assert founded(*AGENTS).when(revoked("ana")) == []


def test_an_agent_revoked_after_the_seal_stays_in_it() -> None:
    run = sealed("ana", "bea", "cem")
    assert run.when(revoked("ana")) == []


# A round is published


def test_a_claim_that_fits_the_sealed_round_is_published() -> None:
    run = sealed("ana", "bea")
    claim = aggregate(2, 20)
    (fact,) = run.when(claim)
    assert fact == e.AggregatePublished(
        federation_id=CONFIG.federation_id,
        round=1,
        cause=run.leaves[-1].leaf_hash,
        cause_leaf_index=run.leaves[-1].leaf_index,
        output_index=0,
        base_model_sha256=BASE.sha256,
        num_contributions=2,
        num_examples=20,
        sum=claim.sum,
        model=claim.model,
        task=CONFIG.task,
    )


def test_the_next_round_starts_from_the_published_model() -> None:
    run = sealed("ana", "bea").given(aggregate(2, 20))
    (fact,) = run.when(request(2))
    assert isinstance(fact, e.RoundStarted)
    assert (fact.base_version, fact.base_model) == (1, make_blob("model 1"))


@pytest.mark.parametrize(
    "claim",
    [
        aggregate(2, 20, number=2),
        aggregate(3, 20),
        aggregate(2, 21),
        aggregate(2, 20, base_model_sha256=bytes(32)),
    ],
    ids=["round", "num_contributions", "num_examples", "base_model"],
)
def test_a_claim_must_fit_the_sealed_round(claim: e.AggregateSubmitted) -> None:
    run = sealed("ana", "bea")
    facts = run.when(claim)
    assert reasons(facts) == [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]
    assert kinds(run.when(aggregate(2, 20))) == ["AggregatePublished"]


def test_a_round_is_published_once() -> None:
    run = sealed("ana", "bea").given(aggregate(2, 20))
    facts = run.when(aggregate(2, 20, model=make_blob("another")))
    assert reasons(facts) == [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]
    assert run.state.model == make_blob("model 1")


def test_an_open_round_cannot_be_published() -> None:
    run = opened("ana", "bea")
    submit(run, "ana", "bea")
    for claim in (aggregate(2, 20), aggregate(0, 0)):
        facts = run.when(claim)
        assert reasons(facts) == [("ClaimRejected", Reason.UNEXPECTED_CLAIM)]


# What is none of its business


@pytest.mark.parametrize(
    "event",
    [
        exported(1, BASE),
        e.EventRejected(
            federation_id=CONFIG.federation_id,
            reason="TOO_LARGE",
            detail="",
            source_topic="",
            source_partition=0,
            source_offset=0,
            value_sha256=bytes(32),
            value_size_bytes=0,
            value=b"",
        ),
    ],
    ids=["export", "refusal"],
)
def test_other_leaves_change_nothing(event: e.LedgerEvent) -> None:
    run = opened()
    before = run.state
    assert run.when(event) == []
    assert run.state == before


def test_facts_on_the_ledger_are_not_believed() -> None:
    """The decider concludes; what somebody wrote under its name is for the audit."""
    run = opened()
    (index,) = submit(run, "ana")
    before = run.state
    accepted = e.ContributionAccepted(
        federation_id=CONFIG.federation_id,
        round=1,
        agent_id="bea",
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=0,
        update_leaf_index=index,
        update_sha256=bytes(32),
        num_examples=1_000,
    )
    assert run.when(accepted) == []
    assert run.state == before


def test_a_request_that_was_refused_cannot_be_sent_again_later() -> None:
    early = make_request(1, 5)
    run = founded("ana")
    assert reasons(run.when(early)) == [("RoundRefused", Reason.NOT_ENOUGH_AGENTS)]
    run.given(admitted("bea"))
    assert reasons(run.when(early)) == [("RoundRefused", Reason.STALE_REQUEST)]
    assert kinds(run.when(make_request(1, 6))) == ["RoundStarted"]


def abandon(number: int) -> e.RoundAbandonRequested:
    return e.RoundAbandonRequested(
        federation_id=FEDERATION, round=number, explanation="its aggregator is gone"
    )


def test_the_operator_can_give_up_a_round_even_when_it_is_sealed() -> None:
    run = sealed("ana", "bea")
    assert reasons(run.when(abandon(1))) == [
        ("RoundAbandoned", Reason.OPERATOR_ABANDONED)
    ]
    assert reasons(run.when(aggregate(2, 20))) == [
        ("ClaimRejected", Reason.UNEXPECTED_CLAIM)
    ]
    assert kinds(run.when(request(2))) == ["RoundStarted"]


def test_only_the_round_in_progress_can_be_given_up() -> None:
    run = opened("ana", "bea")
    assert reasons(run.when(abandon(2))) == [("RoundRefused", Reason.WRONG_ROUND)]
    assert reasons(founded("ana").when(abandon(1))) == [
        ("RoundRefused", Reason.WRONG_ROUND)
    ]
