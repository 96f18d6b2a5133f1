"""The step of each strategy: its formula, its bounds, its independence of chunks."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import protocol.strategies as steps
from protocol.aggregation import MAX_TOTAL_EXAMPLES
from protocol.strategies import (
    STRATEGIES,
    find_parameters_problem,
    list_parameters,
    move,
    read_parameters,
)
from protocol.strategies.state import (
    start_moments,
    state_from_blob,
    state_to_blob,
)
from protocol.strategies.strategy import HIGHEST_MICROS, MAX_NUM_STEPS
from schemas.events import StrategyParameter
from tests.examples import examples

ADAPTIVE = [name for name, strategy in STRATEGIES.items() if strategy.moments]
FLOAT32_MAX = float(np.finfo(np.float32).max)


def choose(**micros: int) -> tuple[StrategyParameter, ...]:
    return tuple(
        StrategyParameter(name=name, value_micros=value)
        for name, value in sorted(micros.items())
    )


def expect(name, x, g, p, moments, mean_steps):
    """Compute one value in Python's own floats, written down as in the paper."""
    lr = p["learning_rate"]
    if name == "FEDNOVA":
        return x + lr * (g * mean_steps), ()
    if name in {"FEDAVG", "FEDPROX"}:
        return x + lr * g, ()
    m, v = moments
    m = p["beta_1"] * m + (1.0 - p["beta_1"]) * g
    s = g * g
    if name == "FEDADAM":
        v = p["beta_2"] * v + (1.0 - p["beta_2"]) * s
    else:
        sign = (v > s) - (v < s)
        v = v - s * float(sign) * (1.0 - p["beta_2"])
    return x + m * lr / (math.sqrt(v) + p["tau"]), (m, v)


def draw_micros(parameter):
    extremes = st.sampled_from([parameter.lowest_micros, parameter.highest_micros])
    return extremes | st.integers(parameter.lowest_micros, parameter.highest_micros)


def draw_parameters(strategy):
    return st.fixed_dictionaries(
        {each.name: draw_micros(each) for each in strategy.parameters}
    ).map(lambda micros: read_parameters(strategy, choose(**micros)))


def draw_moments(strategy):
    return st.tuples(
        *(
            st.floats(-each.largest if each.is_signed else 0.0, each.largest)
            for each in strategy.moments
        )
    )


@pytest.mark.parametrize("name", STRATEGIES)
@given(data=st.data())
@settings(max_examples=examples(500), deadline=None)
def test_a_step_is_the_formula_in_any_state(name, data):
    """Whatever a round, an operator or a liar within bounds says: finite, and exact."""
    strategy = STRATEGIES[name]
    base = data.draw(st.floats(width=32, allow_nan=False, allow_infinity=False))
    total = data.draw(st.integers(-(2**63), 2**63 - 1) | st.integers(-9, 9))
    count = data.draw(st.integers(1, MAX_TOTAL_EXAMPLES))
    bits = data.draw(st.integers(0, 30))
    parameters = data.draw(draw_parameters(strategy))
    moments = data.draw(draw_moments(strategy))
    steps_taken = None
    if strategy.counts_steps:
        steps_taken = data.draw(st.integers(count, count * MAX_NUM_STEPS))
    after, carried = move(
        strategy,
        np.float32([base]),
        np.array([total], np.int64),
        num_examples=count,
        fractional_bits=bits,
        parameters=parameters,
        moments=tuple(np.array([value]) for value in moments),
        num_weighted_steps=steps_taken,
    )
    average = float(total) / float(count * 2**bits)
    mean_steps = (steps_taken or count) / count
    x, expected = expect(
        name, float(np.float32(base)), average, parameters, moments, mean_steps
    )
    assert after.dtype == np.float32
    assert np.isfinite(after).all()
    assert after[0] == np.float32(x)
    assert tuple(float(values[0]) for values in carried) == expected
    if expected:
        # What it carries on is within bounds: the next round can read it.
        state = state_to_blob(strategy, carried)
        read = state_from_blob(strategy, state, 1)
        assert [v.tobytes() for v in read] == [v.tobytes() for v in carried]


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_the_longest_step_from_the_largest_model_stays_finite(name, sign):
    strategy = STRATEGIES[name]
    micros = {
        each.name: each.highest_micros
        if each.name in {"learning_rate", "beta_1"}
        else each.lowest_micros
        for each in strategy.parameters
    }
    moments = tuple(
        np.array([each.largest * sign if each.is_signed else 0.0])
        for each in strategy.moments
    )
    after, _ = move(
        strategy,
        np.float32([sign * FLOAT32_MAX]),
        np.array([sign * (2**63 - 1)], np.int64),
        num_examples=1,
        fractional_bits=0,
        parameters=read_parameters(strategy, choose(**micros)),
        moments=moments,
        num_weighted_steps=MAX_NUM_STEPS if strategy.counts_steps else None,
    )
    assert after[0] == np.float32(sign * FLOAT32_MAX)


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_size_of_a_chunk_changes_nothing(name, monkeypatch):
    strategy = STRATEGIES[name]
    generator = np.random.default_rng(5)
    base = generator.standard_normal(1_000).astype(np.float32)
    total = generator.integers(-(2**40), 2**40, 1_000)
    parameters = read_parameters(strategy, ())
    moments = start_moments(strategy, parameters, 1_000)
    given = [base.copy(), total.copy(), *(m.copy() for m in moments)]
    found = set()
    for chunk in (1_000, 7, 1):
        monkeypatch.setattr(steps, "_CHUNK", chunk)
        after, carried = move(
            strategy,
            base,
            total,
            num_examples=77,
            fractional_bits=20,
            parameters=parameters,
            moments=moments,
            num_weighted_steps=555 if strategy.counts_steps else None,
        )
        found.add((after.tobytes(), *(values.tobytes() for values in carried)))
    assert len(found) == 1
    for before, now in zip(given, [base, total, *moments], strict=True):
        np.testing.assert_array_equal(before, now)  # arguments are left alone


@pytest.mark.parametrize("name", ADAPTIVE)
def test_momentum_moves_the_model_in_a_round_of_zeros(name):
    strategy = STRATEGIES[name]
    parameters = read_parameters(strategy, ())
    model = np.zeros(1, np.float32)
    moments = start_moments(strategy, parameters, 1)
    for total in (2**20, 0):
        before = model
        model, moments = move(
            strategy,
            model,
            np.array([total]),
            num_examples=1,
            fractional_bits=20,
            parameters=parameters,
            moments=moments,
        )
        assert model[0] > before[0]


def test_yogi_forgets_large_squares_more_slowly_than_adam():
    def second(name):
        strategy = STRATEGIES[name]
        parameters = read_parameters(strategy, ())
        moments = (np.zeros(1), np.array([100.0]))
        _, moments = move(
            strategy,
            np.zeros(1, np.float32),
            np.array([1]),
            num_examples=1,
            fractional_bits=0,
            parameters=parameters,
            moments=moments,
        )
        return float(moments[1][0])

    assert second("FEDADAM") == pytest.approx(99.01)
    assert second("FEDYOGI") == pytest.approx(99.99)


@pytest.mark.parametrize("name", STRATEGIES)
@pytest.mark.parametrize("steps_taken", [None, 0, 6, 7 * MAX_NUM_STEPS + 1])
def test_steps_are_given_where_they_are_counted_and_within_bounds(name, steps_taken):
    strategy = STRATEGIES[name]
    parameters = read_parameters(strategy, ())
    if steps_taken is None and not strategy.counts_steps:
        return
    with pytest.raises(ValueError, match="steps of 7 examples"):
        move(
            strategy,
            np.zeros(1, np.float32),
            np.array([1]),
            num_examples=7,
            fractional_bits=0,
            parameters=parameters,
            moments=start_moments(strategy, parameters, 1),
            num_weighted_steps=steps_taken,
        )


# Parameters


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
def test_parameters_are_sorted_and_have_defaults_within_their_ranges(strategy):
    names = [each.name for each in strategy.parameters]
    assert names == sorted(set(names))
    moments = [each.name for each in strategy.moments]
    assert moments == sorted(set(moments))
    for each in strategy.parameters:
        assert 0 <= each.lowest_micros <= each.default_micros <= each.highest_micros
        assert each.highest_micros <= HIGHEST_MICROS or each.name == strategy.max_steps
        for micros in (each.lowest_micros, each.highest_micros):
            chosen = choose(**{each.name: micros})
            assert find_parameters_problem(strategy, chosen) is None
            assert list_parameters(strategy, chosen)[each.name] == micros
        for micros in (each.lowest_micros - 1, each.highest_micros + 1):
            chosen = choose(**{each.name: micros})
            assert "millionths" in (find_parameters_problem(strategy, chosen) or "")


@pytest.mark.parametrize(
    "chosen",
    [
        choose(momentum=1),
        choose(tau=1)[:1] * 2,
        choose(beta_1=1, tau=1)[::-1],
        choose(mu=1),
    ],
)
def test_other_parameters_are_refused(chosen):
    problem = find_parameters_problem(STRATEGIES["FEDADAM"], chosen)
    assert problem is not None
    assert "beta_1, beta_2, learning_rate, tau" in problem


def test_millionths_are_divided_once():
    chosen = choose(beta_1=123_457)
    parameters = read_parameters(STRATEGIES["FEDADAM"], chosen)
    assert parameters["beta_1"] == 123_457 / 1_000_000
