"""The norm proof: a committed update is no longer than the federation allows.

In zero knowledge: "I know an opening of these commitments, and Σ x² ≤ B² over the
integers". The bound is exact, there is no trusted setup, and anybody can check it.

The agent commits to the rows x_1 … x_m of its update, to four squares and to masks;
with the rest of its message that is a `NormStatement`. The first challenge of its
transcript is the seed of a projection R, the agent's own (ADR 0033); then it proves:
`NormProof`. `protocol.modes.mpc.norm_prover` does both; this module defines and
verifies them.

Notation: n columns; row m+1 = (a, 0 …) with the four squares a; row M = m+2 =
(y, 0 …) with K masks y; x' = rows 1 to m+1; all modulo r, λ_M = (ρ^t)_t.

- Squares: Σ a² = B² - Σ x² (Lagrange), so Σ x'² = B² without a gap.
- Projections: w = R x' + y over the integers, K of them, each in range. R_t,ij =
  a_ti b_tj, in bits (`protocol.modes.mpc.projections`). If some |x'_j| (the
  representative nearest to 0) were beyond 4 · MAX_PROJECTION, then each w_t would be
  out of range with a probability of at least ¼ (lemma 2 there). So all K = 309 are in
  range with 2^-128 at the most, which is what guesses, by committing again and again,
  have to beat. If no |x'_j| is, Σ x'² < r, and equality modulo r is equality.
- One linear claim: ρ, α from the transcript, λ_i = Σ_t ρ^t a_ti b_t, τ = Σ ρ^t w_t;
  then Σ_{i≤M} <x_i, λ_i> = τ.
- With masks μ, ν, uniform, committed to in C_μ, C_ν:
      z(e)  = μ + Σ_{i≤M} e^i x_i
      z'(e) = e^(M+1) ν + Σ_{i<M} e^-i x_i
      λ(e)  = Σ_{i≤M} e^-i λ_i = Σ_t ρ^t (Σ_{i<M} e^-i a_ti) b_t + e^-M λ_M
  <z, z' + α λ> is a Laurent polynomial in e with exponents -M to 2M+1, whose constant
  term is Σ x'² + α Σ <x_i, λ_i>: it has to be B² + α τ. All other coefficients p_l are
  committed to, T_l = p_l U + t_l H; but for p_M, which is zero.
- For the challenge e the prover shows z, z' and the blindings that fit.

What the verifier checks, with random weights in one multiplication of many points:

    Com(z; s_z) = C_μ + Σ_{i≤M} e^i C_i
    Com(z'; s_z') = e^(M+1) C_ν + Σ_{i<M} e^-i C_i
    <z, z' + α λ(e)> U + t_z H = (B² + α τ) U + Σ_l e^l T_l

- The weights are hashed from everything involved, so that the verdict is the same for
  everybody. A batch of proofs is one such sum; if it fails, bisection finds the bad
  ones.
- The transcript binds the caller's context (who, which round, which parameters, which
  shares), the shape, the bound, every commitment; then it gives R, and binds every
  message. Nobody knows R before all of that is fixed, and nobody chooses it.
- w hides R x' to within K · Σ|x'| / 2^114: 2^-66 for 10^6 values that are all as large
  as possible. Two proofs with the same masks y would reveal a combination of the
  update, so nothing random is used twice (`protocol.modes.mpc.norm_prover`).

It deliberately says nothing about the columns beyond the last value, the four squares
and the K masks: they needn't be zero, they only count towards the norm. They are
excluded because shares must add up to w, and sums of updates must open the sums of
commitments.

Sources: PRIVACY.md sections 2 and 9; Groth 2009 (matrix arguments); Gentry, Halevi,
Lyubashevsky 2022 (projections against wraparound); Rabin, Shallit 1986 (squares). The
composition, and projections of products, are ours and have had no outside review.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import accumulate, chain, repeat
from operator import mul
from typing import Final

import numpy as np
from py_arkworks_bls12381 import G1Point

from protocol.clipping import COMMITTED_LIMIT
from protocol.modes.mpc.commitments import (
    MIN_ROW_LENGTH,
    SCALAR_ORDER,
    SCALAR_SIZE,
    WEIGHT_SIZE,
    InvalidEncodingError,
    compute_num_rows,
    get_blinding_generator,
    get_generators,
    get_scalar_generator,
    parse_points,
    parse_scalar,
    parse_scalars,
    sum_products,
)
from protocol.modes.mpc.limbs import EXACT_LIMIT, LIMB_BITS, from_limbs, to_limbs
from protocol.modes.mpc.projections import (
    MAX_ROW_LENGTH,
    NUM_PROJECTIONS,
    SEED_SIZE,
    Projection,
    expand_stream,
)
from protocol.modes.mpc.transcript import Transcript
from protocol.refusals import RefusedError

PROOF_DOMAIN: Final = b"folkmoot-norm-proof/v1\n"
#: Masks are uniform in [-2^113, 2^113).
MASK_BITS: Final = 113
#: |R x'| is below it: 2^24 values below 2^19, and four squares below 2^31.
PROJECTION_SLACK: Final = 2**44  # = 17,592,186,044,416
#: |w_t| ≤ this.
MAX_PROJECTION: Final = 2**MASK_BITS + PROJECTION_SLACK
PROJECTION_SIZE: Final = 15
NUM_SQUARES: Final = 4  # Lagrange
#: (m + 1) · n: all entries that are projected.
MAX_ENTRIES: Final = 2**24  # = 16,777,216
#: What 2^24 values can reach at all.
MAX_SQUARED_BOUND: Final = 2**62  # = 4,611,686,018,427,387,904

# No wraparound: see "Projections" above.
assert MAX_ENTRIES * (4 * MAX_PROJECTION) ** 2 < SCALAR_ORDER
assert MAX_ENTRIES * COMMITTED_LIMIT + NUM_SQUARES * 2**31 < PROJECTION_SLACK
assert MAX_PROJECTION < 2 ** (8 * PROJECTION_SIZE - 1)
# λ(e): digits times bits.
assert max(NUM_PROJECTIONS, MAX_ROW_LENGTH) << LIMB_BITS <= EXACT_LIMIT

_BATCH_DOMAIN: Final = b"folkmoot-norm-proof-batch/v1\n"
_NUM_EQUATIONS: Final = 3


class ProofRefusal(StrEnum):
    """Why commitments to an update, or the proof of its norm, can't count."""

    WRONG_SHAPE = "WRONG_SHAPE"
    INVALID_ENCODING = "INVALID_ENCODING"
    PROJECTION_OUT_OF_RANGE = "PROJECTION_OUT_OF_RANGE"
    NOT_PROVEN = "NOT_PROVEN"


class InvalidProofError(RefusedError[ProofRefusal]):
    """An agent's message proves nothing; bad input, never a bug of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class NormStatement:
    """The statement: the commitments, and the bound on what they commit to.

    Attributes:
        context: What else the proof is bound to: the caller's encoding of federation,
            round, agent, base model, parameters, parties and shares.
        num_values: d, at least 1.
        row_length: n, a power of two, 2^9 to 2^14; at least m + K + 4.
        squared_bound: B², 0 to 2^62: the largest Σ x².
        rows: Commitments to the rows; an agent's, so untrusted like the next two.
        squares: Commitment to the four squares, 48 bytes.
        masks: Commitment to the masks, 48 bytes.

    Raises:
        ValueError: a number out of range; the federation's configuration is to blame.
    """

    context: bytes = field(repr=False)
    num_values: int
    row_length: int
    squared_bound: int
    rows: tuple[bytes, ...] = field(repr=False)
    squares: bytes = field(repr=False)
    masks: bytes = field(repr=False)

    def __post_init__(self) -> None:
        length = self.row_length
        if not MIN_ROW_LENGTH <= length <= MAX_ROW_LENGTH or length & (length - 1):
            raise ValueError(f"a row length of {length}: a power of two, 512 to 16384")
        num_rows = self.num_rows
        if not (
            self.num_values >= 1
            and num_rows + NUM_PROJECTIONS + NUM_SQUARES <= length
            and (num_rows + 1) * length <= MAX_ENTRIES
        ):
            raise ValueError(f"{self.num_values} values don't fit rows of {length}")
        if not 0 <= self.squared_bound <= MAX_SQUARED_BOUND:
            msg = f"a squared norm bound of {self.squared_bound}, not 0 to 2^62"
            raise ValueError(msg)

    def to_blob(self) -> bytes:
        """Return the commitments as an agent stores them."""
        return b"".join(self.commitments)

    @property
    def num_rows(self) -> int:
        """m, the required number of rows."""
        return compute_num_rows(self.num_values, self.row_length)

    @property
    def commitments(self) -> tuple[bytes, ...]:
        """C_1 to C_M: rows, squares, masks."""
        return (*self.rows, self.squares, self.masks)


@dataclass(frozen=True, slots=True, kw_only=True)
class NormProof:
    """An agent's proof of its statement; untrusted until verified.

    Attributes:
        projections: w, K integers of 15 bytes, signed, little-endian.
        z_mask: C_μ, 48 bytes.
        z_prime_mask: C_ν, 48 bytes.
        coefficients: T_l for the l of `compute_exponents`, 3M times 48 bytes.
        z: n scalars of 32 bytes.
        z_prime: n scalars.
        z_blinding: s_z = s_μ + Σ_{i≤M} e^i s_i, a scalar.
        z_prime_blinding: s_z', a scalar.
        relation_blinding: t_z, a scalar.
    """

    projections: bytes = field(repr=False)
    z_mask: bytes = field(repr=False)
    z_prime_mask: bytes = field(repr=False)
    coefficients: tuple[bytes, ...] = field(repr=False)
    z: bytes = field(repr=False)
    z_prime: bytes = field(repr=False)
    z_blinding: bytes = field(repr=False)
    z_prime_blinding: bytes = field(repr=False)
    relation_blinding: bytes = field(repr=False)

    @property
    def projection_values(self) -> tuple[int, ...]:
        """The projections w, as integers."""
        pieces = _split(self.projections, PROJECTION_SIZE)
        return tuple(int.from_bytes(p, "little", signed=True) for p in pieces)


def compute_exponents(num_rows: int) -> tuple[int, ...]:
    """Return the exponents of e whose coefficients are committed to, in order.

    Args:
        num_rows: m.

    Returns:
        -M to 2M+1, where M = m + 2; without 0, whose coefficient is public, and
        without M, whose coefficient is always zero.
    """
    last = num_rows + 2
    exponents = range(-last, 2 * last + 2)
    return tuple(e for e in exponents if e not in {0, last})


@dataclass(frozen=True, slots=True, kw_only=True)
class Challenges:
    """The challenges of a proof's transcript.

    Attributes:
        seed: The seed of the agent's projection, 32 bytes.
        rho: ρ.
        alpha: α.
        e: e.
        digest: Of everything, including the last message.
    """

    seed: bytes
    rho: int
    alpha: int
    e: int
    digest: bytes


def start_transcript(statement: NormStatement) -> tuple[Transcript, bytes]:
    """Return the transcript of a statement, and the seed of R that it yields."""
    transcript = Transcript(PROOF_DOMAIN)
    transcript.append(b"context", statement.context)
    numbers = (
        statement.num_values,
        statement.row_length,
        len(statement.rows),
        statement.squared_bound,
    )
    shape = b"".join(number.to_bytes(8, "little") for number in numbers)
    transcript.append(b"shape", shape)
    transcript.append(b"commitments", statement.to_blob())
    return transcript, transcript.draw_seed(b"projection")


def expand_projection(statement: NormStatement, seed: bytes) -> Projection:
    """Return a seed's projection, for the rows 1 to m+1."""
    return Projection.expand(
        seed,
        num_projections=NUM_PROJECTIONS,
        num_rows=statement.num_rows + 1,
        row_length=statement.row_length,
    )


def draw_projection_challenges(
    transcript: Transcript, projections: bytes
) -> tuple[int, int]:
    """Return ρ and α."""
    transcript.append(b"projections", projections)
    rho = transcript.draw_challenge(b"rho")
    return rho, transcript.draw_challenge(b"alpha")


def draw_evaluation_challenge(transcript: Transcript, points: Iterable[bytes]) -> int:
    """Return e, given C_μ, C_ν and all T_l."""
    transcript.append(b"points", b"".join(points))
    return transcript.draw_challenge(b"e")


def compute_challenges(statement: NormStatement, proof: NormProof) -> Challenges:
    """Return all challenges of a proof, good or not."""
    transcript, seed = start_transcript(statement)
    rho, alpha = draw_projection_challenges(transcript, proof.projections)
    points = (proof.z_mask, proof.z_prime_mask, *proof.coefficients)
    e = draw_evaluation_challenge(transcript, points)
    transcript.append(b"z", proof.z)
    transcript.append(b"z'", proof.z_prime)
    blindings = (
        proof.z_blinding,
        proof.z_prime_blinding,
        proof.relation_blinding,
    )
    transcript.append(b"blindings", b"".join(blindings))
    return Challenges(seed=seed, rho=rho, alpha=alpha, e=e, digest=transcript.state)


def compute_blinding_challenges(
    statement: NormStatement, challenges: Challenges
) -> tuple[int, ...]:
    """Return the powers e^1 to e^M with which a proof's z_blinding combines blindings.

    Args:
        statement: The proof's statement.
        challenges: A verified proof's.

    Returns:
        c with z_blinding = s_μ + Σ c_i s_i modulo r, for the m rows, squares, masks.
    """
    count = len(statement.commitments) + 1
    return tuple(compute_powers(challenges.e, count)[1:])


def compute_powers(base: int, count: int) -> list[int]:
    """Return base^0 to base^(count-1), modulo r."""
    steps = repeat(base, count - 1)
    return list(accumulate(steps, lambda a, b: a * b % SCALAR_ORDER, initial=1))


def verify_norm_proofs(
    items: Sequence[tuple[NormStatement, NormProof]], entropy: bytes = b""
) -> list[InvalidProofError | None]:
    """Check several proofs together: cheaper than one by one.

    Args:
        items: Statements and their proofs, all of one row length.
        entropy: Bytes that the agents can't know; knowing them would give agents a
            chance of 2^-128, so they may be left out.

    Returns:
        What is wrong with each proof, in order; None if it is good.
    """
    verdicts: list[InvalidProofError | None] = [None] * len(items)
    claims: list[_Claim] = []
    for index, (statement, proof) in enumerate(items):
        try:
            claims.append(_read_claim(index, statement, proof))
        except InvalidProofError as error:
            verdicts[index] = error
    for index in _find_nonzero(_weigh(claims, entropy)):
        detail = "the equations of the proof don't hold"
        verdicts[index] = InvalidProofError(ProofRefusal.NOT_PROVEN, detail)
    return verdicts


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Claim:
    """A parsed proof."""

    index: int
    statement: NormStatement
    commitments: list[G1Point]  # C_1 to C_M
    masks: list[G1Point]  # C_μ, C_ν
    coefficients: list[G1Point]
    projections: tuple[int, ...]
    z: list[int]
    z_prime: list[int]
    blindings: tuple[int, int, int]
    challenges: Challenges


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Combination:
    """One proof's equations, weighed: Σ scalars · points must be the identity."""

    index: int
    vector: list[int]  # of the generators G_1 to G_n
    blinding: int  # of H
    scalar: int  # of U
    points: list[G1Point]
    scalars: list[int]


def _parse_commitments(statement: NormStatement) -> list[G1Point]:
    if len(statement.rows) != statement.num_rows:
        detail = f"{len(statement.rows)} rows, not {statement.num_rows}"
        raise InvalidProofError(ProofRefusal.WRONG_SHAPE, detail)
    try:
        return parse_points(statement.commitments)
    except InvalidEncodingError as error:
        detail = f"commitments: {error}"
        raise InvalidProofError(ProofRefusal.INVALID_ENCODING, detail) from error


def _read_claim(index: int, statement: NormStatement, proof: NormProof) -> _Claim:
    num_coefficients = len(compute_exponents(statement.num_rows))
    size = statement.row_length * SCALAR_SIZE
    if (
        len(proof.projections) != NUM_PROJECTIONS * PROJECTION_SIZE
        or len(proof.coefficients) != num_coefficients
        or (len(proof.z), len(proof.z_prime)) != (size, size)
    ):
        detail = "not a proof about commitments of this shape"
        raise InvalidProofError(ProofRefusal.WRONG_SHAPE, detail)
    projections = proof.projection_values
    if max(map(abs, projections)) > MAX_PROJECTION:
        detail = "a projection that no update within the bound has"
        raise InvalidProofError(ProofRefusal.PROJECTION_OUT_OF_RANGE, detail)
    commitments = _parse_commitments(statement)
    try:
        return _Claim(
            index=index,
            statement=statement,
            commitments=commitments,
            masks=parse_points((proof.z_mask, proof.z_prime_mask)),
            coefficients=parse_points(proof.coefficients),
            projections=projections,
            z=parse_scalars(proof.z),
            z_prime=parse_scalars(proof.z_prime),
            blindings=(
                parse_scalar(proof.z_blinding),
                parse_scalar(proof.z_prime_blinding),
                parse_scalar(proof.relation_blinding),
            ),
            challenges=compute_challenges(statement, proof),
        )
    except InvalidEncodingError as error:
        raise InvalidProofError(ProofRefusal.INVALID_ENCODING, str(error)) from error


def _weigh(claims: Sequence[_Claim], entropy: bytes) -> list[_Combination]:
    """Weigh the equations of all proofs, each with its own weights."""
    digest = hashlib.sha512(_BATCH_DOMAIN + hashlib.sha512(entropy).digest())
    for claim in claims:
        digest.update(claim.challenges.digest)
    key = digest.digest()[:SEED_SIZE]
    size = _NUM_EQUATIONS * WEIGHT_SIZE
    stream = bytes(expand_stream(key, size * len(claims)))
    combinations = []
    for claim, piece in zip(claims, _split(stream, size), strict=True):
        weights = [
            int.from_bytes(weight, "little") for weight in _split(piece, WEIGHT_SIZE)
        ]
        combinations.append(_combine(claim, _evaluate(claim), weights))
    return combinations


def _evaluate(claim: _Claim) -> list[int]:
    """Return λ(e) of a proof, n integers modulo r."""
    challenges = claim.challenges
    projection = expand_projection(claim.statement, challenges.seed)
    rhos = compute_powers(challenges.rho, NUM_PROJECTIONS)
    inverse = pow(challenges.e, -1, SCALAR_ORDER)
    *inverses, last = compute_powers(inverse, len(claim.commitments) + 1)[1:]
    digits = to_limbs(inverses).astype(np.float64)
    of_rows = from_limbs((digits @ projection.of_rows.T).astype(np.int64))
    factors = (a * b % SCALAR_ORDER for a, b in zip(rhos, of_rows, strict=True))
    digits = to_limbs(factors).astype(np.float64)
    values = from_limbs((digits @ projection.of_columns).astype(np.int64))
    for t, rho in enumerate(rhos):
        values[t] += last * rho
    return [value % SCALAR_ORDER for value in values]


def _combine(
    claim: _Claim, public: Sequence[int], weights: Sequence[int]
) -> _Combination:
    """Weigh the equations of one proof; `public` is its λ(e)."""
    first, second, third = weights
    last = len(claim.commitments)
    alpha, e = claim.challenges.alpha, claim.challenges.e
    powers = compute_powers(e, 2 * last + 2)
    inverses = compute_powers(pow(e, -1, SCALAR_ORDER), last + 1)
    value = sum(
        z * ((z_prime + alpha * known) % SCALAR_ORDER)
        for z, z_prime, known in zip(claim.z, claim.z_prime, public, strict=True)
    )
    rhos = compute_powers(claim.challenges.rho, NUM_PROJECTIONS)
    tau = sum(map(mul, rhos, claim.projections))
    z_blinding, z_prime_blinding, relation_blinding = claim.blindings
    rows = [
        first * up + second * down
        for up, down in zip(powers[1 : last + 1], inverses[1:], strict=True)
    ]
    rows[-1] = first * powers[last]  # z' leaves the masks out
    coefficients = (
        third * (powers[exponent] if exponent > 0 else inverses[-exponent])
        for exponent in compute_exponents(last - 2)
    )
    return _Combination(
        index=claim.index,
        vector=[
            first * z + second * z_prime
            for z, z_prime in zip(claim.z, claim.z_prime, strict=True)
        ],
        blinding=(
            first * z_blinding + second * z_prime_blinding + third * relation_blinding
        ),
        scalar=third * (value - claim.statement.squared_bound - alpha * tau),
        points=[*claim.commitments, *claim.masks, *claim.coefficients],
        scalars=[
            -scalar
            for scalar in chain(rows, (first, second * powers[last + 1]), coefficients)
        ],
    )


def _find_nonzero(combinations: Sequence[_Combination]) -> list[int]:
    """Return the indices of those whose sum is not the identity, by bisection."""
    if not combinations or _sum_combinations(combinations) == G1Point.identity():
        return []
    if len(combinations) == 1:
        return [combinations[0].index]
    half = len(combinations) // 2
    return [
        *_find_nonzero(combinations[:half]),
        *_find_nonzero(combinations[half:]),
    ]


def _sum_combinations(combinations: Sequence[_Combination]) -> G1Point:
    columns = zip(*(c.vector for c in combinations), strict=True)
    vector = [sum(column) for column in columns]
    points = [*get_generators(len(vector)), get_blinding_generator()]
    points.append(get_scalar_generator())
    scalars = [*vector, sum(c.blinding for c in combinations)]
    scalars.append(sum(c.scalar for c in combinations))
    for combination in combinations:
        points += combination.points
        scalars += combination.scalars
    return sum_products(points, scalars)


def _split(data: bytes, size: int) -> list[bytes]:
    return [data[begin : begin + size] for begin in range(0, len(data), size)]
