"""What `moot bench finality` computes and prints; what it measures needs a stack, but
for the cost of one node.
"""

from __future__ import annotations

import pytest

from cli.stack.processes import StackError
from consumers.node.ledger_node import LedgerNode
from tests.bench.finality import Finality, report
from tests.bench.node import Cost, MadeLog


def make(per_cpu_s: float | None, audited: float = 6_000.0) -> Finality:
    """Return what might be measured with a stack."""
    return Finality(4, (0.5, 0.75, 1.0), 20_000, 800.0, per_cpu_s, audited)


def make_costs(node_s: float) -> tuple[Cost, Cost]:
    """Return what might be measured without one."""
    large = Cost(
        num_leaves=6_000, num_blocks=200, node_s=node_s, audit_s=1.0, plain_audit_s=0.8
    )
    small = Cost(
        num_leaves=500, num_blocks=400, node_s=1.2, audit_s=0.4, plain_audit_s=0.2
    )
    return large, small


def test_the_cost_of_a_leaf_is_counted_in_audits() -> None:
    assert make(4_000.0).cost == 1.5
    assert make(None).cost is None
    large, small = make_costs(1.6)
    assert (large.ratio, large.plain_ratio) == (1.6, 2.0)
    assert (large.leaves_per_block, small.leaves_per_block) == (30.0, 1.25)


def test_the_report_shows_both_and_the_target() -> None:
    found = [make(4_000.0), make(2_000.0)]
    text = report(found, make_costs(1.6), 1_000).render()
    # Under load, and by itself: the target is for the latter, with large blocks.
    assert "| 20,000 | 800 | 4,000 | 6,000 | 1.50× |" in text
    assert "3.00×" in text
    assert "| 200 | 30.0 | 3,750 | 8.00 | 6,000 | 5.00 | 1.60× | 2.00× |" in text
    assert "| 400 | 1.2 | 417 | 3.00 | 1,250 | 1.00 | 3.00× | 6.00× |" in text
    assert "0.30% of a core" in text
    assert "at most 2 audits: met, 1.6" in text
    text = report(found, make_costs(2.5), 1_000).render()
    assert "at most 2 audits: MISSED, 2.5" in text


def test_where_nobody_counts_processor_time_there_is_no_cost_under_load() -> None:
    text = report([make(None)], make_costs(1.6), 1_000).render()
    assert "| 800 |  | 6,000 |  |" in text


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> MadeLog:
    """Return a log of a round or two."""
    return MadeLog(4, 40, tmp_path_factory.mktemp("node"))


def test_a_node_and_the_audit_take_the_same_log(log: MadeLog) -> None:
    cost = log.measure()
    assert cost.num_leaves >= 40
    assert cost.num_blocks > 5
    assert min(cost.node_s, cost.audit_s, cost.plain_audit_s) > 0


def test_a_node_that_does_not_follow_is_not_measured(
    log: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LedgerNode, "add_block", lambda *_: None)
    with pytest.raises(StackError):
        log.measure_node()
