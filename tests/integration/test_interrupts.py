"""Ctrl-C at any moment of `moot demo`: it says so, ends all, and leaves nothing."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli.interrupts import EXIT_INTERRUPTED
from tests.paths import ROOT

LONGEST_S = 45.0
"""By then a demo trains, on two busy cores."""
STOPPED_WITHIN_S = 120.0
SEED = 26
DEMO = """
import signal, sys

# Also where the tests run in the background, with Ctrl-C ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[1:] = ["demo", "--rounds", "3"]
from cli.main import main
main()
"""


def find_moments(number: int) -> list[float]:
    """Return moments, early ones more often: most is started then."""
    chance = random.Random(SEED)
    return [LONGEST_S * chance.random() ** 2 for _ in range(number)]


def list_users(directory: Path) -> list[str]:
    """Return the command lines of processes that know of a directory."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            known = (process / "environ").read_bytes()
            command = (process / "cmdline").read_bytes()
        except OSError:
            continue
        if os.fsencode(directory) in known + command:
            found.append(command.decode(errors="replace").replace("\0", " "))
    return found


@pytest.mark.parametrize(
    ("moment_s", "number"),
    [
        pytest.param(
            moment_s, number, marks=[pytest.mark.nightly] if index >= 2 else []
        )
        for index, moment_s in enumerate(find_moments(20))
        for number in [(signal.SIGINT, signal.SIGTERM)[index % 2]]
    ],
)
def test_an_interrupt_leaves_nothing(
    tmp_path: Path, moment_s: float, number: signal.Signals
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    process = subprocess.Popen(
        [sys.executable, "-c", DEMO],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(temporary)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    time.sleep(moment_s)
    assert process.poll() is None, process.communicate()
    process.send_signal(number)
    time.sleep(0.2)
    process.send_signal(number)  # who is impatient breaks nothing
    said, _ = process.communicate(timeout=STOPPED_WITHIN_S)
    assert list(temporary.iterdir()) == [], said
    assert list_users(temporary) == [], said
    if "stopping" in said:  # else it had not begun
        assert process.returncode == EXIT_INTERRUPTED, said
    else:
        assert process.returncode in {-number, EXIT_INTERRUPTED}, said
        assert moment_s < 5
