"""The tree against an independent one, and proofs against every alteration."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pymerkle import InmemoryTree

from ledger import merkle
from ledger.blocks import Chain, plan_block
from ledger.merkle import CompactRange, InvalidProofError, leaf_hash
from tests.trees import consistency_proof, extend, inclusion_proof

entries = st.lists(st.binary(max_size=40), min_size=1, max_size=80)


@st.composite
def sizes(draw, count, max_size=200):
    """Return so many tree sizes, in order, and the leaf hashes of the largest."""
    chosen = sorted(draw(st.integers(1, max_size)) for _ in range(count))
    return chosen, [leaf_hash(i.to_bytes(2, "big")) for i in range(chosen[-1])]


def alterations(proof):
    """Yield the proof with every element altered, removed, doubled or moved."""
    for place, element in enumerate(proof):
        before, after = proof[:place], proof[place + 1 :]
        for bit in (0, 255):
            flipped = bytearray(element)
            flipped[bit // 8] ^= 1 << bit % 8
            yield (*before, bytes(flipped), *after)
        yield (*before, element[:-1], *after)
        yield (*before, element + b"\0", *after)
        yield (*before, *after)
        yield (*before, element, element, *after)
        if after and after[0] != element:
            yield (*before, after[0], element, *after[1:])
    yield (*proof, bytes(32))
    yield (bytes(32), *proof)


@given(entries, st.data())
@settings(max_examples=50)
def test_pymerkle_has_the_same_tree(log, data):
    oracle = InmemoryTree(algorithm="sha256")
    for entry in log:
        oracle.append_entry(entry)
    leaves = [leaf_hash(entry) for entry in log]
    old_size = data.draw(st.integers(1, len(log)))
    index = data.draw(st.integers(0, len(log) - 1))

    assert merkle.root(leaves) == oracle.get_root()
    assert merkle.root(leaves[:old_size]) == oracle.get_root(old_size)
    # It writes the same hashes from left to right, and the leaf's among them.
    theirs = oracle.prove_inclusion(index + 1, len(log)).serialize()["path"]
    ours = [element.hex() for element in inclusion_proof(index, leaves)]
    assert sorted([*ours, leaves[index].hex()]) == sorted(theirs)
    # Here it writes an old root's perfect subtrees one by one; ours must verify.
    merkle.verify_consistency(
        consistency_proof(old_size, leaves),
        old_size=old_size,
        old_root=oracle.get_root(old_size),
        new_size=len(log),
        new_root=oracle.get_root(),
    )


@given(st.lists(entries, max_size=6))
def test_batches_do_not_matter(batches):
    tree = CompactRange()
    leaves = []
    for batch in batches:
        hashes = [leaf_hash(entry) for entry in batch]
        tree = CompactRange.from_bytes(tree.extend(hashes).to_bytes())
        leaves += hashes
    assert tree == CompactRange().extend(leaves)
    assert tree.root() == merkle.root(leaves)


@given(sizes(1), st.data())
@settings(max_examples=50)
def test_every_altered_inclusion_proof_is_refused(tree, data):
    (size,), leaves = tree
    index = data.draw(st.integers(0, size - 1))
    proof = inclusion_proof(index, leaves)
    statement = {
        "leaf_hash": leaves[index],
        "leaf_index": index,
        "tree_size": size,
        "root": merkle.root(leaves),
    }
    merkle.verify_inclusion(proof, **statement)
    for altered in alterations(proof):
        with pytest.raises(InvalidProofError):
            merkle.verify_inclusion(altered, **statement)
    for other in set(range(size)) - {index}:
        with pytest.raises(InvalidProofError):
            merkle.verify_inclusion(proof, **statement | {"leaf_index": other})


@given(sizes(2))
@settings(max_examples=100)
def test_every_altered_consistency_proof_is_refused(trees):
    (old_size, new_size), leaves = trees
    proof = consistency_proof(old_size, leaves)
    statement = {
        "old_size": old_size,
        "old_root": merkle.root(leaves[:old_size]),
        "new_size": new_size,
        "new_root": merkle.root(leaves),
    }
    merkle.verify_consistency(proof, **statement)
    for altered in alterations(proof):
        with pytest.raises(InvalidProofError):
            merkle.verify_consistency(altered, **statement)


@given(sizes(2))
def test_no_proof_leads_to_a_rewritten_log(trees):
    (old_size, new_size), leaves = trees
    rewritten = [leaf_hash(b"rewritten"), *leaves[1:]]
    for proof in (
        consistency_proof(old_size, leaves),
        consistency_proof(old_size, rewritten),
    ):
        with pytest.raises(InvalidProofError):
            merkle.verify_consistency(
                proof,
                old_size=old_size,
                old_root=merkle.root(leaves[:old_size]),
                new_size=new_size,
                new_root=merkle.root(rewritten),
            )


@given(sizes(3))
def test_consistency_is_transitive(trees):
    chosen, leaves = trees
    roots = {size: merkle.root(leaves[:size]) for size in chosen}
    small, middle, large = chosen
    for old, new in ((small, middle), (middle, large), (small, large)):
        merkle.verify_consistency(
            consistency_proof(old, leaves[:new]),
            old_size=old,
            old_root=roots[old],
            new_size=new,
            new_root=roots[new],
        )


@given(st.lists(st.tuples(entries, st.integers(0, 10)), max_size=6))
def test_auditing_retraces_sequencing(blocks):
    published = []
    sequencer = Chain()
    for height, (leaves, passed_ms) in enumerate(blocks):
        plan = plan_block(sequencer, leaves, sequencer.sequenced_at_ms + passed_ms)
        block_bytes = b"encoded block %d" % height
        sequencer = plan.seal(block_bytes)
        published.append((plan.header, leaves, block_bytes))
    auditor = Chain()
    for header, leaves, block_bytes in published:
        auditor = extend(auditor, header, leaves, block_bytes)
    assert auditor == sequencer
    assert auditor.height == len(blocks)
    assert auditor.size == sum(len(leaves) for leaves, _ in blocks)
