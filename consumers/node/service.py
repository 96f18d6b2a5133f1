"""A ledger node or log server as a process: its surroundings, and what ends it.

A store's error ends the process: a node that cannot remember must not go on.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from adapters import alive, heartbeats
from adapters.blobs import BlobStore
from adapters.block_store import BlockStore
from adapters.kafka import Publisher
from adapters.log_mirror import LogMirror
from adapters.peers import make_session
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings
from adapters.tile_store import TileStore, TileStoreError
from adapters.vote_log import VoteLog
from consumers.node.blocks import RegistryAwayError
from consumers.node.http import NodeServer
from consumers.node.kafka import TOPICS, KafkaSource
from consumers.node.ledger_node import LedgerNode
from consumers.node.loop import NodeLoop
from consumers.node.peers import PeerPuller
from consumers.node.rechecks import Rechecker
from ledger.signing import SigningKey
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason

log = logging.getLogger(__name__)

TICK_S: Final = 0.25
RETRY_S: Final = 1.0
STOP_POLL_S: Final = 0.1
BLOCKS_FILE: Final = "blocks.sqlite"
TILES_DIRECTORY: Final = "tiles"


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeOptions:
    """How to run a node.

    Attributes:
        federation_id: Whose log.
        directory: Its own directory: votes, key, blocks and tiles.
        is_node: Whether it signs; a log server does not.
        host: Address to listen on.
        port: 0 for any that is free.
        operator_key: Public key of the expected founder, 32 bytes; None takes the log's
            word.
        genesis: Hash of the genesis, 32 bytes; None takes any by that operator.
        peers: URLs of nodes to pull from, besides those that the log names.
        is_mirrored: Whether the tiles are copied to the object store.
        rechecks: Whether the blobs of rounds are checked before a block is attested;
            needs the object store.
        kafka_topics: What is read from Kafka, some of `TOPICS`. The node publishes
            there only if the attestations are among them.
    """

    federation_id: str
    directory: Path
    is_node: bool
    host: str = "127.0.0.1"
    port: int = 0
    operator_key: bytes | None = None
    genesis: bytes | None = None
    peers: tuple[str, ...] = ()
    is_mirrored: bool = False
    rechecks: bool = False
    kafka_topics: frozenset[str] = TOPICS


class NodeService:
    """One ledger node or log server.

    Raises:
        VoteLogError: the key may not sign.
        BlockStoreError: the blocks are damaged.
    """

    def __init__(
        self,
        settings: Settings,
        options: NodeOptions,
    ) -> None:
        self._settings = settings
        self._options = options
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._rechecker = (
            Rechecker(BlobStore(settings).fetch)
            if options.is_node and options.rechecks
            else None
        )
        self._votes = VoteLog(options.directory) if options.is_node else None
        self._blocks = BlockStore(options.directory / BLOCKS_FILE)
        self.node = self._open_node()
        """The node."""

    @property
    def key(self) -> SigningKey | None:
        """The key that the node signs with; None for a log server."""
        return None if self._votes is None else self._votes.key

    def _open_node(self) -> LedgerNode:
        directory = self._options.directory / TILES_DIRECTORY
        try:
            return self._make_node(TileStore(directory))
        except TileStoreError as error:
            # They are a view of the blocks, which fill them again.
            log.warning("%s", error)
            shutil.rmtree(directory)
            return self._make_node(TileStore(directory))

    def _make_node(self, tiles: TileStore) -> LedgerNode:
        return LedgerNode(
            self._options.federation_id,
            votes=self._votes,
            blocks=self._blocks,
            tiles=tiles,
            unframe=self._unframe_refused,
            clock=time.time,
            operator_key=self._options.operator_key,
            genesis=self._options.genesis,
            rechecker=self._rechecker,
        )

    def _unframe_refused(self, value: bytes) -> bytes | Reason:
        try:
            return self._registry.unframe_trusted(value)
        except FramingError as error:
            return error.reason
        except Exception as error:
            msg = f"the schema registry does not answer: {error}"
            raise RegistryAwayError(msg) from error

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Serve until told to stop.

        Raises:
            OSError: the port is taken, or the disk cannot store what must be kept.
            VoteLogError: the vote log refuses a vote. A bug.
            BlockStoreError: the blocks are damaged.
        """
        try:
            asyncio.run(self._run(should_stop))
        finally:
            self._blocks.close()
            if self._votes is not None:
                self._votes.close()

    async def _run(self, should_stop: Callable[[], bool]) -> None:
        options, loop = self._options, NodeLoop(self.node)
        heartbeats.do("following and attesting" if options.is_node else "serving")
        puller = PeerPuller(loop, options.peers)
        kafka = KafkaSource(self._settings, self._registry, loop, options.kafka_topics)
        server = NodeServer(
            self.node,
            step=loop.step,
            changed=loop.changed,
            describe=lambda: {"peers": puller.describe()},
        )
        port = await server.start(options.host, options.port)
        log.info("serving http://%s:%d", options.host, port)
        if options.is_node:
            words = "re-checked" if options.rechecks else "not checked: no MinIO"
            log.info("blobs of rounds are %s", words)
        session = make_session()
        work = [kafka.run(), puller.run(session), self._tick(loop)]
        if self._votes is not None and topics.ATTESTATIONS in options.kafka_topics:
            work.append(self._publish(self._votes, loop))
        if options.is_mirrored:
            work.append(self._mirror(loop))
        try:
            await alive.run_together(_poll(should_stop), *work)
        finally:
            if self._rechecker is not None:
                self._rechecker.stop()  # the thread that replays may wait for a blob
            await server.stop()
            await session.close()
            kafka.close()

    async def _tick(self, loop: NodeLoop) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            loop.step(lambda: self.node.tick(now_s()))
            await asyncio.sleep(TICK_S)

    async def _publish(self, votes: VoteLog, loop: NodeLoop) -> None:
        """Bring what the node says to Kafka, in order, as long as it takes."""
        outbox = self.node.outbox
        publisher: Publisher | None = None
        batch: list[e.Event] = []
        with ThreadPoolExecutor(1, "publish") as pool:
            while True:
                batch = batch or list(outbox)
                outbox.clear()
                if not batch:
                    await loop.changed()
                    continue
                publisher = publisher or Publisher(self._settings, self._registry)
                try:
                    await asyncio.get_running_loop().run_in_executor(
                        pool,
                        publisher.publish_all,
                        batch,
                        votes.key,
                        self.node.desk.genesis,
                    )
                    batch = []
                except Exception as error:  # noqa: BLE001  # Kafka's, the registry's
                    log.warning("Kafka refuses this node's messages: %s", error)
                    await asyncio.sleep(RETRY_S)

    async def _mirror(self, loop: NodeLoop) -> None:
        """Copy what is published to the object store."""
        directory = self._options.directory / TILES_DIRECTORY
        copy = LogMirror(self._settings, self._options.federation_id, directory)
        copied: bytes | None = None
        while True:
            note = self.node.tiles.checkpoint()
            if note == copied:
                await loop.changed()
                continue
            try:
                await asyncio.to_thread(copy.copy)
                copied = note
            except Exception as error:  # noqa: BLE001  # the store's client has many
                log.warning("the log is not copied: %s", error)
            await asyncio.sleep(RETRY_S)


async def _poll(should_stop: Callable[[], bool]) -> None:
    while not should_stop():  # noqa: ASYNC110  # a signal says so, not a task
        await asyncio.sleep(STOP_POLL_S)
