"""A federation that changes during its life: its whole log, replayed and audited."""

from __future__ import annotations

from dataclasses import replace

import pytest

from protocol.changes import make_change
from schemas import events as e
from tests.builders import LogBuilder, make_key
from tests.unit.consumers.audit.test_auditor import audit, codes

SECOND_RULE = e.RewardRule(per_contribution=7)


def say_change(log, number, **changes):
    changed = replace(log.leaves[0], **changes)
    log.say(make_change(changed, number), make_key("OPERATOR"))
    log.settle()


def make_log(send_fact=None):
    """Return a log with a change within a round, and one between two rounds."""
    options = {} if send_fact is None else {"send_fact": send_fact}
    log = LogBuilder(cohort_size=3, min_cohort=2, ledger_nodes=(), **options)
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    cohort = log.request_round()
    say_change(log, 1, cohort_size=4, min_cohort=3, reward_rule=SECOND_RULE)
    for agent in cohort[:2]:  # enough for this round, too few for the next
        log.submit(agent)
    log.decline(cohort[2])
    log.settle()
    log.check()
    log.aggregate()
    log.export()
    log.run_round()
    say_change(log, 2, cohort_size=3, min_cohort=3, round_duration_ms=50_000)
    log.run_round()
    return log


@pytest.fixture(scope="module")
def log():
    return make_log()


def of(log, kind):
    return [event for event in log.leaves if isinstance(event, kind)]


def test_a_changed_federation_is_sound(log):
    assert codes(audit(log)) == []
    assert log.refused == []


def test_each_round_has_the_configuration_that_it_began_with(log):
    rounds = of(log, e.RoundStarted)
    assert [started.change for started in rounds] == [0, 1, 2]
    assert [started.num_drawn for started in rounds] == [3, 4, 3]
    sealed = of(log, e.RoundSealed)
    assert [fact.num_contributions for fact in sealed] == [2, 4, 3]
    earned = [x for x in of(log, e.BalanceChanged) if x.basis == "CONTRIBUTION"]
    assert all((x.amount == 7) == (x.round == 2) for x in earned)
    assert {x.round for x in earned} == {1, 2, 3}


def test_a_decider_that_ignores_a_change_is_found():
    def ignore(fact):
        if isinstance(fact, e.RoundStarted) and fact.change == 1:
            return [replace(fact, change=0)]
        return [fact]

    assert "FACT_DIFFERS" in codes(audit(make_log(send_fact=ignore)))


@pytest.mark.parametrize(
    ("number", "changes"),
    [(3, {"min_cohort": 1}), (1, {"cohort_size": 4}), (3, {"nonce": b"\x07" * 32})],
)
def test_a_sequencer_that_lets_pass_what_may_not_be_is_found(number, changes):
    log = make_log()
    before = log._rounds
    change = make_change(replace(before.config, **changes), number)
    leaf = log.make_leaf(change, make_key("OPERATOR"))
    log.append([(leaf, change)])
    assert codes(audit(log)) == ["NOT_ADMISSIBLE"]
    assert log._rounds.config == before.config
