"""What `moot rewards` prints, and how `moot federation create` reads a rule."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

from cli.rewards import (
    follow_rewards,
    list_balances,
    list_changes,
    parse_reward_rule,
    summarise,
)
from cli.stack.processes import StackError
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import LogState, OpenedLeaf, open_block
from protocol.rewards import RECOMMENDED_RULE, Basis, RewardsState
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.builders import LogBuilder, make_key, unframe
from tests.paths import ROOT

PAGE = ROOT / "docs" / "howto" / "rewards.md"
RULE = e.RewardRule(
    per_contribution=100,
    per_accuracy_percent=10,
    missed_assignment=5,
    equivocation=1_000,
)


def read(builder: LogBuilder) -> Iterator[OpenedLeaf]:
    state = LogState()
    for record in builder.records:
        signature = record.header(SIGNATURE_HEADER)
        state, _, leaves = open_block(state, unframe(record.value), signature)
        yield from leaves


@pytest.fixture(scope="module")
def builder() -> LogBuilder:
    """A round without one of three agents; a ledger node that two others caught; and
    a balance that the decider made up.
    """
    builder = LogBuilder(cohort_size=3, reward_rule=RULE)
    builder.found()
    builder.admit("ana", "bea", "cem")
    builder.request_round()
    builder.submit("ana")
    builder.submit("cem")
    builder.settle()
    builder.check()
    builder.pass_deadline()
    builder.aggregate()
    builder.export()
    builder.equivocate("node3", reported_by="node0")
    builder.equivocate("node3", reported_by="node1")
    lie = e.BalanceChanged(
        federation_id=builder.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=len(builder.leaves) - 1,
        output_index=0,
        account="dan",
        amount=10**6,
        balance=10**6,
        basis="UTILITY",
    )
    builder.say(lie, make_key("DECIDER"))
    builder.settle()
    assert builder.leaves[-1] == lie
    return builder


def test_a_contradiction_is_paid_for_once_whoever_reports_it(builder):
    [refused] = [r for r in builder.refused if r.source_topic == topics.PROOFS]
    assert refused.reason == Reason.DUPLICATE_EVENT
    _, changes = follow_rewards(read(builder))
    [change] = [change for change in changes if change.basis == Basis.EQUIVOCATION]
    assert (change.account, change.amount, change.round) == ("node:node3", -1_000, 0)


def test_balances_follow_from_the_log_and_not_from_what_is_said_of_them(builder):
    state, changes = follow_rewards(read(builder))
    assert set(state.balances) == {"ana", "bea", "cem", "node:node3"}
    assert state.balances["node:node3"] == -1_000
    assert state.balances["bea"] == -5
    # Two contributions, and 90 percentage points from nothing.
    assert state.balances["ana"] + state.balances["cem"] == 2 * 100 + 900
    for change in changes:
        cause = builder.leaves[change.cause_leaf_index]
        assert isinstance(
            cause,
            e.RoundSealed
            | e.AggregatePublished
            | e.ModelVersionRegistered
            | e.EquivocationProven,
        )
    assert [change.basis for change in changes] == [
        "MISSED_ASSIGNMENT",
        *["CONTRIBUTION"] * 2,
        *["UTILITY"] * 2,
        "EQUIVOCATION",
    ]


def test_json_has_the_rule_the_balances_and_on_request_the_history(builder):
    state, changes = follow_rewards(read(builder))
    short = json.loads(json.dumps(summarise(state, changes, history=False)))
    assert short["balances"] == dict(state.balances)
    assert list(short["balances"]) == ["ana", "bea", "cem", "node:node3"]
    assert short["rule"]["missed_assignment"] == 5
    assert "history" not in short
    history = json.loads(json.dumps(summarise(state, changes, history=True)))["history"]
    assert len(history) == len(changes)
    assert history[0] == {
        "leaf_index": changes[0].cause_leaf_index,
        "round": 1,
        "account": "bea",
        "basis": "MISSED_ASSIGNMENT",
        "amount": -5,
        "balance": -5,
    }


def test_the_table_has_the_highest_balance_first():
    balances = {"ana": -3, "node:one": 7, "cem": 7, "bea": 10**9}
    assert list(list_balances(RewardsState(rule=RULE, balances=balances))) == [
        "     balance account",
        "  1000000000 bea",
        "           7 cem",
        "           7 node:one",
        "          -3 ana",
    ]


def test_an_empty_table_says_why():
    assert list(list_balances(RewardsState(rule=RULE))) == [
        "no balance has changed yet"
    ]
    [line] = list_balances(RewardsState())
    assert "no reward_rule" in line


def test_the_history_has_a_line_for_each_change():
    change = e.BalanceChanged(
        federation_id="clinics",
        round=3,
        cause=bytes(32),
        cause_leaf_index=41,
        output_index=0,
        account="ana",
        amount=5,
        balance=-1,
        basis=Basis.MISSED_ASSIGNMENT,
    )
    heading, first, second = list_changes(
        [change, replace(change, round=0, amount=-5_000, basis=Basis.EQUIVOCATION)]
    )
    assert heading.split() == ["leaf", "round", "amount", "balance", "basis", "account"]
    assert first.split() == ["41", "3", "+5", "-1", "MISSED_ASSIGNMENT", "ana"]
    assert second.split() == ["41", "-5000", "-1", "EQUIVOCATION", "ana"]
    for line in (first, second):
        assert line.index("ana") == heading.index("account")


def test_a_rule_is_the_recommended_one_with_other_values():
    assert parse_reward_rule([]) == RECOMMENDED_RULE
    assert parse_reward_rule(["failed_proof=7", "equivocation=0"]) == replace(
        RECOMMENDED_RULE, failed_proof=7, equivocation=0
    )
    assert parse_reward_rule(["none=0"]) is None
    only = e.RewardRule(per_contribution=1)
    assert parse_reward_rule(["none=0", "per_contribution=1"]) == only
    assert parse_reward_rule(["per_contribution=1", "none=0"]) == only


@pytest.mark.parametrize(
    "texts",
    [
        ["luck=1"],
        ["failed_proof"],
        ["failed_proof="],
        ["failed_proof=-1"],
        ["failed_proof=1.5"],
        ["failed_proof=²"],
        ["failed_proof=" + "1" * 19],
        ["failed_proof=1", "failed_proof=1"],
        ["none=1"],
        [""],
    ],
)
def test_a_rule_that_is_not_written_like_that_is_refused(texts):
    with pytest.raises(StackError, match="is not NAME=POINTS"):
        parse_reward_rule(texts)


def test_every_basis_is_explained_and_no_other():
    page = PAGE.read_text(encoding="utf-8")
    assert set(re.findall(r"^\| `([A-Z_]+)` \|", page, re.MULTILINE)) == set(Basis)


def test_the_recommended_rule_is_shown():
    page = PAGE.read_text(encoding="utf-8")
    shown = dict(re.findall(r"^\| `([a-z_]+)` \| ([\d,]+) \|", page, re.MULTILINE))
    values = {name: int(text.replace(",", "")) for name, text in shown.items()}
    assert e.RewardRule(**values) == RECOMMENDED_RULE
    assert set(values) == set(e.RewardRule.__slots__)
