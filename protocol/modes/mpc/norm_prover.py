"""The agent's side of the norm proof: commit, share, prove.

    state = commit_update(values, …)
    …                                           # share state's secrets, seal the shares
    proof = prove_norm(state.bind(context))     # the context names the sealed shares

The notation is that of `protocol.modes.mpc.norm_proof`.

- A state is bound to one context. Two proofs under different ones have different
  projections and the same masks: their difference is a combination of the update in the
  clear, and a few of them reveal the update. A retry commits anew.
- Proving the same again gives the same bytes: a proof's randomness is derived from a
  key drawn with the commitments, and from everything said before.
- Values the size of the update are computed in floats, exactly; only those the size of
  a row use long integers. Each product says why it is exact.

It deliberately makes no attempt at constant time: it runs where the secret is.

Sources: PRIVACY.md sections 2 and 9; Rabin, Shallit 1986 (four squares).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import isqrt
from operator import mul
from typing import Final

import numpy as np
from numpy.typing import NDArray

from protocol.clipping import COMMITTED_LIMIT, compute_squared_norm
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    WIDE_SCALAR_SIZE,
    choose_row_length,
    commit_rows,
    commit_scalar,
    commit_scalars,
    compute_num_rows,
    encode_scalar,
    to_rows,
)
from protocol.modes.mpc.limbs import (
    EXACT_LIMIT,
    LIMB_BITS,
    NUM_LIMBS,
    from_limbs,
    to_limbs,
)
from protocol.modes.mpc.norm_proof import (
    MASK_BITS,
    MAX_ENTRIES,
    NUM_SQUARES,
    PROJECTION_SIZE,
    NormProof,
    NormStatement,
    compute_exponents,
    compute_powers,
    draw_evaluation_challenge,
    draw_projection_challenges,
    expand_projection,
    start_transcript,
)
from protocol.modes.mpc.projections import (
    MAX_ROW_LENGTH,
    NUM_PROJECTIONS,
    SEED_SIZE,
    Projection,
    expand_stream,
)

_NONCE_DOMAIN: Final = b"folkmoot-norm-proof-nonces/v1\n"
_MASK_SIZE: Final = 16
#: What the products below are made of: a digit, an entry of the update.
_DIGIT: Final = 2**LIMB_BITS
_ENTRY: Final = COMMITTED_LIMIT  # = 2^19
_MAX_ROWS: Final = 2**12  # more would need longer rows than MAX_ENTRIES allows

assert _ENTRY * _ENTRY * MAX_ROW_LENGTH <= EXACT_LIMIT  # X X^T
assert _DIGIT * _ENTRY * MAX_ROW_LENGTH <= EXACT_LIMIT  # X times μ, ν, a, y, (ρ^t)
assert _DIGIT * _ENTRY * _MAX_ROWS <= EXACT_LIMIT  # Σ e^i x_i
assert _ENTRY * MAX_ENTRIES <= EXACT_LIMIT  # R x, and <x_i, b_t> summed over rows
assert _DIGIT * MAX_ROW_LENGTH <= EXACT_LIMIT  # b_t times μ, a, y


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ProverState:
    """What an agent committed to. Printing it shows only the statement.

    Attributes:
        statement: The statement to prove, with an empty context until bound.
        values: The update, shape (d,) int64. **Secret.**
        squares: a, four integers. **Secret.**
        masks: y, K integers, -2^113 ≤ y < 2^113. **Secret.**
        blindings: s_1 to s_M of rows, squares and masks, then s_μ. **Secret.**
        nonce_key: Key for the proof's masks, 32 bytes. **Secret.**
    """

    statement: NormStatement
    values: NDArray[np.int64] = field(repr=False)
    squares: tuple[int, ...] = field(repr=False)
    masks: tuple[int, ...] = field(repr=False)
    blindings: tuple[int, ...] = field(repr=False)
    nonce_key: bytes = field(repr=False)

    def bind(self, context: bytes) -> ProverState:
        """Return the same state with its statement's context, which is set once.

        Raises:
            ValueError: it already has another context; a bug.
        """
        if self.statement.context not in {b"", context}:
            raise ValueError("a second context for the same masks: commit anew")
        return replace(self, statement=replace(self.statement, context=context))


def commit_update(
    values: NDArray[np.int64],
    *,
    squared_bound: int,
    entropy: Callable[[int], bytes],
    row_length: int | None = None,
) -> ProverState:
    """Commit to an update.

    Args:
        values: shape (d,) int64, |x| < 2^19, Σ x² ≤ B². **Secret.**
        squared_bound: B².
        entropy: Returns as many unpredictable bytes as asked.
        row_length: n; by default that of `choose_row_length`.

    Returns:
        The commitments, and everything for sharing and proving.

    Raises:
        ValueError: the update is too long or has values out of range: it must be
            clipped first; or the statement is impossible; a bug.
    """
    length = row_length or choose_row_length(len(values))
    num_rows = compute_num_rows(len(values), length)
    drawn = entropy(WIDE_SCALAR_SIZE * (num_rows + 3))
    blindings = tuple(_to_scalars(drawn))
    rows = commit_rows(values, blindings[:num_rows], row_length=length)
    gap = squared_bound - compute_squared_norm(values)
    if gap < 0:
        raise ValueError("the update is longer than the bound: clip it first")
    squares = find_four_squares(gap, entropy)
    masks = _to_masks(entropy(_MASK_SIZE * NUM_PROJECTIONS))
    statement = NormStatement(
        context=b"",
        num_values=len(values),
        row_length=length,
        squared_bound=squared_bound,
        rows=rows,
        squares=commit_scalars(squares, blindings[num_rows]),
        masks=commit_scalars(masks, blindings[num_rows + 1]),
    )
    return ProverState(
        statement=statement,
        values=values,
        squares=squares,
        masks=masks,
        blindings=blindings,
        nonce_key=entropy(SEED_SIZE),
    )


def prove_norm(state: ProverState) -> NormProof:
    """Prove a state's statement.

    Args:
        state: Bound to a context.

    Returns:
        The proof: always the same for the same state.
    """
    statement = state.statement
    rows = to_rows(state.values, statement.row_length).astype(np.float64)
    transcript, seed = start_transcript(statement)
    projection = expand_projection(statement, seed)
    by_row = rows @ projection.of_columns.T  # <x_i, b_t>, which is exact
    nonces = _Nonces.derive(state.nonce_key, transcript.state, statement)
    projected = _project(state, by_row, projection)
    projections = b"".join(
        value.to_bytes(PROJECTION_SIZE, "little", signed=True) for value in projected
    )
    rho, alpha = draw_projection_challenges(transcript, projections)
    wide = _WideVectors(
        squares=state.squares,
        masks=state.masks,
        mu=nonces.mu,
        nu=nonces.nu,
        rhos=compute_powers(rho, NUM_PROJECTIONS),
    )
    coefficients = _compute_coefficients(rows, by_row, wide, alpha, projection)
    tau = alpha * _dot(wide.rhos, projected)
    constant = coefficients.pop(0) - statement.squared_bound - tau
    assert constant % SCALAR_ORDER == 0, "the proof would be refused"
    exponents = compute_exponents(len(rows))
    mu_blinding = state.blindings[-1]
    mask_points = (
        commit_scalars(nonces.mu, mu_blinding),
        commit_scalars(nonces.nu, nonces.nu_blinding),
    )
    points = tuple(
        commit_scalar(coefficients[exponent], blinding)
        for exponent, blinding in zip(exponents, nonces.blindings, strict=True)
    )
    e = draw_evaluation_challenge(transcript, (*mask_points, *points))
    last = len(rows) + 2
    powers = compute_powers(e, 2 * last + 2)
    inverses = compute_powers(pow(e, -1, SCALAR_ORDER), last + 1)
    ascending, descending = powers[1 : last + 1], inverses[1:last]
    z = _evaluate(rows, ascending, (state.squares, state.masks), nonces.mu)
    nu = [powers[last + 1] * value for value in nonces.nu]
    z_prime = _evaluate(rows, descending, (state.squares,), nu)
    bound = state.blindings[:-1]
    z_prime_blinding = powers[last + 1] * nonces.nu_blinding
    evaluations = (
        powers[exponent] if exponent > 0 else inverses[-exponent]
        for exponent in exponents
    )
    return NormProof(
        projections=projections,
        z_mask=mask_points[0],
        z_prime_mask=mask_points[1],
        coefficients=points,
        z=b"".join(map(encode_scalar, z)),
        z_prime=b"".join(map(encode_scalar, z_prime)),
        z_blinding=encode_scalar(mu_blinding + _dot(ascending, bound)),
        z_prime_blinding=encode_scalar(z_prime_blinding + _dot(descending, bound)),
        relation_blinding=encode_scalar(_dot(evaluations, nonces.blindings)),
    )


def find_four_squares(
    number: int, entropy: Callable[[int], bytes]
) -> tuple[int, int, int, int]:
    """Write a number as a sum of four squares.

    Args:
        number: At least 0; its logarithm's square is the work. **Secret.**
        entropy: Returns as many unpredictable bytes as asked; a random number is taken.

    Returns:
        Four integers, at least 0. **Secret.**

    Source: Rabin, Shallit 1986: guess two squares until the rest is a prime p = 1
    mod 4, and write that as the sum of the other two.
    """
    if number == 0:
        return 0, 0, 0, 0
    # Powers of 4 have few representations; without them guesses succeed soon.
    twos = ((number & -number).bit_length() - 1) // 2
    rest = number >> (2 * twos)
    while True:
        first = _draw_below(isqrt(rest) + 1, entropy)
        second = _draw_below(isqrt(rest - first * first) + 1, entropy)
        pair = _find_two_squares(rest - first * first - second * second)
        if pair is not None:
            third, fourth = pair
            return first << twos, second << twos, third << twos, fourth << twos


def _find_two_squares(number: int) -> tuple[int, int] | None:
    """Write 0, 1, 2 or a prime that is 1 modulo 4 as a sum of two squares."""
    if number <= 2:  # noqa: PLR2004  # 0 = 0² + 0², 1 = 1² + 0², 2 = 1² + 1²
        return (number + 1) // 2, number // 2
    if number % 4 != 1:
        return None
    for base in (2, 3, 5, 7, 11, 13):
        root = pow(base, (number - 1) // 4, number)
        square = root * root % number
        if square == number - 1:
            break
        if square != 1:  # not prime
            return None
    else:
        return None
    # Euclid's algorithm, stopped half way (Hermite, Serret).
    large, small = number, root
    while small * small > number:
        large, small = small, large % small
    other = isqrt(number - small * small)
    if small * small + other * other != number:  # not prime after all
        return None
    return small, other


def _draw_below(bound: int, entropy: Callable[[int], bytes]) -> int:
    # 128 bits more than the bound has: within 2^-128 of uniform.
    drawn = entropy(bound.bit_length() // 8 + 17)
    return int.from_bytes(drawn, "little") % bound


def _to_scalars(drawn: bytes) -> list[int]:
    return [
        int.from_bytes(drawn[begin : begin + WIDE_SCALAR_SIZE], "little") % SCALAR_ORDER
        for begin in range(0, len(drawn), WIDE_SCALAR_SIZE)
    ]


def _to_masks(drawn: bytes) -> tuple[int, ...]:
    span = 2 ** (MASK_BITS + 1)
    return tuple(
        int.from_bytes(drawn[begin : begin + _MASK_SIZE], "little") % span - span // 2
        for begin in range(0, len(drawn), _MASK_SIZE)
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Nonces:
    """A proof's randomness."""

    mu: list[int] = field(repr=False)
    nu: list[int] = field(repr=False)
    nu_blinding: int = field(repr=False)
    blindings: list[int] = field(repr=False)  # t_l

    @classmethod
    def derive(cls, key: bytes, state: bytes, statement: NormStatement) -> _Nonces:
        length = statement.row_length
        num_blindings = len(compute_exponents(statement.num_rows))
        derived = hashlib.sha512(_NONCE_DOMAIN + key + state).digest()[:SEED_SIZE]
        size = WIDE_SCALAR_SIZE * (2 * length + 1 + num_blindings)
        scalars = _to_scalars(bytes(expand_stream(derived, size)))
        return cls(
            mu=scalars[:length],
            nu=scalars[length : 2 * length],
            nu_blinding=scalars[2 * length],
            blindings=scalars[2 * length + 1 :],
        )


def _project(
    state: ProverState, by_row: NDArray[np.float64], projection: Projection
) -> list[int]:
    """Return w = R x' + y; `by_row` are the <x_i, b_t>, shape (m, K)."""
    *of_rows, of_squares = projection.of_rows.T
    values = (by_row * np.array(of_rows)).sum(axis=0).astype(np.int64)
    columns = projection.of_columns[:, :NUM_SQUARES].tolist()
    return [
        value + int(bit) * _dot(column, state.squares) + mask
        for value, bit, column, mask in zip(
            values.tolist(), of_squares, columns, state.masks, strict=True
        )
    ]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _WideVectors:
    """Vectors of long integers; shorter ones than a row end in zeros."""

    squares: Sequence[int] = field(repr=False)
    masks: Sequence[int] = field(repr=False)
    mu: Sequence[int] = field(repr=False)
    nu: Sequence[int] = field(repr=False)
    rhos: Sequence[int]

    def to_planes(self) -> NDArray[np.float64]:
        """Return their digits: shape (5, 16, n), in the order of the attributes."""
        vectors = (self.squares, self.masks, self.mu, self.nu, self.rhos)
        planes = np.zeros((len(vectors), NUM_LIMBS, len(self.mu)))
        for plane, vector in zip(planes, vectors, strict=True):
            plane[:, : len(vector)] = to_limbs(v % SCALAR_ORDER for v in vector)
        return planes


class _Polynomial(dict[int, int]):
    """Coefficients of e by exponent. **Secret:** printing it shows none."""

    def __repr__(self) -> str:
        return f"_Polynomial({len(self)} coefficients)"

    def add(self, exponent: int, value: int) -> None:
        self[exponent] = self.get(exponent, 0) + value


def _compute_coefficients(
    rows: NDArray[np.float64],
    by_row: NDArray[np.float64],
    wide: _WideVectors,
    alpha: int,
    projection: Projection,
) -> _Polynomial:
    """Return the coefficients of <z, z' + α λ>, not reduced modulo r."""
    num_rows, length = rows.shape
    last = num_rows + 2
    polynomial = _Polynomial()
    planes = wide.to_planes()

    # <x_i, x_j> and the rows times the long vectors.
    lags = _sum_diagonals((rows @ rows.T).astype(np.int64))
    for lag, value in enumerate(lags, start=1 - num_rows):
        polynomial.add(lag, value)
    products = (rows @ planes.reshape(-1, length).T).astype(np.int64)
    joined = from_limbs(
        products.reshape(num_rows, len(planes), NUM_LIMBS)
        .transpose(2, 0, 1)
        .reshape(NUM_LIMBS, -1)
    )
    for i in range(1, num_rows + 1):
        begin = (i - 1) * len(planes)
        of_a, of_y, of_mu, of_nu, of_rhos = joined[begin : begin + len(planes)]
        polynomial.add(i - (last - 1), of_a)
        polynomial.add((last - 1) - i, of_a)
        polynomial.add(last - i, of_y)
        polynomial.add(-i, of_mu)
        polynomial.add(i + last + 1, of_nu)
        polynomial.add(i - last, alpha * of_rhos)

    # The long vectors among themselves.
    a, y, mu, nu, rhos = wide.squares, wide.masks, wide.mu, wide.nu, wide.rhos
    polynomial.add(0, _dot(a, a) + alpha * _dot(y, rhos))
    polynomial.add(1, _dot(y, a))
    polynomial.add(-(last - 1), _dot(mu, a))
    polynomial.add(last + 1, _dot(mu, nu))
    polynomial.add(2 * last, _dot(a, nu))
    polynomial.add(2 * last + 1, _dot(y, nu))
    polynomial.add(-1, alpha * _dot(a, rhos))
    polynomial.add(-last, alpha * _dot(mu, rhos))

    # λ_1 to λ_(m+1): λ_j = Σ_t ρ^t a_tj b_t.
    for lag, value in enumerate(
        _multiply_lambda_rows(by_row, rhos, projection), start=-num_rows
    ):
        polynomial.add(lag, alpha * value)
    by_lambda = _multiply_lambda_wide(planes[:3], rhos, projection)
    for j, (of_a, of_y, of_mu) in enumerate(by_lambda, start=1):
        polynomial.add((last - 1) - j, alpha * of_a)
        polynomial.add(last - j, alpha * of_y)
        polynomial.add(-j, alpha * of_mu)
    return polynomial


def _multiply_lambda_rows(
    by_row: NDArray[np.float64], rhos: Sequence[int], projection: Projection
) -> list[int]:
    """Return Σ <x_i, λ_j> over all rows with the same i - j, from -m to m - 1."""
    num_rows = len(by_row)
    sums = np.zeros((2 * num_rows, NUM_PROJECTIONS))
    for j, bits in enumerate(projection.of_rows.T):
        sums[num_rows - j : 2 * num_rows - j] += by_row * bits
    return [_dot(of_lag, rhos) for of_lag in sums.astype(np.int64).tolist()]


def _multiply_lambda_wide(
    planes: NDArray[np.float64], rhos: Sequence[int], projection: Projection
) -> list[list[int]]:
    """Return each λ_j's products with long vectors, given by their digits."""
    count = len(planes)
    products = projection.of_columns @ planes.reshape(-1, planes.shape[2]).T
    of_columns = from_limbs(
        products.astype(np.int64)
        .reshape(-1, count, NUM_LIMBS)
        .transpose(2, 0, 1)
        .reshape(NUM_LIMBS, -1)
    )
    scaled = (
        rhos[place // count] * value % SCALAR_ORDER
        for place, value in enumerate(of_columns)
    )
    digits = to_limbs(scaled).astype(np.float64).reshape(NUM_LIMBS, -1, count)
    summed = projection.of_rows.T @ digits  # for each digit
    joined = from_limbs(summed.astype(np.int64).reshape(NUM_LIMBS, -1))
    return [joined[i : i + count] for i in range(0, len(joined), count)]


def _sum_diagonals(products: NDArray[np.int64]) -> list[int]:
    """Return the sums of a square matrix over j - i, from 1 - m to m - 1."""
    size = len(products)
    return [int(np.trace(products, offset)) for offset in range(1 - size, size)]


def _evaluate(
    rows: NDArray[np.float64],
    powers: Sequence[int],
    others: Sequence[Sequence[int]],
    mask: Sequence[int],
) -> list[int]:
    """Return mask + Σ power · row, where the last rows are long integers."""
    digits = to_limbs(powers[: len(rows)]).astype(np.float64)
    total = from_limbs((digits @ rows).astype(np.int64))
    for power, other in zip(powers[len(rows) :], others, strict=True):
        for column, value in enumerate(other):
            total[column] += power * value
    return [a + b for a, b in zip(total, mask, strict=True)]


def _dot(left: Iterable[int], right: Iterable[int]) -> int:
    """Return the inner product; the longer one's rest counts as zero."""
    return sum(map(mul, left, right))
