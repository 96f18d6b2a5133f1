"""The rules of rewards."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace

import pytest
from pydantic import ConfigDict, TypeAdapter

from protocol.changes import make_change
from protocol.persistent import PersistentMap
from protocol.rewards import (
    DECIDER,
    FAILED_PROOFS,
    MAX_BALANCE,
    MAX_UNPAID_ROUNDS,
    MIN_BALANCE,
    RECOMMENDED_RULE,
    SEQUENCER_ACCOUNT,
    Basis,
    RewardsState,
    UnpaidRound,
    share_out,
)
from protocol.rules import LATEST_VERSION
from protocol.validation import (
    STORE_REASONS,
    find_configuration_problem,
    find_problem,
)
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    AGENTS,
    BASE,
    CONFIG,
    FEDERATION,
    NOW_MS,
    Run,
    evaluation,
    make_blob,
    make_key,
    start,
)

RULE = e.RewardRule(
    per_contribution=100,
    per_thousand_examples=30,
    per_accuracy_percent=7,
    missed_assignment=20,
    failed_proof=300,
    equivocation=5_000,
)
NODES = tuple(
    e.LedgerNode(name=name, public_key=make_key(f"node {name}").public_key, url="")
    for name in ("one", "two")
)
SEQUENCER_KEY = make_key("SEQUENCER").public_key
CAUSE = {"federation_id": FEDERATION, "cause": bytes(32), "output_index": 0}


def started(number: int, *cohort: str) -> e.RoundStarted:
    return e.RoundStarted(
        round=number,
        num_drawn=len(cohort or AGENTS),
        cohort_seed=bytes(32),
        last_ticket=bytes(32),
        base_version=0,
        base_model=BASE,
        task=CONFIG.task,
        num_parameters=4,
        fractional_bits=16,
        deadline_ms=NOW_MS,
        cause_leaf_index=0,
        **CAUSE,
    )


def accepted(number: int, agent_id: str, num_examples: int = 10):
    return e.ContributionAccepted(
        round=number,
        agent_id=agent_id,
        update_leaf_index=1,
        update_sha256=BASE.sha256,
        num_examples=num_examples,
        cause_leaf_index=2,
        **CAUSE,
    )


def rejected(
    number: int, agent_id: str, reason: str, *, by_aggregator: bool = False
) -> e.ContributionRejected:
    return e.ContributionRejected(
        round=number,
        agent_id=agent_id,
        update_leaf_index=1 if by_aggregator else 2,
        reason=reason,
        detail="",
        cause_leaf_index=2,
        **CAUSE,
    )


def sealed(number: int) -> e.RoundSealed:
    return e.RoundSealed(
        round=number,
        num_contributions=0,  # what counts are the facts before it
        contributions_sha256=bytes(32),
        num_examples=0,
        base_model=BASE,
        fractional_bits=16,
        num_parameters=4,
        cause_leaf_index=2,
        **CAUSE,
    )


def ended(number: int, *examples: tuple[str, int]) -> tuple[e.RoundFact, ...]:
    """Return the facts that accept contributions and seal their round."""
    return *(accepted(number, *one) for one in examples), sealed(number)


def missed(number: int, *agents: str) -> tuple[e.RoundFact, ...]:
    return tuple(rejected(number, agent, Reason.NO_ANSWER) for agent in agents)


def abandoned(number: int, reason: str) -> e.RoundAbandoned:
    return e.RoundAbandoned(
        round=number, reason=reason, detail="", cause_leaf_index=2, **CAUSE
    )


def published(number: int) -> e.AggregatePublished:
    return e.AggregatePublished(
        round=number,
        base_model_sha256=BASE.sha256,
        num_contributions=2,
        num_examples=20,
        sum=make_blob(f"sum {number}"),
        model=make_blob(f"model {number}"),
        task=CONFIG.task,
        cause_leaf_index=3,
        **CAUSE,
    )


def registered(number: int, accuracy_micros: int) -> e.ModelVersionRegistered:
    return e.ModelVersionRegistered(
        round=number,
        version=number,
        parent_version=number - 1,
        model=make_blob(f"model {number}"),
        onnx=make_blob(f"onnx {number}"),
        no_onnx="",
        evaluation=evaluation(accuracy_micros),
        no_evaluation="",
        registered_at_ms=NOW_MS,
        cause_leaf_index=4,
        **CAUSE,
    )


def proven(public_key: bytes) -> e.EquivocationProven:
    return e.EquivocationProven(
        federation_id=FEDERATION,
        public_key=public_key,
        messages=(b"one thing", b"another"),
        reported_by=NODES[1].public_key,
    )


def nodes_changed(*nodes: e.LedgerNode) -> e.NodeSetChanged:
    return e.NodeSetChanged(federation_id=FEDERATION, era=1, nodes=nodes, approvals=())


def founded(
    rule: e.RewardRule = RULE, *, version: int = 1
) -> Run[RewardsState, e.RewardFact]:
    return start(DECIDER).given(
        replace(
            CONFIG,
            reward_rule=rule,
            rules_version=version,
            ledger_nodes=e.LedgerNodes(nodes=NODES),
        )
    )


def changes(facts: Iterable[e.RewardFact]) -> list[tuple[str, int, str]]:
    return [(fact.account, fact.amount, fact.basis) for fact in facts]


ROUND = (started(1), *ended(1, ("ana", 1_000), ("bea", 99)))
EARNED = [("ana", 130, "CONTRIBUTION"), ("bea", 102, "CONTRIBUTION")]


# Contributions


def test_a_published_contribution_earns_for_itself_and_its_examples() -> None:
    run = founded().given(started(1, "ana"), *ended(1, ("ana", 1_000)))
    (fact,) = run.when(published(1))
    assert fact == e.BalanceChanged(
        federation_id=FEDERATION,
        round=1,
        cause=run.leaves[-1].leaf_hash,
        cause_leaf_index=run.leaves[-1].leaf_index,
        output_index=0,
        account="ana",
        amount=130,
        balance=130,
        basis="CONTRIBUTION",
    )
    assert dict(run.state.balances) == {"ana": 130}


@pytest.mark.parametrize(
    ("num_examples", "points"), [(1, 100), (33, 100), (34, 101), (1_000, 130)]
)
def test_points_for_examples_are_rounded_down(num_examples: int, points: int) -> None:
    run = founded().given(started(1, "ana"), *ended(1, ("ana", num_examples)))
    assert changes(run.when(published(1))) == [("ana", points, "CONTRIBUTION")]


def test_a_sealed_round_earns_nothing_until_it_is_published() -> None:
    run = founded(replace(RULE, missed_assignment=0)).given(*ROUND[:-1])
    assert run.when(ROUND[-1]) == []
    facts = run.when(published(1))
    assert changes(facts) == EARNED
    assert [fact.output_index for fact in facts] == [0, 1]


def test_a_round_given_up_after_it_was_sealed_earns_nothing() -> None:
    run = founded().given(*ROUND)
    assert run.when(abandoned(1, Reason.OPERATOR_ABANDONED)) == []
    assert run.state.unpaid == {}


def test_what_comes_last_pays() -> None:
    """Sealed, published and registered rounds are facts on three topics."""
    run = founded().given(*ROUND[:-1])
    assert run.when(published(1)) == []
    assert run.when(registered(1, 500_000)) == []
    assert changes(run.when(ROUND[-1])) == [
        *EARNED,
        ("ana", 318, "UTILITY"),  # 350 · 1,000 / 1,099 = 318.47…
        ("bea", 32, "UTILITY"),  # 350 · 99 / 1,099 = 31.53…: the larger remainder
    ]
    assert run.state.unpaid == {}


# Utility


def test_a_result_that_is_known_before_the_rounds_start_is_paid_by_its_rule() -> None:
    run = founded().given(published(1))
    run.given(started(1, "ana"), accepted(1, "ana"))
    before = founded().given(started(1, "ana"), accepted(1, "ana"), published(1))
    assert changes(run.when(sealed(1))) == changes(before.when(sealed(1))) != []


def test_better_versions_earn_the_difference_and_no_others_do() -> None:
    run = founded(replace(RULE, missed_assignment=0, per_contribution=0))
    pools = []
    for number, accuracy_micros in enumerate(
        (600_000, 600_000, 500_000, 655_000, 655_001, 1_000_000), start=1
    ):
        run.given(started(number), *ended(number, ("ana", 1)), published(number))
        pools.append(
            sum(f.amount for f in run.when(registered(number, accuracy_micros)))
        )
    assert pools == [420, 0, 0, 38, 0, 241]
    assert run.state.best_accuracy_micros == 1_000_000


def test_a_version_that_nobody_measured_earns_nothing() -> None:
    run = founded().given(started(1, "ana"), *ended(1, ("ana", 1)), published(1))
    bare = replace(registered(1, 0), evaluation=None, no_evaluation="NOT_MEASURED")
    assert run.when(bare) == []
    assert run.state.best_accuracy_micros == 0


def test_only_accuracy_is_utility_and_higher_is_better() -> None:
    for name, direction in (("accuracy", "LOWER"), ("f1", "HIGHER")):
        run = founded().given(started(1, "ana"), *ended(1, ("ana", 1)), published(1))
        metric = e.Metric(name=name, value_micros=900_000, direction=direction)
        found = e.Evaluation(num_examples=1, metrics=(metric,))
        assert run.when(replace(registered(1, 0), evaluation=found)) == []


def test_utility_is_shared_by_examples() -> None:
    run = founded().given(started(1, "ana", "bea", "cem"))
    run.given(*ended(1, ("ana", 1), ("bea", 2), ("cem", 1)), published(1))
    facts = run.when(registered(1, 20_000))
    assert changes(facts) == [
        ("ana", 4, "UTILITY"),
        ("bea", 7, "UTILITY"),
        ("cem", 3, "UTILITY"),
    ]
    assert all(fact.round == 1 for fact in facts)


@pytest.mark.parametrize(
    ("pool", "weights", "shares"),
    [
        (0, {"a": 1}, [0]),
        (10, {"a": 1, "b": 1, "c": 1}, [4, 3, 3]),
        (11, {"c": 1, "b": 1, "a": 1}, [4, 4, 3]),
        (10, {"a": 1, "b": 2, "c": 3}, [2, 3, 5]),
        (1, {"a": 1, "b": 2}, [0, 1]),
        (5, {"a": 0, "b": 2}, [0, 5]),
        (10**12, {"a": 2**22, "b": 1}, [999_999_761_581, 238_419]),
    ],
)
def test_shares_go_by_weight_to_the_last_point(
    pool: int, weights: dict[str, int], shares: list[int]
) -> None:
    found = share_out(pool, weights)
    assert list(found) == sorted(weights)
    assert list(found.values()) == shares


def test_what_waits_is_bounded_and_the_latest_rounds_wait() -> None:
    """Models that nobody can export are published, and never become versions."""
    run = founded()
    last = MAX_UNPAID_ROUNDS + 1
    for number in range(1, last + 1):
        run.given(started(number), *ended(number, ("ana", 1)), published(number))
    assert list(run.state.unpaid) == list(range(2, last + 1))
    assert run.when(registered(1, 100_000)) == []
    assert run.state.best_accuracy_micros == 100_000
    assert list(run.state.unpaid) == list(range(2, last + 1))
    assert changes(run.when(registered(2, 110_000))) == [("ana", 7, "UTILITY")]
    assert list(run.state.unpaid) == list(range(3, last + 1))


# Missed assignments


@pytest.mark.parametrize(
    "end", [sealed(1), abandoned(1, Reason.NOT_ENOUGH_CONTRIBUTIONS)]
)
def test_an_agent_that_was_drawn_and_gave_no_answer_pays(end: e.RoundFact) -> None:
    run = founded().given(started(1, "ana", "bea", "cem"), accepted(1, "bea"))
    run.given(*missed(1, "ana", "cem"))
    facts = run.when(end)
    assert changes(facts) == [
        ("ana", -20, "MISSED_ASSIGNMENT"),
        ("cem", -20, "MISSED_ASSIGNMENT"),
    ]
    assert dict(run.state.balances) == {"ana": -20, "cem": -20}
    assert run.when(end) == []


@pytest.mark.parametrize(
    "answer",
    [
        accepted(1, "ana"),
        rejected(1, "ana", Reason.TRAINING_FAILED),
        rejected(1, "ana", Reason.REVOKED_AGENT),
        rejected(1, "ana", Reason.LATE),
        rejected(1, "ana", Reason.WRONG_BASE_MODEL),
    ],
)
def test_an_answer_of_any_kind_is_one(answer: e.RoundFact) -> None:
    for facts in itertools.permutations([*missed(1, "ana"), answer]):
        run = founded().given(started(1, "ana"), *facts)
        assert run.when(sealed(1)) == []


def test_an_answer_to_another_round_does_not_count() -> None:
    run = founded().given(started(1, "ana"), sealed(1), started(2, "ana"))
    run.given(rejected(1, "ana", Reason.LATE), *missed(2, "ana"))
    assert changes(run.when(sealed(2))) == [("ana", -20, "MISSED_ASSIGNMENT")]


def test_a_round_that_the_operator_gives_up_costs_nobody() -> None:
    run = founded().given(started(1), *missed(1, "ana"))
    assert run.when(abandoned(1, Reason.OPERATOR_ABANDONED)) == []
    assert not run.state.silent


def test_the_end_of_a_round_that_is_not_the_last_one_costs_nobody() -> None:
    run = founded().given(started(2), *missed(2, "ana"))
    assert run.when(sealed(1)) == []


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("how", ["sealed", "abandoned"])
@pytest.mark.parametrize("num_heard", range(5))
def test_where_most_are_silent_something_else_is_away(
    version: int, how: str, num_heard: int
) -> None:
    """An outage of Kafka, of the store, of the sequencer: no agent is at fault."""
    heard, silent = AGENTS[:num_heard], AGENTS[num_heard:4]
    end = (
        sealed(1) if how == "sealed" else abandoned(1, Reason.NOT_ENOUGH_CONTRIBUTIONS)
    )
    run = founded(version=version).given(
        started(1), *(accepted(1, name) for name in heard), *missed(1, *silent)
    )
    paid = {f.account for f in run.when(end) if f.basis == "MISSED_ASSIGNMENT"}
    is_excused = version > 1 and len(silent) > len(heard)
    assert paid == (set() if is_excused else set(silent))


def test_newer_rules_hold_from_their_leaf_on() -> None:
    run = founded().given(started(1))
    config = replace(CONFIG, reward_rule=RULE, rules_version=2)
    assert run.when(refused_part(Reason.MISSING_BLOB))
    run.given(make_change(config, 1))
    assert run.when(refused_part(Reason.MISSING_BLOB)) == []


# The recommended rule


def earn(*examples: int) -> list[int]:
    """Return what contributions to one round earn, by the recommended rule."""
    names = [f"agent-{n}" for n in range(len(examples))]
    run = founded(RECOMMENDED_RULE, version=LATEST_VERSION).given(
        started(1), *ended(1, *zip(names, examples, strict=True))
    )
    found = {fact.account: fact.amount for fact in run.when(published(1))}
    return [found.get(name, 0) for name in names]


def test_by_default_a_contribution_earns_what_it_weighs() -> None:
    """They were 100 and 147 points."""
    assert earn(3, 479) == [3, 479]


@pytest.mark.parametrize("num_parts", [2, 7, 479])
def test_by_default_nobody_gains_by_dividing_its_data(num_parts: int) -> None:
    sizes = [479 // num_parts + (n < 479 % num_parts) for n in range(num_parts)]
    assert sum(sizes) == 479
    assert sum(earn(*sizes)) == earn(479)[0]


def test_by_default_only_what_can_be_checked_later_costs() -> None:
    run = founded(RECOMMENDED_RULE, version=LATEST_VERSION).given(
        started(1), accepted(1, "ana"), *missed(1, "bea")
    )
    assert run.when(sealed(1)) == []
    assert RECOMMENDED_RULE.failed_proof > 0
    assert RECOMMENDED_RULE.equivocation > 0


# Failed proofs


@pytest.mark.parametrize(
    ("reason", "version"),
    [(reason, v) for v, reasons in FAILED_PROOFS.items() for reason in sorted(reasons)],
)
def test_an_update_that_is_not_what_it_must_be_costs(
    reason: Reason, version: int
) -> None:
    run = founded(version=version).given(started(1))
    (fact,) = run.when(rejected(1, "ana", reason, by_aggregator=True))
    assert (fact.account, fact.amount, fact.basis) == ("ana", -300, "FAILED_PROOF")
    assert (fact.round, fact.balance) == (1, -300)
    assert "ana" not in run.state.silent


@pytest.mark.parametrize("reason", [Reason.NOT_FINITE, Reason.OUT_OF_RANGE])
def test_what_an_agent_says_of_itself_costs_nothing(reason: Reason) -> None:
    assert founded().given(started(1)).when(rejected(1, "ana", reason)) == []


@pytest.mark.parametrize(
    ("reason", "version"),
    [
        (reason, v)
        for v, reasons in FAILED_PROOFS.items()
        for reason in sorted(set(Reason) - reasons)
    ],
)
def test_other_refusals_cost_nothing(reason: Reason, version: int) -> None:
    run = founded(version=version).given(started(1))
    assert run.when(rejected(1, "ana", reason, by_aggregator=True)) == []


def test_a_contribution_that_was_withdrawn_earns_nothing() -> None:
    for reason in (Reason.REVOKED_AGENT, Reason.FAR_FROM_OTHERS):
        run = founded().given(*ROUND[:-1], rejected(1, "ana", reason), sealed(1))
        assert changes(run.when(published(1))) == EARNED[1:]


def test_a_second_answer_that_was_refused_takes_nothing_away() -> None:
    run = founded().given(*ROUND[:-1], rejected(1, "ana", Reason.DUPLICATE), sealed(1))
    assert changes(run.when(published(1))) == EARNED


def test_only_what_anybody_can_check_later_costs() -> None:
    """What the store had at some moment nobody can; what its bytes are everybody can,
    who has them.
    """
    assert FAILED_PROOFS[1] >= STORE_REASONS
    assert not FAILED_PROOFS[2] & STORE_REASONS
    # All others follow from bytes with a digest that is on the ledger.
    assert FAILED_PROOFS[1] - FAILED_PROOFS[2] == STORE_REASONS
    assert LATEST_VERSION in FAILED_PROOFS


@pytest.mark.parametrize(
    ("reason", "version", "costs"),
    [
        (Reason.WRONG_PARTIAL, 1, True),
        (Reason.WRONG_PARTIAL, 2, True),
        (Reason.WRONG_SUM, 1, False),
        (Reason.WRONG_SUM, 2, False),
        *((reason, 1, True) for reason in sorted(STORE_REASONS)),
        *((reason, 2, False) for reason in sorted(STORE_REASONS)),
    ],
)
def test_a_party_pays_for_what_can_be_checked_too(
    reason: Reason, version: int, costs: bool
) -> None:
    run = founded(version=version).given(started(1))
    assert bool(run.when(refused_part(reason))) is costs


def refused_part(reason: Reason) -> e.PartialRejected:
    return e.PartialRejected(
        federation_id=FEDERATION,
        round=1,
        cause=bytes(32),
        cause_leaf_index=2,
        output_index=0,
        party="p0",
        partial_leaf_index=1,
        reason=reason,
        detail="",
    )


def test_a_party_that_lies_pays() -> None:
    run = founded().given(started(1))
    fact = e.PartialRejected(
        federation_id=FEDERATION,
        round=1,
        cause=bytes(32),
        cause_leaf_index=2,
        output_index=0,
        party="p0",
        partial_leaf_index=1,
        reason=Reason.WRONG_PARTIAL,
        detail="",
    )
    (change,) = run.when(fact)
    assert (change.account, change.amount) == ("party:p0", -300)
    assert change.basis == "FAILED_PROOF"


# Equivocation


def test_a_ledger_node_that_contradicts_itself_pays() -> None:
    (fact,) = founded().when(proven(NODES[0].public_key))
    assert (fact.account, fact.amount, fact.basis) == (
        "node:one",
        -5_000,
        "EQUIVOCATION",
    )
    assert fact.round == 0


def test_nodes_of_earlier_sets_pay_too_and_new_keys_pay_for_their_name() -> None:
    new = replace(NODES[1], public_key=make_key("a second key").public_key)
    run = founded().given(nodes_changed(new))
    accounts = [
        fact.account
        for key in (NODES[0].public_key, NODES[1].public_key, new.public_key)
        for fact in run.when(proven(key))
    ]
    assert accounts == ["node:one", "node:two", "node:two"]
    assert dict(run.state.balances) == {"node:one": -5_000, "node:two": -10_000}


def test_the_sequencer_has_an_account_that_no_agent_can_have() -> None:
    (fact,) = founded().when(proven(SEQUENCER_KEY))
    assert fact.account == SEQUENCER_ACCOUNT == "principal:SEQUENCER"
    for account in (SEQUENCER_ACCOUNT, "node:one"):
        request = e.AgentAdmitted(
            federation_id=FEDERATION, agent_id=account, public_key=bytes(32)
        )
        assert find_problem(request) is not None


def test_an_unknown_key_pays_nothing() -> None:
    assert founded().when(proven(make_key("ana").public_key)) == []


# Balances


def test_a_federation_without_a_rule_has_no_balances() -> None:
    run = founded(e.RewardRule()).given(
        *ROUND,
        published(1),
        registered(1, 900_000),
        rejected(1, "ana", Reason.CORRUPT_BLOB, by_aggregator=True),
        proven(SEQUENCER_KEY),
    )
    assert not any(run.facts)
    assert dict(run.state.balances) == {}


def test_each_value_of_the_rule_counts_for_its_basis_alone() -> None:
    def bases(rule: e.RewardRule) -> set[str]:
        run = founded(rule).given(
            *ROUND[:-1],
            *missed(1, "cem"),
            ROUND[-1],
            published(1),
            registered(1, 900_000),
            rejected(1, "ana", Reason.CORRUPT_BLOB, by_aggregator=True),
            proven(SEQUENCER_KEY),
        )
        return {fact.basis for facts in run.facts for fact in facts}

    assert bases(RULE) == set(Basis)
    assert bases(e.RewardRule(per_contribution=1)) == {"CONTRIBUTION"}
    assert bases(e.RewardRule(per_thousand_examples=1)) == {"CONTRIBUTION"}
    assert bases(e.RewardRule(per_accuracy_percent=1)) == {"UTILITY"}
    assert bases(e.RewardRule(missed_assignment=1)) == {"MISSED_ASSIGNMENT"}
    assert bases(e.RewardRule(failed_proof=1)) == {"FAILED_PROOF"}
    assert bases(e.RewardRule(equivocation=1)) == {"EQUIVOCATION"}


def test_a_balance_stops_at_the_ends_and_says_what_was_really_added() -> None:
    run = founded().given(*ROUND)
    full = {"ana": MAX_BALANCE - 1, "bea": MAX_BALANCE, "node:one": MIN_BALANCE + 1}
    run.state = replace(run.state, balances=PersistentMap(full))
    (fact,) = run.when(published(1))
    assert (fact.account, fact.amount, fact.balance) == ("ana", 1, MAX_BALANCE)
    (fact,) = run.when(proven(NODES[0].public_key))
    assert (fact.amount, fact.balance) == (-1, MIN_BALANCE)
    assert codec.decode(codec.encode(fact)) == fact
    assert run.when(proven(NODES[0].public_key)) == []


def test_the_recommended_rule_may_be_configured() -> None:
    assert (
        find_configuration_problem(replace(CONFIG, reward_rule=RECOMMENDED_RULE))
        is None
    )


@pytest.mark.parametrize("number", [0, 1])
def test_every_change_may_be_a_leaf(number: int) -> None:
    fact = e.BalanceChanged(
        round=number,
        account="node:one",
        amount=-1,
        balance=-1,
        basis=Basis.EQUIVOCATION,
        cause_leaf_index=0,
        **CAUSE,
    )
    assert find_problem(fact) is None


def test_the_state_survives_the_cache_of_its_service() -> None:
    """A tuple, as pydantic wants no settings from outside for a dataclass alone."""
    snapshots = TypeAdapter(
        tuple[RewardsState],
        config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"),
    )
    run = founded().given(*ROUND, published(1), started(2))
    state = replace(
        run.state, unpaid={**run.state.unpaid, 2: UnpaidRound(gain_micros=3)}
    )
    assert state.balances
    assert state.node_names
    assert snapshots.validate_json(snapshots.dump_json((state,))) == (state,)
