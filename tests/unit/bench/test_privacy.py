"""What `moot bench privacy` computes and prints; whole rounds need a stack."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.bench import privacy_steps as steps
from tests.bench.privacy import TARGETS, Path, report
from tests.bench.privacy_rounds import Rounds, Size
from tests.bench.privacy_steps import Found, Step, measure, measure_alone, one_thread

CPU_S = {
    "agents: commit, share, seal, prove": 5.0,
    "parties": 4.0,
    "sequencer": 0.25,
    "rounds": 0.25,
    "aggregator": 0.5,
}


@pytest.fixture(scope="module")
def found() -> Found:
    """Return what was measured, small."""
    return measure(1_000, 2)


def make_rounds(
    num_agents: int, num_values: int, plain_s: float, mpc_s: float
) -> Rounds:
    """Return what might be measured."""
    return Rounds(Size(num_agents, num_values, 3), plain_s, mpc_s, CPU_S)


def make_found(found: Found, num_values: int, seconds: float) -> Found:
    """Return what might be measured if every step took as long."""
    slow = {name: Step(seconds, seconds / 2) for name in found.steps}
    return replace(found, num_values=num_values, steps=slow)


def test_every_step_is_measured_beside_its_limit(found: Found) -> None:
    without = {name for name, step in found.steps.items() if step.limit_s is None}

    assert without == {steps.ENCODE, steps.EXPAND, steps.VERIFY_LINKS}
    assert all(step.seconds > 0 for step in found.steps.values())
    for count in steps.COHORTS:
        assert {steps.sum_seeds(count), steps.sum_full(count)} <= found.steps.keys()
        assert {steps.combine(count), steps.open_sum(count)} <= found.steps.keys()


def test_every_target_is_that_of_a_step(found: Found) -> None:
    for targets in TARGETS.values():
        assert targets.keys() <= found.steps.keys()


def test_an_agent_sends_all_its_shares(found: Found) -> None:
    sizes = found.sizes

    assert found.sent_bytes == (
        sizes["commitments"]
        + sizes["norm proof"]
        + 2 * sizes["sealed seed share"]
        + sizes["sealed full share"]
    )
    assert sizes["sealed full share"] > 8 * 1_000 > sizes["update of PLAIN"]


def test_processes_are_told_to_compute_in_one_thread_and_others_are_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)

    with one_thread():
        assert {os.environ[name] for name in steps.THREAD_VARIABLES} == {"1"}

    assert os.environ["OMP_NUM_THREADS"] == "7"
    assert "OPENBLAS_NUM_THREADS" not in os.environ


def test_a_process_of_its_own_has_one_thread() -> None:
    assert measure_alone(1_000, 1).one_thread > 0.95


def test_steps_are_reported_with_targets_that_are_met_or_missed(found: Found) -> None:
    rounds = [make_rounds(10, 1_000, 0.5, 1.0)]

    good = report([make_found(found, 100_000, 0.08)], rounds).render()
    bad = report([make_found(found, 100_000, 0.1)], rounds).render()
    worse = report([make_found(found, 1_000_000, 1.1)], rounds).render()

    assert "**Targets** of steps: all met." in good
    assert "MISSED" not in good
    assert "| commit | 80.0 | 750 | met | 40.0 | 2.0× |" in good
    assert "| verify, of a batch | 100 | 85 | MISSED | 50.0 | 2.0× |" in bad
    assert "**Targets** of steps: MISSED: verify, of a batch." in bad
    assert "| sum the full shares of 100 agents | 1,100 | 1,000 | MISSED |" in worse
    assert "| sum the full shares of 10 agents | 1,100 |  |  |" in worse


def test_a_size_without_targets_says_nothing_of_them(found: Found) -> None:
    text = report([found], [make_rounds(3, 1_000, 0.5, 1.0)]).render()

    assert "Target" not in text
    assert "Computed" not in text
    assert "| **an agent sends** (seed shares: 2) |" in text


def test_a_round_that_takes_too_long_is_said_to_with_its_arithmetic(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.bench.privacy.count_cores", lambda: 2)

    rounds = [make_rounds(10, 1_000, 0.5, 1.25), make_rounds(10, 100_000, 1.0, 6.0)]
    text = report([found], rounds).render()

    assert "at most 1.5 times PLAIN for 10 × 100,000: MISSED, 6.00." in text
    why = " ".join(text[text.index("**Why**") :].split())
    assert "the target allows 1.50 s" in why
    assert "take 5.00 s of processor time, all others 5.00 s" in why
    assert "on 2 cores together that is 5.00 s" in why
    assert "A round of 10 × 1,000, with little to compute, takes 1.25 s" in why
    cpu = "| 10 × 100,000 | 5.00 | 4.00 | 0.25 | 0.25 | 0.50 | 10.0 | 5.00 |"
    assert cpu in text


def test_a_round_that_is_quick_enough_needs_no_excuse(found: Found) -> None:
    text = report([found], [make_rounds(10, 100_000, 1.0, 1.5)]).render()

    assert "for 10 × 100,000: met, 1.50." in text
    assert "**Why**" not in text


def test_a_round_without_a_warm_up_is_said_to_be_one(found: Found) -> None:
    cold = Rounds(Size(100, 100_000, 1, is_warm=False), 1.0, 50.0, CPU_S)

    text = report([found], [make_rounds(10, 1_000, 0.5, 1.0), cold]).render()

    assert "| 100 × 100,000 | 1, no warm-up | 1.00 | 50.0 | 50.0× |" in text
    assert "| 10 × 1,000 | 3 | 0.50 | 1.00 | 2.0× |" in text


def test_the_longest_way_is_computed_from_steps(found: Found) -> None:
    known = make_found(found, 100_000, 0.5)
    path = Path.compute(known, 10, hops_s=1.0)

    assert path.agent_s == 5 * 0.5  # encode, commit, share, seal, prove
    assert path.party_s == 0.5 + 10 * 2 * 0.5 + 0.5
    assert path.opener_s == 10 * 0.5 + 3 * 0.5
    assert path.total_s == 21.0

    rounds = [make_rounds(10, 1_000, 0.5, 1.0), make_rounds(10, 100_000, 2.0, 50.0)]
    text = report([known], rounds).render()
    assert "| 10 × 100,000 | 2.50 | 11.0 | 6.50 | 1.00 | 21.0 | 10.5× |" in text
    assert "**Computed, not measured**" in text
