"""`moot serve all`, and `moot up --services`: services that are kept running."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapters.blobs import BlobStore
from adapters.kafka import Publisher
from adapters.keys import key_path, load_or_create_key
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from cli.stack.processes import last_lines
from cli.stack.stack import Endpoints, read_endpoints
from cli.stack.supervise import find_services
from producers.control import Operator, load_principals
from tests.integration.harness import (
    PARAMETERS,
    make_settings,
    synthetic_model,
    wait_until,
)
from tests.paths import ROOT

NAME = "kept"
SERVED = {
    *("sequencer", "rounds", "registry", "rewards", "aggregator"),
    *("timer", "exporter"),
}


def moot(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "FOLKMOOT_STATE": str(directory)}
    for name in [name for name in environment if name.startswith("MOOT_")]:
        del environment[name]
    return subprocess.run(
        [sys.executable, "-m", "cli.main", *arguments],
        cwd=ROOT,
        env={**environment, "MOOT_HEARTBEAT_S": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A stack of `moot up --services`."""
    directory = tmp_path_factory.mktemp("kept") / "stack"
    done = moot(directory, "up", "--services")
    try:
        assert done.returncode == 0, done.stderr
        yield directory
    finally:
        down = moot(directory, "down")
        assert find_services(directory) is None
        assert down.returncode == 0, down.stderr


def find_processes(directory: Path) -> dict[str, dict[str, str]]:
    """Return whoever serves the federation, by kind."""
    done = moot(directory, "status", "--json")
    found = json.loads(done.stdout)
    return {member["kind"]: member for member in found.get("processes", ())}


def found_federation(settings: Settings) -> None:
    keys = settings.state_directory / "keys"
    store = BlobStore(settings)
    store.ensure_bucket()
    publisher = Publisher(settings, SchemaRegistry(settings.schema_registry_url))
    operator = Operator(load_or_create_key(key_path(keys, "OPERATOR")), publisher)
    operator.found(NAME, PARAMETERS, load_principals(keys), synthetic_model(), store)


@pytest.fixture(scope="module")
def logs(stack: Path) -> Path:
    """The logs of the services of a federation that was founded after they started."""
    endpoints = read_endpoints(stack)
    assert isinstance(endpoints, Endpoints)
    settings = make_settings(endpoints, stack / "services")
    found_federation(settings)
    logs = stack / "services" / "logs"
    # A timer and an exporter are started because the genesis names this machine's keys.
    wait_until(
        lambda: find_processes(stack).keys() >= SERVED,
        f"all are there\n{last_lines(logs / 'all.log')}",
        180,
    )
    return logs


def test_services_start_follow_foundings_and_come_back(stack: Path, logs: Path) -> None:
    status = moot(stack, "federation", "status", "-f", NAME, "--json")
    assert {m["presence"] for m in json.loads(status.stdout)["members"]} == {"here"}
    assert status.returncode == 0

    # Of two supervisors one would be too many.
    again = moot(stack, "up", "--services")
    assert "running already" in again.stderr, again.stderr
    supervisor = find_services(stack)
    assert supervisor is not None

    began = find_processes(stack)["timer"]["since_ms"]
    timer = find_pid(supervisor, f"serve timer --federation {NAME}")
    os.kill(timer, signal.SIGKILL)
    wait_until(
        lambda: (
            find_processes(stack)["timer"]["since_ms"] != began
            and find_processes(stack)["timer"]["presence"] == "here"
        ),
        "it was started again",
    )
    assert f"timer-{NAME} ended" in (logs / "all.log").read_text()
    assert {path.name for path in logs.glob("*.log")} >= {
        "sequencer.log",
        f"timer-{NAME}.log",
        "all.log",
    }


def find_pid(supervisor: int, command: str) -> int:
    """Return the process under a supervisor with this command line."""
    waiting = [supervisor]
    while waiting:
        pid = waiting.pop()
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if command in line and not children:
            return pid
        waiting += map(int, children)
    raise AssertionError(command)


@pytest.mark.nightly
@pytest.mark.usefixtures("logs")
def test_when_the_supervisor_is_killed_its_services_end(stack: Path) -> None:
    """Or a second one would find them still there."""
    supervisor = find_services(stack)
    assert supervisor is not None
    timer = find_pid(supervisor, f"serve timer --federation {NAME}")
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{timer}").exists(), "they end")
    assert find_services(stack) is None
    done = moot(stack, "up", "--services")
    assert done.returncode == 0, done.stderr
    wait_until(
        lambda: (find_processes(stack).get("timer") or {}).get("presence") == "here",
        "they are back",
        180,
    )
