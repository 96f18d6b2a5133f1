"""Pulling from other ledger nodes, one task each; none is trusted.

Rules:

- Each feed is pulled by long poll; after an error, the next attempt waits longer.
- Missing blocks that other nodes certified or attested are fetched from nodes that have
  them; what nobody has, less and less often.
- So is the highest block that a node knows, from that node: once per page of its feed.
  While another node leads, a node that alone was shown a block says nothing about it,
  and the leader must get it from somewhere.
- A node far behind takes final blocks by height, under a finality proof that it
  verifies first. One such transfer at a time.

The Kafka operator is not on this path: finality does not depend on Kafka.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from adapters.outages import describe
from adapters.peers import FeedPage, Peer, PeerError
from consumers.node.blocks import RegistryAwayError
from consumers.node.ledger_node import FEED_MARGIN
from consumers.node.loop import NodeLoop
from ledger.attestations import START
from ledger.finality import FinalityProof, verify_finality
from protocol.modes.problem import UNFORESEEN

log = logging.getLogger(__name__)

MIN_RETRY_S: Final = 0.2
MAX_RETRY_S: Final = 10.0
PULL_EVERY_S: Final = 0.25
"""New entries come in one answer, not in one each."""
PULL_BESIDE_KAFKA_S: Final = 0.75
"""The same while Kafka brings messages: most of what is pulled is known by then. If it
brings some and withholds others, those come this much later."""
REFRESH_S: Final = 0.5
FETCH_AFTER_S: Final = 0.3
"""How long a block may be missing before others are asked: Kafka usually brings it."""
MAX_FETCHES: Final = 16
CATCH_UP_BLOCKS: Final = 512
"""Blocks taken under one finality proof."""


@dataclass(slots=True)
class _Followed:
    """Another node, and what is known about it."""

    peer: Peer
    task: asyncio.Task[None] | None = None
    final_height: int = -1
    tip: tuple[int, bytes] | None = None
    heard_at_s: float | None = None
    problem: str = ""


class PeerPuller:
    """Pulls from the nodes that the log names, and from given others.

    Args:
        loop: The node that takes what is pulled.
        seeds: URLs of nodes to pull from, whatever the log names.
    """

    def __init__(self, loop: NodeLoop, seeds: tuple[str, ...] = ()) -> None:
        self._loop = loop
        self._node = loop.node
        self._seeds = seeds
        self._followed: dict[str, _Followed] = {}
        self._catching_up = asyncio.Lock()

    def describe(self) -> dict[str, Any]:
        """Return the other nodes' status by URL, as JSON types."""
        now_s = asyncio.get_running_loop().time()
        height = self._node.tree.final_height
        return {
            url: {
                "final_height": followed.final_height,
                "lag": height - followed.final_height,
                "heard_s_ago": None
                if followed.heard_at_s is None
                else round(now_s - followed.heard_at_s, 1),
                "problem": followed.problem,
            }
            for url, followed in self._followed.items()
        }

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Pull until cancelled."""
        fetcher = asyncio.create_task(self._fetch_wanted())
        try:
            while True:
                self._refresh(session)
                for followed in self._followed.values():
                    if followed.task is not None and followed.task.done():
                        followed.task.result()  # only what must end the process
                if fetcher.done():
                    fetcher.result()
                await asyncio.sleep(REFRESH_S)
        finally:
            fetcher.cancel()
            for followed in self._followed.values():
                if followed.task is not None:
                    followed.task.cancel()

    def _refresh(self, session: aiohttp.ClientSession) -> None:
        """Follow the nodes of the present era, and nobody else."""
        nodes, name = self._node.nodes, self._node.name
        named = () if nodes is None else nodes.nodes
        urls = {
            node.url.rstrip("/") for node in named if node.url and node.name != name
        }
        urls |= {url.rstrip("/") for url in self._seeds}
        for url in self._followed.keys() - urls:
            task = self._followed.pop(url).task
            if task is not None:
                task.cancel()
        for url in urls - self._followed.keys():
            followed = _Followed(Peer(session, url))
            self._followed[url] = followed
            followed.task = asyncio.create_task(self._follow(followed))

    async def _follow(self, followed: _Followed) -> None:
        after, era, retry_s = 0, -1, MIN_RETRY_S
        while True:
            nodes = self._node.nodes
            if nodes is not None and nodes.era != era:
                # What was said about this era before it began here was not kept.
                after, era = 0, nodes.era
            try:
                page = await followed.peer.read_feed(after)
                followed.final_height, followed.tip = page.final_height, page.tip
                followed.heard_at_s = asyncio.get_running_loop().time()
                followed.problem = ""
                await self._loop.hear(page.events)
                after = page.last
                await self._catch_up(followed.peer, page)
                retry_s = MIN_RETRY_S
                await asyncio.sleep(
                    PULL_BESIDE_KAFKA_S if self._loop.hears_kafka else PULL_EVERY_S
                )
            except (PeerError, RegistryAwayError, *UNFORESEEN) as error:
                # Whatever it said: others are followed, and it may say better.
                followed.problem = describe(error)
                log.debug("%s", error)
                await asyncio.sleep(retry_s)
                retry_s = min(2 * retry_s, MAX_RETRY_S)

    async def _catch_up(self, peer: Peer, page: FeedPage) -> None:
        """Take final blocks from a node that is ahead."""
        node = self._node
        if node.tree.height < 0 and page.final_height >= 0:
            await self._fetch(peer, 0)
        era = -1 if node.nodes is None else node.nodes.era
        lag = page.final_height - node.tree.final_height
        # What is being read from Kafka needs no proof, only time.
        is_behind = page.era > era or lag > (
            FEED_MARGIN if self._loop.is_reading else 1
        )
        if era < 0 or not is_behind or self._catching_up.locked():
            return
        async with self._catching_up:
            while await self._take_part(peer):
                pass

    async def _take_part(self, peer: Peer) -> bool:
        """Take blocks under one proof; returns whether anything became final."""
        node, before = self._node, self._node.tree.final_height
        nodes, final = node.nodes, node.tree.final
        assert nodes is not None, "a node without nodes is never behind"
        data = await peer.fetch_proof(nodes.era, before + CATCH_UP_BLOCKS)
        if data is None:
            return False
        proof = FinalityProof.from_bytes(data)
        verify_finality(
            nodes, proof, (-1, START) if final is None else final.next_start
        )
        if node.tree.find(proof.header.id) is None:
            for height in range(before + 1, proof.header.height + 1):
                if not await self._fetch(peer, height):
                    break  # no sequencer made a closing child
        self._loop.step(lambda: node.add_proof(proof))
        for digest in node.tree.wanted():
            await self._fetch(peer, digest)
        return node.tree.final_height > before

    async def _fetch(self, peer: Peer, which: bytes | int) -> bool:
        found = await peer.fetch_block(which)
        if found is None:
            return False
        data, signature = found
        await self._loop.add_block(data, signature)
        return True

    def _find_wanted(self) -> dict[bytes, list[_Followed]]:
        """Return ids and hashes of blocks to fetch, and from whom."""
        tree, is_reading = self._node.tree, self._loop.is_reading
        followed = list(self._followed.values())
        ids = tree.wanted(is_reading=is_reading)[:MAX_FETCHES]
        wanted = dict.fromkeys(ids, followed)
        for one in followed:
            if one.tip is None or is_reading:
                continue  # what is being read brings it
            height, digest = one.tip
            if height > tree.final_height and not tree.knows(digest):
                wanted.setdefault(digest, [one])
        return wanted

    async def _fetch_wanted(self) -> None:
        """Fetch what stays missing from nodes that have it."""
        due: dict[bytes, tuple[float, float]] = {}
        loop = asyncio.get_running_loop()
        turn = 0
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(FETCH_AFTER_S):
                    await self._loop.changed()
            wanted = self._find_wanted()
            first = loop.time() + FETCH_AFTER_S, FETCH_AFTER_S
            due = {digest: due.get(digest, first) for digest in wanted}
            for digest, sources in wanted.items():
                at_s, wait_s = due[digest]
                if loop.time() < at_s:
                    continue
                # Perhaps nobody has it: a liar can attest anything.
                wait_s = min(2 * wait_s, MAX_RETRY_S)
                due[digest] = loop.time() + wait_s, wait_s
                turn += 1
                for number in range(len(sources)):
                    source = sources[(turn + number) % len(sources)]
                    if source.tip is not None and source.tip[1] == digest:
                        source.tip = None  # once for each page
                    with suppress(PeerError, RegistryAwayError):
                        if await self._fetch(source.peer, digest):
                            break
