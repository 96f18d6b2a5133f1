"""Heads of a tree as other programs read them."""

import json

import pytest

from ledger.checkpoint import (
    Checkpoint,
    InvalidCheckpointError,
    compute_origin,
    cosign_checkpoint,
    parse_checkpoint,
    parse_origin,
    sign_checkpoint,
    verify_checkpoint,
)
from ledger.merkle import EMPTY_ROOT
from ledger.note import (
    InvalidKeyError,
    InvalidNoteError,
    KeyType,
    VerifiedSignature,
    VerifierKey,
    parse_vkey,
    sign_note,
)
from ledger.signing import SigningKey
from tests.paths import VECTORS

FOLDER = VECTORS / "ledger"
VECTOR = json.loads((FOLDER / "three_leaves.json").read_text(encoding="utf-8"))

LOG = SigningKey(bytes.fromhex(VECTOR["log_seed"]))
WITNESS = SigningKey(bytes.fromhex(VECTOR["witness_seed"]))
LOG_KEY = parse_vkey(VECTOR["log_vkey"])
WITNESS_KEY = parse_vkey(VECTOR["witness_vkey"])
ORIGIN = VECTOR["log_name"]
SIGNED = VECTOR["checkpoint"].encode()
COSIGNED = VECTOR["cosigned_checkpoint"].encode()
CHECKPOINT = Checkpoint(ORIGIN, 3, bytes.fromhex(VECTOR["root_3"]))
TEXT = CHECKPOINT.to_text()
ROOT = TEXT.split("\n")[2]


def test_the_vector_is_reproduced_byte_for_byte():
    signed = sign_checkpoint(CHECKPOINT, LOG)
    assert signed == SIGNED
    name, time_s = VECTOR["witness_name"], VECTOR["cosignature_time_s"]
    assert cosign_checkpoint(signed, name, WITNESS, time_s) == COSIGNED


def test_the_vector_verifies():
    assert verify_checkpoint(SIGNED, LOG_KEY, ORIGIN).checkpoint == CHECKPOINT
    assert verify_checkpoint(COSIGNED, LOG_KEY, ORIGIN).cosignatures == ()
    verified = verify_checkpoint(COSIGNED, LOG_KEY, ORIGIN, [WITNESS_KEY])
    assert verified.checkpoint == CHECKPOINT
    assert verified.cosignatures == (VerifiedSignature(WITNESS_KEY, 1_700_000_000),)


@pytest.mark.parametrize(
    "checkpoint",
    [
        CHECKPOINT,
        Checkpoint("o", 0, EMPTY_ROOT),
        Checkpoint("go.sum database tree", 2**63 - 1, bytes(32)),
        Checkpoint("é \u2028", 10, bytes(32)),
    ],
)
def test_text_round_trip(checkpoint):
    assert parse_checkpoint(checkpoint.to_text()) == checkpoint
    key = VerifierKey("log", KeyType.ED25519, LOG.public_key)
    signed = sign_checkpoint(checkpoint, LOG, "log")
    assert verify_checkpoint(signed, key, checkpoint.origin).checkpoint == checkpoint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "newline"),
        (TEXT[:-1], "newline"),
        ("o\n3\n", "not 2 lines"),
        (f"\n3\n{ROOT}\n", "an origin"),
        (f"a\tb\n3\n{ROOT}\n", "an origin"),
        (f"o\n03\n{ROOT}\n", "leading zeros"),
        (f"o\n00\n{ROOT}\n", "leading zeros"),
        (f"o\n+3\n{ROOT}\n", "decimal"),
        (f"o\n-3\n{ROOT}\n", "decimal"),
        (f"o\n 3\n{ROOT}\n", "decimal"),
        (f"o\n0x3\n{ROOT}\n", "decimal"),
        (f"o\n3_0\n{ROOT}\n", "decimal"),
        (f"o\n\N{ARABIC-INDIC DIGIT THREE}\n{ROOT}\n", "decimal"),
        (f"o\n\n{ROOT}\n", "decimal"),
        (f"o\n{2**63}\n{ROOT}\n", "tree size is 0 to"),
        (f"o\n{'1' * 5000}\n{ROOT}\n", "decimal"),
        (f"o\n0\n{ROOT}\n", "empty tree"),
        ("o\n3\n\n", "32 bytes, not 0"),
        ("o\n3\nAA==\n", "32 bytes, not 1"),
        (f"o\n3\n{ROOT[:-1]}\n", "canonical base64"),
        (f"o\n3\n{ROOT[:-2]}p=\n", "canonical base64"),
        (f"o\n3\n{ROOT} \n", "canonical base64"),
        (f"o\n3\n{ROOT}\n\n", "no extension lines"),
        (f"o\n3\n{ROOT}\nmore\n", "no extension lines"),
        (f"o\n3\n{ROOT}\nmore\n\nmore\n", "no extension lines"),
    ],
)
def test_texts_that_are_no_checkpoint(text, message):
    with pytest.raises(InvalidCheckpointError, match=message):
        parse_checkpoint(text)


@pytest.mark.parametrize("size", [-1, 2**63])
def test_sizes_out_of_range(size):
    with pytest.raises(InvalidCheckpointError, match="tree size"):
        Checkpoint("o", size, bytes(32))


def test_another_logs_head_is_refused():
    with pytest.raises(InvalidCheckpointError, match="not of 'ours'"):
        verify_checkpoint(SIGNED, LOG_KEY, "ours")


def test_a_witness_alone_is_not_enough():
    lines = COSIGNED.decode().split("\n")
    only_witness = "\n".join(line for line in lines if "— ledger" not in line)
    with pytest.raises(InvalidNoteError, match="did not sign"):
        verify_checkpoint(only_witness.encode(), LOG_KEY, ORIGIN, [WITNESS_KEY])


def test_signed_but_not_a_checkpoint():
    with pytest.raises(InvalidCheckpointError, match="not 1 lines"):
        verify_checkpoint(sign_note("hello\n", ORIGIN, LOG), LOG_KEY, ORIGIN)
    with pytest.raises(InvalidCheckpointError, match="not 1 lines"):
        cosign_checkpoint(sign_note("hello\n", ORIGIN, LOG), "w", WITNESS, 1)


def test_keys_have_their_place():
    with pytest.raises(InvalidKeyError, match="not of type ED25519"):
        verify_checkpoint(SIGNED, WITNESS_KEY, ORIGIN)
    with pytest.raises(InvalidKeyError, match="not of type COSIGNATURE_V1"):
        verify_checkpoint(SIGNED, LOG_KEY, ORIGIN, [LOG_KEY])


def test_an_origin_with_spaces_needs_a_key_name():
    with pytest.raises(InvalidKeyError):
        sign_checkpoint(Checkpoint("two words", 1, bytes(32)), LOG)


@pytest.mark.parametrize("place", range(len(COSIGNED)))
def test_any_altered_byte_is_refused(place):
    altered = bytearray(COSIGNED)
    altered[place] ^= 0x01
    # A witness line may become an unknown signer's: then its cosignature is missing.
    try:
        verified = verify_checkpoint(bytes(altered), LOG_KEY, ORIGIN, [WITNESS_KEY])
    except InvalidNoteError:
        return
    assert verified.cosignatures == ()


def test_an_origin_names_federation_and_genesis():
    origin = compute_origin("clinics", bytes(range(32)))
    assert origin == "folkmoot/clinics/" + bytes(range(32)).hex()
    assert parse_origin(origin) == ("clinics", bytes(range(32)))


@pytest.mark.parametrize(
    "origin",
    [
        "",
        "folkmoot/clinics",
        "folkmoot/clinics/",
        f"folkmoot/clinics/{'00' * 31}",
        f"folkmoot/clinics/{'00' * 33}",
        f"folkmoot/clinics/{'AB' * 32}",
        f"folkmoot/clinics/{'0g' * 32}",
        f"folkmoot/clinics/ {'00' * 32}",
        f"other/clinics/{'00' * 32}",
        "\u0660" * 64,
    ],
)
def test_texts_that_are_not_origins(origin):
    with pytest.raises(InvalidCheckpointError, match="names no federation"):
        parse_origin(origin)
