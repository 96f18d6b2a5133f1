"""One input, one parser: what it does, and within which limits.

A finding is an exception other than those that the parser's documentation names, or
more processor time or memory than the table allows it. Run in a child process that may
be lost: a bomb is found, whatever it does to its process.
"""

from __future__ import annotations

import mmap
import os
import resource
import struct
import sys
import time
import traceback
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.fuzz.targets import Target
from tests.paths import ROOT

MEMORY_BEYOND_BYTES: Final = 3 * 2**29
"""What a child may map beyond what it has at its start: the last resort, since what is
allocated and never touched is not seen otherwise."""
MAX_INPUT_BYTES: Final = 2**20
_FOLDER: Final = str(ROOT) + os.sep
_BOARD: Final = struct.Struct("=QI")


@dataclass(frozen=True)
class Finding:
    """An input that a parser does not stand.

    Attributes:
        target: The parser.
        what: What it did: the same words for the same fault, as far as one can tell.
        detail: A traceback or numbers.
        data: The input.
    """

    target: str
    what: str
    detail: str
    data: bytes


class Board:
    """Memory shared with a child: what it works on, in case it does not come back."""

    def __init__(self) -> None:
        self._map = mmap.mmap(-1, _BOARD.size + MAX_INPUT_BYTES)

    def show(self, data: bytes) -> None:
        """Say which input is next."""
        number, _ = _BOARD.unpack_from(self._map)
        part = data[:MAX_INPUT_BYTES]
        _BOARD.pack_into(self._map, 0, number + 1, len(part))
        self._map[_BOARD.size : _BOARD.size + len(part)] = part

    def read(self) -> tuple[int, bytes]:
        """Return how many inputs there were, and the last one."""
        number, size = _BOARD.unpack_from(self._map)
        return number, self._map[_BOARD.size : _BOARD.size + size]


def limit_memory() -> None:
    """Let this process map no more than `MEMORY_BEYOND_BYTES` beyond what it has."""
    if sys.platform != "linux":
        return
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY_BEYOND_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))


class _Peak:
    """The most memory that was resident since it was last asked; Linux alone tells."""

    def __init__(self) -> None:
        self._file = -1
        if sys.platform == "linux":
            self._file = os.open("/proc/self/clear_refs", os.O_WRONLY)

    def take(self) -> int:
        found = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        if self._file >= 0:
            os.pwrite(self._file, b"5", 0)  # proc(5): forget the peak so far
            return found
        return 0


def check(target: Target, data: bytes, peak: _Peak) -> Finding | None:
    """Return what is wrong with what a parser does with an input."""
    detail = what = ""
    peak.take()
    before = peak.take()
    started = time.thread_time()
    try:
        target.parse(data)
    except target.errors as error:
        # What is caught so widely that lack of memory looks like bad input.
        if any(isinstance(cause, MemoryError) for cause in _causes(error)):
            what, detail = "took all memory", traceback.format_exc()
    except BaseException as error:  # noqa: BLE001  # panics of Rust, too
        what = f"raised {type(error).__name__} in {_find_place(error)}"
        detail = traceback.format_exc()
    took_s = time.thread_time() - started
    grown = peak.take() - before
    if not what and took_s > target.max_seconds:
        what, detail = "took long", f"{took_s:.2f} s for {len(data)} bytes"
    if not what and grown > target.max_memory_mb * 2**20:
        what = "took much memory"
        detail = f"{grown / 2**20:.0f} MiB for {len(data)} bytes"
    return Finding(target.name, what, detail, data) if what else None


def start() -> _Peak:
    """Prepare this process for `check`; call it once, in the child."""
    limit_memory()
    return _Peak()


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _find_place(error: BaseException) -> str:
    """Return the last of our lines that was reached."""
    places = [
        f"{frame.filename.removeprefix(_FOLDER)}:{frame.name}"
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename.startswith(_FOLDER) and ".venv" not in frame.filename
    ]
    return places[-1] if places else "nowhere of ours"
