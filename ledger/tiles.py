"""C2SP tiled logs: a tree and its entries as files that never change.

    tile/<level>/<index>[.p/<width>]     hashes; level 0 holds the leaf hashes
    tile/entries/<index>[.p/<width>]     entries: 16-bit length || bytes, repeated

A tile is 256 hashes of 32 bytes; hash i of tile n on level l is the root over the
leaves from (256 n + i) 256^l on, 256^l of them. Any proof comes from a few tiles.

Rules (c2sp.org/tlog-tiles):

- The tiles at the right edge are partial; their path gives their width. A partial tile
  is not hashed into the level above, and there is no empty tile.
- Tiles grow at their end only, so a full tile can stand in for a partial one.
- A path has one spelling. A server may serve what `parse_path` accepts.
- Nothing read is trusted: a proof made of wrong tiles does not verify, and a tile of
  the wrong length is refused here.

Deliberately not here: files (`adapters.tile_store`), HTTP, pruning.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from ledger import merkle
from ledger.merkle import HASH_SIZE, MAX_TREE_SIZE, CompactRange, node_hash
from schemas.codec import MAX_LEAF_SIZE_BYTES

TILE_HEIGHT: Final = 8  # c2sp.org/tlog-tiles
TILE_WIDTH: Final = 1 << TILE_HEIGHT  # = 256
CHECKPOINT_PATH: Final = "checkpoint"
"""Where the signed head is, beside the tiles."""
TILE_CONTENT_TYPE: Final = "application/octet-stream"
CHECKPOINT_CONTENT_TYPE: Final = "text/plain; charset=utf-8"

_TILE_SIZE_BYTES: Final = TILE_WIDTH * HASH_SIZE
_LENGTH_SIZE: Final = 2  # c2sp.org/tlog-tiles: u16, big-endian
# Seventeen digits hold the index of the last tile of the largest tree.
_PATH: Final = re.compile(
    r"tile/(entries|[0-9]{1,2})/((?:x[0-9]{3}/){0,5}[0-9]{3})(?:\.p/([0-9]{1,3}))?"
)

ReadTile = Callable[[int, int, int], bytes]
"""Returns the tile (level, index, width), or the full one instead."""


class InvalidTileError(ValueError):
    """Not a tile, a bundle or a path of one."""


@dataclass(frozen=True, slots=True)
class TilePath:
    """A parsed path; ``str()`` of it is the path.

    Attributes:
        level: 0 for leaf hashes and up; None for entries.
        index: Place within the level, from 0.
        width: Number of hashes or entries, 1 to 256; fewer than 256 is partial.

    Raises:
        InvalidTileError: no tree has such a tile.
    """

    level: int | None
    index: int
    width: int = TILE_WIDTH

    def __post_init__(self) -> None:
        level = self.level or 0
        if (
            level < 0
            or self.index < 0
            or not 1 <= self.width <= TILE_WIDTH
            or self.index * TILE_WIDTH + self.width > _width_of(level, MAX_TREE_SIZE)
        ):
            msg = f"no tree has a tile {self.index} of width {self.width} on level "
            raise InvalidTileError(msg + str(self.level))

    def __str__(self) -> str:
        groups = f"{self.index % 1000:03}"
        rest = self.index // 1000
        while rest:
            groups = f"x{rest % 1000:03}/{groups}"
            rest //= 1000
        level = "entries" if self.level is None else self.level
        partial = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{groups}{partial}"

    @property
    def is_partial(self) -> bool:
        """Whether it will grow."""
        return self.width < TILE_WIDTH


def tile_path(level: int, index: int, width: int = TILE_WIDTH) -> str:
    """Return the path of a tile.

    >>> tile_path(0, 1067, 5)
    'tile/0/x001/067.p/5'

    Raises:
        InvalidTileError: no tree has such a tile.
    """
    return str(TilePath(level, index, width))


def parse_path(path: str) -> TilePath:
    """Return what a path names.

    Raises:
        InvalidTileError: it is no tile's or bundle's path, not canonical, or no tree
            has what it names.
    """
    match = _PATH.fullmatch(path)
    if match is None:
        raise InvalidTileError(f"not the path of a tile: {path[:80]!r}")
    level, index, width = match.groups()
    result = TilePath(
        None if level == "entries" else int(level),
        int(re.sub("[x/]", "", index)),
        TILE_WIDTH if width is None else int(width),
    )
    if str(result) != path:
        raise InvalidTileError(f"{path!r} is spelled {str(result)!r}")
    return result


def _width_of(level: int, size: int) -> int:
    """Return how many hashes a whole level has in a tree."""
    return size >> TILE_HEIGHT * level


def _check_size(size: int) -> None:
    if not 0 <= size <= MAX_TREE_SIZE:
        raise ValueError(f"a tree size is 0 to {MAX_TREE_SIZE}, not {size}")


def tile_at(level: int | None, index: int, size: int) -> TilePath:
    """Return a tile or bundle as it is in a tree of a size: full or partial.

    Raises:
        InvalidTileError: the tree has no such tile.
    """
    width = _width_of(level or 0, size) - index * TILE_WIDTH
    return TilePath(level, index, min(width, TILE_WIDTH))


def paths_between(old_size: int, new_size: int) -> Iterator[TilePath]:
    """Yield what a tree of the new size has and one of the old size lacked.

    Entries come first, then the levels from the leaves up; on each the full ones and
    then the partial one.

    Args:
        old_size: 0 for everything that the tree has.
        new_size: At least ``old_size``, at most `MAX_TREE_SIZE`.

    Raises:
        ValueError: a size is out of range.
    """
    _check_size(new_size)
    if not 0 <= old_size <= new_size:
        raise ValueError(f"no tree of size {new_size} grew from one of size {old_size}")
    levels = range(-(-new_size.bit_length() // TILE_HEIGHT))
    for level in (None, *levels):
        first, stop = _width_of(level or 0, old_size), _width_of(level or 0, new_size)
        if first == stop:
            continue
        for index in range(first // TILE_WIDTH, -(-stop // TILE_WIDTH)):
            yield tile_at(level, index, new_size)


def encode_entries(entries: Sequence[bytes]) -> bytes:
    """Return entries as a bundle.

    Two encodings joined are the encoding of both.

    Raises:
        InvalidTileError: one is larger than 65,535 bytes. A bug of the caller.
    """
    for entry in entries:
        if len(entry) > MAX_LEAF_SIZE_BYTES:
            msg = f"an entry of {len(entry)} bytes; at most {MAX_LEAF_SIZE_BYTES}"
            raise InvalidTileError(msg)
    return b"".join(
        len(entry).to_bytes(_LENGTH_SIZE, "big") + entry for entry in entries
    )


def parse_entries(data: bytes, expected_width: int) -> tuple[bytes, ...]:
    """Return the entries of a bundle.

    Args:
        data: The bundle as received.
        expected_width: How many entries it must hold, 1 to 256.

    Raises:
        InvalidTileError: it ends within an entry, or holds another number of them.
    """
    entries: list[bytes] = []
    start = 0
    while start < len(data):
        if len(entries) == expected_width:
            raise InvalidTileError(f"a bundle holds more than {expected_width} entries")
        length = int.from_bytes(data[start : start + _LENGTH_SIZE], "big")
        entry = data[start + _LENGTH_SIZE : start + _LENGTH_SIZE + length]
        start += _LENGTH_SIZE + length
        if start > len(data):
            raise InvalidTileError(f"a bundle ends within entry {len(entries)}")
        entries.append(entry)
    if len(entries) != expected_width:
        msg = f"a bundle holds {len(entries)} entries, not {expected_width}"
        raise InvalidTileError(msg)
    return tuple(entries)


def parse_tile(data: bytes, width: int) -> tuple[bytes, ...]:
    """Return the first hashes of a tile.

    Args:
        data: The tile of this width, or the full one.
        width: How many hashes to return, 1 to 256.

    Raises:
        InvalidTileError: the data has neither length.
    """
    data = _cut_tile(data, width)
    return tuple(
        data[start : start + HASH_SIZE] for start in range(0, len(data), HASH_SIZE)
    )


def _cut_tile(data: bytes, width: int) -> bytes:
    """Return a tile's first hashes, joined; as `parse_tile`."""
    if len(data) not in {width * HASH_SIZE, _TILE_SIZE_BYTES}:
        msg = f"a tile of width {width} is {width * HASH_SIZE} bytes, not {len(data)}"
        raise InvalidTileError(msg)
    return data[: width * HASH_SIZE]


def grow_bundles(
    partial: bytes, old_size: int, entries: Sequence[bytes]
) -> Iterator[tuple[TilePath, bytes]]:
    """Yield the bundles that new entries make: full ones, then the partial one.

    Args:
        partial: The old size's partial bundle; empty if it had none.
        old_size: Number of entries before.
        entries: The new ones, at most 65,535 bytes each.

    Raises:
        InvalidTileError: an entry is too large. A bug of the caller.
    """
    index, width = divmod(old_size, TILE_WIDTH)
    done = 0
    while done < len(entries):
        chunk = entries[done : done + TILE_WIDTH - width]
        width += len(chunk)
        yield TilePath(None, index, width), partial + encode_entries(chunk)
        done += len(chunk)
        index, width, partial = index + 1, 0, b""


def grow_tiles(
    read_tile: ReadTile, old_size: int, leaf_hashes: Sequence[bytes]
) -> Iterator[tuple[TilePath, bytes]]:
    """Yield the tiles that new leaves make, level by level.

    Reads and writes only as much as the leaves need, however large the tree is: at most
    one old partial tile on each level that changes.

    Args:
        read_tile: Reads a partial tile of the old size.
        old_size: Number of leaves before.
        leaf_hashes: Hashes of the new ones, 32 bytes each.

    Raises:
        InvalidTileError: a tile that was read has the wrong length.
        ValueError: a leaf hash is not 32 bytes, or the tree would be too large. A bug
            of the caller.
    """
    _check_size(old_size + len(leaf_hashes))
    if any(len(leaf) != HASH_SIZE for leaf in leaf_hashes):
        raise ValueError(f"every leaf hash is {HASH_SIZE} bytes")
    level, before, new = 0, old_size, list(leaf_hashes)
    while new:
        first, width = divmod(before, TILE_WIDTH)
        row = _cut_tile(read_tile(level, first, width), width) if width else b""
        row += b"".join(new)
        new = []
        for index, start in enumerate(range(0, len(row), _TILE_SIZE_BYTES), first):
            data = row[start : start + _TILE_SIZE_BYTES]
            yield TilePath(level, index, len(data) // HASH_SIZE), data
            if len(data) == _TILE_SIZE_BYTES:
                new.append(merkle.root(parse_tile(data, TILE_WIDTH)))
        level, before = level + 1, first


class _Nodes:
    """Hashes of a tree's nodes, computed from its tiles; each tile is read once."""

    def __init__(self, read_tile: ReadTile, size: int) -> None:
        self._read_tile = read_tile
        self._size = size
        self._tiles: dict[tuple[int, int], tuple[bytes, ...]] = {}

    def _tile(self, level: int, index: int) -> tuple[bytes, ...]:
        hashes = self._tiles.get((level, index))
        if hashes is None:
            path = tile_at(level, index, self._size)
            hashes = parse_tile(self._read_tile(level, index, path.width), path.width)
            self._tiles[level, index] = hashes
        return hashes

    def perfect(self, start: int, height: int) -> bytes:
        """Return the root over the 2^height leaves from start, a multiple of that."""
        level, above = divmod(height, TILE_HEIGHT)
        index, place = divmod(start >> TILE_HEIGHT * level, TILE_WIDTH)
        return merkle.root(self._tile(level, index)[place : place + (1 << above)])

    def perfects(self, start: int, end: int) -> list[bytes]:
        """Return the roots of the perfect subtrees of a subtree, the largest first."""
        hashes = []
        for height in reversed(range((end - start).bit_length())):
            if (end - start) >> height & 1:
                hashes.append(self.perfect(start, height))
                start += 1 << height
        return hashes

    def root(self, start: int, end: int) -> bytes:
        """Return the root over the leaves [start, end) of a subtree."""
        *rest, result = self.perfects(start, end)
        for left in reversed(rest):
            result = node_hash(left, result)
        return result


def tree_from_tiles(read_tile: ReadTile, size: int) -> CompactRange:
    """Return the tree of a size, reading only its partial tiles.

    Args:
        read_tile: Returns the tile (level, index, width), or the full one.
        size: 0 to `MAX_TREE_SIZE`.

    Raises:
        InvalidTileError: a tile that was read has the wrong length.
        ValueError: the size is out of range.
    """
    _check_size(size)
    return CompactRange(size, tuple(_Nodes(read_tile, size).perfects(0, size)))


def inclusion_proof(
    read_tile: ReadTile, leaf_index: int, tree_size: int
) -> tuple[bytes, ...]:
    """Return the proof that a tree contains a leaf (RFC 9162 section 2.1.3.1).

    Nothing read is trusted or verified: check the proof before use.

    Args:
        read_tile: Returns the tile (level, index, width), or the full one.
        leaf_index: Which leaf, 0 to ``tree_size - 1``.
        tree_size: The tree's size.

    Raises:
        InvalidTileError: a tile that was read has the wrong length.
        ValueError: the tree has no such leaf.
    """
    nodes = _Nodes(read_tile, tree_size)
    if not 0 <= leaf_index < tree_size:
        raise ValueError(f"a tree of size {tree_size} has no leaf {leaf_index}")
    ranges = merkle.inclusion_ranges(leaf_index, tree_size)
    return tuple(nodes.root(start, end) for start, end in ranges)


def consistency_proof(
    read_tile: ReadTile, old_size: int, new_size: int
) -> tuple[bytes, ...]:
    """Return the proof that a tree only grew (RFC 9162 section 2.1.4.1).

    Nothing read is trusted or verified: check the proof before use.

    Args:
        read_tile: Returns the tile (level, index, width), or the full one.
        old_size: Size of the earlier tree, 1 to ``new_size``.
        new_size: Size of the later tree.

    Raises:
        InvalidTileError: a tile that was read has the wrong length.
        ValueError: there is no such earlier tree.
    """
    if not 0 < old_size <= new_size:
        raise ValueError(f"no tree of size {new_size} grew from one of size {old_size}")
    nodes = _Nodes(read_tile, new_size)
    ranges = merkle.consistency_ranges(old_size, new_size)
    return tuple(nodes.root(start, end) for start, end in ranges)
