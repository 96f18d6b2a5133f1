"""An agent's directory: for one process at a time, and no copy of another.

    <directory>/lock             held by the one process that may speak
    <directory>/*.avro, *.sent   what it is about to say, and has said: the journal

Rules (ADR 0028):

- One process at a time: a second one ends at once.
- What an agent says is in the journal before it is said. So what the log has under its
  key, and the journal has not, was said from another directory.
- A directory has a place: the lock's device, its inode, its time of last change, which
  nobody can set, and the boot of the machine. Whatever copies files, and a disk's
  snapshot once the machine has started again, gives another place. What may be used
  once only is bound to the place (`producers.secret_update`).

What is put back beneath a machine that goes on running has the same place: its memory,
or the very blocks of a mounted disk. Nothing here notices that.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from pathlib import Path
from typing import IO, Final

LOCK_FILE: Final = "lock"
PAGE: Final = "docs/howto/what-may-never-be-restored.md"
"""Where operators read what to do."""

_JOURNAL: Final = {".avro", ".sent"}
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")
_RENEWED_WITHIN_S: Final = 5.0  # FAT counts by 2 s
_LOOK_AGAIN_S: Final = 0.002


class AgentDirectoryError(Exception):
    """An agent may not use a directory; the message says why and what to do."""


class AgentDirectory:
    """An agent's directory, open for one process at a time.

    Args:
        path: Private to the agent; made if it is not there.

    Raises:
        AgentDirectoryError: another process uses it.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._read: set[str] = set()
        self._known: set[bytes] = set()
        self._lock: IO[bytes] = os.fdopen(_open_lock(path), "rb")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            msg = f"another process uses {path}: stop it first"
            raise AgentDirectoryError(msg) from None

    def close(self) -> None:
        """Let another process use it."""
        if not self._lock.closed:
            # Closing alone would not do: a child that was just forked has a copy.
            fcntl.flock(self._lock, fcntl.LOCK_UN)
        self._lock.close()

    def knows(self, event: bytes) -> bool:
        """Return whether the journal has what somebody said with the agent's key.

        Args:
            event: Single-object encoding.
        """
        digest = hashlib.sha256(event).digest()
        if digest not in self._known:
            self._read_new()
        return digest in self._known

    def _read_new(self) -> None:
        for path in self._path.iterdir():
            if path.suffix not in _JOURNAL or path.stem in self._read:
                continue
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # said in this moment: its name is the other one
                data = path.with_suffix(".sent").read_bytes()
            self._known.add(hashlib.sha256(data).digest())
            self._read.add(path.stem)


def compute_place(directory: Path) -> str:
    """Return what tells a directory from its copies, in hex."""
    descriptor = _open_lock(directory)
    try:
        lock = os.fstat(descriptor)
    finally:
        os.close(descriptor)
    try:
        boot = _BOOT_ID.read_text(encoding="ascii")
    except OSError:  # another system: copies of files are noticed all the same
        boot = ""
    text = f"{lock.st_dev}/{lock.st_ino}/{lock.st_ctime_ns}/{boot}"
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def renew_place(directory: Path) -> None:
    """Give a directory another place, durably: copies from before are none of it.

    Raises:
        OSError: the file system does not say when a file changed.
    """
    descriptor = _open_lock(directory)
    try:
        before = os.fstat(descriptor).st_ctime_ns
        give_up_s = time.monotonic() + _RENEWED_WITHIN_S
        while True:
            os.utime(descriptor)
            if os.fstat(descriptor).st_ctime_ns != before:
                break
            if time.monotonic() > give_up_s:
                msg = f"the file system of {directory} keeps no times of change"
                raise OSError(msg)
            time.sleep(_LOOK_AGAIN_S)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_lock(directory: Path) -> int:
    return os.open(directory / LOCK_FILE, os.O_RDONLY | os.O_CREAT, 0o600)
