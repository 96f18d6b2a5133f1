"""Updates as fixed-point integers: what agents send and aggregators sum.

An update is the difference between an agent's parameters after training and the
round's base model, scaled by 2^fractional_bits and rounded to integers. Integers add
exactly in any order; this module is the only place where a float becomes one.

- Encoding rounds half to even and refuses what doesn't fit: nothing is ever silently
  clipped or wrapped.
- An encoded value x satisfies |x| < 2^31: the range is symmetric, so that the negative
  of an update is an update.
- A blob from an agent is hostile until `parse_update` has returned.

It deliberately does not clip norms, add noise or hide anything.
"""

import math
from enum import StrEnum
from fractions import Fraction
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.refusals import RefusedError
from protocol.tensors import (
    VECTOR_HEADER_BYTES,
    MalformedBlobError,
    tensors_from_blob,
    tensors_to_blob,
)
from schemas import events as e

#: The one tensor in an update's blob.
UPDATE_TENSOR: Final = "update"
#: Encoded values are less than this in magnitude.
ENCODED_LIMIT: Final = 2**31  # = 2,147,483,648
#: With more, not even 1.0 could be encoded.
MAX_FRACTIONAL_BITS: Final = 30

MAX_SHRUNK_TIMES: Final = 10
MAX_ZEROED: Final = Fraction(5, 100)

MILLION: Final = 1_000_000
"""Numbers that are not summed travel as integers of millionths."""
_LONG: Final = 2**63
_MOST_TIMES: Final = 10**18


def compute_micros(value: float) -> int | None:
    """Return a number in millionths, rounded; None if no Avro ``long`` holds it."""
    if not math.isfinite(value) or abs(value) * 1e6 >= _LONG:
        return None
    return round(value * 1e6)


class NotFiniteError(ValueError):
    """The update holds a NaN or an infinity: the training diverged."""


class OutOfRangeError(ValueError):
    """A value doesn't fit the fixed-point range."""


class RefusalReason(StrEnum):
    """Why an update's blob can't count."""

    MALFORMED_BLOB = "MALFORMED_BLOB"
    WRONG_SHAPE = "WRONG_SHAPE"
    WRONG_DTYPE = "WRONG_DTYPE"
    NOT_FINITE = "NOT_FINITE"
    OUT_OF_RANGE = "OUT_OF_RANGE"


class UpdateRefusedError(RefusedError[RefusalReason]):
    """An agent's blob isn't an update of this round; bad input, never a bug of ours."""


def encode_update(
    delta: NDArray[np.floating[Any]], fractional_bits: int
) -> NDArray[np.int32]:
    """Turn a difference of parameters into fixed-point integers.

    Args:
        delta: shape (d,), any floating-point type.
        fractional_bits: The federation's precision, 0 ≤ f ≤ 30. A value is encoded in
            steps of 2^-f and must be less than 2^(31-f) in magnitude.

    Returns:
        shape (d,) int32, |x| < 2^31: delta times 2^f, rounded half to even.

    Raises:
        NotFiniteError: `delta` contains a NaN or an infinity.
        OutOfRangeError: A value too large to encode.
        ValueError: `fractional_bits` out of range; a bug.
    """
    check_fractional_bits(fractional_bits)
    scaled = delta.astype(np.float64)  # a copy; exact, and so is the scaling
    if not np.isfinite(scaled).all():
        index = int(np.argmin(np.isfinite(scaled)))
        raise NotFiniteError(f"parameter {index} of the update is {scaled[index]}")
    with np.errstate(over="ignore"):  # infinite is out of range as well
        np.multiply(scaled, 2.0**fractional_bits, out=scaled)
    np.rint(scaled, out=scaled)
    too_large = np.abs(scaled) >= ENCODED_LIMIT
    if too_large.any():
        index = int(np.argmax(too_large))
        raise OutOfRangeError(
            f"parameter {index} of the update is {delta[index]:g}, beyond "
            f"±2^{31 - fractional_bits} for {fractional_bits} fractional bits"
        )
    return scaled.astype(np.int32)


def update_to_blob(update: NDArray[np.int32]) -> bytes:
    """Write an encoded update as a canonical safetensors file.

    Args:
        update: shape (d,) int32, as `encode_update` returns.

    Returns:
        A file with the one tensor "update", of type I32.

    Raises:
        ValueError: Not an int32 vector; a bug.
    """
    if update.dtype != np.int32 or update.ndim != 1:
        msg = f"not an int32 vector: {update.dtype}, {update.ndim} dimensions"
        raise ValueError(msg)
    return tensors_to_blob({UPDATE_TENSOR: update})


def parse_update(blob: bytes, *, num_parameters: int) -> NDArray[np.int32]:
    """Read an agent's update, or raise why it can't count.

    Args:
        blob: The agent's blob, digest verified; otherwise untrusted.
        num_parameters: d, from the federation's model.

    Returns:
        shape (d,) int32, |x| < 2^31; a read-only view into `blob`.

    Raises:
        UpdateRefusedError: It isn't an update for this model. Its reason is the first
            that applies: malformed, not finite, wrong type, wrong shape, out of range.
    """
    try:
        tensors = tensors_from_blob(blob, max_header_bytes=VECTOR_HEADER_BYTES)
    except MalformedBlobError as error:
        raise UpdateRefusedError(RefusalReason.MALFORMED_BLOB, str(error)) from error
    if tensors.keys() != {UPDATE_TENSOR}:
        detail = f"{len(tensors)} tensors, not just one named {UPDATE_TENSOR!r}"
        raise UpdateRefusedError(RefusalReason.MALFORMED_BLOB, detail)
    update = tensors[UPDATE_TENSOR]
    if np.issubdtype(update.dtype, np.floating) and not np.isfinite(update).all():
        detail = "a float tensor with NaNs or infinities"
        raise UpdateRefusedError(RefusalReason.NOT_FINITE, detail)
    if update.dtype != np.int32:
        detail = f"of type {update.dtype}, not int32"
        raise UpdateRefusedError(RefusalReason.WRONG_DTYPE, detail)
    if update.shape != (num_parameters,):
        detail = f"of shape {update.shape}, not ({num_parameters},)"
        raise UpdateRefusedError(RefusalReason.WRONG_SHAPE, detail)
    if (update == -ENCODED_LIMIT).any():
        detail = "a value of -2^31; the range is symmetric"
        raise UpdateRefusedError(RefusalReason.OUT_OF_RANGE, detail)
    return update


def compute_encoding_loss(
    delta: NDArray[np.floating[Any]],
    integers: NDArray[np.signedinteger[Any]],
    *,
    shrunk_by: float = 1.0,
) -> e.EncodingLoss | None:
    """Return what encoding an update lost; None if that is not worth saying.

    Worth saying are updates that clipping made more than `MAX_SHRUNK_TIMES` shorter, or
    in which more than `MAX_ZEROED` of the values that changed are sent as zero.

    Args:
        delta: shape (d,), finite: how far training moved the trained values.
            **Secret** in some modes.
        integers: shape (d,): the same, encoded.
        shrunk_by: How many times shorter clipping made it, at least 1.
    """
    num_changed = int(np.count_nonzero(delta))
    num_zeroed = int(np.count_nonzero((integers == 0) & (delta != 0)))
    if shrunk_by <= MAX_SHRUNK_TIMES and num_zeroed <= MAX_ZEROED * num_changed:
        return None
    return e.EncodingLoss(
        shrunk_times=int(min(shrunk_by, _MOST_TIMES)),
        zeroed_percent=100 * num_zeroed // max(1, num_changed),
    )


def check_fractional_bits(fractional_bits: int) -> None:
    """Check that a federation's precision is one; a bug if not."""
    if not 0 <= fractional_bits <= MAX_FRACTIONAL_BITS:
        msg = f"{fractional_bits} fractional bits, not 0 to {MAX_FRACTIONAL_BITS}"
        raise ValueError(msg)
