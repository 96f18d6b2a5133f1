"""How `moot bench hops` reports its results."""

import os
import subprocess
import sys

from tests.bench.hops import measure_tree_s, report

NOW = {
    "ready_s": 2.0,
    "latency_ms": 20.0,
    "transaction_ms": 10.0,
    "plain_s": 0.3,
    "plain_cpu_s": 0.5,
    "mpc_s": 2.0,
    "mpc_cpu_s": 3.0,
}


def test_states_stand_side_by_side_and_targets_are_judged(monkeypatch):
    monkeypatch.setattr("tests.bench.hops.count_cores", lambda: 2)
    found = {"before": [{**NOW, "latency_ms": 88.0}] * 3, "now": [NOW] * 3}
    large = {
        (10, 100_000): {
            "before": {"seconds": 9.0, "cpu_s": 10.0},
            "now": {"seconds": 6.0, "cpu_s": 10.0},
        }
    }
    text = "\n".join(report(found, large))
    assert "| an update until its leaf can be read, ms | 88.0 | 20.0 |" in text
    assert "| a leaf to a bare transaction | 2.00 |" in text
    assert "| a round of PLAIN to its processor time | 1.20 |" in text
    assert "| 10 × 100,000 | 9.00 | 5.00 | 6.00 | 5.00 | 1.20× |" in text
    assert text.count("met, ") == 3
    assert text.count("MISSED, ") == 1  # a round of MPC


def test_one_state_stands_alone():
    text = "\n".join(report({"now": [NOW]}, {}))
    assert "|  | now |" in text
    assert "that take computing" not in text


def test_the_processor_time_of_whoever_descends_from_this_process_counts():
    before = measure_tree_s()
    program = "import time\nwhile time.process_time() < 0.5: pass\ninput()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        while measure_tree_s() - before < 0.4:
            os.sched_yield()
    finally:
        child.communicate(b"\n")
