"""Ledger nodes that check the blobs of rounds: who does, and when blobs do not come.

What they make of each lie is in `tests.unit.test_lies`.
"""

import asyncio
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
from schemas import events as e
from schemas.reasons import Reason
from tests.auditing import index_of
from tests.builders import BlobDict, make_key
from tests.lies.lie import SPOILT, edit_sum, say
from tests.lies.mpc import LIES, OTHER_SUM, start, tell
from tests.mpc_builder import build_mpc_log
from tests.mpc_rounds import change_mpc_round
from tests.rechecking import (
    counts,
    demand_attested,
    demand_refused,
    follow,
    height_of,
    heights_attested,
    make_rechecker,
)
from tests.speaking import AGGREGATOR
from tests.unit.consumers.node.test_ledger_node import (
    NAMES,
    NOW_S,
    Bus,
    last_height,
    quick,
)
from tests.unit.consumers.node.test_loop import pairs

__all__ = ["quick"]  # a fixture

MANY_S = 2 * node_rechecks.RECENT_S


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """Time passes when it is looked at."""
    monkeypatch.setattr(node_rechecks, "RETRY_S", 0.01)


def end(log):
    """Give the last block a child or two."""
    log.request_finality()
    log.request_finality()
    return log


@pytest.fixture(scope="module")
def honest():
    log = start()
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


# Who checks and who does not


@pytest.fixture
def lying():
    log = start(
        speak=say(AGGREGATOR, e.AggregateSubmitted, edit_sum),
        ledger_nodes=NAMES,
    )
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


@pytest.mark.parametrize("how", SPOILT)
def test_it_is_said_what_was_not_checked_and_why(tmp_path, how, caplog):
    (lie,) = (x for x in LIES if x.name == f"has proof of UpdateCommitted: {how}")
    log = lie.tell(start)
    bus = follow(tmp_path, log)
    demand_attested(bus, log, unchecked=1)
    last = bus["node0"].node.describe()["rechecks"]["last_unchecked"]
    assert f"not re-checked: {last}" in caplog.text
    assert f"{SPOILT[how]}: " in last


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
    log = tell(OTHER_SUM)
    late = LateBlobs(log.blobs, 3)
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


def test_our_own_error_proves_nothing(tmp_path, honest, monkeypatch):
    def fail(*_):
        raise MemoryError

    monkeypatch.setattr(RoundVerifier, "find_reasons", fail)
    bus = follow(tmp_path, honest)
    demand_attested(bus, honest, unchecked=1)


def test_a_lie_that_the_blobs_do_not_show_is_attested_and_said(tmp_path):
    log = tell(OTHER_SUM)
    blobs = BlobDict(log.blobs)
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


@pytest.mark.parametrize(
    ("lie", "claim"),
    [
        ((OTHER_SUM,), e.AggregateSubmitted),
        (("nobody lies", Reason.INVALID_PROOF), e.UpdatesChecked),
    ],
)
def test_a_lie_is_found_after_a_restart_and_again_after_another(tmp_path, lie, claim):
    log = tell(*lie)
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


def test_a_node_that_refuses_a_block_does_not_ask_for_epochs(tmp_path):
    bus = follow(tmp_path, tell(OTHER_SUM))
    bus.wait(200)
    assert not bus.sent(e.EpochRequested)


def test_proofs_of_another_branch_are_verified_anew(tmp_path, honest):
    rechecker = make_rechecker(honest.blobs.fetch)
    bus = Bus(tmp_path, honest, ())
    member = bus.add("node0", rechecker=rechecker)
    update = index_of(honest, e.UpdateCommitted)
    bus.show(records=honest.records[: height_of(honest, update) + 1])
    secret = MpcRound(member.node.tree.pending()[-1].view)
    verifier = rechecker._checking.get(secret.view).verifier
    assert rechecker._checking.get(secret.view).verifier is verifier
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
    assert rechecker._checking.get(other.view).verifier is not verifier


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
