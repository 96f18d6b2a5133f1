"""Arguments are checked before settings, and settings before connections."""

import json
import os
import sys

import pytest

import cli.main
from tests.commands import COMMANDS, EXEMPT, KEY, WHERE, list_names

NOWHERE = "127.0.0.1:1"


@pytest.fixture(autouse=True)
def _kafka_listens():
    """Nothing does."""


@pytest.fixture
def moot(monkeypatch, capsys, tmp_path):
    """Run `moot` in this process, with these settings only; returns what it says."""
    for name in os.environ:
        if name.startswith("MOOT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("FOLKMOOT_STATE", str(tmp_path / "no-stack"))
    monkeypatch.chdir(tmp_path)
    proposal = tmp_path / "proposal"
    content = {"federation_id": "nowhere", "chain_id": KEY, "era": 1}
    nodes = {"nodes": [f"a={KEY}@http://a:1"], "approvals": {}}
    proposal.write_text(json.dumps({**content, **nodes}))

    def run(arguments, **settings):
        for name, value in settings.items():
            monkeypatch.setenv(name, value)
        filled = [
            text.format(federation="nowhere", proposal=proposal) for text in arguments
        ]
        monkeypatch.setattr(sys, "argv", ["moot", *filled])
        with pytest.raises(SystemExit) as end:
            cli.main.main()
        said = capsys.readouterr().err
        assert end.value.code == 2, said
        assert "error: " in said
        assert "Traceback" not in said
        assert "MOOT_DEBUG" not in said, "not one of our own messages"
        return said

    return run


def test_every_command_is_in_the_table():
    calls = {name for name in COMMANDS if not name.startswith("serve ")}
    assert {*list_names()} == calls | {*EXEMPT}


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.wrong])
def test_a_wrong_argument_is_named_before_a_missing_setting(moot, name):
    arguments, says = COMMANDS[name].wrong
    assert says in moot(arguments)


@pytest.mark.parametrize(
    "name", [n for n, c in COMMANDS.items() if {*WHERE} <= {*c.arguments}]
)
def test_what_cannot_be_a_federations_name_is_an_argument_too(moot, name):
    arguments = ["A B" if a == WHERE[1] else a for a in COMMANDS[name].arguments]
    assert "'A B' cannot be a federation's name" in moot(arguments)


CREATE = COMMANDS["federation create"].arguments


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*CREATE, "--module-config", "x"), "--module-config is not JSON"),
        ((*CREATE, "--data-config", "[]"), "--data-config must be a JSON object"),
        ((*CREATE, "--principal", "OPERATOR=none"), "must be this machine's"),
        ((*CREATE, "--principal", "X=none"), "no such principal: 'X'"),
        ((*CREATE, "--principal", "DECIDER=none"), "INVALID_PRINCIPALS"),
        ((*CREATE, "--cohort-size", "2", "--min-cohort", "3"), "must be min_cohort to"),
        (("federation", "change", *WHERE, "--data-config", "x"), "is not JSON"),
        (("agent", "admit", "A!", *WHERE, "--public-key", KEY), "an agent's name"),
    ],
)
def test_other_wrong_arguments_are(moot, arguments, says):
    assert says in moot(arguments)


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if c.needs])
def test_a_missing_setting_is_named(moot, name):
    said = moot(COMMANDS[name].arguments)
    assert "MOOT_BOOTSTRAP_SERVERS: not set" in said
    assert "MOOT_SCHEMA_REGISTRY_URL: not set" in said
    assert "moot status --env" in said


SETTINGS = {
    "MOOT_BOOTSTRAP_SERVERS": NOWHERE,
    "MOOT_SCHEMA_REGISTRY_URL": f"http://{NOWHERE}",
}


@pytest.mark.parametrize(
    "name", [n for n, c in COMMANDS.items() if "minio" in c.needs and c.stays]
)
def test_minio_is_missing_before_anything_is_reached(moot, name):
    """Others find Kafka away first, which is as good."""
    assert "set MOOT_MINIO_ENDPOINT" in moot(COMMANDS[name].arguments, **SETTINGS)


@pytest.mark.parametrize("name", [n for n, c in COMMANDS.items() if "kafka" in c.needs])
def test_a_kafka_that_is_away_is_named_with_its_address_and_setting(moot, name):
    said = moot(COMMANDS[name].arguments, **SETTINGS)
    # Kafka's own clients would not say why, and only after 10 s.
    assert f"at {NOWHERE} (MOOT_BOOTSTRAP_SERVERS): Connection refused" in said


def test_a_schema_registry_that_is_away_is_named(moot):
    said = moot(COMMANDS["schemas register"].arguments, **SETTINGS)
    assert f"at http://{NOWHERE} (MOOT_SCHEMA_REGISTRY_URL)" in said
