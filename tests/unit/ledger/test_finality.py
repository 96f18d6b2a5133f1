"""What proves that a block is final, and what does not."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ledger.attestations import InvalidMessageError, start_certificate
from ledger.finality import FinalityProof, verify_finality
from tests import endings
from tests.endings import verify_last_block
from tests.unit.ledger.nodes import (
    BEGIN,
    KEYS,
    NODES,
    certify,
    make_chain,
    make_header,
)

CHAIN = make_chain(4)


def prove(block, child, epoch=0, child_epoch=None) -> FinalityProof:
    return FinalityProof(
        block,
        certify(block, epoch),
        child,
        certify(child, epoch if child_epoch is None else child_epoch),
    )


PROOF = prove(CHAIN[1], CHAIN[2], 3)


def test_two_certificates_of_one_epoch_make_a_block_final():
    verify_finality(NODES, PROOF, BEGIN)
    verify_finality(NODES, PROOF, (0, CHAIN[0].id))


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        (prove(CHAIN[1], CHAIN[2], 3, 4), "different epochs"),
        (prove(CHAIN[1], CHAIN[2], 4, 3), "different epochs"),
        (prove(CHAIN[1], CHAIN[3]), "not the child"),
        (prove(CHAIN[1], CHAIN[1]), "not the child"),
        (prove(CHAIN[1], make_header(make_header(CHAIN[0], "x"))), "not the child"),
        (prove(CHAIN[1], make_header(CHAIN[1], height=3)), "not the child"),
        (prove(CHAIN[1], make_header(CHAIN[1], era=1)), "another log, era"),
        (prove(CHAIN[1], make_header(CHAIN[1], chain_id=bytes(32))), "another log"),
        (replace(PROOF, header=make_header(CHAIN[0], "x")), "not of block 1"),
        (replace(PROOF, certificate=certify(CHAIN[2], 3)), "not of block 1"),
        (replace(PROOF, child_certificate=certify(CHAIN[1], 3)), "not of block 2"),
        (
            replace(PROOF, certificate=replace(PROOF.certificate, height=2)),
            "not of block 1",
        ),
        (
            replace(PROOF, certificate=certify(CHAIN[1], 3, KEYS[:2])),
            "2 signatures of the 3",
        ),
        (
            replace(PROOF, child_certificate=certify(CHAIN[2], 3, KEYS[:2])),
            "2 signatures of the 3",
        ),
    ],
)
def test_anything_less_does_not(proof, says):
    with pytest.raises(InvalidMessageError, match=says):
        verify_finality(NODES, proof, BEGIN)


def test_a_start_is_not_final_by_itself():
    start = (1, CHAIN[1].id)
    proof = replace(PROOF, certificate=start_certificate(0, start))
    with pytest.raises(InvalidMessageError, match="a start proves nothing"):
        verify_finality(NODES, proof, start)


def test_a_proof_survives_its_bytes():
    data = PROOF.to_bytes()
    assert FinalityProof.from_bytes(data) == PROOF
    for bad in (data[:-1], data + b"\0", b"x" + data, data[1:], b""):
        with pytest.raises(InvalidMessageError):
            FinalityProof.from_bytes(bad)


def test_every_byte_of_a_proof_counts():
    data = PROOF.to_bytes()
    for i in range(len(data)):
        altered = data[:i] + bytes([data[i] ^ 1]) + data[i + 1 :]
        with pytest.raises(InvalidMessageError):
            verify_finality(NODES, FinalityProof.from_bytes(altered), BEGIN)


LAST = CHAIN[1]
CLOSING = [LAST.closing_child()]
CLOSING += [CLOSING[0].closing_child()]
CLOSING += [CLOSING[1].closing_child()]


@pytest.mark.parametrize(
    "proof",
    [
        prove(LAST, CLOSING[0]),
        prove(CLOSING[0], CLOSING[1], 2),
        prove(CLOSING[1], CLOSING[2], 9),
    ],
)
def test_a_last_block_is_final_with_its_closing_children(proof):
    verify_last_block(NODES, LAST, proof, BEGIN)


@pytest.mark.parametrize(
    ("proof", "says"),
    [
        (prove(LAST, make_header(LAST)), "or a closing child of it"),
        (prove(make_header(LAST), make_header(make_header(LAST))), "or a closing"),
        (prove(CLOSING[0], make_header(CLOSING[0])), "or a closing child"),
        (prove(CHAIN[0], LAST), "says nothing of block 1"),
        (prove(make_header(CHAIN[0], "x"), make_header(LAST)), "not the child"),
        (prove(LAST, CLOSING[0], 0, 1), "different epochs"),
    ],
)
def test_a_last_block_is_not_final_by_anything_else(proof, says):
    with pytest.raises(InvalidMessageError, match=says):
        verify_last_block(NODES, LAST, proof, BEGIN)


def test_nobody_is_made_to_count_to_a_billion(monkeypatch):
    monkeypatch.setattr(endings, "_MAX_CLOSING", 1)
    verify_last_block(NODES, LAST, prove(CLOSING[0], CLOSING[1]), BEGIN)
    with pytest.raises(InvalidMessageError, match="says nothing"):
        verify_last_block(NODES, LAST, prove(CLOSING[1], CLOSING[2]), BEGIN)
