"""Properties of commitments and norm proofs."""

import json
from contextlib import suppress
from functools import cache
from hashlib import sha512
from operator import mul

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from py_arkworks_bls12381 import G1Point

from protocol.clipping import compute_squared_norm
from protocol.modes.mpc import commitments, norm_proof
from protocol.modes.mpc.commitments import (
    POINT_SIZE,
    SCALAR_ORDER,
    combine_rows,
    commit_rows,
    encode_scalar,
    parse_scalar,
    verify_opening,
)
from protocol.modes.mpc.limbs import from_limbs, to_limbs
from protocol.modes.mpc.norm_proof import (
    InvalidProofError,
    compute_blinding_challenges,
    compute_challenges,
    expand_projection,
    verify_norm_proofs,
)
from protocol.modes.mpc.norm_prover import commit_update, find_four_squares, prove_norm
from protocol.modes.mpc.projections import NUM_PROJECTIONS
from schemas.codec import CodecError
from tests.paths import VECTORS
from tests.proving import verify_norm_proof
from tests.slow_norm_prover import FastGroup
from tests.vectors.norm_proof.generate import (
    decode_proof,
    encode_proof,
    make_prover,
    make_values,
    read_statement,
)
from tests.vectors.shares.generate import SeededEntropy

LARGEST = 2**19 - 1
VECTOR = json.loads((VECTORS / "norm_proof" / "norm_proof.json").read_text())
STATEMENT = read_statement(VECTOR)
BLOB = bytes.fromhex(VECTOR["proof"])

scalars = st.integers(0, SCALAR_ORDER - 1)


@st.composite
def updates(draw, max_values=1_500):
    """Draw updates of every length, dense and sparse, with extremes among them."""
    num_values = draw(st.integers(1, max_values))
    largest = draw(st.sampled_from([0, 1, 512, LARGEST]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    values = rng.integers(-largest, largest, num_values, endpoint=True)
    places = draw(st.lists(st.integers(0, num_values - 1), max_size=4))
    values[places] = draw(st.sampled_from([LARGEST, -LARGEST, 0]))
    return values


@settings(max_examples=25)
@given(
    updates(),
    st.sampled_from([512, 1024]),
    st.sampled_from([0, 1, 6, 10**9, 2**61]),
    st.binary(max_size=40),
    st.binary(min_size=32, max_size=32),
)
def test_an_honest_proof_is_always_accepted(values, row_length, gap, context, seed):
    state = commit_update(
        values,
        squared_bound=compute_squared_norm(values) + gap,
        entropy=SeededEntropy(seed.hex()),
        row_length=row_length,
    ).bind(context)
    statement = state.statement
    proof = prove_norm(state)

    verify_norm_proof(statement, proof)
    *bound, of_mask = state.blindings
    yielded = compute_challenges(statement, proof)
    challenges = compute_blinding_challenges(statement, yielded)
    combined = sum(c * s for c, s in zip(challenges, bound, strict=True))
    assert parse_scalar(proof.z_blinding) == (combined + of_mask) % SCALAR_ORDER
    projection = expand_projection(statement, yielded.seed)
    rows = np.einsum("ti,tj->tij", projection.of_rows, projection.of_columns)
    rows = rows.reshape(NUM_PROJECTIONS, -1).astype(np.int64)
    end = statement.num_rows * row_length
    projected = rows[:, : len(values)] @ values
    projected += rows[:, end : end + 4] @ np.array(state.squares)
    masked = zip(projected.tolist(), state.masks, strict=True)
    assert proof.projection_values == tuple(w + y for w, y in masked)


@settings(max_examples=60)
@given(st.integers(0, len(BLOB) - 1), st.integers(0, 7))
def test_a_proof_with_any_bit_flipped_is_refused(index, bit):
    blob = bytearray(BLOB)
    blob[index] ^= 1 << bit

    with pytest.raises((InvalidProofError, CodecError)):
        verify_norm_proof(STATEMENT, decode_proof(bytes(blob)))


class Exponents:
    """A group that is isomorphic to G1: what generators are raised to, modulo r.

    The equations of a proof hold in one exactly if they hold in the other, and here
    they cost little. It hides nothing, but nobody looks.
    """

    @staticmethod
    @cache
    def hash(name):
        return int.from_bytes(sha512(name).digest(), "little") % SCALAR_ORDER

    @staticmethod
    def sum(points, scalars):
        return sum(map(mul, points, scalars)) % SCALAR_ORDER

    @staticmethod
    def encode(point):
        return point.to_bytes(POINT_SIZE, "big")

    @staticmethod
    def parse(encoded):
        return [int.from_bytes(data, "big") % SCALAR_ORDER for data in encoded]

    @staticmethod
    def generators(count):
        return [Exponents.hash(b"G" + i.to_bytes(4, "big")) for i in range(count)]


@pytest.fixture
def cheap_group(monkeypatch):
    """The verifier computes with exponents, and the same thing once.

    That is λ(e) of the same challenges, and what a scalar's bytes stand for.
    """
    known = {}
    evaluate = norm_proof._evaluate

    def evaluate_once(claim):
        name = (claim.challenges.rho, claim.challenges.e)
        if name not in known:
            known[name] = evaluate(claim)
        return known[name]

    def sum_products(points, scalars):
        is_zero = Exponents.sum(points, list(scalars)) == 0
        return G1Point.identity() if is_zero else G1Point()

    for name, value in {
        "parse_points": Exponents.parse,
        "get_generators": cache(Exponents.generators),
        "get_blinding_generator": lambda: Exponents.hash(b"H"),
        "get_scalar_generator": lambda: Exponents.hash(b"U"),
        "sum_products": sum_products,
        "_evaluate": evaluate_once,
    }.items():
        monkeypatch.setattr(norm_proof, name, value)
    monkeypatch.setattr(commitments, "parse_scalar", cache(commitments.parse_scalar))


def make_small_proof(group):
    """Return the statement and the blob of a proof of one row."""
    values = make_values(4, num_values=3).tolist()
    entropy = SeededEntropy("small")
    norm = sum(value * value for value in values)
    prover = make_prover(
        "small",
        num_values=len(values),
        rows=[values],
        squares=find_four_squares(1_000, entropy),
        squared_bound=norm + 1_000,
        blindings=[int.from_bytes(entropy(31), "little") for _ in range(4)],
        group=group,
    )
    return prover.statement, encode_proof(prover.prove())


def find_survivors(statement, blob, places):
    """Return at which places a flipped bit leaves a proof that is accepted."""
    survivors = []
    for some in batched(places, 16):
        read = {}
        for place in some:
            flipped = bytearray(blob)
            flipped[place] ^= 1 << place % 8
            with suppress(CodecError):
                read[place] = decode_proof(bytes(flipped))
        verdicts = verify_norm_proofs([(statement, proof) for proof in read.values()])
        found = zip(read, verdicts, strict=True)
        survivors += [place for place, verdict in found if verdict is None]
    return survivors


def batched(items, count):
    return [items[begin : begin + count] for begin in range(0, len(items), count)]


@pytest.mark.usefixtures("cheap_group")
@pytest.mark.parametrize("step", [11, pytest.param(1, marks=pytest.mark.nightly)])
def test_a_proof_with_any_byte_flipped_is_refused(step):
    # Of the vectors z, which are long, one byte of each number.
    statement, blob = make_small_proof(Exponents)
    proof = decode_proof(blob)
    verify_norm_proof(statement, proof)
    places = set(range(len(blob)))
    for vector in (proof.z, proof.z_prime):
        begin = blob.index(vector)
        kept = {begin + 32 * i + i % 32 for i in range(len(vector) // 32)}
        places -= set(range(begin, begin + len(vector))) - kept

    assert len(places) > 6_000
    # Points have 48 bytes, scalars 32, projections 15: steps of 11 meet each of them.
    assert find_survivors(statement, blob, sorted(places)[::step]) == []


def test_a_proof_with_any_byte_of_a_point_flipped_is_refused():
    # What the test above cannot tell: here they are points of the curve, or none.
    statement, blob = make_small_proof(FastGroup)
    proof = decode_proof(blob)
    verify_norm_proof(statement, proof)
    points = [proof.z_mask, proof.z_prime_mask, *proof.coefficients]
    begins = map(blob.index, points)
    places = [begin + i for begin in begins for i in range(POINT_SIZE)]

    assert len(set(places)) == POINT_SIZE * len(points)
    assert find_survivors(statement, blob, places) == []


@settings(max_examples=15)
@given(st.data(), st.integers(1, 1_400), st.integers(1, 4))
def test_sums_of_commitments_open_to_sums(data, num_values, num_agents):
    num_rows = -(-num_values // 512)
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    total = np.zeros(num_values, np.int64)
    total_blindings = [0] * num_rows
    committed, weights = [], []
    for _ in range(num_agents):
        values = rng.integers(-LARGEST, LARGEST, num_values, endpoint=True)
        blindings = [data.draw(scalars) for _ in range(num_rows)]
        weight = data.draw(st.integers(1, 2**31))
        committed.append(commit_rows(values, blindings))
        weights.append(weight)
        total += weight * values
        total_blindings = [
            a + weight * b for a, b in zip(total_blindings, blindings, strict=True)
        ]
    rows = combine_rows(committed, weights)

    assert verify_opening(rows, total, total_blindings)
    index = data.draw(st.integers(0, num_values - 1))
    total[index] += data.draw(st.sampled_from([1, -1, 2**32]))
    assert not verify_opening(rows, total, total_blindings)


@given(st.integers(0, 2**62), st.integers())
def test_every_number_is_a_sum_of_four_squares(number, seed):
    squares = find_four_squares(number, SeededEntropy(seed))

    assert sum(s * s for s in squares) == number


@given(st.lists(st.integers(0, 2**256 - 1), min_size=1, max_size=20))
def test_digits_stand_for_what_they_were_taken_from(values):
    assert from_limbs(to_limbs(values).astype(np.int64)) == values


@given(
    st.lists(
        st.lists(st.integers(-(2**62) + 1, 2**62 - 1), min_size=3, max_size=3),
        min_size=1,
        max_size=31,
    )
)
def test_sums_of_digits_stand_for_their_sum(planes):
    expected = [
        sum(p << 16 * i for i, p in enumerate(column))
        for column in zip(*planes, strict=True)
    ]

    assert from_limbs(np.array(planes, np.int64)) == expected


@given(st.binary(min_size=32, max_size=32))
def test_a_scalar_has_one_spelling(data):
    try:
        assert encode_scalar(parse_scalar(data)) == data
    except ValueError:
        assert int.from_bytes(data, "little") >= SCALAR_ORDER
