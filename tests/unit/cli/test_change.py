"""`moot federation change`: what it shows, and that it shows before it signs."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from typer.testing import CliRunner

import cli.operate
from cli.main import app
from cli.stack.processes import StackError
from cli.strategies import parse_parameters
from protocol.changes import make_change
from protocol.configuration import read_configuration
from schemas import codec
from tests.builders import LogBuilder, make_key
from tests.simulation.federation import FEDERATION, MPC_CONFIG


class Stack:
    """A federation without a stack: its log, and what the operator signed."""

    def __init__(self) -> None:
        self.log = LogBuilder(cohort_size=4)
        self.log.found()
        self.signed = []

    @property
    def config(self):
        return self.log.leaves[0]

    def put(self, change, signer="OPERATOR"):
        """Let somebody's change onto the log, whatever the sequencer thinks of it."""
        leaf = self.log.opened[-1]
        data = codec.encode(change)
        signature = self.log.sign(change, data, make_key(signer))
        self.log.opened.append(
            replace(
                leaf,
                leaf=replace(leaf.leaf, event=data, signature=signature),
                sequenced=replace(leaf.sequenced, event=change),
            )
        )

    def say(self, change):
        self.signed.append(change)


@pytest.fixture
def stack(monkeypatch):
    stack = Stack()
    monkeypatch.setattr(cli.operate, "read_leaves", lambda *_: stack.log.opened)
    monkeypatch.setattr(cli.operate, "make_operator", lambda *_: stack)
    monkeypatch.setattr(cli.operate, "await_leaf", lambda *_: 9)
    monkeypatch.setattr("cli.commands.federation.find_kafka", lambda: None)
    return stack


def run(*options, answer=""):
    arguments = ["federation", "change", "-f", FEDERATION, *options]
    return CliRunner().invoke(app, arguments, input=answer)


def test_it_shows_what_changes_before_it_asks(stack):
    done = run("--cohort-size", "7", "--local-epochs", "3", answer="n\n")
    assert done.exit_code == 1
    assert "cohort_size: 4 -> 7" in done.output
    assert "task.local_epochs: 1 -> 3" in done.output
    assert done.output.index("4 -> 7") < done.output.index("Sign it?")
    assert stack.signed == []


def test_it_signs_once_it_is_told_to(stack):
    for options, answer in ((["--yes"], ""), ([], "y\n")):
        assert run("--cohort-size", "7", *options, answer=answer).exit_code == 0
    assert len(stack.signed) == 2
    for change in stack.signed:
        assert change.number == 1
        assert read_configuration(change) == replace(stack.config, cohort_size=7)


def test_as_json_it_only_shows_unless_it_is_agreed(stack):
    done = run("--min-cohort", "3", "--json")
    assert done.exit_code == 0
    assert stack.signed == []
    assert json.loads(done.output) == {
        "federation": FEDERATION,
        "number": 1,
        "changes": [{"parameter": "min_cohort", "before": 2, "after": 3}],
    }
    assert run("--min-cohort", "3", "--json", "--yes").exit_code == 0
    assert len(stack.signed) == 1


def test_it_goes_on_from_the_last_change(stack):
    stack.put(make_change(replace(stack.config, cohort_size=7), 1))
    assert run("--min-cohort", "3", "--yes").exit_code == 0
    (change,) = stack.signed
    assert change.number == 2
    assert read_configuration(change) == replace(
        stack.config, cohort_size=7, min_cohort=3
    )


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({}, "NOTHING_CHANGES"),
        ({"min_cohort": 1}, "LOOSENS_PROTECTION"),
        ({"cohort_size": 1}, "INVALID_CONFIGURATION"),
        ({"task.module": "x"}, "INVALID_TASK"),
        ({"strategy_parameters": parse_parameters(["mu=1"])}, "INVALID_CONFIGURATION"),
        ({"strategy": "FEDADAM"}, "NOT_CHANGEABLE"),
        ({"rules_version": 2**31 - 1}, "rules is not known"),
        ({"mpc.norm_bound": 1}, "no mpc"),
    ],
)
def test_what_may_not_be_changed_is_not_signed(stack, changes, word):
    with pytest.raises(StackError, match=word):
        cli.operate.propose_change(None, FEDERATION, changes)


def test_what_the_operator_did_not_sign_is_not_signed_with_the_next(stack):
    task = replace(stack.config.task, module="evil.code:X")
    slipped = make_change(replace(stack.config, task=task), 1)
    stack.put(slipped, signer="SEQUENCER")
    assert run("--cohort-size", "7", "--yes").exit_code == 0
    (change,) = stack.signed
    assert change.number == 1
    assert read_configuration(change) == replace(stack.config, cohort_size=7)


def test_a_section_is_changed_from_inside(stack, monkeypatch):
    monkeypatch.setattr(cli.operate, "read_newest", lambda *_: (MPC_CONFIG, 0))
    change, (difference,) = cli.operate.propose_change(
        None, FEDERATION, {"mpc.norm_bound": 99_999}
    )
    assert (difference.name, difference.after) == ("mpc.norm_bound", 99_999)
    assert read_configuration(change).mpc.parties == MPC_CONFIG.mpc.parties


def test_parameters_of_the_strategy_are_changed_as_they_are_founded(stack):
    assert run("--strategy-parameter", "learning_rate=0.5", "--yes").exit_code == 0
    (chosen,) = read_configuration(stack.signed[0]).strategy_parameters
    assert (chosen.name, chosen.value_micros) == ("learning_rate", 500_000)


def test_rewards_are_changed_as_they_are_founded(stack):
    assert (
        run("--reward", "none=0", "--reward", "failed_proof=7", "--yes").exit_code == 0
    )
    rule = read_configuration(stack.signed[0]).reward_rule
    assert (rule.failed_proof, rule.per_contribution) == (7, 0)
