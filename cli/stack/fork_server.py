"""Start our own programs as forks of a process that has imported what they need.

Imports are most of a service's first seconds: Faust, Kafka's clients and numpy take a
core for a second or two, torch for four, and a federation on one machine has nineteen
processes. Here one process imports them, once. What it forks is a process like any
other: an id, a session, memory and a log of its own, to be killed alone; only what it
imports is there already.

The server has one thread, and does nothing but import: there is no client, no key and
no lock in it that a fork would share or find half-done, and Python's generators of
random numbers are seeded anew in each. If an import started a thread all the same, a
program is executed afresh instead.

Its standard input is its lifeline, as a guard's is (`cli.stack.guard`): whichever way
we die, it stops what it forked. If the server itself dies, the kernel kills that.

Linux only, for the kernel's part of this.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from cli.stack.guard import GRACE_S, PR_SET_PDEATHSIG
from cli.stack.processes import ONE_THREAD, Child, kill_group, kill_owned

MAX_REQUEST_BYTES: Final = 65_536
STOP_TIMEOUT_S: Final = 15.0  # what imports and a guard's grace may take
_PR_SET_NAME: Final = 15  # linux/prctl.h
_STARTED, _ENDED = b"started", b"ended"
_KILLED: Final = -int(signal.SIGKILL)

IS_SUPPORTED: Final = sys.platform.startswith("linux")


class _Fork:
    """A process that a fork server started."""

    def __init__(self, channel: socket.socket) -> None:
        """Take over the socket on which the server tells its id, then its exit code."""
        self._channel = channel
        self._lock = threading.Lock()
        self._pid: int | None = None
        self._exit_code: int | None = None

    @property
    def pid(self) -> int:
        """Its id; waits until the server has imported what it needs.

        Raises:
            ProcessLookupError: the server died before.
        """
        self._listen(None, is_started=True)
        if self._pid is None:
            raise ProcessLookupError
        return self._pid

    def poll(self) -> int | None:
        """Return its exit code; None while it runs, or is still to be started."""
        self._listen(0.0)
        return self._exit_code

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended."""
        self._listen(timeout)
        if self._exit_code is None:
            raise subprocess.TimeoutExpired("fork", timeout or 0.0)
        return self._exit_code

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        with suppress(ProcessLookupError):
            pid = self.pid
            if self.poll() is None:
                os.kill(pid, signal.SIGTERM)

    def _listen(self, timeout_s: float | None, *, is_started: bool = False) -> None:
        """Hear what the server says, until the end or, if asked, the beginning."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._lock:
            while self._exit_code is None and not (is_started and self._pid):
                left = None if deadline is None else max(0, deadline - time.monotonic())
                if not select.select([self._channel], [], [], left)[0]:
                    return
                what, _, number = self._channel.recv(64).partition(b" ")
                if what == _STARTED:
                    self._pid = int(number)
                else:
                    # Nothing is said when the server is gone, and the process with it.
                    self._exit_code = int(number or _KILLED)
                    self._channel.close()


class ForkServer:
    """The server as those have it who start programs with it."""

    def __init__(self, log_path: Path, env: Mapping[str, str] | None = None) -> None:
        """Name it; it starts when it is first needed.

        Args:
            log_path: File that gets its own output, appended.
            env: What its environment has besides ours.
        """
        self._log_path = log_path
        self._env = dict(env or {})
        self._process: subprocess.Popen[bytes] | None = None
        self._control: socket.socket | None = None
        self._lock = threading.Lock()

    def preload(self, *modules: str) -> None:
        """Have the server import modules, meanwhile.

        One that cannot be imported fails again in the program that needs it.
        """
        self._send({"imports": modules})

    def fork(
        self,
        module: str,
        arguments: Sequence[str],
        *,
        env: Mapping[str, str],
        name: str,
        log_path: Path,
    ) -> Child:
        """Start what `python -m module` runs, which is its function `main`.

        Args:
            module: The program.
            arguments: Its command line.
            env: What its environment has besides ours.
            name: For people who list processes.
            log_path: File that gets its output, appended.
        """
        log_path.parent.mkdir(parents=True, exist_ok=True)
        ours, theirs = _make_pair()
        with theirs:
            request = {
                "module": module,
                "arguments": list(arguments),
                "env": dict(env),
                "name": name,
                "log": str(log_path),
            }
            self._send(request, theirs.fileno())
        return _Fork(ours)

    def close(self) -> None:
        """End the server, and whatever it forked that still runs."""
        with self._lock:
            if self._control is not None:
                self._control.close()
            if self._process is not None:
                try:
                    self._process.wait(STOP_TIMEOUT_S)
                except subprocess.TimeoutExpired:
                    kill_owned(self._process)
            self._control = self._process = None

    def _send(self, request: Mapping[str, object], *descriptors: int) -> None:
        with self._lock:
            # One that died took its forks with it: whoever watches them starts them
            # again.
            if self._process is None or self._process.poll() is not None:
                self._start()
            assert self._control is not None
            socket.send_fds(self._control, [json.dumps(request).encode()], descriptors)

    def _start(self) -> None:
        if self._control is not None:
            self._control.close()
        self._control, theirs = _make_pair()
        self._log_path.parent.mkdir(parents=True, exist_ok=True)
        with theirs, self._log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cli.stack.fork_server"],
                env={**ONE_THREAD, **os.environ, **self._env},
                stdin=theirs.fileno(),
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )


def _make_pair() -> tuple[socket.socket, socket.socket]:
    # Of messages, so that none is read in parts; with an end, unlike datagrams.
    return socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)


class _Server:
    """The server itself."""

    def __init__(self, control: socket.socket) -> None:
        self._control = control
        self._children: dict[int, socket.socket] = {}
        self._pid = os.getpid()
        self._libc = ctypes.CDLL(None)  # before any fork: nothing is loaded after one
        self._wake, self._woken = os.pipe()
        for end in (self._wake, self._woken):
            os.set_blocking(end, False)
        signal.set_wakeup_fd(self._woken)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    def serve(self) -> tuple[str, list[str]] | None:
        """Fork until nobody can ask any more.

        Returns:
            In a fork, the program that it is to run and its arguments; in the server,
            at the end, None.
        """
        while True:
            control = self._control.fileno()
            readable, _, _ = select.select([control, self._wake], [], [])
            if self._wake in readable:
                self._reap()
            if control not in readable:
                continue
            message, descriptors, _, _ = socket.recv_fds(
                self._control, MAX_REQUEST_BYTES, 1
            )
            if not message:
                self._end()
                return None
            request = json.loads(message)
            for name in request.get("imports", ()):
                # The program that needs it fails likewise, and says so in its log.
                with suppress(Exception):
                    importlib.import_module(name)
            for descriptor in descriptors:
                if self._fork(socket.socket(fileno=descriptor), request):
                    return request["module"], request["arguments"]

    def _fork(self, channel: socket.socket, request: Mapping[str, Any]) -> bool:
        """Return whether this is the fork."""
        is_alone = len(list(Path("/proc/self/task").iterdir())) == 1
        gc.freeze()  # or the first collection in a fork would copy all that has objects
        pid = os.fork()
        if pid == 0:
            self._become(request)
            _tell(channel, _STARTED, os.getpid())
            channel.close()
            if not is_alone:
                program = ["-m", request["module"], *request["arguments"]]
                os.execv(sys.executable, [sys.executable, *program])  # noqa: S606
            return True
        self._children[pid] = channel
        return False

    def _become(self, request: Mapping[str, Any]) -> None:
        """Leave behind what is the server's."""
        self._libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != self._pid:  # it died before the call took effect
            os.kill(os.getpid(), signal.SIGKILL)
        os.setsid()
        self._libc.prctl(_PR_SET_NAME, request["name"].encode())
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self._control.close()
        for channel in self._children.values():
            channel.close()
        os.close(self._wake)
        os.close(self._woken)
        nothing = os.open(os.devnull, os.O_RDONLY)
        log = os.open(request["log"], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
        for descriptor, number in ((nothing, 0), (log, 1), (log, 2)):
            os.dup2(descriptor, number)
        os.close(nothing)
        os.close(log)
        os.environ.update(request["env"])
        tempfile.tempdir = None  # of the server's environment, if an import asked

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            os.read(self._wake, 512)
        while self._children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                return
            channel = self._children.pop(pid)
            _tell(channel, _ENDED, os.waitstatus_to_exitcode(status))
            channel.close()

    def _end(self) -> None:
        """Stop what still runs: politely first, then not, with all that it started."""
        leaders = list(self._children)
        for pid in leaders:
            os.kill(pid, signal.SIGTERM)
        deadline = time.monotonic() + GRACE_S
        while self._children and (left := deadline - time.monotonic()) > 0:
            select.select([self._wake], [], [], left)
            self._reap()
        for pid in leaders:
            kill_group(pid)


def _tell(channel: socket.socket, what: bytes, number: int) -> None:
    with suppress(OSError):  # whoever asked does not listen any more
        channel.send(b"%b %d" % (what, number))


def main() -> None:
    """Serve; in a fork, run the program that was asked for."""
    # Standard input: its end is ours.
    program = _Server(socket.socket(fileno=os.dup(0))).serve()
    if program is not None:
        module, sys.argv[1:] = program
        # What it would be started with, to begin again.
        sys.orig_argv[1:] = ["-m", module, *sys.argv[1:]]
        importlib.import_module(module).main()


if __name__ == "__main__":
    main()
