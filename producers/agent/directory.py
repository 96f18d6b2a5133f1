"""An agent's directory: for one process at a time, and no copy of another.

    <directory>/lock             held by the one process that may speak
    <directory>/*.avro, *.sent   what it is about to say, and has said: the journal

Rules (ADR 0028, ADR 0033):

- One process at a time: a second one ends at once.
- What an agent says is in the journal first. So what the log has under its key, and the
  journal lacks, was said from another directory.
- Nothing here may be used only once: a copy can repeat what was said, and otherwise do
  only what a new directory could (ADR 0033).
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from adapters.durable import describe_holder, lock_file, unlock_file

LOCK_FILE: Final = "lock"
PAGE: Final = "docs/howto/what-may-never-be-restored.md"
"""Where operators read what to do."""

_JOURNAL: Final = {".avro", ".sent"}


class AgentDirectoryError(Exception):
    """An agent may not use a directory; the message says why and what to do."""


class AgentDirectory:
    """An agent's directory, open for one process at a time.

    Args:
        path: Private to the agent; made if missing.

    Raises:
        AgentDirectoryError: another process uses it.
    """

    def __init__(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._path = path
        self._read: set[str] = set()
        self._known: set[bytes] = set()
        try:
            self._lock = lock_file(path / LOCK_FILE)
        except BlockingIOError:
            holder = describe_holder(path / LOCK_FILE)
            msg = f"{holder} uses {path}: stop it first"
            raise AgentDirectoryError(msg) from None

    def close(self) -> None:
        """Let another process use it."""
        unlock_file(self._lock)

    def knows(self, event: bytes) -> bool:
        """Return whether the journal has an encoded event said with the agent's key."""
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
            except FileNotFoundError:  # said just now: it has its other name
                data = path.with_suffix(".sent").read_bytes()
            self._known.add(hashlib.sha256(data).digest())
            self._read.add(path.stem)
