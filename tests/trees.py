"""Trees and chains as a whole: proofs from all leaf hashes, after the RFC."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.blocks import BlockHeader, Chain, verify_block
from ledger.merkle import node_hash


def _path(index: int, row: Sequence[bytes]) -> list[bytes]:
    """Return the siblings on the way from a node of a row up to the root.

    Args:
        index: Which node, 0 to ``len(row) - 1``.
        row: A whole row of the tree; the remainder at its end is the incomplete subtree
            there, or the last node itself.
    """
    path = []
    while len(row) > 1:
        sibling = index ^ 1
        if sibling < len(row):
            path.append(row[sibling])
        row = _row_above(row)
        index >>= 1
    return path


def _row_above(row: Sequence[bytes]) -> list[bytes]:
    """Return the next row; an odd node at the end rises unchanged.

    That rising is MTH's split at the largest power of two, seen from below.
    """
    above = _pair_up(row)
    if len(row) & 1:
        above.append(row[-1])
    return above


def inclusion_proof(leaf_index: int, leaf_hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the proof that a tree contains a leaf (RFC 9162 section 2.1.3.1).

    Costs as many hashes as the tree has leaves.

    Args:
        leaf_index: Which leaf, 0 to ``len(leaf_hashes) - 1``.
        leaf_hashes: All leaf hashes of the tree, 32 bytes each.

    Returns:
        Hashes of 32 bytes: the leaf's sibling first, the root's child last.

    Raises:
        ValueError: the tree has no such leaf.
    """
    if not 0 <= leaf_index < len(leaf_hashes):
        msg = f"a tree of size {len(leaf_hashes)} has no leaf {leaf_index}"
        raise ValueError(msg)
    return tuple(_path(leaf_index, leaf_hashes))


def consistency_proof(old_size: int, leaf_hashes: Sequence[bytes]) -> tuple[bytes, ...]:
    """Return the proof that a tree only grew (RFC 9162 section 2.1.4.1).

    Costs as many hashes as the tree has leaves.

    Args:
        old_size: Size of the earlier tree, 1 to ``len(leaf_hashes)``.
        leaf_hashes: All leaf hashes of the later tree, 32 bytes each.

    Returns:
        Hashes of 32 bytes, lowest first; none if the sizes are equal.

    Raises:
        ValueError: there is no such earlier tree. Nothing is proved about the empty
            one, with which everything is consistent.
    """
    if not 0 < old_size <= len(leaf_hashes):
        msg = f"no tree of size {len(leaf_hashes)} grew from one of size {old_size}"
        raise ValueError(msg)
    if old_size == len(leaf_hashes):
        return ()
    # The largest subtree that ends where the old tree ended: go up while its last leaf
    # is a right child.
    index = old_size - 1
    row = leaf_hashes
    while index & 1:
        row = _row_above(row)
        index >>= 1
    # If that subtree is the whole old tree the verifier knows its hash already.
    start = [row[index]] if index else []
    return (*start, *_path(index, row))


def _pair_up(level: Sequence[bytes]) -> list[bytes]:
    return [
        node_hash(level[place], level[place + 1])
        for place in range(0, len(level) - 1, 2)
    ]


def extend(
    chain: Chain, header: BlockHeader, leaves: Sequence[bytes], block_bytes: bytes
) -> Chain:
    """Return the chain after a block that follows.

    Args:
        chain: What came before.
        header: What the block says about its place.
        leaves: Its entries in order.
        block_bytes: Its whole single-object encoding, as received; header and leaves
            must have been decoded from these very bytes.

    Raises:
        ChainError: the block does not follow; names the first rule that it breaks.
    """
    return verify_block(chain, header, leaves).seal(block_bytes)
