"""Which block may follow which."""

from dataclasses import replace

import pytest

from ledger.blocks import (
    GENESIS_HASH,
    BlockHeader,
    Chain,
    ChainError,
    ChainFault,
    block_hash,
    plan_block,
    verify_block,
)
from ledger.merkle import CompactRange, leaf_hash, root
from tests.trees import extend

FIRST = [b"alpha", b"beta"]
SECOND = [b"gamma", b"", b"delta"]
CHAIN = plan_block(Chain(), FIRST, 1000).seal(b"block 0")
PLAN = plan_block(CHAIN, SECOND, 1500)


def test_the_chain_begins_with_nothing():
    chain = Chain()
    assert (chain.height, chain.size, chain.sequenced_at_ms) == (0, 0, 0)
    assert chain.previous_block_hash == GENESIS_HASH == bytes(32)
    assert chain.tree == CompactRange()


def test_block_hash_is_pinned():
    # echo -n gives the domain line and the bytes to sha256sum.
    assert block_hash(b"abc").hex() == (
        "392ff432bc0c815237b4228e8909a71e12ba3e503c431c0b51821b9c4c94a30a"
    )


def test_the_first_block():
    plan = plan_block(Chain(), FIRST, 1000)
    assert plan.header == BlockHeader(
        height=0,
        previous_block_hash=GENESIS_HASH,
        first_leaf_index=0,
        tree_root=root(map(leaf_hash, FIRST)),
        sequenced_at_ms=1000,
    )


def test_the_next_block():
    assert PLAN.header == BlockHeader(
        height=1,
        previous_block_hash=block_hash(b"block 0"),
        first_leaf_index=2,
        tree_root=root(map(leaf_hash, FIRST + SECOND)),
        sequenced_at_ms=1500,
    )
    assert PLAN.leaf_hashes == tuple(map(leaf_hash, SECOND))


def test_builders_and_verifiers_agree():
    assert verify_block(CHAIN, PLAN.header, SECOND) == PLAN
    verified = extend(CHAIN, PLAN.header, SECOND, b"block 1")
    assert verified == PLAN.seal(b"block 1")
    assert (verified.height, verified.size) == (2, 5)
    assert verified.previous_block_hash == block_hash(b"block 1")


def test_extending_leaves_the_old_chain_alone():
    before = replace(CHAIN)
    extend(CHAIN, PLAN.header, SECOND, b"block 1")
    assert before == CHAIN


@pytest.mark.parametrize(
    ("change", "reason", "expected"),
    [
        ({"height": 0}, ChainFault.HEIGHT, 1),
        ({"height": 2}, ChainFault.HEIGHT, 1),
        (
            {"previous_block_hash": GENESIS_HASH},
            ChainFault.PREVIOUS_BLOCK_HASH,
            CHAIN.previous_block_hash,
        ),
        ({"previous_block_hash": b""}, ChainFault.PREVIOUS_BLOCK_HASH, None),
        ({"first_leaf_index": 1}, ChainFault.FIRST_LEAF_INDEX, 2),
        ({"first_leaf_index": 3}, ChainFault.FIRST_LEAF_INDEX, 2),
        ({"tree_root": bytes(32)}, ChainFault.TREE_ROOT, PLAN.header.tree_root),
        ({"tree_root": CHAIN.tree.root()}, ChainFault.TREE_ROOT, None),
        ({"sequenced_at_ms": 999}, ChainFault.SEQUENCED_AT_MS, 1000),
        ({"sequenced_at_ms": -1}, ChainFault.SEQUENCED_AT_MS, 1000),
    ],
)
def test_an_altered_header_is_refused_by_name(change, reason, expected):
    (field,) = change
    with pytest.raises(ChainError, match=reason) as caught:
        extend(CHAIN, replace(PLAN.header, **change), SECOND, b"block 1")
    error = caught.value
    assert (error.reason, error.height) == (reason, 1)
    assert error.reason.lower() == field
    assert error.found == change[field]
    if expected is not None:
        assert error.expected == expected


def test_every_header_field_is_covered():
    assert {field.upper() for field in BlockHeader.__dataclass_fields__} <= set(
        ChainFault
    )


@pytest.mark.parametrize(
    "leaves",
    [
        [b"gamma", b"", b"delta!"],
        [b"gamma", b""],
        [b"", b"gamma", b"delta"],
        [*SECOND, b""],
    ],
)
def test_other_leaves_are_refused(leaves):
    with pytest.raises(ChainError, match="TREE_ROOT"):
        extend(CHAIN, PLAN.header, leaves, b"block 1")


def test_an_empty_block_is_refused():
    header = replace(PLAN.header, tree_root=CHAIN.tree.root())
    with pytest.raises(ChainError, match="EMPTY_BLOCK: expected 1, found 0"):
        extend(CHAIN, header, [], b"block 1")


def test_time_may_stand_still_but_not_go_back():
    assert plan_block(CHAIN, SECOND, 1000).header.sequenced_at_ms == 1000
    with pytest.raises(ChainError, match="SEQUENCED_AT_MS: expected 1000, found 999"):
        plan_block(CHAIN, SECOND, 999)


def test_a_leaf_fits_an_entry_bundle():
    assert plan_block(CHAIN, [bytes(65_535)], 1000).tree.size == 3
    with pytest.raises(ChainError, match=r"LEAF_TOO_LARGE.*found 65536"):
        plan_block(CHAIN, [b"", bytes(65_536)], 1000)


def test_the_error_shows_hashes_in_hex():
    error = ChainError(
        ChainFault.TREE_ROOT, height=7, expected=b"\x01\x02", found=b"\xff"
    )
    assert str(error) == "block 7: TREE_ROOT: expected 0102, found ff"
