"""Rows of opened sums, opened again with a library that shares no code with ours."""

import json
import sys

import numpy as np
import pytest
import typer

import cli.audit
from adapters.blobs import BlobError
from cli.audit import Options
from cli.audit_show import render
from consumers.audit.auditor import run_audit
from consumers.audit.modes import second_opinion
from consumers.audit.modes.second_opinion import (
    NUM_ROWS,
    find_row_problem,
    sample_rows,
)
from consumers.audit.report import FindingCode, Rechecked
from protocol.modes.mpc import checker, share_link
from protocol.modes.mpc import commitments as c
from schemas import events as e
from schemas.reasons import Reason
from tests.auditing import audit, found, only
from tests.builders import build_log, unframe
from tests.mpc_builder import lie_once, start_mpc_log
from tests.paths import VECTORS
from tests.unit.consumers.audit.test_bundle import write
from tests.vectors.norm_proof.generate import IDENTITY, OUTSIDE

SMALL = 24
SUM = json.loads((VECTORS / "norm_proof" / "commitments.json").read_text())["sum"]
VALUES = np.array(SUM["values"], np.int64)
ROWS = c.to_rows(VALUES, 512)


def build(speak=None):
    log = start_mpc_log("ada", "bea", "cleo", cohort_size=3, num_parameters=SMALL)
    if speak is not None:
        log.speak = speak
    log.run_round()
    return log


@pytest.fixture(scope="module")
def log():
    return build()


# A sum


def test_an_honest_sum_is_opened_by_both(log):
    report = audit(log, second_opinion=True)
    assert report.is_sound, report.findings
    assert report.rechecked == [Rechecked(round=1, rows=(0,), num_rows=1)]
    assert report.to_json()["rechecked"] == [
        {"round": 1, "rows": (0,), "num_rows": 1, "problems": ()}
    ]
    text = render(report, 1.0)
    assert "1 of 1 row of opened sums, by another library (py-ecc)" in text
    assert "round 1  row 0 of 1" in text


def test_nobody_is_asked_unless_told(log):
    report = audit(log)
    assert not report.has_second_opinion
    assert not report.rechecked
    assert "py-ecc" not in render(report, 1.0)


def test_what_else_the_audit_says_stays_the_same(log):
    report, other = audit(log), audit(log, second_opinion=True)
    other.has_second_opinion, other.rechecked = False, []
    assert other == report


@pytest.fixture
def believing(monkeypatch):
    """Our library takes whatever is said for an opening."""
    monkeypatch.setattr(share_link, "verify_opening", lambda *_, **__: True)
    monkeypatch.setattr(checker, "verify_party_sum", lambda *_, **__: None)


def test_a_forged_row_that_our_library_believes_is_found(believing):
    log = build(lie_once("p1"))
    assert only(log, e.AggregatePublished), "the lie was believed"
    assert audit(log).is_sound

    report = audit(log, second_opinion=True)
    leaf = log.leaves.index(only(log, e.AggregateSubmitted))
    assert found(report) == [(FindingCode.SECOND_OPINION_DIFFERS, leaf)]
    (finding,) = report.findings
    assert finding.found == "row 0: it does not open the commitments"
    assert finding.blob_sha256 == only(log, e.AggregatePublished).sum.sha256.hex()


def test_it_ends_with_1(believing, tmp_path, capsys):
    log = build(lie_once("p1"))
    write(tmp_path / "log.tar", log, [])
    for asks, code in ((False, 0), (True, 1)):
        options = Options(
            bundle=tmp_path / "log.tar", jobs=1, second_opinion=asks, as_json=True
        )
        with pytest.raises(typer.Exit) as end:
            cli.audit.audit(options)
        assert end.value.exit_code == code
    said = json.loads(capsys.readouterr().out.partition("\n}\n")[2])
    assert said["rechecked"][0]["problems"]
    assert said["num_findings"] == {"SECOND_OPINION_DIFFERS": 1}


def test_a_blob_that_is_gone_by_then_is_a_finding(log, monkeypatch):
    gone = only(log, e.PartialAggregateSubmitted).partial
    recheck, lost = second_opinion.recheck, []

    def fetch(ref, *, max_size_bytes):
        if lost and ref == gone:
            raise BlobError(Reason.MISSING_BLOB, "it is gone")
        return log.blobs.fetch(ref, max_size_bytes=max_size_bytes)

    def lose_and_recheck(*args):
        lost.append(gone)
        return recheck(*args)

    monkeypatch.setattr(second_opinion, "recheck", lose_and_recheck)
    report = audit(log, fetch=fetch, second_opinion=True)
    assert [code for code, _ in found(report)] == [FindingCode.MISSING_BLOB]
    assert not report.rechecked


def test_what_it_cannot_do_is_no_verdict(log, monkeypatch):
    """Whatever py-ecc raises: nobody says that the log is sound, or wrong."""

    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr(second_opinion, "hash_to_G1", fail)
    second_opinion._derive.cache_clear()
    with pytest.raises(ZeroDivisionError):
        audit(log, second_opinion=True)


def test_a_log_without_such_sums_says_that_there_is_nothing():
    report = audit(build_log(), second_opinion=True)
    assert report.is_sound
    assert any("nothing for a second opinion" in note for note in report.notes)


def test_rounds_that_an_earlier_audit_recomputed_without_it_are_counted():
    log = build()
    source = {
        "federation_id": log.federation_id,
        "unframe": unframe,
        "fetch_blob": log.blobs.fetch,
    }
    earlier = run_audit(log.records, **source).state
    last = len(log.records) - 1
    log.run_round()
    report = run_audit(
        log.records[last:], **source, start=earlier, second_opinion=True
    ).report
    assert report.is_sound, report.findings
    assert [rechecked.round for rechecked in report.rechecked] == [2]
    assert any("1 recomputed round had no second" in note for note in report.notes)


@pytest.mark.parametrize("with_blobs", [False, True])
def test_without_blobs_there_is_no_second_opinion(tmp_path, capsys, log, with_blobs):
    write(tmp_path / "log.tar", log, [], with_blobs=not with_blobs)
    options = Options(
        bundle=tmp_path / "log.tar", second_opinion=True, with_blobs=with_blobs
    )
    with pytest.raises(typer.Exit) as end:
        cli.audit.audit(options)
    assert end.value.exit_code == 2
    assert "--second-opinion" in capsys.readouterr().err


# A row


def open_row(row, **changed):
    """Open a row of the vectors' sum, or something else."""
    arguments = {
        "commitments": [bytes.fromhex(update[row]) for update in SUM["updates"]],
        "weights": SUM["weights"],
        "values": ROWS[row].tolist(),
        "blinding": c.parse_scalar(bytes.fromhex(SUM["blindings"][row])),
    }
    return find_row_problem(**{**arguments, **changed})


LAST = len(ROWS) - 1
"""It is short, so quick."""


def test_the_vectors_sum_opens():
    assert open_row(LAST) == ""


def test_a_row_that_is_off_by_one_does_not():
    values = ROWS[LAST].tolist()
    blinding = c.parse_scalar(bytes.fromhex(SUM["blindings"][LAST]))
    first, *others = SUM["weights"]
    for changed in (
        {"values": [values[0] + 1, *values[1:]]},
        {"values": [-value for value in values]},
        {"blinding": blinding + 1},
        {"weights": [first + 1, *others]},
    ):
        assert open_row(LAST, **changed) == "it does not open the commitments"
    assert open_row(LAST, blinding=blinding + c.SCALAR_ORDER) == ""


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (OUTSIDE, "not in the group"),
        (IDENTITY, "not in the group"),
        (b"\xff" * 48, "not a point"),
        (bytes(48), "not a point"),
        (b"", "has 0 bytes"),
        (bytes(49), "has 49 bytes"),
    ],
    ids=[
        "outside the subgroup",
        "identity",
        "not on it",
        "uncompressed",
        "none",
        "long",
    ],
)
def test_bytes_other_than_commitments_open_nothing(data, problem):
    first, *others = [bytes.fromhex(update[LAST]) for update in SUM["updates"]]
    assert problem in open_row(LAST, commitments=[data, *others])
    assert problem in open_row(LAST, commitments=[first, *others[:-1], data])


# Which rows


def test_the_same_rows_are_looked_at_by_everybody():
    assert sample_rows(b"a" * 32, 1000) == sample_rows(b"a" * 32, 1000)
    assert sample_rows(b"a" * 32, 1000) == (687, 699)


@pytest.mark.parametrize("num_rows", [1, 2, 3, 40])
def test_a_sample_has_so_many_rows_and_each_comes_up(num_rows):
    seen = set()
    for number in range(200):
        rows = sample_rows(number.to_bytes(32, "big"), num_rows)
        assert rows == tuple(sorted(set(rows)))
        assert len(rows) == min(NUM_ROWS, num_rows)
        seen.update(rows)
    assert seen == set(range(num_rows))


def test_recursion_is_bounded_as_before():
    """py-ecc would let it go on for 100,000 calls: then it is a crash."""
    assert sys.getrecursionlimit() < 100_000
