"""What `moot bench finality` computes and prints; what it measures needs a stack."""

from __future__ import annotations

from cli.bench_finality import Finality, report


def make(per_cpu_s: float | None, audited: float = 6_000.0) -> Finality:
    """Return what might be measured."""
    return Finality(4, (0.5, 0.75, 1.0), 800.0, per_cpu_s, audited)


def test_the_cost_of_a_leaf_is_counted_in_audits() -> None:
    assert make(4_000.0).cost == 1.5
    assert make(None).cost is None


def test_the_report_shows_both_and_the_target() -> None:
    text = report([make(4_000.0), make(2_000.0)], 1_000).render()
    assert "1.50×" in text
    assert "3.00×" in text
    assert "at most 2 audits: MISSED, 3.00." in text
    assert "at most 2 audits: met, 1.50." in report([make(4_000.0)], 1_000).render()


def test_where_nobody_counts_processor_time_there_is_no_cost() -> None:
    text = report([make(None)], 1_000).render()
    assert "×" not in text
    assert "audits" not in text
