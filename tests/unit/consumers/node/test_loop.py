"""A ledger node in an event loop: replaying must not keep it from anything else."""

import asyncio
import threading
import time

import pytest

from consumers.node import blocks as node_blocks
from consumers.node import loop as node_loop
from consumers.node.blocks import RegistryAwayError
from consumers.node.loop import NodeLoop
from protocol.envelope import SIGNATURE_HEADER
from schemas import codec
from schemas import events as e
from tests.builders import LogBuilder, make_key, unframe
from tests.unit.consumers.node.test_ledger_node import (
    NAMES,
    Bus,
    Member,
    quick,
    short_log,
    unframe_refused,
)

__all__ = ["quick"]  # a fixture


def pairs(log):
    return [(unframe(r.value), r.header(SIGNATURE_HEADER)) for r in log.records]


@pytest.fixture
def bus(tmp_path):
    return Bus(tmp_path, short_log())


def hold_replays(monkeypatch):
    """Make replays wait until they are let go; returns when one began, and that."""
    has_begun, may_go_on = threading.Event(), threading.Event()
    real = node_blocks.replay_block

    def replay(*arguments, **options):
        has_begun.set()
        assert may_go_on.wait(60)
        return real(*arguments, **options)

    monkeypatch.setattr(node_blocks, "replay_block", replay)
    return has_begun, may_go_on


def test_blocks_are_added_as_without_a_loop(bus):
    member = bus["node0"]

    async def run():
        loop = NodeLoop(member.node)
        for pair in pairs(bus.log):
            await loop.add_block(*pair)
        await loop.add_block(*pairs(bus.log)[0])

    asyncio.run(run())
    bus.show(*[bus[name] for name in NAMES[1:]])
    assert member.node.tree.pending() == bus["node1"].node.tree.pending()
    bus.show(member, records=())
    bus.settle()
    assert member.final_height == len(bus.log.records) - 2


def test_the_node_learns_how_long_a_replay_took(bus, monkeypatch):
    node = bus["node0"].node
    took_s = []
    monkeypatch.setattr(node, "note_replay", took_s.append)
    real = node_blocks.replay_block

    def replay(*arguments, **options):
        time.sleep(0.05)
        return real(*arguments, **options)

    monkeypatch.setattr(node_blocks, "replay_block", replay)

    async def run():
        loop = NodeLoop(node)
        for pair in pairs(bus.log)[:2]:
            await loop.add_block(*pair)
        await loop.add_block(*pairs(bus.log)[1])

    asyncio.run(run())
    # The first block names the log: nothing is replayed ahead of it.
    assert len(took_s) == 1
    assert took_s[0] >= 0.05


def test_while_a_block_is_replayed_the_others_are_heard(bus, monkeypatch):
    # The first two blocks are certified by the others, and node0 replays the third.
    third = pairs(bus.log)[2]
    bus.cut = {"node0"}
    bus.show(records=bus.log.records[:2], checkpoints=())
    bus.settle()
    node = bus["node0"].node
    assert node.tree.final_height == -1

    async def run():
        loop = NodeLoop(node)
        has_begun, may_go_on = hold_replays(monkeypatch)
        task = asyncio.create_task(loop.add_block(*third))
        await asyncio.to_thread(has_begun.wait, 60)
        try:
            assert loop.is_reading
            for second in range(1, 60):
                loop.step(lambda now_s=second: node.tick(now_s))
            await loop.hear(codec.encode(x) for x in bus.sent(e.BlockAttested))
            assert node.tree.final_height == 0
            assert node.tree.height == 1
        finally:
            may_go_on.set()
        await task
        assert node.tree.height == 2

    asyncio.run(run())
    asked = [x for x in node.outbox if isinstance(x, e.EpochRequested)]
    assert not asked


def test_blocks_are_replayed_one_at_a_time_and_in_their_turn(bus, monkeypatch):
    member = bus["node0"]
    first, *rest = pairs(bus.log)
    member.node.add_block(*first)

    async def run():
        loop = NodeLoop(member.node)
        has_begun, may_go_on = hold_replays(monkeypatch)
        tasks = [asyncio.create_task(loop.add_block(*pair)) for pair in rest]
        await asyncio.to_thread(has_begun.wait, 60)
        has_begun.clear()
        assert not await asyncio.to_thread(has_begun.wait, 0.1)
        may_go_on.set()
        await asyncio.gather(*tasks)

    asyncio.run(run())
    assert member.node.tree.height == len(rest)
    assert not member.node.tree.wanted()


def test_many_messages_let_others_have_their_turn(bus, monkeypatch):
    monkeypatch.setattr(node_loop, "MAX_AT_ONCE", 2)
    bus.run()
    bus.log.request_finality()
    messages = [codec.encode(x) for x in bus.sent(e.BlockAttested)]
    late = bus.add("log", has_identity=False)
    late.node.add_block(*pairs(bus.log)[0])
    turns = []

    async def run():
        loop = NodeLoop(late.node)

        async def other():
            while True:
                await loop.changed()
                turns.append(late.node.feed.last)

        task = asyncio.create_task(other())
        await asyncio.sleep(0)
        start = late.node.feed.last
        # What is no message does not make the others worthless.
        await loop.hear([b"", messages[0], *messages[1:5]])
        await asyncio.sleep(0)
        task.cancel()
        return start

    start = asyncio.run(run())
    assert [number - start for number in turns] == [1, 3, 5]


def test_a_foreign_block_is_passed_over(bus, caplog):
    async def run():
        await NodeLoop(bus["node0"].node).add_block(b"", bytes(64))

    asyncio.run(run())
    assert "passing over a block" in caplog.text
    assert bus["node0"].node.tree.height == -1


def test_it_reads_as_long_as_blocks_are_added(bus, monkeypatch):
    async def run():
        loop = NodeLoop(bus["node0"].node)
        assert not loop.is_reading
        await loop.add_block(*pairs(bus.log)[0])
        assert loop.is_reading
        monkeypatch.setattr(node_loop, "READING_S", 0.0)
        assert not loop.is_reading

    asyncio.run(run())


def test_a_registry_that_is_away_holds_nothing_up(tmp_path):
    log = LogBuilder()
    log.found()
    log.say(log.leaves[0], make_key("OPERATOR"))
    log.settle()
    first, refusal = pairs(log)
    member = Member(tmp_path, "node0", log)
    is_away = True

    def ask(value):
        if is_away:
            raise RegistryAwayError("away")
        return unframe_refused(value)

    member.node.tree._unframe = ask

    async def run():
        nonlocal is_away
        loop = NodeLoop(member.node)
        await loop.add_block(*first)
        with pytest.raises(RegistryAwayError):
            await loop.add_block(*refusal)
        is_away = False
        await loop.add_block(*refusal)

    asyncio.run(run())
    assert member.node.tree.height == 1
