"""Shares add up to what was split, show nothing alone, and have one spelling."""

import json
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from protocol.modes.mpc.commitments import SCALAR_ORDER, commit_scalars
from protocol.modes.mpc.norm_proof import NUM_PROJECTIONS, NUM_SQUARES
from protocol.modes.mpc.shares import (
    ShareRefusal,
    ShareRefusedError,
    ShareShape,
    parse_share,
    split_update,
)
from tests.paths import VECTORS
from tests.vectors.shares.generate import (
    HEADER_SIZE,
    SeededEntropy,
    build_shares,
    make_secrets,
    render,
)

FILE = VECTORS / "shares" / "shares.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))
SHAPE = ShareShape(VECTORS["num_values"], VECTORS["num_rows"])


def open_all(dealt, shape=SHAPE):
    return [
        parse_share(share.plaintext, shape=shape, commitment=share.commitment)
        for share in dealt
    ]


def add_up(shares):
    """Return the secrets as signed integers, and the sums modulo r."""
    words = [
        np.concatenate([share.values, share.squares, share.masks]) for share in shares
    ]
    blindings = zip(*(share.blindings for share in shares), strict=True)
    return (
        [
            (sum(map(int, column)) + 2**63) % 2**64 - 2**63
            for column in zip(*words, strict=True)
        ],
        [sum(column) % SCALAR_ORDER for column in blindings],
    )


def signed(values):
    return [(int(value) + 2**63) % 2**64 - 2**63 for value in values]


def test_the_generator_gives_the_vectors():
    assert render(build_shares()) == FILE.read_text(encoding="utf-8")


def test_good_vectors_add_up():
    shares = [
        parse_share(
            bytes.fromhex(good["plaintext"]),
            shape=SHAPE,
            commitment=bytes.fromhex(good["commitment"]),
        )
        for good in VECTORS["good"]
    ]
    secrets = VECTORS["secrets"]
    words, blindings = add_up(shares)
    assert words == signed(secrets["values"] + secrets["squares"] + secrets["masks"])
    assert [b.to_bytes(32, "little").hex() for b in blindings] == secrets["blindings"]
    assert [good["kind"] for good in VECTORS["good"]] == ["seed", "seed", "full"]


@pytest.mark.parametrize("bad", VECTORS["bad"], ids=lambda bad: bad["name"])
def test_bad_vectors(bad):
    with pytest.raises(ShareRefusedError) as caught:
        parse_share(
            bytes.fromhex(bad["plaintext"]),
            shape=SHAPE,
            commitment=bytes.fromhex(bad["commitment"]),
        )
    assert caught.value.reason == bad["reason"]
    assert str(caught.value) == f"{bad['reason']}: {caught.value.detail}"


def test_the_vectors_have_every_reason():
    assert {bad["reason"] for bad in VECTORS["bad"]} == set(ShareRefusal)


def test_a_seed_is_expanded_as_described():
    seed = bytes(range(32))
    header = b"folkmoot-share/v1\n\0" + (5).to_bytes(8, "little") + b"\2\0\0\0"

    def stream(name, size):
        counter = name.ljust(8, b"\0") + bytes(8)
        cipher = Cipher(algorithms.AES(seed), modes.CTR(counter))
        return cipher.encryptor().update(bytes(size))

    words = np.frombuffer(stream(b"words", (5 + 4 + 309) * 8), "<u8").tolist()
    wide = stream(b"scalars", 6 * 64)
    scalars = [
        int.from_bytes(wide[64 * i : 64 * i + 64], "little") % SCALAR_ORDER
        for i in range(6)
    ]
    commitment = commit_scalars(scalars[:2], scalars[5])
    share = parse_share(header + seed, shape=SHAPE, commitment=commitment)
    assert share.values.tolist() == words[:5]
    assert share.squares.tolist() == words[5:9]
    assert share.masks.tolist() == words[9:]
    assert share.blindings == tuple(scalars[:5])
    assert share.row_blindings == tuple(scalars[:2])
    assert share.opening == scalars[5]


@pytest.mark.parametrize("num_parties", [2, 3, 5])
def test_any_number_of_parties(num_parties):
    secrets = make_secrets(7, 300, 3)
    dealt = split_update(secrets, num_parties, SeededEntropy(7))
    words, blindings = add_up(open_all(dealt, ShareShape(300, 3)))
    assert words == signed([*secrets.values, *secrets.squares, *secrets.masks])
    assert blindings == list(secrets.blindings)
    sizes = [len(share.plaintext) for share in dealt]
    assert sizes[:-1] == [HEADER_SIZE + 32] * (num_parties - 1)
    assert sizes[-1] == ShareShape(300, 3).compute_max_plaintext_size()
    assert len({share.commitment for share in dealt}) == num_parties


@pytest.mark.parametrize("missing", [0, 1, 2])
def test_shares_without_one_are_uniform(missing):
    # χ² over 256 classes of bytes, of an update that is all zeros: what shows in the
    # sum of the others would show the update. 255 degrees of freedom exceed 347 with
    # probability 1e-4; each of the 8 bytes of a word has its own test.
    shape = ShareShape(20_000, 1)
    secrets = replace(
        make_secrets(1, *(20_000, 1)), values=np.zeros(20_000, dtype=np.int64)
    )
    shares = open_all(split_update(secrets, 3, SeededEntropy("chi")), shape)
    others = [share.values for i, share in enumerate(shares) if i != missing]
    for vector in (*others, others[0] + others[1], others[0] - others[1]):
        columns = vector.astype("<u8").view(np.uint8).reshape(-1, 8)
        for column in columns.T:
            counts = np.bincount(column, minlength=256)
            expected = len(column) / 256
            assert ((counts - expected) ** 2 / expected).sum() < 347


def test_blindings_without_one_are_unrelated_to_the_secret():
    zeros = replace(make_secrets(1, 5, 200), blindings=(0,) * 203)
    shares = open_all(split_update(zeros, 2, SeededEntropy(1)), ShareShape(5, 200))
    for share in shares:
        high = np.array([b * 16 // SCALAR_ORDER for b in share.blindings])
        counts = np.bincount(high, minlength=16)
        # 15 degrees of freedom exceed 44 with probability 1e-4.
        assert ((counts - 203 / 16) ** 2 / (203 / 16)).sum() < 44


def test_every_changed_byte_of_a_seed_share_is_found():
    dealt = split_update(make_secrets(1), 2, SeededEntropy(1))[0]
    for index in range(len(dealt.plaintext)):
        changed = bytearray(dealt.plaintext)
        changed[index] ^= 1 << index % 8
        with pytest.raises(ShareRefusedError):
            parse_share(bytes(changed), shape=SHAPE, commitment=dealt.commitment)


def test_every_changed_byte_of_a_commitment_is_found():
    dealt = split_update(make_secrets(1), 2, SeededEntropy(1))[0]
    for index in range(48):
        changed = bytearray(dealt.commitment)
        changed[index] ^= 1 << index % 8
        with pytest.raises(ShareRefusedError, match="WRONG_COMMITMENT"):
            parse_share(dealt.plaintext, shape=SHAPE, commitment=bytes(changed))


def test_changed_bytes_of_a_full_share_are_found_or_change_a_word():
    # The share commitment binds row blindings and opening; the words and the other
    # blindings are bound by the link, and all of it by the seal.
    dealt = split_update(make_secrets(1), 2, SeededEntropy(1))[1]
    (share,) = open_all([dealt])
    words_end = HEADER_SIZE + SHAPE.num_words * 8
    rows_end = words_end + SHAPE.num_rows * 32
    words = range(HEADER_SIZE, words_end, 7)
    rest = range(words_end, len(dealt.plaintext))
    for index in (*range(HEADER_SIZE), *words, *rest):
        changed = bytearray(dealt.plaintext)
        changed[index] ^= 1
        is_bound = not HEADER_SIZE <= index < words_end and not (
            rows_end <= index < len(changed) - 32
        )
        try:
            other = parse_share(
                bytes(changed), shape=SHAPE, commitment=dealt.commitment
            )
        except ShareRefusedError:
            continue
        assert not is_bound
        assert add_up([other]) != add_up([share])


@pytest.mark.parametrize("num_parties", [-1, 0, 1])
def test_one_party_would_see_the_update(num_parties):
    with pytest.raises(ValueError, match=f"{num_parties} parties"):
        split_update(make_secrets(1), num_parties, SeededEntropy(1))


def test_extreme_secrets_are_shared_modulo_2_64():
    secrets = replace(
        make_secrets(1),
        values=np.array([2**19 - 1, -(2**19) + 1]),
        squares=(0, 1, 2**63, 2**64 - 1),
        masks=(0,) + (2**113, -(2**113)) * 154,
        blindings=(0, SCALAR_ORDER - 1, 1, 2),
    )
    dealt = split_update(secrets, 4, SeededEntropy(1))
    words, blindings = add_up(open_all(dealt, ShareShape(2, 1)))
    assert words == signed([*secrets.values, *secrets.squares, *secrets.masks])
    assert blindings == list(secrets.blindings)
    assert (NUM_SQUARES, NUM_PROJECTIONS) == (4, 309)


def test_printing_shows_no_secret():
    secrets = make_secrets(1)
    dealt = split_update(secrets, 2, SeededEntropy(1))
    assert repr(open_all(dealt)[0]) == "Share()"
    shown = repr(dealt[0])
    assert shown == f"DealtShare(commitment={dealt[0].commitment!r})"


def test_refusals_show_no_secret():
    dealt = split_update(make_secrets(1), 2, SeededEntropy(1))[1]
    opening = SCALAR_ORDER + 12_345
    plaintext = dealt.plaintext[:-32] + opening.to_bytes(32, "little")
    with pytest.raises(ShareRefusedError, match="OUT_OF_RANGE") as caught:
        parse_share(plaintext, shape=SHAPE, commitment=dealt.commitment)
    assert str(opening) not in str(caught.value)
    assert f"{opening:x}" not in str(caught.value)
