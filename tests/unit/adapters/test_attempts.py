"""How often work was begun, though it ended its process."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from adapters.attempts import MAX_BEGUN, Attempts
from tests.paths import ROOT


def test_what_ended_its_process_each_time_is_given_up(tmp_path):
    for _ in range(MAX_BEGUN):
        assert Attempts(tmp_path).begin("a")
    assert not Attempts(tmp_path).begin("a")
    assert Attempts(tmp_path).begin("b")


def test_what_ended_once_is_taken_again_as_often(tmp_path):
    attempts = Attempts(tmp_path)
    for _ in range(2 * MAX_BEGUN):
        assert attempts.begin("a")
        attempts.end("a")
    assert list(tmp_path.iterdir()) == []


def test_without_a_directory_it_counts_while_it_lives():
    attempts = Attempts(None)
    assert [attempts.begin("a") for _ in range(MAX_BEGUN + 1)][-2:] == [True, False]
    assert Attempts(None).begin("a")


def test_what_a_crash_left_counts_as_nothing(tmp_path):
    (tmp_path / "a.begun").write_bytes(b"")
    assert Attempts(tmp_path).begin("a")


def test_an_attempt_counts_before_the_work_begins(tmp_path):
    program = (
        "import os, sys, pathlib, signal; from adapters.attempts import Attempts; "
        "print(Attempts(pathlib.Path(sys.argv[1])).begin('a'), flush=True); "
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program, str(tmp_path / "deep" / "er")],
            capture_output=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            check=False,
        ).stdout.strip()
        for _ in range(MAX_BEGUN + 1)
    ]
    assert said == [b"True"] * MAX_BEGUN + [b"False"]


def test_work_that_cannot_be_counted_does_not_begin(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError, match="file"):
        Attempts(tmp_path / "file" / "below").begin("a")
