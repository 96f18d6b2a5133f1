"""Programs as forks of a process that has imported what they need."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cli.stack.fork_server import IS_SUPPORTED, ForkServer
from cli.stack.processes import (
    ONE_THREAD,
    Child,
    kill_owned,
    last_lines,
    process_started,
)
from tests.integration.harness import PRELOADED
from tests.paths import ROOT

pytestmark = pytest.mark.skipif(not IS_SUPPORTED, reason="the kernel's part is Linux's")

PROGRAM = "tests.unit.cli.forked"
IMPORTED = "tests.unit.cli.imported"
SOON_S = 30.0


@pytest.fixture
def server(tmp_path: Path) -> Iterator[ForkServer]:
    server = ForkServer(tmp_path / "server.log")
    yield server
    server.close()
    assert not (tmp_path / "server.log").read_bytes()


def fork(server: ForkServer, log: Path, *arguments: str) -> Child:
    return server.fork(
        PROGRAM, arguments, env={"OF_A_FORK": log.name}, name=log.name, log_path=log
    )


def read(log: Path) -> dict[str, Any]:
    """Return what a program says first."""
    deadline = time.monotonic() + SOON_S
    while not (log.exists() and "\n" in (text := log.read_text())):
        assert time.monotonic() < deadline, "it says nothing"
        time.sleep(0.01)
    said: dict[str, Any] = json.loads(text.splitlines()[0])
    return said


def wait_until_gone(*pids: int) -> None:
    deadline = time.monotonic() + SOON_S
    while any(process_started(pid) is not None for pid in pids):
        assert time.monotonic() < deadline, "it still runs"
        time.sleep(0.01)


def test_a_fork_is_a_process_of_its_own(server: ForkServer, tmp_path: Path) -> None:
    names = ["one", "two"]
    children = [fork(server, tmp_path / name, "7", name, "-x") for name in names]

    assert [child.wait(SOON_S) for child in children] == [7, 7]
    said = [read(tmp_path / name) for name in names]
    assert [item["pid"] for item in said] == [child.pid for child in children]
    assert [item["session"] for item in said] == [child.pid for child in children]
    assert [item["arguments"] for item in said] == [["one", "-x"], ["two", "-x"]]
    assert [item["variable"] for item in said] == names
    assert said[0]["random"] != said[1]["random"]


def test_what_was_imported_before_is_not_imported_again(
    server: ForkServer, tmp_path: Path
) -> None:
    server.preload(IMPORTED)
    for name in ("one", "two"):
        assert fork(server, tmp_path / name, "0").wait(SOON_S) == 0

    one, two = read(tmp_path / "one"), read(tmp_path / "two")
    assert one["imported_by"] == two["imported_by"] == one["parent"] == two["parent"]


def test_each_can_be_killed_alone(server: ForkServer, tmp_path: Path) -> None:
    killed = fork(server, tmp_path / "killed", "sleep")
    asked = fork(server, tmp_path / "asked", "sleep")
    other = fork(server, tmp_path / "other", "sleep")
    read(tmp_path / "asked")

    kill_owned(killed)
    asked.terminate()

    assert killed.poll() == -signal.SIGKILL
    assert asked.wait(SOON_S) == -signal.SIGTERM
    assert other.poll() is None
    with pytest.raises(subprocess.TimeoutExpired):
        other.wait(0.01)
    server.close()
    assert other.poll() is not None
    wait_until_gone(other.pid)


def test_an_error_is_the_programs_own(server: ForkServer, tmp_path: Path) -> None:
    server.preload("no.such.module")
    failing = fork(server, tmp_path / "failing", "fail")
    missing = server.fork(
        "no.such.module", [], env={}, name="missing", log_path=tmp_path / "missing"
    )

    assert (failing.wait(SOON_S), missing.wait(SOON_S)) == (1, 1)
    assert "ValueError: what went wrong" in last_lines(tmp_path / "failing")
    assert "ModuleNotFoundError" in last_lines(tmp_path / "missing")


def test_beside_a_thread_a_program_is_executed_afresh(
    server: ForkServer, tmp_path: Path
) -> None:
    server.preload(IMPORTED, "tests.unit.cli.starts_a_thread")
    child = fork(server, tmp_path / "log", "5", "-x")

    assert child.wait(SOON_S) == 5
    said = read(tmp_path / "log")
    assert said["imported_by"] == said["pid"] == child.pid
    assert (said["arguments"], said["variable"]) == (["-x"], "log")


def test_a_server_that_was_killed_takes_its_forks_along_and_comes_back(
    tmp_path: Path,
) -> None:
    server = ForkServer(tmp_path / "server.log")
    try:
        child = fork(server, tmp_path / "log", "sleep")
        said = read(tmp_path / "log")
        os.kill(said["parent"], signal.SIGKILL)

        assert child.wait(SOON_S) == -signal.SIGKILL
        wait_until_gone(said["pid"])
        assert fork(server, tmp_path / "again", "3").wait(SOON_S) == 3
    finally:
        server.close()


def test_what_a_fork_server_imports_for_us_starts_no_thread() -> None:
    """Native ones included: beside one, every program would be executed afresh.

    Integration tests import all that the demo does, and more.
    """
    program = (
        "import importlib, os, sys\n"
        "for name in sys.argv[1:]: importlib.import_module(name)\n"
        "print(len(os.listdir('/proc/self/task')))\n"
    )
    counted = subprocess.run(
        [sys.executable, "-c", program, *PRELOADED],
        cwd=ROOT,
        env={**os.environ, **ONE_THREAD},
        capture_output=True,
        text=True,
        check=True,
    )
    assert counted.stdout == "1\n"


def test_what_was_imported_already_is_installed() -> None:
    """Faust puts another module in its place, which a look-up stumbles over."""
    program = (
        "import faust, cli.extras\n"
        "for extra in cli.extras.EXTRAS: cli.extras.demand(extra)\n"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=True)


OWNER = """
import sys, time
from pathlib import Path
from cli.stack.fork_server import ForkServer

log = Path(sys.argv[1])
server = ForkServer(log.with_name("server.log"))
server.fork("tests.unit.cli.forked", ["sleep"], env={}, name="it", log_path=log)
time.sleep(60)
"""


def test_forks_die_with_whoever_had_them_started(tmp_path: Path) -> None:
    log = tmp_path / "log"
    owner = subprocess.Popen([sys.executable, "-c", OWNER, str(log)], cwd=ROOT)
    try:
        said = read(log)
    finally:
        owner.kill()
        owner.wait()

    wait_until_gone(said["pid"], said["parent"])
