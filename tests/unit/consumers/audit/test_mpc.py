"""What the audit finds in rounds whose updates nobody sees, one lie at a time."""

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
from protocol.aggregation import sum_from_blob, sum_to_blob
from protocol.model import apply_sum
from protocol.modes.mpc.checker import MpcShape, RoundVerifier, parse_partial
from protocol.modes.mpc.commitments import SCALAR_ORDER
from protocol.modes.mpc.round import MpcRound, see
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason
from tests.builders import BlobDict, make_key, unframe
from tests.mpc_builder import (
    AGENTS,
    build_mpc_log,
    change_byte,
    start_mpc_log,
)

FEW = ("ada", "bea", "dora")
"""Who takes part in a round in which one lies."""
TOO_LONG = 2**16
"""Of a value; a few hundred of them are longer than the bound."""


@pytest.fixture(scope="module")
def log():
    return build_mpc_log()


@pytest.fixture(scope="module")
def whole(log):
    return audit(log)


def start(**options):
    return start_mpc_log(*FEW, cohort_size=len(FEW), **options)


def audit(log, *, fetch=None, **options):
    return run_audit(
        options.pop("records", log.records),
        federation_id=log.federation_id,
        unframe=unframe,
        fetch_blob=fetch or log.blobs.fetch,
        checkpoints=log.checkpoints,
        **options,
    ).report


def found(report):
    """Return code and leaf of every finding."""
    return [(finding.code, finding.place.leaf_index) for finding in report.findings]


def index_of(log, event_type, number=0):
    places = [i for i, event in enumerate(log.leaves) if isinstance(event, event_type)]
    return places[number]


def only(log, event_type, number=0):
    return log.leaves[index_of(log, event_type, number)]


def rejections(log):
    return {
        event.agent_id: event.reason
        for event in log.leaves
        if isinstance(event, e.ContributionRejected)
    }


def published_sum(log, number=0):
    ref = only(log, e.AggregatePublished, number).sum
    return sum_from_blob(log.blobs[ref.sha256], num_parameters=log.num_parameters)


def accepting(log, author, event):
    """Let the aggregator accept whatever there is."""
    if isinstance(event, e.UpdatesChecked):
        results = tuple(replace(r, reason="", detail="") for r in event.results)
        return [replace(event, results=results)]
    return [event]


def both(*speaks):
    """Let one lie after the other."""

    def speak(log, author, event):
        events = [event]
        for lie in speaks:
            events = [said for event in events for said in lie(log, author, event)]
        return events

    return speak


def publish(log, change=lambda total: total):
    """Let the aggregator publish what its parts add up to, whatever that is."""
    sealed = only(log, e.RoundSealed)
    shape = MpcShape.of(log.config)
    parts = {
        event.party: parse_partial(log.blobs[event.partial.sha256], shape)
        for event in log.leaves
        if isinstance(event, e.PartialAggregateSubmitted)
    }
    total = sum(part.values for part in parts.values()).view(np.int64)
    base = log.blobs[sealed.base_model.sha256]
    result = apply_sum(change(total), sealed, base)
    claim = e.AggregateSubmitted(
        federation_id=log.federation_id,
        round=sealed.round,
        base_model_sha256=sealed.base_model.sha256,
        num_contributions=sealed.num_contributions,
        num_examples=sealed.num_examples,
        sum=log.blobs.store(result.sum_blob),
        model=log.blobs.store(result.model_blob),
    )
    log.say(claim, make_key("AGGREGATOR"))
    log.settle()


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
    assert len(shares) == 9 * 3
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


# Agents lie


def misshare(**changes):
    def share(state):
        changed = {
            name: change(getattr(state, name)) for name, change in changes.items()
        }
        return replace(state, **changed)

    return {"share": share}


def one_off(numbers):
    return (numbers[0] + 1, *numbers[1:])


def last_off(numbers):
    return (*numbers[:-1], numbers[-1] + 1)


def tampering(kind, change):
    """Let dora say something else than she should."""

    def speak(log, author, event):
        if author == "dora" and isinstance(event, kind):
            return [change(log, event)]
        return [event]

    return speak


def with_share(number, **changes):
    """Return what replaces one share that dora commits to, and proves that."""

    def change(log, event):
        shares = list(event.shares)
        made = {name: make(log, event) for name, make in changes.items()}
        shares[number] = replace(shares[number], **made)
        return log.prove(replace(event, shares=tuple(shares)))

    return tampering(e.UpdateCommitted, change)


def with_blob(kind, name, make):
    return tampering(
        kind, lambda log, event: replace(event, **{name: log.blobs.store(make(event))})
    )


def with_anothers_proof(log, event):
    """Bea speaks before dora does."""
    return replace(event, proof=log.said["bea"].proof)


def recall(log, author, event):
    if isinstance(event, e.UpdateCommitted):
        log.said = {**getattr(log, "said", {}), author: event}
    return [event]


LONG = {"values": "long", "norm_bound": 2**22}

LIES = {
    "shares another update": (
        misshare(values=lambda values: values + 7 * (np.arange(len(values)) == 299)),
        None,
        Reason.SHARES_DIFFER,
    ),
    "shares an update a hundred times as long": (
        misshare(values=lambda values: values * 100),
        None,
        Reason.SHARES_DIFFER,
    ),
    "shares other squares": (misshare(squares=one_off), None, Reason.SHARES_DIFFER),
    "shares other masks": (misshare(masks=last_off), None, Reason.SHARES_DIFFER),
    "shares a row's other blinding": (
        misshare(blindings=one_off),
        None,
        Reason.SHARES_DIFFER,
    ),
    "shares another mask blinding": (
        misshare(blindings=last_off),
        None,
        Reason.SHARES_DIFFER,
    ),
    "is too long and proves that for a bound of its own": (
        LONG,
        None,
        Reason.INVALID_PROOF,
    ),
    "is too long and has somebody else's proof": (
        LONG,
        tampering(e.UpdateCommitted, with_anothers_proof),
        Reason.INVALID_PROOF,
    ),
    "has somebody else's proof": (
        {},
        tampering(e.UpdateCommitted, with_anothers_proof),
        Reason.INVALID_PROOF,
    ),
    "has no proof": (
        {},
        with_blob(e.UpdateCommitted, "proof", lambda _: b"trust me"),
        Reason.INVALID_PROOF,
    ),
    "seals garbage": (
        {},
        with_share(1, sealed=lambda log, _: log.blobs.store(b"garbage")),
        Reason.BAD_SHARE,
    ),
    "seals one party's share to another": (
        {},
        with_share(1, sealed=lambda _, event: event.shares[0].sealed),
        Reason.BAD_SHARE,
    ),
    "commits to another share": (
        {},
        with_share(2, commitment=lambda _, event: event.shares[0].commitment),
        Reason.BAD_SHARE,
    ),
    "commits to a share by what is no point": (
        {},
        with_share(0, commitment=lambda *_: b"\xff" * 48),
        Reason.INVALID_PROOF,
    ),
    "commits by what are no points": (
        {},
        with_blob(
            e.UpdateCommitted,
            "commitments",
            lambda ref: b"\xff" * ref.commitments.size_bytes,
        ),
        Reason.INVALID_PROOF,
    ),
    "commits to fewer rows": (
        {},
        with_blob(e.UpdateCommitted, "commitments", lambda _: bytes(48)),
        Reason.WRONG_SHAPE,
    ),
}


def run_with(how, tamper, *lies, **options):
    """Run one round in which dora lies as told."""
    speaks = (recall, *filter(None, (tamper,)), *lies)
    log = start(speak=both(*speaks), **options)
    assert "dora" in log.request_round()
    for agent in FEW:
        options = dict(how) if agent == "dora" else {}
        if "values" in options:
            options["values"] = log.make_values("dora", largest=TOO_LONG)
        log.commit(agent, **options)
    log.settle()
    return log


@pytest.mark.parametrize(("how", "tamper", "reason"), LIES.values(), ids=LIES)
def test_an_agent_that_lies_is_left_out(how, tamper, reason):
    log = run_with(how, tamper)
    assert rejections(log) == {"dora": reason}
    sealed = only(log, e.RoundSealed)
    assert "dora" not in log.list_summed(sealed)
    assert np.array_equal(published_sum(log), log.compute_sum(sealed))
    report = audit(log)
    assert report.is_sound, report.findings
    assert (report.num_claims_checked, report.num_claims_unchecked) == (1, 0)


@pytest.mark.parametrize(("how", "tamper", "reason"), LIES.values(), ids=LIES)
def test_an_aggregator_that_accepts_a_lie_is_found(how, tamper, reason):
    log = run_with(how, tamper, accepting)
    report = audit(log)
    assert found(report) == [
        (FindingCode.INVALID_UPDATE, index_of(log, e.UpdatesChecked))
    ]
    (finding,) = report.findings
    assert "dora" in finding.message
    assert finding.expected.startswith(reason)
    (said,) = (
        event
        for event in log.leaves
        if isinstance(event, e.UpdateCommitted) and event.agent_id == "dora"
    )
    assert finding.blob_sha256 == said.commitments.sha256.hex()


def test_a_sum_with_an_update_that_was_not_committed_to_follows_from_nothing():
    how, tamper, _ = LIES["shares an update a hundred times as long"]
    log = run_with(how, tamper, accepting)
    # Nobody who is honest publishes it: the parts do not open the commitments.
    assert not [x for x in log.leaves if isinstance(x, e.AggregateSubmitted)]
    publish(log)
    assert found(audit(log)) == [
        (FindingCode.INVALID_UPDATE, index_of(log, e.UpdatesChecked)),
        (FindingCode.NOT_COMPUTABLE, index_of(log, e.AggregateSubmitted)),
    ]


@pytest.mark.parametrize("reason", [Reason.INVALID_PROOF, Reason.SHARES_DIFFER])
def test_an_aggregator_that_rejects_an_honest_agent_is_found(reason):
    def speak(log, author, event):
        if isinstance(event, e.UpdatesChecked):
            first, *others = event.results
            return [replace(event, results=(replace(first, reason=reason), *others))]
        return [event]

    log = start(speak=speak)
    log.run_round()
    ((agent, _),) = rejections(log).items()
    report = audit(log)
    assert found(report) == [
        (FindingCode.CLAIM_CONTRADICTED, index_of(log, e.UpdatesChecked))
    ]
    assert agent in report.findings[0].message
    assert report.findings[0].found == reason


def test_another_reason_than_the_true_one_is_found():
    how, tamper, _ = LIES["shares other masks"]

    def speak(log, author, event):
        if isinstance(event, e.UpdatesChecked):
            results = (
                replace(r, reason=r.reason and Reason.INVALID_PROOF)
                for r in event.results
            )
            return [replace(event, results=tuple(results))]
        return [event]

    log = run_with(how, tamper, speak)
    report = audit(log)
    assert found(report) == [
        (FindingCode.CLAIM_CONTRADICTED, index_of(log, e.UpdatesChecked))
    ]
    assert report.findings[0].expected.startswith(Reason.SHARES_DIFFER)


# Parties lie


def edit_links(entry_change):
    """Let p1 lie about dora's share."""

    def change(links):
        entries = (
            entry_change(entry) if entry.agent_id == "dora" else entry
            for entry in links.entries
        )
        return replace(links, entries=tuple(entry for entry in entries if entry))

    def speak(log, author, event):
        if author == "p1" and isinstance(event, e.SharesLinked):
            return [replace(event, links=log.edit(event.links, change))]
        return [event]

    return speak


LINK_LIES = {
    "projections": (
        lambda entry: replace(entry, projections=change_byte(entry.projections, 80)),
        Reason.SHARES_DIFFER,
    ),
    "blinding": (
        lambda entry: replace(entry, blinding=change_byte(entry.blinding)),
        Reason.SHARES_DIFFER,
    ),
    "no scalar": (
        lambda entry: replace(entry, blinding=SCALAR_ORDER.to_bytes(32, "little")),
        Reason.BAD_SHARE,
    ),
    "fewer projections": (
        lambda entry: replace(entry, projections=entry.projections[8:]),
        Reason.BAD_SHARE,
    ),
    "silence": (lambda entry: None, Reason.BAD_SHARE),
    "an excuse": (
        lambda entry: replace(entry, reason="BAD_SHARE", detail="can't open it"),
        Reason.BAD_SHARE,
    ),
}


@pytest.mark.parametrize(("change", "reason"), LINK_LIES.values(), ids=LINK_LIES)
def test_a_party_that_lies_in_a_link_excludes_an_agent_which_everybody_sees(
    change, reason
):
    log = start(speak=edit_links(change))
    log.run_round()
    assert rejections(log) == {"dora": reason}
    detail = only(log, e.ContributionRejected).detail
    assert (reason == Reason.BAD_SHARE) == ("p1" in detail)
    assert np.array_equal(published_sum(log), log.compute_sum(only(log, e.RoundSealed)))
    report = audit(log)
    assert report.is_sound, report.findings
    # Nobody knows who lied, so nobody pays.
    assert not {"dora", "party:p1"} & report.balances.keys()
    accepted = start(speak=both(edit_links(change), accepting))
    accepted.run_round()
    assert (FindingCode.INVALID_UPDATE, index_of(accepted, e.UpdatesChecked)) in found(
        audit(accepted)
    )


def test_a_party_whose_links_nobody_can_read_ends_the_round():
    def speak(log, author, event):
        if author == "p1" and isinstance(event, e.SharesLinked):
            return [replace(event, links=log.blobs.store(b"no links"))]
        return [event]

    log = start(speak=speak)
    log.run_round()
    assert rejections(log) == dict.fromkeys(FEW, Reason.BAD_SHARE)
    assert "p1" in only(log, e.ContributionRejected).detail
    assert isinstance(only(log, e.RoundAbandoned), e.RoundAbandoned)
    report = audit(log)
    assert report.is_sound, report.findings


PART_LIES = {
    "values": lambda part: replace(part, values=change_byte(part.values, 8 * 299)),
    "masks": lambda part: replace(part, masks=change_byte(part.masks, 8)),
    "row_blindings": lambda part: replace(
        part, row_blindings=change_byte(part.row_blindings)
    ),
    "opening": lambda part: replace(part, opening=change_byte(part.opening)),
    "fewer values": lambda part: replace(part, values=part.values[8:]),
    "no scalar": lambda part: replace(
        part, opening=SCALAR_ORDER.to_bytes(32, "little")
    ),
}


def edit_part(change, *, times=1):
    """Let p1 lie in its part of the sum, so many times."""
    left = [times]

    def speak(log, author, event):
        is_it = author == "p1" and isinstance(event, e.PartialAggregateSubmitted)
        if is_it and left[0]:
            left[0] -= 1
            return [replace(event, partial=log.edit(event.partial, change))]
        return [event]

    return speak


@pytest.mark.parametrize("change", PART_LIES.values(), ids=PART_LIES)
def test_a_party_that_lies_in_its_part_is_named_and_may_give_another(change):
    log = start(speak=edit_part(change))
    log.run_round()
    rejected = only(log, e.PartialRejected)
    assert (rejected.party, rejected.reason) == ("p1", Reason.WRONG_PARTIAL)
    parties = [
        event.party
        for event in log.leaves
        if isinstance(event, e.PartialAggregateSubmitted)
    ]
    assert sorted(parties) == ["p0", "p1", "p1", "p2"]
    assert parties[-1] == "p1"
    assert np.array_equal(published_sum(log), log.compute_sum(only(log, e.RoundSealed)))
    report = audit(log)
    assert report.is_sound, report.findings
    assert report.num_claims_checked == 1
    assert report.balances["party:p1"] == -500


def test_two_parties_that_lie_are_both_named():
    first, second = edit_part(PART_LIES["values"]), edit_part(PART_LIES["opening"])

    def as_p2(log, author, event):
        return second(log, {"p2": "p1"}.get(author, "nobody"), event)

    log = start(speak=both(first, as_p2))
    log.run_round()
    named = [x.party for x in log.leaves if isinstance(x, e.PartialRejected)]
    assert sorted(named) == ["p1", "p2"]
    assert np.array_equal(published_sum(log), log.compute_sum(only(log, e.RoundSealed)))
    assert audit(log).is_sound


def keeping_quiet(log, author, event):
    """Let the aggregator say nothing against a party, nor of the sum."""
    is_verdict = isinstance(event, e.UpdatesChecked) and log._sealed is not None
    return [] if is_verdict or isinstance(event, e.AggregateSubmitted) else [event]


@pytest.mark.parametrize("change", PART_LIES.values(), ids=PART_LIES)
def test_a_wrong_part_that_is_published_all_the_same_is_found(change):
    log = start(speak=both(edit_part(change), keeping_quiet))
    log.run_round()
    sealed = only(log, e.RoundSealed)
    result = apply_sum(
        log.compute_sum(sealed), sealed, log.blobs[sealed.base_model.sha256]
    )
    claim = e.AggregateSubmitted(
        federation_id="clinics",
        round=1,
        base_model_sha256=sealed.base_model.sha256,
        num_contributions=sealed.num_contributions,
        num_examples=sealed.num_examples,
        sum=log.blobs.store(result.sum_blob),
        model=log.blobs.store(result.model_blob),
    )
    log.say(claim, make_key("AGGREGATOR"))
    log.settle()
    report = audit(log)
    assert found(report) == [
        (FindingCode.WRONG_SUM, index_of(log, e.AggregateSubmitted))
    ]
    assert "p1" in report.findings[0].message
    part = only(log, e.PartialAggregateSubmitted, 1)
    assert part.party == "p1"
    assert report.findings[0].blob_sha256 == part.partial.sha256.hex()


def heed_the_projection(log, author, event):
    """Let p1 add a poison, and make up for it in the masks: no check names it."""
    if author != "p1" or not isinstance(event, e.PartialAggregateSubmitted):
        return [event]
    secret = MpcRound(log.aggregator_state.view)
    verifier = RoundVerifier(secret, log.blobs.fetch)
    projection = verifier.get_sum_projection(secret)

    def change(part):
        values = np.frombuffer(part.values, "<u8").copy()
        poison = np.full(3, 1_000, dtype=np.uint64)
        values[:3] += poison
        moved = projection.multiply_words(poison)
        masks = np.frombuffer(part.masks, "<u8") - moved
        return replace(part, values=values.tobytes(), masks=masks.tobytes())

    return [replace(event, partial=log.edit(event.partial, change))]


def test_a_party_that_heeds_the_projection_gets_nothing_published():
    """Nobody is named: none of the parts counts, so that the round can end."""
    log = start(speak=heed_the_projection)
    log.run_round()
    rejected = [x for x in log.leaves if isinstance(x, e.PartialRejected)]
    assert [(x.party, x.reason) for x in rejected] == [
        (party, Reason.WRONG_SUM) for party in log.parties
    ]
    assert not [x for x in log.leaves if isinstance(x, e.AggregatePublished)]
    report = audit(log)
    assert report.is_sound
    assert report.num_claims_checked == len(log.parties)
    assert not any(balance < 0 for balance in report.balances.values())


def heed_and_hush(log, author, event):
    """Let p1 do so, and the aggregator not say that nothing follows."""
    if author == "AGGREGATOR" and any(
        isinstance(x, e.PartialAggregateSubmitted) for x in log.leaves
    ):
        return []
    return heed_the_projection(log, author, event)


def test_a_sum_that_opens_nothing_is_found_if_it_is_published():
    log = start(speak=heed_and_hush)
    log.run_round()
    publish(log)
    report = audit(log)
    assert found(report) == [
        (FindingCode.NOT_COMPUTABLE, index_of(log, e.AggregateSubmitted))
    ]
    assert "don't open" in report.findings[0].found


def accuse(log, author, event):
    """Let the aggregator reject p2's part, which is good, instead of the sum."""
    if not isinstance(event, e.AggregateSubmitted):
        return [event]
    place = max(
        i
        for i, x in enumerate(log.leaves)
        if isinstance(x, e.PartialAggregateSubmitted) and x.party == "p2"
    )
    check = e.UpdateCheck(leaf_index=place, reason=log.accusation, detail="")
    return [
        e.UpdatesChecked(federation_id="clinics", round=event.round, results=(check,))
    ]


@pytest.mark.parametrize(
    "reason", [Reason.WRONG_PARTIAL, Reason.CORRUPT_BLOB, Reason.WRONG_SUM]
)
def test_an_aggregator_that_rejects_a_good_part_is_found(reason):
    log = start(speak=accuse)
    log.accusation = reason
    log.run_round()
    assert only(log, e.PartialRejected).party == "p2"
    report = audit(log)
    assert found(report) == [
        (FindingCode.CLAIM_CONTRADICTED, index_of(log, e.UpdatesChecked, 1))
    ]
    assert "p2" in report.findings[0].message


def test_that_a_part_was_not_there_cannot_be_known_later():
    log = start(speak=accuse)
    log.accusation = Reason.MISSING_BLOB
    log.run_round()
    report = audit(log)
    assert report.is_sound, report.findings
    assert report.num_claims_unchecked == 1


def test_a_part_that_never_was_what_its_party_promised_is_its_partys_fault():
    def speak(log, author, event):
        if author == "p1" and isinstance(event, e.PartialAggregateSubmitted):
            ref = event.partial
            if log.blobs[ref.sha256] != b"something else":
                other = replace(ref, sha256=make_key("x").public_key)
                uri = f"s3://moot/sha256/{other.sha256.hex()}"
                log.blobs[other.sha256] = b"something else"
                if not getattr(log, "has_lied", False):
                    log.has_lied = True
                    return [replace(event, partial=replace(other, uri=uri))]
        return [event]

    log = start(speak=speak)
    log.run_round()
    rejected = only(log, e.PartialRejected)
    assert (rejected.party, rejected.reason) == ("p1", Reason.CORRUPT_BLOB)
    report = audit(log)
    assert report.is_sound, report.findings
    assert report.num_claims_checked == 1


# The aggregator and the decider lie


def edit_sum(log, author, event):
    if not isinstance(event, e.AggregateSubmitted):
        return [event]
    total = sum_from_blob(
        log.blobs[event.sum.sha256], num_parameters=log.num_parameters
    ).copy()
    total[17] += 1
    return [replace(event, sum=log.blobs.store(sum_to_blob(total)))]


def test_an_aggregator_that_lies_in_the_sum_is_found():
    log = start(speak=edit_sum)
    log.run_round()
    report = audit(log)
    claim = index_of(log, e.AggregateSubmitted)
    assert found(report) == [(FindingCode.WRONG_SUM, claim)]
    assert "the first is 17" in report.findings[0].message


def test_an_aggregator_that_lies_in_sum_and_model_is_found():
    log = start(speak=keeping_quiet)
    log.run_round()

    def change(total):
        total[3] -= 2**30
        return total

    publish(log, change)
    claim = index_of(log, e.AggregateSubmitted)
    assert found(audit(log)) == [
        (FindingCode.WRONG_SUM, claim),
        (FindingCode.WRONG_MODEL, claim),
    ]


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


def refs(log, kind):
    """Return the blobs of a kind in the first round."""
    return [
        ref
        for event in log.leaves
        if getattr(event, "round", 0) == 1
        for ref in BLOBS[kind][0](event)
    ]


BLOBS = {
    "commitments": (
        lambda x: [x.commitments] if isinstance(x, e.UpdateCommitted) else [],
        [e.UpdatesChecked, e.AggregateSubmitted],
    ),
    "proof": (
        lambda x: [x.proof] if isinstance(x, e.UpdateCommitted) else [],
        [e.UpdatesChecked],
    ),
    "links": (
        lambda x: [x.links] if isinstance(x, e.SharesLinked) else [],
        [e.UpdatesChecked, e.AggregateSubmitted],
    ),
    "partial": (
        lambda x: [x.partial] if isinstance(x, e.PartialAggregateSubmitted) else [],
        [e.AggregateSubmitted],
    ),
    "sum": (
        lambda x: [x.sum] if isinstance(x, e.AggregatePublished) else [],
        [e.AggregateSubmitted],
    ),
    "model": (
        lambda x: [x.model] if isinstance(x, e.AggregatePublished) else [],
        [e.AggregateSubmitted],
    ),
}


@pytest.mark.parametrize("kind", BLOBS)
@pytest.mark.parametrize("how", ["missing", "another", "longer"])
def test_a_blob_that_is_not_in_the_store_any_more_is_found(log, kind, how):
    code = {
        "missing": FindingCode.MISSING_BLOB,
        "another": FindingCode.CORRUPT_BLOB,
        "longer": FindingCode.OVERSIZED_BLOB,
    }[how]
    places = [index_of(log, event) for event in BLOBS[kind][1]]
    for ref in refs(log, kind)[:2]:
        blobs = BlobDict(log.blobs)
        data = blobs.pop(ref.sha256)
        if how == "another":
            blobs[ref.sha256] = change_byte(data, len(data) // 2)
        elif how == "longer":
            blobs[ref.sha256] = data + b"\0"
        report = audit(log, fetch=blobs.fetch)
        assert found(report) == [(code, place) for place in places]
        assert {f.blob_sha256 for f in report.findings} == {ref.sha256.hex()}


@pytest.mark.parametrize("kind", ["commitments", "proof", "links"])
def test_a_rejection_whose_blobs_are_gone_cannot_be_checked(kind):
    log = run_with(*LIES["shares other masks"][:2])
    mine = {
        "commitments": [log.said["dora"].commitments],
        "proof": [log.said["dora"].proof],
        "links": refs(log, "links"),
    }[kind]
    blobs = BlobDict(log.blobs)
    del blobs[mine[0].sha256]
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


@pytest.mark.parametrize(
    ("event", "name", "reason"),
    [
        (e.UpdateCommitted, "commitments", Reason.MISSING_BLOB),
        (e.UpdateCommitted, "proof", Reason.MISSING_BLOB),
        (e.UpdateCommitted, "shares", Reason.BAD_SHARE),
    ],
)
def test_a_blob_that_never_was_there_is_its_agents_fault(event, name, reason):
    def change(log, said):
        ref = said.shares[1].sealed if name == "shares" else getattr(said, name)
        del log.blobs[ref.sha256]
        return said

    log = run_with({}, tampering(event, change))
    assert rejections(log) == {"dora": reason}
    report = audit(log)
    assert report.is_sound, report.findings
    unchecked = int(reason == Reason.MISSING_BLOB)
    assert report.num_claims_unchecked == unchecked
    assert report.num_claims_checked == 1 - unchecked


def test_the_base_model_may_be_no_model():
    """An aggregator that publishes all the same claims what nobody can compute."""
    log = start(speak=keeping_quiet)
    log.run_round()
    publish(log)
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
    lying = start(speak=edit_sum)
    lying.run_round()
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


def test_who_is_left_out_for_being_far_is_not_in_the_sum(compared):
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


@pytest.mark.parametrize("far", [b"", bytes(2), bytes([1]), bytes([0b11111100])])
def test_a_party_alone_cannot_leave_anybody_out(far):
    def speak(log, author, event):
        if author == "p1" and isinstance(event, e.UpdatesCompared):
            return [replace(event, far=far), event]
        return [event]

    log = start(far_threshold=2**62)
    log.speak = speak
    log.run_round()
    assert rejections(log) == {}
    (refused,) = (x for x in log.leaves if isinstance(x, e.ClaimRejected))
    assert refused.reason == Reason.UNEXPECTED_CLAIM
    assert audit(log).findings == []
    assert only(log, e.AggregatePublished)
