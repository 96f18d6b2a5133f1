"""How `moot bench hops` reports its results."""

import os
import subprocess
import sys
from dataclasses import replace

from tests.bench.hops import Found, Round, measure_tree_s, report

NOW = Found(
    ready_s=2.0,
    latency_ms=20.0,
    transaction_ms=10.0,
    plain_s=0.3,
    plain_cpu_s=0.5,
    mpc_s=2.0,
    mpc_cpu_s=3.0,
)


def test_states_stand_side_by_side_and_targets_are_judged():
    found = {"before": [replace(NOW, latency_ms=88.0)] * 3, "now": [NOW] * 3}
    rounds = {"10 × 100,000": {"before": Round(9.0, 10.0), "now": Round(6.0, 10.0)}}
    text = report(found, rounds).render()
    assert "the states alternating" in " ".join(text.split())
    assert "| an update until its leaf can be read, ms | 88.0 | 20.0 |" in text
    assert "2.0 times as long as a bare transaction" in " ".join(text.split())
    assert text.count("met, ") == 3
    assert text.count("MISSED, ") == 1  # a round of MPC


def test_one_state_is_said_alone():
    text = report({"now": [NOW]}, {}).render()
    assert "alternating." not in text
    assert "no warm-up" not in text


def test_the_processor_time_of_whoever_descends_from_this_process_counts():
    before = measure_tree_s()
    program = "import time\nwhile time.process_time() < 0.5: pass\ninput()"
    child = subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.PIPE)
    try:
        while measure_tree_s() - before < 0.4:
            os.sched_yield()
    finally:
        child.communicate(b"\n")
