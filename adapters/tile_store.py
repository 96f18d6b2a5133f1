"""A log as a directory of tiles, which any web server can serve.

    <directory>/checkpoint
    <directory>/tile/...                 as `ledger.tiles` names and fills them

Rules:

- Tiles first, the checkpoint last: what a checkpoint names is durable before it. Each
  file appears whole, by a rename, after its bytes are durable.
- A crash forgets what was appended but not published. Files beyond the checkpoint may
  remain; they are ignored, and rewritten when the log grows again.
- Nothing read is trusted: opening checks the right edge against the checkpoint's root,
  and proofs and entries are verified before they are returned.
- One writer; any number of readers.

The store is a view of the log, which can rebuild it: a damaged store is deleted and
refilled. Signatures are not checked here.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from itertools import takewhile
from pathlib import Path

from adapters.descriptors import SPARES
from adapters.durable import replace_file, sync_directory
from ledger import tiles
from ledger.checkpoint import parse_checkpoint
from ledger.merkle import (
    CompactRange,
    InvalidProofError,
    leaf_hash,
    verify_consistency,
    verify_inclusion,
)
from ledger.note import InvalidNoteError, parse_note
from ledger.tiles import TILE_WIDTH, InvalidTileError, TilePath

Put = Callable[[str, bytes, str], None]
"""Stores an object: path, bytes, content type. Durable once it returns."""


class TileStoreError(Exception):
    """The directory does not hold what it should, or would not after this call."""


class TileStore:
    """A directory of tiles, opened.

    Args:
        directory: The directory; made if missing.
        sync: Whether published data survives a power loss, not just a crash of the
            process; False suits copies that can be made again.

    Raises:
        TileStoreError: the directory is damaged, or holds something else.
    """

    def __init__(self, directory: Path, *, sync: bool = True) -> None:
        self._directory = directory
        self._sync = sync
        self._unsynced_directories: set[Path] = set()
        self.published_size = 0
        """Number of leaves under the checkpoint."""
        self._tree = CompactRange()
        # The partial tiles and the partial bundle, by level: what growing needs.
        self._edge: dict[int | None, tuple[TilePath, bytes]] = {}
        self._make_directory(directory)
        self._open()

    def _open(self) -> None:
        note = self.checkpoint()
        if note is None:
            return
        try:
            head = parse_checkpoint(parse_note(note).text)
        except InvalidNoteError as error:
            raise self._damage("its checkpoint is malformed", error) from error
        self.published_size = head.size
        levels = range(-(-head.size.bit_length() // tiles.TILE_HEIGHT))
        for level in (None, *levels):
            index, width = divmod(
                head.size >> tiles.TILE_HEIGHT * (level or 0), TILE_WIDTH
            )
            if width:
                path = TilePath(level, index, width)
                self._edge[level] = path, self._load_partial(path)
        self._tree = tiles.tree_from_tiles(self._read_edge, head.size)
        if self._tree.root() != head.root:
            raise self._damage("its tiles do not have the checkpoint's root")
        if None in self._edge:
            self._check_entries(self._edge[None][0])

    def _damage(self, what: str, cause: object = None) -> TileStoreError:
        detail = f" ({cause})" if cause else ""
        return TileStoreError(
            f"the tile store {self._directory} is damaged: {what}{detail}; delete it, "
            "it is filled again from the log"
        )

    # Writing

    @property
    def size(self) -> int:
        """Number of leaves appended so far, published or not: the next one's index."""
        return self._tree.size

    def tree(self) -> CompactRange:
        """Return the tree over all leaves appended so far."""
        return self._tree

    def append(self, entries: Sequence[bytes], leaf_hashes: Sequence[bytes]) -> None:
        """Add leaves; full tiles are written at once, the rest on publication.

        Fails as a whole: what was written before an error is ignored.

        Args:
            entries: The new entries in order, at most 65,535 bytes each.
            leaf_hashes: Their hashes, 32 bytes each; not recomputed here.

        Raises:
            TileStoreError: numbers of entries and hashes differ.
            ValueError: an entry is too large or a hash not 32 bytes.
            OSError: the directory cannot be written.
        """
        if len(entries) != len(leaf_hashes):
            msg = f"{len(entries)} entries with {len(leaf_hashes)} leaf hashes"
            raise TileStoreError(msg)
        tree = self._tree.extend(leaf_hashes)
        _, partial = self._edge.get(None, (None, b""))
        edge = self._edge.copy()
        for path, data in (
            *tiles.grow_bundles(partial, self.size, entries),
            *tiles.grow_tiles(self._read_edge, self.size, leaf_hashes),
        ):
            if path.is_partial:
                edge[path.level] = path, data
            else:
                edge.pop(path.level, None)
                self._write(str(path), data)
        self._tree, self._edge = tree, edge

    def publish(self, signed_note: bytes) -> None:
        """Make what was appended durable, under its checkpoint.

        Idempotent: publish again after an error, or when the checkpoint has gained
        cosignatures.

        Args:
            signed_note: A checkpoint of this tree, or of an earlier one no smaller than
                what is published. Signatures are not checked.

        Raises:
            TileStoreError: it is no checkpoint, or one of another tree.
            OSError: the directory cannot be written.
        """
        try:
            head = parse_checkpoint(parse_note(signed_note).text)
        except InvalidNoteError as error:
            raise TileStoreError(f"not a checkpoint: {error}") from error
        if not self.published_size <= head.size <= self.size:
            raise TileStoreError(
                f"a checkpoint of size {head.size}; what can be published has "
                f"{self.published_size} to {self.size}"
            )
        root = self._tree_of(head.size).root()
        if head.root != root:
            msg = f"a checkpoint of root {head.root.hex()}; the tree has {root.hex()}"
            raise TileStoreError(msg)
        paths = tuple(tiles.paths_between(self.published_size, head.size))
        for path in paths:
            if path.is_partial:
                self._write(str(path), self.read(path))
        self._sync_directories()
        # From here on, a crash leaves the new state.
        self._write(tiles.CHECKPOINT_PATH, signed_note)
        self._sync_directories()
        self.published_size = head.size
        for path in paths:
            if not path.is_partial:
                # Its partial forms are no longer read: the full one stands in.
                shutil.rmtree(self._directory / f"{path}.p", ignore_errors=True)

    def _make_directory(self, directory: Path) -> None:
        if directory.is_dir():
            return
        missing = takewhile(
            lambda path: not path.exists(), (directory, *directory.parents)
        )
        self._unsynced_directories.update(path.parent for path in missing)
        directory.mkdir(parents=True, exist_ok=True)

    def _write(self, name: str, data: bytes) -> None:
        SPARES.call(lambda: self._write_file(self._directory / name, data))

    def _write_file(self, path: Path, data: bytes) -> None:
        self._make_directory(path.parent)
        replace_file(path, data, sync=self._sync)
        self._unsynced_directories.add(path.parent)

    def _sync_directories(self) -> None:
        if self._sync:
            for directory in self._unsynced_directories:
                SPARES.call(partial(sync_directory, directory))
        self._unsynced_directories = set()

    # Reading

    def _read_edge(self, level: int, index: int, width: int) -> bytes:
        path, data = self._edge[level]
        assert path == TilePath(level, index, width)
        return data

    def _load_partial(self, path: TilePath) -> bytes:
        """Return a partial path's content, from the full one if need be."""
        source, data = path, self._read_file(str(path))
        if data is None:
            source = TilePath(path.level, path.index)
            data = self._read_file(str(source))
        return self._cut(path, source, data)

    def _cut(self, path: TilePath, source: TilePath, data: bytes | None) -> bytes:
        """Cut a path's content out of another that is at least as wide."""
        if data is None:
            raise self._damage(f"{source} is missing")
        try:
            if path.level is not None:
                hashes = tiles.parse_tile(data, source.width)
                return b"".join(hashes[: path.width])
            entries = tiles.parse_entries(data, source.width)
            return tiles.encode_entries(entries[: path.width])
        except InvalidTileError as error:
            raise self._damage(str(source), error) from error

    def _read_file(self, name: str) -> bytes | None:
        with suppress(FileNotFoundError):
            return SPARES.call((self._directory / name).read_bytes)
        return None

    def checkpoint(self) -> bytes | None:
        """Return the last published signed checkpoint; None before any."""
        return self._read_file(tiles.CHECKPOINT_PATH)

    def read(self, path: TilePath) -> bytes:
        """Return a tile or a bundle, exactly as wide as its path says.

        Its length is checked, its hashes are not.

        Raises:
            IndexError: the log has no such tile so far.
            TileStoreError: it is missing or damaged.
        """
        try:
            widest = tiles.tile_at(path.level, path.index, self.size)
        except InvalidTileError:
            widest = None
        if widest is None or widest.width < path.width:
            raise IndexError(f"a log of size {self.size} has no {path}")
        # Partial files are not read: one left by a crash may belong to another log's
        # growth. The full ones and the edge are this one's.
        source, data = self._edge.get(path.level, (None, None))
        if source == path and data is not None:
            return data  # exactly as it has grown
        if source != widest:
            source, data = widest, self._read_file(str(widest))
        return self._cut(path, source, data)

    def read_tile(self, level: int, index: int, width: int) -> bytes:
        """Return a tile, 32 bytes for each hash; see `read`."""
        return self.read(TilePath(level, index, width))

    def read_entries(self, index: int) -> tuple[bytes, ...]:
        """Return the entries of a bundle, verified against the leaf hashes.

        Args:
            index: Which bundle: its entries begin at 256 times this.

        Raises:
            IndexError: there is none yet.
            TileStoreError: it is missing or damaged.
        """
        if not 0 <= index * TILE_WIDTH < self.size:
            raise IndexError(f"a log of size {self.size} has no bundle {index}")
        return self._check_entries(tiles.tile_at(None, index, self.size))

    def _check_entries(self, path: TilePath) -> tuple[bytes, ...]:
        entries = tiles.parse_entries(self.read(path), path.width)
        hashes = tiles.parse_tile(self.read_tile(0, path.index, path.width), path.width)
        for place, entry in enumerate(entries):
            if leaf_hash(entry) != hashes[place]:
                leaf = path.index * TILE_WIDTH + place
                raise self._damage(f"entry {leaf} does not have its leaf's hash")
        return entries

    def inclusion_proof(
        self, leaf_index: int, tree_size: int | None = None
    ) -> tuple[bytes, ...]:
        """Return the proof that the tree contains a leaf, verified.

        Args:
            leaf_index: Which leaf, 0 to ``tree_size - 1``.
            tree_size: Size of the tree, at most `size`, the default.

        Raises:
            ValueError: there is no such leaf or tree.
            TileStoreError: a tile is missing or damaged.
        """
        tree = self._tree_of(tree_size)
        proof = tiles.inclusion_proof(self.read_tile, leaf_index, tree.size)
        index, place = divmod(leaf_index, TILE_WIDTH)
        width = tiles.tile_at(0, index, tree.size).width
        leaves = tiles.parse_tile(self.read_tile(0, index, width), width)
        try:
            verify_inclusion(
                proof,
                leaf_hash=leaves[place],
                leaf_index=leaf_index,
                tree_size=tree.size,
                root=tree.root(),
            )
        except InvalidProofError as error:
            raise self._damage("its tiles contradict each other", error) from error
        return proof

    def consistency_proof(
        self, old_size: int, new_size: int | None = None
    ) -> tuple[bytes, ...]:
        """Return the proof that the tree only grew, verified.

        Args:
            old_size: Size of the earlier tree, 1 to ``new_size``.
            new_size: Size of the later one, at most `size`, the default.

        Raises:
            ValueError: there is no such tree.
            TileStoreError: a tile is missing or damaged.
        """
        tree = self._tree_of(new_size)
        proof = tiles.consistency_proof(self.read_tile, old_size, tree.size)
        try:
            verify_consistency(
                proof,
                old_size=old_size,
                old_root=self._tree_of(old_size).root(),
                new_size=tree.size,
                new_root=tree.root(),
            )
        except InvalidProofError as error:
            raise self._damage("its tiles contradict each other", error) from error
        return proof

    def _tree_of(self, size: int | None) -> CompactRange:
        if size is None or size == self.size:
            return self._tree
        if not 0 <= size < self.size:
            msg = f"a log of size {self.size} never had a tree of size {size}"
            raise ValueError(msg)
        return tiles.tree_from_tiles(self.read_tile, size)


def mirror(store: TileStore, put: Put, *, old_size: int = 0) -> int:
    """Copy what was published to an object store, the checkpoint last.

    Readers meanwhile find everything that the copy's checkpoint names. Idempotent, and
    deletes nothing: after an error, call it again.

    Args:
        store: Where to copy from.
        put: Stores an object; an error in it ends the copy before the checkpoint.
        old_size: Size of the last checkpoint copied completely: what it names is there.
            0 copies everything.

    Returns:
        The size of the copy: the next call's ``old_size``.

    Raises:
        TileStoreError: a tile is missing or damaged.
        ValueError: the copy is larger than what is published.
    """
    signed_note = store.checkpoint()
    if signed_note is None:
        return 0
    # The size is that of these very bytes, whatever is published meanwhile.
    size = parse_checkpoint(parse_note(signed_note).text).size
    for path in tiles.paths_between(old_size, size):
        put(str(path), store.read(path), tiles.TILE_CONTENT_TYPE)
    put(tiles.CHECKPOINT_PATH, signed_note, tiles.CHECKPOINT_CONTENT_TYPE)
    return size
