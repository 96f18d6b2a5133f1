"""A stranger with many sockets, in a process of its own."""

from __future__ import annotations

import math
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count, islice
from pathlib import Path
from typing import Self

_PROGRAM = """
import resource, socket, sys, time
hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 4096), hard))
port, most, said = int(sys.argv[1]), int(sys.argv[2]), bytes.fromhex(sys.argv[3])
held, begun = [], False
while True:
    try:
        one = socket.create_connection(("127.0.0.1", port), 1)
        held.append(one)
        one.send(said)
    except OSError:
        time.sleep(0.001)
    if len(held) >= most:
        if not begun:
            begun = True
            print("begun", flush=True)
        for one in held[: most // 2]:
            one.close()
        del held[: most // 2]
"""


@contextmanager
def flood(port: int, *, num_sockets: int = 500, said: bytes = b"") -> Iterator[None]:
    """Open sockets to a port of this machine for as long as a block lasts.

    The block begins when there have been ``num_sockets``.
    """
    arguments = [str(port), str(num_sockets), said.hex()]
    process = subprocess.Popen(
        [sys.executable, "-c", _PROGRAM, *arguments], stdout=subprocess.PIPE
    )
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == b"begun\n"
        yield
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@contextmanager
def files_left(number: int) -> Iterator[None]:
    """Let this process open so many more files for as long as a block lasts.

    The system's limit is on the numbers of descriptors, and there may be gaps.
    """
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    taken = {
        int(path.name) for path in Path("/proc/self/fd").iterdir() if path.exists()
    }
    free = (candidate for candidate in count() if candidate not in taken)
    limit = next(islice(free, number, None))
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def count_open_files() -> int:
    """Return how many descriptors this process has.

    Raises:
        OSError: as many as it may have.
    """
    return sum(1 for _ in Path("/proc/self/fd").iterdir()) - 1  # its own


class Sampler:
    """The most descriptors that were open at any moment of a block, as far as seen."""

    def __enter__(self) -> Self:
        self.most: float = 0
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._is_over.wait(0.002):
            try:
                self.most = max(self.most, count_open_files())
            except OSError:
                self.most = math.inf
