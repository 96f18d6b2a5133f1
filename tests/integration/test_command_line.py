"""The command line: a federation that is run with it, and errors that are sentences."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.stack.fork_server import ForkServer
from tests.commands import COMMANDS, KEY
from tests.integration.harness import (
    MAY_RUN,
    NUM_PARAMETERS,
    SYNTHETIC,
    Federation,
    World,
    run_moot,
    wait_until,
)

NOWHERE = "127.0.0.1:1"


def test_a_federation_can_be_run_from_the_command_line(
    world: World, tmp_path: Path
) -> None:
    def moot(*arguments: str, code: int = 0) -> str:
        finished = world.moot(*arguments)
        assert finished.returncode == code, (
            arguments,
            finished.stdout,
            finished.stderr,
        )
        assert "Traceback" not in finished.stderr
        return finished.stdout

    here = ("--federation", "typed")
    founded = moot(
        "federation", "create", *here, "--module", SYNTHETIC.module,
        "--module-config", SYNTHETIC.module_config,
        "--data-module", SYNTHETIC.data_module, *MAY_RUN, "--min-cohort", "1",
    )  # fmt: skip
    operator_key = founded.split()[-1]
    assert operator_key == world.operator_key.public_key.hex()
    world.start_exporter("typed")
    world.services.start(
        "agent-typed", "agent", "run", "ann", *here, "--operator-key", operator_key,
        *MAY_RUN,
    )  # fmt: skip
    federation = world.join("typed")
    [asked] = wait_until(
        lambda: json.loads(moot("agent", "list", *here, "--json")), "ann asks"
    )
    assert (asked["agent"], asked["state"]) == ("ann", "asked")
    moot("agent", "admit", "ann", *here, "--public-key", asked["public_key"])
    _wait_for_state(federation, moot, "admitted")

    assert "round 1 version 1" in moot("round", "start", *here)

    shown = json.loads(moot("federation", "show", *here, "--json"))
    assert shown["num_parameters"] == NUM_PARAMETERS
    assert (shown["last_round"], shown["model_version"]) == (1, 1)
    assert shown["operator_key"] == operator_key
    [version] = json.loads(moot("registry", "list", *here, "--json"))
    assert version["version"] == 1
    for form, magic in (("onnx", b""), ("safetensors", b"{")):
        output = tmp_path / f"model.{form}"
        moot("registry", "get", "1", *here, "--format", form, "-o", str(output))
        assert magic in output.read_bytes()
    watched = moot("round", "watch", *here, "--json", "--no-follow").splitlines()
    assert len(watched) == shown["leaves"]
    assert json.loads(watched[0])["event"] == "FederationConfigured"

    moot("agent", "revoke", "ann", *here, "--because", "the test is over")
    _wait_for_state(federation, moot, "revoked")
    world.services.stop("agent-typed", "exporter-typed")
    refused = moot("round", "start", *here, code=1)
    assert "NOT_ENOUGH_AGENTS" in refused


def test_onnx_of_the_registry_runs(world: World, main: Federation, tmp_path: Path):
    import numpy as np
    import onnxruntime

    output = tmp_path / "model.onnx"
    got = world.moot(
        "registry", "get", "1", "--federation", main.name, "-o", str(output)
    )
    assert got.returncode == 0, got.stderr

    session = onnxruntime.InferenceSession(output.read_bytes())
    [inputs] = session.get_inputs()
    [answers] = session.run(None, {inputs.name: np.zeros((3, 16), dtype=np.float32)})
    assert answers.shape == (3, 2)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["federation", "show", "-f", "nowhere"], "no federation 'nowhere'"),
        (["agent", "list", "-f", "nowhere"], "no federation 'nowhere'"),
        (["round", "start", "-f", "nowhere"], "no federation 'nowhere'"),
        (["registry", "list", "-f", "nowhere"], "no federation 'nowhere'"),
        (["audit", "-f", "nowhere"], "no federation 'nowhere'"),
        (["registry", "get", "99", "-f", "main", "-o", "x"], "no version 99"),
        (
            ["registry", "get", "1", "-f", "main", "--format", "pickle", "-o", "x"],
            "no format 'pickle'",
        ),
        (["audit", "-f", "main", "--operator-key", "xyz"], "64 hex digits"),
        (
            ["agent", "admit", "eve", "-f", "main", "--public-key", "xyz"],
            "64 hex digits",
        ),
        (
            ["agent", "run", "eve", "-f", "main", "--operator-key", KEY],
            f"you trust {KEY}",
        ),
        (["schemas", "show", "Nothing"], "no event Nothing"),
        (["serve", "nothing"], "no service 'nothing'"),
        (["serve", "timer"], "serves one federation"),
        (["serve", "timer", "-f", "main"], ") serves in "),
        (["demo", "--task", "nothing"], "no example 'nothing'"),
        (
            ["federation", "create", "-f", "x", "--module", "os:system",
             "--data-module", "os:system"],
            "may not be run here; allowed",
        ),
        (
            ["federation", "create", "-f", "x", "--module", SYNTHETIC.module,
             "--module-config", SYNTHETIC.module_config,
             "--data-module", SYNTHETIC.data_module, *MAY_RUN,
             "--cohort-size", "1", "--min-cohort", "2"],
            "cohort_size must be",
        ),
        (
            ["federation", "create", "-f", "x", "--module", SYNTHETIC.module,
             "--module-config", SYNTHETIC.module_config,
             "--data-module", SYNTHETIC.data_module, "--data-config", '{"site": 1}',
             *MAY_RUN],
            "SyntheticDataModule doesn't take 'site'",
        ),
        (
            ["federation", "create", "-f", "x", "--module", SYNTHETIC.module,
             "--data-module", SYNTHETIC.data_module, "--module-config", "not JSON"],
            "JSON",
        ),
        (
            ["federation", "create", "-f", "x", "--module", SYNTHETIC.module,
             "--data-module", SYNTHETIC.data_module, "--principal", "TIMER=zz"],
            "64 hex digits",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_said_in_a_sentence(
    world: World, main: Federation, arguments: list[str], says: str
) -> None:
    finished = world.moot(*arguments)

    assert says in finished.stderr
    _assert_a_sentence(finished)


def test_without_a_stack_every_command_says_what_to_do(
    fork_server: ForkServer | None, tmp_path: Path
) -> None:
    nowhere = {"FOLKMOOT_STATE": str(tmp_path / "nothing")}

    for arguments in (
        ["topics", "create"],
        ["schemas", "register"],
        ["federation", "show", "-f", "main"],
        ["round", "start", "-f", "main"],
        ["serve", "sequencer"],
        ["audit", "-f", "main"],
    ):
        finished = run_moot(fork_server, *arguments, **nowhere)
        assert "moot up" in finished.stderr, arguments
        _assert_a_sentence(finished)


def test_without_kafka_a_command_says_so_soon(world: World) -> None:
    def moot(*arguments: str) -> subprocess.CompletedProcess[str]:
        return world.moot(*arguments, timeout_s=30, MOOT_BOOTSTRAP_SERVERS=NOWHERE)

    with ThreadPoolExecutor() as together:
        shown = together.submit(moot, "federation", "show", "-f", "main")
        created = together.submit(moot, "topics", "create")
    for finished in (shown.result(), created.result()):
        assert NOWHERE in finished.stderr
        assert "rdkafka" not in finished.stderr
        _assert_a_sentence(finished)


def _call(
    world: World, tmp_path: Path, need: str, federation: str, **settings: str
) -> dict[str, subprocess.CompletedProcess[str]]:
    """Run every command that has a need; returns what each said."""
    proposal = tmp_path / "proposal"
    content = {"federation_id": federation, "chain_id": KEY, "era": 1, "approvals": {}}
    proposal.write_text(json.dumps({**content, "nodes": [f"a={KEY}@http://a:1"]}))

    def call(name: str) -> subprocess.CompletedProcess[str]:
        arguments = [
            text.format(federation=federation, proposal=proposal)
            for text in COMMANDS[name].arguments
        ]
        return world.moot(*arguments, timeout_s=60, **settings)

    names = [n for n, c in COMMANDS.items() if need in c.needs and not c.stays]
    with ThreadPoolExecutor(4) as together:
        said = dict(zip(names, together.map(call, names), strict=True))
    for finished in said.values():
        _assert_a_sentence(finished)
    return said


def test_a_misspelt_federation_is_named_with_those_that_exist(
    world: World, main: Federation, tmp_path: Path
) -> None:
    for name, finished in _call(world, tmp_path, "federation", "mian").items():
        assert "no federation 'mian'" in finished.stderr, name
        assert "There are: " in finished.stderr, name
        assert main.name in finished.stderr, name


@pytest.mark.parametrize("service", ["timer", "exporter"])
def test_whoever_waits_for_a_misspelt_federation_says_so(
    world: World, main: Federation, service: str
) -> None:
    name = f"{service}-misspelt"
    world.services.start(name, "serve", service, "--federation", "mian")
    wait_until(
        lambda: "no federation 'mian' on this Kafka" in world.services.log_of(name),
        "it says what it waits for",
    )
    assert main.name in world.services.log_of(name)
    world.services.stop(name)


def test_a_schema_registry_that_is_away_is_named(
    world: World, main: Federation, tmp_path: Path
) -> None:
    away = {"MOOT_SCHEMA_REGISTRY_URL": f"http://{NOWHERE}"}
    for name, finished in _call(world, tmp_path, "registry", main.name, **away).items():
        where = f"at http://{NOWHERE} (MOOT_SCHEMA_REGISTRY_URL)"
        assert where in finished.stderr, (name, finished.stderr)


def test_a_minio_that_is_away_is_named(
    world: World, main: Federation, tmp_path: Path
) -> None:
    finished = world.moot(
        "registry", "get", "1", "--federation", main.name, "-o", str(tmp_path / "x"),
        MOOT_MINIO_ENDPOINT=NOWHERE,
    )  # fmt: skip
    assert f"at {NOWHERE} (MOOT_MINIO_ENDPOINT" in finished.stderr
    _assert_a_sentence(finished)
    assert not (tmp_path / "x").exists()


def test_nobody_else_can_take_an_agents_name(
    world: World, main: Federation, tmp_path: Path
) -> None:
    finished = world.moot(
        "agent", "run", "aster", "--federation", main.name, "--directory",
        str(tmp_path), "--operator-key", world.operator_key.public_key.hex(),
    )  # fmt: skip

    assert "the name aster belongs to the key" in finished.stderr
    _assert_a_sentence(finished)


def _assert_a_sentence(finished: subprocess.CompletedProcess[str]) -> None:
    assert finished.returncode == 2, finished.stdout + finished.stderr
    assert "Traceback" not in finished.stdout + finished.stderr
    assert "error: " in finished.stderr
    assert "MOOT_DEBUG" not in finished.stderr, "not one of our own messages"


def _wait_for_state(federation: Federation, moot, state: str) -> None:
    def has_state() -> bool:
        listed = json.loads(
            moot("agent", "list", "--federation", federation.name, "--json")
        )
        return [agent["state"] for agent in listed] == [state]

    wait_until(has_state, f"the agent is {state}")


# Whoever runs these tests in the background has Ctrl-C ignored, and so have children.
