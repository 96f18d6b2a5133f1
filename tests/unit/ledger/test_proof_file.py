"""Receipts: what they prove, and every alteration that they must not survive."""

import base64
import json

import pytest

from ledger import merkle
from ledger import proof_file as pf
from ledger.checkpoint import Checkpoint, cosign_checkpoint, sign_checkpoint
from ledger.merkle import InvalidProofError, leaf_hash
from ledger.note import InvalidNoteError, KeyType, VerifierKey
from ledger.policy import QuorumError, make_bft_policy
from ledger.proof_file import (
    InvalidProofFileError,
    ProofFile,
    make_receipt,
    parse_proof_file,
    verify_proof_file,
    verify_receipt,
)
from ledger.signing import SigningKey
from tests import trees
from tests.paths import VECTORS

FOLDER = VECTORS / "ledger"
VECTOR = json.loads((FOLDER / "three_leaves.json").read_text(encoding="utf-8"))

ORIGIN = "log.example/a"
LOG = SigningKey(b"l" * 32)
KEYS = [SigningKey(bytes([i]) * 32) for i in range(4)]
ENTRIES = [f"entry {i}".encode() for i in range(11)]
HASHES = [leaf_hash(entry) for entry in ENTRIES]
PROOF = trees.inclusion_proof(6, HASHES)


def vkey(name, key, key_type):
    return VerifierKey(name, key_type, key.public_key).to_vkey()


POLICY = make_bft_policy(
    vkey(ORIGIN, LOG, KeyType.ED25519),
    [(f"n{i}", vkey(f"n{i}", KEYS[i], KeyType.COSIGNATURE_V1), "") for i in range(4)],
)
SIGNED = sign_checkpoint(Checkpoint(ORIGIN, 11, merkle.root(HASHES)), LOG)
NOTE = SIGNED
for n in range(3):
    NOTE = cosign_checkpoint(NOTE, f"n{n}", KEYS[n], 1_700_000_000)
RECEIPT = make_receipt(ENTRIES[6], 6, PROOF, NOTE)
REFUSALS = (InvalidProofFileError, InvalidProofError, InvalidNoteError)


def test_a_receipt_proves_its_leaf():
    leaf, index, verified = verify_receipt(RECEIPT, POLICY)
    assert (leaf, index) == (ENTRIES[6], 6)
    assert verified.checkpoint.size == 11
    assert len(verified.cosignatures) == 3
    assert verify_receipt(RECEIPT, POLICY, ORIGIN).verified == verified


def test_a_receipt_as_written():
    lines = [
        "c2sp.org/tlog-proof@v1",
        "extra " + base64.b64encode(ENTRIES[6]).decode(),
        "index 6",
        *(base64.b64encode(element).decode() for element in PROOF),
        "",
        NOTE.decode(),
    ]
    assert RECEIPT.decode() == "\n".join(lines)


@pytest.mark.parametrize(
    "proof_file",
    [
        ProofFile(0, (), b""),
        ProofFile(2**63 - 2, (bytes(32),) * 63, b"note", b"\x00"),
        ProofFile(5, PROOF, NOTE, bytes(65_535)),
        ProofFile(5, PROOF, bytes(1_000_000), bytes(65_535)),
        ProofFile(5, PROOF, b"\n\n"),
    ],
)
def test_bytes_round_trip(proof_file):
    assert parse_proof_file(proof_file.to_bytes()) == proof_file
    assert len(proof_file.to_bytes()) <= pf.MAX_PROOF_FILE_SIZE_BYTES


def test_without_the_leaf_the_reader_brings_it():
    without = ProofFile(6, PROOF, NOTE).to_bytes()
    verify_proof_file(parse_proof_file(without), ENTRIES[6], POLICY)
    with pytest.raises(InvalidProofFileError, match="not a receipt"):
        verify_receipt(without, POLICY)
    with pytest.raises(InvalidProofError, match="leads to root"):
        verify_proof_file(parse_proof_file(without), ENTRIES[5], POLICY)


def test_a_receipt_needs_the_policy_s_quorum():
    note = cosign_checkpoint(SIGNED, "n0", KEYS[0], 1)
    with pytest.raises(QuorumError, match="not by n1, n2, n3"):
        verify_receipt(make_receipt(ENTRIES[6], 6, PROOF, note), POLICY)
    with pytest.raises(InvalidNoteError, match="not of 'other'"):
        verify_receipt(RECEIPT, POLICY, "other")


def test_the_ledger_s_vector():
    policy = make_bft_policy(VECTOR["log_vkey"], [("n", VECTOR["witness_vkey"], "")])
    proof = [bytes.fromhex(element) for element in VECTOR["inclusion_0_3"]]
    note = VECTOR["cosigned_checkpoint"].encode()
    receipt = verify_receipt(make_receipt(b"alpha", 0, proof, note), policy)
    assert receipt.leaf == b"alpha"
    assert receipt.verified.checkpoint.root.hex() == VECTOR["root_3"]
    consistency = [bytes.fromhex(element) for element in VECTOR["consistency_2_3"]]
    merkle.verify_consistency(
        consistency,
        old_size=2,
        old_root=bytes.fromhex(VECTOR["root_2"]),
        new_size=3,
        new_root=receipt.verified.checkpoint.root,
    )


H = base64.b64encode(bytes(32)).decode()
TOP = "c2sp.org/tlog-proof@v1\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no empty line"),
        (TOP, "no empty line"),
        (TOP + "index 1\n" + H, "no empty line"),
        (TOP + "\nnote", "index <n>"),
        ("c2sp.org/tlog-proof@v2\nindex 1\n\n", "starts with c2sp"),
        (" " + TOP + "index 1\n\n", "starts with c2sp"),
        (TOP + "extra YQ==\n\n", "index <n>"),
        (TOP + "extra \nindex 1\n\n", "says nothing"),
        (TOP + "extra\nindex 1\n\n", "index <n>"),
        (TOP + "extra YQ\nindex 1\n\n", "extra data is not canonical"),
        (TOP + "extra YR==\nindex 1\n\n", "extra data is not canonical"),
        (TOP + "extra YQ==\nextra YQ==\nindex 1\n\n", "index <n>"),
        (TOP + "index 1\nextra YQ==\n\n", "a hash is not canonical"),
        (TOP + "index 01\n\n", "index <n>"),
        (TOP + "index +1\n\n", "index <n>"),
        (TOP + "index -1\n\n", "index <n>"),
        (TOP + "index  1\n\n", "index <n>"),
        (TOP + "index 1 \n\n", "index <n>"),
        (TOP + "index 1\r\n\r\n\n\n", "index <n>"),
        (TOP + "Index 1\n\n", "index <n>"),
        (TOP + f"index {2**63 - 1}\n\n", "a leaf index is 0 to"),
        (TOP + f"index {'1' * 5000}\n\n", "index <n>"),
        (TOP + "index 1\nindex 1\n\n", "a hash is not canonical"),
        (TOP + f"index 1\n{H} \n\n", "a hash is not canonical"),
        (TOP + "index 1\nAA==\n\n", "a hash is 32 bytes, not 1"),
        (TOP + "index 1\n" + f"{H}\n" * 64 + "\n", "64 hashes; at most 63"),
        (TOP + "index 1\né\n\n", "ASCII"),
        ("\n" + TOP + "index 1\n\n", "starts with c2sp"),
    ],
)
def test_texts_that_are_no_proof_file(text, message):
    with pytest.raises(InvalidProofFileError, match=message):
        parse_proof_file(text.encode())


def test_a_file_is_measured_first():
    with pytest.raises(InvalidProofFileError, match="1131073 bytes; at most 1131072"):
        parse_proof_file(bytes(pf.MAX_PROOF_FILE_SIZE_BYTES + 1))
    head = TOP.encode() + b"index 1\n"
    with pytest.raises(InvalidProofFileError, match="within the first 131072"):
        parse_proof_file(head + b"A" * pf.MAX_HEAD_SIZE_BYTES + b"\n\n")
    with pytest.raises(InvalidProofFileError, match="extra data of 65536 bytes"):
        parse_proof_file(
            TOP.encode()
            + b"extra "
            + base64.b64encode(bytes(65_536))
            + b"\nindex 1\n\n"
        )
    with pytest.raises(InvalidProofFileError, match="a checkpoint of 1000001 bytes"):
        parse_proof_file(head + b"\n" + bytes(1_000_001))


def test_no_receipt_of_these():
    for args, message in (
        ((b"", 6, PROOF, NOTE), "empty leaf"),
        ((bytes(65_536), 6, PROOF, NOTE), "extra data"),
        ((b"a", -1, PROOF, NOTE), "leaf index"),
        ((b"a", 6, (b"short",), NOTE), "a hash is 32 bytes, not 5"),
        ((b"a", 6, (bytes(32),) * 64, NOTE), "64 hashes"),
        ((b"a", 6, PROOF, bytes(1_000_001)), "a checkpoint of"),
    ):
        with pytest.raises(InvalidProofFileError, match=message):
            make_receipt(*args)


@pytest.mark.parametrize("place", range(len(RECEIPT)))
def test_any_altered_byte_is_refused(place):
    for bit in (0x01, 0x20, 0x80):
        altered = bytearray(RECEIPT)
        altered[place] ^= bit
        with pytest.raises(REFUSALS):
            verify_receipt(bytes(altered), POLICY)


def test_any_altered_line_is_refused():
    lines = RECEIPT.decode().splitlines(keepends=True)
    for place, line in enumerate(lines):
        before, after = lines[:place], lines[place + 1 :]
        altered = [[*before, *after]]
        if not line.startswith("—"):
            altered.append([*before, line, *lines[place:]])
        if after and not (line.startswith("—") and after[0].startswith("—")):
            altered.append([*before, after[0], line, *after[1:]])
        for changed in altered:
            with pytest.raises(REFUSALS):
                verify_receipt("".join(changed).encode(), POLICY)


def test_any_other_number_is_refused():
    for index in set(range(-1, 20)) - {6}:
        with pytest.raises(REFUSALS):
            verify_receipt(
                RECEIPT.replace(b"index 6\n", f"index {index}\n".encode()), POLICY
            )
    for size in set(range(20)) - {11}:
        with pytest.raises(REFUSALS):
            verify_receipt(RECEIPT.replace(b"\n11\n", f"\n{size}\n".encode()), POLICY)


def test_cut_off_anywhere_it_is_refused():
    for end in range(len(RECEIPT)):
        with pytest.raises(REFUSALS):
            verify_receipt(RECEIPT[:end], POLICY)
