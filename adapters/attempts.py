"""How often work on an item was begun, on disk before it begins.

An item may end the process that takes it: a model that needs more memory than there is,
native code that crashes. Whoever starts again would take it again, for ever, and never
what comes after. So whoever takes such items counts first, and gives one up that ended
the process `MAX_BEGUN` times.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from adapters.durable import PRIVATE, write_file

MAX_BEGUN: Final = 5
"""A reboot or an operator may end the process in the middle of good work, too; but not
five times in a row in the middle of the same."""
SUFFIX: Final = ".begun"


class Attempts:
    """Counts in a directory, a file an item.

    Args:
        directory: Where; made when needed. None: only in this process.
    """

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._counts: dict[str, int] = {}

    def begin(self, item: str) -> bool:
        """Count an attempt; False if it would be one too many.

        Args:
            item: A name that a file may have.

        Raises:
            OSError: it cannot be written down, so the work may not begin.
        """
        number = self._read(item) + 1
        if number > MAX_BEGUN:
            return False
        self._counts[item] = number
        if self._directory is not None:
            self._directory.mkdir(parents=True, exist_ok=True)
            write_file(self._path(item), str(number).encode(), mode=PRIVATE)
        return True

    def end(self, item: str) -> None:
        """Forget an item whose work ended, well or badly."""
        self._counts.pop(item, None)
        if self._directory is not None:
            self._path(item).unlink(missing_ok=True)

    def _read(self, item: str) -> int:
        if self._directory is None:
            return self._counts.get(item, 0)
        try:
            return int(self._path(item).read_bytes())
        except (FileNotFoundError, ValueError):
            return 0

    def _path(self, item: str) -> Path:
        assert self._directory is not None, "it counts on disk"
        return self._directory / f"{item}{SUFFIX}"
