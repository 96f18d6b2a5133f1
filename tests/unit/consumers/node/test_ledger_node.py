"""Ledger nodes on an in-memory bus, with the real stores and the real log."""

import os
import shutil
import sqlite3
import tracemalloc
from contextlib import suppress
from dataclasses import replace

import pytest

from adapters.block_store import BlockStore, BlockStoreError
from adapters.schema_registry import FramingError
from adapters.tile_store import TileStore, TileStoreError
from adapters.vote_log import (
    VoteLog,
    VoteLogError,
)
from consumers.node import blocks as node_blocks
from consumers.node import ledger_node
from consumers.node.feed import AlertCode
from consumers.node.ledger_node import LedgerNode
from ledger import attestations
from ledger.attestations import InvalidMessageError, sign_attestation
from ledger.checkpoint import Checkpoint, parse_checkpoint, sign_checkpoint
from ledger.equivocation import Offence, identify_contradiction
from ledger.finality import FinalityProof
from ledger.note import InvalidNoteError, parse_note
from ledger.witness import Refusal
from protocol.admission import make_policy
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import ForeignRecordError
from schemas import codec
from schemas import events as e
from tests.builders import LogBuilder, build_log, make_header, make_key, unframe
from tests.identities import make_identity
from tests.witnessing import format_request

NAMES = ("node0", "node1", "node2", "node3")
NOW_S = 1_760_000_000


def unframe_refused(value):
    try:
        return unframe(value)
    except FramingError as error:
        return error.reason


class Member:
    """A node that can be crashed and started again; an observer without identity."""

    def __init__(self, directory, name, log, *, has_identity=True, **options):
        self.directory = directory / name
        self.name = name
        self.federation_id = log.federation_id
        self.options = options
        if has_identity:
            make_identity(self.directory, name.split("-")[0])
        self.votes = None
        self.has_identity = has_identity
        self.start()

    def start(self):
        if self.has_identity:
            self.votes = VoteLog(self.directory)
        self.blocks = BlockStore(self.directory / "blocks.sqlite")
        self.blocks._connection.execute("PRAGMA synchronous = OFF")
        self.node = LedgerNode(
            self.federation_id,
            votes=self.votes,
            blocks=self.blocks,
            tiles=TileStore(self.directory / "tiles", sync=False),
            unframe=unframe_refused,
            clock=lambda: NOW_S,
            **self.options,
        )
        return self.node

    def stop(self):
        self.blocks.close()
        if self.votes is not None:
            self.votes.close()

    def restart(self):
        self.stop()
        return self.start()

    @property
    def final_height(self):
        return self.node.tree.final_height

    @property
    def checkpoint(self):
        note = self.node.tiles.checkpoint()
        return None if note is None else parse_checkpoint(parse_note(note).text)


class Bus:
    """Delivers what members say to each other, and the log's records to all."""

    def __init__(self, directory, log, names=NAMES, **options):
        self.log = log
        self.directory = directory
        self.members = {n: Member(directory, n, log, **options) for n in names}
        self.cut = set()
        self.said = []
        self.now_s = 0.0

    def __getitem__(self, name):
        return self.members[name]

    def add(self, name, **options):
        self.members[name] = Member(self.directory, name, self.log, **options)
        return self.members[name]

    def show(self, *members, records=None, checkpoints=None):
        """Let members read the log."""
        for member in members or self.members.values():
            for record in self.log.records if records is None else records:
                show_block(member, record)
            for record in self.log.checkpoints if checkpoints is None else checkpoints:
                member.node.receive(codec.decode(unframe(record.value)))

    def settle(self):
        """Deliver messages and fetch wanted blocks, until nothing happens any more."""
        busy = True
        while busy:
            busy = False
            for member in self.members.values():
                while member.node.outbox:
                    event = member.node.outbox.popleft()
                    self.said.append((member.name, event))
                    busy = True
                    for other in self.members.values():
                        if other is not member and not (
                            {member.name, other.name} & self.cut
                            or isinstance(event, e.EquivocationProven)
                        ):
                            hear(other, codec.encode(event))
            for member in self.members.values():
                busy |= self.fetch(member)

    def pull(self, member):
        """Read everybody's feed, as `consumers.node.peers` does."""
        for other in self.members.values():
            for entry in other.node.feed.read(0, 2**30):
                hear(member, entry.data)
        self.settle()

    def fetch(self, member):
        if member.name in self.cut:
            return False
        if member.node.nodes is None and self.genesis is not None:
            member.node.add_block(self.genesis.data, self.genesis.signature)
            return True
        for digest in member.node.tree.wanted():
            for other in self.members.values():
                found = other.blocks.find(digest)
                if found is not None and other.name not in self.cut:
                    member.node.add_block(found.data, found.signature)
                    return True
        return False

    def run(self):
        self.show()
        self.settle()

    def wait(self, seconds):
        """Let time pass for everybody, a second at a time."""
        for _ in range(int(seconds)):
            self.now_s += 1
            for member in self.members.values():
                member.node.tick(self.now_s)
            self.settle()

    @property
    def genesis(self):
        """The first block, if anybody has it."""
        blocks = (m.blocks.final_block(0) for m in self.members.values())
        return next(filter(None, blocks), None)

    def heights(self):
        return {m.final_height for m in self.members.values() if m.name not in self.cut}

    def sent(self, kind, name=None):
        return [x for n, x in self.said if isinstance(x, kind) and name in {None, n}]


def hear(member, data):
    # A cosignature of the era before is no use any more.
    with suppress(InvalidNoteError):
        member.node.receive(codec.decode(data))


def show_block(member, record):
    signature = record.header(SIGNATURE_HEADER)
    member.node.add_block(unframe(record.value), signature)


def short_log(**options):
    log = LogBuilder(**options)
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.request_finality()
    return log


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Nobody pulls the plug here: test_ledger_node_crashes does."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def bus(tmp_path):
    return Bus(tmp_path, short_log())


def last_height(log):
    return log.state.log.chain.height - 1


# What is final


def test_a_block_is_final_once_its_child_is_certified(bus):
    bus.run()
    assert bus.heights() == {last_height(bus.log) - 1}
    for member in bus.members.values():
        assert not member.node.alerts.all()
        assert member.checkpoint.size == member.node.tree.final.header.tree_size
        note = member.node.tiles.checkpoint()
        state = member.node.tree.final.state.admission
        verified = make_policy(state).verify(note, bus.log.origin)
        assert len(verified.cosignatures) >= 3


def test_everything_that_can_happen_becomes_final(tmp_path):
    log = build_log()
    bus = Bus(tmp_path, log, (*NAMES, "node4"))
    bus.run()
    # node3 left, node4 came; the last block has no child.
    assert bus["node4"].final_height == last_height(log) - 1
    assert {m.node.nodes.era for m in bus.members.values()} == {1}
    assert bus["node3"].node.name == ""
    assert not bus["node3"].node.signs
    for member in bus.members.values():
        assert not member.node.alerts.all()
        assert member.final_height == last_height(log) - 1
        assert member.checkpoint.size == member.node.tiles.size
        leaves = [leaf for b in member.blocks.final_blocks() for leaf in leaves_of(b)]
        bundles = map(member.node.tiles.read_entries, range(-(-len(leaves) // 256)))
        assert [entry for bundle in bundles for entry in bundle] == leaves


def leaves_of(block):
    return codec.decode_as(e.BlockSequenced, block.data).leaves


def test_the_last_block_waits_for_its_child_and_that_is_no_stall(bus):
    bus.run()
    bus.wait(200)
    assert bus.heights() == {last_height(bus.log) - 1}
    assert not bus.sent(e.EpochRequested)


def test_three_of_four_go_on_and_two_do_not(bus):
    bus.cut = {"node3"}
    bus.run()
    assert bus.heights() == {last_height(bus.log) - 1}
    bus.cut = {"node2", "node3"}
    bus.log.request_finality()
    bus.run()
    bus.wait(30)
    assert bus.heights() == {last_height(bus.log) - 2}
    bus.cut = set()
    bus.log.request_finality()
    bus.run()
    bus.wait(130)
    assert bus.heights() == {last_height(bus.log) - 1}


@pytest.mark.parametrize("names", [NAMES[:1], NAMES[3:]])
def test_blocks_that_one_node_has_become_final(bus, names):
    """Kafka's operator keeps them from the others; the nodes reach each other."""
    for record in bus.log.records[1:]:
        bus.show(*map(bus.__getitem__, NAMES), records=bus.log.records[:1])
        bus.show(*map(bus.__getitem__, names), records=[record])
        bus.settle()
    assert bus.heights() == {last_height(bus.log) - 1}
    assert not bus.sent(e.EpochRequested)


def test_patience_doubles_and_is_reset_by_progress(bus):
    bus.cut = {"node2", "node3"}
    bus.run()
    node = bus["node0"].node
    asked = []
    for second in range(1, 40):
        node.tick(second)
        asked += [second] * len(node.outbox)
        node.outbox.clear()
    # Seen at 1; then after 4, 8 and 16 seconds more.
    assert asked == [5, 13, 29]


def asks(member):
    """Return the epochs that a member asked for."""
    return [x.epoch for x in member.node.outbox if isinstance(x, e.EpochRequested)]


def demand_patience(member, until):
    """Let seconds pass from 1 on: a member asks for the next epoch at the last one."""
    for second in range(1, until):
        member.node.tick(second)
        assert not asks(member)
    member.node.tick(until)
    assert asks(member) == [1]


def test_a_node_busy_with_blocks_is_patient(bus):
    # Each takes a second to replay, and nobody is heard meanwhile.
    for _ in range(12):
        bus.log.request_finality()
    member = bus["node0"]
    for second, record in enumerate(bus.log.records):
        show_block(member, record)
        member.node.tick(second)
    assert second > 3 * ledger_node.PATIENCE_S
    assert not asks(member)
    for more in range(1, 4):
        member.node.tick(second + more)
    assert not asks(member)
    member.node.tick(second + 4)
    assert asks(member) == [1]


def test_a_node_that_hears_others_attest_is_patient(bus):
    node = bus["node0"].node
    show_block(bus["node0"], bus.log.records[0])
    node.tick(1)
    show_block(bus["node1"], bus.log.records[0])
    hear(bus["node0"], codec.encode(bus["node1"].node.outbox[0]))
    node.tick(4)
    node.tick(7.9)
    assert not asks(bus["node0"])
    node.tick(8)
    assert asks(bus["node0"]) == [1]


def test_signs_of_life_do_not_count_for_ever(bus):
    member = bus["node0"]
    show_block(member, bus.log.records[0])
    member.node.tree.is_replaying = True
    # Begun at 1: what came in less than 64 seconds counted, the last time at 64.
    demand_patience(member, 68)


def test_a_node_that_needs_long_for_a_block_gives_the_others_as_long(bus):
    member = bus["node0"]
    show_block(member, bus.log.records[0])
    for took_s in (0.1, 3.0, 0.1):
        member.node.note_replay(took_s)
    # Begun at 1: four times the longest.
    demand_patience(member, 13)


def test_a_quick_replay_does_not_make_anybody_impatient(bus):
    member = bus["node0"]
    show_block(member, bus.log.records[0])
    member.node.note_replay(0.01)
    demand_patience(member, 5)


def test_no_replay_makes_anybody_patient_for_ever(bus):
    member = bus["node0"]
    show_block(member, bus.log.records[0])
    member.node.note_replay(1e6)
    demand_patience(member, 65)
    # And it is forgotten, once there were many others.
    for _ in range(ledger_node.RECENT_REPLAYS):
        member.node.note_replay(0.01)
    assert member.node._find_patience_s() == 2 * ledger_node.PATIENCE_S


# Nothing twice


def test_a_blocks_signature_is_verified_once(bus, monkeypatch):
    member = bus["node0"]
    show_block(member, bus.log.records[0])
    record = bus.log.records[1]
    data, signature = unframe(record.value), record.header(SIGNATURE_HEADER)
    tree = member.node.tree
    asked = []
    real = tree._verify_signature

    def ask(public_key, genesis, data, signature):
        asked.append(signature)
        real(public_key, genesis, data, signature)

    monkeypatch.setattr(tree, "_verify_signature", ask)
    monkeypatch.setattr(node_blocks, "verify_event", lambda *_: asked.append("again"))
    tree.prepare(data, signature)()
    member.node.add_block(data, signature)
    assert tree.height == 1
    # The replay asked, and was told what `prepare` had found; the leaves' were new.
    assert asked.count(signature) == 1
    num_leaves = len(codec.decode_as(e.BlockSequenced, data).leaves)
    assert asked.count("again") == num_leaves


def test_one_good_signature_makes_no_other_good(bus):
    member = bus["node0"]
    show_block(member, bus.log.records[0])
    record = bus.log.records[1]
    data, signature = unframe(record.value), record.header(SIGNATURE_HEADER)
    tree = member.node.tree
    assert tree.prepare(data, signature) is not None
    bad = signature[:-1] + bytes([signature[-1] ^ 1])
    with pytest.raises(ForeignRecordError):
        tree.add(data, bad)
    other = bus.log.records[2]
    with pytest.raises(ForeignRecordError):
        tree.add(unframe(other.value), signature)
    with pytest.raises(ForeignRecordError):
        tree.verify(tree.find_hash(tree._look(data, signature).previous), data, bad)
    assert tree.add(data, signature)


def test_own_words_are_no_news_when_they_come_back(bus, monkeypatch):
    bus.run()
    node = bus["node0"].node
    said = bus.sent(e.Attestation, "node0")
    assert said
    monkeypatch.setattr(LedgerNode, "receive", None)
    for event in said:
        node.hear(codec.encode(event))


def test_the_feed_has_the_bytes_that_came(bus):
    bus.show()
    member = bus["node0"]
    said = [codec.encode(x) for x in bus["node1"].node.outbox]
    for data in said:
        member.node.hear(data)
    entries = [entry.data for entry in member.node.feed.read(0, 2**30)]
    assert set(said) <= set(entries)
    assert all(codec.encode(codec.decode(data)) == data for data in entries)


# Restart


@pytest.mark.parametrize("num_blocks", [7, 20])
def test_a_node_that_restarts_goes_on_and_says_the_same(tmp_path, num_blocks):
    log = build_log()
    bus = Bus(tmp_path, log, (*NAMES, "node4"))
    records, checkpoints = log.records, log.checkpoints
    for start in range(0, len(records), num_blocks):
        part = slice(start, start + num_blocks)
        bus.show(records=records[part], checkpoints=checkpoints[part])
        bus.settle()
        for member in bus.members.values():
            before = member.final_height, member.checkpoint, member.node.tree.height
            node = member.restart()
            assert (member.final_height, member.checkpoint, node.tree.height) == before
        bus.settle()
    assert {m.final_height for m in bus.members.values()} == {last_height(log) - 1}
    assert not any(m.node.alerts.all() for m in bus.members.values())
    said = bus.sent(e.BlockAttested)
    places = {(m.public_key, m.era, m.epoch, m.height): m.block_id for m in said}
    assert all(
        places[m.public_key, m.era, m.epoch, m.height] == m.block_id for m in said
    )


def test_a_node_without_kafka_gets_everything_from_the_others(bus):
    late = bus["node3"]
    bus.show(*(bus[name] for name in NAMES[:3]))
    bus.settle()
    assert late.final_height == last_height(bus.log) - 1
    assert late.checkpoint == bus["node0"].checkpoint


def test_all_may_crash_and_kafka_forget_what_they_attested(bus):
    bus.run()
    for member in bus.members.values():
        member.restart()
    other = short_log()
    other.admit("eve")
    bus.log.request_finality()
    bus.show(records=bus.log.records[-1:], checkpoints=bus.log.checkpoints[-1:])
    bus.settle()
    assert bus.heights() == {last_height(bus.log) - 1}


def test_an_observer_follows_and_publishes_and_says_nothing(bus):
    observer = bus.add("log", has_identity=False)
    bus.run()
    assert observer.final_height == last_height(bus.log) - 1
    assert observer.checkpoint.size == observer.node.tiles.size
    assert not bus.sent(object, "log")
    assert isinstance(observer.node.add_checkpoint(b"old 0\n"), Refusal)
    observer.node.tick(1e6)
    assert not bus.sent(object, "log")


def test_without_ledger_nodes_the_logs_own_checkpoints_are_published(tmp_path):
    log = short_log(ledger_nodes=())
    observer = Member(tmp_path, "log", log, has_identity=False)
    bus = Bus(tmp_path, log, ())
    bus.show(observer)
    assert observer.final_height == last_height(log)
    assert observer.checkpoint.size == len(log.leaves) == observer.node.tiles.size
    before = observer.checkpoint
    observer.restart()
    assert (observer.final_height, observer.checkpoint) == (last_height(log), before)


# Lies


def lying_log(**options):
    """A log with a fact that does not follow."""

    def lie(fact):
        if isinstance(fact, e.RoundStarted):
            return [replace(fact, num_drawn=fact.num_drawn - 1)]
        return [fact]

    log = LogBuilder(send_fact=lie, **options)
    log.found()
    log.admit("ada", "bea", "cleo", "dora")
    log.request_finality()
    log.finalise()
    log.request_round()
    log.request_finality()
    return log


def test_nobody_attests_a_false_fact(tmp_path):
    log = lying_log()
    bus = Bus(tmp_path, log)
    bus.run()
    bus.wait(30)
    lie = next(
        height
        for height, record in enumerate(log.records)
        if any(
            isinstance(codec.decode(codec.decode(leaf).event), e.RoundStarted)
            for leaf in codec.decode(unframe(record.value)).leaves
        )
    )
    assert bus.heights() == {lie - 2}
    for member in bus.members.values():
        assert member.node.alerts.codes() == {AlertCode.BLOCK_INVALID}
        assert max(a.height for a in bus.sent(e.BlockAttested)) == lie - 1


def fork(log):
    """Return two logs that go on differently."""
    other = log.copy()
    log.request_finality()
    log.request_finality()
    other.admit("eve")
    other.request_finality()
    return log, other


def test_a_fork_shown_to_all_costs_nothing_but_an_alert(bus):
    one, other = fork(bus.log)
    bus.run()
    bus.show(records=other.records, checkpoints=[])
    bus.settle()
    assert bus.heights() == {last_height(one) - 1}
    for member in bus.members.values():
        assert AlertCode.FORK in member.node.alerts.codes() or member.final_height


def show_split(bus, num_first):
    """Show one log to some of the nodes and another one to the others."""
    one, other = fork(bus.log)
    for number, member in enumerate(bus.members.values()):
        log = one if number < num_first else other
        bus.show(member, records=log.records, checkpoints=log.checkpoints)
    bus.settle()


def test_a_split_view_heals_without_any_waiting(bus):
    bus.run()
    (before,) = bus.heights()
    show_split(bus, 2)
    assert {request.epoch for request in bus.sent(e.EpochRequested)} == {1}
    (height,) = bus.heights()
    assert height > before
    ids = {m.node.tree.final.header.id for m in bus.members.values()}
    assert len(ids) == 1
    assert any(AlertCode.FORK in m.node.alerts.codes() for m in bus.members.values())


def test_one_node_that_was_shown_something_else_costs_no_epoch(bus):
    bus.run()
    (before,) = bus.heights()
    show_split(bus, 3)
    (height,) = bus.heights()
    assert height > before
    bus.wait(60)
    assert not bus.sent(e.EpochRequested)


def test_a_twin_is_found_out_and_the_key_signs_no_more(tmp_path):
    bus = Bus(tmp_path, short_log())
    bus.run()
    victim = bus["node3"].node
    forged = sign_attestation(
        make_key("node3"),
        victim.nodes,
        "clinics",
        0,
        make_header(victim.nodes, b"other", height=last_height(bus.log)),
    )
    for member in bus.members.values():
        member.node.receive(forged)
    assert not victim.signs
    assert AlertCode.OWN_KEY_USED_ELSEWHERE in victim.alerts.codes()
    bus.said.clear()
    bus["node3"].restart()
    assert not bus["node3"].node.signs
    bus.log.request_finality()
    bus.run()
    assert not bus.sent(e.Attestation, "node3")
    assert bus.heights() == {last_height(bus.log) - 1}
    for name in NAMES[:3]:
        (proven,) = bus.sent(e.EquivocationProven, name)
        assert proven.reported_by == make_key(name).public_key
        contradiction = identify_contradiction(proven)
        assert contradiction.public_key == make_key("node3").public_key
        assert bus[name].node.evidence == [proven]


def two_trees(log):
    """Return a checkpoint that contradicts the log's last one."""
    event = codec.decode(unframe(log.checkpoints[-1].value))
    head = parse_checkpoint(parse_note(event.checkpoint.encode()).text)
    other = Checkpoint(head.origin, head.size, bytes(32))
    note = sign_checkpoint(other, make_key("SEQUENCER"))
    return replace(event, checkpoint=note.decode())


def test_two_trees_of_one_size_are_evidence(bus):
    bus.run()
    event = two_trees(bus.log)
    for member in bus.members.values():
        member.node.receive(event)
        member.node.receive(event)
    bus.settle()
    proven = bus.sent(e.EquivocationProven)
    assert len(proven) == len(NAMES)
    for item in proven:
        contradiction = identify_contradiction(item)
        assert contradiction.offence is Offence.TWO_TREES
        assert contradiction.public_key == make_key("SEQUENCER").public_key


# The witness protocol


def signed(log, number=-1):
    """Return a checkpoint of the log: its size and the note."""
    event = codec.decode(unframe(log.checkpoints[number].value))
    note = event.checkpoint.encode()
    return parse_checkpoint(parse_note(note).text).size, note


def ask(node, old, note, proof=()):
    answer = node.add_checkpoint(format_request(old, proof, note))
    return answer.status if isinstance(answer, Refusal) else answer


def test_a_witness_cosigns_what_is_final_and_nothing_else(tmp_path):
    bus = Bus(tmp_path, short_log())
    final_at = last_height(bus.log) - 1
    # Nobody showed them the checkpoints yet.
    bus.show(checkpoints=[])
    bus.settle()
    node = bus["node0"].node
    assert node.tree.final_height == final_at
    size, note = signed(bus.log, final_at)
    _, last_note = signed(bus.log)
    assert ask(node, 0, last_note) == 503  # certified, not final
    assert ask(node, size, note) == 409
    # One at a time: each final checkpoint is cosigned, in order.
    assert ask(node, 0, note) == 503
    for height in range(final_at):
        node.receive(codec.decode(unframe(bus.log.checkpoints[height].value)))
    cosigned = node.consensus.votes.cosigned_size
    proof = node.tiles.consistency_proof(cosigned, size)
    assert cosigned < size or not proof
    line = ask(node, cosigned, note, proof if cosigned < size else ())
    assert line.startswith("— node0 ".encode())
    assert node.consensus.votes.cosigned_size == size
    assert note + line == node.last_cosigned
    # Again is no harm.
    assert ask(node, size, note) == line
    proof = ()
    assert ask(node, size, last_note, proof) in {422, 503}


def test_a_witness_is_strict(bus):
    bus.run()
    node = bus["node0"].node
    size, note = signed(bus.log)
    cosigned = node.consensus.votes.cosigned_size
    assert node.add_checkpoint(b"old x\n\n" + note).status == 400
    assert ask(node, size + 1, note) == 400
    forged = sign_checkpoint(
        Checkpoint(bus.log.origin, size, bytes(32)), make_key("mallory")
    )
    assert ask(node, cosigned, forged) == 403
    other = sign_checkpoint(
        Checkpoint("folkmoot/others", size, bytes(32)), make_key("SEQUENCER")
    )
    assert ask(node, cosigned, other) == 404
    assert ask(node, cosigned, two_trees(bus.log).checkpoint.encode()) == 422


def test_a_missing_checkpoint_does_not_end_all_cosigning(tmp_path):
    bus = Bus(tmp_path, short_log())
    bus.show(checkpoints=bus.log.checkpoints[:1] + bus.log.checkpoints[2:])
    bus.settle()
    sizes = {signed(bus.log, n)[0] for n in range(last_height(bus.log))}
    missing = signed(bus.log, 1)[0]

    def cosigned():
        notes = [x.checkpoint.encode() for x in bus.sent(e.CheckpointCosigned, "node0")]
        return {parse_checkpoint(parse_note(note).text).size for note in notes}

    bus.wait(5)
    assert cosigned() == {signed(bus.log, 0)[0]}
    bus.wait(10)
    assert cosigned() == sizes - {missing}
    assert bus["node0"].checkpoint.size == max(sizes)


# Eras


def test_a_node_that_was_cut_off_while_the_nodes_changed_catches_up(tmp_path):
    log = build_log()
    bus = Bus(tmp_path, log, (*NAMES, "node4"))
    bus.cut = {"node1"}
    bus.run()
    height = bus["node0"].final_height
    assert height == last_height(log) - 1
    bus.cut = set()
    late = bus["node1"].node
    blocks = bus["node0"].blocks
    late.add_proof(FinalityProof.from_bytes(blocks.last_proof(0)))
    bus.settle()
    assert late.tree.final_height == height
    assert late.nodes.era == 1
    assert late.signs
    bus.pull(bus["node1"])
    assert bus["node1"].checkpoint.size == bus["node0"].checkpoint.size


def test_what_was_said_of_an_era_before_it_began_here_is_kept(tmp_path):
    log = build_log()
    bus = Bus(tmp_path, log, (*NAMES, "node4"))
    bus.run()
    observer = bus.add("log", has_identity=False)
    for _, event in bus.said:  # all of it before the first block
        if not isinstance(event, e.EquivocationProven):
            with suppress(InvalidNoteError):
                observer.node.receive(event)
    bus.show(observer)
    assert observer.final_height == last_height(log) - 1
    assert observer.checkpoint.size == bus["node0"].checkpoint.size


# Founders, foreigners and strangers


def test_a_federation_of_another_founder_is_not_looked_at(tmp_path):
    log = short_log()
    mallory = make_key("mallory").public_key
    member = Member(tmp_path, "node0", log, operator_key=mallory)
    bus = Bus(tmp_path / "others", log, ())
    for record in log.records:
        show_block(member, record)
    assert member.node.tree.height == -1
    assert member.node.alerts.codes() == {AlertCode.OTHER_GENESIS}
    trusted = Member(
        tmp_path, "node1", log, operator_key=make_key("OPERATOR").public_key
    )
    bus.show(trusted)
    assert trusted.node.tree.height == last_height(log)


def test_what_the_sequencer_did_not_sign_is_passed_over(bus):
    record = bus.log.records[0]
    node = bus["node0"].node
    node.add_block(unframe(record.value), bytes(64))
    node.add_block(b"not a block", record.header(SIGNATURE_HEADER))
    assert node.tree.height == -1
    bus.run()
    node.add_block(unframe(bus.log.records[-1].value), bytes(64))
    assert not node.alerts.all()


def test_blocks_may_come_in_any_order(bus):
    bus.show(records=[bus.log.records[0], *reversed(bus.log.records[1:])])
    bus.settle()
    assert bus.heights() == {last_height(bus.log) - 1}


def test_a_message_of_another_federation_or_kind_is_refused(bus):
    bus.run()
    node = bus["node0"].node
    message = bus.sent(e.BlockAttested)[0]
    with pytest.raises(InvalidMessageError, match="federation"):
        node.receive(replace(message, federation_id="others"))
    with pytest.raises(InvalidMessageError, match="nobody tells"):
        node.receive(bus.log.leaves[0])
    with pytest.raises(InvalidMessageError):
        node.receive(replace(message, height=message.height + 1))
    before = node.feed.last
    node.receive(message)
    assert node.feed.last == before


def test_the_votes_of_another_log_stop_the_node(tmp_path):
    log, other = short_log(), short_log(reward_rule=None)
    member = Member(tmp_path, "node0", log)
    show_block(member, log.records[0])
    member.stop()
    shutil.move(member.directory / "blocks.sqlite", tmp_path / "away")
    member.start()
    with pytest.raises(VoteLogError, match="VOTE_LOG_OTHER_CHAIN"):
        show_block(member, other.records[0])


def test_a_node_that_lost_its_blocks_signs_nothing_twice(bus):
    bus.run()
    said = bus.sent(e.BlockAttested, "node0")
    member = bus["node0"]
    member.stop()
    (member.directory / "blocks.sqlite").unlink()
    shutil.rmtree(member.directory / "tiles")
    bus.said.clear()
    member.start()
    bus.log.request_finality()
    bus.run()
    proof = bus["node1"].blocks.last_proof()
    member.node.add_proof(FinalityProof.from_bytes(proof))
    bus.pull(member)
    again = bus.sent(e.BlockAttested, "node0")
    assert member.final_height == last_height(bus.log) - 1
    assert again == [said[-1]]
    bus.log.request_finality()
    bus.run()
    assert bus.sent(e.BlockAttested, "node0")[-1].height == last_height(bus.log)


def test_a_store_that_was_altered_is_refused(bus):
    bus.run()
    member = bus["node0"]
    member.stop()
    other = bus["node1"].blocks
    block = other.final_block(1)
    path = member.directory / "blocks.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE blocks SET data = ? WHERE height = 0", (block.data,))
    connection.close()
    with pytest.raises(BlockStoreError, match="does not follow"):
        member.start()


def test_tiles_of_another_log_are_refused(bus):
    bus.run()
    member = bus["node0"]
    member.stop()
    shutil.rmtree(member.directory / "tiles")
    other = Member(bus.directory, "log", build_log(ledger_nodes=()), has_identity=False)
    Bus(bus.directory / "x", build_log(ledger_nodes=()), ()).show(other)
    shutil.copytree(other.directory / "tiles", member.directory / "tiles")
    with pytest.raises(TileStoreError, match="another log"):
        member.start()


# Hearing


def count_checks(monkeypatch):
    """Count the signatures of nodes that are verified."""
    checked = []
    real = attestations.check_signature

    def check(*arguments):
        checked.append(arguments)
        real(*arguments)

    monkeypatch.setattr(attestations, "check_signature", check)
    return checked


def test_what_was_heard_is_not_verified_again(bus, monkeypatch):
    bus.run()
    log, late = bus.log, bus.add("log", has_identity=False)
    for record in log.records:
        show_block(late, record)
    checked = count_checks(monkeypatch)
    message = codec.encode(bus.sent(e.BlockAttested, "node1")[-1])
    for _ in range(7):
        late.node.hear(message)
    assert len(checked) == 1


def test_what_is_heard_must_be_a_message(bus):
    bus.run()
    node = bus["node0"].node
    with pytest.raises(codec.CodecError):
        node.hear(b"")
    leaf = codec.decode_as(e.BlockSequenced, unframe(bus.log.records[0].value)).leaves
    with pytest.raises(InvalidMessageError, match="nobody tells a ledger node a Leaf"):
        node.hear(leaf[0])
    bad = codec.encode(replace(bus.sent(e.BlockAttested)[0], height=99))
    for _ in range(2):  # it is refused each time
        with pytest.raises(InvalidMessageError):
            node.hear(bad)


def test_what_anybody_says_of_eras_to_come_takes_little_memory(bus, monkeypatch):
    """No signature of it can be looked at yet."""
    monkeypatch.setattr(ledger_node, "MAX_EARLY_SIZE_BYTES", 2**20)
    node = bus["node0"].node
    signatures = tuple(
        e.NodeSignature(public_key=bytes([i]) * 32, signature=bytes(64))
        for i in range(250)
    )
    tracemalloc.start()
    try:
        for epoch in range(120):
            said = e.EpochRequested(
                federation_id=node.federation_id,
                era=9,
                epoch=epoch,
                high=e.QuorumCertificate(
                    era=9, epoch=0, height=0, block_id=bytes(32), signatures=signatures
                ),
                public_key=bytes(32),
                signature=bytes(64),
            )
            node.hear(codec.encode(said))
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 1.5 * 2**20  # of 3 MB that came, and 10 MB that they stand for


def test_what_was_heard_is_remembered_for_a_while(bus, monkeypatch):
    monkeypatch.setattr(ledger_node, "MAX_HEARD", 2)
    bus.run()
    node = bus["node0"].node
    for message in bus.sent(e.BlockAttested)[:5]:
        node.hear(codec.encode(message))
    assert len(node._heard) == 2


def test_what_came_before_its_era_may_come_again(bus, monkeypatch):
    monkeypatch.setattr(ledger_node, "MAX_EARLY", 1)
    bus.run()
    late = bus.add("log", has_identity=False)
    said = [codec.encode(message) for message in bus.sent(e.BlockAttested)]
    for message in said:
        late.node.hear(message)
    for record in bus.log.records:
        show_block(late, record)
    assert late.final_height < last_height(bus.log) - 1
    for message in said:
        late.node.hear(message)
    assert late.final_height == last_height(bus.log) - 1


def test_what_comes_before_its_era_is_bounded_in_bytes(bus, monkeypatch):
    """Nobody knows yet whose word counts in it: a stranger may say such things."""
    bus.run()
    node = bus["node0"].node
    signature = e.NodeSignature(public_key=bytes(32), signature=bytes(64))
    high = e.QuorumCertificate(
        era=9, epoch=0, height=0, block_id=bytes(32), signatures=(signature,) * 100
    )
    said = [
        codec.encode(
            e.EpochRequested(
                federation_id=node.federation_id,
                era=9,
                epoch=epoch,
                high=high,
                public_key=bytes(32),
                signature=bytes(64),
            )
        )
        for epoch in range(20)
    ]
    monkeypatch.setattr(ledger_node, "MAX_EARLY_SIZE_BYTES", 5 * len(said[0]))
    for message in said:
        node.hear(message)
    assert [codec.decode(data).epoch for data in node._early] == [15, 16, 17, 18, 19]
    assert all(len(known) == 32 for known in node._heard)


def test_a_message_of_another_kind_is_not_decoded(bus, monkeypatch):
    """A block of a thousand empty leaves, say; its sender chooses what it costs."""
    bus.run()
    block = unframe(bus.log.records[0].value)
    monkeypatch.setattr(codec, "decode", None)
    with pytest.raises(InvalidMessageError, match="a ledger node a BlockSequenced"):
        bus["node0"].node.hear(block)


def test_without_nodes_a_checkpoint_may_come_before_its_block(tmp_path):
    log = LogBuilder(ledger_nodes=())
    log.found()
    bus = Bus(tmp_path, log, ("log",), has_identity=False)
    member = bus["log"]
    member.node.hear(unframe(log.checkpoints[0].value))
    assert member.checkpoint is None
    show_block(member, log.records[0])
    assert member.checkpoint.size == 1


def test_between_two_ticks_it_publishes_once(tmp_path):
    log = LogBuilder(ledger_nodes=())
    log.found()
    log.admit("ada")
    log.admit("bea")
    bus = Bus(tmp_path, log, ("log",), has_identity=False)
    member = bus["log"]
    bus.show(records=log.records[:1], checkpoints=log.checkpoints[:1])
    assert member.checkpoint.size == 1
    member.node.tick(1)
    sizes = []
    for record, checkpoint in zip(log.records[1:], log.checkpoints[1:], strict=True):
        bus.show(records=[record], checkpoints=[checkpoint])
        sizes.append(member.checkpoint.size)
    first, *_, last = sizes
    assert last == first < log.state.log.chain.size
    member.node.tick(2)
    assert member.checkpoint.size == log.state.log.chain.size
