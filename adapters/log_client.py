"""Reading a tiled log over HTTP (c2sp.org/tlog-tiles), from any server.

The server is trusted for nothing: checkpoints are verified by policy, and a tile only
counts in a proof that leads to a verified root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Final

import aiohttp

from adapters.peers import make_session, read_at_most
from ledger.note import MAX_NOTE_SIZE_BYTES
from ledger.policy import Policy
from ledger.proof_file import make_receipt, verify_receipt
from ledger.tiles import inclusion_proof, parse_tile, tile_path

TIMEOUT_S: Final = 5.0
MAX_TILE_SIZE_BYTES: Final = 256 * 32
_OK: Final = 200


class LogUnavailableError(Exception):
    """A log server does not return what was requested; the message says what."""


class NotFinalYetError(Exception):
    """No checkpoint that satisfies the policy covers the leaf yet."""


class LogClient:
    """One log server.

    Args:
        url: Prefix of its paths, http:// or https://.
    """

    def __init__(self, url: str) -> None:
        if not url.startswith(("http://", "https://")):
            raise LogUnavailableError(f"{url!r} is not an http:// or https:// URL")
        self._url = url.rstrip("/")

    def fetch(self, path: str, max_size_bytes: int) -> bytes:
        """Return what the server has at a path.

        Raises:
            LogUnavailableError: it does not answer, or with something else.
        """
        url = f"{self._url}/{path}"
        try:
            return asyncio.run(_fetch(url, max_size_bytes))
        except TimeoutError as error:  # before OSError, its base class
            msg = f"{url}: no whole answer within {TIMEOUT_S:g} s"
            raise LogUnavailableError(msg) from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise LogUnavailableError(f"{url}: {error}") from error

    def fetch_checkpoint(self) -> bytes:
        """Return its checkpoint, unverified."""
        return self.fetch("checkpoint", MAX_NOTE_SIZE_BYTES)

    def read_tile(self, level: int, index: int, width: int) -> bytes:
        """Return a tile, unverified: what `ledger.tiles` asks for."""
        data = self.fetch(tile_path(level, index, width), MAX_TILE_SIZE_BYTES)
        parse_tile(data, width)
        return data


async def _fetch(url: str, max_size_bytes: int) -> bytes:
    """Return an answer, no part of which may be late, headers included."""
    limit = aiohttp.ClientTimeout(total=TIMEOUT_S)
    async with (
        make_session(trust_env=True) as session,
        session.get(url, timeout=limit) as answer,
    ):
        if answer.status != _OK:
            raise LogUnavailableError(f"{url}: status {answer.status}")
        data = await read_at_most(answer, max_size_bytes)
        if data is None:
            raise LogUnavailableError(f"{url}: more than {max_size_bytes} bytes")
        return data


def fetch_receipt(
    urls: Iterable[str], policy: Policy, origin: str, leaf_index: int, leaf: bytes
) -> bytes:
    """Return a receipt for a leaf, from the first honest server.

    Args:
        urls: Servers of the log, in the order in which to ask.
        policy: Whose signatures it needs.
        origin: The log.
        leaf_index: The leaf's place.
        leaf: The leaf.

    Raises:
        NotFinalYetError: a server answers, and no good checkpoint covers the leaf yet.
        LogUnavailableError: no server answers with what verifies.
    """
    problems: list[str] = []
    is_early = False
    for url in urls:
        try:
            receipt = _fetch_receipt(LogClient(url), policy, origin, leaf_index, leaf)
        except NotFinalYetError as error:
            is_early = True
            problems.append(f"{url}: {error}")
        except (LogUnavailableError, ValueError) as error:  # or what does not verify
            problems.append(f"{url}: {error}")
        else:
            return receipt
    msg = "; ".join(problems) or "no server of the log is known"
    raise NotFinalYetError(msg) if is_early else LogUnavailableError(msg)


def _fetch_receipt(
    client: LogClient, policy: Policy, origin: str, leaf_index: int, leaf: bytes
) -> bytes:
    note = client.fetch_checkpoint()
    size = policy.verify(note, origin).checkpoint.size
    if size <= leaf_index:
        msg = f"the last final checkpoint has size {size}, the leaf is {leaf_index}"
        raise NotFinalYetError(msg)
    proof = inclusion_proof(client.read_tile, leaf_index, size)
    receipt = make_receipt(leaf, leaf_index, proof, note)
    verify_receipt(receipt, policy, origin)
    return receipt
