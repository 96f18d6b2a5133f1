"""What the audit's benchmark makes and measures; the part on Kafka needs a stack."""

import os
import subprocess
import sys

import pytest

from cli.stack.processes import StackError
from consumers.audit.bundle import Bundle
from schemas import topics
from tests.bench import audit as bench_audit
from tests.bench.audit import audit_bundle, make_bundle, measure_rss_bytes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("bench") / "long.tar"
    make_bundle(path, 500)
    return path


def test_a_made_bundle_is_audited_with_all_its_ledger_nodes_say(bundle):
    one, two = audit_bundle(bundle, 1), audit_bundle(bundle, 2)
    assert one.leaves == two.leaves >= 500
    with Bundle(bundle) as opened:
        said = sum(1 for _ in opened.records(topics.ATTESTATIONS))
        blocks = sum(1 for _ in opened.records(topics.LEDGER))
    # Every node attests every block, and cosigns all but the last.
    assert one.attestations == said == bench_audit.NUM_NODES * (2 * blocks - 1)
    assert two.peak_bytes > one.peak_bytes > 0
    assert one.cpu_s > 0


def test_a_log_that_is_not_sound_measures_nothing(bundle, tmp_path):
    path = tmp_path / "cut.tar"
    path.write_bytes(bundle.read_bytes()[:10_000])
    with pytest.raises(StackError, match="not a bundle"):
        audit_bundle(path, 1)


def test_memory_is_that_of_a_whole_session():
    code = (
        "import subprocess, sys\n"
        "child = subprocess.Popen([sys.executable, '-c', 'input()'], stdin=0)\n"
        "print(flush=True)\n"
        "child.wait()"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    process.stdout.readline()
    assert measure_rss_bytes(process.pid) > 2 * 2**20
    process.communicate(b"\n")
    assert measure_rss_bytes(process.pid) == 0
    assert measure_rss_bytes(os.getsid(0)) > 0


def test_a_long_log_is_reported_beside_its_target():
    longs = {
        1: bench_audit.Long(1_000_000, 260_000, 200.0, 199.0, 95_000_000),
        2: bench_audit.Long(1_000_000, 260_000, 125.0, 240.0, 190_000_000),
    }
    paces = {
        "without": bench_audit.Pace(8_000, 2.0, 1.0),
        "with": bench_audit.Pace(1_000, 2.0, 2.0, 6_000_000),
    }
    text = "\n".join(bench_audit.report(longs, 16_000.0, paces))
    assert "| 2 | 125 | 240 | 8,000 | 190 | 1.60× |" in text
    assert "| without | 8,000 | 4,000 | 8,000 | 125 | 50% |  |" in text
    assert "| with | 1,000 | 500 | 500 | 2,000 | 3% | 3.00 |" in text
    assert "at least 5,000 leaves/s per core, signatures included: met, 8,000" in text
    assert "verification alone |  |  | 16,000 | 62.5 | 100% |  |" in text
    assert "at most 180 s for it with two processes: met, 125." in text
    assert "at most 500 MB of memory, both processes: met, 190." in text
