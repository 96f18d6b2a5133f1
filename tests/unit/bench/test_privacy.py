"""What `moot bench privacy` computes and prints; whole rounds need a stack."""

from __future__ import annotations

import os
from dataclasses import replace

import pytest

from tests.bench import privacy_steps as steps
from tests.bench.privacy import TARGETS, compute_path, count_sent_bytes, report
from tests.bench.privacy_rounds import Rounds, Size
from tests.bench.privacy_steps import Found, measure, measure_alone, one_thread

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
    return replace(
        found,
        num_values=num_values,
        seconds=dict.fromkeys(found.seconds, seconds),
        limits=dict.fromkeys(found.limits, seconds / 2),
    )


def test_every_step_is_measured_beside_its_limit(found: Found) -> None:
    without = found.seconds.keys() - found.limits.keys()

    assert without == {steps.ENCODE, steps.EXPAND, steps.VERIFY_LINKS}
    assert all(seconds > 0 for seconds in found.seconds.values())
    for count in steps.COHORTS:
        for name in (steps.SUM_SEEDS, steps.SUM_FULL, steps.COMBINE, steps.OPEN_SUM):
            assert name.format(count) in found.seconds


def test_every_target_is_that_of_a_step(found: Found) -> None:
    for targets in TARGETS.values():
        assert targets.keys() <= found.seconds.keys()


def test_an_agent_sends_all_its_shares(found: Found) -> None:
    sizes = found.sizes

    assert count_sent_bytes(sizes) == (
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

    good = "\n".join(report([make_found(found, 100_000, 0.08)], rounds))
    bad = "\n".join(report([make_found(found, 100_000, 0.1)], rounds))
    worse = "\n".join(report([make_found(found, 1_000_000, 1.1)], rounds))

    assert "MISSED" not in good
    assert "| commit | 80.0 | 750 | met | 40.0 | 2.0× |" in good
    assert "| verify, of a batch | 100 | 85 | MISSED | 50.0 | 2.0× |" in bad
    assert bad.count("MISSED") == 1
    assert "| sum the full shares of 100 agents | 1,100 | 1,000 | MISSED |" in worse
    assert "| sum the full shares of 10 agents | 1,100 |  |  |" in worse


def test_a_size_without_targets_says_nothing_of_them(found: Found) -> None:
    text = "\n".join(report([found], [make_rounds(3, 1_000, 0.5, 1.0)]))

    assert "Target" not in text
    assert "Computed" not in text
    assert "| **an agent sends** (seed shares: 2) |" in text


def test_a_round_is_judged_beside_the_processor_time_that_it_takes(
    found: Found, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.bench.privacy.count_cores", lambda: 2)

    rounds = [make_rounds(10, 1_000, 0.5, 1.25), make_rounds(10, 100_000, 1.0, 6.0)]
    slow = "\n".join(report([found], rounds))
    quick = "\n".join(report([found], [make_rounds(10, 100_000, 1.0, 1.5)]))

    assert "at most 1.5 times PLAIN: MISSED, 6.00." in slow
    cpu = "| 5.00 | 4.00 | 0.25 | 0.25 | 0.50 | 10.0 | 5.00 | 1.50 |"
    assert f"| 10 × 100,000 {cpu}" in slow
    assert "at most 1.5 times PLAIN: met, 1.50." in quick


def test_a_round_without_a_warm_up_is_said_to_be_one(found: Found) -> None:
    cold = Rounds(Size(100, 100_000, 1, is_warm=False), 1.0, 50.0, CPU_S)

    text = "\n".join(report([found], [make_rounds(10, 1_000, 0.5, 1.0), cold]))

    assert "| 100 × 100,000 | 1, no warm-up | 1.00 | 50.0 | 50.0× |" in text
    assert "| 10 × 1,000 | 3 | 0.50 | 1.00 | 2.0× |" in text


def test_the_longest_way_is_computed_from_steps(found: Found) -> None:
    known = make_found(found, 100_000, 0.5)
    path = compute_path(known, 10, 1.0)

    assert path["an agent"] == 5 * 0.5  # encode, commit, share, seal, prove
    assert path["a party"] == 0.5 + 10 * 2 * 0.5 + 0.5
    assert path["the opener"] == 10 * 0.5 + 3 * 0.5
    assert path["computed"] == 21.0

    rounds = [make_rounds(10, 1_000, 0.5, 1.0), make_rounds(10, 100_000, 2.0, 50.0)]
    text = "\n".join(report([known], rounds))
    assert "| 10 × 100,000 | 2.50 | 11.0 | 6.50 | 1.00 | 21.0 | 10.5× |" in text
    assert "**Computed, not measured**" in text
