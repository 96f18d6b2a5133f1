"""Additive secret shares of an update and of what its commitments and proof need.

What an agent shares among P ≥ 2 parties, and in which group:

- modulo 2^64: the update x (d values), the four squares a of its norm proof, and the
  masks y of its projections (K values);
- modulo r, the order of the commitments' group: the blindings of the m rows, of the
  squares, of the masks and of the proof's mask commitment.

The shares of parties 0 to P-2 are expanded from a seed of 32 bytes each; the last
party's share is what remains, in full. Any P-1 of them are independent of the secrets:
without the last they are streams of AES-256-CTR under unrelated keys, and with it one
seed is missing whose stream hides everything. So all parties must collude.

With each share goes a public share commitment: to the share's row blindings, under an
opening that is in the share. It binds the party to them before anybody knows what they
will be asked about. `parse_share` checks it, and a share whose party cannot open its
commitment later is refused now.

Expansion of a seed: AES-256 in counter mode with the seed as its key; the initial block
is the stream's name, padded with zeros to 8 bytes, and 8 bytes of zeros. Stream "words"
gives x, a and y, 8 bytes each; stream "scalars" gives the blindings and the opening, 64
bytes each, reduced modulo r: r < 2^255, so they are within 2^-257 of uniform.

A share in plaintext, all integers little-endian:

    "folkmoot-share/v1" 0A | kind (u8) | d (u64) | m (u32) | body
    kind 0: the seed, 32 bytes
    kind 1: x, a, y (u64 each) | blindings, opening (32 bytes each, below r)

It deliberately knows neither keys (see `protocol.modes.mpc.sealing`) nor sums (see
`protocol.modes.mpc.share_link`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    SCALAR_SIZE,
    WIDE_SCALAR_SIZE,
    InvalidEncodingError,
    commit_scalars,
    encode_scalar,
    parse_point,
    parse_scalars,
)
from protocol.modes.mpc.norm_proof import NUM_SQUARES
from protocol.modes.mpc.norm_prover import ProverState
from protocol.modes.mpc.projections import NUM_PROJECTIONS, SEED_SIZE
from protocol.refusals import RefusedError

SHARE_MAGIC: Final = b"folkmoot-share/v1\n"
#: Blindings besides those of the rows: squares, masks, mask commitment.
NUM_OTHER_BLINDINGS: Final = 3
MIN_PARTIES: Final = 2

_KIND_SEED: Final = 0
_KIND_FULL: Final = 1
_SHAPE_SIZES: Final = (8, 4)  # d, m
_HEADER_SIZE: Final = len(SHARE_MAGIC) + 1 + sum(_SHAPE_SIZES)
WORD_SIZE: Final = 8
_WORD_MASK: Final = 2**64 - 1


class ShareRefusal(StrEnum):
    """Why a share can't count."""

    MALFORMED = "MALFORMED"
    WRONG_SHAPE = "WRONG_SHAPE"
    OUT_OF_RANGE = "OUT_OF_RANGE"
    WRONG_COMMITMENT = "WRONG_COMMITMENT"


class ShareRefusedError(RefusedError[ShareRefusal]):
    """What a party opened isn't its share of this update; never a bug of ours."""


@dataclass(frozen=True, slots=True)
class ShareShape:
    """What the shares of a round's updates have in common.

    Attributes:
        num_values: d, values in an update, at least 1.
        num_rows: m, rows of its commitment, at least 1.
    """

    num_values: int
    num_rows: int

    @property
    def num_words(self) -> int:
        """How many integers modulo 2^64 a share has."""
        return self.num_values + NUM_SQUARES + NUM_PROJECTIONS

    @property
    def num_scalars(self) -> int:
        """How many integers modulo r a share has, its opening included."""
        return self.num_rows + NUM_OTHER_BLINDINGS + 1

    def compute_max_plaintext_size(self) -> int:
        """Return the largest size of a share before sealing, in bytes."""
        body = self.num_words * WORD_SIZE + self.num_scalars * SCALAR_SIZE
        return _HEADER_SIZE + body


@dataclass(frozen=True, slots=True)
class DealtShare:
    """One party's share, as the agent makes it.

    Attributes:
        plaintext: To be sealed to the party. **Secret.**
        commitment: The public share commitment, 48 bytes.
    """

    plaintext: bytes = field(repr=False)
    commitment: bytes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Share:
    """One party's share, opened. **Secret:** everything; printing it shows nothing.

    Attributes:
        values: Its share of the update, shape (d,) uint64.
        squares: Of the four squares, shape (4,) uint64.
        masks: Of the masks, shape (K,) uint64.
        blindings: Of the blindings of rows, squares, masks and mask commitment, m + 3
            integers modulo r.
        opening: Of the share commitment, modulo r.
    """

    values: NDArray[np.uint64] = field(repr=False)
    squares: NDArray[np.uint64] = field(repr=False)
    masks: NDArray[np.uint64] = field(repr=False)
    blindings: tuple[int, ...] = field(repr=False)
    opening: int = field(repr=False)

    @property
    def row_blindings(self) -> tuple[int, ...]:
        """The blindings of the rows alone: what the share commitment binds."""
        return self.blindings[:-NUM_OTHER_BLINDINGS]


def split_update(
    state: ProverState, num_parties: int, entropy: Callable[[int], bytes]
) -> tuple[DealtShare, ...]:
    """Split an update among the parties.

    Args:
        state: What the agent committed to. **Secret.**
        num_parties: P, at least 2.
        entropy: Returns as many unpredictable bytes as asked; 32·(P-1) + 64 are taken.

    Returns:
        One share per party, in the federation's order of parties.

    Raises:
        ValueError: fewer than two parties; a bug.
    """
    if num_parties < MIN_PARTIES:
        raise ValueError(f"{num_parties} parties: one alone would see the update")
    shape = ShareShape(len(state.values), len(state.blindings) - NUM_OTHER_BLINDINGS)
    small = [value & _WORD_MASK for value in (*state.squares, *state.masks)]
    words = np.empty(shape.num_words, dtype=np.uint64)
    words[: shape.num_values] = state.values.view(np.uint64)
    words[shape.num_values :] = np.array(small, dtype=np.uint64)
    scalars = [*state.blindings, 0]
    dealt = []
    for _ in range(num_parties - 1):
        seed = entropy(SEED_SIZE)
        words -= _expand_words(seed, shape)
        seed_scalars = _expand_scalars(seed, shape)
        scalars = [a - b for a, b in zip(scalars, seed_scalars, strict=True)]
        plaintext = _encode_header(_KIND_SEED, shape) + seed
        dealt.append(DealtShare(plaintext, _commit(seed_scalars)))
    # The last opening is no remainder: each commitment is opened on its own.
    scalars[-1] = int.from_bytes(entropy(WIDE_SCALAR_SIZE), "little")
    scalars = [scalar % SCALAR_ORDER for scalar in scalars]
    plaintext = b"".join(
        (
            _encode_header(_KIND_FULL, shape),
            words.astype("<u8", copy=False).tobytes(),
            *map(encode_scalar, scalars),
        )
    )
    dealt.append(DealtShare(plaintext, _commit(scalars)))
    return tuple(dealt)


def parse_share(
    plaintext: bytes, *, shape: ShareShape, commitment: bytes | None
) -> Share:
    """Read the share that a party opened, or raise why it can't count.

    Args:
        plaintext: The sealed content; untrusted, and **secret** all the same.
        shape: The shape of the round's shares.
        commitment: The share commitment that the agent published, 48 bytes; None if
            these very bytes were checked before: that is most of the work.

    Returns:
        The share; it opens the commitment.

    Raises:
        ShareRefusedError: it is not a share of this shape, or not the one that the
            agent committed to.
    """
    if plaintext[: len(SHARE_MAGIC)] != SHARE_MAGIC or len(plaintext) < _HEADER_SIZE:
        raise ShareRefusedError(ShareRefusal.MALFORMED, "not a folkmoot-share/v1")
    kind, body = plaintext[len(SHARE_MAGIC)], plaintext[_HEADER_SIZE:]
    if kind not in {_KIND_SEED, _KIND_FULL}:
        raise ShareRefusedError(ShareRefusal.MALFORMED, f"of unknown kind {kind}")
    if plaintext[:_HEADER_SIZE] != _encode_header(kind, shape):
        detail = f"not of {shape.num_values} values and {shape.num_rows} rows"
        raise ShareRefusedError(ShareRefusal.WRONG_SHAPE, detail)
    body_size = (
        SEED_SIZE
        if kind == _KIND_SEED
        else shape.compute_max_plaintext_size() - _HEADER_SIZE
    )
    if len(body) != body_size:
        detail = f"a body of {len(body)} bytes, not {body_size}"
        raise ShareRefusedError(ShareRefusal.MALFORMED, detail)
    if kind == _KIND_SEED:
        words, scalars = _expand_words(body, shape), _expand_scalars(body, shape)
    else:
        words, scalars = _parse_body(body, shape)
    if commitment is not None:
        _demand_commitment(scalars, commitment)
    end = shape.num_values + NUM_SQUARES
    return Share(
        values=words[: shape.num_values],
        squares=words[shape.num_values : end],
        masks=words[end:],
        blindings=tuple(scalars[:-1]),
        opening=scalars[-1],
    )


def _demand_commitment(scalars: Sequence[int], commitment: bytes) -> None:
    if _commit(scalars) != commitment:
        detail = "its blindings are not those that the agent committed to"
        raise ShareRefusedError(ShareRefusal.WRONG_COMMITMENT, detail)
    try:
        parse_point(commitment)
    except InvalidEncodingError as error:  # all blindings are zero
        raise ShareRefusedError(ShareRefusal.WRONG_COMMITMENT, error.detail) from error


def _encode_header(kind: int, shape: ShareShape) -> bytes:
    numbers = zip((shape.num_values, shape.num_rows), _SHAPE_SIZES, strict=True)
    encoded = (number.to_bytes(size, "little") for number, size in numbers)
    return SHARE_MAGIC + bytes([kind]) + b"".join(encoded)


def _parse_body(body: bytes, shape: ShareShape) -> tuple[NDArray[np.uint64], list[int]]:
    begin = shape.num_words * WORD_SIZE
    words = np.frombuffer(body, dtype="<u8", count=shape.num_words).astype(np.uint64)
    try:
        return words, parse_scalars(body[begin:])
    except InvalidEncodingError as error:
        raise ShareRefusedError(ShareRefusal.OUT_OF_RANGE, error.detail) from error


def _expand(seed: bytes, stream: bytes, size: int) -> bytearray:
    counter = stream.ljust(8, b"\0") + bytes(8)
    encryptor = Cipher(algorithms.AES256(seed), modes.CTR(counter)).encryptor()
    expanded = bytearray(size)
    # In place: a second buffer of this size costs more than the cipher itself.
    encryptor.update_into(expanded, expanded)
    return expanded


def _expand_words(seed: bytes, shape: ShareShape) -> NDArray[np.uint64]:
    expanded = _expand(seed, b"words", shape.num_words * WORD_SIZE)
    return np.frombuffer(expanded, dtype="<u8").astype(np.uint64, copy=False)


def _expand_scalars(seed: bytes, shape: ShareShape) -> list[int]:
    expanded = _expand(seed, b"scalars", shape.num_scalars * WIDE_SCALAR_SIZE)
    wide = (
        expanded[begin : begin + WIDE_SCALAR_SIZE]
        for begin in range(0, len(expanded), WIDE_SCALAR_SIZE)
    )
    return [int.from_bytes(data, "little") % SCALAR_ORDER for data in wide]


def _commit(scalars: Sequence[int]) -> bytes:
    *blindings, opening = scalars
    return commit_scalars(blindings[:-NUM_OTHER_BLINDINGS], opening)
