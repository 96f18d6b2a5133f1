"""Write both JSON files: python -m tests.vectors.norm_proof.generate.

Proofs are made by the slow prover (`tests.slow_norm_prover`), so that the vectors are
what the description says and not what the fast prover happens to do.
"""

import hashlib
import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
from py_arkworks_bls12381 import G1Point

from protocol.modes.mpc import commitments as c
from protocol.modes.mpc.norm_proof import (
    MAX_PROJECTION,
    NormProof,
    NormStatement,
    compute_blinding_challenges,
    compute_challenges,
    expand_projection,
)
from protocol.modes.mpc.norm_prover import find_four_squares
from schemas import codec
from schemas import events as e
from tests.slow_norm_prover import SlowProver
from tests.vectors.shares.generate import SeededEntropy

FOLDER = Path(__file__).parent
NUM_VALUES = 600
ROW_LENGTH = 512
NUM_ROWS = 2
CONTEXT = b"federation, round, agent, base model, parameters, parties, shares"
FIELD_MODULUS = int(
    "1a0111ea397fe69a4b1ba7b6434bacd764774b84f38512bf6730d2a0f6b0f624"
    "1eabfffeb153ffffb9feffffffffaaab",
    16,
)
IDENTITY = b"\xc0" + bytes(47)
#: A point of the curve, with x = 4, that is not in the subgroup.
OUTSIDE = b"\x80" + (4).to_bytes(47, "big")


def encode_proof(proof):
    """Return a proof as it is stored."""
    values = {part.name: getattr(proof, part.name) for part in fields(proof)}
    return codec.encode(e.NormProof(**values))


def decode_proof(blob):
    """Return a stored proof."""
    event = codec.decode_as(e.NormProof, blob)
    return NormProof(**{part.name: getattr(event, part.name) for part in fields(event)})


def make_values(seed, num_values=NUM_VALUES):
    """Return an update, shape (d,) int64, the largest values among its first."""
    values = np.random.default_rng(seed).integers(-(2**9), 2**9, num_values)
    values[:2] = 2**19 - 1, 1 - 2**19
    return values


def make_prover(
    seed="a",
    *,
    rows=None,
    squares=None,
    squared_bound=None,
    prover=SlowProver,
    **others,
) -> SlowProver:
    """Return a slow prover with an honest update, unless told otherwise."""
    entropy = SeededEntropy(f"norm proof {seed}")
    values = make_values(1).tolist()
    honest = [values[:ROW_LENGTH], values[ROW_LENGTH:]]
    norm = sum(value * value for value in values)
    bound = norm + 12_345 if squared_bound is None else squared_bound

    def draw():
        return int.from_bytes(entropy(64), "little") % c.SCALAR_ORDER

    arguments = {
        "context": CONTEXT,
        "num_values": NUM_VALUES,
        "row_length": ROW_LENGTH,
        "squared_bound": bound,
        "rows": honest if rows is None else rows,
        "squares": find_four_squares(bound - norm, entropy)
        if squares is None
        else squares,
        "masks": [draw() % 2**114 - 2**113 for _ in range(309)],
        "blindings": [draw() for _ in range(NUM_ROWS + 3)],
        "draw": draw,
    }
    return prover(**{**arguments, **others})


def find_short_point():
    """Return a generator whose x is so small that x + p has 381 bits as well."""
    for index in range(100):
        encoded = c.encode_point(c.get_generator(index))
        x = int.from_bytes(encoded, "big") % 2**381
        if x + FIELD_MODULUS < 2**381:
            flags = encoded[0] & 0xE0
            wrapped = (x + FIELD_MODULUS).to_bytes(48, "big")
            return bytes([wrapped[0] | flags]) + wrapped[1:]
    raise AssertionError


def build_commitments():
    """Return the vectors of generators, commitments and encodings."""
    entropy = SeededEntropy("commitments")
    scalars = [int.from_bytes(entropy(64), "little") for _ in range(3)]
    blinding = int.from_bytes(entropy(64), "little")
    values, other = make_values(2), make_values(3)
    blindings = [int.from_bytes(entropy(64), "little") for _ in range(2 * NUM_ROWS)]
    rows = c.commit_rows(values, blindings[:NUM_ROWS])
    others = c.commit_rows(other, blindings[NUM_ROWS:])
    total = 3 * values + 5 * other
    totals = [
        3 * a + 5 * b
        for a, b in zip(blindings[:NUM_ROWS], blindings[NUM_ROWS:], strict=True)
    ]
    good = c.encode_point(c.get_generator(0))
    torsion = c.encode_point(
        c.get_generator(0) + G1Point.from_compressed_bytes_unchecked(OUTSIDE)
    )
    return {
        "generators": {
            **{
                f"G{i}": c.encode_point(c.get_generator(i)).hex()
                for i in (0, 1, 255, 4095)
            },
            "H": c.encode_point(c.get_blinding_generator()).hex(),
            "U": c.encode_point(c.get_scalar_generator()).hex(),
        },
        "vector": {
            "scalars": [c.encode_scalar(scalar).hex() for scalar in scalars],
            "blinding": c.encode_scalar(blinding).hex(),
            "commitment": c.commit_scalars(scalars, blinding).hex(),
        },
        "update": {
            "row_length": ROW_LENGTH,
            "values": values.tolist(),
            "blindings": [c.encode_scalar(s).hex() for s in blindings[:NUM_ROWS]],
            "rows": [row.hex() for row in rows],
        },
        "sum": {
            "updates": [[r.hex() for r in rows], [r.hex() for r in others]],
            "weights": [3, 5],
            "values": total.tolist(),
            "blindings": [c.encode_scalar(s).hex() for s in totals],
            "rows": [row.hex() for row in c.combine_rows([rows, others], [3, 5])],
        },
        "bad_points": [
            {"reason": reason, "why": why, "point": point.hex()}
            for reason, why, point in (
                ("WRONG_SIZE", "a byte short", good[:-1]),
                ("WRONG_SIZE", "a byte long", good + b"\0"),
                (
                    "NOT_ON_CURVE",
                    "no compression flag",
                    bytes([good[0] & 0x7F]) + good[1:],
                ),
                ("NOT_ON_CURVE", "x = 1 has no y", b"\x80" + (1).to_bytes(47, "big")),
                ("NOT_ON_CURVE", "x is not below p", find_short_point()),
                ("IDENTITY", "all ones", b"\xff" * 48),
                ("NOT_IN_SUBGROUP", "x = 4", OUTSIDE),
                ("NOT_IN_SUBGROUP", "G0 and a point outside", torsion),
                ("IDENTITY", "the identity", IDENTITY),
                ("IDENTITY", "the identity with a sign", b"\xe0" + bytes(47)),
                ("IDENTITY", "the identity with a stray bit", IDENTITY[:-1] + b"\1"),
            )
        ],
        "bad_scalars": [
            {"reason": reason, "why": why, "scalar": scalar.hex()}
            for reason, why, scalar in (
                ("WRONG_SIZE", "a byte short", bytes(31)),
                ("WRONG_SIZE", "a byte long", bytes(33)),
                ("SCALAR_OUT_OF_RANGE", "r", c.SCALAR_ORDER.to_bytes(32, "little")),
                ("SCALAR_OUT_OF_RANGE", "all ones", b"\xff" * 32),
            )
        ],
    }


def build_norm_proof():
    """Return the vectors of norm proofs."""
    prover = make_prover()
    statement = prover.statement
    proof = prover.prove()
    challenges = compute_challenges(statement, proof)
    projection = expand_projection(statement, challenges.seed)
    return {
        "context": statement.context.hex(),
        "num_values": statement.num_values,
        "row_length": statement.row_length,
        "squared_bound": statement.squared_bound,
        "commitments": [point.hex() for point in statement.commitments],
        "seed": challenges.seed.hex(),
        "of_rows_sha256": hashlib.sha256(projection.of_rows.tobytes()).hexdigest(),
        "of_columns_sha256": hashlib.sha256(
            projection.of_columns.tobytes()
        ).hexdigest(),
        "rho": c.encode_scalar(challenges.rho).hex(),
        "alpha": c.encode_scalar(challenges.alpha).hex(),
        "e": c.encode_scalar(challenges.e).hex(),
        "blinding_challenges": [
            c.encode_scalar(power).hex()
            for power in compute_blinding_challenges(statement, challenges)
        ],
        "proof": encode_proof(proof).hex(),
        "bad": [
            {"reason": reason, "why": why, "changes": changes}
            for reason, why, changes in bad_proofs(statement, proof)
        ],
    }


def bad_proofs(statement, proof):
    """Yield reason, description, and what differs from the good vector."""
    for why, changes in (
        ("another agent's context", {"context": (CONTEXT + b"!").hex()}),
        ("no context", {"context": ""}),
        ("a smaller bound", {"squared_bound": statement.squared_bound - 1}),
        ("a larger bound", {"squared_bound": statement.squared_bound + 1}),
        ("fewer values in as many rows", {"num_values": NUM_VALUES - 1}),
    ):
        yield "NOT_PROVEN", why, changes
    points = [point.hex() for point in statement.commitments]
    swapped = [points[1], points[0], *points[2:]]
    yield "NOT_PROVEN", "rows swapped", {"commitments": swapped}
    for why, point in (("identity", IDENTITY), ("outside the subgroup", OUTSIDE)):
        changed = [*points[:-1], point.hex()]
        yield "INVALID_ENCODING", f"masks: {why}", {"commitments": changed}
    yield "WRONG_SHAPE", "a row missing", {"commitments": points[1:]}
    yield "WRONG_SHAPE", "three rows' values", {"num_values": 2 * ROW_LENGTH + 1}
    for reason, why, part in bad_parts(proof):
        yield reason, why, {"proof": part}


def bad_parts(proof):
    """Yield reason, description, and what differs in fields of a proof.

    Of a field, `start` replaces its first bytes, `cut` removes so many of them; a list
    stands for itself.
    """
    first = int.from_bytes(proof.projections[:15], "little", signed=True)

    def say(value):
        return start("projections", value.to_bytes(15, "little", signed=True))

    def start(name, data):
        return {name: {"start": data.hex()}}

    yield "NOT_PROVEN", "a projection off by one", say(first + 1)
    yield "NOT_PROVEN", "the largest projection", say(MAX_PROJECTION)
    for value in (MAX_PROJECTION + 1, -MAX_PROJECTION - 1):
        yield "PROJECTION_OUT_OF_RANGE", f"a projection of {value}", say(value)
    yield "WRONG_SHAPE", "a projection missing", {"projections": {"cut": 15}}
    for name in ("z", "z_prime"):
        yield "WRONG_SHAPE", f"{name}: one missing", {name: {"cut": 32}}
    scalars = ("z", "z_prime", "z_blinding", "z_prime_blinding", "relation_blinding")
    for name in scalars:
        value = int.from_bytes(getattr(proof, name)[:32], "little")
        added = c.encode_scalar(value + 1)
        yield "NOT_PROVEN", f"{name}: plus one", start(name, added)
        wrapped = (value + c.SCALAR_ORDER).to_bytes(32, "little")
        yield "INVALID_ENCODING", f"{name}: plus r", start(name, wrapped)
    for name, other in (("z_mask", "z_prime_mask"), ("z_prime_mask", "z_mask")):
        yield "NOT_PROVEN", f"{name}: {other}", start(name, getattr(proof, other))
        yield "INVALID_ENCODING", f"{name}: identity", start(name, IDENTITY)
        yield "INVALID_ENCODING", f"{name}: outside the subgroup", start(name, OUTSIDE)
    points = [point.hex() for point in proof.coefficients]
    yield "NOT_PROVEN", "coefficients reversed", {"coefficients": points[::-1]}
    yield "WRONG_SHAPE", "a coefficient missing", {"coefficients": points[1:]}
    changed = [*points[:-1], IDENTITY.hex()]
    yield "INVALID_ENCODING", "coefficients: identity", {"coefficients": changed}


def read_statement(vector, changes=None):
    """Return the statement of a vector."""
    vector = {**vector, **(changes or {})}
    *rows, squares, masks = (bytes.fromhex(point) for point in vector["commitments"])
    return NormStatement(
        context=bytes.fromhex(vector["context"]),
        num_values=vector["num_values"],
        row_length=vector["row_length"],
        squared_bound=vector["squared_bound"],
        rows=tuple(rows),
        squares=squares,
        masks=masks,
    )


def read_proof(vector, changes=None):
    """Return the proof of a vector."""
    proof = decode_proof(bytes.fromhex(vector["proof"]))
    parts = {
        name: change_field(getattr(proof, name), change)
        for name, change in (changes or {}).get("proof", {}).items()
    }
    return replace(proof, **parts)


def change_field(value, change):
    """Return a field of a proof as a bad vector has it."""
    if isinstance(change, list):
        return tuple(map(bytes.fromhex, change))
    start = bytes.fromhex(change.get("start", ""))
    return start + value[len(start) + change.get("cut", 0) :]


def render(vectors):
    """Return vectors as they are in the file."""
    return json.dumps(vectors, indent=1) + "\n"


def main():
    """Write both files."""
    for name, build in (
        ("commitments", build_commitments),
        ("norm_proof", build_norm_proof),
    ):
        path = FOLDER / f"{name}.json"
        path.write_text(render(build()), encoding="utf-8")


if __name__ == "__main__":
    main()
