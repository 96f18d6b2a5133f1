"""Child processes that die with us, and recognising a process we once started."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Final, Protocol

Progress = Callable[[str, str], None]
"""Called with a service and what it is doing; must not raise."""

LOOPBACK = "127.0.0.1"
ONE_THREAD: Final = dict.fromkeys(
    ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1"
)
"""For programs of which many share a machine, unless the environment has them: more
threads only get in each other's way."""
_POLL_S: Final = 0.05
_GUARD = Path(__file__).with_name("guard.py")


class Child(Protocol):
    """A process of ours, as `subprocess.Popen` has it."""

    @property
    def pid(self) -> int:
        """Its id, which is also its session's."""

    def poll(self) -> int | None:
        """Return its exit code; None while it runs."""

    def wait(self, timeout: float | None = None) -> int:
        """Return its exit code when it has ended.

        Raises:
            subprocess.TimeoutExpired: it has not, after so many seconds.
        """

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""


class StackError(Exception):
    """Something the user can mend.

    Attributes:
        message: What went wrong.
        hint: What to do about it.
    """

    def __init__(self, message: str, hint: str) -> None:
        """Keep both parts; the command line shows them apart."""
        super().__init__(f"{message}\n{hint}")
        self.message = message
        self.hint = hint


def spawn_owned(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command that ends when this process does, however this process ends.

    The returned process is a guard (see `cli.stack.guard`) that leads its own session,
    so a Ctrl-C in the terminal reaches us alone and we stop our children in order.
    SIGTERM and SIGINT sent to it are forwarded; `kill_owned` kills it and the command
    at once. Its standard input is the lifeline: closing it stops the command.

    Args:
        argv: The command.
        env: Its whole environment.
        log_path: File that gets its output, appended.
        cwd: Its working directory.
    """
    return _spawn(
        [sys.executable, "-I", "-S", str(_GUARD), *argv],
        env=env,
        log_path=log_path,
        cwd=cwd,
        stdin=subprocess.PIPE,
    )


def spawn_detached(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path | None = None,
) -> subprocess.Popen[bytes]:
    """Start a command that survives us, in a session of its own."""
    return _spawn(argv, env=env, log_path=log_path, cwd=cwd, stdin=subprocess.DEVNULL)


def _spawn(
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    log_path: Path,
    cwd: Path | None,
    stdin: int,
) -> subprocess.Popen[bytes]:
    log_path.parent.mkdir(parents=True, exist_ok=True)
    with log_path.open("ab") as log:
        return subprocess.Popen(
            list(argv),
            env=dict(env),
            cwd=cwd,
            stdin=stdin,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def kill_owned(process: Child) -> None:
    """Kill a process of ours, with all it started, and wait until it is gone."""
    with contextlib.suppress(ProcessLookupError):
        kill_group(process.pid)
    process.wait()


def list_children() -> list[int]:
    """Return the ids of this process's children, also of those that have ended."""
    own = os.getpid()
    if sys.platform.startswith("linux"):
        found: list[int] = []
        for path in Path("/proc/self/task").glob("*/children"):
            with contextlib.suppress(OSError):  # a thread that has ended
                found += map(int, path.read_text(encoding="ascii").split())
        return found
    said = subprocess.run(
        ["ps", "-A", "-o", "pid=,ppid="], capture_output=True, text=True, check=False
    ).stdout
    pairs = [tuple(map(int, line.split())) for line in said.splitlines()]
    return [pid for pid, parent in pairs if parent == own]


def end_children(grace_s: float = 10.0) -> None:
    """End whatever this process started that still runs, and wait until it is gone."""
    for pid in list_children():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + grace_s
    while children := list_children():
        for pid in children:
            if time.monotonic() > deadline:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                kill_group(pid)
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_POLL_S)


def kill_group(pid: int) -> None:
    """SIGKILL the session that this process leads, if it still exists."""
    # macOS answers EPERM for a group in which only zombies are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)


def process_started(pid: int) -> str | None:
    """When a live process started, in an opaque form; None if it is not running.

    Process ids are reused; the pair (id, start) is not.
    """
    if sys.platform.startswith("linux"):
        try:
            stat = Path(f"/proc/{pid}/stat").read_text(
                encoding="utf-8", errors="replace"
            )
        except OSError:
            return None
        # proc(5): the name in parentheses may hold spaces; field 3 (the state) follows.
        fields = stat.rpartition(")")[2].split()
        state, start_ticks = fields[0], fields[19]
        return None if state in "ZX" else start_ticks
    found = subprocess.run(
        ["ps", "-o", "stat=,lstart=", "-p", str(pid)],
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    state, _, start = found.partition(" ")
    return None if not found or state.startswith("Z") else start.strip()


def last_lines(path: Path, count: int = 20) -> str:
    """Return the end of a log file, or a note that there is none."""
    try:
        with path.open("rb") as log:
            log.seek(0, os.SEEK_END)
            log.seek(max(0, log.tell() - 16_384))
            lines = log.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "(no log)"
    return "\n".join(lines[-count:]) or "(empty log)"


def read_at_most(path: Path, size_bytes: int) -> bytes:
    """Return a file's bytes, up to one more than allowed, which its parser refuses.

    Args:
        path: The file, which may have no end.
        size_bytes: How many are allowed.
    """
    with path.open("rb") as file:
        return file.read(size_bytes + 1)


def find_free_ports(number: int) -> list[int]:
    """Return distinct TCP ports of this machine that nobody listens on."""
    held = [socket.create_server((LOOPBACK, 0)) for _ in range(number)]
    try:
        return [server.getsockname()[1] for server in held]
    finally:
        for server in held:
            server.close()


def demand_name(name: str, whose: str) -> None:
    """Check that a name may be used in a federation, and so for a folder.

    Raises:
        StackError: it may not.
    """
    from protocol.fields import NAME

    if NAME.fullmatch(name) is None:
        msg = f"{name!r:.80} cannot be {whose}'s name"
        raise StackError(msg, "Use 1 to 64 of a-z 0-9 . _ -, with alphanumeric ends.")
