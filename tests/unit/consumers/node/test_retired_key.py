"""A node whose key is used elsewhere signs no more, whatever is deleted."""

import os
import shutil

import pytest

from adapters.vote_log import VoteLogCode, VoteLogError, load_identity
from consumers.node.feed import AlertCode
from consumers.node.ledger_node import _ELSEWHERE
from ledger.attestations import sign_attestation
from ledger.finality import FinalityProof
from schemas import events as e
from tests.builders import make_header, make_key
from tests.unit.consumers.node.test_ledger_node import Bus, last_height, short_log

NAME = "node3"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody pulls the plug here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bus(tmp_path):
    bus = Bus(tmp_path, short_log())
    bus.run()
    return bus


def use_elsewhere(bus):
    """Let somebody else attest with a node's key, where the node did not yet."""
    node = bus[NAME].node
    header = make_header(node.nodes, b"other", height=last_height(bus.log) + 1)
    forged = sign_attestation(make_key(NAME), node.nodes, "clinics", 0, header)
    for member in bus.members.values():
        member.node.receive(forged)


def delete_all_but_votes(member):
    member.stop()
    for path in member.directory.glob("blocks.sqlite*"):
        path.unlink()
    shutil.rmtree(member.directory / "tiles")
    member.start()


def grow(bus):
    bus.said.clear()
    bus.log.request_finality()
    bus.run()
    bus.wait(10)


@pytest.mark.parametrize("again", [lambda m: m.restart(), delete_all_but_votes])
def test_neither_a_restart_nor_deleted_blocks_bring_a_key_back(bus, again):
    member = bus[NAME]
    use_elsewhere(bus)
    assert member.votes.is_retired
    for _ in range(2):
        again(member)
        grow(bus)
        member.node.add_proof(
            FinalityProof.from_bytes(bus["node0"].blocks.last_proof())
        )
        bus.pull(member)
        assert not member.node.signs
        assert AlertCode.OWN_KEY_USED_ELSEWHERE in member.node.alerts.codes()
        assert not bus.sent(e.Event, NAME)
        # It goes on observing.
        assert member.final_height == last_height(bus.log) - 1


def test_a_retired_key_is_remembered_before_anything_else_is_said(bus, monkeypatch):
    member = bus[NAME]
    bus.said.clear()

    def fail():
        raise OSError

    monkeypatch.setattr(member.votes, "retire", fail)
    with pytest.raises(OSError):
        use_elsewhere(bus)
    bus.settle()
    assert not bus.sent(e.Event, NAME)


def test_a_retired_key_approves_no_other_nodes(bus):
    use_elsewhere(bus)
    with pytest.raises(VoteLogError) as caught:
        load_identity(bus[NAME].directory)
    assert caught.value.code is VoteLogCode.KEY_RETIRED
    assert "make a new one" in str(caught.value)


def test_what_an_older_store_remembered_is_remembered_with_the_votes(bus):
    member = bus[NAME]
    member.blocks.set_note(_ELSEWHERE, b"1")
    member.restart()
    assert member.votes.is_retired
    assert not member.node.signs
    delete_all_but_votes(member)
    grow(bus)
    assert member.votes.is_retired
    assert not bus.sent(e.Event, NAME)


def test_an_observer_with_such_a_note_just_observes(bus):
    observer = bus.add("log", has_identity=False)
    observer.blocks.set_note(_ELSEWHERE, b"1")
    observer.restart()
    bus.run()
    bus.pull(observer)
    assert observer.final_height == last_height(bus.log) - 1
    assert not observer.node.alerts.all()
