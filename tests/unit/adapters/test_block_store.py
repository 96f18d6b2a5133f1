"""A ledger node's blocks on disk."""

import sqlite3

import pytest

from adapters.block_store import BlockStore, BlockStoreError, StoredBlock


def block(height, mark=b"a"):
    return StoredBlock(
        id=mark * 31 + bytes([height]),
        height=height,
        hash=b"h" * 30 + mark + bytes([height]),
        signature=b"s" * 64,
        data=b"data " + mark + bytes([height]),
    )


@pytest.fixture
def path(tmp_path):
    return tmp_path / "deep" / "blocks.sqlite"


@pytest.fixture
def store(path):
    store = BlockStore(path)
    yield store
    store.close()


def test_blocks_are_found_by_id_and_hash_and_final_ones_by_height(store):
    one = block(0)
    store.add(one)
    store.add(one)
    assert store.find(one.id) == store.find(one.hash) == one
    assert store.final_block(0) is None
    assert store.final_height == -1
    assert store.pending_blocks() == [one]
    store.finalise(one.id, (0, 0, b"proof"))
    store.finalise(one.id, (0, 0, b"proof"))
    assert store.final_block(0) == one
    assert store.final_height == 0
    assert store.pending_blocks() == []
    assert store.find(bytes(32)) is None


def test_what_is_final_excludes_its_siblings_and_keeps_what_is_above(store):
    for item in (block(0), block(0, b"b"), block(1), block(1, b"b")):
        store.add(item)
    store.finalise(block(0).id, None)
    assert store.pending_blocks() == [block(1), block(1, b"b")]
    assert store.find(block(0, b"b").id) is None
    store.forget(block(1, b"b").id)
    store.forget(block(0).id)  # final: stays
    assert store.pending_blocks() == [block(1)]
    assert list(store.final_blocks()) == [block(0)]


def test_final_blocks_have_no_gaps_and_are_not_replaced(store):
    with pytest.raises(BlockStoreError, match="not stored"):
        store.finalise(block(0).id, None)
    for item in (block(0), block(1), block(2)):
        store.add(item)
    with pytest.raises(BlockStoreError, match="cannot follow"):
        store.finalise(block(1).id, None)
    store.finalise(block(0).id, None)
    store.add(block(0, b"b"))
    with pytest.raises(BlockStoreError, match="cannot follow"):
        store.finalise(block(0, b"b").id, None)
    assert list(store.final_blocks()) == [block(0)]


def test_everything_survives(path, store):
    store.add(block(0))
    store.add(block(1))
    store.finalise(block(0).id, (0, 5, b"proof"))
    store.set_note("topic", b"x")
    store.set_note("topic", b"y")
    store.close()
    again = BlockStore(path)
    assert list(again.final_blocks()) == [block(0)]
    assert again.pending_blocks() == [block(1)]
    assert again.last_proof() == b"proof"
    assert again.note("topic") == b"y"
    assert again.note("other") is None
    again.close()


def test_proofs_are_found_by_era_and_height(store):
    for height in range(4):
        store.add(block(height))
    for height, proof in enumerate(
        [(0, 2, b"p2"), (0, 2, b"p2"), (0, 4, b"p4"), (1, 4, b"q4")]
    ):
        store.finalise(block(height).id, proof)
    assert store.last_proof() == store.last_proof(1) == b"q4"
    assert store.last_proof(0) == b"p4"
    assert store.last_proof(2) is None
    assert store.first_proof(0, 0) == store.first_proof(0, 2) == b"p2"
    assert store.first_proof(0, 3) == b"p4"
    assert store.first_proof(0, 5) is None
    assert store.first_proof(1, 0) == b"q4"


def test_a_gap_is_said(path, store):
    for height in range(3):
        store.add(block(height))
        store.finalise(block(height).id, None)
    store.close()
    with sqlite3.connect(path) as connection:
        connection.execute("DELETE FROM blocks WHERE height = 1")
    connection.close()
    again = BlockStore(path)
    with pytest.raises(BlockStoreError, match="lacks block 1"):
        list(again.final_blocks())
    again.close()


def test_another_file_is_not_taken_for_a_store(path):
    path.parent.mkdir()
    path.write_bytes(b"something else" * 1_000)
    with pytest.raises(BlockStoreError, match="not a block store"):
        BlockStore(path)


def test_damage_is_said(path, store):
    for height in range(50):
        store.add(block(height))
        store.finalise(block(height).id, None)
    store.close()
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(4096)
        file.write(b"\xff" * (size - 4096))
    again = BlockStore(path)
    with pytest.raises(BlockStoreError, match="delete it"):
        list(again.final_blocks())
    again.close()
