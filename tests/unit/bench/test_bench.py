"""What the benchmarks compute and print; what they measure needs a stack."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from cli.stack.processes import StackError, kill_owned, spawn_owned
from consumers.audit.auditor import run_audit
from tests.bench import aggregation as bench_aggregation
from tests.bench import rounds as bench_rounds
from tests.bench import run as bench
from tests.bench import sequencer as bench_sequencer
from tests.bench.federation import make_agent_keys, measure_cpu_s
from tests.bench.log import LogMaker
from tests.bench.report import (
    Machine,
    Section,
    Table,
    find_hot_spots,
    inspect_machine,
    measure_rate,
    render_document,
    replace_section,
    show,
    show_target,
)
from tests.builders import BlobDict, make_key, unframe

SECTION = Section(
    "nothing",
    "Nothing",
    ("A paragraph\nof two lines.", Table(("", "a", "b"), (("row", "1", "2"),))),
)


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


def test_the_document_is_written_with_the_command_that_made_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    document = tmp_path / "benchmarks.md"
    monkeypatch.setattr(bench, "DOCUMENT", document)
    monkeypatch.setattr(bench, "_load", lambda _name: lambda _say, *, quick: SECTION)

    bench.run_bench((), quick=False, write=True)

    text = document.read_text()
    assert text.startswith("# Benchmarks\n")
    assert "`moot bench --write` made this page" in text
    assert text.count("## Nothing") == len(bench.BENCHMARKS)
    assert not capsys.readouterr().out


@pytest.mark.parametrize("present", ["rounds audit aggregation", "rounds privacy"])
def test_a_named_benchmark_is_written_into_its_place(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, present: str
) -> None:
    document = tmp_path / "benchmarks.md"
    names = present.split()
    old = [Section(name, f"Of {name}", ("Old figures.",)) for name in names]
    machine = Machine("cpu", 2, 2**34, "Linux", 0.1, "2026-01-01", ("Python 3",))
    before = render_document(machine, old, "moot bench --write")
    document.write_text(before + "\n### By hand\n\nStays unless it is privacy's.\n")
    new = Section("privacy", "Anew", ("New figures.",))
    monkeypatch.setattr(bench, "DOCUMENT", document)
    monkeypatch.setattr(bench, "_load", lambda _name: lambda _say, *, quick: new)

    bench.run_bench(("privacy",), quick=False, write=True)
    once = document.read_text()
    bench.run_bench(("privacy",), quick=False, write=True)
    text = document.read_text()

    assert text.count("## Anew\n\n`moot bench privacy`\n\nNew figures.") == 1
    assert text.index("Of rounds") < text.index("Anew")
    assert text.count("Measured by itself: ") == 1
    assert once.splitlines()[:-2] == text.splitlines()[:-2]
    assert text.startswith(before[: before.index("## Of ")])
    kept = [name for name in names if name != "privacy"]
    assert text.count("Old figures.") == len(kept)
    assert ("By hand" in text) is ("privacy" not in names)
    assert "\n\n\n" not in text


def test_a_missing_section_comes_before_the_next() -> None:
    machine = Machine("cpu", 2, 2**34, "Linux", 0.1, "2026-01-01", ("Python 3",))
    old = [Section("audit", "Audit", ("Old.",))]
    document = render_document(machine, old, "moot bench --write")
    new = Section("rounds", "Rounds", ("New.",))

    text = replace_section(document, new, machine, bench.BENCHMARKS)

    assert text.index("## Machine") < text.index("## Rounds") < text.index("## Audit")


def test_a_named_benchmark_is_printed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "_load", lambda _name: lambda _say, *, quick: SECTION)

    bench.run_bench(("audit",), quick=True, write=False)

    out = capsys.readouterr().out
    assert "`moot bench audit --quick` made this page" in out
    assert out.count("## Nothing") == 1


def test_a_section_names_the_command_that_repeats_it() -> None:
    assert SECTION.render() == (
        "## Nothing\n\n`moot bench nothing`\n\nA paragraph of two lines.\n\n"
        "|  | a | b |\n| --- | ---: | ---: |\n| row | 1 | 2 |"
    )


def test_a_document_names_neither_the_machine_nor_its_owner() -> None:
    machine = inspect_machine()
    text = render_document(machine, [SECTION], "moot bench")

    assert machine.cores >= 1
    assert os.uname().nodename not in text
    assert str(Path.home()) not in text
    assert any(item.startswith("Kafka ") for item in machine.versions)


@pytest.mark.parametrize(("load", "is_said"), [(0.1, False), (3.0, True)])
def test_a_busy_machine_is_said_to_be_one(load: float, is_said: bool) -> None:
    machine = Machine("cpu", 2, 2**34, "Linux", load, "2026-01-01", ("Python 3",))
    text = machine.render()

    assert "cpu, 2 cores, 16 GiB of memory" in text
    assert ("not idle" in text) is is_said


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
    spots = find_hot_spots(_spin)

    assert spots[0].name == "tests.unit.bench.test_bench._spin"
    assert 0.5 < spots[0].share <= 1


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
    offline = bench_sequencer.Offline(make_agent_keys(3), 10, 4)

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
    section = bench_aggregation.run(_ignore, quick=True)

    assert "| 10 × 10,000 |" in section.render()


def test_a_round_is_reported_beside_its_limit() -> None:
    found = bench_rounds.Found(
        num_agents=10,
        num_parameters=1_000_000,
        rounds=(bench_rounds.Timeline(submitted_s=1.0, sealed_s=1.5, published_s=2.0),),
        limit=bench_rounds.Limit(write_s=0.5, read_s=0.4, sum_s=0.1),
        cpu_s={"sequencer": 0.25},
    )

    text = bench_rounds.report([found]).render()

    assert "| 10 × 1,000,000 | 5.00 | 20.0 | 2.00 | 1.00 | 2.0× |" in text
    assert "| 10 × 1,000,000 | 80.0 | 100 | 400 |" in text
    assert "| 10 × 1,000,000 | 1.00 | 0.50 | 0.50 | 0.25 | 0 | 0 |" in text
    assert "it is storing and submitting, 50% of the round" in text


def test_a_sequencer_is_reported_beside_its_limits() -> None:
    live = bench_sequencer.Throughput(4_000.0, 5_000.0, (10, 20, 30))
    ceiling = bench_sequencer.Throughput(8_000.0, None)

    text = bench_sequencer.report(
        live, ceiling, [80.0, 90.0], make_agent_keys(2), 40
    ).render()

    assert "at least 2,000 leaves/s: met, 4,000" in text
    assert "| Faust that only copies bytes, exactly-once | 8,000 | 50% | wall |" in text
