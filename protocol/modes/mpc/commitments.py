"""Homomorphic vector commitments: Pedersen's, in the group G1 of BLS12-381.

A vector v with a blinding s is committed to by C = Σ v_j G_j + s H. Nobody knows a
relation between the generators, so C can't be opened to another vector, as long as
discrete logarithms are hard; s is uniform, so C never tells anybody anything about v.
Commitments add up as their vectors and blindings do.

- An update of d values is laid out as m rows of n columns, the last row padded with
  zeros, and committed to row by row: m points stand for d values.
- Generators come from hash-to-curve and depend only on their index: a short row's are
  the first of a long row's.
- Points travel compressed, 48 bytes (the encoding of Zcash's BLS12-381), scalars as 32
  bytes, little-endian. What was received is refused unless it is canonical, on the
  curve, in the subgroup of order r and not the identity: an honest commitment is the
  identity with probability 2^-255.
- An opening is checked by one random combination of all rows. Its coefficients are
  hashed from everything involved, so the verdict is the same for everybody.

It deliberately proves nothing about the content of commitments (see
`protocol.modes.mpc.norm_proof`), and makes no attempt at constant time: it runs where
the secret is.

Sources: Pedersen 1991; RFC 9380 (hash-to-curve, suite
BLS12381G1_XMD:SHA-256_SSWU_RO_); PRIVACY.md section 1.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from enum import StrEnum
from functools import cache
from itertools import accumulate, repeat
from typing import Final

import numpy as np
from numpy.typing import NDArray
from py_arkworks_bls12381 import G1Point, Scalar

from protocol.clipping import COMMITTED_LIMIT
from protocol.modes.mpc.limbs import LIMB_BITS, NUM_LIMBS, from_limbs, to_limbs
from protocol.refusals import RefusedError

#: r, the order of the group; draft-irtf-cfrg-pairing-friendly-curves section 4.2.1.
SCALAR_ORDER: Final = 0x73EDA753299D7D483339D80809A1D80553BDA402FFFE5BFEFFFFFFFF00000001
POINT_SIZE: Final = 48
SCALAR_SIZE: Final = 32
#: Bytes that are reduced to a scalar: within 2^-257 of uniform.
WIDE_SCALAR_SIZE: Final = 64
MIN_ROW_LENGTH: Final = 512
#: The suite's name ends the tag, as RFC 9380 section 3.1 recommends.
GENERATOR_DOMAIN: Final = b"folkmoot-commitments/v1 BLS12381G1_XMD:SHA-256_SSWU_RO_"

_BLINDING: Final = b"H"
_SCALAR: Final = b"U"
_OPENING_DOMAIN: Final = b"folkmoot-opening/v1\n"
#: A wrong opening, or a wrong sum of proofs, passes with the inverse of 2^128.
WEIGHT_SIZE: Final = 16
_WORD_BITS: Final = 32
_WORD_MASK: Final = 2**_WORD_BITS - 1
_WORD_LIMBS: Final = _WORD_BITS // LIMB_BITS
_ROWS_AT_ONCE: Final = 16
_LIMIT_BITS: Final = COMMITTED_LIMIT.bit_length() - 1  # = 19
#: Up to so many values, rows of so many columns. At each limit, verifying takes about
#: as long with the next longer row, whose proof is larger.
_ROW_LENGTHS: Final = (
    (30_000, 512),
    (150_000, 1024),
    (600_000, 2048),
    (1_500_000, 4096),
)
_LONGEST_ROW: Final = 8192


class RefusalReason(StrEnum):
    """Why a received point or scalar can't be used."""

    WRONG_SIZE = "WRONG_SIZE"
    NOT_ON_CURVE = "NOT_ON_CURVE"
    NOT_IN_SUBGROUP = "NOT_IN_SUBGROUP"
    IDENTITY = "IDENTITY"
    SCALAR_OUT_OF_RANGE = "SCALAR_OUT_OF_RANGE"


class InvalidEncodingError(RefusedError[RefusalReason]):
    """The bytes are no point or scalar; bad input, never a bug of ours."""


def choose_row_length(num_values: int) -> int:
    """Return the row length that commitments to d values use.

    Args:
        num_values: d, at least 1.

    Returns:
        n, a power of two, 512 to 8192: the shortest that is about as quick to prove and
        verify as any.
    """
    for limit, row_length in _ROW_LENGTHS:
        if num_values <= limit:
            return row_length
    return _LONGEST_ROW


def compute_num_rows(num_values: int, row_length: int) -> int:
    """Return m, the number of rows of n columns that hold d values."""
    return -(-num_values // row_length)


@cache
def get_generator(index: int) -> G1Point:
    """Return G_i, the generator of column i, counted from 0."""
    return _hash_to_curve(b"G" + index.to_bytes(4, "big"))


@cache
def get_blinding_generator() -> G1Point:
    """Return H, the generator of blindings."""
    return _hash_to_curve(_BLINDING)


@cache
def get_scalar_generator() -> G1Point:
    """Return U, the generator of scalars that are no part of a vector."""
    return _hash_to_curve(_SCALAR)


@cache
def get_generators(count: int) -> tuple[G1Point, ...]:
    """Return the generators of the first columns, at least 1.

    Costs 0.25 ms each the first time, and is remembered.
    """
    return tuple(map(get_generator, range(count)))


def to_scalar(value: int) -> Scalar:
    """Return an integer modulo r, as the curve library wants it."""
    return Scalar.from_le_bytes((value % SCALAR_ORDER).to_bytes(SCALAR_SIZE, "little"))


def encode_scalar(value: int) -> bytes:
    """Return an encoded integer modulo r: 32 bytes, little-endian."""
    return (value % SCALAR_ORDER).to_bytes(SCALAR_SIZE, "little")


def encode_point(point: G1Point) -> bytes:
    """Return an encoded point: compressed, 48 bytes."""
    return bytes(point.to_compressed_bytes())


def parse_scalar(data: bytes) -> int:
    """Return the scalar in 32 received bytes, 0 ≤ s < r.

    Raises:
        InvalidEncodingError: another size, or not below r.
    """
    if len(data) != SCALAR_SIZE:
        detail = f"a scalar of {len(data)} bytes, not {SCALAR_SIZE}"
        raise InvalidEncodingError(RefusalReason.WRONG_SIZE, detail)
    value = int.from_bytes(data, "little")
    if value >= SCALAR_ORDER:
        detail = "a scalar that is not below the group's order"
        raise InvalidEncodingError(RefusalReason.SCALAR_OUT_OF_RANGE, detail)
    return value


def parse_scalars(data: bytes) -> list[int]:
    """Return the scalars in received bytes, 32 each.

    Raises:
        InvalidEncodingError: as `parse_scalar`.
    """
    return [
        parse_scalar(data[begin : begin + SCALAR_SIZE])
        for begin in range(0, len(data), SCALAR_SIZE)
    ]


def parse_point(data: bytes) -> G1Point:
    """Return the point in 48 received bytes.

    Costs about 80 µs: a square root, and the test of the subgroup.

    Raises:
        InvalidEncodingError: another size; no canonical encoding of a point of the
            curve; outside the subgroup of order r; the identity.
    """
    if len(data) != POINT_SIZE:
        detail = f"a point of {len(data)} bytes, not {POINT_SIZE}"
        raise InvalidEncodingError(RefusalReason.WRONG_SIZE, detail)
    try:
        # The library refuses coordinates that are not below the field's modulus, so
        # that only the identity has more than one spelling.
        point = G1Point.from_compressed_bytes_unchecked(data)
    except ValueError as error:
        detail = "not the encoding of a point of the curve"
        raise InvalidEncodingError(RefusalReason.NOT_ON_CURVE, detail) from error
    if point == G1Point.identity():
        detail = "the identity, which no honest commitment is"
        raise InvalidEncodingError(RefusalReason.IDENTITY, detail)
    if not point.is_in_subgroup():
        detail = "a point outside the subgroup of order r"
        raise InvalidEncodingError(RefusalReason.NOT_IN_SUBGROUP, detail)
    return point


def parse_points(encoded: Iterable[bytes]) -> list[G1Point]:
    """Return the points in received bytes, 48 each.

    Raises:
        InvalidEncodingError: as `parse_point`; its detail says which one.
    """
    points = []
    for index, data in enumerate(encoded):
        try:
            points.append(parse_point(data))
        except InvalidEncodingError as error:
            detail = f"point {index}: {error.detail}"
            raise InvalidEncodingError(error.reason, detail) from error
    return points


def sum_products(points: Sequence[G1Point], scalars: Iterable[int]) -> G1Point:
    """Return Σ s_i P_i.

    Args:
        points: In the subgroup: computed here, or parsed.
        scalars: As many integers, taken modulo r.
    """
    wanted = [to_scalar(scalar) for scalar in scalars]
    if len(points) != len(wanted):  # the library would stop at the shorter one
        raise ValueError(f"{len(points)} points and {len(wanted)} scalars")
    return G1Point.multiexp_unchecked(list(points), wanted)


def commit_vector(scalars: Sequence[int], blinding: int) -> G1Point:
    """Commit to a vector over the field.

    Args:
        scalars: At least one, taken modulo r. **Secret.**
        blinding: Uniform modulo r. **Secret.**

    Returns:
        Σ v_j G_j + s H.
    """
    generators = get_generators(len(scalars))
    return sum_products(generators, scalars) + _multiply_fixed(_BLINDING, blinding)


def commit_scalars(scalars: Sequence[int], blinding: int) -> bytes:
    """Return `commit_vector`'s commitment, encoded in 48 bytes."""
    return encode_point(commit_vector(scalars, blinding))


def commit_scalar(value: int, blinding: int) -> bytes:
    """Commit to one scalar that is no part of a vector: v U + s H, 48 bytes.

    Args:
        value: Taken modulo r. **Secret.**
        blinding: Uniform modulo r. **Secret.**
    """
    point = _multiply_fixed(_SCALAR, value) + _multiply_fixed(_BLINDING, blinding)
    return encode_point(point)


def to_rows(values: NDArray[np.int64], row_length: int) -> NDArray[np.int64]:
    """Lay values out as rows, the last one padded with zeros.

    Args:
        values: shape (d,), d ≥ 1.
        row_length: n, at least 1.

    Returns:
        shape (m, n), a copy.
    """
    rows = np.zeros((compute_num_rows(len(values), row_length), row_length), np.int64)
    rows.reshape(-1)[: len(values)] = values
    return rows


def commit_rows(
    values: NDArray[np.int64],
    blindings: Sequence[int],
    *,
    row_length: int | None = None,
) -> tuple[bytes, ...]:
    """Commit to an update, row by row.

    Args:
        values: shape (d,) int64, |x| < 2^19, d ≥ 1. **Secret.**
        blindings: One per row, uniform modulo r. **Secret.**
        row_length: n; by default that of `choose_row_length`.

    Returns:
        The commitments, m times 48 bytes.

    Raises:
        ValueError: a value out of range, or not one blinding per row; a bug.
    """
    if values.dtype != np.int64 or values.ndim != 1 or not len(values):
        raise ValueError(f"not a vector of int64: {values.dtype}, shape {values.shape}")
    if max(int(values.max()), -int(values.min())) >= COMMITTED_LIMIT:
        msg = f"a value of 2^{_LIMIT_BITS} or more in magnitude: clip it first"
        raise ValueError(msg)
    rows = to_rows(values, row_length or choose_row_length(len(values)))
    return tuple(
        encode_point(_commit_small(row, blinding))
        for row, blinding in zip(rows, blindings, strict=True)
    )


def combine_points(encoded: Sequence[bytes], weights: Sequence[int]) -> bytes:
    """Add commitments up, each times an integer.

    Args:
        encoded: Commitments as received, at least one.
        weights: As many integers; 128 bits and more cost as much as any scalar.

    Returns:
        The commitment to the same combination of vectors and blindings.

    Raises:
        InvalidEncodingError: a commitment is unacceptable.
        ValueError: no commitment, or not one weight each; a bug.
    """
    if not encoded:
        raise ValueError("no commitments to combine")
    return encode_point(sum_products(parse_points(encoded), weights))


def combine_rows(
    updates: Sequence[Sequence[bytes]], weights: Sequence[int]
) -> tuple[bytes, ...]:
    """Add the commitments of several updates up, row by row.

    Args:
        updates: Each agent's m rows; at least one agent.
        weights: An integer per agent.

    Returns:
        The m rows of the weighted sum of the updates.

    Raises:
        InvalidEncodingError: a commitment is unacceptable.
        ValueError: updates with different numbers of rows, or as `combine_points`.
    """
    if not updates:
        raise ValueError("no commitments to combine")
    return tuple(combine_points(r, weights) for r in zip(*updates, strict=True))


def verify_opening(
    rows: Sequence[bytes],
    values: NDArray[np.int64],
    blindings: Sequence[int],
    *,
    row_length: int | None = None,
) -> bool:
    """Return whether values and blindings open commitments.

    Args:
        rows: The commitments, m points returned by `commit_rows` or `combine_rows`;
            otherwise untrusted.
        values: shape (d,) int64; untrusted.
        blindings: m integers, taken modulo r; untrusted.
        row_length: n; by default that of `choose_row_length`.

    Returns:
        False also if there are not m of each.

    Raises:
        InvalidEncodingError: a commitment is unacceptable.
    """
    length = row_length or choose_row_length(len(values))
    matrix = to_rows(values, length)
    if not len(matrix) == len(rows) == len(blindings) or not len(rows):
        return False
    blindings = [blinding % SCALAR_ORDER for blinding in blindings]
    weights = _hash_weights(rows, matrix, blindings)
    combined = _combine_words(weights, matrix)
    blinding = sum(w * s for w, s in zip(weights, blindings, strict=True))
    opened = commit_vector(combined, blinding)
    return opened == sum_products(parse_points(rows), weights)


def _hash_to_curve(name: bytes) -> G1Point:
    return G1Point.hash_to_curve(name, GENERATOR_DOMAIN)


@cache
def _compute_multiples(name: bytes) -> list[list[G1Point]]:
    """Return b · 256^i times a generator, for each byte b of a scalar."""
    base = _hash_to_curve(name)
    table = []
    for _ in range(SCALAR_SIZE):
        multiples = list(accumulate(repeat(base, 255), initial=G1Point.identity()))
        table.append(multiples)
        base += multiples[-1]
    return table


def _multiply_fixed(name: bytes, scalar: int) -> G1Point:
    # Only additions of known multiples: several times faster than the library, which
    # has to double its way through 255 bits.
    multiples = zip(_compute_multiples(name), encode_scalar(scalar), strict=True)
    return sum((row[byte] for row, byte in multiples), G1Point.identity())


def _commit_small(row: NDArray[np.int64], blinding: int) -> G1Point:
    # The library is fast for short scalars and treats negative ones as long: so shift
    # the row to x + 2^k, 2^k being beyond its largest value, and subtract 2^k Σ G. The
    # blinding, being long, would slow all others down: it is handled separately.
    bits = max(int(row.max()), -int(row.min())).bit_length()
    padded = np.zeros((len(row), SCALAR_SIZE // 8), dtype="<i8")
    padded[:, 0] = row + (1 << bits)
    data = padded.tobytes()
    scalars = [
        Scalar.from_le_bytes(data[begin : begin + SCALAR_SIZE])
        for begin in range(0, len(data), SCALAR_SIZE)
    ]
    shifted = G1Point.multiexp_unchecked(list(get_generators(len(row))), scalars)
    blinded = _multiply_fixed(_BLINDING, blinding)
    return shifted - _compute_shift(len(row), bits) + blinded


@cache
def _compute_shift(count: int, bits: int) -> G1Point:
    return sum_products(get_generators(count), [1 << bits] * count)


def _hash_weights(
    rows: Sequence[bytes], matrix: NDArray[np.int64], blindings: Sequence[int]
) -> list[int]:
    digest = hashlib.sha512(_OPENING_DOMAIN)
    for number in matrix.shape:
        digest.update(number.to_bytes(8, "little"))
    for row in rows:
        digest.update(row)
    digest.update(matrix.astype("<i8", copy=False).data)
    for blinding in blindings:
        digest.update(encode_scalar(blinding))
    stream = hashlib.shake_256(digest.digest()).digest(WEIGHT_SIZE * len(rows))
    return [
        int.from_bytes(stream[begin : begin + WEIGHT_SIZE], "little")
        for begin in range(0, len(stream), WEIGHT_SIZE)
    ]


def _combine_words(weights: Sequence[int], matrix: NDArray[np.int64]) -> list[int]:
    """Return Σ_i w_i x_i, an integer for each column."""
    # Words of 32 bits times digits of 16: with at most 2^4 rows at a time the sums stay
    # below 2^52, and those of all rows (fewer than 2^12) below 2^60.
    digits = to_limbs(weights)
    planes = np.zeros((NUM_LIMBS + _WORD_LIMBS, matrix.shape[1]), dtype=np.int64)
    for begin in range(0, len(matrix), _ROWS_AT_ONCE):
        chunk = digits[:, begin : begin + _ROWS_AT_ONCE].astype(np.float64)
        words = matrix[begin : begin + _ROWS_AT_ONCE]
        low = chunk @ (words & _WORD_MASK).astype(np.float64)
        high = chunk @ (words >> _WORD_BITS).astype(np.float64)
        planes[:NUM_LIMBS] += low.astype(np.int64)
        planes[_WORD_LIMBS:] += high.astype(np.int64)
    return from_limbs(planes)
