"""A party's memory of the sums it has given, on its disk.

One line of JSON for each sum, appended and made durable before the sum leaves the
process. A party whose memory is gone could be made to subtract: so a directory that has
keys and no memory is refused, and so is a line that was changed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from pathlib import Path
from typing import IO, Any, Final

from protocol.parties import Summed, demand_harmless

SUMS_FILE: Final = "sums.jsonl"
_START: Final = hashlib.sha256(b"folkmoot-sums/v1\n").hexdigest()


class SumLogError(Exception):
    """The memory cannot be used; the message says why and what to do."""


def create_sum_log(directory: Path) -> None:
    """Make an empty memory, unless there is one.

    Comes before the keys: keys without a memory have lost it.
    """
    directory.mkdir(parents=True, exist_ok=True, mode=0o700)
    descriptor = os.open(directory / SUMS_FILE, os.O_WRONLY | os.O_CREAT, 0o600)
    os.fsync(descriptor)
    os.close(descriptor)
    _sync_directory(directory)


class SumLog:
    """The memory of one party, open for one process at a time.

    Args:
        directory: Where `create_sum_log` made it.

    Raises:
        SumLogError: it is gone, damaged, or another process uses it.
    """

    def __init__(self, directory: Path) -> None:
        self._path = directory / SUMS_FILE
        try:
            self._file: IO[bytes] = self._path.open("r+b")
        except FileNotFoundError:
            msg = (
                f"{self._path} is gone: this party cannot know what it has summed. Its "
                "keys must not be used again: make another party."
            )
            raise SumLogError(msg) from None
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._file.close()
            msg = f"another process uses {directory}: stop it first"
            raise SumLogError(msg) from None
        try:
            self._given, self._last = self._read()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process use it."""
        if not self._file.closed:
            # Closing alone would not do: a child that was just forked has a copy.
            fcntl.flock(self._file, fcntl.LOCK_UN)
        self._file.close()

    @property
    def given(self) -> tuple[Summed, ...]:
        """All sums so far, oldest first."""
        return tuple(self._given)

    def permit(self, asked: Summed, *, min_cohort: int) -> None:
        """Return once this sum may be given: it is harmless, and remembered.

        Args:
            asked: The sum that is asked for.
            min_cohort: As in `protocol.parties.demand_harmless`.

        Raises:
            SumRefusedError: it may not be given.
        """
        demand_harmless(asked, self._given, min_cohort=min_cohort)
        if asked in self._given:
            return
        line, last = _write_line(self._last, asked)
        self._file.seek(0, os.SEEK_END)
        self._file.write(line)
        self._file.flush()
        os.fsync(self._file.fileno())
        self._given.append(asked)
        self._last = last

    def _read(self) -> tuple[list[Summed], str]:
        given: list[Summed] = []
        last, good_size = _START, 0
        for number, line in enumerate(self._file, start=1):
            if not line.endswith(b"\n"):
                # A crash while it was written: that sum has not left the process.
                self._file.truncate(good_size)
                break
            try:
                summed, last = _read_line(last, line)
            except (ValueError, KeyError, TypeError):
                msg = (
                    f"{self._path}, line {number}: not what was written there. Restore "
                    "the file; without it this party must not sum again."
                )
                raise SumLogError(msg) from None
            given.append(summed)
            good_size += len(line)
        return given, last


def _write_line(last: str, summed: Summed) -> tuple[bytes, str]:
    """Return a line and its digest, which the next line builds on."""
    content = {
        "federation_id": summed.federation_id,
        "round": summed.round,
        "cause": summed.cause.hex(),
        "updates": [[digest.hex(), weight] for digest, weight in summed.updates],
    }
    text = json.dumps(content, separators=(",", ":"), sort_keys=True)
    digest = hashlib.sha256(f"{last}{text}".encode()).hexdigest()
    return f'{{"sha256":"{digest}","sum":{text}}}\n'.encode(), digest


def _read_line(last: str, line: bytes) -> tuple[Summed, str]:
    content: Any = json.loads(line)["sum"]
    summed = Summed(
        federation_id=content["federation_id"],
        round=content["round"],
        cause=bytes.fromhex(content["cause"]),
        updates=tuple(
            (bytes.fromhex(digest), weight) for digest, weight in content["updates"]
        ),
    )
    expected, digest = _write_line(last, summed)
    if line != expected:
        msg = "the line is not the one that was written"
        raise ValueError(msg)
    return summed, digest


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
