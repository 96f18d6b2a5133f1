"""Ed25519 as in RFC 8032, and nothing that merely looks like it."""

import hashlib

import pytest

from ledger.signing import InvalidSignatureError, SigningKey, verify_signature

SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
KEY = SigningKey(SEED)
MESSAGE = b"the log is the truth"
SIGNATURE = KEY.sign(MESSAGE)
ORDER = 2**252 + 27742317777372353535851937790883648493  # RFC 8032 section 5.1

# All points of small order, in the encodings with the y coordinate reduced.
SMALL_ORDER_KEYS = [
    "0100000000000000000000000000000000000000000000000000000000000000",  # identity
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",  # order 2
    "0000000000000000000000000000000000000000000000000000000000000000",  # order 4
    "0000000000000000000000000000000000000000000000000000000000000080",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",  # order 8
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]


def test_rfc_8032_test_1():
    assert KEY.public_key.hex() == (
        "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    )
    assert KEY.sign(b"").hex() == (
        "e5564300c360ac729086e2cc806e828a84877f1eb8e5d974d873e06522490155"
        "5fb8821590a33bacc61e39701cf9b46bd25bf5f0595bbe24655141438e7a100b"
    )
    verify_signature(KEY.public_key, b"", KEY.sign(b""))


def test_the_key_is_not_in_its_picture():
    for picture in (repr(KEY), str(KEY), f"{KEY}"):
        assert SEED.hex() not in picture
        assert repr(SEED) not in picture
        assert KEY.public_key.hex() in picture


def test_keys_are_equal_by_seed():
    assert SigningKey(SEED) == KEY
    assert hash(SigningKey(SEED)) == hash(KEY)
    assert SigningKey(bytes(32)) != KEY
    assert KEY != SEED
    assert KEY.seed == SEED


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_a_seed_is_32_bytes(size):
    with pytest.raises(ValueError, match=f"not {size}"):
        SigningKey(bytes(size))


@pytest.mark.parametrize("bit", range(0, 512, 7))
def test_any_flipped_bit_of_the_signature_is_refused(bit):
    flipped = bytearray(SIGNATURE)
    flipped[bit // 8] ^= 1 << bit % 8
    with pytest.raises(InvalidSignatureError, match="not a signature"):
        verify_signature(KEY.public_key, MESSAGE, bytes(flipped))


def test_another_message_or_key_is_refused():
    with pytest.raises(InvalidSignatureError):
        verify_signature(KEY.public_key, MESSAGE + b".", SIGNATURE)
    with pytest.raises(InvalidSignatureError):
        verify_signature(SigningKey(bytes(32)).public_key, MESSAGE, SIGNATURE)


@pytest.mark.parametrize("size", [0, 31, 33])
def test_a_public_key_is_32_bytes(size):
    key = (KEY.public_key + bytes(1))[:size]
    with pytest.raises(InvalidSignatureError, match=f"not {size}"):
        verify_signature(key, MESSAGE, SIGNATURE)


@pytest.mark.parametrize("size", [0, 63, 65])
def test_bytes_cannot_move_between_signature_and_message(size):
    joined = SIGNATURE + MESSAGE
    with pytest.raises(InvalidSignatureError, match=f"not {size}"):
        verify_signature(KEY.public_key, joined[size:], joined[:size])


@pytest.mark.parametrize("key", SMALL_ORDER_KEYS)
def test_no_key_of_small_order_signs(key):
    # For the equation s B = R + h A, with A of small order: R = s B makes it true for
    # every message if A is the identity, for one in 2, 4 or 8 otherwise.
    scalar = bytearray(hashlib.sha512(SEED).digest()[:32])  # RFC 8032 section 5.1.5
    scalar[0] &= 0b1111_1000
    scalar[31] = scalar[31] & 0b0011_1111 | 0b0100_0000
    s = int.from_bytes(scalar, "little") % ORDER
    forged = KEY.public_key + s.to_bytes(32, "little")
    for number in range(64):
        with pytest.raises(InvalidSignatureError, match="not a signature"):
            verify_signature(bytes.fromhex(key), bytes([number]), forged)


@pytest.mark.parametrize("commitment", SMALL_ORDER_KEYS)
def test_no_commitment_of_small_order_is_taken(commitment):
    forged = bytes.fromhex(commitment) + bytes(32)
    with pytest.raises(InvalidSignatureError, match="not a signature"):
        verify_signature(bytes.fromhex(SMALL_ORDER_KEYS[0]), MESSAGE, forged)


def test_a_signature_has_one_form_only():
    scalar = int.from_bytes(SIGNATURE[32:], "little") + ORDER
    malleated = SIGNATURE[:32] + scalar.to_bytes(32, "little")
    with pytest.raises(InvalidSignatureError):
        verify_signature(KEY.public_key, MESSAGE, malleated)
