"""An operator who wants one agent's update from two sums, with real agents and parties.

Nobody lies but the operator: it gives rounds up, revokes, asks again.
"""

import numpy as np
import pytest

import protocol.rounds
from consumers.audit.auditor import run_audit
from consumers.audit.report import FindingCode
from protocol.modes.mpc import phases
from protocol.modes.mpc.checker import MpcShape, parse_partial
from protocol.modes.mpc.round import see
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import make_key, unframe
from tests.mpc_builder import start_mpc_log

SIX = ("ada", "bea", "cleo", "dora", "eve", "finn")


def silence_the_aggregator(log, author, event):
    return (
        [] if isinstance(event, e.AggregateSubmitted) and not event.party else [event]
    )


def hold_back(party):
    """Let a party give no part."""

    def speak(log, author, event):
        is_part = isinstance(event, e.PartialAggregateSubmitted)
        return [] if is_part and event.party == party else [event]

    return speak


def run_round(log):
    """Ask for a round and let its cohort say the same as ever for its base model."""
    cohort = log.request_round()
    base = log.started.base_model.sha256 if cohort else b""
    for agent in cohort:
        seed = int.from_bytes(agent.encode() + base[:8], "big")
        values = np.random.default_rng(seed).integers(-900, 900, log.num_parameters)
        log.commit(agent, values=values)
    log.settle()
    return cohort


def give_up(log):
    """Let the operator give up the round; returns what becomes of that."""
    number = log.started.round
    event = e.RoundAbandonRequested(
        federation_id=log.federation_id, round=number, explanation="mishap"
    )
    log.say(event, make_key("OPERATOR"))
    log.settle()
    kinds = (e.RoundRefused, e.RoundAbandoned)
    answer = [x for x in log.leaves if isinstance(x, kinds)][-1]
    return type(answer), answer.reason


def forget_who_was_summed(monkeypatch):
    """Break the rule of the log that whoever may have been summed is not drawn."""
    for module in (protocol.rounds, phases):
        monkeypatch.setattr(
            module, "find_drawable_agents", lambda s: frozenset(s.agents)
        )


def audit(log):
    return run_audit(
        log.records,
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=log.blobs.fetch,
        checkpoints=log.checkpoints,
    ).report


def parts_of(log, number):
    return [
        x
        for x in log.leaves
        if isinstance(x, e.PartialAggregateSubmitted) and x.round == number
    ]


def total_of(log, number):
    shape = MpcShape.of(log.config)
    parts = (
        parse_partial(log.blobs[x.partial.sha256], shape) for x in parts_of(log, number)
    )
    return sum(part.values for part in parts).view(np.int64)


def published(log):
    return [x for x in log.leaves if isinstance(x, e.AggregatePublished)]


def test_a_sum_that_is_public_is_completed_and_not_asked_for_again():
    """By whoever is there: the aggregator is gone."""
    log = start_mpc_log(*SIX, cohort_size=6, min_cohort=5)
    log.speak = silence_the_aggregator
    assert len(run_round(log)) == 6
    assert len(parts_of(log, 1)) == 3
    assert give_up(log) == (e.RoundRefused, Reason.ALL_PARTS_GIVEN)
    assert not published(log)
    log.pass_deadline()
    (model,) = published(log)
    claims = [x for x in log.leaves if isinstance(x, e.AggregateSubmitted)]
    assert {claim.party for claim in claims} == set(log.parties)
    assert len({(claim.sum.sha256, claim.model.sha256) for claim in claims}) == 1
    report = audit(log)
    assert report.is_sound, report.findings
    # On the model that follows from it everybody may be summed again.
    log.export()
    log.revoke("dora")
    assert len(run_round(log)) == 5
    assert log.config.initial_model.sha256 != model.model.sha256


def test_a_sum_of_which_a_part_is_missing_is_waited_for_if_nobody_else_is_left():
    log = start_mpc_log(*SIX, cohort_size=6, min_cohort=5)
    log.speak = hold_back("p1")
    run_round(log)
    assert len(parts_of(log, 1)) == 2
    log.revoke("dora")
    assert give_up(log) == (e.RoundRefused, Reason.NOT_ENOUGH_AGENTS)
    # The party comes back, and says what it would have said.
    log.speak = lambda log, author, event: [event]
    for event, _ in log.hands["p1"].do([_work(see(log.following["p1"].view))]):
        log.say(event, make_key("p1"))
    log.settle()
    assert len(published(log)) == 1
    assert audit(log).is_sound


def _work(secret):
    from streams.mpc.party import Work

    return Work(secret, "")


def test_an_agent_that_may_have_been_summed_is_not_drawn_again_for_that_model():
    log = start_mpc_log(*SIX, cohort_size=3, min_cohort=3)
    log.speak = hold_back("p1")
    first = run_round(log)
    assert give_up(log) == (e.RoundAbandoned, Reason.OPERATOR_ABANDONED)
    log.speak = lambda log, author, event: [event]
    second = run_round(log)
    assert not set(first) & set(second)
    assert len(published(log)) == 1
    assert audit(log).is_sound


@pytest.mark.parametrize("left", [5, 6])
def test_parties_shown_a_log_that_draws_them_again_do_not_sum_them(monkeypatch, left):
    """Whoever runs the log breaks its rules, and the parties are shown nothing else."""
    forget_who_was_summed(monkeypatch)
    log = start_mpc_log(*SIX, cohort_size=6, min_cohort=3)
    log.speak = hold_back("p1")
    run_round(log)
    assert give_up(log) == (e.RoundAbandoned, Reason.OPERATOR_ABANDONED)
    if left == 5:
        log.revoke("dora")
    log.speak = lambda log, author, event: [event]
    assert len(run_round(log)) == left
    assert parts_of(log, 2) == []
    (end,) = (x for x in log.leaves if isinstance(x, e.RoundAbandoned) and x.round == 2)
    assert end.reason == Reason.NOT_ENOUGH_CONTRIBUTIONS
    refused = [
        x for x in log.leaves if isinstance(x, e.ContributionRejected) and x.round == 2
    ]
    assert len(refused) == left
    assert all("AGENT_SUMMED_BEFORE" in x.detail for x in refused)


def test_the_audit_finds_sums_that_overlap(monkeypatch):
    """All parties have forgotten, and the log's rules let it happen."""
    forget_who_was_summed(monkeypatch)
    log = start_mpc_log(*SIX, cohort_size=6, min_cohort=5)
    log.speak = hold_back("p1")
    run_round(log)
    secret = see(log.following["p1"].view)
    (part, _) = log.hands["p1"].do([_work(secret)])[0]
    log.speak = silence_the_aggregator
    log.say(part, make_key("p1"))
    log.settle()
    # Give it up by a rule that is no more.
    monkeypatch.setattr(phases, "has_all_partials", lambda s: False)
    assert give_up(log) == (e.RoundAbandoned, Reason.OPERATOR_ABANDONED)
    log.revoke("dora")
    for name in log.parties:
        log.hands[name] = log.make_hands(name)
    run_round(log)
    assert len(parts_of(log, 2)) == 3
    # It is what the attack wants.
    update = total_of(log, 1) - total_of(log, 2)
    assert np.any(update)
    report = audit(log)
    codes = [finding.code for finding in report.findings]
    assert FindingCode.SUMS_OVERLAP in codes
    monkeypatch.undo()
    codes = [finding.code for finding in audit(log).findings]
    assert {FindingCode.SUMS_OVERLAP, FindingCode.FACT_DIFFERS} <= set(codes)
