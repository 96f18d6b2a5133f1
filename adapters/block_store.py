"""A ledger node's blocks: the final ones, and those that may become final.

A block is stored before it is attested. So whatever is certified, an honest node has,
even if all of them crash and Kafka has forgotten it (rule R1 of the ledger
specification).

    blocks   id, height, hash, whether it is final, header, signature, data
    proofs   era, height of the block, finality proof
    notes    what a node wants to know again after a restart, by name

Rules:

- What a method writes is durable once it returns.
- Final blocks have no gaps and are never replaced.
- Nothing here is trusted when read: the node verifies its own blocks again. A lost
  store is refilled from Kafka and from the other nodes.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS blocks (
    id BLOB PRIMARY KEY,
    height INTEGER NOT NULL,
    hash BLOB NOT NULL,
    is_final INTEGER NOT NULL,
    signature BLOB NOT NULL,
    data BLOB NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS final_heights ON blocks (height) WHERE is_final;
CREATE INDEX IF NOT EXISTS hashes ON blocks (hash);
CREATE TABLE IF NOT EXISTS proofs (
    era INTEGER NOT NULL,
    height INTEGER NOT NULL,
    proof BLOB NOT NULL,
    PRIMARY KEY (era, height)
);
CREATE TABLE IF NOT EXISTS notes (name TEXT PRIMARY KEY, value BLOB NOT NULL);
"""
_COLUMNS: Final = "id, height, hash, signature, data"


class BlockStoreError(Exception):
    """The store cannot be used; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredBlock:
    """A block as received.

    Attributes:
        id: Its header's, 32 bytes.
        height: From 0.
        hash: `ledger.blocks.block_hash`, 32 bytes.
        signature: The sequencer's, 64 bytes.
        data: Single-object encoding.
    """

    id: bytes
    height: int
    hash: bytes
    signature: bytes
    data: bytes


class BlockStore:
    """Blocks of one log, in one file.

    Args:
        path: The file; made if missing.

    Raises:
        BlockStoreError: the file is damaged, or no block store.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path
        # Used by one thread at a time, though not always by the same.
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False
        )
        try:
            self._connection.execute("PRAGMA journal_mode = WAL")
            self._connection.execute("PRAGMA synchronous = FULL")
            # No temporary files later: there may be no descriptor for them.
            self._connection.execute("PRAGMA temp_store = MEMORY")
            self._connection.executescript(_SCHEMA)
        except sqlite3.DatabaseError as error:
            self._connection.close()
            msg = f"{path} is not a block store ({error}): delete it, it is refilled"
            raise BlockStoreError(msg) from error

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def _ask(self, query: str, *values: Any) -> Iterator[tuple[Any, ...]]:
        try:
            yield from self._connection.execute(query, values)
        except sqlite3.DatabaseError as error:
            msg = f"{self._path} is damaged ({error}): delete it, it is refilled"
            raise BlockStoreError(msg) from error

    def _find(self, condition: str, *values: Any) -> StoredBlock | None:
        query = f"SELECT {_COLUMNS} FROM blocks WHERE {condition} LIMIT 1"  # noqa: S608  # our own words
        return next((_to_block(row) for row in self._ask(query, *values)), None)

    # Blocks

    def add(self, block: StoredBlock) -> None:
        """Store a block that may become final. Idempotent."""
        values = (block.id, block.height, block.hash, block.signature, block.data)
        list(
            self._ask(
                f"INSERT OR IGNORE INTO blocks ({_COLUMNS}, is_final) "  # noqa: S608  # our own words
                "VALUES (?, ?, ?, ?, ?, 0)",
                *values,
            )
        )

    def finalise(self, block_id: bytes, proof: tuple[int, int, bytes] | None) -> None:
        """Mark a stored block as final, and forget the others up to its height.

        Args:
            block_id: The block; its parent is final, unless it is the first.
            proof: Era, height and bytes of the proof that covers it; None if the
                federation has no ledger nodes.

        Raises:
            BlockStoreError: it is not stored, does not follow the last final block, or
                another is final at its height. A bug; nothing was written.
        """
        query = "SELECT height, is_final FROM blocks WHERE id = ?"
        row = next(self._ask(query, block_id), None)
        if row is None:
            raise BlockStoreError(f"block {block_id.hex()} is not stored")
        height, is_final = row
        if is_final:
            return
        if height != self.final_height + 1:
            msg = f"block {height} cannot follow final block {self.final_height}"
            raise BlockStoreError(msg)
        with self._connection:  # commits, or rolls back
            list(self._ask("BEGIN IMMEDIATE"))
            list(self._ask("UPDATE blocks SET is_final = 1 WHERE id = ?", block_id))
            below = "DELETE FROM blocks WHERE height <= ? AND NOT is_final"
            list(self._ask(below, height))
            if proof is not None:
                list(self._ask("INSERT OR IGNORE INTO proofs VALUES (?, ?, ?)", *proof))

    def find(self, digest: bytes) -> StoredBlock | None:
        """Return a block by its id or its hash."""
        return self._find("id = ?", digest) or self._find("hash = ?", digest)

    def final_block(self, height: int) -> StoredBlock | None:
        """Return the final block of a height."""
        return self._find("is_final AND height = ?", height)

    @property
    def final_height(self) -> int:
        """Height of the last final block; -1 before any."""
        query = "SELECT max(height) FROM blocks WHERE is_final"
        (height,) = next(self._ask(query))
        return -1 if height is None else int(height)

    def final_blocks(self) -> Iterator[StoredBlock]:
        """Yield the final blocks from a height up, in order."""
        for height in range(self.final_height + 1):
            block = self.final_block(height)
            if block is None:
                msg = f"{self._path} lacks block {height}: delete it, it is refilled"
                raise BlockStoreError(msg)
            yield block

    def pending_blocks(self) -> list[StoredBlock]:
        """Return the blocks that are not final, in ascending order of height."""
        query = f"SELECT {_COLUMNS} FROM blocks WHERE NOT is_final ORDER BY height"  # noqa: S608  # our own words
        return [_to_block(row) for row in self._ask(query)]

    def forget(self, block_id: bytes) -> None:
        """Forget a block that is not final."""
        list(self._ask("DELETE FROM blocks WHERE id = ? AND NOT is_final", block_id))

    # Proofs and notes

    def last_proof(self, era: int | None = None) -> bytes | None:
        """Return the latest finality proof, of an era or of all."""
        where = "" if era is None else "WHERE era = ?"
        query = f"SELECT proof FROM proofs {where} ORDER BY era DESC, height DESC"  # noqa: S608  # our own words
        row = next(
            self._ask(f"{query} LIMIT 1", *(() if era is None else (era,))), None
        )
        return None if row is None else bytes(row[0])

    def first_proof(self, era: int, height: int) -> bytes | None:
        """Return an era's first finality proof that covers a height."""
        query = (
            "SELECT proof FROM proofs WHERE era = ? AND height >= ? "
            "ORDER BY height LIMIT 1"
        )
        row = next(self._ask(query, era, height), None)
        return None if row is None else bytes(row[0])

    def note(self, name: str) -> bytes | None:
        """Return what was noted under a name."""
        row = next(self._ask("SELECT value FROM notes WHERE name = ?", name), None)
        return None if row is None else bytes(row[0])

    def set_note(self, name: str, value: bytes) -> None:
        """Note something."""
        list(self._ask("INSERT OR REPLACE INTO notes VALUES (?, ?)", name, value))


def _to_block(row: tuple[Any, ...]) -> StoredBlock:
    block_id, height, digest, signature, data = row
    return StoredBlock(
        id=block_id, height=height, hash=digest, signature=signature, data=data
    )
