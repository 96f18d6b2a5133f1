"""Whatever is altered in a log, some independent verifier refuses it.

One table says what is forged and who must notice; each pair is a test. A judge that
would refuse everything proves nothing: `test_acceptance` shows each of them the same
publication unforged, and a witness must cosign the true growth right after it refused
the forged one.
"""

import base64
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import pytest

from ledger.checkpoint import parse_checkpoint, sign_checkpoint
from ledger.merkle import InvalidProofError, leaf_hash, root
from ledger.note import InvalidNoteError, NoteSignature
from ledger.policy import parse_policy
from ledger.proof_file import verify_receipt
from tests.interop import judges
from tests.interop.programs import Programs
from tests.interop.publication import (
    TILE,
    Publication,
    format_hashes,
    make_key,
    tile_path,
)
from tests.interop.test_witnesses import WITNESSES

FSCK = "fsck"
CHECKPOINT = "the verifier, by the checkpoint"
CONSISTENCY = "the verifier, by the consistency proof"
RECEIPT = "the verifier, by a receipt"
SPICY = "spicy"
OMNIWITNESS = "omniwitness"
LITEWITNESS = "litewitness"


ALL: Final = (FSCK, CHECKPOINT, CONSISTENCY, RECEIPT, SPICY)


@dataclass(frozen=True, slots=True)
class Tampering:
    """What is forged, and who must notice.

    Attributes:
        forge: Alters a copy of a publication.
        noticed_by: Who refuses it.
        statuses: What the witnesses answer who refuse it.
        missed_by: Who cannot notice, and accepts: shown so that nobody relies on them
            for it.
    """

    forge: Callable[[Publication], None]
    noticed_by: tuple[str, ...]
    statuses: Mapping[str, int] = field(default_factory=dict)
    missed_by: tuple[str, ...] = ()


def _flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(bytes(data))


def _first_tile(published: Publication, level: int) -> Path:
    width = min(TILE, published.size >> 8 * level)
    if width == 0:
        pytest.skip(f"the log is too small for a tile of level {level}")
    return published.log / tile_path(str(level), 0, width)


def _first_bundle(published: Publication) -> Path:
    return published.log / tile_path("entries", 0, min(TILE, published.size))


def flip_entry_byte(published: Publication) -> None:
    # The last byte of a bundle is one of its last entry, never of a length.
    _flip(_first_bundle(published), -1)


def flip_leaf_hash(published: Publication) -> None:
    _flip(_first_tile(published, 0), 0)


def flip_inner_hash(published: Publication) -> None:
    _flip(_first_tile(published, 1), 0)


def swap_entries(published: Publication) -> None:
    one, other, *rest = published.entries()
    assert one != other
    path = _first_bundle(published)
    bundle = [other, one, *rest][:TILE]
    path.write_bytes(b"".join(len(e).to_bytes(2, "big") + e for e in bundle))


def cut_bundle(published: Publication) -> None:
    path = _first_bundle(published)
    path.write_bytes(path.read_bytes()[:-1])


def drop_last_entry(published: Publication) -> None:
    """Leave a well-formed bundle with one entry too few."""
    path = _first_bundle(published)
    bundle = published.entries()[: min(TILE, published.size)][:-1]
    path.write_bytes(b"".join(len(e).to_bytes(2, "big") + e for e in bundle))


def remove_tile(published: Publication) -> None:
    _first_tile(published, 0).unlink()


def remove_bundle(published: Publication) -> None:
    _first_bundle(published).unlink()


def _publish(published: Publication, note: bytes) -> None:
    """Put a checkpoint in the place of the true one, in all receipts too."""
    before = published.checkpoint.read_bytes()
    for path in published.receipts():
        receipt = path.read_bytes()
        assert receipt.endswith(before)
        path.write_bytes(receipt.removesuffix(before) + note)
    published.checkpoint.write_bytes(note)


def change_root(published: Publication) -> None:
    """Write another root and leave all signatures as they are."""
    note = published.checkpoint.read_bytes()
    _, _, true_root, *_ = published.note().text.split("\n")
    other = base64.b64encode(bytes(32))
    assert note.count(true_root.encode()) == 1
    _publish(published, note.replace(true_root.encode(), other))


def sign_with_another_key(published: Publication) -> None:
    checkpoint = parse_checkpoint(published.note().text)
    _publish(published, sign_checkpoint(checkpoint, make_key("MALLORY")))


def claim_another_origin(published: Publication) -> None:
    """The log's own key signs the head of a log that it is not."""
    checkpoint = parse_checkpoint(published.note().text)
    _publish(
        published, published.sign(checkpoint.size, checkpoint.root, "folkmoot/other")
    )


def claim_missing_leaves(published: Publication) -> None:
    """The log's own key signs twice the size that its leaves have."""
    checkpoint = parse_checkpoint(published.note().text)
    _publish(published, published.sign(2 * checkpoint.size, checkpoint.root))


def claim_a_missing_leaf(published: Publication) -> None:
    """The log's own key signs one leaf more than there is, under the same root."""
    checkpoint = parse_checkpoint(published.note().text)
    _publish(published, published.sign(checkpoint.size + 1, checkpoint.root))


def rewrite_history(published: Publication) -> None:
    """Another first entry, everything recomputed and signed by the log itself."""
    entries = [b"rewritten", *published.entries()[1:]]
    published.write_tiles(entries)
    tree_root = root(map(leaf_hash, entries))
    published.checkpoint.write_bytes(published.sign(len(entries), tree_root))
    for path in published.receipts():
        published.write_receipt(int(path.name.removesuffix(".tlog-proof")))


def drop_cosignatures(published: Publication) -> None:
    before = published.checkpoint.read_bytes()
    published.write_cosignatures(published.cosignatures()[: published.threshold - 1])
    after = published.checkpoint.read_bytes()
    published.checkpoint.write_bytes(before)
    _publish(published, after)


def forge_cosignature(published: Publication) -> None:
    """One cosignature is over something else; as many good ones as there are remain."""
    first, *others = published.cosignatures()
    bad = bytes([first.signature[0], first.signature[1] ^ 1, *first.signature[2:]])
    before = published.checkpoint.read_bytes()
    published.write_cosignatures(
        [NoteSignature(first.name, first.key_id, bad), *others]
    )
    after = published.checkpoint.read_bytes()
    published.checkpoint.write_bytes(before)
    _publish(published, after)


def _alter_receipts(published: Publication, old: bytes, new: bytes) -> None:
    for path in published.receipts():
        receipt = path.read_bytes()
        altered = re.sub(old, new, receipt, count=1)
        assert altered != receipt
        path.write_bytes(altered)


def alter_receipt_hash(published: Publication) -> None:
    zero = base64.b64encode(bytes(32))
    _alter_receipts(published, rb"\nindex (\d+)\n.{44}\n", rb"\nindex \1\n%s\n" % zero)


def drop_receipt_hash(published: Publication) -> None:
    _alter_receipts(published, rb"\nindex (\d+)\n.{44}\n", rb"\nindex \1\n")


def alter_receipt_index(published: Publication) -> None:
    for path in published.receipts():
        index = int(path.name.removesuffix(".tlog-proof"))
        text = path.read_bytes()
        path.write_bytes(
            text.replace(b"\nindex %d\n" % index, b"\nindex %d\n" % (index ^ 1))
        )


def alter_receipt_leaf(published: Publication) -> None:
    other = base64.b64encode(b"another leaf")
    _alter_receipts(published, rb"\nextra .*\n", rb"\nextra %s\n" % other)


TAMPERINGS = {
    "an entry's byte flipped": Tampering(
        flip_entry_byte, (FSCK,), missed_by=(CHECKPOINT, RECEIPT)
    ),
    "a leaf hash flipped in a tile": Tampering(flip_leaf_hash, (FSCK,)),
    "an inner hash flipped in a tile": Tampering(flip_inner_hash, (FSCK,)),
    "two entries swapped": Tampering(swap_entries, (FSCK,)),
    "a bundle cut": Tampering(cut_bundle, (FSCK,)),
    "a bundle's last entry dropped": Tampering(drop_last_entry, (FSCK,)),
    "a tile removed": Tampering(remove_tile, (FSCK,)),
    "a bundle removed": Tampering(remove_bundle, (FSCK,)),
    "the root changed": Tampering(
        change_root, ALL, {OMNIWITNESS: 500, LITEWITNESS: 403}
    ),
    "signed by another key": Tampering(
        sign_with_another_key, ALL, {OMNIWITNESS: 500, LITEWITNESS: 403}
    ),
    "another origin": Tampering(
        claim_another_origin, ALL, {OMNIWITNESS: 500, LITEWITNESS: 404}
    ),
    "a size without its leaves": Tampering(
        claim_missing_leaves, ALL, {OMNIWITNESS: 422, LITEWITNESS: 422}
    ),
    # A root does not commit to its size: a proof that does not touch the tree's right
    # edge fits several. Whoever reads no leaves must ask for the nodes' cosignatures.
    "a size of one leaf too many": Tampering(
        claim_a_missing_leaf, (FSCK, CHECKPOINT, RECEIPT)
    ),
    # Nothing is wrong with it but that it was otherwise before: whoever saw nothing
    # before accepts it, unless a quorum must have cosigned.
    "history rewritten by the log itself": Tampering(
        rewrite_history,
        (CHECKPOINT, CONSISTENCY, RECEIPT),
        {OMNIWITNESS: 422, LITEWITNESS: 422},
        missed_by=(FSCK, SPICY),
    ),
    # The programs that know no policy cannot notice these two.
    "too few cosignatures": Tampering(
        drop_cosignatures, (CHECKPOINT, RECEIPT), missed_by=(FSCK, SPICY)
    ),
    "a cosignature forged": Tampering(
        forge_cosignature, (CHECKPOINT, RECEIPT), missed_by=(FSCK, SPICY)
    ),
    "a receipt's hash altered": Tampering(
        alter_receipt_hash, (RECEIPT, SPICY), missed_by=(FSCK, CHECKPOINT)
    ),
    "a receipt's hash dropped": Tampering(drop_receipt_hash, (RECEIPT, SPICY)),
    "a receipt's index altered": Tampering(alter_receipt_index, (RECEIPT, SPICY)),
    "a receipt's leaf altered": Tampering(alter_receipt_leaf, (RECEIPT, SPICY)),
}


def _judge(
    judge: str, programs: Programs, true: Publication, forged: Publication
) -> list[judges.Verdict]:
    """Show a forged publication to a judge; every verdict on it, none of a witness."""
    if judge == FSCK:
        return [judges.fsck(programs, forged)]
    if judge == SPICY:
        return [judges.spicy(programs, forged, r) for r in forged.receipts()]
    if judge == RECEIPT:
        return [
            judges.verifier(programs, "receipt", forged.policy, receipt)
            for receipt in forged.receipts()
        ]
    if judge == CHECKPOINT:
        what = ("checkpoint", forged.policy, forged.checkpoint)
        return [judges.verifier(programs, *what)]
    assert judge == CONSISTENCY
    # Its policy asks for no cosignature: it must notice by the proof, where the log
    # itself has signed.
    policy, before, proof = (
        forged.directory / name for name in ("log-only", "before", "proof")
    )
    policy.write_text(forged.policy_with_quorum("none"))
    half = true.size // 2
    before.write_bytes(true.sign_prefix(half))
    proof.write_text(format_hashes(_best_proof(true, forged, half)))
    return [
        judges.verifier(
            programs, "consistency", policy, before, forged.checkpoint, proof
        )
    ]


def _best_proof(true: Publication, forged: Publication, old_size: int) -> list[bytes]:
    """Return the proof that a forger would make: of its own tiles if they are whole."""
    source = forged if forged.size == true.size else true
    return source.prove_growth(old_size)


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        pytest.param(name, judge, id=f"{name}-{judge}")
        for name, tampering in TAMPERINGS.items()
        for judge in tampering.noticed_by
    ],
)
def test_it_is_noticed(
    programs: Programs,
    published: Publication,
    forgery: Callable[[], Publication],
    name: str,
    judge: str,
) -> None:
    forged = forgery()
    TAMPERINGS[name].forge(forged)
    for verdict in _judge(judge, programs, published, forged):
        assert not verdict.accepted, verdict.output


@pytest.mark.parametrize(
    ("name", "judge"),
    [
        pytest.param(name, judge, id=f"{name}-{judge}")
        for name, tampering in TAMPERINGS.items()
        for judge in tampering.missed_by
    ],
)
def test_it_is_not_for_this_judge_to_notice(
    programs: Programs,
    published: Publication,
    forgery: Callable[[], Publication],
    name: str,
    judge: str,
) -> None:
    forged = forgery()
    TAMPERINGS[name].forge(forged)
    for verdict in _judge(judge, programs, published, forged):
        assert verdict.accepted, verdict.output


@pytest.mark.parametrize("name", TAMPERINGS)
def test_we_notice_what_the_verifier_notices(
    programs: Programs,
    published: Publication,
    forgery: Callable[[], Publication],
    name: str,
) -> None:
    forged = forgery()
    TAMPERINGS[name].forge(forged)
    policy = parse_policy(forged.policy.read_bytes())
    accepted = _judge(CHECKPOINT, programs, published, forged)[0].accepted
    if accepted:
        policy.verify(forged.checkpoint.read_bytes())
    else:
        with pytest.raises(InvalidNoteError):
            policy.verify(forged.checkpoint.read_bytes())
    verdicts = _judge(RECEIPT, programs, published, forged)
    for path, verdict in zip(forged.receipts(), verdicts, strict=True):
        if verdict.accepted:
            verify_receipt(path.read_bytes(), policy)
        else:
            with pytest.raises((InvalidNoteError, InvalidProofError)):
                verify_receipt(path.read_bytes(), policy)


@pytest.mark.parametrize(
    ("name", "witness", "status"),
    [
        pytest.param(name, witness, status, id=f"{name}-{witness}")
        for name, tampering in TAMPERINGS.items()
        for witness, status in tampering.statuses.items()
    ],
)
def test_witnesses_do_not_cosign_it(
    programs: Programs,
    published: Publication,
    forgery: Callable[[], Publication],
    tmp_path: Path,
    name: str,
    witness: str,
    status: int,
) -> None:
    forged = forgery()
    TAMPERINGS[name].forge(forged)
    size, half = published.size, published.size // 2
    with WITNESSES[witness](programs, tmp_path / "witness", published) as running:
        first = running.add_checkpoint(0, [], published.sign_prefix(half))
        assert first["status"] == 200, first
        answer = running.add_checkpoint(
            half,
            _best_proof(published, forged, half),
            forged.checkpoint.read_bytes(),
        )
        assert answer["status"] == status, answer
        proof = published.prove_growth(half)
        true = running.add_checkpoint(half, proof, published.sign_prefix(size))
        assert true["status"] == 200, true


def test_the_table_names_every_judge_and_at_least_ten_tamperings() -> None:
    judged = {j for t in TAMPERINGS.values() for j in (*t.noticed_by, *t.statuses)}
    assert judged == {*ALL, *WITNESSES}
    assert len(TAMPERINGS) >= 10
