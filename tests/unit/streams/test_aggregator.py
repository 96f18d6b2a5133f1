"""The aggregator in MPC rounds: when it works, and what it claims."""

from dataclasses import replace

import numpy as np
import pytest

import streams.aggregator
from adapters.blobs import BlobError
from adapters.round_blobs import Checking
from protocol.aggregation import sum_from_blob
from protocol.modes import plain
from protocol.modes.mode import OneByOne
from protocol.modes.mpc.round import MpcRound
from protocol.modes.plain import PlainChecker
from protocol.modes.problem import UNFORESEEN, RoundError
from protocol.round_view import WatchedRounds
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from streams.aggregator import Aggregator, Work, follow_step
from streams.checking import MAX_DETAIL_LENGTH, complete
from tests.builders import BlobDict, LogBuilder
from tests.mpc_builder import (
    build_mpc_log,
    change_values,
    start_mpc_log,
)
from tests.mpc_rounds import change_mpc_round


@pytest.fixture(scope="module")
def log():
    """A round in which all is well."""
    log = start_mpc_log()
    log.run_round()
    return log


class Store(BlobDict):
    """Counts how often each blob is fetched."""

    def __init__(self, blobs):
        super().__init__(blobs)
        self.fetched = []

    def fetch(self, ref, *, max_size_bytes):
        self.fetched.append(ref.sha256)
        return super().fetch(ref, max_size_bytes=max_size_bytes)


def work_of(log):
    """Return what each leaf of a log makes the aggregator do, by leaf index."""
    state, work = WatchedRounds(), {}
    for leaf in log.opened:
        state, items = follow_step(state, leaf)
        if items:
            work[leaf.sequenced.leaf_index] = items
    return work


def secrets_of(log):
    """Return the round as it is when checks, and when the result, are owed."""
    items = [x for items in work_of(log).values() for x in items]
    (to_check,) = [item.view for item in items if item.due]
    to_sum = [item.view for item in items if item.is_complete][-1]
    return MpcRound(to_check), MpcRound(to_sum)


def settle(blobs, secret):
    """Return the claims that a round in this state waits for."""
    due = () if secret.sealed else tuple(sorted(secret.waiting))
    work = Work(secret.view, (), due, secret.sealed is not None, "")
    return [claim for claim, _ in Aggregator(blobs).do([work])]


# When


def test_it_works_once_for_each_proof_for_the_checks_and_for_the_sum(log):
    work = work_of(log)
    seen = [
        (type(log.leaves[index]), len(item.came), len(item.due), item.is_complete)
        for index, items in work.items()
        for item in items
    ]
    assert seen == [
        *[(e.UpdateCommitted, 1, 0, False)] * 5,
        (e.SharesLinked, 0, 5, False),
        (e.PartialAggregateSubmitted, 0, 0, True),
    ]
    for index, items in work.items():
        assert {x.traceparent for x in items} == {log.opened[index].traceparent}


def test_it_works_again_when_a_rejected_part_is_there_again():
    log = build_mpc_log()
    results = [index for index, items in work_of(log).items() if items[-1].is_complete]
    numbers = [log.leaves[index].round for index in results]
    assert numbers == [1, 2, 2]
    assert log.leaves[results[2]].party == "p1"


def test_it_works_in_the_clear_as_ever():
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.run_round()
    work = [x for items in work_of(log).values() for x in items]
    checks = [x for x in work if x.due]
    (to_sum,) = [x for x in work if x.is_complete]
    assert len(work) == len(checks) + 1 == 5
    aggregator = Aggregator(log.blobs)
    ((claim, _),) = aggregator.do(checks)
    assert [r.reason for r in claim.results] == [""] * 4
    updates = [
        x for x in log.opened if isinstance(x.sequenced.event, e.UpdateSubmitted)
    ]
    indexes = [x.sequenced.leaf_index for x in updates]
    assert [r.leaf_index for r in claim.results] == indexes
    published = next(x for x in log.leaves if isinstance(x, e.AggregateSubmitted))
    ((claim, _),) = aggregator.do([to_sum])
    assert claim == published


def test_a_clear_round_whose_blob_is_gone_has_no_sum(caplog):
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.run_round()
    work = [x for items in work_of(log).values() for x in items]
    blobs = BlobDict(log.blobs)
    (first,) = work[0].due
    del blobs[work[0].view.answers[first].event.update.sha256]
    assert Aggregator(blobs).do(work[-1:]) == []
    assert "has no sum" in caplog.text


@pytest.mark.parametrize("how", ["missing", "another", "there at last"])
def test_nothing_is_said_in_a_hurry_of_a_blob_that_is_not_there(how, caplog):
    """Nobody could check it later. Until the deadline, as the ledger has it, it may
    come: the others count at once.
    """
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    for agent in log.request_round():
        log.submit(agent)
    log.settle()
    log.pass_deadline()
    work = [x for items in work_of(log).values() for x in items]
    *answers, over = [x for x in work if x.due]
    assert [x.is_over for x in (*answers, over)] == [False] * 4 + [True]
    blobs = BlobDict(log.blobs)
    (first,) = answers[0].due
    digest = answers[0].view.answers[first].event.update.sha256
    update = blobs.pop(digest)
    if how == "another":
        blobs[digest] = b"another"
    aggregator = Aggregator(blobs)
    ((claim, _),) = aggregator.do(answers)
    assert [r.reason for r in claim.results] == ["", "", ""]
    assert f"{first} waits for its blob" in caplog.text
    if how == "there at last":
        blobs[digest] = update
    ((claim, _),) = aggregator.do([over])
    found = {
        "missing": Reason.MISSING_BLOB,
        "another": Reason.CORRUPT_BLOB,
        "there at last": "",
    }
    assert claim.results[0].reason == found[how]


@pytest.mark.parametrize("error", UNFORESEEN, ids=lambda kind: kind.__name__)
def test_bytes_that_nobody_foresaw_cost_their_own_update_alone(error, monkeypatch):
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.run_round()
    work = [x for items in work_of(log).values() for x in items if x.due]
    (first,) = work[0].due
    bad = log.blobs[work[0].view.answers[first].event.update.sha256]
    parse = plain.parse_update

    def fail(blob, **options):
        if blob == bad:
            raise error("as nobody foresaw")
        return parse(blob, **options)

    monkeypatch.setattr(plain, "parse_update", fail)
    ((claim, _),) = Aggregator(log.blobs).do(work)
    reasons = [r.reason for r in claim.results]
    same = [log.blobs[a.event.update.sha256] == bad for a in answers_of(work)]
    assert reasons == [Reason.MALFORMED_BLOB if is_bad else "" for is_bad in same]


def answers_of(work):
    return [item.view.answers[name] for item in work for name in item.due]


def test_a_round_that_cannot_be_worked_on_does_not_hold_up_others(monkeypatch, caplog):
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.run_round()
    log.run_round()
    work = [x for items in work_of(log).values() for x in items if x.due]
    make = PlainChecker.check

    def check(self, view, agent_ids):
        if view.started.round == 1:
            raise LookupError("a bug")
        return make(self, view, agent_ids)

    monkeypatch.setattr(PlainChecker, "check", check)
    claims = [claim for claim, _ in Aggregator(log.blobs).do(work)]
    assert {claim.round for claim in claims} == {2}
    assert "round 1 is left as it is" in caplog.text


@pytest.mark.parametrize("error", [ConnectionResetError(), MemoryError()])
def test_an_outage_is_no_rounds_fault(error):
    """The service ends and reads again."""

    class Away(BlobDict):
        def fetch(self, *_, **__):
            raise error

    log = LogBuilder()
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.run_round()
    work = [x for items in work_of(log).values() for x in items]
    with pytest.raises(type(error)):
        Aggregator(Away()).do(work[:1])


# What


def test_it_accepts_what_is_good_and_publishes_its_sum(log):
    to_check, to_sum = secrets_of(log)
    blobs = BlobDict(log.blobs)
    (checks,) = settle(blobs, to_check)
    assert checks == next(x for x in log.leaves if isinstance(x, e.UpdatesChecked))
    assert {r.reason for r in checks.results} == {""}
    indexes = [r.leaf_index for r in checks.results]
    assert indexes == sorted(indexes)
    # A new process finds the same.
    (claim,) = settle(blobs, to_sum)
    assert claim == next(x for x in log.leaves if isinstance(x, e.AggregateSubmitted))
    total = sum_from_blob(blobs[claim.sum.sha256], num_parameters=log.num_parameters)
    assert np.array_equal(total, log.compute_sum(to_sum.sealed))


def test_proofs_are_verified_as_they_come_and_once(log):
    to_check, _ = secrets_of(log)
    store = Store(log.blobs)
    aggregator = Aggregator(store)
    proofs = {c.event.proof.sha256 for c in to_check.commitments.values()}
    items = [x for items in work_of(log).values() for x in items]
    assert aggregator.do(items[:2]) == []
    assert len(proofs & set(store.fetched)) == 2
    assert aggregator.do(items[2:5]) == []
    assert proofs <= set(store.fetched)
    ((claim, _),) = aggregator.do(items[5:6])
    assert isinstance(claim, e.UpdatesChecked)
    assert all(store.fetched.count(proof) == 1 for proof in proofs)


def test_nothing_is_claimed_before_it_is_owed(log):
    for items in work_of(log).values():
        for item in items:
            if not item.due and not item.is_complete:
                assert Aggregator(BlobDict(log.blobs)).do([item]) == []


def test_claims_fit_the_ledger(log, monkeypatch):
    """However many agents: here two to a claim."""
    monkeypatch.setattr(streams.aggregator, "MAX_CHECKS", 2)
    to_check, _ = secrets_of(log)
    claims = settle(log.blobs, to_check)
    assert [len(claim.results) for claim in claims] == [2, 2, 1]
    indexes = [r.leaf_index for claim in claims for r in claim.results]
    assert indexes == sorted(c.leaf_index for c in to_check.commitments.values())


def test_a_detail_is_short_and_plain(log):
    """A party's excuse is the party's to fill."""
    to_check, _ = secrets_of(log)
    blobs = BlobDict(log.blobs)
    links = codec.decode(blobs[to_check.links["p0"].sha256])
    entries = tuple(
        replace(entry, reason="BAD_SHARE", detail="\N{PILE OF POO}" * 10_000)
        for entry in links.entries
    )
    ref = blobs.store(codec.encode(replace(links, entries=entries)))
    secret = change_mpc_round(to_check, links={**to_check.links, "p0": ref})
    (claim,) = settle(blobs, secret)
    for result in claim.results:
        assert result.reason == Reason.BAD_SHARE
        assert len(result.detail) == MAX_DETAIL_LENGTH
        assert result.detail.isascii()


def test_wrong_parts_are_claimed_together_and_in_order(log):
    _, to_sum = secrets_of(log)
    blobs = BlobDict(log.blobs)
    partials = dict(to_sum.partials)
    for party in ("p2", "p0"):
        part = codec.decode(blobs[partials[party].blob.sha256])
        ref = blobs.store(codec.encode(change_values(part)))
        partials[party] = partials[party]._replace(blob=ref)
    secret = change_mpc_round(to_sum, partials=partials)
    (claim,) = settle(blobs, secret)
    assert isinstance(claim, e.UpdatesChecked)
    assert [r.leaf_index for r in claim.results] == sorted(
        partials[party].leaf_index for party in ("p0", "p2")
    )
    assert {r.reason for r in claim.results} == {Reason.WRONG_PARTIAL}


@pytest.mark.parametrize("lost", ["base", "commitments"])
def test_a_round_that_cannot_be_summed_does_not_stop_others(log, lost, caplog):
    _, to_sum = secrets_of(log)
    blobs = BlobDict(log.blobs)
    if lost == "base":
        del blobs[to_sum.sealed.base_model.sha256]
    else:
        del blobs[to_sum.commitments["ada"].event.commitments.sha256]
    assert settle(blobs, to_sum) == []
    assert "round 1 has no sum" in caplog.text
    checker = Checking(blobs.fetch, OneByOne()).get(to_sum.view)
    with pytest.raises((BlobError, RoundError)):
        complete(to_sum.view, checker, blobs)
