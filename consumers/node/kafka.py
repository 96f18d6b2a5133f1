"""Kafka at a ledger node: one source of blocks and messages among others.

A thread reads each topic from its beginning: what Kafka has of final blocks is compared
with what the node has. Another thread asks Kafka about the ledger's partition. If Kafka
is away, they retry for ever; the node goes on without.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from typing import Final, NamedTuple

from adapters import alive
from adapters.kafka import KafkaUnavailableError, Record, follow_partition
from adapters.kafka_log import find_partition
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings
from adapters.topic_config import Weight, check_topics
from adapters.topic_watch import Hold, HoldWatch, PartitionFacts, TopicWatcher
from consumers.node.blocks import RegistryAwayError
from consumers.node.feed import AlertCode
from consumers.node.kafka_watch import KafkaWatch
from consumers.node.loop import NodeLoop
from ledger.blocks import block_hash
from ledger.signing import InvalidSignatureError
from protocol.envelope import SIGNATURE_HEADER, verify_event
from schemas import codec, topics
from schemas import events as e

log = logging.getLogger(__name__)

TOPICS: Final = frozenset({topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS})
RETRY_S: Final = 1.0
WATCH_S: Final = 2.0
CONFIG_S: Final = 60.0
MAX_BLOCKS_AHEAD: Final = 16
MAX_MESSAGES_AHEAD: Final = 256
"""Records read and not processed yet. A block may have 2 MiB; any other record under
this federation's name, 128 KiB."""
_TOPIC_ID: Final = "ledger topic id"


class KafkaIntake:
    """Brings Kafka's records to a node, one after the other."""

    def __init__(self, registry: SchemaRegistry, loop: NodeLoop) -> None:
        self._registry = registry
        self._loop = loop
        self._node = node = loop.node
        known = node.blocks.note(_TOPIC_ID) or b""
        self.watch = KafkaWatch(self._find_final_hash, node.alerts, known.decode())

    def _find_final_hash(self, height: int) -> bytes | None:
        block = self._node.blocks.final_block(height)
        return None if block is None else block.hash

    async def take(self, record: Record) -> None:
        """Bring a record of the federation to the node, and wait until it is taken."""
        if record.topic == topics.LEDGER:
            await self._take_block(record)
        else:
            await self._take_message(record)

    async def _take_block(self, record: Record) -> None:
        data = await self._unframe(record)
        signature = record.header(SIGNATURE_HEADER)
        if data is None or signature is None:
            return
        while self._node.tree.is_full:
            await self._loop.changed()
        while True:
            try:
                await self._loop.add_block(data, signature)
            except RegistryAwayError as error:
                log.warning("%s", error)
                await asyncio.sleep(RETRY_S)
            else:
                break
        self._compare(record.offset, data, signature)

    def _compare(self, offset: int, data: bytes, signature: bytes) -> None:
        """Compare a block that the sequencer signed with what is final here."""
        key = self._node.desk.log_key
        if key is None:
            return
        digest = block_hash(data)
        known = self._node.tree.find_hash(digest)
        if known is not None and known.signature == signature:
            self.watch.see_block(offset, known.header.height, digest)
            return
        try:
            verify_event(key.public_key, self._node.desk.genesis, data, signature)
            height = codec.decode_as(e.BlockSequenced, data).height
        except (InvalidSignatureError, codec.CodecError):
            return
        self.watch.see_block(offset, height, digest)

    async def _take_message(self, record: Record) -> None:
        data = await self._unframe(record)
        if data is not None:
            await self._loop.hear([data], is_from_kafka=True)

    async def _unframe(self, record: Record) -> bytes | None:
        """Return a record's event; waits for the schema registry if need be."""
        while True:
            try:
                return self._registry.unframe_trusted(record.value or b"")
            except FramingError as error:
                log.debug("passing over %s/%d: %s", record.topic, record.offset, error)
                return None
            except Exception as error:  # noqa: BLE001  # its client's, or HTTP's
                log.warning("the schema registry does not answer: %s", error)
                await asyncio.sleep(RETRY_S)


class _Seen(NamedTuple):
    """What Kafka said about the ledger's partition, and what was read before."""

    next_offset: int
    facts: PartitionFacts


_Lasting = dict[AlertCode, tuple[str, ...]]
"""Details of alerts that last as long as their cause."""


class KafkaSource:
    """Reads some of `TOPICS`: one federation's log, checkpoints and attestations."""

    def __init__(
        self,
        settings: Settings,
        registry: SchemaRegistry,
        loop: NodeLoop,
        read_topics: frozenset[str] = TOPICS,
    ) -> None:
        self._settings = settings
        self._loop = loop
        self._node = loop.node
        self._intake = KafkaIntake(registry, loop)
        self._watch = self._intake.watch
        self._topics = read_topics
        self._is_stopping = threading.Event()
        self._must_start_over = threading.Event()
        self._threads: list[threading.Thread] = []

    async def run(self) -> None:
        """Bring what is read to the node, until cancelled."""
        work = [self._bring(topic) for topic in self._topics]
        if topics.LEDGER in self._topics:
            work.append(self._see_facts())
        try:
            # Even with nothing to read, only cancellation ends it.
            await alive.run_together(asyncio.Event().wait(), *work)
        finally:
            self._is_stopping.set()

    def close(self) -> None:
        """Wait for the threads to end, after `run`."""
        self._is_stopping.set()
        for thread in self._threads:
            thread.join(timeout=10)

    async def _bring(self, topic: str) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[Record] = asyncio.Queue()
        is_ledger = topic == topics.LEDGER
        room = threading.Semaphore(
            MAX_BLOCKS_AHEAD if is_ledger else MAX_MESSAGES_AHEAD
        )

        def put(record: Record) -> None:
            while not room.acquire(timeout=1):
                if self._is_stopping.is_set():
                    return
            loop.call_soon_threadsafe(queue.put_nowait, record)

        self._start_thread(lambda: self._read(topic, put), f"read {topic}")
        while True:
            record = await queue.get()
            await self._intake.take(record)
            room.release()

    def _start_thread(self, target: Callable[[], None], name: str) -> None:
        self._threads.append(alive.start_thread(target, name))

    # In threads

    def _read(self, topic: str, put: Callable[[Record], None]) -> None:
        """Read a topic for ever. After an error it starts over: repeats cost little."""
        key = self._node.federation_id.encode()
        is_ledger = topic == topics.LEDGER
        while not self._is_stopping.is_set():
            try:
                partition = find_partition(
                    self._settings, topic, self._node.federation_id
                )
                for record in follow_partition(self._settings, topic, partition):
                    if self._is_stopping.is_set():
                        return
                    if is_ledger and self._must_start_over.is_set():
                        self._must_start_over.clear()
                        break
                    if isinstance(record, Record) and record.key == key:
                        put(record)
            except KafkaUnavailableError as error:
                log.warning("%s", error)
                self._is_stopping.wait(RETRY_S)
            if is_ledger:
                self._watch.start_over()

    def _look(self, put: Callable[[_Seen | _Lasting], None]) -> None:
        """Ask about the ledger's partition for ever."""
        watcher: TopicWatcher | None = None
        holds = HoldWatch()
        configured_s = -CONFIG_S
        while not self._is_stopping.wait(WATCH_S):
            try:
                if watcher is None:
                    partition = find_partition(
                        self._settings, topics.LEDGER, self._node.federation_id
                    )
                    watcher = TopicWatcher(self._settings, topics.LEDGER, partition)
                # What was read before the question was asked must be there.
                next_offset = self._watch.next_offset
                put(_Seen(next_offset, watcher.look()))
                # Last: these calls may be forbidden, and matter less.
                now_s = time.monotonic()
                found = holds.see(watcher.find_ends(self._topics), now_s)
                put({AlertCode.KAFKA_HELD: tuple(map(self._describe, found))})
                if now_s - configured_s >= CONFIG_S:
                    configured_s = now_s
                    put({AlertCode.KAFKA_MISCONFIGURED: self._find_misconfigured()})
            except KafkaUnavailableError as error:
                log.info("%s", error)
        if watcher is not None:
            watcher.close()

    def _describe(self, hold: Hold) -> str:
        return f"{hold}; {hold.describe_cure(self._settings.bootstrap_servers)}"

    def _find_misconfigured(self) -> tuple[str, ...]:
        """Return settings that lose records; the rest is for the topics' operator."""
        return tuple(
            str(problem)
            for problem in check_topics(self._settings)
            if problem.weight == Weight.FATAL
        )

    # In the event loop

    async def _see_facts(self) -> None:
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[_Seen | _Lasting] = asyncio.Queue()
        self._start_thread(
            lambda: self._look(
                lambda item: loop.call_soon_threadsafe(queue.put_nowait, item)  # type: ignore[arg-type]  # a handle nobody needs
            ),
            "watch the ledger",
        )
        while True:
            seen = await queue.get()
            if isinstance(seen, dict):
                for code, details in seen.items():
                    self._node.alerts.keep(code, details)
                continue
            next_offset, facts = seen
            known = self._watch.topic_id
            if self._watch.see_topic(facts.topic_id) or self._watch.see_bounds(
                facts.first, facts.end, next_offset
            ):
                self._must_start_over.set()
            if facts.topic_id != known:
                self._node.blocks.set_note(_TOPIC_ID, facts.topic_id.encode())
