"""Independent verifiers, unmodified, accept our log."""

from pathlib import Path

import pytest

from ledger.merkle import leaf_hash, root
from ledger.policy import parse_policy
from ledger.proof_file import verify_receipt
from tests.interop import judges
from tests.interop.programs import Programs
from tests.interop.publication import (
    MAX_LEAF_IN_GO_RECEIPT,
    Publication,
    format_hashes,
    write_synthetic,
)


def test_fsck(programs: Programs, published: Publication) -> None:
    verdict = judges.fsck(programs, published)
    assert verdict.accepted, verdict.output


@pytest.mark.parametrize("size", [1, 2, 255, 256, 257, 70_000])
def test_fsck_at_the_sizes_where_tiles_begin_and_end(
    programs: Programs, tmp_path: Path, size: int
) -> None:
    published = write_synthetic(tmp_path / "log", size)
    verdict = judges.fsck(programs, published)
    assert verdict.accepted, verdict.output
    if size == 70_000:  # LEDGER.md's example
        tiles = published.log / "tile"
        assert (tiles / "entries" / "273.p" / "112").is_file()
        assert (tiles / "0" / "273.p" / "112").stat().st_size == 112 * 32
        assert (tiles / "1" / "001.p" / "17").stat().st_size == 17 * 32
        assert (tiles / "2" / "000.p" / "1").stat().st_size == 32


def test_the_verifier_accepts_the_checkpoint(
    programs: Programs, published: Publication
) -> None:
    verdict = judges.verifier(
        programs, "checkpoint", published.policy, published.checkpoint
    )
    assert verdict.accepted, verdict.output
    tree_root = root(map(leaf_hash, published.entries())).hex()
    assert verdict.output == f"accepted: size {published.size}, root {tree_root}\n"


def test_the_verifier_accepts_every_receipt(
    programs: Programs, published: Publication
) -> None:
    assert published.receipts()
    for receipt in published.receipts():
        verdict = judges.verifier(programs, "receipt", published.policy, receipt)
        assert verdict.accepted, f"{receipt}: {verdict.output}"


def test_the_verifier_reads_no_larger_leaf_in_a_receipt(
    programs: Programs, tmp_path: Path
) -> None:
    published = write_synthetic(tmp_path / "log", 3)
    too_large = b"\xff" * (MAX_LEAF_IN_GO_RECEIPT + 1)
    published.write_tiles([b"", b"", too_large])
    published.checkpoint.write_bytes(published.sign_prefix(3))
    published.policy.write_text(published.policy_with_quorum("none"))
    published.write_receipt(2)
    receipt = published.receipt(2)
    assert verify_receipt(
        receipt.read_bytes(), parse_policy(published.policy.read_bytes())
    )
    assert judges.spicy(programs, published, receipt).accepted
    verdict = judges.verifier(programs, "receipt", published.policy, receipt)
    assert verdict == judges.Verdict(
        False, "refused: tlog proof missing required index\n"
    )


def test_spicy_accepts_every_receipt(
    programs: Programs, published: Publication
) -> None:
    assert published.receipts()
    for receipt in published.receipts():
        verdict = judges.spicy(programs, published, receipt)
        assert verdict.accepted, f"{receipt}: {verdict.output}"


def test_the_verifier_accepts_growth(
    programs: Programs, published: Publication, tmp_path: Path
) -> None:
    # Nodes cosign what is final, not every size: here the log's word is enough.
    policy, before, proof = (tmp_path / name for name in ("policy", "old", "proof"))
    policy.write_text(published.policy_with_quorum("none"))
    half = published.size // 2
    for old_size in sorted({1, 2, 3, half, published.size - 1, published.size}):
        before.write_bytes(published.sign_prefix(old_size))
        proof.write_text(format_hashes(published.prove_growth(old_size)))
        verdict = judges.verifier(
            programs, "consistency", policy, before, published.checkpoint, proof
        )
        assert verdict.accepted, f"from {old_size}: {verdict.output}"


def test_the_quorum_needs_its_threshold(
    programs: Programs, published: Publication, tmp_path: Path
) -> None:
    copy = Publication(tmp_path)
    copy.log.mkdir()
    copy.policy.write_bytes(published.policy.read_bytes())
    cosignatures = published.cosignatures()
    assert len(cosignatures) >= published.threshold
    verdicts = []
    for count in range(len(cosignatures) + 1):
        copy.checkpoint.write_bytes(published.checkpoint.read_bytes())
        copy.write_cosignatures(cosignatures[:count])
        verdict = judges.verifier(programs, "checkpoint", copy.policy, copy.checkpoint)
        verdicts.append(verdict.accepted)
    assert verdicts == [
        count >= published.threshold for count in range(len(cosignatures) + 1)
    ]
