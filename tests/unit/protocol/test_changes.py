"""What an operator may change in a federation, and when it takes effect."""

from __future__ import annotations

import itertools
from dataclasses import fields, replace
from typing import Any

import pytest

from protocol import rewards, rounds
from protocol.admission import find_faults
from protocol.changes import (
    RULES,
    apply_change,
    find_change_problem,
    list_differences,
    make_change,
)
from protocol.configuration import get_reward_rule
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    MPC,
    MPC_CONFIG,
    NOW_MS,
    admitted,
    aggregate,
    checked,
    declined,
    edit,
    make_blob,
    make_key,
    start,
    update,
)
from tests.simulation.federation import request as request_at
from tests.unit.protocol.test_admission import Desk, force

_clock = itertools.count(NOW_MS)
LARGER = replace(CONFIG, cohort_size=5)


def request(number: int) -> e.RoundRequested:
    return request_at(number, next(_clock))


def find(
    before: e.FederationConfigured, after: e.FederationConfigured
) -> Reason | None:
    problem = find_change_problem(before, 0, make_change(after, 1))
    return None if problem is None else problem[0]


def task(**changes: Any) -> e.Task:
    return replace(CONFIG.task, **changes)


# What


@pytest.mark.parametrize(
    "changes",
    [
        {"cohort_size": 5},
        {"cohort_size": 3},
        {"round_duration_ms": 1},
        {"round_duration_ms": 10**9},
        {"task": task(local_epochs=7)},
        {"task": task(module="other.package:Module", module_config='{"a": 1}')},
        {"reward_rule": e.RewardRule(per_contribution=1)},
        {"min_cohort": 3},
        {"max_num_examples": 999},
        {"norm_bound": MPC.norm_bound - 1},
        {"min_cohort": 5, "cohort_size": 5, "norm_bound": 99_999},
    ],
)
def test_what_may_be_changed(changes: dict[str, Any]) -> None:
    after = edit(MPC_CONFIG, **changes)
    assert find(MPC_CONFIG, after) is None
    change = make_change(after, 1)
    assert apply_change(MPC_CONFIG, 0, change) == after
    assert codec.decode(codec.encode(change)) == change


def test_rewards_may_come_and_go() -> None:
    rewarded = replace(CONFIG, reward_rule=rewards.RECOMMENDED_RULE)
    assert find(CONFIG, rewarded) is None
    assert find(rewarded, CONFIG) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"min_cohort": 1},
        {"max_num_examples": 1_001},
        {"norm_bound": MPC.norm_bound + 1},
        {"min_cohort": 1, "cohort_size": 5},
    ],
)
def test_what_protects_agents_is_not_loosened(changes: dict[str, Any]) -> None:
    before = edit(MPC_CONFIG)
    assert find(before, edit(before, **changes)) is Reason.LOOSENS_PROTECTION


PRINCIPALS = tuple(
    replace(p, public_key=make_key("eve").public_key) for p in CONFIG.principals
)
NODES = e.LedgerNodes(
    nodes=(e.LedgerNode(name="n", public_key=make_key("n").public_key, url=""),)
)


@pytest.mark.parametrize(
    "changes",
    [
        {"federation_id": "others"},
        {"nonce": b"\x09" * 32},
        {"principals": PRINCIPALS},
        {"principals": CONFIG.principals[:-1]},
        {"initial_model": make_blob("another")},
        {"num_parameters": 5},
        {"fractional_bits": 17},
        {"strategy": "FEDADAM"},
        {"ledger_nodes": NODES},
        {"plain": e.Plain()},
        {"mpc": None},
        {"mpc": None, "plain": e.Plain()},
        {"parties": MPC.parties[:2]},
        {"parties": MPC.parties[::-1]},
        {"comparison": e.Comparison(far_threshold=1, dealer_key=bytes(32))},
    ],
)
def test_everything_else_is_as_it_was_founded(changes: dict[str, Any]) -> None:
    assert find(MPC_CONFIG, edit(MPC_CONFIG, **changes)) is Reason.NOT_CHANGEABLE


def test_only_what_has_a_rule_may_be_changed() -> None:
    """So a section that is added one day cannot be changed until it has a rule."""
    known = {part.name for part in fields(CONFIG)} | {"mpc.norm_bound"}
    assert set(RULES) <= known
    assert {d.name for d in list_differences(MPC_CONFIG, CONFIG)} == {"plain", "mpc"}


@pytest.mark.parametrize(
    ("configuration", "reason"),
    [
        (b"", Reason.INVALID_CONFIGURATION),
        (codec.encode(request(1)), Reason.INVALID_CONFIGURATION),
        (codec.encode(LARGER)[:-1], Reason.INVALID_CONFIGURATION),
        (codec.encode(LARGER) + b"\0", Reason.INVALID_CONFIGURATION),
        (codec.encode(CONFIG), Reason.NOTHING_CHANGES),
        (codec.encode(replace(CONFIG, cohort_size=1)), Reason.INVALID_CONFIGURATION),
        (codec.encode(replace(CONFIG, task=task(module="x"))), Reason.INVALID_TASK),
        (
            codec.encode(
                replace(CONFIG, reward_rule=e.RewardRule(per_contribution=-1))
            ),
            Reason.INVALID_REWARD_RULE,
        ),
    ],
)
def test_a_change_leads_to_a_good_configuration(
    configuration: bytes, reason: Reason
) -> None:
    change = replace(make_change(CONFIG, 1), configuration=configuration)
    problem = find_change_problem(CONFIG, 0, change)
    assert problem is not None
    assert problem[0] is reason
    assert apply_change(CONFIG, 0, change) is None


# Who, and in what order


def founded() -> Desk:
    return Desk(CONFIG, admitted("ana"), admitted("bea"))


def test_the_operator_changes_a_federation() -> None:
    desk = founded()
    assert desk.say(make_change(LARGER, 1), signer="OPERATOR") is None
    assert desk.state.config == LARGER
    assert desk.state.change == 1


@pytest.mark.parametrize("signer", ["DECIDER", "SEQUENCER", "ana", "eve"])
def test_nobody_else_changes_a_federation(signer: str) -> None:
    desk = founded()
    assert desk.say(make_change(LARGER, 1), signer=signer) is Reason.BAD_SIGNATURE
    # What a stranger sends is not looked at any closer.
    junk = replace(make_change(LARGER, 1), configuration=b"junk")
    assert desk.say(junk, signer=signer) is Reason.BAD_SIGNATURE


def test_of_two_changes_of_the_same_configuration_the_second_is_refused() -> None:
    desk = founded()
    longer = replace(CONFIG, round_duration_ms=7)
    assert desk.say(make_change(LARGER, 1)) is None
    assert desk.say(make_change(longer, 1)) is Reason.STALE_CHANGE
    assert desk.state.config == LARGER


@pytest.mark.parametrize("number", [2, 3, 2**63 - 1])
def test_changes_have_no_gaps(number: int) -> None:
    assert founded().say(make_change(LARGER, number)) is Reason.STALE_CHANGE


@pytest.mark.parametrize("number", [0, -1])
def test_changes_count_from_one(number: int) -> None:
    assert founded().say(make_change(LARGER, number)) is Reason.INVALID_FIELD


def test_a_change_that_is_sent_again_counts_no_more() -> None:
    """Also when what it led to was changed back, and however long ago it was."""
    desk = founded()
    first = make_change(LARGER, 1)
    assert desk.say(first) is None
    assert desk.say(make_change(CONFIG, 2)) is None
    assert desk.say(first) is Reason.STALE_CHANGE
    assert desk.state.config == CONFIG


def test_a_change_before_the_founding_is_of_no_federation() -> None:
    assert Desk().say(make_change(LARGER, 1)) is Reason.UNKNOWN_FEDERATION


@pytest.mark.parametrize(
    "change",
    [
        make_change(replace(CONFIG, min_cohort=1), 1),
        make_change(LARGER, 2),
        replace(make_change(LARGER, 1), configuration=b"junk"),
    ],
)
def test_what_a_sequencer_lets_pass_is_found_and_changes_nothing(
    change: e.FederationChanged,
) -> None:
    desk = founded()
    leaves = force(desk.make.record(change, signer="OPERATOR"))
    faults, after = find_faults(desk.state, leaves)
    assert len(faults) == 1
    assert after.config == CONFIG
    run = start(rounds.DECIDER).given(CONFIG, change)
    assert run.state.config == CONFIG
    assert run.state.change == 0


# When


def test_without_a_round_a_change_is_in_force_at_once() -> None:
    run = start(rounds.DECIDER).given(CONFIG, *map(admitted, AGENTS))
    run.given(make_change(replace(CONFIG, cohort_size=2, round_duration_ms=7), 1))
    (started,) = run.when(request(1), at_ms=NOW_MS)
    assert isinstance(started, e.RoundStarted)
    assert (started.num_drawn, started.change) == (2, 1)
    assert started.deadline_ms == NOW_MS + 7


def test_as_founded_a_round_has_change_zero() -> None:
    run = start(rounds.DECIDER).given(CONFIG, *map(admitted, AGENTS))
    (started,) = run.when(request(1))
    assert isinstance(started, e.RoundStarted)
    assert started.change == 0


def test_an_open_round_is_not_touched() -> None:
    """It needs two contributions as when it began; the next one needs three."""
    run = start(rounds.DECIDER).given(CONFIG, *map(admitted, AGENTS), request(1))
    run.given(make_change(replace(CONFIG, min_cohort=3), 1))
    run.given(make_change(replace(CONFIG, min_cohort=3, max_num_examples=1), 2))
    assert run.state.config == CONFIG
    indexes = [run.next_index]
    run.when(update("ana", num_examples=10))
    indexes.append(run.next_index)
    run.when(update("bea", num_examples=10))
    run.given(declined("cem"), declined("dan"))
    facts = run.when(checked(*indexes))
    assert isinstance(facts[-1], e.RoundSealed)
    assert run.state.change == 0
    run.when(aggregate(2, 20))
    assert run.state.current is None
    assert run.state.config == replace(CONFIG, min_cohort=3, max_num_examples=1)
    assert (run.state.change, run.state.waiting) == (2, None)
    (started,) = run.when(request(2))
    assert isinstance(started, e.RoundStarted)
    assert started.change == 2


def test_a_change_waits_for_an_abandoned_round_too() -> None:
    run = start(rounds.DECIDER).given(CONFIG, *map(admitted, AGENTS), request(1))
    run.given(make_change(LARGER, 1))
    assert run.state.config == CONFIG
    run.given(
        e.RoundAbandonRequested(
            federation_id=CONFIG.federation_id, round=1, explanation="x"
        )
    )
    assert run.state.config == LARGER


def test_a_round_is_paid_by_the_rule_that_it_began_with() -> None:
    """Also if its end is on the log after the next round's change."""
    first, second = (e.RewardRule(per_contribution=n) for n in (1, 50))
    config = replace(CONFIG, reward_rule=first)
    decider = start(rounds.DECIDER).given(config, *map(admitted, AGENTS))
    run = start(rewards.DECIDER).given(config)
    (started,) = decider.when(request(1))
    run.given(make_change(replace(config, reward_rule=second), 1))
    assert run.state.rule == second
    run.given(started)
    run.given(make_accepted(1), make_sealed(1))
    facts = run.when(make_published(1))
    assert [fact.amount for fact in facts] == [1]
    (started,) = [replace(started, round=2, change=1)]
    run.given(started, make_accepted(2), make_sealed(2))
    facts = run.when(make_published(2))
    assert [fact.amount for fact in facts] == [50]
    assert run.state.rules == {1: second}


COMMON: dict[str, Any] = {
    "federation_id": CONFIG.federation_id,
    "cause": bytes(32),
    "cause_leaf_index": 1,
    "output_index": 0,
}


def make_accepted(number: int) -> e.ContributionAccepted:
    return e.ContributionAccepted(
        round=number,
        agent_id="ana",
        update_leaf_index=0,
        update_sha256=bytes(32),
        num_examples=1,
        **COMMON,
    )


def make_sealed(number: int) -> e.RoundSealed:
    return e.RoundSealed(
        round=number,
        num_contributions=1,
        contributions_sha256=bytes(32),
        num_examples=1,
        base_model=CONFIG.initial_model,
        fractional_bits=CONFIG.fractional_bits,
        num_parameters=CONFIG.num_parameters,
        **COMMON,
    )


def make_published(number: int) -> e.AggregatePublished:
    return e.AggregatePublished(
        round=number,
        base_model_sha256=CONFIG.initial_model.sha256,
        num_contributions=1,
        num_examples=1,
        sum=CONFIG.initial_model,
        model=CONFIG.initial_model,
        task=CONFIG.task,
        **COMMON,
    )


def test_no_rewards_is_a_rule_of_zeros() -> None:
    assert get_reward_rule(CONFIG) == e.RewardRule()
