"""Ledger nodes that check the blobs of rounds: one log, and what they attest of it."""

import itertools

from consumers.node.feed import AlertCode
from consumers.node.rechecks import Rechecker
from schemas import codec
from schemas import events as e
from tests.builders import unframe
from tests.unit.consumers.node.test_ledger_node import (
    NAMES,
    NOW_S,
    Bus,
    last_height,
)


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
