"""From the exact sum to the next global model."""

import hashlib
import json
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.audit.auditor import run_audit
from protocol.aggregation import MAX_TOTAL_EXAMPLES, Accumulator
from protocol.encoding import MAX_FRACTIONAL_BITS, encode_update
from protocol.exchanged_state import model_from_blob
from protocol.strategies import STRATEGIES, move, read_parameters
from protocol.strategies.strategy import Strategy
from schemas import events as e
from tests.builders import LogBuilder, unframe
from tests.mpc_builder import MpcLogBuilder
from tests.paths import VECTORS

FILE = VECTORS / "protocol" / "fedavg.json"
FEDAVG = STRATEGIES["FEDAVG"]


def fedavg(base, total, num_examples, fractional_bits):
    """Take a step of FedAvg with its defaults."""
    model, moments = move(
        FEDAVG,
        base,
        total,
        num_examples=num_examples,
        fractional_bits=fractional_bits,
        parameters=read_parameters(FEDAVG, ()),
    )
    assert moments == ()
    return model


def exact(base, total, num_examples, fractional_bits):
    """Round as IEEE 754 does: once per operation, from exact values."""
    step = Fraction(int(float(total)), num_examples * 2**fractional_bits)
    rounded = step.numerator / step.denominator  # Python rounds this correctly
    return np.float32(float(Fraction(float(base)) + Fraction(rounded)))


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-(2**62), 2**62),
    st.integers(1, MAX_TOTAL_EXAMPLES),
    st.integers(0, MAX_FRACTIONAL_BITS),
)
def test_every_operation_is_rounded_correctly(base, total, num_examples, bits):
    model = fedavg(np.float32([base]), np.int64([total]), num_examples, bits)
    assert model.dtype == np.float32
    assert np.isfinite(model).all()
    assert model[0] == exact(base, total, num_examples, bits)


def test_the_average_is_weighted_by_examples():
    base = np.float32([1, 2])
    deltas = [(np.float32([0.5, 0]), 1), (np.float32([0, -1]), 3)]
    accumulator = Accumulator(2)
    for delta, num_examples in deltas:
        accumulator.add(encode_update(delta, 16), num_examples)
    assert fedavg(base, accumulator.total, 4, 16).tolist() == [1.125, 1.25]


def test_no_change_gives_the_base_model():
    base = np.float32([0.1, -3e38, 1e-45])
    model = fedavg(base, np.zeros(3, dtype="i8"), 5, 16)
    assert model.tobytes() == base.tobytes()


def test_arguments_are_left_alone():
    base, total = np.float32([1]), np.int64([1])
    fedavg(base, total, 1, 0)
    assert (base.tolist(), total.tolist()) == ([1], [1])


@pytest.mark.parametrize("vector", json.loads(FILE.read_text("utf-8"))["good"])
def test_golden_vector(vector):
    model = fedavg(
        np.frombuffer(bytes.fromhex(vector["base"]), dtype="<f4"),
        np.array(vector["total"], dtype="i8"),
        vector["num_examples"],
        vector["fractional_bits"],
    )
    assert model.astype("<f4").tobytes().hex() == vector["model"]
    assert hashlib.sha256(model.astype("<f4").tobytes()).hexdigest() == vector["sha256"]


@pytest.mark.parametrize(
    ("base", "total", "num_examples", "bits"),
    [
        (np.zeros(1), np.zeros(1, dtype="i8"), 1, 0),
        (np.zeros(1, dtype="f4"), np.zeros(1), 1, 0),
        (np.zeros(1, dtype="f4"), np.zeros(2, dtype="i8"), 1, 0),
        (np.zeros((1, 1), dtype="f4"), np.zeros((1, 1), dtype="i8"), 1, 0),
        (np.zeros(1, dtype="f4"), np.zeros(1, dtype="i8"), 0, 0),
        (np.zeros(1, dtype="f4"), np.zeros(1, dtype="i8"), 2**31, 0),
        (np.zeros(1, dtype="f4"), np.zeros(1, dtype="i8"), 1, -1),
        (np.zeros(1, dtype="f4"), np.zeros(1, dtype="i8"), 1, 31),
        (np.float32([np.nan]), np.zeros(1, dtype="i8"), 1, 0),
        (np.float32([np.inf]), np.zeros(1, dtype="i8"), 1, 0),
    ],
)
def test_an_impossible_round_is_refused(base, total, num_examples, bits):
    with pytest.raises(ValueError, match=r"aren't|examples|fractional|finite"):
        fedavg(base, total, num_examples, bits)


def _make_sevens(average, _parameters, _moments):
    return np.full_like(average, 7), ()


SEVENS = Strategy(name="SEVENS", parameters=(), step=_make_sevens)


@pytest.mark.parametrize("builder", [LogBuilder, MpcLogBuilder])
def test_the_strategy_of_the_configuration_makes_the_model(builder, monkeypatch):
    configure = builder.configure
    monkeypatch.setattr(
        builder,
        "configure",
        lambda log, model: replace(configure(log, model), strategy="SEVENS"),
    )
    monkeypatch.setitem(STRATEGIES, "SEVENS", SEVENS)
    log = builder(ledger_nodes=())
    log.found()
    log.admit("ada", "bea", "cleo", "dora", "eve")
    log.run_round()
    (published,) = [x for x in log.leaves if isinstance(x, e.AggregatePublished)]
    before, after = (
        model_from_blob(log.blobs[digest]).to_vector()
        for digest in (published.base_model_sha256, published.model.sha256)
    )
    assert set((after - before).tolist()) == {7.0}
    report = run_audit(
        log.records,
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=log.blobs.fetch,
        checkpoints=log.checkpoints,
    ).report
    assert report.is_sound
    assert report.num_rounds_recomputed == 1
