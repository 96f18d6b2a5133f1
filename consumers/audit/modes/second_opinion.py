"""A second opinion on opened sums of aggregation MPC, by py-ecc.

Commitments, openings and norm proofs all rest on one implementation of BLS12-381, in
Rust. py-ecc is an independent one, in Python: slow, and plain to read. It opens sampled
rows of every sum that a published model follows from: it derives the generators,
decodes the commitments and adds everything up itself.

- **Which rows.** `NUM_ROWS` of each sum, or all if it has fewer. They are drawn with
  SHA-256 from the round, its sum and the parties' parts: every auditor gets the same
  rows, and nobody knows them before the sum is open.
- **What both share.** The layout of blobs, and which agents count.

It proves nothing new, but an error in one library alone shows in the sampled rows. It
deliberately leaves out norm proofs and links.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from consumers.audit.report import Rechecked
from protocol.modes.mpc.checker import MpcShape, parse_partial
from protocol.modes.mpc.commitments import GENERATOR_DOMAIN, POINT_SIZE
from protocol.modes.mpc.round import MpcRound
from protocol.modes.problem import Fetch
from protocol.round_view import RoundView

# Importing py-ecc raises Python's recursion limit to 100,000 for the whole process, and
# what should be a RecursionError becomes a crash. So the limit is restored.
_LIMIT = sys.getrecursionlimit()

from py_ecc.bls.hash_to_curve import hash_to_G1  # noqa: E402
from py_ecc.bls.point_compression import decompress_G1  # noqa: E402
from py_ecc.bls.typing import G1Compressed  # noqa: E402
from py_ecc.optimized_bls12_381 import (  # noqa: E402
    Z1,
    add,
    curve_order,
    double,
    eq,
    is_inf,
    multiply,
    neg,
)

sys.setrecursionlimit(_LIMIT)

if TYPE_CHECKING:
    from py_ecc.bls.typing import G1Uncompressed

NUM_ROWS: Final = 2
SAMPLE_DOMAIN: Final = b"folkmoot/second-opinion/v1\n"
_WORD_SIZE: Final = 8


def recheck(view: RoundView, total: NDArray[np.int64], fetch: Fetch) -> Rechecked:
    """Open sampled rows of a sum.

    Args:
        view: The round, sealed, with a verified part of every party.
        total: Its sum; shape (d,) int64.
        fetch: Fetches blobs.

    Returns:
        The rows, and what is wrong with them.

    Raises:
        RoundError: a blob is missing or malformed.
    """
    secret = MpcRound(view)
    shape = MpcShape.of(secret.config)
    partials = [secret.partials[party.name].blob for party in secret.mpc.parties]
    parts = [parse_partial(fetch(p, shape.max_partial_size), shape) for p in partials]
    commitments = [
        fetch(accepted.event.commitments, shape.commitments_size)
        for accepted in secret.accepted()
    ]
    weights = [contribution.num_examples for contribution in secret.contributions]
    seed = hashlib.sha256(SAMPLE_DOMAIN + view.identity)
    seed.update(hashlib.sha256(total.astype("<i8", copy=False).tobytes()).digest())
    for partial in partials:
        seed.update(partial.sha256)
    sampled = sample_rows(seed.digest(), shape.num_rows)
    problems = []
    for row in sampled:
        begin = row * shape.row_length
        problem = find_row_problem(
            [blob[row * POINT_SIZE : (row + 1) * POINT_SIZE] for blob in commitments],
            weights,
            total[begin : begin + shape.row_length].tolist(),
            sum(part.row_blindings[row] for part in parts),
        )
        if problem:
            problems.append(f"row {row}: {problem}")
    return Rechecked(
        round=secret.started.round,
        rows=sampled,
        num_rows=shape.num_rows,
        problems=tuple(problems),
    )


def sample_rows(seed: bytes, num_rows: int) -> tuple[int, ...]:
    """Return the rows to open, ascending: `NUM_ROWS` of them, or all.

    Args:
        seed: 32 bytes.
        num_rows: m, at least 1.
    """
    left = list(range(num_rows))
    words = hashlib.shake_256(seed).digest(NUM_ROWS * _WORD_SIZE)
    drawn = [
        left.pop(int.from_bytes(words[at : at + _WORD_SIZE], "big") % len(left))
        for at in range(0, _WORD_SIZE * min(NUM_ROWS, num_rows), _WORD_SIZE)
    ]
    return tuple(sorted(drawn))


def find_row_problem(
    commitments: Sequence[bytes],
    weights: Sequence[int],
    values: Sequence[int],
    blinding: int,
) -> str:
    """Return why a row of a sum does not open its commitments; empty if it does.

    Args:
        commitments: Of each agent, to its row; 48 bytes each, untrusted.
        weights: One integer for each.
        values: The row of the sum, one integer for each column; zeros at the end may be
            left out.
        blinding: The sum of all parties' blindings of this row.
    """
    committed = Z1
    for number, (data, weight) in enumerate(zip(commitments, weights, strict=True)):
        if len(data) != POINT_SIZE:
            return f"commitment {number} has {len(data)} bytes"
        try:
            point = decompress_G1(G1Compressed(int.from_bytes(data, "big")))
        except ValueError as error:
            return f"commitment {number} is not a point: {error}"
        if is_inf(point) or not is_inf(multiply(point, curve_order)):
            return f"commitment {number} is not in the group, or is its identity"
        committed = add(committed, multiply(point, weight))
    terms = [
        (_derive(b"G" + column.to_bytes(4, "big")), value)
        for column, value in enumerate(values)
        if value
    ]
    blinded = multiply(_derive(b"H"), blinding % curve_order)
    opened = add(_sum_products(terms), blinded)
    return "" if eq(committed, opened) else "it does not open the commitments"


@cache
def _derive(name: bytes) -> G1Uncompressed:
    return hash_to_G1(name, GENERATOR_DOMAIN, hashlib.sha256)  # type: ignore[arg-type]  # it is called


def _sum_products(terms: Iterable[tuple[Any, int]]) -> Any:
    """Return Σ v P, doubling once for all points together."""
    signed = [(point if v > 0 else neg(point), abs(v)) for point, v in terms]
    total = Z1
    for bit in reversed(range(max((v.bit_length() for _, v in signed), default=0))):
        total = double(total)
        for point, magnitude in signed:
            if magnitude >> bit & 1:
                total = add(total, point)
    return total
