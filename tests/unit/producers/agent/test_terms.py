"""The terms that an agent takes part under."""

from __future__ import annotations

from dataclasses import replace

import pytest

from adapters.kafka_log import Genesis
from producers.agent.terms import Floors, Terms, accept_task
from protocol.changes import make_change
from protocol.configuration import compute_task_digest
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import LogBuilder, make_key

ME = "ada"


@pytest.fixture
def log():
    log = LogBuilder(cohort_size=2)
    log.found()
    log.admit("ada", "bea")
    return log


def config_of(log):
    (config,) = [x for x in log.leaves if isinstance(x, e.FederationConfigured)]
    return config


def read_genesis(log):
    return Genesis(config_of(log), log.opened[0].sequenced.genesis)


def start(log):
    """Ask for a round; returns the fact that began it."""
    log.request_round()
    return [x for x in log.leaves if isinstance(x, e.RoundStarted)][-1]


def change(log, number=1, signer="OPERATOR", **changes):
    changed = replace(config_of(log), **changes)
    log.say(make_change(changed, number), make_key(signer))
    log.settle()


def read(log, directory, task=None, **floors):
    """Return an agent's terms, once it has read the log."""
    terms = Terms(directory, Floors(**floors), read_genesis(log), ME)
    for leaf in log.opened:
        terms.learn(leaf)
    terms.accept_first(task)
    return terms


def reason_of(terms, started):
    problem = terms.find_problem(started)
    return None if problem is None else problem[0]


def other_task(log, **changes):
    return replace(config_of(log).task, **changes)


def test_an_agent_takes_part_in_what_it_joined(log, tmp_path):
    terms = read(log, tmp_path)
    assert reason_of(terms, start(log)) is None


@pytest.mark.parametrize(("floor", "reason"), [(2, None), (3, Reason.COHORT_TOO_SMALL)])
def test_below_its_floor_an_agent_declines(log, tmp_path, floor, reason):
    terms = read(log, tmp_path, min_cohort=floor)
    assert reason_of(terms, start(log)) is reason


def test_an_agent_may_want_nobody_to_see_its_update(log, tmp_path):
    terms = read(log, tmp_path, modes=("mpc",))
    assert reason_of(terms, start(log)) is Reason.MODE_NOT_ALLOWED


@pytest.mark.parametrize(
    "changes",
    [
        {"module": "other.package:Module"},
        {"module_config": '{"a": 1}'},
        {"data_module": "other.package:Data"},
        {"data_config": '{"a": 1}'},
    ],
)
def test_another_task_is_run_once_its_owner_has_accepted_it(log, tmp_path, changes):
    read(log, tmp_path)
    task = other_task(log, **changes)
    change(log, task=task)
    started = start(log)
    terms = read(log, tmp_path)
    problem = terms.find_problem(started)
    assert problem is not None
    assert problem[0] is Reason.TASK_NOT_ACCEPTED
    assert compute_task_digest(task).hex() in problem[1]
    accept_task(tmp_path, compute_task_digest(task))  # beside the agent that runs
    assert terms.find_problem(started) is None


def test_more_epochs_are_no_other_task(log, tmp_path):
    read(log, tmp_path)
    change(log, task=other_task(log, local_epochs=9))
    assert reason_of(read(log, tmp_path), start(log)) is None


def test_a_first_start_may_be_told_its_task(log, tmp_path):
    expected = compute_task_digest(config_of(log).task)
    assert reason_of(read(log, tmp_path / "a", task=expected), start(log)) is None
    terms = read(log, tmp_path / "b", task=bytes(32))
    started = [x for x in log.leaves if isinstance(x, e.RoundStarted)][-1]
    assert reason_of(terms, started) is Reason.TASK_NOT_ACCEPTED


def test_the_arguments_are_not_run_into_each_other(log):
    one = other_task(log, module_config="ab", data_module="c")
    two = other_task(log, module_config="a", data_module="bc")
    assert compute_task_digest(one) != compute_task_digest(two)


def test_a_decider_starts_no_task_that_the_operator_did_not_sign(log, tmp_path):
    terms = read(log, tmp_path)
    started = start(log)
    accept_task(tmp_path, compute_task_digest(other_task(log, module="evil.code:X")))
    for lie in (
        replace(started, task=other_task(log, module="evil.code:X")),
        replace(started, task=other_task(log, local_epochs=1_000)),
        replace(started, fractional_bits=1),
        replace(started, num_parameters=1),
        replace(started, change=1),
        replace(started, change=-1),
    ):
        assert reason_of(terms, lie) is Reason.UNKNOWN_CONFIGURATION


def test_a_decider_does_not_go_back_to_what_was_looser(log, tmp_path):
    before = start(log)
    change(log, min_cohort=3, cohort_size=3)
    terms = read(log, tmp_path)
    later = replace(before, round=2, change=1)
    assert reason_of(terms, later) is None
    assert terms.config.min_cohort == 3
    again = replace(before, round=3)
    assert reason_of(terms, again) is Reason.UNKNOWN_CONFIGURATION


def test_a_change_that_the_operator_did_not_sign_has_no_effect(log, tmp_path):
    terms = read(log, tmp_path)
    started = start(log)
    changed = replace(config_of(log), min_cohort=3)
    forged = log.opened[-1]
    for key, config in (("SEQUENCER", changed), ("OPERATOR", config_of(log))):
        event = make_change(config, 1)
        terms.learn(
            replace(
                forged,
                leaf=replace(forged.leaf, event=b"", signature=bytes(64)),
                sequenced=replace(forged.sequenced, event=event),
            )
        )
        assert not terms.knows(replace(started, change=1)), key


def test_the_log_can_be_read_again(log, tmp_path):
    change(log, cohort_size=3)
    terms = read(log, tmp_path)
    for leaf in log.opened:
        terms.learn(leaf)
    started = start(log)
    assert terms.knows(started)
    assert not terms.knows(replace(started, change=2))


def test_an_agent_knows_from_the_log_that_it_is_not_a_member(log, tmp_path):
    stranger = Terms(tmp_path, Floors(), read_genesis(log), "zoe")
    member = Terms(tmp_path, Floors(), read_genesis(log), "ada")
    assert not member.is_member
    for leaf in log.opened:
        stranger.learn(leaf)
        member.learn(leaf)
    assert (member.is_member, stranger.is_member) == (True, False)
    log.say(
        e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="left"),
        make_key("OPERATOR"),
    )
    log.settle()
    # From the beginning again, as an agent does that looks for news.
    for leaf in log.opened:
        member.learn(leaf)
    assert not member.is_member
