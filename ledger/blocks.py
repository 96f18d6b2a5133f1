"""The hash chain over the log: which block may follow which.

A block adds leaves to the tree and names its predecessor by hash. `Chain` is all it
takes to judge the next block, and only `plan_block` works out what that block must say:
the sequencer plans and publishes, the auditor plans and compares, so they cannot
disagree about a rule.

    sequencer   plan = plan_block(chain, leaves, now_ms)
                chain = plan.seal(encode(BlockSequenced(..., plan.header fields)))
    auditor     chain = extend(chain, header, leaves, block_bytes)

Rules, each a `ChainFault`:

- heights count from 0 without gaps;
- the previous block hash is that of the block before, 32 zero bytes at height 0;
- the first leaf's index is the size of the tree before;
- a block has at least one leaf, and none too large for an entry bundle;
- time never goes backwards from block to block;
- the tree root is that of all leaves up to and including this block's.

Deliberately not here: what a leaf means, who signed a block, and Avro. A block is
hashed as the bytes that were received, never as a re-encoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

from ledger.merkle import CompactRange, leaf_hash
from schemas.codec import MAX_LEAF_SIZE_BYTES

BLOCK_DOMAIN: Final = b"folkmoot-block/v1\n"
"""Separates block hashes from every other hash in the system."""
GENESIS_HASH: Final = bytes(32)
"""Stands for the block before the first."""


def block_hash(block_bytes: bytes) -> bytes:
    """Return how the next block refers to this one, 32 bytes.

    Args:
        block_bytes: The whole single-object encoding of the block, as received.
    """
    return hashlib.sha256(BLOCK_DOMAIN + block_bytes).digest()


class ChainFault(StrEnum):
    """Why a block does not follow."""

    HEIGHT = "HEIGHT"
    PREVIOUS_BLOCK_HASH = "PREVIOUS_BLOCK_HASH"
    FIRST_LEAF_INDEX = "FIRST_LEAF_INDEX"
    EMPTY_BLOCK = "EMPTY_BLOCK"
    LEAF_TOO_LARGE = "LEAF_TOO_LARGE"
    SEQUENCED_AT_MS = "SEQUENCED_AT_MS"
    TREE_ROOT = "TREE_ROOT"


class ChainError(ValueError):
    """A block does not follow its predecessor. Bad input, and evidence.

    Attributes:
        reason: The rule that it breaks.
        height: Height at which a block was expected.
        expected: What the rule demands, or its limit.
        found: What the block says.
    """

    def __init__(
        self,
        reason: ChainFault,
        *,
        height: int,
        expected: int | bytes,
        found: int | bytes,
    ) -> None:
        self.reason = reason
        self.height = height
        self.expected = expected
        self.found = found
        super().__init__(
            f"block {height}: {reason}: expected {_show(expected)}, "
            f"found {_show(found)}"
        )


def _show(value: int | bytes) -> str:
    return value.hex() if isinstance(value, bytes) else str(value)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockHeader:
    """What a block says about its place; the leaves are separate.

    Attributes:
        height: From 0, without gaps.
        previous_block_hash: Hash of the block before, 32 bytes.
        first_leaf_index: Leaf index of its first leaf.
        tree_root: Root over all leaves up to and including its own, 32 bytes.
        sequenced_at_ms: The sequencer's clock, milliseconds since 1970-01-01 UTC.
    """

    height: int
    previous_block_hash: bytes
    first_leaf_index: int
    tree_root: bytes
    sequenced_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Chain:
    """Everything it takes to judge the next block.

    ``Chain()`` is the empty chain.

    Attributes:
        height: Height of the next block: the number of blocks so far.
        previous_block_hash: Hash of the last block, 32 bytes; initially `GENESIS_HASH`.
        sequenced_at_ms: Time of the last block; initially 0.
        tree: All leaves so far.
    """

    height: int = 0
    previous_block_hash: bytes = GENESIS_HASH
    sequenced_at_ms: int = 0
    tree: CompactRange = field(default_factory=CompactRange)

    @property
    def size(self) -> int:
        """Number of leaves so far: the index of the next."""
        return self.tree.size


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockPlan:
    """The next block, before it is encoded.

    Attributes:
        header: What it must say.
        leaf_hashes: RFC 9162 hashes of its leaves, 32 bytes each.
        tree: The tree after it.
    """

    header: BlockHeader
    leaf_hashes: tuple[bytes, ...]
    tree: CompactRange

    def seal(self, block_bytes: bytes) -> Chain:
        """Return the chain after the block.

        Args:
            block_bytes: Single-object encoding of the block with this header and these
                leaves: as it was published, or as it was received.
        """
        return Chain(
            height=self.header.height + 1,
            previous_block_hash=block_hash(block_bytes),
            sequenced_at_ms=self.header.sequenced_at_ms,
            tree=self.tree,
        )


def plan_block(
    chain: Chain, leaves: Sequence[bytes], sequenced_at_ms: int
) -> BlockPlan:
    """Return the block that these leaves make on top of a chain.

    Args:
        chain: What came before.
        leaves: The new entries in order: at least one, each at most 65,535 bytes.
        sequenced_at_ms: Now, milliseconds since 1970-01-01 UTC.

    Raises:
        ChainError: there are no leaves, one is too large, or time went backwards (a
            sequencer with such a clock must stay at ``chain.sequenced_at_ms``).
    """

    def fail(reason: ChainFault, expected: int, found: int) -> ChainError:
        return ChainError(reason, height=chain.height, expected=expected, found=found)

    if not leaves:
        raise fail(ChainFault.EMPTY_BLOCK, 1, 0)
    largest = max(map(len, leaves))
    if largest > MAX_LEAF_SIZE_BYTES:
        raise fail(ChainFault.LEAF_TOO_LARGE, MAX_LEAF_SIZE_BYTES, largest)
    if sequenced_at_ms < chain.sequenced_at_ms:
        raise fail(ChainFault.SEQUENCED_AT_MS, chain.sequenced_at_ms, sequenced_at_ms)
    leaf_hashes = tuple(map(leaf_hash, leaves))
    tree = chain.tree.extend(leaf_hashes)
    header = BlockHeader(
        height=chain.height,
        previous_block_hash=chain.previous_block_hash,
        first_leaf_index=chain.size,
        tree_root=tree.root(),
        sequenced_at_ms=sequenced_at_ms,
    )
    return BlockPlan(header=header, leaf_hashes=leaf_hashes, tree=tree)


def verify_block(
    chain: Chain, header: BlockHeader, leaves: Sequence[bytes]
) -> BlockPlan:
    """Check that a block follows, and return it as its sequencer planned it.

    Like `extend`, for callers that also want the leaf hashes.

    Raises:
        ChainError: the block does not follow; names the first rule that it breaks.
    """
    # Place first: nothing else matters about a block for another height.
    _match(chain, ChainFault.HEIGHT, chain.height, header.height)
    _match(
        chain,
        ChainFault.PREVIOUS_BLOCK_HASH,
        chain.previous_block_hash,
        header.previous_block_hash,
    )
    _match(chain, ChainFault.FIRST_LEAF_INDEX, chain.size, header.first_leaf_index)
    plan = plan_block(chain, leaves, header.sequenced_at_ms)
    _match(chain, ChainFault.TREE_ROOT, plan.header.tree_root, header.tree_root)
    return plan


def _match(
    chain: Chain, reason: ChainFault, expected: int | bytes, found: int | bytes
) -> None:
    if expected != found:
        raise ChainError(reason, height=chain.height, expected=expected, found=found)
