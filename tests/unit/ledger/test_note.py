"""Notes that must open, and those that must not."""

import json

import pytest

from ledger.note import (
    MAX_SIGNATURES,
    InvalidKeyError,
    InvalidNoteError,
    KeyType,
    Note,
    NoteSignature,
    OpenedNote,
    VerifiedSignature,
    VerifierKey,
    add_signature,
    compute_cosignature_message,
    open_note,
    parse_base64,
    parse_note,
    parse_vkey,
    sign_cosignature,
    sign_note,
)
from ledger.signing import SigningKey
from tests.paths import VECTORS

FOLDER = VECTORS / "ledger"
VECTOR = json.loads((FOLDER / "three_leaves.json").read_text(encoding="utf-8"))

ALICE = SigningKey(b"a" * 32)
BOB = SigningKey(b"b" * 32)
CAROL = SigningKey(b"c" * 32)
ALICE_KEY = VerifierKey("alice.example/log", KeyType.ED25519, ALICE.public_key)
BOB_KEY = VerifierKey("bob.example/w", KeyType.COSIGNATURE_V1, BOB.public_key)
CAROL_KEY = VerifierKey("carol", KeyType.ED25519, CAROL.public_key)

TEXT = "moot\n1\nquorum\n"
SIGNED = sign_note(TEXT, ALICE_KEY.name, ALICE)
ALICE_LINE = parse_note(SIGNED).signatures[0]
BOB_LINE = sign_cosignature(TEXT, BOB_KEY.name, BOB, 1_700_000_000)
COSIGNED = add_signature(SIGNED, BOB_LINE)


def changed(line, **values):
    """Return a line with one bit of its signature flipped, or with other values."""
    fields = {
        "name": line.name,
        "key_id": line.key_id,
        "signature": line.signature[:-1] + bytes([line.signature[-1] ^ 1]),
    }
    return NoteSignature(**fields | values)


def test_vkeys_of_the_vector():
    log = VerifierKey(
        VECTOR["log_name"],
        KeyType.ED25519,
        SigningKey(bytes.fromhex(VECTOR["log_seed"])).public_key,
    )
    witness = VerifierKey(
        VECTOR["witness_name"],
        KeyType.COSIGNATURE_V1,
        SigningKey(bytes.fromhex(VECTOR["witness_seed"])).public_key,
    )
    assert log.to_vkey() == VECTOR["log_vkey"]
    assert witness.to_vkey() == VECTOR["witness_vkey"]
    assert parse_vkey(VECTOR["log_vkey"]) == log
    assert parse_vkey(VECTOR["witness_vkey"]) == witness


VKEY = ALICE_KEY.to_vkey()
KEY_ID = ALICE_KEY.key_id.hex()


@pytest.mark.parametrize(
    ("vkey", "message"),
    [
        ("", "name"),
        ("alice", "name"),
        (f"alice+{KEY_ID}", "name"),
        (VKEY.replace("alice", ""), "not that of the key"),
        (VKEY.replace("alice.example/log", ""), "key name"),
        (VKEY.replace("alice", "al ice"), "key name"),
        (VKEY.replace("alice", "al\u2003ice"), "key name"),
        (VKEY.replace("alice", "al\x00ice"), "key name"),
        (VKEY.replace("alice", "al\ud800ice"), "key name"),
        (VKEY.replace("alice", "al+ice"), "8 lowercase hex"),
        (VKEY.replace(KEY_ID, KEY_ID.upper()), "8 lowercase hex"),
        (VKEY.replace(KEY_ID, KEY_ID[1:]), "8 lowercase hex"),
        (VKEY.replace(KEY_ID, "0" * 8), "not that of the key"),
        (f"alice+{KEY_ID}+", "unsupported type .none"),
        (f"alice+{KEY_ID}+Ag==", "unsupported type 02"),
        (f"alice+{KEY_ID}+AQ==", "32 bytes, not 0"),
        (f"alice+{KEY_ID}+AR==", "canonical base64"),
        (f"alice+{KEY_ID}+AQ", "canonical base64"),
        (VKEY + "\n", "canonical base64"),
        (VKEY + "é", "canonical base64"),
    ],
)
def test_bad_vkeys(vkey, message):
    with pytest.raises(InvalidKeyError, match=message):
        parse_vkey(vkey)


def test_what_is_signed_opens():
    good = VerifiedSignature(ALICE_KEY, None)
    assert open_note(SIGNED, [ALICE_KEY]) == OpenedNote(TEXT, (good,))


def test_unknown_signers_are_ignored():
    assert len(open_note(COSIGNED, [ALICE_KEY]).signatures) == 1
    assert open_note(COSIGNED, [BOB_KEY, CAROL_KEY]).signatures == (
        VerifiedSignature(BOB_KEY, 1_700_000_000),
    )
    # Even when what they signed is nonsense, or calls itself like a known one.
    noisy = add_signature(SIGNED, NoteSignature("carol", b"1234", b"?"))
    noisy = add_signature(noisy, changed(ALICE_LINE, key_id=b"1234"))
    noisy = add_signature(noisy, changed(ALICE_LINE, name="mallory"))
    assert len(open_note(noisy, [ALICE_KEY, CAROL_KEY]).signatures) == 1


def test_the_order_is_that_of_the_lines():
    signatures = open_note(COSIGNED, [BOB_KEY, ALICE_KEY]).signatures
    assert [s.key for s in signatures] == [ALICE_KEY, BOB_KEY]


def test_a_key_counts_once():
    twice = add_signature(
        add_signature(COSIGNED, ALICE_LINE),
        sign_cosignature(TEXT, BOB_KEY.name, BOB, 1_800_000_000),
    )
    assert open_note(twice, [ALICE_KEY, BOB_KEY, ALICE_KEY]).signatures == (
        VerifiedSignature(ALICE_KEY, None),
        VerifiedSignature(BOB_KEY, 1_700_000_000),
    )


@pytest.mark.parametrize(
    "bad",
    [
        changed(ALICE_LINE),
        changed(ALICE_LINE, signature=ALICE_LINE.signature[:-1]),
        changed(ALICE_LINE, signature=ALICE_LINE.signature + b"\0"),
        changed(BOB_LINE),
        changed(BOB_LINE, signature=BOB_LINE.signature[8:]),
        changed(BOB_LINE, signature=BOB_LINE.signature[:7]),
        changed(BOB_LINE, signature=BOB_LINE.signature + b"\0"),
        changed(BOB_LINE, signature=bytes(8) + BOB_LINE.signature[8:]),
        changed(BOB_LINE, signature=b"\xff" * 8 + BOB_LINE.signature[8:]),
    ],
)
def test_one_bad_signature_of_a_known_key_spoils_the_note(bad):
    spoiled = add_signature(COSIGNED, bad)
    with pytest.raises(InvalidNoteError, match="is not good"):
        open_note(spoiled, [ALICE_KEY, BOB_KEY])


def test_a_cosignature_from_beyond_the_range_of_time():
    time_s = 2**63
    signature = BOB.sign(compute_cosignature_message(TEXT, time_s))
    line = changed(BOB_LINE, signature=time_s.to_bytes(8, "big") + signature)
    with pytest.raises(InvalidNoteError, match="time is at most"):
        open_note(add_signature(SIGNED, line), [BOB_KEY])


def test_a_plain_signature_is_no_cosignature_and_the_other_way_round():
    plain = VerifierKey(BOB_KEY.name, KeyType.ED25519, BOB.public_key)
    line = NoteSignature(plain.name, plain.key_id, BOB_LINE.signature[8:])
    with pytest.raises(InvalidNoteError, match="is not good"):
        open_note(add_signature(SIGNED, line), [plain])


def test_nobody_known():
    with pytest.raises(InvalidNoteError, match="no known key"):
        open_note(COSIGNED, [CAROL_KEY])
    with pytest.raises(InvalidNoteError, match="no known key"):
        open_note(COSIGNED, [])


def test_altered_text():
    with pytest.raises(InvalidNoteError, match="is not good"):
        open_note(SIGNED.replace(b"quorum", b"tyrant"), [ALICE_KEY])


def test_two_keys_of_one_name_and_id_are_the_readers_mistake(monkeypatch):
    # A real pair takes some 2^32 tries to find.
    monkeypatch.setattr("ledger.note.compute_key_id", lambda *_: b"same")
    other = VerifierKey(ALICE_KEY.name, KeyType.ED25519, CAROL.public_key)
    with pytest.raises(InvalidKeyError, match="two keys"):
        open_note(SIGNED, [ALICE_KEY, other])


@pytest.mark.parametrize(
    "text",
    [
        "\n",
        "\n\n",
        "a\n\nb\n",
        "a\n\n",
        "— alice c2ln\n",
        "a\n\n— alice.example/log c2lnbmF0dXJl\n",
        "grüezi \N{SNOWMAN} \x7f \x85 \u2028 \ufffd\n",
    ],
)
def test_texts_that_may_be_signed(text):
    assert open_note(sign_note(text, "carol", CAROL), [CAROL_KEY]).text == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "ends in a newline"),
        ("a", "ends in a newline"),
        ("a\tb\n", "control character"),
        ("a\r\n", "control character"),
        ("a\0\n", "control character"),
    ],
)
def test_texts_that_may_not(text, message):
    with pytest.raises(InvalidNoteError, match=message):
        sign_note(text, "carol", CAROL)
    with pytest.raises(InvalidNoteError, match=message):
        sign_cosignature(text, "carol", CAROL, 0)


@pytest.mark.parametrize("timestamp_s", [-1, 2**63])
def test_times_out_of_range(timestamp_s):
    with pytest.raises(InvalidNoteError, match="time is 0 to"):
        sign_cosignature(TEXT, "bob", BOB, timestamp_s)


LINE = ALICE_LINE.to_line().encode()
BODY = TEXT.encode()


@pytest.mark.parametrize(
    ("note", "message"),
    [
        (b"", "empty line"),
        (BODY, "empty line"),
        (BODY + b"\n", "empty line"),
        (BODY + LINE, "empty line"),
        (BODY + b"\n" + LINE[:-1], "ends in a newline"),
        (BODY + b"\n" + LINE + b"\n", "empty line"),
        (BODY + b"\n" + LINE + b"\n" + LINE[:-1], "ends in a newline"),
        (BODY + b"\r\n" + LINE, "empty line"),
        (BODY + b"\n" + LINE.replace("—".encode(), b"-"), "U[+]2014"),
        (BODY + b"\n" + LINE.replace("— ".encode(), "—".encode()), "U[+]2014"),
        (BODY + b"\n" + LINE + b"trailing\n", "U[+]2014"),
        (BODY + b"\n" + LINE.replace(b"alice", b"al+ice"), "signer's name"),
        (BODY + b"\n" + LINE.replace(b"alice", "al\u2028ice".encode()), "name"),
        (BODY + b"\n" + LINE.replace(b"alice.example/log", b""), "signer's name"),
        (BODY + b"\n" + LINE.replace(b"/log ", b"/log  "), "canonical base64"),
        (BODY + b"\n" + LINE.replace(b"\n", b" \n"), "canonical base64"),
        (BODY + b"\n" + LINE.replace(b"=", b""), "canonical base64"),
        (BODY + b"\n" + "— alice ====\n".encode(), "canonical base64"),
        (BODY + b"\n" + "— alice\n".encode(), "is empty"),
        (BODY + b"\n" + "— alice \n".encode(), "is empty"),
        (BODY + b"\n" + "— alice AAAAAA==\n".encode(), "is empty"),
        (b"\xff" + SIGNED, "UTF-8; byte 0"),
        (SIGNED.replace(b"quorum", b"\xed\xa0\x80"), "UTF-8"),
        (SIGNED.replace(b"quorum", b"\xc0\x80"), "UTF-8"),
        (SIGNED.replace(b"quorum", b"\x1f"), "control character"),
        (SIGNED.replace(LINE, LINE.replace(b"alice", b"al\tice")), "control"),
        (b"a" * 1_000_001, "1000001 bytes"),
        (SIGNED + LINE * MAX_SIGNATURES, "101 signatures"),
    ],
)
def test_bytes_that_are_no_note(note, message):
    with pytest.raises(InvalidNoteError, match=message):
        open_note(note, [ALICE_KEY])


def test_many_signatures():
    note = BODY + b"\n" + LINE * MAX_SIGNATURES
    assert len(parse_note(note).signatures) == MAX_SIGNATURES
    assert len(open_note(note, [ALICE_KEY]).signatures) == 1
    with pytest.raises(InvalidNoteError, match="100 signatures already"):
        add_signature(note, ALICE_LINE)


def test_parsing_loses_nothing():
    assert parse_note(COSIGNED) == Note(TEXT, (ALICE_LINE, BOB_LINE))
    assert parse_note(COSIGNED).to_bytes() == COSIGNED


def test_base64_has_one_spelling():
    assert parse_base64("AA==") == b"\0"
    for text in ("AB==", "AA=", "AA", " AA==", "AA==\n", "A-_A", "é", "AA==AA=="):
        with pytest.raises(ValueError, match=r"."):
            parse_base64(text)
