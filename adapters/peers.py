"""Pulling from another ledger node over HTTP: its feed, its blocks, its proofs.

A peer is trusted for nothing: the caller verifies what comes. Here it is only kept from
costing much: every answer is limited in size and time, nothing is decompressed, and no
redirect is followed.
"""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp

from ledger.signing import SIGNATURE_SIZE

FETCH_TIMEOUT_S: Final = 5.0
CONNECT_TIMEOUT_S: Final = 2.0
LONG_POLL_S: Final = 20
"""How long a peer may wait for something new before it answers with nothing."""
MAX_FEED_SIZE_BYTES: Final = 4 * 2**20
MAX_BLOCK_SIZE_BYTES: Final = 4 * 2**20
MAX_PROOF_SIZE_BYTES: Final = 2**16
MAX_CONNECTIONS_OUT: Final = 96
"""In total: a feed and some more for each of up to 63 other nodes."""
FINAL_HEIGHT_HEADER: Final = "moot-final-height"
ERA_HEADER: Final = "moot-era"
TIP_HEADER: Final = "moot-tip"
# Eighteen digits fit 64 bits. Only our own one-line form of JSON: a full parser would
# take dozens of bytes of memory for each of a stranger's.
_ENTRY: Final = re.compile(
    rb'[ \t]*\{[ \t]*"number"[ \t]*:[ \t]*([0-9]{1,18})[ \t]*,'
    rb'[ \t]*"event"[ \t]*:[ \t]*"([0-9A-Za-z+/=]{1,87384})"[ \t]*\}[ \t\r]*\n?'
)
_NUMBER: Final = re.compile(r"-1|[0-9]{1,18}", re.ASCII)
_TIP: Final = re.compile(r"([0-9]{1,18}) ([0-9a-f]{64})", re.ASCII)
_OK: Final = 200
_NOT_FOUND: Final = 404


class PeerError(Exception):
    """A peer did not return what was requested; the message says what it did."""


@dataclass(frozen=True, slots=True)
class FeedPage:
    """A page of a peer's feed.

    Attributes:
        events: Single-object encodings, in order; unverified.
        last: Number of the last one, where the next page begins.
        final_height: Height of its last final block, by its own word.
        era: Its era, by its own word; -1 if it knows no ledger nodes.
        tip: Height and hash of the highest block that it knows and that is not final
            there, by its own word; None if it names none.
    """

    events: tuple[bytes, ...]
    last: int
    final_height: int
    era: int
    tip: tuple[int, bytes] | None = None


class Peer:
    """Another node.

    Args:
        session: Makes the connections; see `make_session`.
        url: Prefix of its paths, http:// or https://.
    """

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self.url = url.rstrip("/")

    async def read_feed(self, after: int, *, wait_s: int = LONG_POLL_S) -> FeedPage:
        """Return what follows a number, waiting for it if need be.

        Raises:
            PeerError: it does not answer, or with something else.
        """
        found = await self._get(
            f"attestations?after={after}&wait={wait_s}",
            MAX_FEED_SIZE_BYTES,
            wait_s + FETCH_TIMEOUT_S,
        )
        if found is None:
            raise PeerError(f"{self.url} has no feed")
        data, headers = found
        try:
            return parse_feed(data, headers, after)
        except ValueError as error:
            raise PeerError(f"{self.url}: not a feed: {error}") from error

    async def fetch_block(self, which: bytes | int) -> tuple[bytes, bytes] | None:
        """Return a block and the sequencer's signature; None if the peer lacks it.

        Args:
            which: The block's id or hash; or a height, for final blocks only.

        Raises:
            PeerError: it does not answer, or with something else.
        """
        name = which.hex() if isinstance(which, bytes) else str(which)
        found = await self._get(f"blocks/{name}", MAX_BLOCK_SIZE_BYTES)
        if found is None:
            return None
        data, _ = found
        return data[SIGNATURE_SIZE:], data[:SIGNATURE_SIZE]

    async def fetch_proof(self, era: int, height: int) -> bytes | None:
        """Return a finality proof of a block at this height or above, or else of the
        highest in this era.

        Raises:
            PeerError: it does not answer, or with something else.
        """
        path = f"finality?era={era}&height={height}"
        found = await self._get(path, MAX_PROOF_SIZE_BYTES)
        return None if found is None else found[0]

    async def _get(
        self, path: str, max_size_bytes: int, timeout_s: float = FETCH_TIMEOUT_S
    ) -> tuple[bytes, Any] | None:
        url = f"{self.url}/{path}"
        limit = aiohttp.ClientTimeout(total=timeout_s, connect=CONNECT_TIMEOUT_S)
        try:
            async with self._session.get(
                url, timeout=limit, allow_redirects=False
            ) as answer:
                if answer.status == _NOT_FOUND:
                    return None
                if answer.status != _OK or "Content-Encoding" in answer.headers:
                    raise PeerError(f"{url}: status {answer.status}")
                data = await read_at_most(answer, max_size_bytes)
                if data is None:
                    raise PeerError(f"{url}: more than {max_size_bytes} bytes")
                return data, answer.headers
        except (TimeoutError, aiohttp.ClientError, OSError, ValueError) as error:
            raise PeerError(f"{url}: {error!r}") from error


def parse_feed(data: bytes, headers: Mapping[str, str], after: int) -> FeedPage:
    """Return the page of a feed that a peer answered with, unverified.

    Args:
        data: JSON lines, each an object with ``number`` and ``event``, in base64.
        headers: The answer's headers.
        after: Where the page begins: its last number if it is empty.

    Raises:
        ValueError: it is no page.
    """
    events, last = [], after
    for line in io.BytesIO(data):
        found = _ENTRY.fullmatch(line)
        if found is None:
            raise ValueError(f"not an entry: {line[:80]!r}")
        number, event = found.groups()
        events.append(base64.b64decode(event, validate=True))
        last = int(number)
    return FeedPage(
        tuple(events),
        last,
        _parse_number(headers.get(FINAL_HEIGHT_HEADER, "")),
        _parse_number(headers.get(ERA_HEADER, "")),
        _parse_tip(headers.get(TIP_HEADER, "")),
    )


def _parse_number(text: str) -> int:
    if _NUMBER.fullmatch(text) is None:
        raise ValueError(f"not a number: {text[:80]!r}")
    return int(text)


def _parse_tip(text: str) -> tuple[int, bytes] | None:
    if not text:
        return None
    found = _TIP.fullmatch(text)
    if found is None:
        raise ValueError(f"not a height and a hash: {text[:80]!r}")
    return int(found[1]), bytes.fromhex(found[2])


async def read_at_most(
    answer: aiohttp.ClientResponse, max_size_bytes: int
) -> bytes | None:
    """Return an answer's body; None, reading no further, if it is too large.

    Memory is allocated only for what arrives, whatever size the answer claims.
    """
    data = bytearray()
    async for part in answer.content.iter_any():
        data += part
        if len(data) > max_size_bytes:
            return None
    return bytes(data)


def make_session(*, trust_env: bool = False) -> aiohttp.ClientSession:
    """Return a session for connections to peers; close it in the end.

    Args:
        trust_env: Whether to use the proxies that the environment names.
    """
    return aiohttp.ClientSession(
        auto_decompress=False,
        trust_env=trust_env,
        headers={"Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS_OUT, limit_per_host=8),
    )
