"""Several at a time, in order, and only a few ahead of the consumer."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Ahead:
    """Like `map`, in this many threads; as many results may wait."""

    def __init__(self, num_threads: int, name: str) -> None:
        self.num_threads = num_threads
        self._pool = ThreadPoolExecutor(num_threads, name)

    def submit(self, work: Callable[[], Result]) -> Future[Result]:
        """Do one piece of work in the background."""
        return self._pool.submit(work)

    def __call__(
        self, function: Callable[[Item], Result], items: Iterable[Item]
    ) -> Iterator[Result]:
        """Yield the function's results, in order; its exceptions pass through."""
        waiting: deque[Future[Result]] = deque()
        try:
            for item in items:
                waiting.append(self._pool.submit(function, item))
                if len(waiting) > self.num_threads:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()

    def close(self) -> None:
        """End the threads; work not yet begun is dropped."""
        self._pool.shutdown(wait=True, cancel_futures=True)
