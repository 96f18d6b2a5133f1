"""Honest proofs are accepted, to the last bit of the bound, and show no secrets."""

import hashlib
import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from protocol.clipping import compute_squared_norm
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    commit_rows,
    commit_scalars,
    encode_scalar,
    parse_scalar,
)
from protocol.modes.mpc.norm_proof import (
    MASK_BITS,
    MAX_PROJECTION,
    MAX_SQUARED_BOUND,
    InvalidProofError,
    compute_blinding_challenges,
    compute_challenges,
    compute_exponents,
    compute_powers,
    expand_projection,
    start_transcript,
    verify_norm_proofs,
)
from protocol.modes.mpc.norm_prover import (
    _Nonces,
    commit_update,
    find_four_squares,
    prove_norm,
)
from protocol.modes.mpc.projections import NUM_PROJECTIONS
from tests.paths import VECTORS
from tests.proving import verify_norm_proof
from tests.slow_norm_prover import FastGroup, PyEccGroup, SlowProver, expand
from tests.vectors.norm_proof.generate import (
    IDENTITY,
    NUM_ROWS,
    NUM_VALUES,
    OUTSIDE,
    ROW_LENGTH,
    build_norm_proof,
    decode_proof,
    encode_proof,
    make_prover,
    make_values,
    read_proof,
    read_statement,
    render,
)
from tests.vectors.shares.generate import SeededEntropy

FILE = VECTORS / "norm_proof" / "norm_proof.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))
CONTEXT = b"context"


def commit(values, *, gap=1_000, seed=1, context=CONTEXT, **others):
    bound = compute_squared_norm(values) + gap
    return commit_update(
        values,
        **{
            "squared_bound": bound,
            "entropy": SeededEntropy(seed),
            **others,
        },
    ).bind(context)


@cache
def make_proof(seed=1):
    state = commit(make_values(seed), seed=seed)
    return state, prove_norm(state)


# Vectors


def test_the_generator_gives_the_vectors():
    assert render(build_norm_proof()) == FILE.read_text(encoding="utf-8")


def test_the_good_vector_is_accepted():
    verify_norm_proof(read_statement(VECTORS), read_proof(VECTORS))


def test_the_good_vector_has_its_challenges():
    challenges = compute_challenges(read_statement(VECTORS), read_proof(VECTORS))

    assert challenges.seed.hex() == VECTORS["seed"]
    for name in ("rho", "alpha", "e"):
        assert encode_scalar(getattr(challenges, name)).hex() == VECTORS[name]


def test_the_good_vector_has_its_projection():
    seed = bytes.fromhex(VECTORS["seed"])
    projection = expand_projection(read_statement(VECTORS), seed)

    for name in ("of_rows", "of_columns"):
        digest = hashlib.sha256(getattr(projection, name).tobytes()).hexdigest()
        assert digest == VECTORS[f"{name}_sha256"]


@pytest.mark.parametrize("bad", VECTORS["bad"], ids=lambda bad: bad["why"])
def test_bad_vectors_are_refused(bad):
    statement = read_statement(VECTORS, bad["changes"])

    with pytest.raises(InvalidProofError) as caught:
        verify_norm_proof(statement, read_proof(VECTORS, bad["changes"]))
    assert caught.value.reason == bad["reason"]
    assert caught.value.detail in str(caught.value)


# Two provers


def make_slow(state, **others):
    """Return a slow prover of the same statement, with the same secrets."""
    statement = state.statement
    values, length = state.values.tolist(), statement.row_length
    entropy = SeededEntropy("slow")
    return SlowProver(
        context=statement.context,
        num_values=statement.num_values,
        row_length=length,
        squared_bound=statement.squared_bound,
        rows=[values[i : i + length] for i in range(0, len(values), length)],
        squares=state.squares,
        masks=state.masks,
        blindings=state.blindings,
        draw=lambda: int.from_bytes(entropy(64), "little") % SCALAR_ORDER,
        **others,
    )


def get_nonces(state):
    transcript, _ = start_transcript(state.statement)
    nonces = _Nonces.derive(state.nonce_key, transcript.state, state.statement)
    return nonces.mu, nonces.nu, nonces.nu_blinding, nonces.blindings


@pytest.mark.parametrize("group", [PyEccGroup, FastGroup])
def test_both_provers_agree_to_the_bit(group):
    state, proof = make_proof()
    slow = make_slow(state, group=group)

    assert slow.statement == state.statement
    assert slow.prove(nonces=get_nonces(state)) == proof


@pytest.mark.parametrize(
    ("num_values", "row_length"), [(1, 512), (512, 512), (1500, 512), (3000, 1024)]
)
def test_both_provers_agree_on_other_shapes(num_values, row_length):
    values = np.full(num_values, 1 - 2**19)
    state = commit(values, gap=2**61, row_length=row_length)
    slow = make_slow(state)

    assert slow.prove(nonces=get_nonces(state)) == prove_norm(state)


def test_the_slow_prover_is_accepted_with_nonces_of_its_own():
    prover = make_prover("b")

    verify_norm_proof(prover.statement, prover.prove())


def test_the_fast_prover_is_exact_with_the_largest_values():
    values = np.full(5_000, 2**19 - 1)
    values[::2] *= -1
    state = commit(values, row_length=2048)

    verify_norm_proof(state.statement, prove_norm(state))


# The bound


@pytest.mark.parametrize("gap", [0, 1, 2, 3, 7, 2**40])
def test_the_bound_may_be_reached_but_not_exceeded(gap):
    values = make_values(6)
    state = commit(values, gap=gap)
    proof = prove_norm(state)

    verify_norm_proof(state.statement, proof)
    with pytest.raises(ValueError, match="clip it first"):
        commit(values, gap=-1 - gap)


def test_what_no_statement_is_about_is_not_committed_to():
    with pytest.raises(ValueError, match="a squared norm bound"):
        commit(make_values(1), gap=MAX_SQUARED_BOUND)
    with pytest.raises(ValueError, match="don't fit rows of 512"):
        commit(np.zeros(512 * 199 + 1, np.int64), row_length=512)
    with pytest.raises(ValueError, match="a row length of 300"):
        commit(make_values(1), row_length=300)
    with pytest.raises(ValueError, match="clip it first"):
        commit(np.array([2**19]))


@pytest.mark.parametrize("bound", [0, 1, MAX_SQUARED_BOUND])
def test_the_zero_update_is_within_every_bound(bound):
    state = commit(np.zeros(NUM_VALUES, np.int64), gap=bound)

    verify_norm_proof(state.statement, prove_norm(state))


def test_the_update_is_committed_to_as_anywhere_else():
    state, _ = make_proof()
    statement, blindings = state.statement, state.blindings

    assert statement.rows == commit_rows(state.values, blindings[:NUM_ROWS])
    assert statement.squares == commit_scalars(state.squares, blindings[NUM_ROWS])
    assert statement.masks == commit_scalars(state.masks, blindings[NUM_ROWS + 1])


def test_squares_fill_the_gap_and_masks_are_in_range():
    state, _ = make_proof()
    norm = compute_squared_norm(state.values)

    total = norm + sum(a * a for a in state.squares)
    assert total == state.statement.squared_bound
    assert len(state.masks) == NUM_PROJECTIONS
    assert all(-(2**MASK_BITS) <= y < 2**MASK_BITS for y in state.masks)
    assert (
        max(state.masks)
        > 2 ** (MASK_BITS - 1)
        > -(2 ** (MASK_BITS - 1))
        > min(state.masks)
    )
    assert len(state.blindings) == NUM_ROWS + 3


@pytest.mark.parametrize(("num_values", "bits"), [(10**6, 66), (2**24, 62)])
def test_masks_hide_as_well_as_is_said(num_values, bits):
    # K · Σ|x'| / 2^114, for values and squares as large as can be.
    moved = num_values * 2**19 + 4 * 2**31

    assert NUM_PROJECTIONS * moved * 2**bits < 2 ** (MASK_BITS + 1)


def test_the_statement_chooses_its_row_length():
    assert commit(make_values(1)).statement.row_length == 512
    assert commit(make_values(1), row_length=1024).statement.row_length == 1024


# What others check


def test_projections_are_those_of_the_update_plus_masks():
    state, proof = make_proof()
    entries = [*state.values.tolist(), *[0] * (NUM_ROWS * ROW_LENGTH - NUM_VALUES)]
    entries += state.squares
    seed = compute_challenges(state.statement, proof).seed
    rows = np.array(expand(seed, NUM_ROWS, ROW_LENGTH)).reshape(NUM_PROJECTIONS, -1)

    expected = tuple(
        sum(a * b for a, b in zip(row, entries, strict=False)) + mask
        for row, mask in zip(rows.tolist(), state.masks, strict=True)
    )
    assert proof.projection_values == expected
    assert max(map(abs, expected)) <= MAX_PROJECTION


def test_the_blinding_of_z_combines_what_is_shared():
    state, proof = make_proof()
    challenges = compute_blinding_challenges(
        state.statement, compute_challenges(state.statement, proof)
    )

    *bound, of_mask = state.blindings
    combined = sum(c * s for c, s in zip(challenges, bound, strict=True))
    assert parse_scalar(proof.z_blinding) == (of_mask + combined) % SCALAR_ORDER
    powers = [encode_scalar(c).hex() for c in challenges]
    assert len(powers) == NUM_ROWS + 2
    e = challenges[0]
    assert list(challenges) == [pow(e, i, SCALAR_ORDER) for i in range(1, NUM_ROWS + 3)]


def test_the_vectors_blinding_challenges_are_the_vectors():
    statement = read_statement(VECTORS)
    challenges = compute_blinding_challenges(
        statement, compute_challenges(statement, read_proof(VECTORS))
    )

    expected = VECTORS["blinding_challenges"]
    assert [encode_scalar(power).hex() for power in challenges] == expected


def test_a_proof_survives_the_journey():
    _, proof = make_proof()

    assert decode_proof(encode_proof(proof)) == proof


def test_commitments_are_stored_in_order():
    statement = make_proof()[0].statement

    assert statement.commitments == (
        *statement.rows,
        statement.squares,
        statement.masks,
    )
    assert statement.to_blob() == b"".join(statement.commitments)


@pytest.mark.parametrize(
    ("reason", "changes"),
    [
        ("WRONG_SHAPE", {"rows": ()}),
        ("WRONG_SHAPE", {"num_values": 1025}),
        ("INVALID_ENCODING", {"rows": (IDENTITY, IDENTITY)}),
        ("INVALID_ENCODING", {"squares": OUTSIDE}),
        ("INVALID_ENCODING", {"masks": b""}),
    ],
)
def test_commitments_are_checked_before_the_proof(reason, changes):
    prover, proof = make_proof()

    verify_norm_proof(prover.statement, proof)
    with pytest.raises(InvalidProofError, match=reason):
        verify_norm_proof(replace(prover.statement, **changes), proof)


# Shapes


@pytest.mark.parametrize(
    "changes",
    [
        {"row_length": 256},
        {"row_length": 768},
        {"row_length": 0},
        {"row_length": 2**15},
        {"num_values": 0},
        {"num_values": -1},
        {"num_values": 512 * 199 + 1},
        {"num_values": 2**24 - 2**14 + 1, "row_length": 2**14},
        {"squared_bound": -1},
        {"squared_bound": MAX_SQUARED_BOUND + 1},
    ],
)
def test_impossible_statements_are_refused(changes):
    statement = make_proof()[0].statement

    with pytest.raises(ValueError):
        replace(statement, **changes)


@pytest.mark.parametrize(
    ("num_values", "row_length"), [(512 * 199, 512), (2**24 - 2**14, 2**14)]
)
def test_the_largest_statements_are_possible(num_values, row_length):
    statement = replace(
        make_proof()[0].statement, num_values=num_values, row_length=row_length
    )

    assert statement.num_rows == num_values // row_length


def test_exponents_leave_out_what_is_public_and_what_is_zero():
    assert compute_exponents(1) == (-3, -2, -1, 1, 2, 4, 5, 6, 7)
    assert len(compute_exponents(98)) == 300


def test_powers_begin_with_one():
    assert compute_powers(5, 1) == [1]
    assert compute_powers(2**200, 3) == [1, 2**200, 2**400 % SCALAR_ORDER]


# Batches


def test_a_batch_names_the_bad_ones():
    items = []
    for seed in range(7):
        state, proof = make_proof(seed)
        if seed in {2, 5}:
            proof = replace(proof, z_blinding=encode_scalar(seed))
        if seed == 3:
            proof = replace(proof, z=b"")
        items.append((state.statement, proof))

    verdicts = verify_norm_proofs(items, b"entropy")
    assert [verdict and verdict.reason for verdict in verdicts] == [
        None, None, "NOT_PROVEN", "WRONG_SHAPE", None, "NOT_PROVEN", None,
    ]  # fmt: skip


def test_an_empty_batch_is_good():
    assert verify_norm_proofs([]) == []


def test_a_large_batch_is_good():
    state, proof = make_proof()
    items = [(state.statement, proof)] * 20

    assert verify_norm_proofs(items) == [None] * 20
    items[18] = (state.statement, replace(proof, z_blinding=bytes(32)))
    verdicts = verify_norm_proofs(items)
    assert [i for i, verdict in enumerate(verdicts) if verdict] == [18]


def test_bounds_and_contexts_may_differ_within_a_batch():
    state = commit(make_values(1), gap=77, seed=9, context=b"another")
    items = [(state.statement, prove_norm(state))]
    items += [(make_proof()[0].statement, make_proof()[1])]

    assert verify_norm_proofs(items) == [None, None]


# Secrets


def test_printing_a_state_shows_no_secret():
    state = commit(make_values(1), gap=2**61 - 1)  # whose squares are long
    shown = repr(state)

    assert "num_values=600" in shown
    for name in ("values", "squares", "masks", "blindings", "nonce_key"):
        assert f" {name}=" not in shown
        assert f"({name}=" not in shown
    for secret in (*state.squares, *state.masks, *state.blindings):
        assert str(secret) not in shown


def test_proving_again_gives_the_same_bytes():
    state, proof = make_proof()

    assert prove_norm(state) == proof


def rebind(state, context):
    """Bind a state as nobody may: a second time."""
    return replace(state, statement=replace(state.statement, context=context))


def test_a_state_is_bound_once():
    state, _ = make_proof()

    assert state.bind(CONTEXT).statement == state.statement
    with pytest.raises(ValueError, match="a second context for the same masks"):
        state.bind(b"another")


def test_two_proofs_with_the_same_masks_would_show_the_update():
    # Why a state is bound once, and whoever tries again commits anew.
    values = make_values(3, num_values=400)
    state = commit(values)
    equations, shown = [], []
    for attempt in range(4):
        again = rebind(state, bytes([attempt]))
        proof = prove_norm(again)
        verify_norm_proof(again.statement, proof)
        seed = compute_challenges(again.statement, proof).seed
        rows = np.array(expand(seed, 1, ROW_LENGTH)).reshape(NUM_PROJECTIONS, -1)
        equations.append(rows)
        shown.append(np.array(proof.projection_values, dtype=object))
    columns = [*range(400), *range(ROW_LENGTH, ROW_LENGTH + 4)]
    left = np.concatenate([r[:, columns] - equations[0][:, columns] for r in equations])
    right = np.concatenate([(w - shown[0]).astype(np.float64) for w in shown])
    found = np.rint(np.linalg.lstsq(left.astype(np.float64), right)[0])
    assert found[:400].astype(np.int64).tolist() == values.tolist()


def test_nothing_random_is_used_twice():
    state, proof = make_proof()
    other = prove_norm(rebind(state, b"another"))
    third = prove_norm(replace(state, nonce_key=bytes(32)))

    for field in ("z_mask", "z_prime_mask", "z", "z_prime"):
        values = {getattr(p, field) for p in (proof, other, third)}
        assert len(values) == 3
    points = [point for p in (proof, other, third) for point in p.coefficients]
    assert len(set(points)) == len(points)


def test_commitments_with_other_entropy_have_nothing_in_common():
    values = make_values(1)
    first, second = commit(values, seed=1), commit(values, seed=2)

    assert not {*first.statement.commitments} & {*second.statement.commitments}
    assert not {*first.blindings} & {*second.blindings}
    assert not {*first.masks} & {*second.masks}
    assert first.nonce_key != second.nonce_key


# Four squares


@pytest.mark.parametrize(
    "numbers",
    [
        range(2_000),
        [4**k * n for k in (1, 10, 20) for n in (1, 2, 3, 7, 14, 15, 23)],
        [2**61 - 1, 2**62, 2**62 - 1, 10**18 + 9, 8 * 10**17 + 7],
    ],
)
def test_four_squares_add_up(numbers):
    entropy = SeededEntropy("squares")
    for number in numbers:
        squares = find_four_squares(number, entropy)
        assert sum(s * s for s in squares) == number
        assert min(squares) >= 0


def test_four_squares_vary():
    entropy = SeededEntropy("vary")

    assert len({find_four_squares(10**15, entropy) for _ in range(20)}) == 20
