"""Ledger nodes that check the blobs of MPC rounds, one lie at a time."""

import asyncio
import itertools
import threading
from dataclasses import replace

import pytest

from consumers.node import rechecks as node_rechecks
from consumers.node.feed import AlertCode
from consumers.node.loop import NodeLoop
from consumers.node.rechecks import Rechecker
from protocol.modes.mpc.checker import RoundVerifier
from protocol.modes.mpc.norm_proof import verify_norm_proofs
from protocol.modes.mpc.round import MpcRound
from protocol.modes.problem import RoundError
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import BlobDict, make_key, unframe
from tests.mpc_builder import build_mpc_log, change_byte
from tests.mpc_rounds import change_mpc_round
from tests.unit.consumers.audit import test_mpc as audit_mpc
from tests.unit.consumers.audit.test_mpc import (
    LIES,
    accepting,
    accuse,
    edit_sum,
    heed_and_hush,
    index_of,
    keeping_quiet,
    publish,
    run_with,
)
from tests.unit.consumers.node.test_ledger_node import (
    NAMES,
    NOW_S,
    Bus,
    last_height,
    quick,
)
from tests.unit.consumers.node.test_loop import pairs

__all__ = ["quick"]  # a fixture

ONE = {"ledger_nodes": NAMES[:1]}
"""A node that is a quorum by itself: what it does not attest is not final."""
MANY_S = 2 * node_rechecks.RECENT_S


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Time passes when it is looked at."""
    monkeypatch.setattr(node_rechecks, "RETRY_S", 0.01)


def make_rechecker(fetch, *, age_s=0.0):
    return Rechecker(
        fetch, clock=lambda: NOW_S + age_s, now_s=itertools.count().__next__
    )


def follow(tmp_path, log, *, names=NAMES[:1], fetch=None, **options):
    """Let nodes that re-check read a log."""
    bus = Bus(tmp_path, log, ())
    for name in names:
        rechecker = make_rechecker(fetch or log.blobs.fetch, **options)
        bus.add(name, rechecker=rechecker)
    bus.run()
    return bus


def height_of(log, leaf_index):
    """Return the block that a leaf is in."""
    blocks = [codec.decode(unframe(record.value)) for record in log.records]
    return max(b.height for b in blocks if b.first_leaf_index <= leaf_index)


def heights_attested(bus, name):
    return {said.height for said in bus.sent(e.BlockAttested, name)}


def counts(member):
    found = member.node.describe()["rechecks"]
    return found["true"], found["false"], found["unchecked"]


def demand_refused(bus, log, leaf_index):
    """Check that nobody attests a leaf's block, and that it is said why."""
    height = height_of(log, leaf_index)
    assert height < last_height(log)
    for name, member in bus.members.items():
        assert max(heights_attested(bus, name)) == height - 1
        assert member.final_height == height - 2
        assert member.node.alerts.codes() == {AlertCode.BLOCK_INVALID}
        details = [alert.detail for alert in member.node.alerts.all()]
        assert any(f": leaf {leaf_index}, round 1: " in detail for detail in details)
        assert counts(member)[1] > 0


def demand_attested(bus, log, *, unchecked):
    """Check that all is final but the last block, and what was not checked."""
    for member in bus.members.values():
        assert member.final_height == last_height(log) - 1
        assert not member.node.alerts.all()
        assert counts(member)[1:] == (0, unchecked)


def start(**options):
    return audit_mpc.start(**ONE, **options)


def end(log):
    """Give the last block a child or two."""
    log.request_finality()
    log.request_finality()
    return log


@pytest.fixture(scope="module")
def honest():
    log = audit_mpc.start(ledger_nodes=NAMES[:1])
    log.run_round()
    return end(log)


# Nothing is wrong


def test_an_honest_log_is_final(tmp_path):
    log = end(build_mpc_log(ledger_nodes=NAMES))
    assert index_of(log, e.AggregatePublished, 1)
    bus = follow(tmp_path, log, names=NAMES)
    demand_attested(bus, log, unchecked=0)
    # Two rounds of 4 commitments, a bad part, and twice a sum and a model.
    assert {counts(m) for m in bus.members.values()} == {(13, 0, 0)}


def test_proofs_are_verified_as_they_come(tmp_path, honest, monkeypatch):
    verified = []

    def verify(items):
        verified.extend(items)
        return verify_norm_proofs(items)

    monkeypatch.setattr("protocol.modes.mpc.checker.verify_norm_proofs", verify)
    claim = height_of(honest, index_of(honest, e.UpdatesChecked))
    bus = Bus(tmp_path, honest, ())
    bus.add("node0", rechecker=make_rechecker(honest.blobs.fetch))
    bus.show(records=honest.records[:claim])
    assert len(verified) == 3
    bus.run()
    assert len(verified) == 3
    demand_attested(bus, honest, unchecked=0)


def test_only_who_signs_and_may_fetch_rechecks(tmp_path, honest):
    rechecker = make_rechecker(honest.blobs.fetch)
    bus = Bus(tmp_path, honest, NAMES[:1])
    bus.add("log", has_identity=False, rechecker=rechecker)
    bus.run()
    for member in bus.members.values():
        assert member.final_height == last_height(honest) - 1
        assert member.node.describe()["rechecks"] is None


# The aggregator lies


@pytest.mark.parametrize(("how", "tamper", "reason"), LIES.values(), ids=LIES)
def test_a_lie_that_is_accepted_is_not_attested(tmp_path, how, tamper, reason):
    log = end(run_with(how, tamper, accepting, **ONE))
    bus = follow(tmp_path, log)
    demand_refused(bus, log, index_of(log, e.UpdatesChecked))
    (detail,) = [alert.detail for alert in bus["node0"].node.alerts.all()][:1]
    assert f"says of dora: it counts; proofs and links show: {reason}" in detail


@pytest.mark.parametrize("name", ["shares other masks", "has no proof"])
def test_a_lie_that_is_rejected_is_attested(tmp_path, name):
    how, tamper, _ = LIES[name]
    log = end(run_with(how, tamper, **ONE))
    demand_attested(follow(tmp_path, log), log, unchecked=0)


def rejecting(reason, *, everybody=False):
    """Let the aggregator reject who is honest."""

    def speak(log, author, event):
        if not isinstance(event, e.UpdatesChecked):
            return [event]
        first, *others = event.results
        if everybody:
            others = [replace(other, reason=reason) for other in others]
        return [replace(event, results=(replace(first, reason=reason), *others))]

    return speak


@pytest.mark.parametrize(
    "reason", [Reason.INVALID_PROOF, Reason.SHARES_DIFFER, Reason.BAD_SHARE]
)
def test_who_rejects_an_honest_agent_is_not_attested(tmp_path, reason):
    log = start(speak=rejecting(reason))
    log.run_round()
    bus = follow(tmp_path, end(log))
    demand_refused(bus, log, index_of(log, e.UpdatesChecked))


@pytest.mark.parametrize("reason", [Reason.MISSING_BLOB, Reason.CORRUPT_BLOB])
def test_what_was_in_the_store_then_cannot_be_known(tmp_path, reason):
    log = start(speak=rejecting(reason))
    log.run_round()
    demand_attested(follow(tmp_path, end(log)), log, unchecked=1)


def test_links_were_perhaps_not_there(tmp_path):
    log = start(speak=rejecting(Reason.BAD_SHARE, everybody=True))
    log.run_round()
    demand_attested(follow(tmp_path, end(log)), log, unchecked=3)


def test_who_accuses_a_party_falsely_is_not_attested(tmp_path):
    log = start(speak=accuse)
    log.accusation = Reason.WRONG_PARTIAL
    log.run_round()
    bus = follow(tmp_path, end(log))
    demand_refused(bus, log, index_of(log, e.UpdatesChecked, 1))


def test_that_a_part_was_not_there_cannot_be_known(tmp_path):
    log = start(speak=accuse)
    log.accusation = Reason.MISSING_BLOB
    log.run_round()
    demand_attested(follow(tmp_path, end(log)), log, unchecked=1)


def edit_model(log, author, event):
    if not isinstance(event, e.AggregateSubmitted):
        return [event]
    blob = log.blobs[event.model.sha256]
    return [replace(event, model=log.blobs.store(change_byte(blob, len(blob) - 1)))]


@pytest.mark.parametrize("speak", [edit_sum, edit_model])
def test_a_wrong_sum_or_model_is_not_attested(tmp_path, speak):
    log = start(speak=speak)
    log.run_round()
    bus = follow(tmp_path, end(log))
    demand_refused(bus, log, index_of(log, e.AggregateSubmitted))
    (alert,) = bus["node0"].node.alerts.all()
    assert f"the published {speak.__name__[5:]} is" in alert.detail


def test_a_sum_that_opens_nothing_is_not_attested(tmp_path):
    log = start(speak=heed_and_hush)
    log.run_round()
    publish(log)
    bus = follow(tmp_path, end(log))
    demand_refused(bus, log, index_of(log, e.AggregateSubmitted))
    assert "none follows" in bus["node0"].node.alerts.all()[0].detail


def test_a_wrong_part_that_nobody_rejects_is_not_attested(tmp_path):
    def speak(log, author, event):
        if author == "p1" and isinstance(event, e.PartialAggregateSubmitted):
            return [
                replace(
                    event,
                    partial=log.edit(
                        event.partial,
                        lambda part: replace(part, values=change_byte(part.values)),
                    ),
                )
            ]
        return keeping_quiet(log, author, event)

    log = start(speak=speak)
    log.request_round()
    for agent in audit_mpc.FEW:
        log.commit(agent)
    # The aggregator would reject the part.
    log.settle()
    publish(log)
    bus = follow(tmp_path, end(log))
    demand_refused(bus, log, index_of(log, e.AggregateSubmitted))


# Who checks and who does not


@pytest.fixture
def lying():
    log = audit_mpc.start(speak=edit_sum, ledger_nodes=NAMES)
    log.run_round()
    return end(log)


def start_mixed(tmp_path, log, checking):
    bus = Bus(tmp_path, log, ())
    for name in NAMES:
        fetch = log.blobs.fetch
        options = {"rechecker": make_rechecker(fetch)} if name in checking else {}
        bus.add(name, **options)
    bus.run()
    bus.wait(30)
    return bus


def test_two_of_four_that_check_are_enough(tmp_path, lying):
    height = height_of(lying, index_of(lying, e.AggregateSubmitted))
    bus = start_mixed(tmp_path, lying, NAMES[2:])
    assert bus.heights() == {height - 2}
    for name in NAMES[2:]:
        assert max(heights_attested(bus, name)) == height - 1


def test_what_a_quorum_makes_final_without_it_binds_a_node_too(tmp_path, lying):
    height = height_of(lying, index_of(lying, e.AggregateSubmitted))
    bus = start_mixed(tmp_path, lying, NAMES[3:])
    assert bus.heights() == {last_height(lying) - 1}
    member = bus["node3"]
    assert member.node.alerts.codes() == {AlertCode.BLOCK_INVALID}
    assert height not in heights_attested(bus, "node3")
    assert member.checkpoint.size == bus["node0"].checkpoint.size
    # It is stored by now, and so not looked at again.
    member.options["rechecker"] = make_rechecker(lying.blobs.fetch)
    member.restart()
    assert member.final_height == last_height(lying) - 1
    assert counts(member) == (0, 0, 0)
    # And it goes on with what comes after.
    bus.said.clear()
    end(lying)
    bus.run()
    assert last_height(lying) in heights_attested(bus, "node3")
    assert bus.heights() == {last_height(lying) - 1}


# Blobs that do not come


KINDS = {
    "commitments": ((e.UpdateCommitted, "commitments"), 2),
    "proof": ((e.UpdateCommitted, "proof"), 1),
    "links": ((e.SharesLinked, "links"), 4),
    "partial": ((e.PartialAggregateSubmitted, "partial"), 1),
    "base model": ((e.RoundSealed, "base_model"), 1),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("how", ["missing", "another", "longer"])
def test_absence_proves_nothing(tmp_path, honest, kind, how, caplog):
    (event_type, name), unchecked = KINDS[kind]
    event = honest.leaves[index_of(honest, event_type)]
    digest = getattr(event, name).sha256
    blobs = BlobDict(honest.blobs)
    data = blobs.pop(digest)
    if how != "missing":
        blobs[digest] = change_byte(data, 50) if how == "another" else data + b"\0"
    bus = follow(tmp_path, honest, fetch=blobs.fetch)
    demand_attested(bus, honest, unchecked=unchecked)
    last = bus["node0"].node.describe()["rechecks"]["last_unchecked"]
    assert f"not re-checked: {last}" in caplog.text
    reason = {"missing": "MISSING", "another": "CORRUPT", "longer": "OVERSIZED"}[how]
    assert f"{reason}_BLOB: " in last


def test_published_sum_and_model_need_not_be_there(tmp_path, honest):
    published = honest.leaves[index_of(honest, e.AggregatePublished)]
    blobs = BlobDict(honest.blobs)
    del blobs[published.sum.sha256], blobs[published.model.sha256]
    bus = follow(tmp_path, honest, fetch=blobs.fetch)
    demand_attested(bus, honest, unchecked=0)


class LateBlobs:
    """Serves each blob when it is asked for the nth time."""

    def __init__(self, blobs, number):
        self.blobs = blobs
        self.number = number
        self.asked = {}

    def fetch(self, ref, *, max_size_bytes):
        self.asked[ref.sha256] = self.asked.get(ref.sha256, 0) + 1
        if self.asked[ref.sha256] < self.number:
            return BlobDict().fetch(ref, max_size_bytes=max_size_bytes)
        return self.blobs.fetch(ref, max_size_bytes=max_size_bytes)


def test_a_blob_that_comes_late_is_waited_for(tmp_path, honest):
    late = LateBlobs(honest.blobs, 3)
    bus = follow(tmp_path, honest, fetch=late.fetch)
    demand_attested(bus, honest, unchecked=0)


def test_a_lie_is_found_when_its_blobs_come_late(tmp_path):
    log = start(speak=edit_sum)
    log.run_round()
    late = LateBlobs(end(log).blobs, 3)
    bus = follow(tmp_path, log, fetch=late.fetch)
    demand_refused(bus, log, index_of(log, e.AggregateSubmitted))


def test_blobs_of_old_blocks_are_not_waited_for(tmp_path, honest):
    late = LateBlobs(honest.blobs, 10**6)
    bus = follow(tmp_path, honest, fetch=late.fetch, age_s=MANY_S)
    demand_attested(bus, honest, unchecked=3 + 3)
    # Ahead, for the claim, and for parts and sum: once each time.
    assert max(late.asked.values()) <= 3


@pytest.mark.parametrize("error", [OSError("away"), RuntimeError("what?"), KeyError()])
def test_whatever_the_store_raises_the_node_goes_on(tmp_path, honest, error):
    def fetch(ref, *, max_size_bytes):
        raise error

    bus = follow(tmp_path, honest, fetch=fetch)
    demand_attested(bus, honest, unchecked=3 + 3)
    assert (
        "the store does not"
        in bus["node0"].node.describe()["rechecks"]["last_unchecked"]
    )


def test_a_store_that_hangs_does_not_hang_the_node(tmp_path, honest, monkeypatch):
    monkeypatch.setattr(node_rechecks, "FETCH_S", 0.02)
    monkeypatch.setattr(node_rechecks, "MIN_RATE", 2**30)
    never = threading.Event()
    began = []

    def fetch(ref, *, max_size_bytes):
        began.append(ref)
        never.wait(60)
        raise OSError

    try:
        bus = follow(tmp_path, honest, fetch=fetch)
        demand_attested(bus, honest, unchecked=3 + 3)
        assert len(began) <= node_rechecks.MAX_HANGING
    finally:
        never.set()


def test_an_error_of_ours_proves_nothing(tmp_path, honest, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(RoundVerifier, "find_reasons", fail)
    bus = follow(tmp_path, honest)
    demand_attested(bus, honest, unchecked=1)


def test_a_lie_that_the_blobs_do_not_show_is_attested_and_said(tmp_path):
    log = start(speak=edit_sum)
    log.run_round()
    blobs = BlobDict(end(log).blobs)
    del blobs[log.leaves[index_of(log, e.PartialAggregateSubmitted)].partial.sha256]
    demand_attested(follow(tmp_path, log, fetch=blobs.fetch), log, unchecked=1)


# Restarts, forks, and who waits


def test_a_node_restarts_after_each_block(tmp_path, honest):
    bus = Bus(tmp_path, honest, ())
    member = bus.add("node0", rechecker=make_rechecker(honest.blobs.fetch))
    num_true = 0
    for number, record in enumerate(honest.records):
        bus.show(records=[record], checkpoints=honest.checkpoints[number : number + 1])
        bus.settle()
        num_true += counts(member)[0]
        assert counts(member)[1:] == (0, 0)
        member.options["rechecker"] = make_rechecker(honest.blobs.fetch)
        member.restart()
        assert member.node.tree.height == number
    assert member.final_height == last_height(honest) - 1
    assert num_true == 3 + 2


@pytest.mark.parametrize("speak", [edit_sum, rejecting(Reason.INVALID_PROOF)])
def test_a_lie_is_found_after_a_restart_and_again_after_another(tmp_path, speak):
    log = start(speak=speak)
    log.run_round()
    end(log)
    claim = e.AggregateSubmitted if speak is edit_sum else e.UpdatesChecked
    height = height_of(log, index_of(log, claim))
    bus = Bus(tmp_path, log, ())
    member = bus.add("node0", rechecker=make_rechecker(log.blobs.fetch))
    bus.show(records=log.records[:height])
    for _ in range(2):
        member.options["rechecker"] = make_rechecker(log.blobs.fetch)
        member.restart()
        assert member.node.tree.height == height - 1
        bus.run()
        demand_refused(bus, log, index_of(log, claim))


def test_who_refuses_a_block_does_not_ask_for_epochs(tmp_path):
    log = start(speak=edit_sum)
    log.run_round()
    bus = follow(tmp_path, end(log))
    bus.wait(200)
    assert not bus.sent(e.EpochRequested)


def test_proofs_of_another_branch_are_verified_anew(tmp_path, honest):
    rechecker = make_rechecker(honest.blobs.fetch)
    bus = Bus(tmp_path, honest, ())
    member = bus.add("node0", rechecker=rechecker)
    update = index_of(honest, e.UpdateCommitted)
    bus.show(records=honest.records[: height_of(honest, update) + 1])
    secret = MpcRound(member.node.tree.pending()[-1].view)
    verifier = rechecker._get_checker(secret.view).verifier
    assert rechecker._get_checker(secret.view).verifier is verifier
    agent, committed = next(iter(secret.commitments.items()))
    assert verifier.has_proven(secret, agent)
    other = committed._replace(event=replace(committed.event, num_examples=7))
    forked = change_mpc_round(secret, commitments={**secret.commitments, agent: other})
    assert not verifier.has_proven(forked, agent)
    verifier.verify_proofs(forked, [agent])
    assert isinstance(verifier.get_proven(forked, agent), RoundError)
    assert not isinstance(verifier.get_proven(secret, agent), RoundError)
    # Nor is it another beginning's.
    other = change_mpc_round(secret, started_leaf_hash=bytes(32))
    assert rechecker._get_checker(other.view).verifier is not verifier


def test_while_a_blob_is_waited_for_the_others_are_heard(tmp_path, honest):
    claim = height_of(honest, index_of(honest, e.UpdatesChecked))
    is_asked = threading.Event()
    blobs = BlobDict(honest.blobs)
    lost = honest.leaves[index_of(honest, e.SharesLinked)].links.sha256
    del blobs[lost]

    def fetch(ref, *, max_size_bytes):
        if ref.sha256 == lost:
            is_asked.set()
        return blobs.fetch(ref, max_size_bytes=max_size_bytes)

    rechecker = Rechecker(fetch, clock=lambda: NOW_S)
    bus = Bus(tmp_path, honest, ())
    node = bus.add("node0", rechecker=rechecker).node
    bus.show(records=honest.records[:claim], checkpoints=())

    async def run():
        loop = NodeLoop(node)
        task = asyncio.create_task(loop.add_block(*pairs(honest)[claim]))
        assert await asyncio.to_thread(is_asked.wait, 60)
        for second in range(60):
            loop.step(lambda now_s=second: node.tick(now_s))
        assert loop.is_reading
        assert not task.done()
        rechecker.stop()
        await asyncio.wait_for(task, 60)

    asyncio.run(run())
    assert node.describe()["rechecks"]["unchecked"] == 3
    assert not [x for x in node.outbox if isinstance(x, e.EpochRequested)]
    assert make_key("node0").public_key == node.outbox[-1].public_key
