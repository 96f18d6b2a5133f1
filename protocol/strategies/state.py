"""What a strategy carries from one round to the next, as a blob.

A canonical safetensors file with one float64 tensor for each moment. Facts name it by
digest (`AggregatePublished`, `RoundSealed`); whoever computes a round starts from it.
Its author may have lied, so a reader checks every value's range, from which it follows
that no step leaves float32 (`protocol.strategies.strategy`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from protocol.strategies.strategy import Parameters, Strategy, Vector
from protocol.tensors import (
    VECTOR_HEADER_BYTES,
    MalformedBlobError,
    tensors_from_blob,
    tensors_to_blob,
)


def start_moments(
    strategy: Strategy, parameters: Parameters, size: int
) -> tuple[Vector, ...]:
    """Return what a strategy carries into the first round, each of shape (size,)."""
    return tuple(np.full(size, each.start(parameters)) for each in strategy.moments)


def state_to_blob(strategy: Strategy, moments: Sequence[Vector]) -> bytes:
    """Write moments, in the order of `Strategy.moments`; equal ones, equal bytes."""
    return tensors_to_blob(
        {
            each.name: values
            for each, values in zip(strategy.moments, moments, strict=True)
        }
    )


def state_from_blob(strategy: Strategy, blob: bytes, size: int) -> tuple[Vector, ...]:
    """Read a strategy's state, trusting nothing in it.

    Args:
        strategy: Whose state it is.
        blob: The file, digest verified. Its size is the caller's to limit.
        size: Number of trained values.

    Returns:
        The moments, in the order of `Strategy.moments`: read-only, of shape (size,).

    Raises:
        MalformedBlobError: It is no state of this strategy for this model.
    """
    tensors = tensors_from_blob(blob, max_header_bytes=VECTOR_HEADER_BYTES)
    found = {name: (values.dtype, values.shape) for name, values in tensors.items()}
    wanted = {each.name: (np.dtype(np.float64), (size,)) for each in strategy.moments}
    if found != wanted:
        names = ", ".join(wanted)
        msg = f"not the state of {strategy.name}: float64({size},) of {names}"
        raise MalformedBlobError(msg)
    for each in strategy.moments:
        values = tensors[each.name]
        lowest = -each.largest if each.is_signed else 0.0
        # The least and the largest of values with a NaN are NaN, which compares false.
        least, most = values.min(initial=0.0), values.max(initial=0.0)
        if not (lowest <= least and most <= each.largest):
            msg = f"{each.name} holds a value that no round leads to"
            raise MalformedBlobError(msg)
    return tuple(tensors[each.name] for each in strategy.moments)
