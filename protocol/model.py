"""From a sealed round's blobs, or from their sum, to the next global model.

The aggregator runs this once; every auditor runs it again and compares digests.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.aggregation import Accumulator, sum_to_blob
from protocol.averaged_apart import apply_average
from protocol.encoding import parse_update
from protocol.exchanged_state import (
    RefusedStateError,
    model_from_blob,
    model_to_blob,
)
from protocol.strategies import STRATEGIES, move, read_parameters
from protocol.strategies.state import start_moments, state_from_blob, state_to_blob
from protocol.tensors import VECTOR_HEADER_BYTES
from schemas.events import BlobRef, RoundSealed, StrategyParameter

MAX_ONNX_SIZE_BYTES: Final = 2**31
"""Protocol Buffers, and so ONNX files, cannot be larger."""
_PADDING_BYTES: Final = 8


def compute_max_update_size(num_parameters: int) -> int:
    """Return the largest size of an update's blob, in bytes."""
    return 4 * num_parameters + VECTOR_HEADER_BYTES


def compute_max_sum_size(num_parameters: int) -> int:
    """Return the largest size of a sum's blob, in bytes."""
    return 8 * num_parameters + VECTOR_HEADER_BYTES


def compute_max_state_size(strategy: str, num_parameters: int) -> int:
    """Return the largest size of the blob of what a strategy carries, in bytes."""
    return 8 * len(STRATEGIES[strategy].moments) * num_parameters + VECTOR_HEADER_BYTES


def compute_max_model_size(initial_model: BlobRef) -> int:
    """Return the largest size of the blob of a federation's model, in bytes.

    All its models have the same entries; only the first one's author may have left out
    the spaces that end a canonical header.
    """
    return initial_model.size_bytes + _PADDING_BYTES


@dataclass(frozen=True, slots=True)
class RoundResult:
    """What a sealed round determines, bit for bit."""

    sum_blob: bytes
    model_blob: bytes
    state_blob: bytes | None = None
    """What the strategy carries into the next round; None if it carries nothing."""


class Base(NamedTuple):
    """What a round's sum is applied to: blobs, digests verified.

    Attributes:
        model: The base model.
        state: What the strategy carried out of the last published round; None before
            any, and if it carries nothing.
    """

    model: bytes
    state: bytes | None = None


def compute_result(
    strategy: str,
    sealed: RoundSealed,
    weights: Iterable[int],
    base_blob: bytes,
    update_blobs: Iterable[bytes],
    *,
    parameters: Sequence[StrategyParameter] = (),
    state_blob: bytes | None = None,
) -> RoundResult:
    """Add up a sealed round and apply the sum to its base model.

    Args:
        strategy: Makes a model of the sum, one of `STRATEGIES`.
        sealed: The round.
        weights: Its contributions' num_examples, in order.
        base_blob: The base model's blob, digest verified.
        update_blobs: Its contributions' blobs, in order, digests verified; read one at
            a time.
        parameters: The strategy's, as the configuration has them.
        state_blob: What the strategy carries, digest verified; see `Base`.

    Raises:
        UpdateRefusedError: a blob is no update for this model and should not have been
            accepted.
        MalformedBlobError: the base model is malformed, or its state is refused, or
            what the strategy carries is no state of its.
    """
    accumulator = Accumulator(sealed.num_parameters)
    for weight, blob in zip(weights, update_blobs, strict=True):
        update = parse_update(blob, num_parameters=sealed.num_parameters)
        accumulator.add(update, weight)
    return apply_sum(
        strategy,
        accumulator.total,
        sealed,
        base_blob,
        parameters=parameters,
        state_blob=state_blob,
    )


def apply_sum(
    strategy: str,
    total: NDArray[np.int64],
    sealed: RoundSealed,
    base_blob: bytes,
    *,
    parameters: Sequence[StrategyParameter] = (),
    state_blob: bytes | None = None,
) -> RoundResult:
    """Apply a sealed round's exact sum to its base model.

    Args:
        strategy: Makes a model of the sum, one of `STRATEGIES`.
        total: shape (d,) int64: the trained values' sum, then that of what is averaged
            apart, which no strategy changes.
        sealed: The round.
        base_blob: The base model's blob, digest verified.
        parameters: The strategy's, as the configuration has them.
        state_blob: What the strategy carries, digest verified; see `Base`.

    Raises:
        MalformedBlobError: the base model is malformed, or its state is refused, or
            what the strategy carries is no state of its.
    """
    base = model_from_blob(base_blob)
    if base.num_integers != len(total):
        msg = f"updates of the base model have {base.num_integers} integers, not "
        raise RefusedStateError(msg + str(len(total)))
    before, chosen = base.to_vector(), STRATEGIES[strategy]
    numbers = read_parameters(chosen, parameters)
    trained, moments = move(
        chosen,
        before,
        total[: len(before)],
        num_examples=sealed.num_examples,
        fractional_bits=sealed.fractional_bits,
        parameters=numbers,
        moments=start_moments(chosen, numbers, len(before))
        if state_blob is None
        else state_from_blob(chosen, state_blob, len(before)),
        num_weighted_steps=sealed.num_weighted_steps,
    )
    averaged = apply_average(
        base.to_averaged(), total[len(before) :], sealed.num_examples
    )
    return RoundResult(
        sum_blob=sum_to_blob(total),
        model_blob=model_to_blob(base.replace_moved(trained, averaged)),
        state_blob=state_to_blob(chosen, moments) if moments else None,
    )
