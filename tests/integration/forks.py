"""Processes of their own that begin with everything loaded: services and commands.

Each is `moot` as `python -m cli.main` is, in a session of its own, to be told to end
and to be killed; but it is forked from a process that has imported what all of them
need. On two cores imports were most of what these tests did. `test_demo`, and what
`make test-nightly` starts, begin as users' processes do.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from multiprocessing import connection, forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any, Final

import pytest

from cli.main import main
from cli.stack.processes import spawn_owned
from tests.paths import ROOT

LOADED: Final = (
    "adapters.topic_config",
    "adapters.topic_watch",
    "cli.audit",
    "cli.main",
    "cli.operate",
    "cli.stack.services",
    "consumers.audit.auditor",
    "consumers.audit.bundle",
    "consumers.export.exporter",
    "consumers.node.service",
    "httpcore2",
    "onnx",
    "onnxscript",
    "opentelemetry.exporter.otlp.proto.http.trace_exporter",
    "producers.agent.agent",
    "producers.agent.training",
    "producers.control",
    "producers.examples.synthetic",
    "producers.timer",
    "streams.aggregator",
    "streams.deciding",
    "streams.mpc.crypten_link",
    "streams.mpc.party",
    "streams.sequencer",
    "truststore",
)
"""None of them starts a thread, which would not survive."""

_PR_SET_PDEATHSIG: Final = 1  # linux/prctl.h
_lock: Final = threading.RLock()
"""Starting a process looks for those that ended; who looks second gets a wrong code."""


@functools.cache
def get_forks() -> ForkServerContext:
    """Start what they are forked from: it does nothing else."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", __name__, *LOADED])
    with pytest.MonkeyPatch.context() as patch:
        for library in ("OMP", "OPENBLAS", "MKL"):  # they share the machine
            patch.setenv(f"{library}_NUM_THREADS", "1")
        forkserver.ensure_running()
    return context


def run_moot(
    *arguments: str, timeout_s: float = 90, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Run `moot` with the given settings and no others."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MOOT_")}
    argv = ["cli.main", *arguments]
    return run_forked(_be, argv, {**clean, **environment}, timeout_s=timeout_s)


def run_forked(
    function: Callable[..., None], *arguments: Any, timeout_s: float = 90
) -> subprocess.CompletedProcess[str]:
    """Run a module's function in a process of its own; returns what that printed."""
    with tempfile.TemporaryDirectory() as directory:
        outputs = [Path(directory) / name for name in ("stdout", "stderr")]
        process = get_forks().Process(
            target=_print_to, args=(outputs, function, arguments)
        )
        with _lock:
            process.start()
        is_late = not connection.wait([process.sentinel], timeout_s)
        with _lock:
            if is_late:
                process.kill()
            process.join()
        if is_late:
            raise subprocess.TimeoutExpired(repr(arguments[0]), timeout_s)
        said = [path.read_text(encoding="utf-8") for path in outputs]
    return subprocess.CompletedProcess(arguments[0], process.exitcode, *said)


class Service:
    """A forked process that leads a session, as a supervisor of `Popen`s sees it."""

    stdin = None

    def __init__(self, argv: Sequence[str], env: Mapping[str, str], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        started, starting = get_forks().Pipe(duplex=False)
        # Not to be waited for by who forgets to stop it.
        self._process = get_forks().Process(
            target=_serve, args=(starting, argv, env, log), daemon=True
        )
        with _lock:
            self._process.start()
        starting.close()
        started.recv()
        assert self._process.pid is not None
        self.pid = self._process.pid

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        with _lock:
            return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        if not connection.wait([self._process.sentinel], timeout):
            assert timeout is not None
            raise subprocess.TimeoutExpired("service", timeout)
        code = self.poll()
        assert code is not None
        return code

    def terminate(self) -> None:
        self._process.terminate()


def spawn_forked(argv: Sequence[str], *, env: Mapping[str, str], log_path: Path) -> Any:
    """Do as `cli.stack.processes.spawn_owned`: "python -m MODULE ..." is forked."""
    if not sys.platform.startswith("linux"):
        return spawn_owned(argv, env=env, log_path=log_path)
    assert argv[:2] == [sys.executable, "-m"]
    return Service(argv[2:], env, log_path)


def _serve(
    starting: connection.Connection,
    argv: Sequence[str],
    env: Mapping[str, str],
    log: Path,
) -> None:
    os.setsid()
    # What all were forked from ends with the tests, whatever ends them.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    starting.send(os.getpid())
    starting.close()
    # It may have children: a party has.
    multiprocessing.current_process()._config["daemon"] = False  # type: ignore[attr-defined]
    for number in (1, 2):
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        os.dup2(file, number)
        os.close(file)
    _be(argv, env)


def _print_to(
    outputs: Sequence[Path], function: Callable[..., None], arguments: Sequence[Any]
) -> None:
    for number, path in enumerate(outputs, 1):
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    function(*arguments)


def _be(argv: Sequence[str], environment: Mapping[str, str]) -> None:
    """Be "python -m" of these."""
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(environment)
    tempfile.tempdir = None
    sys.argv = list(argv)
    sys.orig_argv = [sys.executable, "-m", *argv]
    try:
        if argv[0] == "cli.main":  # it is loaded
            main()
        else:
            runpy.run_module(argv[0], run_name="__main__", alter_sys=True)
    finally:
        # A forked process ends without it, and it is then that spans are exported.
        atexit._run_exitfuncs()
