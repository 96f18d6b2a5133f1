"""A ledger node in an event loop: its callers, waiters and replays.

Rules:

- Every call of the node happens in the loop's thread. Nothing needs a lock.
- Another thread replays blocks, one at a time. A replay takes up to a second; meanwhile
  attestations are counted, time passes, and other nodes are answered.
- Bursts of messages are taken a few at a time, for the same reason.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, TypeVar

from consumers.node.ledger_node import LedgerNode
from ledger.attestations import InvalidMessageError
from ledger.note import InvalidNoteError
from protocol.log import ForeignRecordError
from protocol.modes.problem import UNFORESEEN
from schemas.codec import CodecError

log = logging.getLogger(__name__)
T = TypeVar("T")

MAX_AT_ONCE: Final = 64
"""Messages taken before others have their turn."""
HEARS_S: Final = 1.0
READING_S: Final = 0.3
"""A node that was given nothing for this long is not reading a log."""


class NodeLoop:
    """A node with its callers. Made and used in one event loop."""

    def __init__(self, node: LedgerNode) -> None:
        self.node = node
        self._changed = asyncio.Event()
        self._replaying = asyncio.Lock()
        self._added_at_s: float | None = None
        self._kafka_at_s: float | None = None

    def step(self, call: Callable[[], T]) -> T:
        """Call a method of the node, and wake all who wait for a change."""
        try:
            return call()
        finally:
            self._changed.set()
            self._changed = asyncio.Event()

    async def changed(self) -> None:
        """Return once anything has changed."""
        await self._changed.wait()

    @property
    def is_reading(self) -> bool:
        """Whether blocks keep coming in."""
        if self.node.tree.is_replaying:
            return True
        now_s = asyncio.get_running_loop().time()
        return self._added_at_s is not None and now_s - self._added_at_s < READING_S

    async def add_block(self, data: bytes, signature: bytes) -> None:
        """Do as `LedgerNode.add_block`, letting others have their turn meanwhile."""
        tree = self.node.tree
        async with self._replaying:
            before = tree.num_added
            try:
                replay = tree.prepare(data, signature)
            except ForeignRecordError as error:
                log.warning("passing over a block: %s", error)
                return
            if replay is None:
                await asyncio.sleep(0)  # a turn for others, too
            else:
                began_s = asyncio.get_running_loop().time()
                await asyncio.to_thread(replay)
                took_s = asyncio.get_running_loop().time() - began_s
                self.node.note_replay(took_s)
            self.step(lambda: self.node.add_block(data, signature))
            if tree.num_added > before:
                self._added_at_s = asyncio.get_running_loop().time()

    @property
    def hears_kafka(self) -> bool:
        """Whether Kafka just brought messages of other nodes."""
        now_s = asyncio.get_running_loop().time()
        return self._kafka_at_s is not None and now_s - self._kafka_at_s < HEARS_S

    async def hear(
        self, messages: Iterable[bytes], *, is_from_kafka: bool = False
    ) -> None:
        """Take what others said. A bad message does not invalidate the others."""
        rest = list(messages)
        if rest and is_from_kafka:
            self._kafka_at_s = asyncio.get_running_loop().time()
        while rest:
            now, rest = rest[:MAX_AT_ONCE], rest[MAX_AT_ONCE:]
            self.step(partial(self._hear, now))
            await asyncio.sleep(0)

    def _hear(self, messages: Iterable[bytes]) -> None:
        for data in messages:
            try:
                self.node.hear(data)
            except (CodecError, InvalidMessageError, InvalidNoteError) as error:
                # Anybody can say anything.
                log.debug("passing over a message: %s", error)
            except UNFORESEEN as error:
                log.warning("passing over a message: %r", error, exc_info=True)
