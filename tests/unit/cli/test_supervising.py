"""What ends is started again, later each time; logs stay short."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapters.durable import rotate_file
from cli.stack import services
from cli.stack.processes import StackError, spawn_owned
from cli.stack.services import MAX_BACKOFF_S, Supervisor, compute_backoff
from cli.stack.supervise import find_services, pid_file, stop_services
from tests.paths import ROOT

ENDS = "tests.unit.cli.ends"


def wait_until(condition: Callable[[], object]) -> None:
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.05)


@pytest.fixture
def supervisor(tmp_path: Path) -> Iterator[Supervisor]:
    running = Supervisor({"PYTHONPATH": str(ROOT)}, tmp_path, gives_up=False)
    yield running
    running.stop_all()


def test_each_restart_waits_longer_but_no_longer_than_a_minute() -> None:
    waits = [compute_backoff(number) for number in range(12)]
    assert waits == [0, 1, 3, 7, 15, 31, *[MAX_BACKOFF_S] * 6]
    assert compute_backoff(10**9) == MAX_BACKOFF_S


def test_what_keeps_failing_is_started_again_and_disturbs_nobody(
    supervisor: Supervisor, tmp_path: Path
) -> None:
    supervisor.start("fails", "3", module=ENDS)
    supervisor.start("lives", "-1", module=ENDS)
    pid = supervisor.pid("lives")

    def restarts() -> int:
        supervisor.watch()
        return supervisor._restarts.get("fails", 0)

    wait_until(lambda: restarts() >= 2)
    assert supervisor.pid("lives") == pid
    # It waits now, for three seconds, whoever looks how often.
    wait_until(lambda: supervisor.watch() or "fails" in supervisor._due_s)
    assert supervisor.watch() == []
    text = (tmp_path / "fails.log").read_text()
    assert text.count("ending with 3") == 3


def test_what_ran_well_for_a_while_is_started_again_at_once(
    supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    supervisor.start("lives", "-1", module=ENDS)
    supervisor._restarts["lives"] = 5
    monkeypatch.setattr(services, "STEADY_S", 0.0)
    supervisor.kill("lives")
    assert supervisor.watch() == ["lives"]
    assert supervisor._restarts["lives"] == 1


def test_a_supervisor_that_gives_up_says_what_fails(tmp_path: Path) -> None:
    running = Supervisor({"PYTHONPATH": str(ROOT)}, tmp_path)
    running.start("fails", "3", module=ENDS)
    try:
        with pytest.raises(StackError, match=r"keeps failing:\n.*ending with 3"):
            wait_until(lambda: running.watch() and False)
    finally:
        running.stop_all()


def test_a_log_is_emptied_while_a_process_writes_to_it(tmp_path: Path) -> None:
    path = tmp_path / "it.log"
    program = "import time\nwhile True: print('x' * 99, flush=True); time.sleep(0.001)"
    process = spawn_owned(
        [sys.executable, "-c", program], env=dict(os.environ), log_path=path
    )
    try:
        wait_until(lambda: path.exists() and path.stat().st_size > 20_000)
        assert rotate_file(path, 10_000)
        assert not rotate_file(path, 10**9)
        kept = tmp_path / "it.log.1"
        assert kept.stat().st_size == 10_000
        # It goes on at the beginning, without a hole.
        wait_until(lambda: path.stat().st_size > 0)
        assert path.read_bytes()[:1] == b"x"
        wait_until(lambda: path.stat().st_size > 10_000)
        assert rotate_file(path, 10_000)
        assert {file.name for file in tmp_path.iterdir()} == {"it.log", "it.log.1"}
    finally:
        process.terminate()
        process.wait()


def test_a_log_that_is_not_there_needs_no_care(tmp_path: Path) -> None:
    assert not rotate_file(tmp_path / "none.log", 10)


def test_a_process_of_the_same_number_is_not_taken_for_the_supervisor(
    tmp_path: Path,
) -> None:
    assert find_services(tmp_path) is None
    for text in (f"{os.getpid()} long ago\n", "1\n", "x y\n", ""):
        pid_file(tmp_path).write_text(text)
        assert find_services(tmp_path) is None
        assert not stop_services(tmp_path)
    assert not pid_file(tmp_path).exists()
