"""The audit of MPC rounds.

What it makes of each lie is in `tests.unit.test_lies`.
"""

import dataclasses
import tarfile
from dataclasses import replace

import numpy as np
import pytest

from consumers.audit.auditor import run_audit
from consumers.audit.bundle import Bundle, BundleWriter
from consumers.audit.report import FindingCode
from consumers.audit.state import load_state, save_state
from protocol import round_state, round_view
from protocol.aggregation import sum_from_blob
from protocol.modes.mpc.round import see
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.auditing import audit, found, index_of, only
from tests.builders import BlobDict, make_key, unframe
from tests.lies.mpc import OTHER_SUM, start, tell
from tests.mpc_builder import (
    AGENTS,
    build_mpc_log,
    change_byte,
    start_mpc_log,
)


@pytest.fixture(scope="module")
def log():
    return build_mpc_log()


@pytest.fixture(scope="module")
def whole(log):
    return audit(log)


def rejections(log):
    return {
        event.agent_id: event.reason
        for event in log.leaves
        if isinstance(event, e.ContributionRejected)
    }


def published_sum(log, number=0):
    ref = only(log, e.AggregatePublished, number).sum
    return sum_from_blob(log.blobs[ref.sha256], num_parameters=log.num_parameters)


# A sound log


def test_an_honest_log_is_sound(log, whole):
    assert whole.is_sound, whole.findings
    assert whole.num_blocks == len(log.records) == whole.num_checkpoints
    assert whole.num_rounds_recomputed == 2
    assert whole.num_claims_checked == 2  # an agent's shares, a party's part
    assert whole.num_claims_unchecked == 0
    assert not whole.pending
    assert whole.facts["CommitmentsClosed"] == 2
    assert whole.rejections == {
        Reason.TRAINING_FAILED: 1,
        Reason.SHARES_DIFFER: 1,
        Reason.NO_ANSWER: 5,
    }


def test_published_sums_are_those_of_exactly_the_accepted(log, whole):
    """Which the audit proves from what it fetches: no share, and it has no key."""
    fetched = set()

    def fetch(ref, *, max_size_bytes):
        fetched.add(ref.sha256)
        return log.blobs.fetch(ref, max_size_bytes=max_size_bytes)

    assert audit(log, fetch=fetch).num_rounds_recomputed == 2
    for number, agents in enumerate((AGENTS[:4], AGENTS[:3])):
        sealed = only(log, e.RoundSealed, number)
        assert log.list_summed(sealed) == agents
        assert np.array_equal(published_sum(log, number), log.compute_sum(sealed))
    shares = {
        share.sealed.sha256
        for event in log.leaves
        if isinstance(event, e.UpdateCommitted)
        for share in event.shares
    }
    # Whoever was silent in the first round is not drawn for the second.
    assert len(shares) == 8 * 3
    assert not shares & fetched
    needed = {
        getattr(event, name).sha256
        for event in log.leaves
        for kind, name in (
            (e.UpdateCommitted, "proof"),
            (e.SharesLinked, "links"),
            (e.PartialAggregateSubmitted, "partial"),
            (e.AggregatePublished, "sum"),
            (e.AggregatePublished, "model"),
        )
        if isinstance(event, kind) and event.round < 3
    }
    assert needed <= fetched


def test_no_update_is_in_the_log_or_in_the_store(log):
    hay = b"".join((*log.blobs.values(), *(r.value for r in log.records)))
    for values in log.values.values():
        for width in ("<i2", "<i4", "<i8"):
            assert values.astype(width).tobytes()[:32] not in hay


def test_blobs_may_be_left_out(log):
    report = run_audit(log.records, federation_id="clinics", unframe=unframe).report
    assert report.is_sound
    assert report.num_blobs == report.num_rounds_recomputed == 0


# What else follows from a lie


def test_an_agent_that_is_left_out_for_a_party_is_told_which():
    log = tell("party has an excuse")
    assert "p1" in only(log, e.ContributionRejected).detail


def test_a_party_that_lies_in_its_part_may_give_another():
    log = tell("party says other values")
    parties = [
        event.party
        for event in log.leaves
        if isinstance(event, e.PartialAggregateSubmitted)
    ]
    assert sorted(parties) == ["p0", "p1", "p1", "p2"]
    assert parties[-1] == "p1"


# The decider lies


def test_a_decider_that_drops_a_contribution_is_found():
    def seal_without(fact):
        if isinstance(fact, e.RoundSealed):
            return [replace(fact, num_contributions=fact.num_contributions - 1)]
        return [fact]

    log = start(send_fact=seal_without)
    log.run_round()
    codes = {code for code, _ in found(audit(log))}
    assert (FindingCode.FACT_DIFFERS, index_of(log, e.RoundSealed)) in found(audit(log))
    assert codes <= {FindingCode.FACT_DIFFERS, FindingCode.FACT_MISSING}

    def drop(fact):
        is_it = isinstance(fact, e.ContributionAccepted) and fact.agent_id == "dora"
        return [] if is_it else [fact]

    log = start(send_fact=drop)
    log.run_round()
    report = audit(log)
    assert FindingCode.FACT_MISSING in {code for code, _ in found(report)}
    assert "dora" in report.findings[0].expected


def test_a_decider_that_says_another_seed_of_the_sum_changes_nothing():
    """Who is about to say something computes it from the log."""

    def bend(fact):
        if isinstance(fact, e.CommitmentsClosed):
            return [replace(fact, sum_seed=bytes(32))]
        return [fact]

    log = start(send_fact=bend)
    log.run_round()
    assert rejections(log) == {}
    assert np.array_equal(published_sum(log), log.compute_sum(only(log, e.RoundSealed)))
    report = audit(log)
    assert found(report) == [
        (FindingCode.FACT_DIFFERS, index_of(log, e.CommitmentsClosed))
    ]


# Blobs that are gone, or others


@pytest.mark.parametrize("kind", ["commitments", "proof", "links"])
def test_a_rejection_whose_blobs_are_gone_cannot_be_checked(kind):
    log = tell("agent shares other masks")
    said = log.get_said("dora", e.UpdateCommitted)
    event = only(log, e.SharesLinked) if kind == "links" else said
    blobs = BlobDict(log.blobs)
    del blobs[getattr(event, kind).sha256]
    report = audit(log, fetch=blobs.fetch)
    assert (report.num_claims_checked, report.num_claims_unchecked) == (0, 1)
    # The links concern the accepted too.
    assert report.is_sound == (kind != "links"), report.findings


def test_a_rejected_part_that_is_gone_cannot_be_checked(log):
    lost = next(
        event.partial
        for event in log.leaves
        if isinstance(event, e.PartialAggregateSubmitted)
        and (event.round, event.party) == (2, "p1")
    )
    blobs = BlobDict(log.blobs)
    data = blobs.pop(lost.sha256)
    report = audit(log, fetch=blobs.fetch)
    assert report.is_sound
    assert (report.num_claims_checked, report.num_claims_unchecked) == (1, 1)
    blobs[lost.sha256] = change_byte(data)
    report = audit(log, fetch=blobs.fetch)
    (finding,) = report.findings
    assert finding.code is FindingCode.CORRUPT_BLOB
    assert isinstance(log.leaves[finding.place.leaf_index], e.UpdatesChecked)


def test_the_base_model_may_be_no_model():
    """An aggregator that publishes all the same claims what nobody can compute."""
    log = tell("nobody lies")
    base = log.config.initial_model.sha256
    blobs = BlobDict(log.blobs)
    blobs[base] = b"\0" * len(blobs[base])
    findings = found(audit(log, fetch=lambda ref, **_: blobs[ref.sha256]))
    assert findings == [
        (FindingCode.INVALID_MODEL, 0),
        (FindingCode.NOT_COMPUTABLE, index_of(log, e.AggregateSubmitted)),
    ]


# An audit in pieces, and offline


def test_an_audit_goes_on_in_the_middle_of_an_mpc_round(log, whole):
    """After each block: so in every phase of a round."""
    state = None
    phases = set()
    for number in range(len(log.records)):
        begin = 0 if state is None else number - 1
        audited = run_audit(
            log.records[begin : number + 1],
            federation_id="clinics",
            unframe=unframe,
            fetch_blob=log.blobs.fetch,
            checkpoints=log.checkpoints[begin : number + 1],
            start=state,
        )
        assert audited.report.is_sound, audited.report.findings
        state = load_state(save_state(audited.state))
        assert state == audited.state
        secret = see(state.view)
        if secret is not None:
            phases.add((secret.closed is None, secret.sealed is None))
    assert phases == {(True, True), (False, True), (False, False)}

    def without_memory(report):
        return replace(report, continued_from=0, notes=[], blob_bytes=0, num_blobs=0)

    assert without_memory(audited.report) == without_memory(whole)


def test_a_lie_is_found_by_an_audit_that_goes_on(log):
    lying = tell(OTHER_SUM)
    claim = index_of(lying, e.AggregateSubmitted)
    for end in range(1, len(lying.records)):
        first = run_audit(
            lying.records[:end],
            federation_id="clinics",
            unframe=unframe,
            fetch_blob=lying.blobs.fetch,
        )
        if not first.report.is_sound:
            break
        second = run_audit(
            lying.records[end - 1 :],
            federation_id="clinics",
            unframe=unframe,
            fetch_blob=lying.blobs.fetch,
            start=load_state(save_state(first.state)),
        )
        assert found(second.report) == [(FindingCode.WRONG_SUM, claim)]
    assert found(first.report) == [(FindingCode.WRONG_SUM, claim)]


def test_a_saved_round_has_no_class_with_a_name_of_anothers():
    from consumers.audit import state as audit_state

    for name, value in [*vars(round_view).items(), *vars(round_state).items()]:
        if dataclasses.is_dataclass(value) and value.__module__ in {
            "protocol.round_view",
            "protocol.round_state",
        }:
            assert audit_state._CLASSES[name] is value


def test_a_bundle_is_audited_offline(log, whole, tmp_path):
    path = tmp_path / "clinics.tar"
    with BundleWriter(path) as writer:
        run_audit(
            writer.records(log.records),
            federation_id="clinics",
            unframe=writer.unframe(unframe),
            fetch_blob=writer.fetch(log.blobs.fetch),
            checkpoints=writer.records(log.checkpoints),
        )
        writer.write("clinics", b"{}", policy=None, settled_offset=None)
    with Bundle(path) as bundle:
        offline = run_audit(
            bundle.records(topics.LEDGER),
            federation_id="clinics",
            unframe=bundle.unframe,
            fetch_blob=bundle.fetch,
            checkpoints=bundle.records(topics.CHECKPOINTS),
        ).report
    assert offline == whole
    with tarfile.open(path) as tar:
        names = set(tar.getnames())
    for event in log.leaves:
        if isinstance(event, e.UpdateCommitted):
            for share in event.shares:
                assert f"blobs/{share.sealed.sha256.hex()}" not in names


# What the decider must not let pass


@pytest.mark.parametrize("reason", ["", Reason.INVALID_PROOF])
def test_nothing_is_settled_before_the_set_is_closed(reason):
    """An aggregator could accept what nobody has proved, or drop whom it likes."""
    log = start()
    log.request_round()
    log.commit("ada")
    log.settle()
    check = e.UpdateCheck(
        leaf_index=index_of(log, e.UpdateCommitted), reason=reason, detail=""
    )
    claim = e.UpdatesChecked(federation_id="clinics", round=1, results=(check,))
    log.say(claim, make_key("AGGREGATOR"))
    log.settle()
    assert isinstance(log.leaves[-1], e.ClaimRejected)
    assert audit(log).is_sound


# Comparing


def point_elsewhere(log, agent):
    """Return the opposite of what the others would like: as long, and elsewhere."""
    return {"values": -3 * log.make_values(agent)}


@pytest.fixture(scope="module")
def compared():
    """One round in which dora's update is far from both others'."""
    log = start_mpc_log(
        "ada", "bea", "cleo", "dora", cohort_size=4, far_threshold=2 * 10**9
    )
    log.request_round()
    for agent in ("ada", "bea", "cleo"):
        log.commit(agent)
    log.commit("dora", **point_elsewhere(log, "dora"))
    log.settle()
    log.export()
    return log


def test_an_agent_left_out_for_being_far_is_not_in_the_sum(compared):
    assert rejections(compared) == {"dora": Reason.FAR_FROM_OTHERS}
    sealed = only(compared, e.RoundSealed)
    assert compared.list_summed(sealed) == ("ada", "bea", "cleo")
    report = audit(compared)
    assert report.findings == []
    assert report.num_rounds_recomputed == 1
    assert any("word of all parties" in note for note in report.notes)
    published = only(compared, e.AggregatePublished)
    total = sum_from_blob(compared.blobs[published.sum.sha256], num_parameters=300)
    assert np.array_equal(total, compared.compute_sum(sealed))
