"""Helpers check ahead; what they say is what the audit would have found itself."""

import pickle
import signal
from concurrent.futures import BrokenExecutor, Future
from dataclasses import replace

import pytest

from consumers.audit import parallel as audit_parallel
from consumers.audit.auditor import run_audit
from consumers.audit.finality import Context
from consumers.audit.parallel import (
    CheckpointContext,
    Helpers,
    name_check,
    open_checkpoint,
)
from ledger.attestations import InvalidMessageError
from ledger.signing import InvalidSignatureError
from protocol.admission import AdmissionState, find_author
from schemas import events as e
from tests.attesting import Nodes, attest_all
from tests.builders import LogBuilder, build_log, make_key, unframe


@pytest.fixture(scope="module")
def log():
    return build_log()


@pytest.fixture(scope="module")
def attestations(log):
    return attest_all(log)


def items(records):
    return [(unframe(r.value), r.header("moot-signature")) for r in records]


def work(kind, context, records):
    return audit_parallel._work(kind, pickle.dumps(context), items(records))


def keys_of(log):
    state = log.state.admission
    return AdmissionState(
        federation_id=state.federation_id,
        principals=state.principals,
        agents=state.agents,
        genesis=state.genesis,
    )


def test_a_helper_checks_blocks_and_all_their_leaves(log):
    passed = work("blocks", keys_of(log), log.records)
    # A forged update was refused: what is on the log is signed as it must be.
    assert len(passed) == len(log.records) + len(log.leaves)
    helpers = Helpers(0)
    helpers._passed = passed
    data, signature = items(log.records)[3]
    key = make_key("SEQUENCER").public_key
    audit_parallel.verify_event(key, log.genesis, data, signature)
    assert name_check(b"event", log.genesis + key, signature, data) in passed


def test_what_nobody_checked_is_checked_where_it_is_needed(log):
    helpers = Helpers(0)
    data, signature = items(log.records)[3]
    key = make_key("SEQUENCER").public_key
    helpers.verify(key, log.genesis, data, signature)
    for wrong in (
        (make_key("x").public_key, log.genesis, data, signature),
        (key, bytes(32), data, signature),
        (key, log.genesis, data + b"x", signature),
        (key, log.genesis, data, bytes(64)),
    ):
        helpers._passed = work("blocks", keys_of(log), log.records)
        helpers.verify(key, log.genesis, data, signature)
        with pytest.raises(InvalidSignatureError):
            helpers.verify(*wrong)


def test_a_checks_name_holds_every_byte_in_its_place():
    parts = (b"kind", b"key", b"signature", b"data")
    names = {
        name_check(*parts),
        name_check(b"other", *parts[1:]),
        name_check(b"kind", b"keys", b"ignature", b"data"),
        name_check(b"kind", b"key", b"signatured", b"ata"),
        name_check(b"kind", b"ke", b"ysignature", b"data"),
        name_check(b"kind", b"key", b"signature", b"datb"),
    }
    assert len(names) == 6


def test_forged_and_garbled_records_do_not_pass(log, attestations):
    forged = replace(log.records[3], headers=log.records[4].headers)
    garbled = replace(log.records[4], value=log.records[4].value[:-1])
    checkpoint = replace(log.checkpoints[3], headers=log.checkpoints[4].headers)
    whole = work("blocks", keys_of(log), log.records[3:4])
    passed = work("blocks", keys_of(log), [forged, garbled, log.checkpoints[0]])
    assert len(passed) == len(whole) - 1  # the leaves are as they were
    # Without keys only who names its own can be checked.
    unknown = work("blocks", AdmissionState(), log.records)
    assert 0 < len(unknown) < len(log.leaves)
    context = CheckpointContext(
        federation_id="clinics",
        genesis=log.genesis,
        sequencer_key=make_key("SEQUENCER").public_key,
    )
    records = [checkpoint, log.records[0], log.checkpoints[5]]
    assert len(work("checkpoints", context, records)) == 1
    nodes = Nodes(log).blocks[0].node_set
    said = Context(
        federation_id="clinics",
        genesis=log.genesis,
        sequencer_key=context.sequencer_key,
        eras=((nodes, (-1, bytes(32))),),
    )
    bad = replace(attestations[0], headers=attestations[1].headers)
    assert len(work("attestations", said, [bad, *attestations[:3]])) == 3


def test_what_a_helper_opened_is_what_the_audit_would_have(log, attestations):
    context = CheckpointContext(
        federation_id="clinics",
        genesis=log.genesis,
        sequencer_key=make_key("SEQUENCER").public_key,
    )
    item = items(log.checkpoints)[2]
    helpers = Helpers(0)
    alone = helpers.open_checkpoint(context, *item)
    helpers._passed = work("checkpoints", context, log.checkpoints)
    assert helpers.open_checkpoint(context, *item) == alone
    assert alone == open_checkpoint(context, *item)
    said = Context(
        federation_id="clinics", genesis=log.genesis, sequencer_key=b"", eras=()
    )
    with pytest.raises(InvalidMessageError):
        helpers.verify_record(said, bytes(32), *items(attestations)[0])


def test_an_author_is_known_or_nobody(log):
    state = keys_of(log)
    update = next(x for x in log.leaves if isinstance(x, e.UpdateSubmitted))
    assert find_author(state, update) == make_key(update.agent_id).public_key
    assert find_author(AdmissionState(), update) is None
    refusal = next(x for x in log.leaves if isinstance(x, e.EventRejected))
    assert find_author(state, refusal) == make_key("SEQUENCER").public_key
    assert find_author(AdmissionState(), refusal) is None
    assert find_author(AdmissionState(), replace(update, agent_id="zoe")) is None


def audit(log, attestations, **options):
    return run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        fetch_blob=log.blobs.fetch,
        checkpoints=log.checkpoints,
        attestations=attestations,
        **options,
    ).report


def test_one_process_or_three_say_the_same(log, attestations, monkeypatch):
    alone = audit(log, attestations)
    assert alone.is_sound
    monkeypatch.setattr(audit_parallel, "MAX_CHUNK_RECORDS", 5)
    for jobs in (2, 3):
        assert audit(log, attestations, jobs=jobs) == alone


def test_records_come_in_their_order_whatever_the_chunks(log, monkeypatch):
    monkeypatch.setattr(audit_parallel, "MAX_CHUNK_RECORDS", 7)
    helpers = Helpers(1)
    try:
        for kind in ("blocks", "attestations"):
            read = helpers.read_ahead(
                log.records, kind, lambda: None, lambda _record: None
            )
            assert list(read) == log.records
        assert helpers._passed == {}
    finally:
        helpers.close()


def test_large_records_make_small_chunks(log, monkeypatch):
    monkeypatch.setattr(audit_parallel, "MAX_CHUNK_BYTES", 1)
    assert [len(chunk) for chunk in audit_parallel._split(log.records[:3])] == [1, 1, 1]


def test_a_helper_that_dies_costs_nothing_but_time(log, attestations):
    helpers = Helpers(1)
    try:
        state = keys_of(log)
        future = helpers._submit("blocks", state, items(log.records[:2]))
        assert future.result()
        (process,) = helpers._pool._processes.values()
        process.kill()
        process.join()
        from consumers.audit.auditor import run_audit

        report = run_audit(
            log.records,
            federation_id="clinics",
            unframe=unframe,
            checkpoints=log.checkpoints,
            attestations=attestations,
            helpers=helpers,
        ).report
        assert report.is_sound
        assert process.exitcode == -signal.SIGKILL
    finally:
        helpers.close()


def test_what_was_not_begun_is_done_here():
    waiting, broken, done = Future(), Future(), Future()
    broken.set_running_or_notify_cancel()
    broken.set_exception(BrokenExecutor())
    done.set_running_or_notify_cancel()
    done.set_result({b"a": 1})
    collect = Helpers._collect
    assert collect(None) == collect(waiting) == collect(broken) == {}
    assert waiting.cancelled()
    assert collect(done) == {b"a": 1}


def test_keys_that_are_admitted_meanwhile_are_no_fault():
    """What helpers cannot know yet is checked by the audit."""
    log = LogBuilder()
    log.found()
    for number in range(30):
        log.admit(f"agent-{number:02d}")
    report = run_audit(
        log.records,
        federation_id="clinics",
        unframe=unframe,
        checkpoints=log.checkpoints,
        jobs=2,
    ).report
    assert report.is_sound
