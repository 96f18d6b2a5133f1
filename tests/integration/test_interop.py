"""Programs without our code take part: any Avro serializer and consumer will do."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka.schema_registry import Schema, SchemaRegistryClient
from confluent_kafka.schema_registry.error import SchemaRegistryError

from ledger.signing import SigningKey
from schemas import codec, topics
from schemas import events as e
from tests.integration.harness import Federation, World
from tests.paths import ROOT

HERE = Path(__file__).parent
RECORD = [topic for topic in topics.EVENTS if topic != topics.HEARTBEATS]
"""Topics that have an end: there is always one more heartbeat."""
OUR_PACKAGES = {
    "adapters", "cli", "consumers", "ledger", "producers", "protocol", "schemas",
    "streams", "tests",
}  # fmt: skip


def test_a_plain_consumer_reads_every_record(world: World, main: Federation) -> None:
    read = _run_plain(
        world,
        "plain_consumer.py",
        world.settings.bootstrap_servers,
        world.settings.schema_registry_url,
        main.name,
        *RECORD,
    )

    seen = [json.loads(line) for line in read.splitlines()]
    published = {
        (topic, record.offset)
        for topic in RECORD
        for record in world.records(topic, main.name)
    }
    assert {(line["topic"], line["offset"]) for line in seen} == published
    assert {line["federation"] for line in seen} == {main.name}
    assert all("traceparent" in line["headers"] for line in seen)
    # One round is behind us: every topic has something on it, but for those of refusals
    # and of ledger nodes, which this federation does without.
    empty = {topics.REJECTED, topics.PROOFS, topics.ATTESTATIONS}
    assert {line["topic"] for line in seen} >= set(RECORD) - empty


def test_a_plain_producer_takes_part_in_a_round(world: World) -> None:
    federation = world.found("plain")
    program = subprocess.Popen(
        _plain_command(
            "plain_producer.py",
            world.settings.bootstrap_servers,
            world.settings.schema_registry_url,
            world.settings.minio_endpoint,
            federation.name,
            federation.genesis.hex(),
            "outsider",
        ),
        env=_plain_environment(world),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        asked = federation.wait(e.AgentEnrolmentRequested, agent_id="outsider")
        federation.operator.admit(federation.name, {"outsider": asked.public_key})
        federation.wait(e.AgentAdmitted, agent_id="outsider")
        number = federation.request_round()
        federation.wait(e.AggregatePublished, round=number)
        output, errors = program.communicate(timeout=60)
    finally:
        program.kill()

    assert program.returncode == 0, errors
    assert json.loads(output) == {"reason": "accepted"}
    accepted = federation.wait(e.ContributionAccepted, agent_id="outsider")
    assert accepted.num_examples == 25
    assert federation.audit()["num_rounds_recomputed"] == 1


def read_page() -> str:
    """Return the program on the page about producers."""
    page = (ROOT / "docs" / "howto" / "plain-producer.md").read_text(encoding="utf-8")
    [program] = re.findall(r"^```python\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    return str(program)


def test_the_page_about_producers_runs_as_it_stands(
    world: World, tmp_path: Path
) -> None:
    federation = world.found("by-the-page")
    (tmp_path / "join.py").write_text(read_page())
    (tmp_path / "agent.seed").write_bytes(bytes(range(32)))
    done = subprocess.run(
        [sys.executable, "join.py", federation.name, "aster", federation.genesis.hex()],
        cwd=tmp_path,
        env={
            "PATH": os.environ["PATH"],
            "MOOT_BOOTSTRAP_SERVERS": world.settings.bootstrap_servers,
            "MOOT_SCHEMA_REGISTRY_URL": world.settings.schema_registry_url,
        },
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    asked = federation.wait(e.AgentEnrolmentRequested, agent_id="aster")
    assert asked.public_key == SigningKey(bytes(range(32))).public_key
    assert done.stdout.strip() == asked.public_key.hex()
    assert federation.audit()["is_sound"]


@pytest.mark.parametrize("program", ["plain_consumer.py", "plain_producer.py", ""])
def test_the_plain_programs_import_nothing_of_ours(program: str) -> None:
    text = (HERE / program).read_text(encoding="utf-8") if program else read_page()
    tree = ast.parse(text)

    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported
    assert not imported & OUR_PACKAGES


@pytest.mark.skipif(shutil.which("kcat") is None, reason="kcat is not installed")
def test_kcat_reads_every_topic(world: World, main: Federation) -> None:
    for topic in RECORD:
        read = _kcat(
            world, "-C", "-e", "-q", "-o", "beginning", "-t", topic, "-f", r"%k %o %S\n"
        )
        lines = [line.rsplit(" ", 2) for line in read.splitlines()]
        mine = [line for line in lines if line[0] == main.name]

        assert [(int(offset), int(size)) for _, offset, size in mine] == [
            (record.offset, len(record.value or b""))
            for record in world.records(topic, main.name)
        ]


@pytest.mark.skipif(
    shutil.which("kcat") is None or "Avro" not in subprocess.getoutput("kcat -V"),
    reason="kcat is not installed, or was built without Avro",
)
def test_kcat_decodes_the_events(world: World, main: Federation) -> None:
    read = _kcat(
        world, "-C", "-e", "-q", "-o", "beginning", "-t", topics.ROUNDS,
        "-s", "value=avro", "-r", world.settings.schema_registry_url,
    )  # fmt: skip

    facts = [json.loads(line) for line in read.splitlines()]
    assert main.name in {fact["federation_id"] for fact in facts}


def test_the_schema_registry_refuses_an_incompatible_change(world: World) -> None:
    client = SchemaRegistryClient({"url": world.settings.schema_registry_url})
    subject = topics.subject(topics.UPDATES, e.UpdateDeclined)
    schema = json.loads(codec.schema_text("UpdateDeclined"))
    versions = client.get_versions(subject)

    for changed in (
        _with_field(schema, {"name": "weight", "type": "long"}),  # no default
        _without_field(schema, "detail"),
        _with_type(schema, "round", "string"),
    ):
        with pytest.raises(SchemaRegistryError) as refused:
            client.register_schema(subject, Schema(json.dumps(changed), "AVRO"))
        assert refused.value.http_status_code == 409
    assert client.get_versions(subject) == versions


def test_the_schema_registry_takes_a_new_field_with_a_default(
    world: World, main: Federation
) -> None:
    client = SchemaRegistryClient({"url": world.settings.schema_registry_url})
    subject = topics.subject(topics.UPDATES, e.UpdateDeclined)
    schema = json.loads(codec.schema_text("UpdateDeclined"))
    evolved = _with_field(schema, {"name": "retry", "type": "boolean", "default": True})

    client.register_schema(subject, Schema(json.dumps(evolved), "AVRO"))
    try:
        main.run_round()  # our programs go on with the version that they know
    finally:
        newest = max(client.get_versions(subject))
        client.delete_version(subject, newest)


def _with_field(schema: Any, field: dict[str, Any]) -> Any:
    return {**schema, "fields": [*schema["fields"], field]}


def _without_field(schema: Any, name: str) -> Any:
    return {**schema, "fields": [f for f in schema["fields"] if f["name"] != name]}


def _with_type(schema: Any, name: str, kind: str) -> Any:
    fields = [f | {"type": kind} if f["name"] == name else f for f in schema["fields"]]
    return {**schema, "fields": fields}


def _run_plain(world: World, program: str, *arguments: str) -> str:
    finished = subprocess.run(
        _plain_command(program, *arguments),
        env=_plain_environment(world),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


def _plain_command(program: str, *arguments: str) -> list[str]:
    # -I: neither the environment nor the current directory adds to what it finds.
    return [sys.executable, "-I", str(HERE / program), *arguments]


def _plain_environment(world: World) -> dict[str, str]:
    return {
        "PATH": os.environ["PATH"],
        "MINIO_ACCESS_KEY": world.endpoints.minio_access_key,
        "MINIO_SECRET_KEY": world.endpoints.minio_secret_key,
    }


def _kcat(world: World, *arguments: str) -> str:
    finished = subprocess.run(
        ["kcat", "-b", world.settings.bootstrap_servers, *arguments],
        capture_output=True,
        text=True,
        errors="replace",
        timeout=60,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
