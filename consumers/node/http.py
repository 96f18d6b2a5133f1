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
decides what a tile is. Everybody may read everything; nobody is trusted. Rules:

- Connections are bounded on acceptance, and none lives long; one that never completes a
  request even less so (`adapters.listening`).
- Unread input is bounded for each connection, whatever it is: slow bodies, requests
  sent ahead. Nothing is decompressed.
- Unsent output is bounded for all connections together. Slow readers are cut off when
  others need the room.
- Answers are computed one at a time, and other work has a turn between any two. Nobody
  works for a client that has gone.
"""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from aiohttp import web

from adapters.block_store import StoredBlock
from adapters.listening import Guest, Limits, Listener
from adapters.peers import (
    ERA_HEADER,
    FINAL_HEIGHT_HEADER,
    LONG_POLL_S,
    MAX_CONNECTIONS_OUT,
    TIP_HEADER,
)
from adapters.tile_store import TileStoreError
from consumers.node.ledger_node import LedgerNode
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
IDLE_S: Final = 2.0 * LONG_POLL_S
"""From one answer to the last byte of the next request, however slowly it arrives."""
MAX_CONNECTION_AGE_S: Final = 300.0
"""After that it is closed whatever it does: a slow reader comes again."""
RESERVED_DESCRIPTORS: Final = MAX_CONNECTIONS_OUT + 32
"""For what a node opens itself: connections to other nodes, Kafka, the schema registry
and MinIO, and files. What is open when it begins to listen is not counted."""
MAX_UNREAD_BYTES: Final = MAX_BODY_SIZE_BYTES + 2**14
"""Per connection: the largest request."""
MAX_UNSENT_BYTES: Final = 2**25
"""For all connections together: the largest bundle of entries has 2^24."""
MAX_LINE_SIZE_BYTES: Final = 1_024
MAX_HEADERS: Final = 64
SHUTDOWN_S: Final = 1.0
RETRY_AFTER_S: Final = "2"
BINARY: Final = "application/octet-stream"
JSON_LINES: Final = "application/jsonl"

_HEX: Final = re.compile(r"[0-9a-f]{64}")
_NUMBER: Final = re.compile(r"0|[1-9][0-9]{0,17}")
_IMMUTABLE: Final = {"Cache-Control": "public, max-age=31536000, immutable"}
_FRESH: Final = {"Cache-Control": "no-cache"}

log = logging.getLogger(__name__)
# It logs a traceback for every malformed request. Our own errors are logged here.
_unheard = logging.getLogger(f"{__name__}.aiohttp")
_unheard.setLevel(logging.CRITICAL)


class NodeServer:
    """The HTTP side of a node. Runs in the node's own event loop.

    Args:
        node: The node.
        step: Calls a method of the node and carries out what follows.
        changed: Returns once anything has changed.
        describe: Returns what the shell adds to ``/status``.
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
        self._listener: Listener | None = None
        self._turn = asyncio.Lock()
        self._unsent: dict[_Door, int] = {}  # in the order in which they began

    async def start(self, host: str, port: int) -> int:
        """Listen; returns the port.

        Args:
            host: Address to listen on.
            port: 0 for any that is free.

        Raises:
            OSError: the port is taken, or the process may not open enough files.
        """
        app = web.Application(client_max_size=MAX_BODY_SIZE_BYTES)
        app.router.add_get("/{path:.*}", self._serve)
        app.router.add_post("/{path:.*}", self._serve)
        runner = self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_unheard,
            keepalive_timeout=IDLE_S,
            shutdown_timeout=SHUTDOWN_S,  # a long poll does not keep us
            handler_cancellation=True,  # nor do clients that have gone
            auto_decompress=False,
            max_line_size=MAX_LINE_SIZE_BYTES,
            max_headers=MAX_HEADERS,
        )
        await runner.setup()
        assert runner.server is not None
        make_protocol = runner.server
        listener = self._listener = Listener(
            lambda guest: _Door(make_protocol(), guest),
            Limits(
                connections=MAX_CONNECTIONS,
                per_address=MAX_CONNECTIONS_PER_ADDRESS,
                reserve=RESERVED_DESCRIPTORS,
                idle_s=IDLE_S,
                age_s=MAX_CONNECTION_AGE_S,
            ),
        )
        return await listener.start(host, port)

    async def stop(self) -> None:
        """Stop listening, and end every connection."""
        if self._listener is not None:
            await self._listener.close()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        """Answer a request, and make sure that the answer leaves."""
        door = None if request.transport is None else request.transport.get_protocol()
        if not isinstance(door, _Door):
            raise ConnectionResetError("it has gone")
        door.take(_head_size(request))
        try:
            # Until its body is there, it is we who wait.
            body = await request.read()
            door.take(len(body))
            door.guest.begin()
            if request.path == "/attestations":
                await self._await_news(request)
            async with self._turn:
                answer = self._find_answer(request, body)
                await asyncio.sleep(0)
            self._hold(door, answer)
            await answer.prepare(request)
            await answer.write_eof()
        finally:
            door.guest.end()
            self._unsent.pop(door, None)
        return answer

    def _hold(self, door: _Door, answer: web.Response) -> None:
        """Make room for an answer: those longest on their way are cut off."""
        size = len(answer.body) if isinstance(answer.body, bytes) else 0
        while self._unsent and sum(self._unsent.values()) + size > MAX_UNSENT_BYTES:
            slow = next(iter(self._unsent))
            del self._unsent[slow]
            slow.guest.put_out()
        self._unsent[door] = size

    def _find_answer(self, request: web.Request, body: bytes) -> web.Response:
        try:
            if request.method == "POST":
                return self._post(request, body)
            return self._get(request)
        except OSError as error:
            # A file is read for one client alone. A retry may succeed; nobody else must
            # suffer.
            log.warning("no answer to %r: %r", request.rel_url.raw_path[:200], error)
            return web.Response(status=503, headers={"Retry-After": RETRY_AFTER_S})

    def _post(self, request: web.Request, body: bytes) -> web.Response:
        if request.rel_url.raw_path != f"/{ADD_CHECKPOINT_PATH}" or request.query:
            return _not_found()
        answer = self._step(lambda: self._node.add_checkpoint(body))
        if isinstance(answer, Refusal):
            headers = {"Content-Type": answer.content_type}
            if answer.status == web.HTTPServiceUnavailable.status_code:
                headers["Retry-After"] = RETRY_AFTER_S
            return web.Response(status=answer.status, body=answer.body, headers=headers)
        return _answer(answer, TEXT_CONTENT_TYPE, _FRESH)

    def _get(self, request: web.Request) -> web.Response:
        # As sent: nothing that we serve is escaped.
        name, *rest = request.rel_url.raw_path.removeprefix("/").split("/")
        queries = {"attestations": self._feed, "finality": self._find_finality}
        if not rest and name in queries and (request.query or name == "attestations"):
            return queries[name](request)
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

    def _find_finality(self, request: web.Request) -> web.Response:
        asked = _numbers(request, "era", "height")
        if asked is None or len(asked) != 2:  # noqa: PLR2004  # both
            return _not_found()
        blocks, era = self._node.blocks, asked["era"]
        proof = blocks.first_proof(era, asked["height"]) or blocks.last_proof(era)
        return _answer(proof, BINARY, _FRESH)

    async def _await_news(self, request: web.Request) -> None:
        """Wait, as long as asked, until the feed has something after a number."""
        asked = _numbers(request, "after", "wait") or {}
        after, feed = asked.get("after", 0), self._node.feed
        if after > feed.last:
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(min(asked.get("wait", 0), LONG_POLL_S)):
                while not feed.has_news(after):
                    await self._changed()

    def _feed(self, request: web.Request) -> web.Response:
        asked = _numbers(request, "after", "wait")
        if asked is None:
            return _not_found()
        after, feed = asked.get("after", 0), self._node.feed
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


class _Door(asyncio.Protocol):
    """Stands between a socket and aiohttp's protocol, and counts what comes in."""

    def __init__(self, inner: asyncio.Protocol, guest: Guest) -> None:
        self._inner = inner
        self.guest = guest
        self._transport: asyncio.Transport | None = None
        self._unread = 0

    def take(self, size: int) -> None:
        """Note how many bytes were consumed."""
        self._unread = max(0, self._unread - size)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._inner.connection_made(transport)

    def data_received(self, data: bytes) -> None:
        self._unread += len(data)
        if self._unread > MAX_UNREAD_BYTES:
            assert self._transport is not None
            self._transport.abort()
            return
        self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()


def _head_size(request: web.Request) -> int:
    """Return how many bytes a request's line and headers take, as clients write it."""
    line = len(request.method) + len(request.raw_path) + len("  HTTP/1.1\r\n\r\n")
    return line + sum(len(n) + len(v) + len(": \r\n") for n, v in request.raw_headers)


@lru_cache(maxsize=256)  # every other node asks for it
def _line(number: int, data: bytes) -> str:
    event = base64.b64encode(data).decode()
    return json.dumps({"number": number, "event": event}) + "\n"


def _numbers(request: web.Request, *names: str) -> dict[str, int] | None:
    """Return a query's numbers; None if it holds anything else."""
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
