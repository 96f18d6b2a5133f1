"""What the wheel does without any extra: audit, verify, serve a log, and say what is
missing."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.audit import Streams
from cli.extras import EXTRAS
from cli.stack.services import FAUST_SERVICES
from ledger.proof_file import FILE_EXTENSION
from protocol.admission import make_policy
from tests.architecture.test_extras import list_core_modules
from tests.integration.harness import wait_until
from tests.unit.cli.test_receipts import LOG, receipt_of
from tests.unit.consumers.audit.test_bundle import write_from
from tests.unit.test_recorded_logs import FOLDER, Recording

MAX_SIZE_BYTES = 200_000_000
KEY = "ab" * 32
NOWHERE = "127.0.0.1:1"
WITHOUT = {
    ("agent", "run", "ada", "-f", "f", "--operator-key", KEY): "agent",
    (
        "federation", "create", "-f", "f",
        "--module", "producers.examples.digits:DigitsModule",
        "--data-module", "producers.examples.digits:DigitsDataModule",
    ): "agent",
    ("demo",): "agent",
    **{("serve", service): "services" for service in FAUST_SERVICES},
    ("serve", "exporter", "-f", "f"): "exporter",
    ("serve", "party", "--name", "p"): "services",
    ("serve", "dealer", "--name", "d"): "party",
}  # fmt: skip
"""Commands that do nothing in an environment with core alone, and what they lack."""

HELP = """
import typer
from cli.main import app

def walk(group, path=()):
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from walk(command, (*path, name))
        else:
            yield (*path, name)

group = typer.main.get_command(app)
paths = list(walk(group))
for path in paths:
    group.main([*path, "--help"], prog_name="moot", standalone_mode=False)
print(len(paths), "commands")
"""

RUN_ALL = """
import contextlib, io, json, sys
import cli.main

for arguments in json.load(sys.stdin):
    said = io.StringIO()
    sys.argv = ["moot", *arguments]
    with contextlib.redirect_stderr(said):
        try:
            cli.main.main()
        except SystemExit as end:
            print(json.dumps([end.code, said.getvalue()]))
"""


class Recorded:
    """A recording as a source of `moot audit`."""

    def __init__(self, recording: Any) -> None:
        self.unframe, self.fetch = recording.unframe, recording.blobs.fetch
        self._recording = recording

    def open(self, _positions: object) -> Streams:
        return Streams(
            ledger=iter(self._recording.ledger),
            checkpoints=iter(self._recording.checkpoints),
            attestations=iter(()),
            settled_offset=None,
        )


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the commands run: not in the checkout."""
    return tmp_path_factory.mktemp("elsewhere")


@pytest.fixture(scope="module")
def environment(directory: Path) -> dict[str, str]:
    """Settings of a Kafka that is not there, and nothing of ours."""
    return {
        "HOME": str(directory),
        "PATH": os.environ["PATH"],
        "MOOT_BOOTSTRAP_SERVERS": NOWHERE,
        "MOOT_SCHEMA_REGISTRY_URL": f"http://{NOWHERE}",
        "MOOT_STATE_DIRECTORY": str(directory / "state"),
    }


def run(
    core: Path, environment: dict[str, str], *arguments: object, stdin: str = ""
) -> subprocess.CompletedProcess[str]:
    """Run a program of the environment."""
    program, *others = map(str, arguments)
    return subprocess.run(
        [core / "bin" / program, *others],
        cwd=environment["HOME"],
        env=environment,
        input=stdin,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module", autouse=True)
def timer(
    core: Path, directory: Path, environment: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A timer, which asks Kafka for ten seconds while other tests run."""
    process = subprocess.Popen(
        [core / "bin" / "moot", "serve", "timer", "-f", "f"],
        cwd=directory,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    yield process
    process.kill()
    process.communicate()


def test_it_is_light(core: Path) -> None:
    [packages] = (core / "lib").glob("python*/site-packages")
    files = [path for path in packages.rglob("*") if path.is_file()]
    sizes = [path.stat().st_size for path in files if path.suffix != ".pyc"]
    assert sum(sizes) < MAX_SIZE_BYTES


def test_nothing_of_an_extra_is_there(core: Path, environment: dict[str, str]) -> None:
    modules = sorted(set.union(*map(set, EXTRAS.values())))
    program = (
        "import importlib.util\n"
        f"print([m for m in {modules!r} if importlib.util.find_spec(m)])"
    )
    assert run(core, environment, "python", "-c", program).stdout == "[]\n"


def test_every_core_module_can_be_imported(
    core: Path, environment: dict[str, str]
) -> None:
    program = (
        "import importlib\n"
        f"for name in {list_core_modules()!r}: importlib.import_module(name)\n"
        "import cli; print(cli.__file__)"
    )
    done = run(core, environment, "python", "-c", program)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(str(core))


def test_every_command_has_help(core: Path, environment: dict[str, str]) -> None:
    assert "Usage: moot" in run(core, environment, "moot", "--help").stdout
    done = run(core, environment, "python", "-c", HELP)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    count, _ = last.split()
    assert done.stdout.count("Usage: moot ") == int(count) > 30


def test_a_recorded_log_is_audited_with_a_second_opinion(
    core: Path, directory: Path, environment: dict[str, str]
) -> None:
    recording = Recording(FOLDER / "0.1-mpc.json")
    write_from(directory / "log.tar", Recorded(recording))
    done = run(
        core, environment,
        "moot", "audit", "log.tar", "--second-opinion", "--json", "--jobs", 1,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["is_sound"]
    assert report["tree_root"] == recording.tree_root
    assert len(report["rechecked"]) == report["num_rounds_recomputed"] > 0


def test_a_receipt_is_verified(
    core: Path, directory: Path, environment: dict[str, str]
) -> None:
    receipt = directory / f"ada{FILE_EXTENSION}"
    receipt.write_bytes(receipt_of())
    (directory / "policy").write_text(make_policy(LOG.state.admission).to_text())
    done = run(
        core, environment, "moot", "verify-receipt", receipt, "--policy", "policy"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid: ")


def test_the_stacks_definitions_are_in_the_wheel(
    core: Path, environment: dict[str, str]
) -> None:
    program = (
        "from cli.stack import fetch; fetch._load_checksums(); print(fetch.DEFINITIONS)"
    )
    done = run(core, environment, "python", "-c", program)
    assert done.returncode == 0, done.stderr
    definitions = Path(done.stdout.strip())
    assert definitions.is_relative_to(core)
    names = {path.name for path in definitions.iterdir()}
    assert {"pom.xml", "server.properties", "log4j2.properties"} <= names


def test_what_needs_an_extra_says_which(
    core: Path, environment: dict[str, str]
) -> None:
    done = run(
        core, environment, "python", "-c", RUN_ALL, stdin=json.dumps(list(WITHOUT))
    )
    assert done.returncode == 0, done.stderr
    answers = list(map(json.loads, done.stdout.splitlines()))
    assert len(answers) == len(WITHOUT)
    for (arguments, extra), (code, said) in zip(WITHOUT.items(), answers, strict=True):
        first, second = said.splitlines()
        assert code == 2, arguments
        assert first.startswith("error: "), arguments
        assert f"not installed: folkmoot[{extra}] is needed" in first, arguments
        assert f"--extra {extra}" in second


def test_a_ledger_node_serves_without_kafka(
    core: Path, directory: Path, environment: dict[str, str]
) -> None:
    made = run(core, environment, "moot", "node", "init", "node1")
    assert made.stdout.startswith("node1="), made.stderr
    with (directory / "node.log").open("w") as log:
        process = subprocess.Popen(
            [
                core / "bin" / "moot", "serve", "ledger-node", "--name", "node1",
                "-f", "f", "--operator-key", KEY, "--port", "0",
            ],
            cwd=directory,
            env=environment,
            stderr=log,
        )  # fmt: skip
    try:
        wait_until(
            lambda: "serving http://" in (directory / "node.log").read_text(),
            "the node serves",
        )
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
    assert "Traceback" not in (directory / "node.log").read_text()


def test_a_timer_says_that_kafka_is_away(timer: subprocess.Popen[str]) -> None:
    _, said = timer.communicate(timeout=120)
    assert timer.returncode == 2
    assert said.startswith("error: Kafka does not answer")
    assert "Traceback" not in said
