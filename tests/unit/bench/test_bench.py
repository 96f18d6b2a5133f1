"""What the benchmarks compute and print; what they measure needs a stack."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cli.stack.processes import StackError, kill_owned, spawn_owned
from consumers.audit.auditor import run_audit
from schemas import events as e
from tests.bench import aggregation as bench_aggregation
from tests.bench import rounds as bench_rounds
from tests.bench import run as bench
from tests.bench import sequencer as bench_sequencer
from tests.bench.federation import make_agent_keys, measure_cpu_s
from tests.bench.log import LogMaker
from tests.bench.report import (
    describe_machine,
    find_hot_spots,
    make_table,
    measure_rate,
    show,
    show_target,
)
from tests.builders import BlobDict, make_key, unframe

FOUND = ("A sentence.", make_table([{"": "row", "a": 1.25, "b": 2_000, "c": None}]))
TABLE = "|  | a | b | c |\n| --- | ---: | ---: | ---: |\n| row | 1.25 | 2,000 |  |"


def _ignore(_message: str) -> None:
    pass


def test_all_benchmarks_are_run_unless_some_are_named() -> None:
    assert bench.choose(()) == bench.BENCHMARKS
    assert bench.choose(("audit", "sequencer", "audit")) == ("sequencer", "audit")


def test_an_unknown_benchmark_is_refused_with_the_names_of_those_there_are() -> None:
    with pytest.raises(StackError, match=r"no benchmark latency(.|\n)*aggregation"):
        bench.choose(("latency",))


@pytest.mark.parametrize("names", [(), ("audit",)])
def test_small_sizes_are_not_written(names: tuple[str, ...]) -> None:
    with pytest.raises(StackError, match="every benchmark in its full size"):
        bench.run_bench(names, quick=True, write=True)


@pytest.fixture
def document(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A document with places for two benchmarks, which find the same."""
    places = (f"Of {name}.\n\n{_place(name, 'Old.')}" for name in ("rounds", "audit"))
    path = tmp_path / "benchmarks.md"
    path.write_text("\n\n".join(["# By hand", *places, "The end.\n"]))
    monkeypatch.setattr(bench, "DOCUMENT", path)
    monkeypatch.setattr(bench, "_load", lambda _name: lambda _say, *, quick: FOUND)
    monkeypatch.setattr(bench, "describe_machine", lambda: "Measured somewhere.")
    return path


def _place(name: str, figures: str) -> str:
    return f"<!-- moot bench {name} -->\n\n{figures}\n\n<!-- end -->"


def test_figures_are_written_into_their_place_and_nowhere_else(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = document.read_text()

    bench.run_bench(("audit",), quick=False, write=True)
    bench.run_bench(("audit",), quick=False, write=True)

    figures = f"A sentence.\n\n{TABLE}\n\nMeasured somewhere."
    old, new = _place("audit", "Old."), _place("audit", figures)
    assert document.read_text() == before.replace(old, new)
    assert not capsys.readouterr().out


def test_figures_that_have_no_place_are_not_written(document: Path) -> None:
    before = document.read_text()
    with pytest.raises(StackError, match="no places for privacy"):
        bench.run_bench(("privacy",), quick=False, write=True)
    assert document.read_text() == before


def test_the_document_has_a_place_for_every_benchmark() -> None:
    text = bench.DOCUMENT.read_text()
    for name in bench.BENCHMARKS:
        assert "## New" in bench.replace_figures(text, name, "## New")


def test_figures_are_printed(
    document: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bench.run_bench(("audit",), quick=True, write=False)

    assert capsys.readouterr().out == (
        f"## audit\n\nA sentence.\n\n{TABLE}\n\nMeasured somewhere.\n\n"
    )


def test_neither_the_machine_nor_its_owner_is_named() -> None:
    text = describe_machine()
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert all(name in text for name in (" cores, ", " GiB of memory", "; Python 3."))
    assert all(name in text for name in (", Kafka ", ", Apicurio", ", MinIO "))


@pytest.mark.parametrize(("load", "is_said"), [(0.1, False), (30.0, True)])
def test_a_busy_machine_is_said_to_be_one(
    monkeypatch: pytest.MonkeyPatch, load: float, is_said: bool
) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (load, 0.0, 0.0))
    monkeypatch.setattr("tests.bench.report.count_cores", lambda: 2)
    assert ("not idle" in describe_machine()) is is_said


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.123, "0.12"),
        (9.876, "9.88"),
        (12.34, "12.3"),
        (123.4, "123"),
        (5678.9, "5,680"),
        (1_234_567, "1,230,000"),
    ],
)
def test_numbers_are_shown_with_the_digits_that_count(value: float, text: str) -> None:
    assert show(value) == text


def test_a_missed_target_is_said_to_be_missed() -> None:
    def said(value: float, *, at_least: bool) -> bool:
        text = show_target(value=value, target=100, unit="x", at_least=at_least)
        assert ("MISSED" in text) != ("met" in text)
        return "met" in text

    assert said(100, at_least=True)
    assert not said(99, at_least=True)
    assert said(100, at_least=False)
    assert not said(101, at_least=False)


def _spin() -> None:
    for _ in range(20_000):
        pass


def test_a_hot_spot_is_found_and_named_without_its_path() -> None:
    name, share = next(iter(find_hot_spots(_spin).items()))

    assert name == "tests.unit.bench.test_bench._spin"
    assert 0.5 < share <= 1


def test_a_rate_is_per_core() -> None:
    assert measure_rate(_spin, 20_000) > 100_000


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="reads /proc")
def test_processor_time_is_that_of_a_process_and_what_it_started(
    tmp_path: Path,
) -> None:
    spin = "import time\nwhile time.process_time() < 0.3: pass\ntime.sleep(60)"
    process = spawn_owned(
        [sys.executable, "-c", spin], env=dict(os.environ), log_path=tmp_path / "log"
    )
    try:
        used = 0.0
        while used < 0.25:
            assert process.poll() is None
            used = measure_cpu_s(process.pid) or 0.0
    finally:
        kill_owned(process)


def test_agents_are_the_same_every_time() -> None:
    agents = make_agent_keys(3)

    assert agents == make_agent_keys(3)
    assert len({key.public_key for key in agents.values()}) == 3


def test_the_sequencers_load_is_admitted_whole() -> None:
    offline = bench_sequencer.Offline(make_agent_keys(3), 10, [4])

    offline.verify()
    offline.decode()
    offline.sequence()


@pytest.mark.parametrize("num_nodes", [0, 4])
def test_a_made_log_is_sound(num_nodes: int) -> None:
    blobs = BlobDict()
    maker = LogMaker("bench", 4, 6, blobs.store, num_nodes=num_nodes)
    steps = list(maker.make(40))

    report = run_audit(
        [step.ledger for step in steps],
        federation_id="bench",
        unframe=unframe,
        fetch_blob=blobs.fetch,
        checkpoints=[step.checkpoint for step in steps],
        attestations=[record for step in steps for _, record in step.said],
        operator_key=make_key("OPERATOR").public_key,
    ).report

    assert report.findings == []
    assert report.num_leaves == maker.num_leaves >= 40
    assert not report.pending
    assert report.num_checkpoints == len(steps)
    assert report.num_rounds_recomputed > 1
    assert report.num_attestations == max(0, num_nodes * (2 * len(steps) - 1))


def test_aggregation_is_measured_without_a_stack(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bench_aggregation, "MIN_TIME_S", 0.01)
    found = bench_aggregation.run(_ignore, quick=True)

    assert "| 10 × 10,000 |" in "\n".join(found)


def test_a_round_is_reported_beside_its_limit() -> None:
    tables = bench_rounds.report(
        10,
        1_000_000,
        [{e.UpdateSubmitted: 1.0, e.RoundSealed: 1.5, e.AggregatePublished: 2.0}],
        [{"store": 0.5, "fetch": 0.4, "add": 0.1}],
        {"sequencer": 0.25},
    )

    rates, limits, phases = (make_table([row]).splitlines()[-1] for row in tables)
    assert rates == "| 5.00 | 20.0 | 2.00 | 1.00 | 2.0× |"
    assert limits == "| 80.0 | 100 | 400 |"
    assert phases == "| 1.00 | 0.50 | 0.50 | 0.25 |  |  |"


def test_a_sequencer_is_reported_beside_its_limits() -> None:
    live = bench_sequencer.Throughput(4_000.0, 5_000.0, (10, 20, 30))
    ceiling = bench_sequencer.Throughput(8_000.0, None, ())
    offline = bench_sequencer.Offline(make_agent_keys(2), 10, live.sizes)

    text = "\n".join(bench_sequencer.report(live, ceiling, [80.0, 90.0], offline))

    assert "at least 2,000 leaves/s: met, 4,000" in text
    assert "| Faust that only copies, exactly-once | 8,000 | 50% | wall |" in text
    assert "Blocks of 20 to 30 leaves." in text


def test_a_process_is_measured_from_its_first_block_on() -> None:
    cpu_s = iter([10.0, 12.0])
    found = bench_sequencer.measure_throughput(
        iter([100, 40, 60, 7]), 200, lambda: next(cpu_s)
    )
    assert (found.sizes, found.per_cpu_s) == ([100, 40, 60], 50.0)
