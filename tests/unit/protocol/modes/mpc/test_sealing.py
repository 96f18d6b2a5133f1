"""Sealed shares open for one party in one place, and nowhere else."""

import json
from dataclasses import replace

import pytest

from protocol.modes.mpc.sealing import (
    HYBRID_KEY_SIZE,
    InvalidSealingKeyError,
    SealedPlace,
    SealError,
    SealingKey,
    SealingSecretKey,
    open_share,
    seal_share,
)
from tests.paths import VECTORS
from tests.vectors.shares.generate import build_sealed, render, seal

FILE = VECTORS / "shares" / "sealed.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))

KEY = SealingSecretKey(b"k" * 32)
HYBRID = SealingSecretKey(b"k" * 32, is_hybrid=True)
OTHER = SealingSecretKey(b"o" * 32)
PLACE = SealedPlace(
    genesis=b"g" * 32,
    federation_id="fed",
    round=1,
    agent_id="a",
    party="p",
    statement_digest=b"d" * 32,
)
BOTH = pytest.mark.parametrize("key", [KEY, HYBRID], ids=["x25519", "hybrid"])


def parse_place(place):
    digests = {
        name: bytes.fromhex(place[name]) for name in ("genesis", "statement_digest")
    }
    return SealedPlace(**place | digests)


def test_the_generator_gives_the_vectors():
    assert render(build_sealed()) == FILE.read_text(encoding="utf-8")


def test_the_good_vector():
    key = SealingSecretKey(bytes.fromhex(VECTORS["secret"]))
    place = parse_place(VECTORS["place"])
    public_key = bytes.fromhex(VECTORS["public_key"])
    assert key.public_key.public_key == public_key
    assert place.compute_info(public_key).hex() == VECTORS["info"]
    opened = open_share(bytes.fromhex(VECTORS["sealed"]), key, place)
    assert opened.hex() == VECTORS["plaintext"]


@pytest.mark.parametrize("bad", VECTORS["bad"], ids=lambda bad: bad["name"])
def test_bad_vectors(bad):
    key = SealingSecretKey(bytes.fromhex(VECTORS["secret"]))
    with pytest.raises(SealError, match="not sealed to this key"):
        open_share(bytes.fromhex(bad["sealed"]), key, parse_place(bad["place"]))


@BOTH
@pytest.mark.parametrize("plaintext", [b"", b"share", bytes(100_000)])
def test_round_trip(key, plaintext):
    sealed = seal_share(plaintext, key.public_key, PLACE)
    assert open_share(sealed, key, PLACE) == plaintext
    overhead = 1136 if key is HYBRID else 48
    assert len(sealed) == len(plaintext) + overhead
    assert seal_share(plaintext, key.public_key, PLACE) != sealed


@BOTH
def test_every_changed_byte_is_found(key):
    sealed = seal_share(b"share", key.public_key, PLACE)
    for index in range(len(sealed)):
        changed = bytearray(sealed)
        changed[index] ^= 1 << index % 8
        with pytest.raises(SealError):
            open_share(bytes(changed), key, PLACE)


def test_a_sealed_share_has_one_spelling():
    # X25519 ignores the highest bit; HPKE hashes the bytes and does not.
    sealed = seal_share(b"share", KEY.public_key, PLACE)
    changed = sealed[:31] + bytes([sealed[31] ^ 0x80]) + sealed[32:]
    with pytest.raises(SealError):
        open_share(changed, KEY, PLACE)


@BOTH
@pytest.mark.parametrize("end", [0, 10, 32, 47, -1])
def test_what_is_cut_short_does_not_open(key, end):
    sealed = seal_share(b"share", key.public_key, PLACE)
    with pytest.raises(SealError):
        open_share(sealed[:end], key, PLACE)


@BOTH
@pytest.mark.parametrize(
    "elsewhere",
    [
        {"federation_id": "fee"},
        {"round": 2},
        {"agent_id": "b"},
        {"party": "q"},
        {"statement_digest": b"e" * 32},
        {"federation_id": "feda", "agent_id": ""},
        {"agent_id": "ap", "party": ""},
    ],
)
def test_elsewhere_it_does_not_open(key, elsewhere):
    sealed = seal_share(b"share", key.public_key, PLACE)
    with pytest.raises(SealError):
        open_share(sealed, key, replace(PLACE, **elsewhere))


@BOTH
def test_another_party_cannot_open_it(key):
    sealed = seal_share(b"share", key.public_key, PLACE)
    for other in (OTHER, SealingSecretKey(b"o" * 32, is_hybrid=True)):
        with pytest.raises(SealError):
            open_share(sealed, other, PLACE)


def test_the_key_is_bound_besides_the_encryption():
    info = PLACE.compute_info(OTHER.public_key.public_key)
    sealed = seal(b"share", KEY.public_key.public_key, info, b"e" * 32)
    assert KEY.open_sealed(sealed, info) == b"share"
    with pytest.raises(SealError):
        open_share(sealed, KEY, PLACE)


def test_both_kinds_of_keys_have_unrelated_halves():
    assert len(HYBRID.public_key.public_key) == HYBRID_KEY_SIZE == 1216
    assert HYBRID.public_key.public_key[-32:] != KEY.public_key.public_key


@pytest.mark.parametrize("size", [0, 31, 33, 1184, 1215, 1217])
def test_a_key_of_another_size_is_refused(size):
    with pytest.raises(InvalidSealingKeyError, match=rf"32 bytes .* not {size}"):
        SealingKey(b"\5" * size)


ORDER_EIGHT = "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"
SMALL_ORDER = [
    bytes(32),
    b"\1" + bytes(31),
    bytes.fromhex(ORDER_EIGHT),
    (2**255 - 20).to_bytes(32, "little"),
]


@pytest.mark.parametrize("prefix", [b"", HYBRID.public_key.public_key[:1184]])
@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point[:4].hex())
def test_keys_of_small_order_are_refused(prefix, point):
    with pytest.raises(InvalidSealingKeyError, match="small order"):
        SealingKey(prefix + point)


@pytest.mark.parametrize(
    "number", [2**255 - 19, 2**255 - 1, 2**255 + 9, 2**256 - 1], ids=hex
)
def test_a_key_has_one_spelling(number):
    with pytest.raises(InvalidSealingKeyError, match="one spelling"):
        SealingKey(number.to_bytes(32, "little"))


def test_an_ml_kem_key_must_be_one():
    with pytest.raises(InvalidSealingKeyError, match="ML-KEM-768"):
        SealingKey(b"\xff" * 1184 + KEY.public_key.public_key)


@pytest.mark.parametrize("size", [0, 31, 33])
@pytest.mark.parametrize("is_hybrid", [False, True])
def test_a_secret_of_another_size_is_refused_unseen(size, is_hybrid):
    with pytest.raises(InvalidSealingKeyError, match=f"32 bytes, not {size}") as caught:
        SealingSecretKey(b"S" * size, is_hybrid=is_hybrid)
    assert "SSS" not in str(caught.value)


@BOTH
def test_printing_a_secret_key_shows_the_public_one(key):
    shown = repr(key)
    assert key.public_key.public_key[-32:].hex() in shown
    assert key.secret == b"k" * 32
    assert "kkk" not in shown
    assert key.secret.hex() not in shown


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"statement_digest": b"short"}, "32 bytes, not 5"),
        ({"round": -1}, "round -1"),
        ({"round": 2**64}, "round 18446744073709551616"),
        ({"agent_id": "a" * 65_536}, "too long"),
    ],
)
def test_a_place_that_cannot_be_written_down(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PLACE, **change)


@BOTH
@pytest.mark.parametrize("point", SMALL_ORDER, ids=lambda point: point[:4].hex())
def test_an_encapsulated_key_of_small_order_opens_nothing(key, point):
    # Whatever the party's key is, all know what it would agree on with such a point.
    sealed = seal_share(b"share", key.public_key, PLACE)
    end = 1136 - 16 if key is HYBRID else 32
    for spelling in (point, point[:31] + bytes([point[31] ^ 0x80])):
        changed = sealed[: end - 32] + spelling + sealed[end:]
        with pytest.raises(SealError):
            open_share(changed, key, PLACE)


@BOTH
def test_what_is_longer_does_not_open(key):
    sealed = seal_share(b"share", key.public_key, PLACE)
    for changed in (sealed + b"\0", b"\0" + sealed, sealed + sealed):
        with pytest.raises(SealError):
            open_share(changed, key, PLACE)


def test_the_key_for_masks_is_no_other_key():
    keys = {key.derive_mask_key() for key in (KEY, HYBRID)}
    # Both are of one secret, which makes other keys of either kind.
    assert len(keys) == 1
    assert OTHER.derive_mask_key() not in keys
    assert keys.isdisjoint({KEY.secret, KEY.public_key.public_key})
    assert {len(key) for key in keys} == {32}
