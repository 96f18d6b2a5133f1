"""What the audit finds, one kind of fault at a time."""

import dataclasses
import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import typer

import cli.audit
import protocol.replay
from adapters.kafka import make_headers
from adapters.schema_registry import SchemaRegistry, SchemaRegistryFailedError
from cli.audit import Options
from cli.audit_show import render
from consumers.audit.auditor import run_audit
from consumers.audit.report import FindingCode
from protocol.aggregation import sum_from_blob, sum_to_blob
from protocol.tensors import tensors_from_blob, tensors_to_blob
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, LogBuilder, build_log, frame, make_key, unframe


@pytest.fixture(scope="module")
def log():
    return build_log()


def audit(
    log, *, records=None, checkpoints=None, blobs=None, fetch_blob=None, **options
):
    return run_audit(
        log.records if records is None else records,
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=fetch_blob or (log.blobs if blobs is None else blobs).fetch,
        checkpoints=log.checkpoints if checkpoints is None else checkpoints,
        **options,
    ).report


def codes(report):
    return [finding.code for finding in report.findings]


def the_finding(report, code):
    """Return the only finding, which is of this kind."""
    assert codes(report) == [code]
    return report.findings[0]


def index_of(log, event_type, number=0):
    """Return the leaf index of an event."""
    found = [i for i, event in enumerate(log.leaves) if isinstance(event, event_type)]
    return found[number]


def altered(mapping, key, value):
    blobs = BlobDict(mapping)
    if value is None:
        del blobs[key]
    else:
        blobs[key] = value
    return blobs


# A sound log


def test_a_valid_log_is_sound(log):
    report = audit(log)
    assert report.is_sound, report.findings
    assert report.num_blocks == len(log.records) == report.num_checkpoints
    assert report.num_leaves == len(log.leaves)
    assert report.num_signatures == report.num_leaves + 3 * report.num_blocks
    assert report.num_rounds_recomputed == 3
    assert report.facts["AggregatePublished"] == 3
    assert sum(report.facts.values()) == sum(
        isinstance(event, e.Fact) for event in log.leaves
    )
    assert report.refusals == {"REVOKED_AGENT": 1, "BAD_SIGNATURE": 1}
    assert report.rejections["MALFORMED_BLOB"] == 1
    assert report.num_claims_checked == 1
    assert report.num_claims_unchecked == 1
    assert not report.pending
    assert not report.stopped


def test_the_report_is_json_and_text(log):
    report = audit(log)
    assert json.loads(json.dumps(report.to_json()))["is_sound"] is True
    text = render(report, 1.0)
    assert text.startswith("SOUND")
    assert report.operator_key in text
    broken = audit(log, records=log.records[:-1])
    assert broken.to_json()["findings"][0]["code"] == "CHECKPOINT_BEYOND_END"
    json.dumps(broken.to_json())
    assert "CHECKPOINT_BEYOND_END at moot.checkpoints" in render(broken, 1.0)


def test_progress_is_told_after_every_block(log):
    told = []
    audit(log, on_progress=told.append)
    assert [progress.num_blocks for progress in told] == [
        *range(1, len(log.records) + 1)
    ]


def test_other_federations_in_the_partition_do_not_matter(log):
    other = build_log(federation_id="banks")
    mixed = [r for pair in zip(other.records, log.records, strict=True) for r in pair]
    report = audit(
        log, records=mixed, checkpoints=[*other.checkpoints, *log.checkpoints]
    )
    assert report.is_sound, report.findings
    assert report.num_blocks == len(log.records)


def test_a_tombstone_of_others_does_not_matter(log):
    other = replace(log.records[0], key=b"other", value=None)
    assert audit(log, records=[other, *log.records]).is_sound


def test_facts_that_are_not_sequenced_yet_are_pending():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.say(
        e.RoundRequested(federation_id="clinics", round=1, requested_at_ms=1),
        make_key("OPERATOR"),
    )
    log.sequence_block()
    report = audit(log)
    assert report.is_sound, report.findings
    assert [(fact.event, fact.cause_leaf_index) for fact in report.pending] == [
        ("RoundStarted", len(log.leaves) - 1)
    ]


def test_accepted_updates_of_an_open_round_are_checked():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    cohort = log.request_round()
    log.submit(cohort[0])
    log.settle()
    log.check()
    assert audit(log).num_blobs == 2
    update = log.make_update(cohort[0]).update
    blobs = altered(log.blobs, update.sha256, None)
    finding = the_finding(audit(log, blobs=blobs), FindingCode.MISSING_BLOB)
    assert finding.blob_sha256 == update.sha256.hex()


def test_blobs_and_checkpoints_may_be_left_out_and_the_report_says_so(log):
    report = run_audit(log.records, federation_id="clinics", unframe=unframe).report
    assert report.is_sound
    assert report.num_blobs == report.num_checkpoints == 0
    assert any("Blobs were left out" in note for note in report.notes)
    assert any("Checkpoints were left out" in note for note in report.notes)


def test_an_unknown_federation_is_neither_sound_nor_wrong(log):
    report = run_audit(log.records, federation_id="nobody", unframe=unframe).report
    assert not report.is_sound
    assert not report.findings
    assert report.num_blocks == 0


def test_a_log_with_checkpoints_only_is_wrong(log):
    assert not audit(log, records=[]).is_sound
    assert set(codes(audit(log, records=[]))) == {FindingCode.CHECKPOINT_INVALID}


# The operator


def test_a_pinned_operator_key_is_compared(log):
    pinned = make_key("OPERATOR").public_key
    report = audit(log, operator_key=pinned)
    assert report.is_sound
    assert not any("log's own word" in note for note in report.notes)
    assert any("log's own word" in note for note in audit(log).notes)


def test_another_operator_ends_the_audit(log):
    pinned = make_key("somebody").public_key
    report = audit(log, operator_key=pinned)
    finding = the_finding(report, FindingCode.WRONG_OPERATOR)
    assert finding.expected == pinned.hex()
    assert finding.found == make_key("OPERATOR").public_key.hex()
    assert finding.place.leaf_index == 0
    assert report.num_leaves == 0


# Records


def test_a_missing_block_ends_the_audit_there(log):
    report = audit(log, records=log.records[:10] + log.records[11:])
    finding = the_finding(report, FindingCode.BROKEN_LOG)
    assert finding.place.offset == log.records[11].offset
    assert (finding.expected, finding.found) == ("10", "11")
    assert report.stopped


def test_a_doubled_block_is_found(log):
    report = audit(log, records=[*log.records[:11], *log.records[10:]])
    finding = the_finding(report, FindingCode.BROKEN_LOG)
    assert finding.place.height == 11


def test_swapped_blocks_are_found(log):
    records = list(log.records)
    records[5], records[6] = records[6], records[5]
    finding = the_finding(audit(log, records=records), FindingCode.BROKEN_LOG)
    assert finding.place.offset == log.records[6].offset


def test_a_cut_log_is_found_by_its_checkpoints(log):
    report = audit(log, records=log.records[:-3])
    finding = the_finding(report, FindingCode.CHECKPOINT_BEYOND_END)
    assert finding.place.offset == log.checkpoints[-3].offset
    assert str(len(log.leaves)) in finding.found


def test_a_block_signed_by_somebody_else_is_found(log):
    record = log.records[7]
    event = codec.decode(unframe(record.value))
    headers = make_headers(
        event, codec.encode(event), make_key("mallory"), log.genesis, ""
    )
    records = [*log.records]
    records[7] = replace(record, headers=tuple(headers))
    finding = the_finding(audit(log, records=records), FindingCode.BROKEN_LOG)
    assert "did not sign" in finding.message
    assert finding.place.offset == record.offset


@pytest.mark.parametrize(
    "change",
    [
        lambda headers: (*headers, ("extra", b"")),
        lambda headers: headers[:2],
        lambda headers: (headers[0], headers[2], headers[1]),
        lambda headers: (*headers, headers[2]),
        lambda headers: (headers[0], ("moot-event-id", bytes(32)), headers[2]),
        lambda headers: (*headers[:2], ("traceparent", b"")),
    ],
)
def test_headers_are_exactly_what_the_sequencer_writes(log, change):
    records = [*log.records]
    records[3] = replace(records[3], headers=change(records[3].headers))
    report = audit(log, records=records)
    finding = the_finding(report, FindingCode.WRONG_HEADERS)
    assert finding.place.offset == records[3].offset
    assert report.num_blocks == len(records)  # the audit goes on


def test_another_key_is_found_and_the_audit_goes_on(log):
    records = [*log.records]
    records[3] = replace(records[3], key=b"others")
    report = audit(log, records=records)
    assert the_finding(report, FindingCode.WRONG_KEY).place.offset == 6
    assert report.num_blocks == len(records)


def test_another_federations_block_under_our_key_is_found(log):
    other = build_log(federation_id="banks")
    report = audit(log, records=[replace(other.records[0], key=b"clinics")])
    finding = report.findings[0]
    assert finding.code is FindingCode.BROKEN_LOG
    assert (finding.expected, finding.found) == ("clinics", "banks")


@pytest.mark.parametrize("value", [None, b"", b"\x00", b"\x01abcdefgh", b"\x00" * 40])
def test_a_record_that_is_no_event_is_found(log, value):
    records = [*log.records]
    records[3] = replace(records[3], value=value)
    finding = the_finding(audit(log, records=records), FindingCode.NOT_FRAMED)
    assert finding.place.offset == records[3].offset


def test_another_event_on_the_ledger_is_found(log):
    records = [*log.records]
    records[3] = replace(records[3], value=log.checkpoints[3].value)
    assert codes(audit(log, records=records)) == [FindingCode.BROKEN_LOG]


# Leaves: the sequencer colludes


def collude(*, before=lambda log: log.run_round()):
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    before(log)
    return log


def test_a_forged_signature_is_found():
    log = collude()
    event = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="")
    log.append([(log.make_leaf(event, make_key("mallory")), event)])
    finding = the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)
    assert "BAD_SIGNATURE" in finding.expected
    assert finding.place.leaf_index == len(log.leaves) - 1


def test_every_leaf_of_a_block_that_should_not_be_there_is_found():
    log = collude()
    bad = e.AgentRevoked(federation_id="clinics", agent_id="nobody", explanation="")
    good = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="")
    key = make_key("OPERATOR")
    first = len(log.leaves)
    log.append(
        [
            (log.make_leaf(bad, key), bad),
            (log.make_leaf(good, key), good),
            (log.make_leaf(good, key), good),  # the very same again
            (log.make_leaf(bad, make_key("ada")), bad),
        ]
    )
    report = audit(log)
    assert codes(report) == [FindingCode.NOT_ADMISSIBLE] * 3
    places = [finding.place.leaf_index for finding in report.findings]
    assert places == [first, first + 2, first + 3]


def test_a_leaf_from_another_topic_is_found():
    log = collude()
    event = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="")
    leaf = log.make_leaf(event, make_key("OPERATOR"), topic=topics.UPDATES)
    log.append([(leaf, event)])
    finding = the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)
    assert "WRONG_TOPIC" in finding.expected


def test_a_leaf_that_is_no_ledger_event_is_found():
    log = collude()
    event = e.CheckpointSigned(federation_id="clinics", height=0, checkpoint="")
    leaf = log.make_leaf(event, make_key("SEQUENCER"))
    with pytest.raises(Exception, match="cannot be decoded"):
        log.append([(leaf, event)])  # no reader of the builder's takes it either
    report = audit(log)
    assert codes(report) == [FindingCode.BROKEN_LOG]
    assert report.findings[0].place.leaf_index == len(log.leaves)


def test_a_second_genesis_is_found():
    log = collude()
    genesis = log.leaves[0]
    log.append([(log.make_leaf(genesis, make_key("OPERATOR")), genesis)])
    finding = the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)
    assert "FEDERATION_EXISTS" in finding.expected


def test_a_genesis_that_the_operator_did_not_sign_ends_the_audit():
    good = LogBuilder()
    good.found()
    log = LogBuilder(blobs=good.blobs)
    genesis = good.leaves[0]
    log.append([(log.make_leaf(genesis, make_key("mallory")), genesis)])
    report = audit(log)
    assert codes(report) == [FindingCode.NOT_ADMISSIBLE]
    assert "BAD_SIGNATURE" in report.findings[0].message
    assert report.stopped


def refusal_of(event, reason, **changes):
    value = frame(event)
    refusal = e.EventRejected(
        federation_id="clinics",
        reason=reason,
        detail="",
        source_topic=topics.topic_of(event),
        source_partition=0,
        source_offset=1_000,
        value_sha256=hashlib.sha256(value).digest(),
        value_size_bytes=len(value),
        value=value[:4_096],
    )
    return replace(refusal, **changes)


def refusing(refusal):
    """Return a log whose sequencer says that it refused something."""
    log = collude()
    leaf = replace(
        log.make_leaf(refusal, make_key("SEQUENCER"), topic=refusal.source_topic),
        source_offset=refusal.source_offset,
    )
    log.append([(leaf, refusal)])
    return log


REVOKED = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="")


@pytest.mark.parametrize(
    ("refusal", "is_false"),
    [
        (refusal_of(REVOKED, Reason.BAD_SIGNATURE), False),
        (refusal_of(REVOKED, Reason.UNKNOWN_AGENT), True),
        (refusal_of(REVOKED, Reason.INVALID_FIELD), True),
        (refusal_of(REVOKED, Reason.NOT_FRAMED), True),
        (refusal_of(REVOKED, Reason.TOO_LARGE), True),
        (refusal_of(REVOKED, Reason.NO_VALUE), True),
        (refusal_of(REVOKED, Reason.MALFORMED_EVENT), True),
        (refusal_of(REVOKED, "WHATEVER"), True),
        (refusal_of(replace(REVOKED, agent_id="zoe"), Reason.UNKNOWN_AGENT), False),
        (refusal_of(replace(REVOKED, agent_id="ZOE"), Reason.INVALID_FIELD), False),
    ],
)
def test_a_refusal_is_judged_again(refusal, is_false):
    report = audit(refusing(refusal))
    assert codes(report) == ([FindingCode.FALSE_REFUSAL] if is_false else [])


@pytest.mark.parametrize(
    "change", [{"value_size_bytes": 3}, {"value_sha256": bytes(32)}]
)
def test_a_refusal_that_misquotes_is_found(change):
    log = refusing(refusal_of(REVOKED, Reason.BAD_SIGNATURE, **change))
    finding = the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)
    assert finding.place.leaf_index == len(log.leaves) - 1


def test_what_follows_a_leaf_that_should_not_be_there_is_judged_as_ever():
    log = collude()
    bad = e.AgentRevoked(federation_id="clinics", agent_id="nobody", explanation="")
    log.append([(log.make_leaf(bad, make_key("OPERATOR")), bad)])
    log.state = replace(
        log.state,
        admission=replace(log.state.admission, num_leaves=len(log.leaves)),
    )
    log.run_round()
    the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)


# Facts: the decider lies, the sequencer admits it


def lying(change):
    """Return a log whose decider sends other facts than it concluded."""
    return build_log(send_fact=change)


def test_an_altered_fact_is_found():
    def change(fact):
        if isinstance(fact, e.ContributionAccepted) and fact.round == 1:
            return [replace(fact, num_examples=fact.num_examples + 1)]
        return [fact]

    log = lying(change)
    report = audit(log)
    assert set(codes(report)) == {FindingCode.FACT_DIFFERS}
    finding = report.findings[0]
    assert finding.place.leaf_index == index_of(log, e.ContributionAccepted)
    assert finding.expected.startswith("num_examples=")
    assert finding.expected != finding.found


def test_a_suppressed_fact_is_found_by_the_next_one():
    def change(fact):
        is_it = isinstance(fact, e.ContributionRejected) and fact.round == 1
        return [] if is_it else [fact]

    log = lying(change)
    finding = the_finding(audit(log), FindingCode.FACT_MISSING)
    assert "ContributionRejected" in finding.expected
    declined = index_of(log, e.UpdateDeclined)
    assert f"leaf {declined}" in finding.message


def test_a_fact_suppressed_for_ever_stays_pending():
    log = lying(
        lambda fact: [] if isinstance(fact, e.ModelVersionRegistered) else [fact]
    )
    report = audit(log)
    assert report.is_sound
    assert [fact.event for fact in report.pending] == ["ModelVersionRegistered"] * 3
    assert any("not on it yet" in note for note in report.notes)


def test_an_invented_fact_is_found():
    def change(fact):
        if isinstance(fact, e.RoundSealed) and fact.round == 1:
            invented = e.RoundAbandoned(
                federation_id=fact.federation_id,
                round=9,
                cause=fact.cause,
                cause_leaf_index=fact.cause_leaf_index,
                output_index=fact.output_index + 1,
                reason="WRONG_ROUND",
                detail="",
            )
            return [fact, invented]
        return [fact]

    log = lying(change)
    finding = the_finding(audit(log), FindingCode.FACT_INVENTED)
    assert finding.place.leaf_index == index_of(log, e.RoundAbandoned)
    assert "round=9" in finding.found


def test_a_doubled_fact_is_found():
    log = collude()
    fact = next(event for event in log.leaves if isinstance(event, e.RoundSealed))
    log.append([(log.make_leaf(fact, make_key("DECIDER")), fact)])
    finding = the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)
    assert "DUPLICATE_EVENT" in finding.expected


def test_a_fact_about_the_future_is_invented_and_hides_nothing():
    log = collude()
    fact = next(event for event in log.leaves if isinstance(event, e.RoundSealed))
    fact = replace(fact, cause_leaf_index=10**9)
    log.append([(log.make_leaf(fact, make_key("DECIDER")), fact)])
    finding = the_finding(audit(log), FindingCode.NOT_ADMISSIBLE)
    assert "not on the ledger yet" in finding.found


# Rewards, refusals


def test_the_report_has_the_balances_that_follow_from_the_log(log):
    report = audit(log)
    last = {
        fact.account: fact.balance
        for fact in log.leaves
        if isinstance(fact, e.BalanceChanged)
    }
    assert report.balances == last
    assert last["node:node3"] == -100_000
    text = render(report, 1.0)
    assert "Balances:" in text
    assert "-100,000" in text
    assert report.to_json()["balances"] == last


def test_refused_records_are_listed_if_they_are_asked_for(log):
    assert audit(log).refused == []
    refused = audit(log, lists_refused=True).refused
    places = [i for i, x in enumerate(log.leaves) if isinstance(x, e.EventRejected)]
    assert [item.leaf_index for item in refused] == places
    assert {item.reason for item in refused} == {"REVOKED_AGENT", "BAD_SIGNATURE"}
    assert refused[0].source.startswith("moot.updates/0 offset ")
    assert "eve" in refused[0].detail
    assert "REVOKED_AGENT" in render(audit(log, lists_refused=True), 1.0)


def test_proven_equivocations_are_listed(log):
    (proven,) = audit(log).equivocations
    assert proven.leaf_index == index_of(log, e.EquivocationProven)
    assert proven.public_key == make_key("node3").public_key.hex()
    assert (proven.offence, proven.era, proven.epoch) == ("TWO_BLOCKS", 0, 0)


def test_a_federation_without_ledger_nodes_is_sound_and_the_report_says_so():
    report = audit(build_log(ledger_nodes=()), attestations=[])
    assert report.is_sound, report.findings
    assert report.finality is None
    assert any("no ledger nodes" in note for note in report.notes)


# Blobs


def test_a_missing_update_is_found(log):
    update = log.leaves[index_of(log, e.UpdateSubmitted)]
    blobs = altered(log.blobs, update.update.sha256, None)
    report = audit(log, blobs=blobs)
    finding = the_finding(report, FindingCode.MISSING_BLOB)
    assert finding.blob_sha256 == update.update.sha256.hex()
    assert report.num_rounds_recomputed == 2


def test_every_bad_blob_of_a_round_is_found(log):
    updates = [event for event in log.leaves if isinstance(event, e.UpdateSubmitted)]
    blobs = BlobDict(log.blobs)
    for update in updates[:3]:
        blobs[update.update.sha256] = b"\xff" * update.update.size_bytes
    report = audit(log, blobs=blobs)
    assert codes(report) == [FindingCode.CORRUPT_BLOB] * 3


def test_a_missing_onnx_file_is_found(log):
    exported = log.leaves[index_of(log, e.ModelExported)]
    blobs = altered(log.blobs, exported.onnx.sha256, None)
    finding = the_finding(audit(log, blobs=blobs), FindingCode.MISSING_BLOB)
    assert "ONNX" in finding.message


def off_by_one(result):
    total = sum_from_blob(result.sum_blob, num_parameters=6).copy()
    total[3] += 1
    return replace(result, sum_blob=sum_to_blob(total))


def with_other_model(result):
    tensors = {
        name: np.nextafter(array, np.float32(np.inf))
        for name, array in tensors_from_blob(result.model_blob).items()
    }
    return replace(result, model_blob=tensors_to_blob(tensors))


def test_a_sum_off_by_one_in_one_coordinate_is_found():
    log = build_log(result=off_by_one)
    report = audit(log)
    assert codes(report) == [FindingCode.WRONG_SUM] * 3
    assert "1 of 6 coordinates differ, first 3:" in report.findings[0].message
    place = report.findings[0].place
    assert place.leaf_index == index_of(log, e.AggregateSubmitted)


def test_a_model_off_by_one_bit_is_found_once_a_round():
    log = build_log(result=with_other_model)
    report = audit(log)
    # Each round starts from what was published, so a lie is reported where it was told.
    assert codes(report) == [FindingCode.WRONG_MODEL] * 3


def test_a_store_that_is_away_is_not_a_finding(log):
    class AwayError(Exception):
        pass

    def fetch(ref, *, max_size_bytes):
        raise AwayError

    with pytest.raises(AwayError):
        run_audit(
            log.records, federation_id="clinics", unframe=unframe, fetch_blob=fetch
        )


@pytest.mark.parametrize("error", [ConnectionError("away"), MemoryError()])
def test_nor_is_one_that_is_away_for_a_moment(log, error):
    fetched = []

    def serve(failing):
        fetched.clear()

        def fetch(ref, *, max_size_bytes):
            fetched.append(ref)
            if len(fetched) == failing:
                raise error
            return log.blobs.fetch(ref, max_size_bytes=max_size_bytes)

        return fetch

    assert audit(log, fetch_blob=serve(None)).is_sound
    num_fetched = len(fetched)
    assert num_fetched > 10
    for number in range(1, num_fetched + 1):
        with pytest.raises(type(error)):
            audit(log, fetch_blob=serve(number))


@pytest.mark.parametrize("error", [ValueError("odd"), MemoryError()])
def test_only_a_leaf_that_no_decider_reads_is_a_finding(log, monkeypatch, error):
    """A machine without memory says nothing about a leaf."""

    def step(*_):
        raise error

    monkeypatch.setattr(protocol.replay, "step_all", step)
    if isinstance(error, MemoryError):
        with pytest.raises(MemoryError):
            audit(log)
    else:
        assert codes(audit(log)) == [FindingCode.DECIDER_FAILED]


def test_few_blobs_are_in_memory_at_a_time(log):
    fetched = [0]
    seen = []

    class Blob(bytes):
        __slots__ = ()

        def __del__(self):
            fetched[0] -= 1

    def fetch(ref, *, max_size_bytes):
        fetched[0] += 1
        seen.append(fetched[0])
        return Blob(log.blobs.fetch(ref, max_size_bytes=max_size_bytes))

    big = LogBuilder(cohort_size=60)
    big.found()
    big.admit(*(f"agent-{number:02d}" for number in range(60)))
    big.run_round()
    log = big
    report = run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        fetch_blob=fetch,
        num_fetches=2,
    ).report
    assert report.is_sound
    assert len(seen) > 60
    assert max(seen) < 12


# Checkpoints


def test_a_missing_checkpoint_is_found(log):
    report = audit(log, checkpoints=log.checkpoints[:4] + log.checkpoints[5:])
    finding = the_finding(report, FindingCode.CHECKPOINT_MISSING)
    assert finding.place.height == 4


def test_missing_checkpoints_at_the_end_are_found_unless_too_new(log):
    assert (
        codes(audit(log, checkpoints=log.checkpoints[:-2]))
        == [FindingCode.CHECKPOINT_MISSING] * 2
    )
    report = audit(
        log,
        checkpoints=log.checkpoints[:-2],
        settled_offset=log.records[-2].offset,
    )
    assert report.is_sound
    assert report.num_unsigned_blocks == 2


def test_a_doubled_checkpoint_is_found(log):
    report = audit(log, checkpoints=[*log.checkpoints[:5], *log.checkpoints[4:]])
    the_finding(report, FindingCode.CHECKPOINT_MISPLACED)


def test_a_second_checkpoint_of_one_size_is_a_fork(log):
    fork = build_log(now_ms=1_000)
    last = len(log.checkpoints) - 1
    other = replace(fork.checkpoints[last - 3], offset=10_000)
    checkpoints = [*log.checkpoints[:last], other, log.checkpoints[last]]
    finding = the_finding(
        audit(log, checkpoints=checkpoints), FindingCode.CHECKPOINT_DIFFERS
    )
    assert finding.place.offset == 10_000
    assert finding.place.height == last - 3


def test_swapped_checkpoints_are_found(log):
    checkpoints = [*log.checkpoints]
    checkpoints[5], checkpoints[6] = checkpoints[6], checkpoints[5]
    report = audit(log, checkpoints=checkpoints)
    assert codes(report) == [
        FindingCode.CHECKPOINT_MISSING,
        FindingCode.CHECKPOINT_MISPLACED,
    ]


def test_a_checkpoint_of_a_fork_is_found(log):
    fork = build_log(now_ms=1_000)  # other stamps, so other hashes
    checkpoints = [*log.checkpoints]
    # Stamps are not in the tree before a fact says one.
    place = next(
        height
        for height, (ours, theirs) in enumerate(
            zip(log.checkpoints, fork.checkpoints, strict=True)
        )
        if ours.value != theirs.value
    )
    checkpoints[place] = fork.checkpoints[place]
    report = audit(log, checkpoints=checkpoints)
    finding = the_finding(report, FindingCode.CHECKPOINT_DIFFERS)
    assert finding.place.offset == log.checkpoints[place].offset
    assert finding.expected != finding.found


def test_a_checkpoint_by_somebody_else_is_found(log):
    record = log.checkpoints[4]
    event = codec.decode(unframe(record.value))
    headers = make_headers(
        event, codec.encode(event), make_key("mallory"), log.genesis, ""
    )
    checkpoints = [*log.checkpoints]
    checkpoints[4] = replace(record, headers=tuple(headers))
    assert codes(audit(log, checkpoints=checkpoints)) == [
        FindingCode.CHECKPOINT_MISSING,
        FindingCode.CHECKPOINT_INVALID,
    ]


# In general


def test_of_each_kind_the_first_few_are_listed_and_the_rest_counted(log):
    """However many there are of one kind, they hide none of another."""
    records = [*log.records]
    records[-1] = replace(records[-1], headers=())
    report = audit(log, checkpoints=[], max_findings=10)
    assert codes(report) == ["CHECKPOINT_MISSING"] * 10
    assert report.num_findings == {"CHECKPOINT_MISSING": len(log.records)}
    assert not report.stopped
    text = render(report, 1.0)
    assert f"{len(log.records)} findings" in text
    assert f"and {len(log.records) - 10} more of CHECKPOINT_MISSING" in text


def test_what_a_finding_quotes_is_bounded(log):
    first, *records = log.records
    first = replace(first, headers=(*first.headers, ("x", bytes(2**20))))
    report = audit(log, records=[first, *records])
    (finding,) = report.findings
    assert finding.code == "WRONG_HEADERS"
    assert len(finding.found) < 1_100


def run_command(monkeypatch, outcome, **options):
    """Return the exit code of `moot audit` when reading has this outcome."""

    def audit_once(_options):
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(cli.audit, "_audit_once", audit_once)
    with pytest.raises(typer.Exit) as exit_:
        cli.audit.audit(Options(federation="clinics", **options))
    return exit_.value.exit_code


@pytest.mark.parametrize("as_json", [False, True])
def test_exit_codes_tell_sound_wrong_and_unreadable_apart(
    log, monkeypatch, capsys, as_json
):
    wrong = audit(log, records=log.records[:-1])
    nothing = audit(log, records=[], checkpoints=[])
    away = cli.audit.CannotAuditError("Kafka is away")
    for outcome, code in ((audit(log), 0), (wrong, 1), (nothing, 2), (away, 2)):
        assert run_command(monkeypatch, outcome, as_json=as_json) == code
        out, err = capsys.readouterr()
        if as_json:
            assert json.loads(out)["is_sound"] is {0: True, 1: False, 2: None}[code]
        assert bool(err) == (code == 2)


def test_a_malformed_operator_key_is_refused():
    with pytest.raises(cli.audit.CannotAuditError, match="64 hex digits"):
        cli.audit._parse_key("12")


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"federation": "clinics", "bundle": Path("in.tar")},
        {"bundle": Path("in.tar"), "write_bundle": Path("out.tar")},
        {"federation": "a", "continue_from": Path("s"), "write_bundle": Path("o")},
        {"federation": "a", "is_followed": True, "write_bundle": Path("o")},
        {"bundle": Path("in.tar"), "is_followed": True},
        {"federation": "a", "stale_after_s": 5.0},
        {"federation": "a", "keeps_going": True},
    ],
)
def test_options_that_do_not_go_together_are_refused(options, capsys):
    with pytest.raises(typer.Exit) as exit_:
        cli.audit.audit(Options(**options))
    assert exit_.value.exit_code == 2
    assert capsys.readouterr().err.startswith("error: ")


def test_a_schema_registry_that_is_away_gives_no_answer(monkeypatch):
    registry = SchemaRegistry("http://localhost:1")

    def get_schema(_schema_id):
        raise ConnectionError

    monkeypatch.setattr(registry._client, "get_schema", get_schema)
    with pytest.raises(SchemaRegistryFailedError, match="does not answer at"):
        registry.unframe_trusted(b"\x00\x00\x00\x00\x01")


def test_the_audit_loads_no_torch_and_no_faust():
    script = (
        "import sys, cli.audit, consumers.audit.auditor\n"
        "bad = {'torch', 'faust', 'pytorch_lightning'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_findings_are_data(log):
    finding = audit(log, records=log.records[:-1]).findings[0]
    assert dataclasses.asdict(finding)["place"]["topic"] == topics.CHECKPOINTS
