"""Lies about an update, or about whose it is, are refused."""

from dataclasses import fields, replace
from functools import cache
from math import isqrt

import numpy as np
import pytest
from py_arkworks_bls12381 import G1Point, Scalar

from protocol.modes.mpc import norm_proof
from protocol.modes.mpc.commitments import (
    SCALAR_ORDER,
    commit_scalars,
    encode_point,
    encode_scalar,
    parse_point,
    parse_scalar,
)
from protocol.modes.mpc.norm_proof import (
    MAX_PROJECTION,
    NormProof,
    start_transcript,
    verify_norm_proofs,
)
from protocol.modes.mpc.norm_prover import find_four_squares
from protocol.modes.mpc.projections import NUM_PROJECTIONS
from tests.proving import verify_norm_proof
from tests.slow_norm_prover import SlowProver, centre
from tests.vectors.norm_proof.generate import (
    IDENTITY,
    NUM_ROWS,
    NUM_VALUES,
    OUTSIDE,
    ROW_LENGTH,
    make_prover,
    make_values,
)
from tests.vectors.shares.generate import SeededEntropy

VALUES = make_values(1).tolist()
NORM = sum(value * value for value in VALUES)
BOUND = NORM + 12_345
LAST = (SCALAR_ORDER - 1).to_bytes(32, "little")
#: i² = -1 modulo r: a² + (i a)² is zero for every a.
ROOT = pow(7, (SCALAR_ORDER - 1) // 4, SCALAR_ORDER)


@cache
def prove(name="a"):
    prover = make_prover(name)
    return prover.statement, prover.prove()


def find_refusal(statement, proof):
    (verdict,) = verify_norm_proofs([(statement, proof)])
    return verdict and str(verdict.reason)


def to_rows(values):
    return [values[:ROW_LENGTH], values[ROW_LENGTH:]]


def test_what_is_attacked_below_is_accepted():
    assert find_refusal(*prove("a")) is None
    assert find_refusal(*prove("b")) is None
    assert ROOT * ROOT % SCALAR_ORDER == SCALAR_ORDER - 1


# Replays


@pytest.mark.parametrize(
    "changes",
    [
        {"context": b"another agent"},
        {"context": b""},
        {"squared_bound": BOUND - 1},
        {"squared_bound": BOUND + 1},
        {"num_values": NUM_VALUES + 1},
    ],
    ids=str,
)
def test_a_proof_is_good_for_its_statement_alone(changes):
    statement, proof = prove()

    assert find_refusal(replace(statement, **changes), proof) == "NOT_PROVEN"


def test_a_proof_of_other_commitments_is_refused():
    statement, _ = prove("a")
    other, proof = prove("b")

    assert find_refusal(statement, proof) == "NOT_PROVEN"
    for name in ("rows", "squares", "masks"):
        mixed = replace(other, **{name: getattr(statement, name)})
        assert find_refusal(mixed, proof) == "NOT_PROVEN"


def test_no_part_of_another_proof_fits():
    statement, proof = prove("a")
    _, other = prove("b")

    for part in fields(NormProof):
        mixed = replace(proof, **{part.name: getattr(other, part.name)})
        assert find_refusal(statement, mixed) == "NOT_PROVEN"


def test_commitments_shifted_by_a_known_vector_are_not_proven():
    statement, proof = prove()
    shift = parse_point(commit_scalars([1], 0))
    shifted = encode_point(parse_point(statement.rows[0]) + shift)

    moved = replace(statement, rows=(shifted, *statement.rows[1:]))
    assert find_refusal(moved, proof) == "NOT_PROVEN"


# Encodings


def each_point(statement, proof):
    """Yield the name, and a function that replaces one point, for every point."""
    for index in range(len(statement.rows)):
        rows = [*statement.rows]
        yield (
            f"row {index}",
            lambda point, rows=rows, index=index: (
                replace(statement, rows=(*rows[:index], point, *rows[index + 1 :])),
                proof,
            ),
        )
    for name in ("squares", "masks"):
        yield (
            name,
            lambda point, name=name: (replace(statement, **{name: point}), proof),
        )
    for name in ("z_mask", "z_prime_mask"):
        yield (
            name,
            lambda point, name=name: (statement, replace(proof, **{name: point})),
        )
    points = proof.coefficients
    for index in range(len(points)):
        yield (
            f"coefficient {index}",
            lambda point, index=index: (
                statement,
                replace(
                    proof,
                    coefficients=(*points[:index], point, *points[index + 1 :]),
                ),
            ),
        )


POINTS = dict(each_point(*prove()))


@pytest.mark.parametrize("name", POINTS)
@pytest.mark.parametrize("point", [IDENTITY, OUTSIDE, b"", bytes(48), b"\xff" * 48])
def test_no_point_may_be_anything_but_a_point_of_the_group(name, point):
    assert find_refusal(*POINTS[name](point)) == "INVALID_ENCODING"


@pytest.mark.parametrize("name", POINTS)
def test_no_point_may_be_another(name):
    point = commit_scalars([1], 2)

    assert find_refusal(*POINTS[name](point)) == "NOT_PROVEN"


@pytest.mark.parametrize("name", POINTS)
def test_no_point_may_have_a_part_outside_the_subgroup(name):
    outside = G1Point.from_compressed_bytes_unchecked(OUTSIDE)
    # r times any point: nothing is left of its part in the subgroup.
    small = outside * Scalar.from_le_bytes(LAST) + outside
    good = parse_point(commit_scalars([1], 2))
    assert small != G1Point.identity()

    refusal = find_refusal(*POINTS[name](encode_point(good + small)))
    assert refusal == "INVALID_ENCODING"


SCALARS = [
    *((name, 32 * i) for name in ("z", "z_prime") for i in (0, 1, 308, 309, 511)),
    *((name, 0) for name in ("z_blinding", "z_prime_blinding", "relation_blinding")),
]


@pytest.mark.parametrize(("name", "begin"), SCALARS)
def test_scalars_have_one_spelling_and_one_value(name, begin):
    statement, proof = prove()
    data = getattr(proof, name)
    value = int.from_bytes(data[begin : begin + 32], "little")

    def change(scalar):
        changed = data[:begin] + scalar + data[begin + 32 :]
        return find_refusal(statement, replace(proof, **{name: changed}))

    for wrapped in (value + SCALAR_ORDER, SCALAR_ORDER, 2**256 - 1):
        assert change(wrapped.to_bytes(32, "little")) == "INVALID_ENCODING"
    for wrong in (value + 1, value - 1, -value, 0):
        assert change(encode_scalar(wrong)) == "NOT_PROVEN"


@pytest.mark.parametrize("part", fields(NormProof), ids=lambda part: part.name)
def test_every_field_has_one_length(part):
    statement, proof = prove()
    value = getattr(proof, part.name)
    if isinstance(value, tuple):
        others = [(), value[:-1], (*value, value[0])]
    else:
        others = [b"", value[:-1], value + b"\0", value[: len(value) // 2]]

    for other in others:
        changed = replace(proof, **{part.name: other})
        assert find_refusal(statement, changed) in {"WRONG_SHAPE", "INVALID_ENCODING"}


def test_there_are_as_many_rows_as_values_need():
    statement, proof = prove()
    rows = statement.rows

    for other in ((), rows[:1], (*rows, rows[0])):
        changed = replace(statement, rows=other)
        assert find_refusal(changed, proof) == "WRONG_SHAPE"


# Updates that are too long


@pytest.mark.parametrize("squares", [[1, 1, 1, 1], [0, 0, 0, 0]])
def test_an_update_that_is_twice_as_long_is_refused(squares):
    rows = to_rows([2 * value for value in VALUES])
    prover = make_prover(rows=rows, squares=squares, squared_bound=BOUND)

    assert find_refusal(prover.statement, prover.prove()) == "NOT_PROVEN"


def test_an_update_that_is_one_too_long_is_refused():
    bound = NORM - 1
    for squares in ([0, 0, 0, 0], [1, 0, 0, 0]):
        prover = make_prover(squares=squares, squared_bound=bound)
        assert find_refusal(prover.statement, prover.prove()) == "NOT_PROVEN"


def test_squares_of_another_sum_are_refused():
    prover = make_prover(squares=[111, 4, 2, 3], squared_bound=BOUND)

    assert find_refusal(prover.statement, prover.prove()) == "NOT_PROVEN"


def test_an_imaginary_square_is_refused():
    # -1 = i²: modulo r a "square" makes up for any excess.
    prover = make_prover(squares=[ROOT, 0, 0, 0], squared_bound=NORM - 1)
    said = [lambda w: w, lambda w: [value % 2**100 for value in w]]

    reasons = [find_refusal(prover.statement, prover.prove(lie)) for lie in said]
    assert reasons == ["PROJECTION_OUT_OF_RANGE", "NOT_PROVEN"]


# Wraparound: entries so large that their squares vanish modulo r


def wrapped_pair(size):
    """Return rows with a and i a among honest values: 0 in all, modulo r."""
    values = [*VALUES]
    values[7], values[590] = size, size * ROOT % SCALAR_ORDER
    return values


def wrapped_four():
    """Return rows with four values of 128 bits whose squares are r in all."""
    values = [*VALUES]
    values[3:7] = find_four_squares(SCALAR_ORDER, SeededEntropy("r"))
    return values


def wrapped_all():
    """Return rows of equal values, as small as they can be to reach r together."""
    return [isqrt(SCALAR_ORDER // (NUM_ROWS * ROW_LENGTH))] * (NUM_ROWS * ROW_LENGTH)


def find_root(square):
    """Return a square root modulo r, or None (Tonelli, Shanks)."""
    if pow(square, (SCALAR_ORDER - 1) // 2, SCALAR_ORDER) != 1:
        return None
    odd, twos = SCALAR_ORDER - 1, 0
    while odd % 2 == 0:
        odd, twos = odd // 2, twos + 1
    factor = pow(7, odd, SCALAR_ORDER)  # of order 2^twos: 7 is no square
    root = pow(square, (odd + 1) // 2, SCALAR_ORDER)
    rest = pow(square, odd, SCALAR_ORDER)
    for exponent in reversed(range(twos - 1)):
        if pow(rest, 2**exponent, SCALAR_ORDER) != 1:
            root = root * factor % SCALAR_ORDER
            rest = rest * factor * factor % SCALAR_ORDER
        factor = factor * factor % SCALAR_ORDER
    return root


def wrapped_root(size, trial):
    """Return rows with a drawn a, and the b that makes the norm the bound, modulo r."""
    entropy = SeededEntropy(f"root {size} {trial}")
    values = [*VALUES]
    while True:
        drawn = int.from_bytes(entropy(64), "little") % (size // 2)
        values[0], values[ROW_LENGTH + 1] = size // 2 + drawn, 0
        gap = BOUND - sum(value * value for value in values)
        root = find_root(gap % SCALAR_ORDER)
        if root is not None:
            values[ROW_LENGTH + 1] = root
            return values


WRAPPED = {
    "just beyond the limit": wrapped_pair(4 * MAX_PROJECTION + 1),
    "2^120": wrapped_pair(2**120),
    "2^200": wrapped_pair(2**200),
    "half of r": wrapped_pair(SCALAR_ORDER // 2),
    "four of 128 bits": wrapped_four(),
    "all of 122 bits": wrapped_all(),
    **{
        f"drawn {name}, and a root, {trial}": wrapped_root(size, trial)
        for name, size, trials in (
            ("below 2^117", 2**117, 1),
            ("below 2^120", 2**120, 1),
            ("below 2^200", 2**200, 1),
            ("modulo r", SCALAR_ORDER, 3),
        )
        for trial in range(trials)
    },
}


def make_wrapped(name, **others):
    values = WRAPPED[name]
    gap = (BOUND - sum(value * value for value in values)) % SCALAR_ORDER
    squares = find_four_squares(gap, SeededEntropy("gap"))
    return make_prover(
        rows=to_rows(values), squares=squares, squared_bound=BOUND, **others
    )


DRAWN = SeededEntropy("lies")


def draw_projection():
    return int.from_bytes(DRAWN(16), "little") % 2**113


def test_an_attacker_who_takes_a_root_needs_no_squares():
    rooted = [values for name, values in WRAPPED.items() if "root" in name]
    assert len(rooted) == 6
    for values in rooted:
        norm = sum(value * value for value in values)
        assert norm % SCALAR_ORDER == BOUND
        assert norm > 2**230


@pytest.mark.parametrize("name", WRAPPED)
def test_wraparound_is_out_of_range(name):
    prover = make_wrapped(name)

    reason = find_refusal(prover.statement, prover.prove())
    assert reason == "PROJECTION_OUT_OF_RANGE"


@pytest.mark.parametrize("name", WRAPPED)
@pytest.mark.parametrize(
    "lie",
    [
        lambda w: [max(-MAX_PROJECTION, min(MAX_PROJECTION, v)) for v in w],
        lambda w: [v if abs(v) <= MAX_PROJECTION else v % 2**113 for v in w],
        lambda w: [0] * len(w),
        lambda w: [v if abs(v) <= MAX_PROJECTION else draw_projection() for v in w],
    ],
    ids=["saturated", "reduced", "zero", "drawn"],
)
def test_wraparound_with_projections_in_range_is_not_proven(name, lie):
    prover = make_wrapped(name)

    assert find_refusal(prover.statement, prover.prove(lie)) == "NOT_PROVEN"


SEED = bytes(range(32))


class Foretold(SlowProver):
    """A prover where the seed is no challenge, but known from the beginning."""

    def start(self):
        messages, _ = super().start()
        return messages, SEED


@pytest.fixture
def foretold(monkeypatch):
    """The verifier of `Foretold`."""

    def start(statement):
        return start_transcript(statement)[0], SEED

    monkeypatch.setattr(norm_proof, "start_transcript", start)


@pytest.mark.usefixtures("foretold")
@pytest.mark.parametrize("name", WRAPPED)
def test_whoever_knows_the_projection_beforehand_can_wrap_around(name):
    # Why the seed depends on all commitments, the one to the masks among them.
    careful = make_wrapped(name, prover=Foretold)
    entries = [entry for row in careful.bound for entry in row]
    rows = np.array(careful.expand(), dtype=np.int8).reshape(NUM_PROJECTIONS, -1)
    places = [place for place, entry in enumerate(entries) if entry]
    entries = [entries[place] for place in places]
    masks = [
        centre(-sum(x for x, bit in zip(entries, row, strict=True) if bit))
        for row in rows[:, places].tolist()
    ]
    prover = make_wrapped(name, prover=Foretold, masks=masks)

    assert find_refusal(prover.statement, prover.prove()) is None


@pytest.mark.parametrize("attempt", range(3))
def test_masks_for_the_projection_of_before_are_too_late(attempt):
    # Masks are committed to, so whoever fits them gets another projection.
    name = "2^120"
    masks = None
    for _ in range(attempt + 1):
        prover = make_wrapped(name, **({} if masks is None else {"masks": masks}))
        projected = prover.project(prover.expand())
        masks = [
            centre(y - w)
            for y, w in zip(prover.masks[:NUM_PROJECTIONS], projected, strict=True)
        ]
    prover = make_wrapped(name, masks=masks)

    reason = find_refusal(prover.statement, prover.prove())
    assert reason == "PROJECTION_OUT_OF_RANGE"


# Lies about projections


@pytest.mark.parametrize("index", [0, 64, 308])
@pytest.mark.parametrize("by", [1, -1, 2**64])
def test_projections_are_what_the_commitments_say(index, by):
    def lie(w):
        return [*w[:index], w[index] + by, *w[index + 1 :]]

    prover = make_prover()
    assert find_refusal(prover.statement, prover.prove(lie)) == "NOT_PROVEN"


def test_projections_may_not_be_permuted():
    prover = make_prover()

    proof = prover.prove(lambda w: w[::-1])
    assert find_refusal(prover.statement, proof) == "NOT_PROVEN"


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (MAX_PROJECTION, None),
        (-MAX_PROJECTION, None),
        (MAX_PROJECTION + 1, "PROJECTION_OUT_OF_RANGE"),
        (-MAX_PROJECTION - 1, "PROJECTION_OUT_OF_RANGE"),
    ],
)
def test_the_range_of_projections_has_an_end(value, reason):
    # An update of zeros: its projections are its masks, whatever the projection is.
    masks = [0] * (NUM_PROJECTIONS - 1) + [value]
    prover = make_prover(
        rows=to_rows([0] * NUM_VALUES), squares=[0] * 4, squared_bound=0, masks=masks
    )

    assert find_refusal(prover.statement, prover.prove()) == reason


# Batches


@pytest.mark.parametrize(
    "name", ["z_blinding", "z_prime_blinding", "relation_blinding"]
)
def test_errors_of_two_proofs_do_not_cancel(name):
    items = []
    for prover, by in (("a", 1), ("b", -1)):
        statement, proof = prove(prover)
        wrong = encode_scalar(parse_scalar(getattr(proof, name)) + by)
        items.append((statement, replace(proof, **{name: wrong})))

    verdicts = verify_norm_proofs(items)
    assert [str(verdict.reason) for verdict in verdicts] == ["NOT_PROVEN"] * 2


def test_errors_of_one_proof_do_not_cancel():
    statement, proof = prove()

    def add(name, by):
        return encode_scalar(parse_scalar(getattr(proof, name)) + by)

    wrong = replace(
        proof,
        z_blinding=add("z_blinding", 1),
        z_prime_blinding=add("z_prime_blinding", -1),
    )
    assert find_refusal(statement, wrong) == "NOT_PROVEN"


def test_a_bad_proof_among_good_ones_harms_nobody():
    good, bad = prove("a"), (prove("a")[0], prove("b")[1])

    for items in ([good, bad], [bad, good], [bad, good, bad], [good, bad, good]):
        verdicts = verify_norm_proofs(items)
        assert [verdict is None for verdict in verdicts] == [i is good for i in items]


def test_verification_says_what_it_found():
    statement, proof = prove()

    verify_norm_proof(statement, proof)
    with pytest.raises(ValueError, match="NOT_PROVEN"):
        verify_norm_proof(replace(statement, context=b""), proof)


# Bytes of every field; tests/property/test_norm_proof.py flips all that there are


def each_byte(proof):
    """Yield field, index in a tuple, and offset, for some bytes of every item."""
    for part in fields(NormProof):
        value = getattr(proof, part.name)
        items = value if isinstance(value, tuple) else (value,)
        for index, item in enumerate(items):
            offsets = {0, len(item) - 1, *range(5, len(item), max(11, len(item) // 24))}
            for offset in sorted(offsets):
                yield part.name, index, offset


def test_bytes_of_every_field_count():
    statement, proof = prove()
    for name, index, offset in each_byte(proof):
        value = getattr(proof, name)
        items = [*value] if isinstance(value, tuple) else [value]
        flipped = bytearray(items[index])
        flipped[offset] ^= 1 << offset % 8
        items[index] = bytes(flipped)
        changed = tuple(items) if isinstance(value, tuple) else items[0]
        refusal = find_refusal(statement, replace(proof, **{name: changed}))
        assert refusal is not None, (name, index, offset)
