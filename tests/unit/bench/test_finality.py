"""What `moot bench finality` computes and prints; what it measures needs a stack, but
for the cost of one node and receipts.
"""

from __future__ import annotations

import pytest

from cli.stack.processes import StackError
from consumers.node.ledger_node import LedgerNode
from tests.bench.finality import measure_receipt
from tests.bench.node import MadeLog, report


def test_the_cost_of_a_leaf_is_counted_in_audits() -> None:
    def make(node_s: float) -> str:
        large = {
            "leaves": 6_000, "blocks": 200, "node_s": node_s, "audit_s": 1.0,
            "plain_audit_s": 0.8,
        }  # fmt: skip
        small = {
            "leaves": 500, "blocks": 400, "node_s": 1.2, "audit_s": 0.4,
            "plain_audit_s": 0.2,
        }  # fmt: skip
        return "\n".join(report({100: large, 1: small}))

    text = make(1.6)
    row = "| 200 | 30.0 | 3,750 | 8.00 | 6,000 | 5.00 | 1.60× | 2.00× | 0.80% |"
    assert f"| 100 agents {row}" in text
    row = "| 400 | 1.25 | 417 | 3.00 | 1,250 | 1.00 | 3.00× | 6.00× | 0.30% |"
    assert f"| 1 agent {row}" in text
    # The target is for large blocks.
    assert "at most 2 audits: met, 1.6" in text
    assert "at most 2 audits: MISSED, 2.5" in make(2.5)


def test_a_receipt_is_measured_beside_its_signatures() -> None:
    found = measure_receipt(100)
    assert found["leaves of its log"] == "100"
    verify, limit = found["µs to verify"], found["limit: four signatures, µs"]
    assert isinstance(verify, float)
    assert isinstance(limit, float)
    assert verify > limit / 2 > 0


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> MadeLog:
    """Return a log of a round or two."""
    return MadeLog(4, 40, tmp_path_factory.mktemp("node"))


def test_a_node_and_the_audit_take_the_same_log(log: MadeLog) -> None:
    cost = log.measure()
    assert cost["leaves"] >= 40
    assert cost["blocks"] > 5
    assert min(cost["node_s"], cost["audit_s"], cost["plain_audit_s"]) > 0


def test_a_node_that_does_not_follow_is_not_measured(
    log: MadeLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LedgerNode, "add_block", lambda *_: None)
    with pytest.raises(StackError):
        log.measure_node()
