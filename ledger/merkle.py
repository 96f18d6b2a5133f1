"""The Merkle tree of RFC 6962 and RFC 9162: hashes, growth, proofs.

Works on leaf hashes and knows nothing of what the entries mean. Nothing is stored:
`CompactRange` is all that a growing tree needs, about 32 bytes for each bit of its
size; for a proof the caller brings the leaf hashes.

Rules:

- SHA-256; leaves are hashed with prefix 00, nodes with 01, so that neither can be
  passed off as the other (RFC 9162 section 2.1.1).
- Every outside hash is exactly 32 bytes. Without that check, a verifier that compares
  its input with its input can be fed nothing at all.
- A proof has one form only: too long is as wrong as too short.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

HASH_SIZE: Final = 32  # SHA-256
LEAF_PREFIX: Final = b"\x00"  # RFC 9162 section 2.1.1
NODE_PREFIX: Final = b"\x01"  # RFC 9162 section 2.1.1
EMPTY_ROOT: Final = hashlib.sha256(b"").digest()
"""Root of the tree without leaves: MTH({}) of RFC 9162 section 2.1.1."""
MAX_TREE_SIZE: Final = 2**63 - 1  # = 9,223,372,036,854,775,807
"""Sizes are signed 64-bit numbers in Avro and in the programs that read our logs."""
MAX_PROOF_HASHES: Final = 63
"""Height of the largest tree: its size has 63 bits (c2sp.org/tlog-witness)."""

_SIZE_BYTES: Final = 8

_sha256 = hashlib.sha256


class InvalidProofError(ValueError):
    """The proof does not prove the claim. Always bad input, never a bug."""


def leaf_hash(entry: bytes) -> bytes:
    """Return the hash of a log entry, 32 bytes (RFC 9162 section 2.1.1).

    >>> leaf_hash(b"").hex()[:8]
    '6e340b9c'
    """
    return _sha256(LEAF_PREFIX + entry).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node, 32 bytes (RFC 9162 section 2.1.1).

    Args:
        left: Hash of the left child, 32 bytes. Not checked: this is the inner loop.
        right: Hash of the right child, 32 bytes. Not checked.
    """
    return _sha256(NODE_PREFIX + left + right).digest()


def _pair_up(level: Sequence[bytes]) -> list[bytes]:
    """Return the parents of a row of nodes; an odd one at the end has none yet."""
    # node_hash written out: the call would cost a fifth of the throughput.
    sha256, prefix, nodes = _sha256, NODE_PREFIX, iter(level)
    return [
        sha256(prefix + left + right).digest()
        for left, right in zip(nodes, nodes, strict=False)
    ]


@dataclass(frozen=True, slots=True)
class CompactRange:
    """A tree from leaf 0, reduced to what it takes to grow it and compute its root.

    Immutable: growing returns a new one, so a pure function can keep the old.

    >>> CompactRange().append(leaf_hash(b"")).root() == leaf_hash(b"")
    True

    Attributes:
        size: Number of leaves, 0 to `MAX_TREE_SIZE`.
        hashes: Roots of the tree's perfect subtrees, 32 bytes each, from the left (the
            largest) to the right; as many as ``size`` has bits set.

    Raises:
        ValueError: size and hashes do not match. Bad input if they were read from
            somewhere, a bug otherwise.
    """

    size: int = 0
    hashes: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_TREE_SIZE:
            raise ValueError(f"a tree size is 0 to {MAX_TREE_SIZE}, not {self.size}")
        if len(self.hashes) != self.size.bit_count():
            raise ValueError(
                f"a tree of size {self.size} consists of {self.size.bit_count()} "
                f"perfect subtrees, not {len(self.hashes)}"
            )
        if any(len(subtree) != HASH_SIZE for subtree in self.hashes):
            raise ValueError(f"every hash of a compact range is {HASH_SIZE} bytes")

    def append(self, leaf: bytes) -> CompactRange:
        """Return the tree with one more leaf.

        Args:
            leaf: Its leaf hash, 32 bytes; not the entry.
        """
        return self.extend((leaf,))

    def extend(self, leaves: Iterable[bytes]) -> CompactRange:
        """Return the tree with more leaves: the way to add many.

        Works row by row, from the leaves up, where list comprehensions are fast; the
        result is as if appended one at a time.

        Args:
            leaves: Their leaf hashes in order, 32 bytes each; not the entries.

        Raises:
            ValueError: a leaf hash is not 32 bytes, or the tree would be too large.
                A bug of the caller.
        """
        row = list(leaves)
        num_leaves = len(row)
        if any(len(leaf) != HASH_SIZE for leaf in row):
            raise ValueError(f"every leaf hash is {HASH_SIZE} bytes")
        left = list(self.hashes)
        right: list[bytes] = []  # new perfect subtrees, the smallest first
        level = 0
        while row:
            if self.size >> level & 1:
                row.insert(0, left.pop())
            if len(row) & 1:
                right.append(row.pop())
            row = _pair_up(row)
            level += 1
        return CompactRange(self.size + num_leaves, (*left, *reversed(right)))

    def root(self) -> bytes:
        """Return the root hash, 32 bytes: MTH(D[n]) of RFC 9162 section 2.1.1."""
        if not self.hashes:
            return EMPTY_ROOT
        *rest, result = self.hashes
        for subtree in reversed(rest):
            result = node_hash(subtree, result)
        return result

    def to_bytes(self) -> bytes:
        """Return it as bytes to store: size (8 bytes, big-endian) || hashes."""
        return self.size.to_bytes(_SIZE_BYTES, "big") + b"".join(self.hashes)

    @classmethod
    def from_bytes(cls, data: bytes) -> CompactRange:
        """Return what `to_bytes` was called on.

        Raises:
            ValueError: these are not bytes from `to_bytes`.
        """
        if len(data) < _SIZE_BYTES or (len(data) - _SIZE_BYTES) % HASH_SIZE:
            raise ValueError(f"{len(data)} bytes are not a size and whole hashes")
        hashes = tuple(
            data[start : start + HASH_SIZE]
            for start in range(_SIZE_BYTES, len(data), HASH_SIZE)
        )
        return cls(int.from_bytes(data[:_SIZE_BYTES], "big"), hashes)


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Return the root of the tree over these leaf hashes, 32 bytes.

    Raises:
        ValueError: a leaf hash is not 32 bytes.
    """
    return CompactRange().extend(leaf_hashes).root()


def _check_hash(what: str, value: bytes) -> None:
    if len(value) != HASH_SIZE:
        raise InvalidProofError(f"{what} is {len(value)} bytes, not {HASH_SIZE}")


def _check_proof_hashes(proof: Sequence[bytes]) -> None:
    for place, element in enumerate(proof):
        _check_hash(f"proof element {place}", element)


def verify_inclusion(
    proof: Sequence[bytes],
    *,
    leaf_hash: bytes,
    leaf_index: int,
    tree_size: int,
    root: bytes,
) -> None:
    """Check that a tree contains a leaf at an index (RFC 9162 section 2.1.3.2).

    Args:
        proof: Hashes of 32 bytes, from the leaf's sibling up.
        leaf_hash: Hash of the leaf, 32 bytes.
        leaf_index: Its place, 0 to ``tree_size - 1``.
        tree_size: Number of leaves of the tree.
        root: The tree's root, 32 bytes, from a trusted source.

    Raises:
        InvalidProofError: the proof does not show it; says at which point.
    """
    _check_hash("the leaf hash", leaf_hash)
    _check_hash("the root", root)
    _check_proof_hashes(proof)
    if not 0 <= leaf_index < tree_size:
        raise InvalidProofError(f"a tree of size {tree_size} has no leaf {leaf_index}")
    fn, sn = leaf_index, tree_size - 1  # the RFC's names
    computed = leaf_hash
    for place, element in enumerate(proof):
        if sn == 0:
            msg = f"proof too long: reached the root before element {place}"
            raise InvalidProofError(msg)
        if fn & 1 or fn == sn:
            computed = node_hash(element, computed)
            while fn and not fn & 1:  # rows where the node had no sibling
                fn >>= 1
                sn >>= 1
        else:
            computed = node_hash(computed, element)
        fn >>= 1
        sn >>= 1
    if sn != 0:
        msg = f"proof too short: {len(proof)} elements do not reach the root"
        raise InvalidProofError(msg)
    if computed != root:
        msg = f"the proof leads to root {computed.hex()}, not {root.hex()}"
        raise InvalidProofError(msg)


def verify_consistency(
    proof: Sequence[bytes],
    *,
    old_size: int,
    old_root: bytes,
    new_size: int,
    new_root: bytes,
) -> None:
    """Check that a tree grew from another by appending (RFC 9162 section 2.1.4.2).

    Args:
        proof: Hashes of 32 bytes, lowest first; empty if the sizes are equal.
        old_size: Size of the earlier tree, at least 1. An empty tree has no proofs:
            starting from nothing means trusting the first root seen.
        old_root: Its root, 32 bytes.
        new_size: Size of the later tree, at least ``old_size``.
        new_root: Its root, 32 bytes.

    Raises:
        InvalidProofError: the proof does not show it; says at which point.
    """
    if not 0 < old_size <= new_size:
        msg = f"no consistency proof leads from size {old_size} to size {new_size}"
        raise InvalidProofError(msg)
    if old_size == new_size:
        if proof:
            msg = f"equal sizes need no proof, found {len(proof)} elements"
            raise InvalidProofError(msg)
        if old_root != new_root:
            msg = f"two roots at size {new_size}: {old_root.hex()}, {new_root.hex()}"
            raise InvalidProofError(msg)
        # One root is consistent with itself, whatever it is: the published vectors
        # demand that it is not checked.
        return
    _check_hash("the old root", old_root)
    _check_hash("the new root", new_root)
    _check_proof_hashes(proof)
    if not proof:
        msg = f"proof too short: empty between sizes {old_size} and {new_size}"
        raise InvalidProofError(msg)
    computed_old, computed_new = _fold_consistency(proof, old_size, old_root, new_size)
    if computed_old != old_root:
        msg = f"the proof leads to old root {computed_old.hex()}, not {old_root.hex()}"
        raise InvalidProofError(msg)
    if computed_new != new_root:
        msg = f"the proof leads to new root {computed_new.hex()}, not {new_root.hex()}"
        raise InvalidProofError(msg)


def _fold_consistency(
    proof: Sequence[bytes], old_size: int, old_root: bytes, new_size: int
) -> tuple[bytes, bytes]:
    """Return the old and the new root that a proof leads to; the sizes differ."""
    path = list(proof)
    if old_size.bit_count() == 1:  # a perfect tree; its root is the first hash
        path.insert(0, old_root)
    fn, sn = old_size - 1, new_size - 1  # the RFC's names
    while fn & 1:
        fn >>= 1
        sn >>= 1
    old = new = path[0]
    for element in path[1:]:
        if sn == 0:
            msg = f"proof too long: {len(proof)} elements reach beyond the root"
            raise InvalidProofError(msg)
        if fn & 1 or fn == sn:
            old = node_hash(element, old)
            new = node_hash(element, new)
            while fn and not fn & 1:  # rows where the node had no sibling
                fn >>= 1
                sn >>= 1
        else:
            new = node_hash(new, element)
        fn >>= 1
        sn >>= 1
    if sn != 0:
        msg = f"proof too short: {len(proof)} elements do not reach the root"
        raise InvalidProofError(msg)
    return old, new


def _split(start: int, end: int) -> int:
    """Return where the node over [start, end), of two leaves or more, is divided."""
    return start + (1 << (end - start - 1).bit_length() - 1)


def inclusion_ranges(leaf_index: int, tree_size: int) -> tuple[tuple[int, int], ...]:
    """Return which nodes an inclusion proof consists of, as ranges of leaves.

    For callers whose hashes are not a list of leaves.

    Args:
        leaf_index: The leaf, 0 to ``tree_size - 1``.
        tree_size: Size of the tree.

    Returns:
        Pairs (first leaf, one after the last), in the order of the proof's elements.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= leaf_index < tree_size:
        raise ValueError(f"a tree of size {tree_size} has no leaf {leaf_index}")
    ranges = []
    start, end = 0, tree_size
    while end - start > 1:
        middle = _split(start, end)
        if leaf_index < middle:
            ranges.append((middle, end))
            end = middle
        else:
            ranges.append((start, middle))
            start = middle
    return tuple(reversed(ranges))


def consistency_ranges(old_size: int, new_size: int) -> tuple[tuple[int, int], ...]:
    """Return which nodes a consistency proof consists of; as `inclusion_ranges`.

    Args:
        old_size: Size of the earlier tree, 1 to ``new_size``.
        new_size: Size of the later tree.

    Returns:
        Pairs (first leaf, one after the last), in the order of the proof's elements.

    Raises:
        ValueError: there is no such earlier tree.
    """
    if not 0 < old_size <= new_size:
        raise ValueError(f"no tree of size {new_size} grew from one of size {old_size}")
    ranges = []
    first, stop = 0, new_size  # the node still to be searched
    while stop != old_size:
        middle = _split(first, stop)
        if old_size <= middle:
            ranges.append((middle, stop))
            stop = middle
        else:
            ranges.append((first, middle))
            first = middle
    if first:  # the verifier knows the old root, not what is left of that tree
        ranges.append((first, old_size))
    return tuple(reversed(ranges))
