"""`moot demo`, whole and interrupted."""

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.demo import PARTIES
from cli.stack.processes import process_started
from tests.demo import ROUNDS, Demo
from tests.integration.harness import wait_until
from tests.paths import ROOT

MIN_COHORT = 3
"""Of the demo."""


@pytest.fixture
def temporary(tmp_path: Path) -> Iterator[Path]:
    """A folder for temporary files that must be empty, and unused, in the end."""
    directory = tmp_path / "tmp"
    directory.mkdir()
    yield directory
    _demand_nothing_left(directory)


def test_the_demo_trains_and_audits_and_leaves_nothing(finished_demo: Demo) -> None:
    output = finished_demo.output
    assert finished_demo.code == 0, output
    assert "SOUND" in output
    assert "centralised" in output
    assert "elm alone" in output
    assert "done; first round started after" in output
    assert "refused BAD_SIGNATURE" in output  # the intruder
    assert f"round {ROUNDS} version {ROUNDS}" in output
    _assert_nobody_saw_an_update(output, rounds=ROUNDS)
    _demand_nothing_left(finished_demo.temporary)


@pytest.mark.parametrize(
    "line",
    [
        "agents are starting",
        pytest.param("round 1 starts", marks=pytest.mark.nightly),
    ],
)
def test_the_demo_ends_on_ctrl_c_and_leaves_nothing(
    demo: subprocess.Popen[str], line: str
) -> None:
    assert demo.stdout is not None
    assert any(line in said for said in demo.stdout)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, output
    assert "Traceback" not in output


def test_the_demo_ends_on_ctrl_c_while_the_stack_starts(
    demo: subprocess.Popen[str], temporary: Path
) -> None:
    wait_until(lambda: list(temporary.glob("*/stack/logs/*")), "the stack starts")
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)

    assert demo.returncode == 130, output
    assert "Traceback" not in output


def _demand_nothing_left(temporary: Path) -> None:
    # Whatever the command started inherited TMPDIR.
    wait_until(
        lambda: not _pids_with(str(temporary)), "every process ends", timeout_s=10
    )
    assert list(temporary.iterdir()) == []


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
