"""What a ledger node, or the log server, answers over HTTP.

    GET  /checkpoint                      the last one with a quorum (tlog-tiles)
    GET  /tile/...                        tiles and entry bundles (tlog-tiles)
    POST /add-checkpoint                  cosigns, if it is final (tlog-witness)
    GET  /<sha256 of origin>/checkpoint   the last one cosigned here (tlog-witness)
    GET  /policy                          whose cosignatures count (tlog-policy)
    GET  /attestations?after=N&wait=S     the feed: JSON lines
    GET  /blocks/<id, hash or height>     sequencer's signature, 64 bytes, and block
    GET  /finality[/<era>]                the latest finality proof
    GET  /finality?era=E&height=H         a proof that covers a height
    GET  /evidence                        contradictions found here: JSON lines
    GET  /status                          how the node is: JSON

Nothing else is served, and no path reaches the file system: `ledger.tiles.parse_path`
decides what a tile is. Everybody may read everything; nobody is trusted. One address
cannot hold all connections, no connection lives long, and bodies are small.
"""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any, Final

from aiohttp import web

from adapters import alive
from adapters.block_store import StoredBlock
from adapters.peers import (
    ERA_HEADER,
    FINAL_HEIGHT_HEADER,
    LONG_POLL_S,
    TIP_HEADER,
)
from adapters.tile_store import TileStoreError
from consumers.ledger_node import LedgerNode
from ledger import tiles
from ledger.policy import NO_QUORUM, Log, Policy
from ledger.tiles import InvalidTileError
from ledger.witness import (
    ADD_CHECKPOINT_PATH,
    TEXT_CONTENT_TYPE,
    Refusal,
    monitoring_path,
)
from protocol.admission import make_policy
from schemas import codec

MAX_BODY_SIZE_BYTES: Final = 2**16
MAX_PAGE_SIZE_BYTES: Final = 2**20
MAX_CONNECTIONS: Final = 256
MAX_CONNECTIONS_PER_ADDRESS: Final = 64
MAX_CONNECTION_AGE_S: Final = 300.0
"""After that it is closed whatever it does: who reads slowly comes again."""
SHUTDOWN_S: Final = 1.0
RETRY_AFTER_S: Final = "2"
BINARY: Final = "application/octet-stream"
JSON_LINES: Final = "application/jsonl"

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_IMMUTABLE: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_FRESH: Final = {"Cache-Control": "no-cache"}


class NodeServer:
    """The HTTP side of a node. Runs in the node's own event loop.

    Args:
        node: The node.
        step: Calls a method of the node and carries out what follows from it.
        changed: Returns once anything has changed.
        describe: What the shell adds to ``/status``.
    """

    def __init__(
        self,
        node: LedgerNode,
        *,
        step: Callable[[Callable[[], Any]], Any],
        changed: Callable[[], Awaitable[None]],
        describe: Callable[[], dict[str, Any]],
    ) -> None:
        self._node = node
        self._step = step
        self._changed = changed
        self._describe = describe
        self._runner: web.AppRunner | None = None
        self._janitor: asyncio.Task[None] | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Args:
            host: Address to listen on.
            port: 0 for any that is free.

        Raises:
            OSError: the port is taken.
        """
        app = web.Application(client_max_size=MAX_BODY_SIZE_BYTES)
        app.router.add_get("/{path:.*}", self._get)
        app.router.add_post("/{path:.*}", self._post)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=2.0 * LONG_POLL_S,
            shutdown_timeout=SHUTDOWN_S,  # a long poll does not keep us
        )
        await self._runner.setup()
        site = web.TCPSite(self._runner, host, port)
        await site.start()
        self._janitor = alive.start_task(
            self._close_connections(self._runner), "close connections"
        )
        return int(self._runner.addresses[0][1])

    async def stop(self) -> None:
        """Stop listening, and end every connection."""
        if self._janitor is not None:
            self._janitor.cancel()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _close_connections(self, runner: web.AppRunner) -> None:
        """Close what is too old or too much, the oldest first."""
        born: dict[Any, float] = {}
        while runner.server is not None:
            await asyncio.sleep(1)
            now_s = asyncio.get_running_loop().time()
            open_now = [c.transport for c in runner.server.connections if c.transport]
            born = {transport: born.get(transport, now_s) for transport in open_now}
            by_address: Counter[str] = Counter()
            for count, transport in enumerate(reversed(open_now)):
                address = (transport.get_extra_info("peername") or ("",))[0]
                by_address[address] += 1
                if (
                    count >= MAX_CONNECTIONS
                    or by_address[address] > MAX_CONNECTIONS_PER_ADDRESS
                    or now_s - born[transport] > MAX_CONNECTION_AGE_S
                ):
                    transport.abort()

    async def _post(self, request: web.Request) -> web.Response:
        if request.rel_url.raw_path != f"/{ADD_CHECKPOINT_PATH}" or request.query:
            return _not_found()
        body = await request.read()
        answer = self._step(lambda: self._node.add_checkpoint(body))
        if isinstance(answer, Refusal):
            headers = {"Content-Type": answer.content_type}
            if answer.status == web.HTTPServiceUnavailable.status_code:
                headers["Retry-After"] = RETRY_AFTER_S
            return web.Response(status=answer.status, body=answer.body, headers=headers)
        return _answer(answer, TEXT_CONTENT_TYPE, _FRESH)

    async def _get(self, request: web.Request) -> web.Response:
        # As it was sent: what is escaped is nothing that we serve.
        name, *rest = request.rel_url.raw_path.removeprefix("/").split("/")
        queries = {"attestations": self._feed, "finality": self._find_finality}
        if not rest and name in queries and (request.query or name == "attestations"):
            return await queries[name](request)
        if request.query:
            return _not_found()
        match name, rest:
            case tiles.CHECKPOINT_PATH, []:
                note = self._node.tiles.checkpoint()
                return _answer(note, tiles.CHECKPOINT_CONTENT_TYPE, _FRESH)
            case "tile", _:
                return self._tile("/".join((name, *rest)))
            case _, ["checkpoint"] if f"{name}/checkpoint" == monitoring_path(
                self._node.desk.origin
            ):
                return _answer(self._node.last_cosigned, TEXT_CONTENT_TYPE, _FRESH)
            case "policy", []:
                return _answer(self._policy(), TEXT_CONTENT_TYPE, _FRESH)
            case "blocks", [which]:
                block = self._find_block(which)
                data = None if block is None else block.signature + block.data
                headers = _IMMUTABLE if _HEX.fullmatch(which) else _FRESH
                return _answer(data, BINARY, headers)
            case "finality", []:
                return _answer(self._node.blocks.last_proof(), BINARY, _FRESH)
            case "finality", [era] if _NUMBER.fullmatch(era):
                proof = self._node.blocks.last_proof(int(era))
                return _answer(proof, BINARY, _FRESH)
            case "evidence", []:
                lines = (
                    _line(number, codec.encode(proven))
                    for number, proven in enumerate(self._node.evidence)
                )
                return _answer("".join(lines).encode(), JSON_LINES, _FRESH)
            case "status", []:
                status = {**self._node.describe(), **self._describe()}
                data = json.dumps(status, indent=2).encode() + b"\n"
                return _answer(data, "application/json", _FRESH)
            case _:
                return _not_found()

    def _tile(self, path: str) -> web.Response:
        try:
            data = self._node.tiles.read(tiles.parse_path(path))
        except (InvalidTileError, IndexError):
            return _not_found()
        except TileStoreError:
            return web.Response(status=500, text="the tile is damaged here\n")
        return _answer(data, tiles.TILE_CONTENT_TYPE, _IMMUTABLE)

    def _find_block(self, which: str) -> StoredBlock | None:
        if _HEX.fullmatch(which):
            return self._node.blocks.find(bytes.fromhex(which))
        if _NUMBER.fullmatch(which):
            return self._node.blocks.final_block(int(which))
        return None

    def _policy(self) -> bytes | None:
        final, key = self._node.tree.final, self._node.desk.log_key
        if final is None or key is None:
            return None
        state = final.state.admission
        if state.node_sets:
            return make_policy(state).to_text().encode()
        return Policy((Log(key),), (), (), NO_QUORUM).to_text().encode()

    async def _find_finality(self, request: web.Request) -> web.Response:
        asked = _numbers(request, "era", "height")
        if asked is None or len(asked) != 2:  # noqa: PLR2004  # both
            return _not_found()
        blocks, era = self._node.blocks, asked["era"]
        proof = blocks.first_proof(era, asked["height"]) or blocks.last_proof(era)
        return _answer(proof, BINARY, _FRESH)

    async def _feed(self, request: web.Request) -> web.Response:
        asked = _numbers(request, "after", "wait")
        if asked is None:
            return _not_found()
        after, feed = asked.get("after", 0), self._node.feed
        wait_s = min(asked.get("wait", 0), LONG_POLL_S)
        if after <= feed.last and not feed.read(after, 1):
            try:
                async with asyncio.timeout(wait_s):
                    while not feed.read(after, 1):
                        await self._changed()
            except TimeoutError:
                pass
        nodes, tip = self._node.nodes, self._node.tree.tip
        headers = {
            **_FRESH,
            FINAL_HEIGHT_HEADER: str(self._node.tree.final_height),
            ERA_HEADER: str(-1 if nodes is None else nodes.era),
        }
        if tip is not None:
            headers[TIP_HEADER] = f"{tip.header.height} {tip.hash.hex()}"
        lines = (
            _line(entry.number, entry.data)
            for entry in feed.read(after, MAX_PAGE_SIZE_BYTES)
        )
        return _answer("".join(lines).encode(), JSON_LINES, headers)


@lru_cache(maxsize=256)  # every other node asks for it
def _line(number: int, data: bytes) -> str:
    event = base64.b64encode(data).decode()
    return json.dumps({"number": number, "event": event}) + "\n"


def _numbers(request: web.Request, *names: str) -> dict[str, int] | None:
    """Return a query's numbers; None if there is anything else in it."""
    items = list(request.query.items())
    if len({name for name, _ in items}) != len(items) or any(
        name not in names or not _NUMBER.fullmatch(value) for name, value in items
    ):
        return None
    return {name: int(value) for name, value in items}


def _not_found() -> web.Response:
    return web.Response(status=404, text="there is nothing here\n")


def _answer(
    data: bytes | None, content_type: str, headers: dict[str, str]
) -> web.Response:
    if data is None:
        return _not_found()
    return web.Response(body=data, headers={**headers, "Content-Type": content_type})
