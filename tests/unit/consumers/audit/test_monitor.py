"""Alerts: once each, and only for their own cause."""

import json
import signal
import time
from dataclasses import replace
from threading import Event, Timer

import pytest

import cli.audit
import cli.federations
from cli.audit import Options, Streams
from consumers.audit.auditor import run_audit
from consumers.audit.monitor import Alert, AlertKind, Monitor
from consumers.audit.parallel import Helpers
from consumers.audit.report import Equivocation, Finding, FindingCode, Place, Report
from schemas import topics
from tests.attesting import NOW_S, attest_all
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
        (FindingCode.ATTESTATION_DIFFERS, AlertKind.FINDING),
        (FindingCode.FACT_DIFFERS, AlertKind.FINDING),
    ],
)
def test_a_finding_becomes_an_alert_once(code, kind):
    monitor = Monitor(None)
    (alert,) = monitor.judge(report_of(code), 0.0, NOW_S)
    assert alert.kind is kind
    assert alert.code == code
    assert alert.is_fatal is (kind in {AlertKind.FORK, AlertKind.TRUNCATION})
    assert "\n" not in str(alert)
    assert str(alert).startswith(f"{kind} {code} at moot.ledger, offset 7: m")
    assert json.loads(json.dumps(alert.to_json()))["place"]["offset"] == 7
    assert monitor.judge(report_of(code), 1.0, NOW_S + 1) == []


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (FindingCode.ATTESTATION_DIFFERS, AlertKind.NODE),
        (FindingCode.COSIGNATURE_MISPLACED, AlertKind.NODE),
        (FindingCode.EQUIVOCATION, AlertKind.EQUIVOCATION),
    ],
)
def test_a_nodes_fault_becomes_an_alert_once_and_ends_no_monitor(code, kind):
    monitor = Monitor(None)
    fault = Finding(code=code, place=Place(offset=7), message="m", found="f")
    report = report_of(node_faults=[fault])
    (alert,) = monitor.judge(report, 0.0, NOW_S)
    assert alert.kind is kind
    assert not alert.is_fatal
    assert monitor.judge(report, 1.0, NOW_S + 1) == []


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
    (alert,) = monitor.judge(report, 0.0, NOW_S)
    assert (alert.kind, alert.place.leaf_index) == (AlertKind.EQUIVOCATION, 5)
    assert monitor.judge(report, 1.0, NOW_S + 1) == []
    report.equivocations = [proven, replace(proven, leaf_index=9)]
    alerts = monitor.judge(report, 2.0, NOW_S + 2)
    assert [a.place.leaf_index for a in alerts] == [9]


@pytest.fixture(scope="module")
def finality(log, attestations):
    return run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints,
        attestations=attestations,
    ).report.finality


class Clock:
    """What a monitor says of a log whose finality is this far at this time.

    Stamps are as new as they can be unless a test says otherwise.
    """

    def __init__(self, finality, stale_after_s=10.0):
        self.finality = finality
        self.monitor = Monitor(stale_after_s)

    def at(self, now_s, awaited, cosigned, *, cosigned_at_s=None, awaited_at_s=None):
        report = report_of(
            num_leaves=awaited + 1,
            awaited_size=awaited,
            awaited_at_ms=int((now_s if awaited_at_s is None else awaited_at_s) * 1000),
        )
        report.finality = replace(
            self.finality,
            cosigned_size=cosigned,
            cosigned_at_s=now_s if cosigned_at_s is None else cosigned_at_s,
        )
        return [alert.kind for alert in self.monitor.judge(report, now_s, now_s)]


def test_staleness_is_told_once_and_again_after_progress(finality):
    at = Clock(finality).at
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


def test_a_monitor_that_has_just_begun_knows_by_the_stamps_how_long_it_is(finality):
    old = {"cosigned_at_s": 1_000, "awaited_at_s": 1_001}
    assert Clock(finality).at(1_010, 6, 5, **old) == []
    assert Clock(finality).at(1_011, 6, 5, **old) == [AlertKind.STALE]
    assert Clock(finality).at(9_000, 5, 5, **old) == []  # at rest


def test_after_a_rest_only_the_last_cosignature_is_old(finality):
    at = Clock(finality).at
    assert at(5_000, 5, 5, cosigned_at_s=1_000, awaited_at_s=999) == []
    assert at(5_001, 6, 5, cosigned_at_s=1_000, awaited_at_s=5_001) == []
    assert at(5_002, 6, 6) == []


def test_stamps_of_the_future_do_not_keep_a_monitor_silent(finality):
    at = Clock(finality).at
    assert at(0, 6, 5, cosigned_at_s=10**9) == []
    assert at(10, 6, 5, cosigned_at_s=10**9) == [AlertKind.STALE]


def test_staleness_is_not_told_unless_asked_for_or_without_ledger_nodes(finality):
    report = report_of(num_leaves=9, awaited_size=9)
    monitor = Monitor(1.0)
    assert monitor.judge(report, 0.0, NOW_S) == []
    assert monitor.judge(report, 100.0, NOW_S + 100) == []
    report.finality = replace(finality, cosigned_size=0)
    monitor = Monitor(None)
    assert monitor.judge(report, 0.0, NOW_S) == []
    assert monitor.judge(report, 100.0, NOW_S + 100) == []
    assert monitor.miss("away", 200.0) == monitor.miss("away", 900.0) == []


def quiet_log():
    """Return a log at rest, of which all but the timer's last word is final."""
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.request_finality()
    return log, attest_all(log)


def audit_of(log, attestations, end=None):
    return run_audit(
        log.records[:end],
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints[:end],
        attestations=attestations,
    ).report


def test_the_timers_last_word_waits_for_nothing():
    log, attestations = quiet_log()
    report = audit_of(log, attestations)
    assert report.is_sound
    assert report.finality.cosigned_size == report.awaited_size
    assert report.awaited_size == report.num_leaves - 1  # it is never final itself
    monitor = Monitor(10.0)
    for now_s in (0.0, 11.0, 10_000.0):
        assert monitor.judge(report, now_s, NOW_S + now_s) == []


def test_what_the_timer_gave_a_child_waits_all_the_same():
    log, _ = quiet_log()
    report = audit_of(log, [])
    monitor = Monitor(10.0)
    assert monitor.judge(report, 0.0, 0.0) == []
    (alert,) = monitor.judge(report, 10.0, 10.0)
    assert (alert.kind, alert.found) == (AlertKind.STALE, "size 0")
    assert f"up to size {report.num_leaves - 1}" in alert.expected


def test_a_block_that_says_more_than_the_timer_is_awaited():
    log, attestations = quiet_log()
    log.request_finality()
    assert audit_of(log, attestations).awaited_size == log.state.log.chain.size - 2
    log.admit("eve")
    report = audit_of(log, attestations)
    assert report.awaited_size == report.num_leaves


def test_that_nothing_can_be_read_is_told_once_for_each_outage():
    monitor = Monitor(10.0)
    assert monitor.miss("Kafka is away", 0.0) == []
    assert monitor.miss("Kafka is away", 9.9) == []
    (alert,) = monitor.miss("Kafka is\naway", 10.0)
    assert (alert.kind, alert.code, alert.is_fatal) == ("STALE", "UNREADABLE", False)
    assert str(alert).endswith("nothing could be read for 10 s: Kafka is away")
    assert monitor.miss("Kafka is away", 100.0) == []
    assert monitor.judge(report_of(), 101.0, NOW_S) == []
    assert monitor.miss("Kafka is away", 110.0) == []
    assert len(monitor.miss("Kafka is away", 111.0)) == 1


# The command


class GrowingSource:
    """A log that grows, and what becomes of it."""

    def __init__(self, looks):
        self.unframe = unframe
        self.fetch = None
        self.looks = iter(looks)
        self.num_looks = 0
        self.held = ""

    def find_held(self):
        self.held = "moot.attestations/0: an open transaction holds back everything"

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
            first_offsets={
                topic: found[0].offset for topic, found in records.items() if found
            },
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
    # The log is as old as its stamps say, and nobody made its end final.
    options = {"stale_after_s": 0.0, **options}
    given = Options(federation="clinics", is_followed=True, jobs=1, **options)
    code = cli.audit._watch(given, source, None, Helpers(0), stopped)
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


def test_a_monitor_that_is_stopped_while_it_reads_forgets_nothing(log, monkeypatch):
    run, num_runs = cli.audit._run, 0

    def stop(*args, **options):
        nonlocal num_runs
        num_runs += 1
        if num_runs == 3:
            raise cli.audit._StoppedError
        return run(*args, **options)

    monkeypatch.setattr(cli.audit, "_run", stop)
    looks = [look(log, end=9), look(log, end=5), look(log)]
    assert watch(monkeypatch, looks, keeps_going=True)[0] == 1
    assert num_runs == 3


def test_a_monitor_sees_that_the_beginning_was_deleted(log, monkeypatch, capsys):
    cut = {**look(log, end=9), topics.LEDGER: log.records[1:9]}
    code, source = watch(monkeypatch, [look(log, end=9), cut, look(log)])
    assert code == 1
    assert source.num_looks == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("TRUNCATION LOG_TRUNCATED at moot.ledger, offset 0: ")


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


def test_a_monitor_looks_for_stale_logs_unless_told_not_to(log, monkeypatch, capsys):
    assert watch(monkeypatch, [look(log, end=9)] * 2, stale_after_s=None)[0] == 0
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("STALE STALE at moot.ledger, block 8: ")
    assert "; moot.attestations/0: an open transaction holds back" in line
    assert watch(monkeypatch, [look(log, end=9)] * 2, stale_after_s=0.0)[0] == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("is_away", [True, False])
def test_a_kafka_that_shows_nothing_is_an_alert(log, monkeypatch, capsys, is_away):
    monkeypatch.setattr(cli.federations, "describe_federations", lambda _: "")
    monkeypatch.setattr(cli.audit, "_load_settings", lambda: None)
    nothing = {topic: [] for topic in look(log)}
    missed = cli.audit.CannotAuditError("Kafka is away") if is_away else nothing
    code, _ = watch(monkeypatch, [missed] * 4, stale_after_s=1e-9)
    assert code == 0
    out, err = capsys.readouterr()
    (line,) = out.splitlines()
    assert line.startswith("STALE UNREADABLE at moot.ledger: nothing could be read for")
    assert ("Kafka is away" if is_away else "no federation 'clinics'") in line
    assert len(err.splitlines()) == 1


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
