"""Alerts: each once, and only for what they are about."""

import json
import signal
import time
from dataclasses import replace
from threading import Event, Timer

import pytest

import cli.audit
from cli.audit import Options, Streams
from consumers.audit import run_audit
from consumers.audit_monitor import Alert, AlertKind, Monitor
from consumers.audit_parallel import Helpers
from consumers.audit_report import Equivocation, Finding, FindingCode, Place, Report
from schemas import topics
from tests.attesting import attest_all
from tests.builders import LogBuilder, build_log, unframe


@pytest.fixture(scope="module")
def log():
    return build_log()


@pytest.fixture(scope="module")
def attestations(log):
    return attest_all(log)


def report_of(*codes, **fields):
    findings = [
        Finding(code=code, place=Place(offset=7), message="m", found="f")
        for code in codes
    ]
    return Report(federation_id="clinics", num_blocks=1, findings=findings, **fields)


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (FindingCode.BROKEN_LOG, AlertKind.FORK),
        (FindingCode.LOG_REWRITTEN, AlertKind.FORK),
        (FindingCode.CHECKPOINT_DIFFERS, AlertKind.FORK),
        (FindingCode.FINAL_BLOCK_DIFFERS, AlertKind.FORK),
        (FindingCode.COSIGNATURE_DIFFERS, AlertKind.FORK),
        (FindingCode.LOG_TRUNCATED, AlertKind.TRUNCATION),
        (FindingCode.CHECKPOINT_BEYOND_END, AlertKind.TRUNCATION),
        (FindingCode.EQUIVOCATION, AlertKind.EQUIVOCATION),
        (FindingCode.ATTESTATION_DIFFERS, AlertKind.FINDING),
        (FindingCode.FACT_DIFFERS, AlertKind.FINDING),
    ],
)
def test_a_finding_becomes_an_alert_once(code, kind):
    monitor = Monitor(None)
    (alert,) = monitor.judge(report_of(code), 0.0)
    assert alert.kind is kind
    assert alert.code == code
    assert alert.is_fatal is (kind in {AlertKind.FORK, AlertKind.TRUNCATION})
    assert "\n" not in str(alert)
    assert str(alert).startswith(f"{kind} {code} at moot.ledger, offset 7: m")
    assert json.loads(json.dumps(alert.to_json()))["place"]["offset"] == 7
    assert monitor.judge(report_of(code), 1.0) == []


def test_an_alert_is_one_line_whatever_is_found():
    alert = Alert(
        kind=AlertKind.FORK, code="X", place=Place(), message="a\nb", found="c\rd"
    )
    assert str(alert) == "FORK X at moot.ledger: a b; found c d"


def test_a_proven_equivocation_is_told_once():
    monitor = Monitor(None)
    proven = Equivocation(
        leaf_index=5, public_key="aa", offence="TWO_BLOCKS", era=0, epoch=0, position=1
    )
    report = report_of()
    report.equivocations = [proven]
    (alert,) = monitor.judge(report, 0.0)
    assert (alert.kind, alert.place.leaf_index) == (AlertKind.EQUIVOCATION, 5)
    assert monitor.judge(report, 1.0) == []
    report.equivocations = [proven, replace(proven, leaf_index=9)]
    assert [a.place.leaf_index for a in monitor.judge(report, 2.0)] == [9]


@pytest.fixture(scope="module")
def finality(log, attestations):
    return run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints,
        attestations=attestations,
    ).report.finality


def test_staleness_is_told_once_and_again_after_progress(finality):
    def at(now_s, leaves, cosigned):
        report = report_of(num_leaves=leaves)
        report.finality = replace(finality, cosigned_size=cosigned)
        return [alert.kind for alert in monitor.judge(report, now_s)]

    monitor = Monitor(10.0)
    assert at(0, 5, 5) == []
    assert at(100, 5, 5) == []  # nothing waits
    assert at(101, 6, 5) == []  # the time begins
    assert at(110.9, 7, 5) == []
    assert at(111, 7, 5) == [AlertKind.STALE]
    assert at(200, 8, 5) == []  # told already
    assert at(201, 9, 8) == []  # progress
    assert at(210.9, 9, 8) == []
    assert at(211, 9, 8) == [AlertKind.STALE]
    assert at(212, 9, 9) == []


def test_staleness_is_not_told_unless_asked_for_or_without_ledger_nodes(finality):
    report = report_of(num_leaves=9)
    monitor = Monitor(1.0)
    assert monitor.judge(report, 0.0) == monitor.judge(report, 100.0) == []
    report.finality = replace(finality, cosigned_size=0)
    monitor = Monitor(None)
    assert monitor.judge(report, 0.0) == monitor.judge(report, 100.0) == []


# The command


class GrowingSource:
    """A log that grows, and what becomes of it."""

    def __init__(self, looks):
        self.unframe = unframe
        self.fetch = None
        self.looks = iter(looks)
        self.num_looks = 0

    def open(self, positions):
        self.num_looks += 1
        records = next(self.looks)
        if isinstance(records, Exception):
            raise records

        def read(topic):
            start = positions[topic].offset if topic in positions else 0
            return iter([r for r in records[topic] if r.offset >= start])

        return Streams(
            ledger=read(topics.LEDGER),
            checkpoints=read(topics.CHECKPOINTS),
            attestations=read(topics.ATTESTATIONS),
            settled_offset=None,
        )


def look(log, attestations=(), end=None):
    return {
        topics.LEDGER: log.records[:end],
        topics.CHECKPOINTS: log.checkpoints[:end],
        topics.ATTESTATIONS: list(attestations),
    }


def watch(monkeypatch, looks, **options):
    """Run the monitor over what it finds at each look; returns its exit code."""
    monkeypatch.setattr(cli.audit, "INTERVAL_S", 0.0)
    stopped = Event()
    source = GrowingSource(looks)

    def finish():
        yield from looks
        stopped.set()
        yield looks[-1]

    source.looks = finish()
    given = Options(federation="clinics", is_followed=True, jobs=1, **options)
    code = cli.audit._watch(given, None, source, None, Helpers(0), stopped)
    return code, source


def test_a_monitor_that_sees_a_log_grow_says_nothing(log, monkeypatch, capsys):
    early = [look(log, end=end) for end in (3, 3, 9, 20)]
    assert watch(monkeypatch, early)[0] == 0
    assert capsys.readouterr().out == ""


def test_a_monitor_ends_at_a_fork_and_says_which(log, monkeypatch, capsys):
    fork = build_log(now_ms=1_000)
    looks = [look(log, end=9), look(fork, end=12), look(log)]
    code, source = watch(monkeypatch, looks, as_json=True)
    assert code == 1
    assert source.num_looks == 2
    (line,) = capsys.readouterr().out.splitlines()
    alert = json.loads(line)
    assert (alert["kind"], alert["code"]) == ("FORK", "LOG_REWRITTEN")


def test_a_monitor_that_keeps_going_says_it_once_and_goes_on(log, monkeypatch, capsys):
    shorter = look(log, end=5)
    looks = [look(log, end=9), shorter, shorter, look(log)]
    code, source = watch(monkeypatch, looks, keeps_going=True)
    assert code == 1
    assert source.num_looks == 5
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [
        ["TRUNCATION", "LOG_TRUNCATED"],
        ["EQUIVOCATION", "TWO_BLOCKS"],  # on the log, later on
    ]


def test_a_lie_is_an_alert_and_no_end(monkeypatch, capsys):
    from schemas import events as e
    from tests.builders import make_key

    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    honest = look(log.copy())
    event = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="")
    log.append([(log.make_leaf(event, make_key("mallory")), event)])
    code, source = watch(monkeypatch, [honest, look(log), look(log)])
    assert code == 0
    assert source.num_looks == 4
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FINDING NOT_ADMISSIBLE")


def test_what_cannot_be_read_is_said_once_and_tried_again(log, monkeypatch, capsys):
    away = cli.audit.CannotAuditError("Kafka is away")
    looks = [look(log, end=3), away, away, look(log, end=9), away]
    with pytest.raises(StopIteration):
        # The last look fails too: nobody ends this monitor.
        watch(monkeypatch, [*looks, StopIteration()])
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("Kafka is away") == 2


def test_a_monitor_saves_where_it_is(log, monkeypatch, tmp_path):
    path = tmp_path / "state"
    watch(monkeypatch, [look(log, end=9)], save=path)
    state = cli.audit._load_state(path, "clinics")
    assert state.report.num_blocks == 9


def test_a_signal_ends_a_monitor_cleanly(log, monkeypatch):
    source = GrowingSource([])

    def for_ever():
        while True:
            yield look(log, end=9)

    source.looks = for_ever()
    monkeypatch.setattr(cli.audit, "_load_settings", lambda: None)
    monkeypatch.setattr(cli.audit, "KafkaSource", lambda *_a, **_o: source)
    before = signal.getsignal(signal.SIGTERM)
    timer = Timer(0.5, signal.raise_signal, [signal.SIGTERM])
    timer.start()
    began = time.monotonic()
    options = Options(federation="clinics", is_followed=True, jobs=1)
    assert cli.audit.follow(options) == 0
    timer.join()
    assert time.monotonic() - began < 10
    assert source.num_looks >= 1
    assert signal.getsignal(signal.SIGTERM) is before
