"""Subtrees: the published vectors, every small subtree, and every alteration."""

import base64
import json

import pytest

from ledger import merkle
from ledger.merkle import InvalidProofError, leaf_hash
from tests.paths import VECTORS

FOLDER = VECTORS / "ledger"
INCLUSION = json.loads((FOLDER / "subtree_inclusion.json").read_text())
CONSISTENCY = json.loads((FOLDER / "subtree_consistency.json").read_text())
LEAVES = [leaf_hash(bytes([i])) for i in range(34)]
SUBTREES = [
    (start, end)
    for end in range(1, len(LEAVES) + 1)
    for start in range(end)
    if start % (1 << (end - start - 1).bit_length()) == 0
]


def unbase64(text):
    return base64.b64decode(text or "", validate=True)


def check(vector, verify, **values):
    proof = [unbase64(element) for element in vector["proof"] or ()]
    if vector["wantErr"]:
        with pytest.raises(InvalidProofError):
            verify(proof, **values)
    else:
        verify(proof, **values)


def test_vector_sets_are_complete():
    assert len(INCLUSION) + len(CONSISTENCY) == 204 + 107 == 311
    for vectors, num_good in ((INCLUSION, 12), (CONSISTENCY, 7)):
        assert sum(not vector["wantErr"] for vector in vectors.values()) == num_good


@pytest.mark.parametrize("name", INCLUSION)
def test_published_subtree_inclusion_vector(name):
    vector = INCLUSION[name]
    check(
        vector,
        merkle.verify_subtree_inclusion,
        leaf_hash=unbase64(vector["leafHash"]),
        leaf_index=vector["leafIdx"],
        start=vector["start"],
        end=vector["end"],
        root=unbase64(vector["root"]),
    )


@pytest.mark.parametrize("name", CONSISTENCY)
def test_published_subtree_consistency_vector(name):
    vector = CONSISTENCY[name]
    check(
        vector,
        merkle.verify_subtree_consistency,
        start=vector["start"],
        end=vector["end"],
        subtree_root=unbase64(vector["root1"]),
        tree_size=vector["size"],
        root=unbase64(vector["root2"]),
    )


def test_every_small_subtree_is_proved():
    for start, end in SUBTREES:
        subtree_root = merkle.root(LEAVES[start:end])
        for index in range(start, end):
            proof = merkle.subtree_inclusion_proof(index, start, end, LEAVES)
            merkle.verify_subtree_inclusion(
                proof,
                leaf_hash=LEAVES[index],
                leaf_index=index,
                start=start,
                end=end,
                root=subtree_root,
            )
            if start == 0:
                assert proof == merkle.inclusion_proof(index, LEAVES[:end])
        for size in range(end, len(LEAVES) + 1):
            proof = merkle.subtree_consistency_proof(start, end, LEAVES[:size])
            merkle.verify_subtree_consistency(
                proof,
                start=start,
                end=end,
                subtree_root=subtree_root,
                tree_size=size,
                root=merkle.root(LEAVES[:size]),
            )
            if start == 0:
                assert proof == merkle.consistency_proof(end, LEAVES[:size])


@pytest.mark.parametrize(
    ("start", "end"), [(0, 0), (3, 3), (3, 2), (-1, 1), (1, 3), (4, 9), (2, 5)]
)
def test_no_such_subtree(start, end):
    for make in (merkle.subtree_inclusion_proof, merkle.inclusion_ranges):
        args = (LEAVES,) if make is merkle.subtree_inclusion_proof else ()
        with pytest.raises(ValueError, match="no subtree covers"):
            make(start, start, end, *args)
    with pytest.raises(ValueError, match="no subtree covers"):
        merkle.subtree_consistency_proof(start, end, LEAVES)
    with pytest.raises(InvalidProofError, match="no subtree covers"):
        merkle.verify_subtree_inclusion(
            (), leaf_hash=LEAVES[0], leaf_index=0, start=start, end=end, root=bytes(32)
        )
    with pytest.raises(InvalidProofError, match="no subtree covers"):
        merkle.verify_subtree_consistency(
            (),
            start=start,
            end=end,
            subtree_root=bytes(32),
            tree_size=34,
            root=bytes(32),
        )


def test_from_nothing_to_nothing_is_no_proof():
    with pytest.raises(InvalidProofError):
        merkle.verify_consistency(
            (),
            old_size=0,
            old_root=merkle.EMPTY_ROOT,
            new_size=0,
            new_root=merkle.EMPTY_ROOT,
        )


def test_a_subtree_ends_within_its_tree():
    for make in (
        lambda: merkle.subtree_inclusion_proof(32, 32, 36, LEAVES),
        lambda: merkle.subtree_consistency_proof(32, 36, LEAVES),
    ):
        with pytest.raises(ValueError, match="size 34 has no leaf 35"):
            make()
    with pytest.raises(ValueError, match="leaf 3 is not from 4 to before 7"):
        merkle.inclusion_ranges(3, 4, 7)
    with pytest.raises(ValueError, match="leaf 7 is not from 4 to before 7"):
        merkle.inclusion_ranges(7, 4, 7)


def statement(start, end, size):
    return {
        "start": start,
        "end": end,
        "subtree_root": merkle.root(LEAVES[start:end]),
        "tree_size": size,
        "root": merkle.root(LEAVES[:size]),
    }


OF_4_TO_7_IN_14 = statement(4, 7, 14)
PROOF = merkle.subtree_consistency_proof(4, 7, LEAVES[:14])


@pytest.mark.parametrize(
    ("proof", "change", "message"),
    [
        (PROOF, {"subtree_root": b""}, "the subtree's root is 0 bytes"),
        (PROOF, {"root": bytes(33)}, "the root is 33 bytes"),
        ([b"short"], {}, "proof element 0 is 5 bytes"),
        (PROOF, {"tree_size": 6}, "size 6 has no leaf 6"),
        ((), {}, "too short: empty"),
        (PROOF[:-1], {}, "too short: 4"),
        ((*PROOF, bytes(32)), {}, "too long"),
        (PROOF, {"subtree_root": bytes(32)}, "leads to subtree"),
        (PROOF, {"root": bytes(32)}, "leads to root"),
    ],
)
def test_subtree_consistency_is_refused_with_the_reason(proof, change, message):
    merkle.verify_subtree_consistency(PROOF, **OF_4_TO_7_IN_14)
    with pytest.raises(InvalidProofError, match=message):
        merkle.verify_subtree_consistency(proof, **OF_4_TO_7_IN_14 | change)


def alterations(proof):
    """Yield the proof with each element altered, dropped, doubled and swapped."""
    for place, element in enumerate(proof):
        before, after = proof[:place], proof[place + 1 :]
        for byte in (0, 15, 31):
            flipped = bytearray(element)
            flipped[byte] ^= 0x10
            yield (*before, bytes(flipped), *after)
        yield (*before, element[:-1], *after)
        yield (*before, *after)
        yield (*before, element, element, *after)
        if after:
            yield (*before, after[0], element, *after[1:])
    yield (*proof, bytes(32))
    yield (bytes(32), *proof)


@pytest.mark.parametrize(
    ("start", "end", "size"),
    [(0, 5, 14), (0, 8, 14), (4, 7, 14), (8, 13, 13), (8, 13, 14), (8, 10, 34)],
)
def test_every_altered_subtree_proof_is_refused(start, end, size):
    proof = merkle.subtree_consistency_proof(start, end, LEAVES[:size])
    said = statement(start, end, size)
    merkle.verify_subtree_consistency(proof, **said)
    for altered in alterations(proof):
        with pytest.raises(InvalidProofError):
            merkle.verify_subtree_consistency(altered, **said)
    for root in ("root", "subtree_root"):
        for altered in list(alterations((said[root],)))[:4]:
            with pytest.raises(InvalidProofError):
                merkle.verify_subtree_consistency(proof, **said | {root: altered[0]})
    for other in set(SUBTREES) - {(start, end)}:
        with pytest.raises(InvalidProofError):
            merkle.verify_subtree_consistency(
                proof, **said | {"start": other[0], "end": other[1]}
            )
    index = end - 1
    proof = merkle.subtree_inclusion_proof(index, start, end, LEAVES)
    said = {
        "leaf_hash": LEAVES[index],
        "leaf_index": index,
        "start": start,
        "end": end,
        "root": merkle.root(LEAVES[start:end]),
    }
    merkle.verify_subtree_inclusion(proof, **said)
    for altered in alterations(proof):
        with pytest.raises(InvalidProofError):
            merkle.verify_subtree_inclusion(altered, **said)
    for other in set(range(-1, 40)) - {index}:
        with pytest.raises(InvalidProofError):
            merkle.verify_subtree_inclusion(proof, **said | {"leaf_index": other})
