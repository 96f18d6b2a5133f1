"""What a witness answers, status by status."""

import base64
import hashlib
import json

import pytest

from ledger import merkle, witness
from ledger.checkpoint import Checkpoint, sign_checkpoint, verify_checkpoint
from ledger.merkle import EMPTY_ROOT, leaf_hash
from ledger.note import (
    InvalidKeyError,
    InvalidNoteError,
    KeyType,
    VerifierKey,
    parse_vkey,
    sign_note,
)
from ledger.signing import SigningKey
from ledger.witness import (
    InvalidRequestError,
    Refusal,
    judge,
    make_response,
    parse_request,
)
from tests import trees
from tests.paths import VECTORS
from tests.witnessing import format_request

FOLDER = VECTORS / "ledger"
VECTOR = json.loads((FOLDER / "three_leaves.json").read_text(encoding="utf-8"))

ORIGIN = "log.example/a"
LOG = SigningKey(b"l" * 32)
LOG_KEY = VerifierKey(ORIGIN, KeyType.ED25519, LOG.public_key)
LEAVES = [leaf_hash(bytes([i])) for i in range(20)]
ROOTS = [merkle.root(LEAVES[:size]) for size in range(21)]
H = base64.b64encode(bytes(32)).decode()


def note(size, root=None, key=LOG, origin=ORIGIN):
    root = ROOTS[size] if root is None else root
    return sign_checkpoint(Checkpoint(origin, size, root), key)


def body(old, new, proof=None, **values):
    if proof is None:
        proof = trees.consistency_proof(old, LEAVES[:new]) if 0 < old <= new else ()
    return format_request(old, proof, note(new, **values))


def ask(data, stored=0, stored_root=None, **values):
    return judge(
        parse_request(data),
        **{
            "origin": ORIGIN,
            "log_key": LOG_KEY,
            "stored_size": stored,
            "stored_root": ROOTS[stored] if stored_root is None else stored_root,
        }
        | values,
    )


def status_of(answer):
    assert isinstance(answer, Refusal)
    assert answer.body.endswith(b"\n")
    return answer.status


def test_a_request_as_written():
    proof = trees.consistency_proof(7, LEAVES[:20])
    data = format_request(7, proof, note(20))
    lines = [base64.b64encode(element).decode() for element in proof]
    assert data.decode() == "\n".join(["old 7", *lines, "", note(20).decode()])
    request = parse_request(data)
    assert request == witness.AddCheckpoint(
        7, proof, note(20), Checkpoint(ORIGIN, 20, ROOTS[20])
    )


@pytest.mark.parametrize("old", range(21))
def test_growth_is_accepted(old):
    for new in range(old, 21):
        accepted = ask(body(old, new), stored=old)
        assert accepted == Checkpoint(ORIGIN, new, ROOTS[new])


def test_404_another_origin():
    assert status_of(ask(body(0, 5, origin="other"))) == 404
    # Even one that the log's key has signed, and before anything else is said.
    assert status_of(ask(body(9, 5, origin="other"), stored=3)) == 404


def test_403_no_good_signature_of_the_log():
    assert status_of(ask(body(0, 5, key=SigningKey(bytes(32))))) == 403
    forged = body(0, 5).replace(b"\n5\n", b"\n6\n")
    assert status_of(ask(forged)) == 403
    # Comes before 400, 409 and 422.
    assert status_of(ask(body(9, 5, key=SigningKey(bytes(32))), stored=3)) == 403


def test_unknown_signatures_are_ignored():
    stranger = sign_note(
        Checkpoint(ORIGIN, 5, ROOTS[5]).to_text(), "stranger", SigningKey(bytes(32))
    )
    line = stranger.decode().splitlines(keepends=True)[-1].encode()
    assert ask(body(0, 5) + line) == Checkpoint(ORIGIN, 5, ROOTS[5])


def test_400_old_above_new():
    assert status_of(ask(body(9, 5), stored=9)) == 400
    assert status_of(ask(body(9, 5), stored=3)) == 400


@pytest.mark.parametrize(("old", "stored"), [(0, 5), (3, 5), (5, 3), (4, 0)])
def test_409_says_the_size(old, stored):
    answer = ask(body(old, 8), stored=stored)
    assert answer == Refusal(409, f"{stored}\n".encode(), "text/x.tlog.size")


def test_422_not_consistent():
    good = trees.consistency_proof(5, LEAVES[:8])
    for proof in (
        (),
        good[:-1],
        (*good, bytes(32)),
        (bytes(32), *good[1:]),
        tuple(reversed(good)),
    ):
        assert status_of(ask(body(5, 8, proof), stored=5)) == 422
    assert status_of(ask(body(5, 8), stored=5, stored_root=bytes(32))) == 422
    assert status_of(ask(body(5, 8, root=bytes(32)), stored=5)) == 422


def test_422_a_proof_from_nothing():
    for new in (0, 8):
        assert status_of(ask(body(0, new, [bytes(32)]))) == 422


def test_422_same_size_another_root():
    assert status_of(ask(body(5, 5, root=bytes(32)), stored=5)) == 422
    assert status_of(ask(body(5, 5, [bytes(32)]), stored=5)) == 422
    assert ask(body(5, 5), stored=5) == Checkpoint(ORIGIN, 5, ROOTS[5])


def test_422_an_empty_tree_with_another_root():
    text = f"{ORIGIN}\n0\n{H}\n"
    with pytest.raises(InvalidRequestError, match="empty tree") as caught:
        parse_request(b"old 0\n\n" + sign_note(text, ORIGIN, LOG))
    assert status_of(caught.value.refusal) == 422
    assert ask(body(0, 0)) == Checkpoint(ORIGIN, 0, EMPTY_ROOT)


NOTE = note(5).decode()
LINE = "\n" + NOTE.split("\n\n")[1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no empty line"),
        ("old 0\n" + H, "no empty line"),
        ("\n\n" + NOTE, "starts with 'old"),
        ("old\n\n" + NOTE, "starts with 'old"),
        ("old 00\n\n" + NOTE, "starts with 'old"),
        ("old 05\n\n" + NOTE, "starts with 'old"),
        ("old -1\n\n" + NOTE, "starts with 'old"),
        ("old  5\n\n" + NOTE, "starts with 'old"),
        ("old 5 \n\n" + NOTE, "starts with 'old"),
        ("old 5\r\n\n" + NOTE, "starts with 'old"),
        ("Old 5\n\n" + NOTE, "starts with 'old"),
        ("old ٥\n\n" + NOTE, "starts with 'old"),
        (f"old {'1' * 3000}\n\n" + NOTE, "starts with 'old"),
        (f"old 5\n{H}x\n\n" + NOTE, "a proof line"),
        (f"old 5\n{H} \n\n" + NOTE, "a proof line"),
        (f"old 5\n{H[:-2]}B=\n\n" + NOTE, "a proof line"),
        ("old 5\nAA==\n\n" + NOTE, "a proof line"),
        ("old 5\né\n\n" + NOTE, "a proof line"),
        ("old 5\n" + f"{H}\n" * 64 + "\n" + NOTE, "64 proof lines"),
        ("old 5\n\n", "ends in|newline|empty line"),
        ("old 5\n\n" + NOTE[:-1], "newline"),
        ("old 5\n\n\n" + NOTE, "not 4 lines"),
        (f"old 5\n\n\n5\n{H}\n{LINE}", "an origin"),
        (f"old 5\n\no\n05\n{H}\n{LINE}", "leading zeros"),
        (f"old 5\n\no\n0\n{LINE}", "not 2 lines"),
        # Size 0 with another root has its own answer only if the rest is well-formed.
        (f"old 5\n\n\n0\n{H}\n{LINE}", "an origin"),
        (f"old 5\n\no\n0\nAA==\n{LINE}", "32 bytes, not 1"),
        (f"old 5\n\no\n0\nx\n{LINE}", "canonical base64"),
    ],
)
def test_400_malformed(text, message):
    with pytest.raises(InvalidRequestError, match=message) as caught:
        parse_request(text.encode())
    assert status_of(caught.value.refusal) == 400


def test_a_request_is_measured_first():
    with pytest.raises(InvalidRequestError, match="1004097 bytes; at most 1004096"):
        parse_request(bytes(witness.MAX_REQUEST_SIZE_BYTES + 1))
    with pytest.raises(InvalidRequestError, match="within the first 4096 bytes"):
        parse_request(b"old 0\n" + b"A" * 4096 + b"\n\n" + note(5))
    assert parse_request(f"old 5\n{63 * (H + chr(10))}\n{NOTE}".encode()).old_size == 5


def test_no_request_that_no_witness_reads():
    for old, proof, signed in (
        (-1, (), note(5)),
        (2**70, (), note(5)),
        (5, (b"short",), note(5)),
        (5, (bytes(32),) * 64, note(5)),
        (5, (), b"not a note"),
    ):
        with pytest.raises(InvalidRequestError):
            parse_request(format_request(old, proof, signed))


def test_another_type_of_key_is_a_bug():
    key = VerifierKey(ORIGIN, KeyType.COSIGNATURE_V1, LOG.public_key)
    with pytest.raises(InvalidKeyError, match="not of type ED25519"):
        ask(body(0, 5), log_key=key)


def test_the_answer_can_be_joined_to_the_note():
    key = SigningKey(bytes.fromhex(VECTOR["witness_seed"]))
    signed = VECTOR["checkpoint"].encode()
    answer = make_response(
        signed, VECTOR["witness_name"], key, VECTOR["cosignature_time_s"]
    )
    assert signed + answer == VECTOR["cosigned_checkpoint"].encode()
    verified = verify_checkpoint(
        signed + answer,
        parse_vkey(VECTOR["log_vkey"]),
        VECTOR["log_name"],
        [parse_vkey(VECTOR["witness_vkey"])],
    )
    assert len(verified.cosignatures) == 1


def test_a_witness_signs_with_a_time():
    for timestamp_s in (0, -1, 2**63):
        with pytest.raises(InvalidNoteError, match="time"):
            make_response(note(5), "w", LOG, timestamp_s)
    with pytest.raises(InvalidKeyError):
        make_response(note(5), "two words", LOG, 1)


def test_where_a_head_is_found():
    digest = hashlib.sha256(ORIGIN.encode()).hexdigest()
    assert witness.monitoring_path(ORIGIN) == f"{digest}/checkpoint"


GOOD = body(5, 8)


@pytest.mark.parametrize("place", range(len(GOOD)))
def test_any_altered_byte_is_refused(place):
    altered = bytearray(GOOD)
    altered[place] ^= 0x01
    try:
        answer = ask(bytes(altered), stored=5)
    except InvalidRequestError:
        return
    assert status_of(answer) in {400, 403, 404, 409, 422}
