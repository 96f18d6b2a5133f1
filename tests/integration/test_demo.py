"""The command line: the demo, a stack of one's own, and errors that are sentences."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cli.demo import PARTIES
from cli.stack.processes import process_started
from tests.integration.harness import (
    NUM_PARAMETERS,
    SYNTHETIC,
    Federation,
    World,
    run_moot,
    wait_until,
)
from tests.paths import ROOT

KEY = "ab" * 32
NOWHERE = "127.0.0.1:1"
MIN_COHORT = 3
"""Of the demo."""


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files that must be empty, and unused, in the end."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    yield directory
    # Whatever the command started inherited TMPDIR.
    wait_until(
        lambda: not _pids_with(str(directory)), "every process ends", timeout_s=10
    )
    assert list(directory.iterdir()) == []


def test_the_demo_trains_and_audits_and_leaves_nothing(temporary: Path) -> None:
    finished = run_moot(
        "demo",
        "--rounds",
        "2",
        timeout_s=480,
        TMPDIR=str(temporary),
        COLUMNS="1000",  # or the audit's lines would be folded
        # The other tests have one partition; most of these three stay empty.
        MOOT_NUM_PARTITIONS="3",
    )

    assert finished.returncode == 0, finished.stdout + finished.stderr
    assert "SOUND" in finished.stdout
    assert "centralised" in finished.stdout
    assert "refused BAD_SIGNATURE" in finished.stdout  # the intruder
    assert "round 2 version 2" in finished.stdout
    _assert_nobody_saw_an_update(finished.stdout, rounds=2)


def test_the_demo_ends_on_ctrl_c_and_leaves_nothing(
    demo: subprocess.Popen[str],
) -> None:
    assert demo.stdout is not None
    for line in demo.stdout:
        if "round 1 starts" in line:
            break
    started = time.monotonic()
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, output
    assert time.monotonic() - started < 20
    assert "Traceback" not in output


def test_the_demo_ends_on_ctrl_c_while_the_stack_starts(
    demo: subprocess.Popen[str], temporary: Path
) -> None:
    wait_until(lambda: list(temporary.glob("*/stack/logs/*")), "the stack starts")
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, output
    assert "Traceback" not in output


def test_a_stack_of_ones_own_goes_up_and_down(tmp_path: Path) -> None:
    """What the README tells a newcomer to type, in its order."""

    def moot(*arguments: str) -> str:
        finished = run_moot(*arguments, FOLKMOOT_STATE=str(tmp_path / "mine"))
        assert finished.returncode == 0, (arguments, finished.stdout, finished.stderr)
        return finished.stdout

    try:
        assert "moot down" in moot("up")
        assert json.loads(moot("status", "--json"))["state"] == "running"
        assert "MOOT_MINIO_SECRET_KEY" in moot("status", "--env")
        assert "moot.ledger" in moot("topics", "create")
        assert "all topics exist" in moot("topics", "create")
        registered = json.loads(moot("schemas", "register", "--json"))
        assert "moot.updates-folkmoot.v1.UpdateSubmitted" in registered
        assert json.loads(moot("schemas", "register", "--json")) == registered
    finally:
        down = run_moot("down", FOLKMOOT_STATE=str(tmp_path / "mine"))
    assert down.stdout == "stopped\n"
    assert json.loads(moot("status", "--json"))["state"] == "stopped"
    assert moot("down") == "nothing was running\n"


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
        "--data-module", SYNTHETIC.data_module, "--min-cohort", "1",
    )  # fmt: skip
    operator_key = founded.split()[-1]
    assert operator_key == world.operator_key.public_key.hex()
    world.start_exporter("typed")
    world.services.start(
        "agent-typed", "agent", "run", "ann", *here, "--operator-key", operator_key
    )
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
        (["demo", "--task", "nothing"], "no example 'nothing'"),
        (
            ["federation", "create", "-f", "x", "--module", "os:system",
             "--data-module", "os:system"],
            "may not be run here; allowed",
        ),
        (
            ["federation", "create", "-f", "x", "--module", SYNTHETIC.module,
             "--module-config", SYNTHETIC.module_config,
             "--data-module", SYNTHETIC.data_module,
             "--cohort-size", "1", "--min-cohort", "2"],
            "cohort_size must be",
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


def test_without_a_stack_every_command_says_what_to_do(tmp_path: Path) -> None:
    nowhere = {"FOLKMOOT_STATE": str(tmp_path / "nothing")}

    for arguments in (
        ["topics", "create"],
        ["schemas", "register"],
        ["federation", "show", "-f", "main"],
        ["round", "start", "-f", "main"],
        ["serve", "sequencer"],
        ["audit", "-f", "main"],
    ):
        finished = run_moot(*arguments, **nowhere)
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


def test_nobody_else_can_take_an_agents_name(
    world: World, main: Federation, tmp_path: Path
) -> None:
    finished = world.moot(
        "agent", "run", "aster", "--federation", main.name, "--directory",
        str(tmp_path), "--operator-key", world.operator_key.public_key.hex(),
    )  # fmt: skip

    assert "the name aster belongs to the key" in finished.stderr
    _assert_a_sentence(finished)


def _assert_nobody_saw_an_update(output: str, *, rounds: int) -> None:
    """Updates were committed to, and the parties' parts are all that was summed."""
    [shown] = re.findall(r"^  leaves +(.*)$", output, re.MULTILINE)
    leaves = {
        name: int(count.replace(",", ""))
        for count, name in (item.split() for item in shown.split(", "))
    }
    assert "UpdateSubmitted" not in leaves
    assert leaves["UpdateCommitted"] >= rounds * MIN_COHORT
    assert leaves["SharesLinked"] == rounds * len(PARTIES)
    assert leaves["PartialAggregateSubmitted"] == rounds * len(PARTIES)
    assert "PartialRejected" not in leaves
    for number in range(1, rounds + 1):
        for party in PARTIES:
            assert f"round {number} party {party} gives its part of the sum" in output
    assert f"{rounds} rounds recomputed, sum and model bit for bit" in output


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
_WITH_CTRL_C = """
import os, signal, sys
signal.signal(signal.SIGINT, signal.SIG_DFL)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.fixture
def demo(temporary: Path) -> Iterator[subprocess.Popen[str]]:
    """A demo that would go on for long, as in a terminal of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOOT_")}
    running = subprocess.Popen(
        [
            sys.executable,
            "-c",
            _WITH_CTRL_C,
            "-u",
            "-m",
            "cli.main",
            "demo",
            "--rounds",
            "50",
        ],
        cwd=ROOT,
        env={**clean, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        yield running
    finally:
        if running.poll() is None:
            running.kill()
        running.communicate()


def _pids_with(text: str) -> list[int]:
    """Return the processes that have a text in their environment or command."""
    if not Path("/proc/self/environ").exists():
        listed = subprocess.run(
            ["ps", "-A", "-E", "-o", "pid=,command="],
            capture_output=True,
            text=True,
            check=True,
        )
        return [
            int(line.split()[0]) for line in listed.stdout.splitlines() if text in line
        ]
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "environ").read_bytes() + (
                process / "cmdline"
            ).read_bytes()
        except OSError:
            continue
        pid = int(process.name)
        if text.encode() in known and process_started(pid) is not None:
            found.append(pid)
    return found
