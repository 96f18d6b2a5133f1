"""The tree agrees with RFC 9162, published vectors and itself."""

import base64
import json

import pytest

from ledger import merkle
from ledger.merkle import CompactRange, InvalidProofError, leaf_hash, node_hash
from tests import trees
from tests.paths import VECTORS

FOLDER = VECTORS / "ledger"
INCLUSION = json.loads((FOLDER / "inclusion.json").read_text())
CONSISTENCY = json.loads((FOLDER / "consistency.json").read_text())
LEAVES = [leaf_hash(bytes([i])) for i in range(70)]


def unbase64(text):
    return base64.b64decode(text or "", validate=True)


def mth(leaves):
    """MTH as RFC 9162 section 2.1.1 writes it."""
    if not leaves:
        return merkle.EMPTY_ROOT
    if len(leaves) == 1:
        return leaves[0]
    split = 1 << (len(leaves) - 1).bit_length() - 1
    return node_hash(mth(leaves[:split]), mth(leaves[split:]))


def check(vector, verify, **values):
    if vector["wantErr"]:
        with pytest.raises(InvalidProofError):
            verify(**values)
    else:
        verify(**values)


def test_vector_sets_are_complete():
    assert (len(INCLUSION), len(CONSISTENCY)) == (98, 98)
    for vectors in (INCLUSION, CONSISTENCY):
        assert sum(not vector["wantErr"] for vector in vectors.values()) == 6


@pytest.mark.parametrize("name", INCLUSION)
def test_published_inclusion_vector(name):
    vector = INCLUSION[name]
    check(
        vector,
        merkle.verify_inclusion,
        proof=[unbase64(element) for element in vector["proof"] or ()],
        leaf_hash=unbase64(vector["leafHash"]),
        leaf_index=vector["leafIdx"],
        tree_size=vector["treeSize"],
        root=unbase64(vector["root"]),
    )


@pytest.mark.parametrize("name", sorted(CONSISTENCY))
def test_published_consistency_vector(name):
    vector = CONSISTENCY[name]
    check(
        vector,
        merkle.verify_consistency,
        proof=[unbase64(element) for element in vector["proof"] or ()],
        old_size=vector["size1"],
        old_root=unbase64(vector["root1"]),
        new_size=vector["size2"],
        new_root=unbase64(vector["root2"]),
    )


def test_hashes_of_nothing():
    assert merkle.root([]) == CompactRange().root() == merkle.EMPTY_ROOT
    assert merkle.EMPTY_ROOT.hex().startswith("e3b0c442")
    assert leaf_hash(b"").hex().startswith("6e340b9c")


def test_three_leaves_reproduced():
    vector = json.loads((FOLDER / "three_leaves.json").read_text())
    leaves = [leaf_hash(entry.encode()) for entry in vector["entries"]]
    assert leaves[0].hex() == vector["leaf_0"]
    assert merkle.root(leaves[:2]).hex() == vector["root_2"]
    assert merkle.root(leaves).hex() == vector["root_3"]
    inclusion = trees.inclusion_proof(0, leaves)
    assert [element.hex() for element in inclusion] == vector["inclusion_0_3"]
    consistency = trees.consistency_proof(2, leaves)
    assert [element.hex() for element in consistency] == vector["consistency_2_3"]


def test_compact_range_has_the_root_of_the_definition():
    tree = CompactRange()
    for size in range(len(LEAVES) + 1):
        assert tree.size == size
        assert tree.root() == mth(LEAVES[:size]) == merkle.root(LEAVES[:size])
        if size < len(LEAVES):
            tree = tree.append(LEAVES[size])


def test_adding_many_is_adding_one_at_a_time():
    one_by_one = [CompactRange()]
    for leaf in LEAVES:
        one_by_one.append(one_by_one[-1].append(leaf))
    for old in range(len(LEAVES) + 1):
        for new in range(old, len(LEAVES) + 1):
            grown = one_by_one[old].extend(LEAVES[old:new])
            assert grown == one_by_one[new]


def test_compact_range_survives_bytes():
    for size in (0, 1, 2, 3, 63, 64):
        tree = CompactRange().extend(LEAVES[:size])
        assert CompactRange.from_bytes(tree.to_bytes()) == tree


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "whole hashes"),
        (bytes(7), "whole hashes"),
        (bytes(9), "whole hashes"),
        (bytes(8 + 31), "whole hashes"),
        (bytes(8 + 32), "0 perfect subtrees, not 1"),
        ((3).to_bytes(8, "big") + bytes(32), "2 perfect subtrees, not 1"),
        ((2**63).to_bytes(8, "big") + bytes(32), "tree size"),
    ],
)
def test_bytes_that_are_no_compact_range(data, message):
    with pytest.raises(ValueError, match=message):
        CompactRange.from_bytes(data)


def test_no_hash_of_another_length_enters_a_tree():
    with pytest.raises(ValueError, match="32 bytes"):
        CompactRange(1, (b"short",))
    with pytest.raises(ValueError, match="32 bytes"):
        CompactRange().extend([LEAVES[0], b"short"])


def test_a_tree_cannot_outgrow_its_size():
    full = CompactRange(merkle.MAX_TREE_SIZE, (bytes(32),) * 63)
    with pytest.raises(ValueError, match="tree size"):
        full.append(LEAVES[0])


@pytest.mark.parametrize(("index", "size"), [(-1, 3), (3, 3), (0, 0)])
def test_no_inclusion_proof_without_the_leaf(index, size):
    with pytest.raises(ValueError, match="no leaf"):
        trees.inclusion_proof(index, LEAVES[:size])


@pytest.mark.parametrize(("old", "new"), [(0, 0), (0, 3), (4, 3), (-1, 3)])
def test_no_consistency_proof_without_the_tree(old, new):
    with pytest.raises(ValueError, match="no tree"):
        trees.consistency_proof(old, LEAVES[:new])


def test_every_proof_in_small_trees_verifies():
    roots = [merkle.root(LEAVES[:size]) for size in range(21)]
    for size in range(1, 21):
        for index in range(size):
            merkle.verify_inclusion(
                trees.inclusion_proof(index, LEAVES[:size]),
                leaf_hash=LEAVES[index],
                leaf_index=index,
                tree_size=size,
                root=roots[size],
            )
        for old_size in range(1, size + 1):
            merkle.verify_consistency(
                trees.consistency_proof(old_size, LEAVES[:size]),
                old_size=old_size,
                old_root=roots[old_size],
                new_size=size,
                new_root=roots[size],
            )


INCLUSION_OF_5_IN_9 = {
    "proof": trees.inclusion_proof(5, LEAVES[:9]),
    "leaf_hash": LEAVES[5],
    "leaf_index": 5,
    "tree_size": 9,
    "root": merkle.root(LEAVES[:9]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"leaf_hash": b""}, "the leaf hash is 0 bytes"),
        ({"root": bytes(33)}, "the root is 33 bytes"),
        ({"proof": [bytes(32), bytes(31)]}, "proof element 1 is 31 bytes"),
        ({"leaf_index": 9}, "no leaf 9"),
        ({"leaf_index": -1}, "no leaf -1"),
        ({"tree_size": 0}, "no leaf 5"),
        ({"proof": INCLUSION_OF_5_IN_9["proof"][:-1]}, "too short: 3"),
        ({"proof": (*INCLUSION_OF_5_IN_9["proof"], bytes(32))}, "before element 4"),
        ({"root": bytes(32)}, "leads to root"),
    ],
)
def test_inclusion_is_refused_with_the_reason(change, message):
    merkle.verify_inclusion(**INCLUSION_OF_5_IN_9)
    with pytest.raises(InvalidProofError, match=message):
        merkle.verify_inclusion(**INCLUSION_OF_5_IN_9 | change)


CONSISTENCY_6_TO_9 = {
    "proof": trees.consistency_proof(6, LEAVES[:9]),
    "old_size": 6,
    "old_root": merkle.root(LEAVES[:6]),
    "new_size": 9,
    "new_root": merkle.root(LEAVES[:9]),
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"old_root": b""}, "the old root is 0 bytes"),
        ({"new_root": b""}, "the new root is 0 bytes"),
        ({"proof": [b""]}, "proof element 0 is 0 bytes"),
        ({"old_size": 0}, "from size 0 to size 9"),
        ({"old_size": 10}, "from size 10 to size 9"),
        ({"proof": ()}, "empty"),
        ({"proof": CONSISTENCY_6_TO_9["proof"][:-1]}, "too short"),
        ({"proof": (*CONSISTENCY_6_TO_9["proof"], bytes(32))}, "too long"),
        ({"old_root": bytes(32)}, "leads to old root"),
        ({"new_root": bytes(32)}, "leads to new root"),
        ({"old_size": 9}, "equal sizes need no proof"),
        ({"old_size": 9, "proof": ()}, "two roots at size 9"),
    ],
)
def test_consistency_is_refused_with_the_reason(change, message):
    merkle.verify_consistency(**CONSISTENCY_6_TO_9)
    with pytest.raises(InvalidProofError, match=message):
        merkle.verify_consistency(**CONSISTENCY_6_TO_9 | change)
