"""Run one command that must not outlive the process that asked for it.

`processes.spawn_owned` runs this file as a script, between us and the command. Our end
of the pipe on its standard input is the lifeline: whichever way we die, `kill -9`
included, the kernel closes it, and the guard then stops the command and everything the
command started.

Why a process and not only PR_SET_PDEATHSIG in the command itself: that signal is sent
when the *thread* that forked ends, so a service started from a worker thread would be
killed with the thread; and macOS has no such signal. The guard has one thread, so it
may use PDEATHSIG for the last gap: that somebody kills the guard itself.

Only the standard library's small modules are imported: one guard runs per service.
"""

import ctypes
import os
import select
import signal
import subprocess
import sys
from collections.abc import Callable
from types import FrameType

GRACE_S = 5.0  # for the command to flush and leave; then its group is killed
# Between two checks of our parent's id: for a lifeline that some fork still holds.
PARENT_POLL_S = 1.0
PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(command: list[str]) -> int:
    """Run the command until it ends or our parent does; return its exit code."""
    parent = os.getppid()
    child: subprocess.Popen[bytes] | None = None
    early: list[int] = []  # signals that came before there was a child to take them

    def forward(number: int, _frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for forwarded in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(forwarded, forward)
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_read, False)
    os.set_blocking(wake_write, False)
    signal.set_wakeup_fd(wake_write)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)

    # preexec_fn is unsafe beside other threads; the guard has none.
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            preexec_fn=_die_with_guard(),  # noqa: PLW1509
        )
    except OSError as error:
        print(f"{command[0]}: {error.strerror}", file=sys.stderr)
        return 127
    for number in early:
        child.send_signal(number)

    lifeline = sys.stdin.fileno()
    while child.poll() is None:
        readable, _, _ = select.select([lifeline, wake_read], [], [], PARENT_POLL_S)
        if wake_read in readable:
            os.read(wake_read, 512)
        cut = lifeline in readable and not os.read(lifeline, 512)
        if cut or os.getppid() != parent:
            _end(child)
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def _end(child: subprocess.Popen[bytes]) -> None:
    """Stop the command, then kill whatever is left of our process group, us too."""
    child.terminate()
    try:
        child.wait(GRACE_S)
    except subprocess.TimeoutExpired:
        child.kill()
    os.killpg(os.getpgrp(), signal.SIGKILL)


def _die_with_guard() -> Callable[[], None] | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)  # loaded before the fork: nothing may be loaded after it
    guard = os.getpid()

    def set_death_signal() -> None:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != guard:  # the guard died before the call took effect
            os.kill(os.getpid(), signal.SIGKILL)

    return set_death_signal


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
