"""The parts of a ledger node: its tree of blocks, its feed, its watch over Kafka."""

from itertools import pairwise

import pytest

from consumers.node import blocks as node_blocks
from consumers.node import feed as node_feed
from consumers.node.blocks import BlockTree, RegistryAwayError, UnfitBlockError
from consumers.node.feed import AlertCode, Alerts, Feed
from consumers.node.kafka_watch import KafkaWatch
from ledger.attestations import START
from ledger.blocks import block_hash
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import ForeignRecordError
from schemas import codec
from schemas import events as e
from tests.builders import LogBuilder, build_log, make_key, unframe
from tests.unit.consumers.node.test_ledger_node import (
    fork,
    lying_log,
    short_log,
    unframe_refused,
)


def alerts():
    return Alerts(lambda: 7.0)


def make_tree(log, **options):
    found = alerts()
    return BlockTree(log.federation_id, unframe_refused, found, **options), found


def pairs(log):
    return [(unframe(r.value), r.header(SIGNATURE_HEADER)) for r in log.records]


# The tree


def test_blocks_have_the_headers_that_follow():
    log = build_log()
    tree, found = make_tree(log)
    blocks = [block for pair in pairs(log) for block in tree.add(*pair)]
    assert [block.header.height for block in blocks] == list(range(len(log.records)))
    assert blocks[0].header.previous_id == START
    for before, after in pairwise(blocks):
        assert after.header.previous_id == before.header.id
        assert after.header.era == before.header.era + before.changes_nodes
        assert after.next_start == (
            (after.header.height, after.header.id)
            if after.changes_nodes
            else before.next_start
        )
    assert sum(block.changes_nodes for block in blocks) == 1
    assert blocks[-1].header.tree_size == len(log.leaves)
    assert not found.all()
    assert tree.pending() == blocks
    assert tree.height == blocks[-1].header.height


def test_a_block_is_taken_once():
    log = short_log()
    tree, _ = make_tree(log)
    data, signature = pairs(log)[0]
    assert tree.add(data, signature)
    assert tree.add(data, signature) == []


def test_orphans_wait_and_their_parent_is_wanted():
    log = short_log()
    tree, _ = make_tree(log)
    first, second, third, last = pairs(log)
    tree.add(*first)
    assert tree.add(*last) == tree.add(*third) == []
    assert tree.wanted() == [block_hash(second[0])]
    added = tree.add(*second)
    assert [block.header.height for block in added] == [1, 2, 3]
    assert tree.wanted() == []
    tree.missing = (2, b"x" * 32), (1, added[0].header.id), (4, b"y" * 32)
    assert tree.wanted() == [b"x" * 32, b"y" * 32]
    # The log has more than three blocks: as long as it is being read, four may come.
    assert tree.wanted(is_reading=True) == [b"x" * 32]


def test_orphans_are_few(monkeypatch):
    monkeypatch.setattr(node_blocks, "MAX_ORPHANS", 2)
    log = short_log()
    log.request_finality()
    tree, _ = make_tree(log)
    first, second, *rest = pairs(log)
    tree.add(*first)
    for pair in rest:
        tree.add(*pair)
    assert sum(map(len, tree._orphans.values())) == 2
    # The oldest was dropped: what waits for it stays.
    assert len(tree.add(*second)) == 1


def test_orphans_are_small(monkeypatch):
    log = short_log()
    first, _, third, last = pairs(log)
    monkeypatch.setattr(node_blocks, "MAX_ORPHANS_SIZE_BYTES", len(last[0]) + 1)
    tree, _ = make_tree(log)
    tree.add(*first)
    tree.add(*third)
    tree.add(*last)
    assert len(tree._orphans) == 1


def test_what_is_final_leaves_no_fork():
    one, other = fork(short_log())
    tree, found = make_tree(one)
    for pair in (*pairs(one), *pairs(other)):
        tree.add(*pair)
    assert found.codes() == {AlertCode.FORK}
    kept = tree.find_hash(block_hash(pairs(one)[4][0]))
    below = [b for b in tree.pending() if b.header.height < 4]
    for block in (*below, kept):
        tree.settle(block)
    assert tree.final == kept
    assert all(block.header.height > 4 for block in tree.pending())
    assert len(tree.pending()) == 1
    assert tree.find(kept.header.id) == kept
    # What is final or below it comes in vain.
    assert tree.add(*pairs(other)[4]) == []


def test_a_sequencer_that_forks_for_ever_gets_little_memory(monkeypatch):
    monkeypatch.setattr(node_blocks, "MAX_SIBLINGS", 2)
    base = short_log()
    tree, _ = make_tree(base)
    for pair in pairs(base):
        tree.add(*pair)
    forks = []
    for number in range(4):
        other = base.copy()
        other.admit(f"agent{number}")
        forks.append(pairs(other)[4])
    assert [len(tree.add(*pair)) for pair in forks] == [1, 1, 0, 0]
    # What others certified always has room.
    fresh, _ = make_tree(base)
    for pair in (*pairs(base), forks[3]):
        certified = fresh.add(*pair)
    tree.missing = ((4, certified[0].header.id),)
    assert len(tree.add(*forks[3])) == 1


def test_a_tree_is_full_by_number_and_by_size(monkeypatch):
    log = short_log()
    tree, _ = make_tree(log)
    monkeypatch.setattr(node_blocks, "MAX_PENDING", 2)
    tree.add(*pairs(log)[0])
    assert not tree.is_full
    (second,) = tree.add(*pairs(log)[1])
    assert tree.is_full
    tree.settle(tree.pending()[0])
    tree.settle(second)
    assert not tree.is_full
    monkeypatch.setattr(node_blocks, "MAX_PENDING_SIZE_BYTES", 1)
    tree.add(*pairs(log)[2])
    assert tree.is_full


def test_a_lie_is_looked_at_once_and_nothing_follows_it():
    log = lying_log()
    tree, found = make_tree(log)
    for pair in pairs(log):
        tree.add(*pair)
    assert tree.height < len(log.records) - 1
    (alert,) = found.all()
    assert alert.code is AlertCode.BLOCK_INVALID
    assert "FACT_DIFFERS" in alert.detail
    lie = pairs(log)[tree.height + 1]
    assert tree.add(*lie) == []
    assert len(found.all()) == 1


def test_leaves_that_nobody_can_read_stop_nobody():
    log = short_log()
    key = make_key("SEQUENCER")
    event = log.leaves[0]
    leaf = log.make_leaf(event, key, topic="moot.control")
    log.append([(leaf, event)], is_followed=False)
    tree, found = make_tree(log)
    for pair in pairs(log):
        tree.add(*pair)
    assert found.codes() == {AlertCode.BLOCK_INVALID}
    assert tree.height == len(log.records) - 2


def test_an_error_nobody_thought_of_is_the_blocks_fault(monkeypatch):
    log = short_log()
    tree, _ = make_tree(log)

    def fail(*_, **__):
        raise ZeroDivisionError

    monkeypatch.setattr(node_blocks, "replay_block", fail)
    with pytest.raises(UnfitBlockError, match="ZeroDivisionError"):
        tree.verify(None, *pairs(log)[0])


def test_while_the_registry_is_away_nothing_is_known():
    log = LogBuilder()
    log.found()
    log.request_finality()
    # A refusal, whose value everybody looks at again.
    log.say(log.leaves[0], make_key("OPERATOR"))
    log.settle()
    log.request_finality()
    is_away = True

    def ask(value):
        if is_away:
            raise RegistryAwayError("away")
        return unframe_refused(value)

    first, second, third, last = pairs(log)
    tree = BlockTree(log.federation_id, ask, alerts())
    assert len(tree.add(*first)) == len(tree.add(*second)) == 1
    with pytest.raises(RegistryAwayError):
        tree.add(*third)
    is_away = False
    assert [block.header.height for block in tree.add(*third)] == [2]
    # It may also be one that waited: it goes on waiting.
    is_away = True
    tree = BlockTree(log.federation_id, ask, alerts())
    tree.add(*first)
    tree.add(*third)
    assert [block.header.height for block in tree.add(*second)] == [1]
    is_away = False
    assert [block.header.height for block in tree.add(*last)] == [2, 3]


def test_only_the_sequencers_blocks_are_looked_at():
    log = short_log()
    tree, _ = make_tree(log)
    data, signature = pairs(log)[0]
    for bad in ((data, bytes(64)), (data[:-1], signature), (b"", signature)):
        with pytest.raises(ForeignRecordError):
            tree.add(*bad)
    other = LogBuilder(federation_id="others")
    other.found()
    with pytest.raises(ForeignRecordError):
        tree.add(*pairs(other)[0])


# Replaying ahead


def grown(log, count):
    """Return a tree with a log's first blocks."""
    tree, found = make_tree(log)
    for pair in pairs(log)[:count]:
        tree.add(*pair)
    return tree, found


def count_replays(monkeypatch):
    replays = []
    real = node_blocks.replay_block

    def replay(*arguments, **options):
        replays.append(arguments)
        return real(*arguments, **options)

    monkeypatch.setattr(node_blocks, "replay_block", replay)
    return replays


def test_what_was_replayed_ahead_is_not_replayed_again(monkeypatch):
    log = short_log()
    tree, found = grown(log, 1)
    _, second, third, last = pairs(log)
    tree.add(*last)
    tree.add(*third)
    replays = count_replays(monkeypatch)
    replay = tree.prepare(*second)
    assert not tree.is_replaying
    replay()
    # It, and what waits for it; and nothing is in the tree yet.
    assert len(replays) == 3
    assert (tree.height, tree.num_added, tree.is_replaying) == (0, 1, False)
    assert [block.header.height for block in tree.add(*second)] == [1, 2, 3]
    assert len(replays) == 3
    assert tree.num_added == 4
    assert tree.pending() == grown(log, 4)[0].pending()
    assert not found.all()


def test_it_says_that_it_is_replaying(monkeypatch):
    log = short_log()
    tree, _ = grown(log, 1)
    seen = []

    def fail(*_, **__):
        seen.append(tree.is_replaying)
        raise ZeroDivisionError

    monkeypatch.setattr(node_blocks, "replay_block", fail)
    tree.prepare(*pairs(log)[1])()
    assert seen == [True]
    assert not tree.is_replaying


def test_a_lie_that_was_replayed_ahead_is_one(monkeypatch):
    log = lying_log()
    tree, found = make_tree(log)
    for pair in pairs(log):
        replay = tree.prepare(*pair)
        if replay is not None:
            replay()
        tree.add(*pair)
    assert found.codes() == {AlertCode.BLOCK_INVALID}
    assert len(found.all()) == 1
    replays = count_replays(monkeypatch)
    assert tree.prepare(*pairs(log)[tree.height + 1]) is None
    assert not replays


def test_another_signature_under_a_block_is_looked_at_again():
    log = short_log()
    tree, _ = grown(log, 1)
    data, signature = pairs(log)[1]
    tree.prepare(data, signature)()
    with pytest.raises(ForeignRecordError):
        tree.add(data, bytes(64))
    with pytest.raises(ForeignRecordError):
        tree.prepare(data, bytes(64))
    (block,) = tree.add(data, signature)
    assert block.signature == signature


def test_some_blocks_are_not_replayed_ahead():
    log = short_log()
    tree, _ = make_tree(log)
    first, _, third, _ = pairs(log)
    assert tree.prepare(*first) is None  # its state is not known before it
    tree.add(*first)
    assert tree.prepare(*first) is None  # it is there
    assert tree.prepare(*third) is None  # its parent is not


def test_what_cannot_be_replayed_ahead_is_for_add_to_say():
    log = LogBuilder()
    log.found()
    log.say(log.leaves[0], make_key("OPERATOR"))
    log.settle()
    is_away = True

    def ask(value):
        if is_away:
            raise RegistryAwayError("away")
        return unframe_refused(value)

    first, refusal = pairs(log)
    tree = BlockTree(log.federation_id, ask, alerts())
    tree.add(*first)
    tree.prepare(*refusal)()
    assert not tree.is_replaying
    with pytest.raises(RegistryAwayError):
        tree.add(*refusal)
    is_away = False
    assert len(tree.add(*refusal)) == 1


# The feed


def attestation(height, author=b"a", block=b"b"):
    return e.BlockAttested(
        federation_id="f",
        era=0,
        epoch=0,
        height=height,
        block_id=block * 32,
        public_key=author * 32,
        signature=bytes(64),
    )


def heights(entries):
    return [entry.event.height for entry in entries]


def test_a_feed_is_read_on_from_a_number():
    feed = Feed(100)
    assert feed.read(0, 1) == []
    assert feed.last == 99
    for height in range(3):
        assert feed.add_attestation(attestation(height), b"a" * 32)
    assert feed.last == 102
    assert heights(feed.read(0, 2**20)) == [0, 1, 2]
    assert heights(feed.read(101, 2**20)) == [2]
    assert feed.read(102, 2**20) == []
    # A number of an earlier life, or of nobody's: everything.
    assert heights(feed.read(10**9, 2**20)) == [0, 1, 2]
    first = feed.read(0, 2**20)[0]
    assert codec.decode(first.data) == attestation(0)


def test_a_page_of_the_feed_is_bounded_but_not_empty():
    feed = Feed()
    for height in range(3):
        feed.add_attestation(attestation(height), b"a" * 32)
    size = len(feed.read(0, 1)[0].data)
    assert heights(feed.read(0, 1)) == [0]
    assert heights(feed.read(0, 2 * size)) == [0, 1]


def test_a_relay_cannot_fill_the_feed_with_variants():
    feed = Feed()
    high = e.QuorumCertificate(
        era=0, epoch=0, height=1, block_id=bytes(32), signatures=()
    )
    request = e.EpochRequested(
        federation_id="f",
        era=0,
        epoch=1,
        high=high,
        public_key=b"a" * 32,
        signature=bytes(64),
    )
    assert feed.add_attestation(request, b"a")
    signature = e.NodeSignature(public_key=b"b" * 32, signature=bytes(64))
    variant = e.QuorumCertificate(
        era=0, epoch=0, height=1, block_id=bytes(32), signatures=(signature,)
    )
    other = e.EpochRequested(
        federation_id="f",
        era=0,
        epoch=1,
        high=variant,
        public_key=b"a" * 32,
        signature=bytes(64),
    )
    assert not feed.add_attestation(other, b"a")


def test_one_author_cannot_crowd_out_another(monkeypatch):
    monkeypatch.setattr(node_feed, "MAX_PER_AUTHOR", 3)
    feed = Feed()
    feed.add_attestation(attestation(0, b"b"), b"b" * 32)
    for height in range(10):
        feed.add_attestation(attestation(height), b"a" * 32)
    assert heights(feed.read(0, 2**20)) == [0, 7, 8, 9]
    # What was dropped may come again.
    assert feed.add_attestation(attestation(0), b"a" * 32)


def test_what_is_old_is_pruned():
    feed = Feed()
    for height in range(4):
        feed.add_attestation(attestation(height), b"a" * 32)
    feed.prune(era=0, height=2, size=0)
    assert heights(feed.read(0, 2**20)) == [2, 3]
    feed.prune(era=1, height=0, size=0)
    assert feed.read(0, 2**20) == []
    assert feed.last == 4


def test_checkpoints_are_pruned_by_size():
    log = short_log()
    feed = Feed()
    for number, record in enumerate(log.checkpoints):
        feed.add(codec.decode(unframe(record.value)), b"s", number)
    size = log.state.log.chain.size
    feed.prune(era=9, height=9, size=size)
    assert len(feed.read(0, 2**20)) == 1


def test_alerts_are_said_once_and_bounded(monkeypatch, caplog):
    monkeypatch.setattr(node_feed, "MAX_ALERTS", 2)
    found = alerts()
    for detail in ("x", "x", "y", "z"):
        found.add(AlertCode.FORK, detail)
    assert [alert.detail for alert in found.all()] == ["x", "y"]
    assert found.all()[0].at_s == 7.0
    assert len(caplog.records) == 2
    assert "FORK: x" in caplog.text


# Kafka


def watch(final=(), topic_id=""):
    found = alerts()
    known = dict(enumerate(final))
    return KafkaWatch(known.get, found, topic_id), found


def see(kafka, *blocks):
    for offset, height, digest in blocks:
        kafka.see_block(offset, height, digest)


def test_a_log_that_only_grows_raises_no_alert():
    kafka, found = watch([b"a", b"b"])
    assert not kafka.see_topic("one")
    see(kafka, (0, 0, b"a"), (2, 1, b"b"), (5, 2, b"c"))
    assert kafka.next_offset == 6
    assert not kafka.see_bounds(0, 7, kafka.next_offset)
    assert not kafka.see_topic("one")
    kafka.start_over()
    see(kafka, (0, 0, b"a"), (2, 1, b"b"), (5, 2, b"c"))
    assert not found.all()


def test_another_block_at_a_final_height_is_rewriting():
    kafka, found = watch([b"a"])
    see(kafka, (0, 0, b"x"))
    assert found.codes() == {AlertCode.KAFKA_REWRITTEN}
    assert "offset 0, block 0" in found.all()[0].detail


def test_a_block_out_of_turn_is_a_replay():
    kafka, found = watch()
    see(kafka, (0, 0, b"a"), (1, 1, b"b"), (2, 0, b"a"))
    assert found.codes() == {AlertCode.KAFKA_REPLAYED}


def test_a_height_that_is_skipped_is_a_truncation():
    kafka, found = watch()
    see(kafka, (0, 0, b"a"), (1, 2, b"c"))
    assert found.codes() == {AlertCode.KAFKA_TRUNCATED}


def test_a_lost_beginning_is_a_truncation():
    kafka, found = watch()
    assert not kafka.see_bounds(3, 9, 0)
    assert found.codes() == {AlertCode.KAFKA_TRUNCATED}


def test_a_lost_end_is_a_truncation_and_everything_is_read_again():
    kafka, found = watch()
    see(kafka, (0, 0, b"a"), (1, 1, b"b"))
    # Kafka was asked before the second was read: that is no loss.
    assert not kafka.see_bounds(0, 1, 1)
    assert kafka.see_bounds(0, 1, 2)
    assert found.codes() == {AlertCode.KAFKA_TRUNCATED}
    assert kafka.next_offset == 0


def test_another_topic_under_the_name_is_read_again():
    kafka, found = watch(topic_id="one")
    see(kafka, (0, 0, b"a"))
    assert kafka.see_topic("two")
    assert kafka.topic_id == "two"
    assert found.codes() == {AlertCode.KAFKA_RECREATED}
    see(kafka, (0, 0, b"a"))
    assert found.codes() == {AlertCode.KAFKA_RECREATED}
