"""Aggregation `plain`: from the blobs of a sealed round to the next global model.

The aggregator runs this once; every auditor runs it again and compares digests.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import Accumulator, sum_to_blob
from protocol.encoding import parse_update
from protocol.strategies import fedavg
from protocol.tensors import (
    MODEL_HEADER_BYTES,
    VECTOR_HEADER_BYTES,
    flatten,
    manifest_of,
    tensors_from_blob,
    tensors_to_blob,
    unflatten,
)
from schemas.events import RoundSealed


def compute_max_update_size(num_parameters: int) -> int:
    """Return the most bytes that an update's blob may have."""
    return 4 * num_parameters + VECTOR_HEADER_BYTES


def compute_max_sum_size(num_parameters: int) -> int:
    """Return the most bytes that a sum's blob may have."""
    return 8 * num_parameters + VECTOR_HEADER_BYTES


def compute_max_model_size(num_parameters: int) -> int:
    """Return the most bytes that a model's blob may have."""
    return 4 * num_parameters + MODEL_HEADER_BYTES


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a sealed round determines, bit for bit."""

    sum_blob: bytes
    model_blob: bytes


def compute_result(
    sealed: RoundSealed,
    weights: Iterable[int],
    base_blob: bytes,
    update_blobs: Iterable[bytes],
) -> RoundResult:
    """Add up a sealed round and apply the sum to its base model (FedAvg).

    Args:
        sealed: The round.
        weights: The num_examples of its contributions, in their order.
        base_blob: The base model's blob, digest verified.
        update_blobs: The blobs of its contributions, in their order, digests
            verified; read one at a time.

    Raises:
        UpdateRefusedError: a blob is not an update for this model: it should not have
            been accepted.
        MalformedBlobError: the base model is not one.
    """
    accumulator = Accumulator(sealed.num_parameters)
    for weight, blob in zip(weights, update_blobs, strict=True):
        update = parse_update(blob, num_parameters=sealed.num_parameters)
        accumulator.add(update, weight)
    return apply_sum(accumulator.total, sealed, base_blob)


def apply_sum(
    total: NDArray[np.int64], sealed: RoundSealed, base_blob: bytes
) -> RoundResult:
    """Apply a sealed round's exact sum to its base model (FedAvg).

    Args:
        total: shape (d,) int64.
        sealed: The round.
        base_blob: The base model's blob, digest verified.

    Raises:
        MalformedBlobError: the base model is not one.
    """
    base = tensors_from_blob(base_blob)
    manifest = manifest_of(base)
    parameters = fedavg(
        flatten(base, manifest), total, sealed.num_examples, sealed.fractional_bits
    )
    return RoundResult(
        sum_blob=sum_to_blob(total),
        model_blob=tensors_to_blob(unflatten(parameters, manifest)),
    )
