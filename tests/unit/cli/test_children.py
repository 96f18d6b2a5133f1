"""What a command starts: how many threads it has, and that it ends."""

import os
import subprocess
import sys

import pytest

from cli.stack import services
from cli.stack.processes import ONE_THREAD
from cli.stack.services import Supervisor
from tests.paths import ROOT


@pytest.mark.parametrize("own", [None, "3"])
def test_children_have_one_thread_each_unless_told_otherwise(
    monkeypatch, tmp_path, own
):
    for name in ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    if own is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", own)
    seen = {}
    monkeypatch.setattr(
        services, "spawn_owned", lambda _argv, *, env, log_path: seen.update(env)
    )
    Supervisor({"MOOT_LOG_LEVEL": "INFO"}, tmp_path).start("timer", "serve", "timer")
    assert seen["OMP_NUM_THREADS"] == (own or "1")
    assert seen["MKL_NUM_THREADS"] == "1"
    assert seen["MOOT_LOG_LEVEL"] == "INFO"


STARTER = """
import subprocess, sys
from cli.stack.processes import end_children, list_children

for program in ("import time; time.sleep(600)",
                "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN);"
                "print('deaf', flush=True); time.sleep(600)"):
    child = subprocess.Popen([sys.executable, "-c", program], stdout=sys.stdout)
    print(child.pid, flush=True)
assert len(list_children()) == 2
sys.stdin.readline()
end_children(grace_s=0.5)
assert list_children() == []
"""


def test_whatever_was_started_ends_even_if_it_does_not_listen():
    with subprocess.Popen(
        [sys.executable, "-c", STARTER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as starter:
        lines = {starter.stdout.readline().strip() for _ in range(3)}
        assert "deaf" in lines
        starter.stdin.write("\n")
        starter.stdin.close()
        assert starter.wait(60) == 0
    for pid in map(int, lines - {"deaf"}):
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


INTERRUPTED = """
import os, signal
from cli.interrupts import Interrupts

signal.signal(signal.SIGINT, signal.default_int_handler)  # perhaps ignored
with Interrupts() as interrupts:
    if before:
        os.kill(os.getpid(), signal.SIGINT)  # it waits
        print("made a folder", flush=True)
    try:
        with interrupts.allowed():
            print("begun", flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            print("went on", flush=True)
    except KeyboardInterrupt:
        os.kill(os.getpid(), signal.SIGINT)
        print("cleaned up", flush=True)
"""


@pytest.mark.parametrize("before", [False, True])
def test_an_interrupt_comes_once_and_where_it_may(before):
    finished = subprocess.run(
        [sys.executable, "-c", f"before = {before}\n{INTERRUPTED}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    began = ["made a folder"] if before else ["begun"]
    assert finished.stdout.splitlines() == [*began, "cleaned up"]
    assert finished.stderr.count("stopping") == 1
