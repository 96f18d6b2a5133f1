"""kill -9 at every point where a ledger node writes or sends (ledger spec, 2.7).

The node runs in a process of its own, which kills itself at a named point; then it is
started again on what is left. Whatever it said, over all its lives, contradicts
nothing, and it catches up.
"""

import os
import signal
import traceback
from contextlib import suppress
from itertools import combinations
from unittest.mock import patch

import pytest

from adapters.block_store import BlockStore
from adapters.tile_store import TileStore
from adapters.vote_log import VoteLog
from consumers.node.ledger_node import LedgerNode
from ledger.attestations import order
from ledger.checkpoint import parse_checkpoint
from ledger.equivocation import find_contradiction
from ledger.note import InvalidNoteError, parse_note
from schemas import codec
from schemas import events as e
from tests.builders import build_log, unframe
from tests.identities import make_identity
from tests.unit.consumers.node.test_ledger_node import (
    NOW_S,
    Bus,
    short_log,
    show_block,
    unframe_refused,
)

VICTIM = "node2"
IN_A_TILE = "in the middle of a tile"
POINTS = (
    "before the vote is durable",
    "after the vote is durable",
    "after a message is sent",
    "between QC receipt and highQC write",
    "before a block is stored",
    "after a block is stored",
    "before a block is marked final",
    "between FINAL and the tiles",
    "before a tile is written",
    IN_A_TILE,
    "before a checkpoint is published",
    "between FINAL and COSIG",
)


OPEN = os.fdopen


class Script:
    """What the others said and the log showed, in an order that is always the same."""

    def __init__(self, directory, log, names):
        self.log = log
        bus = Bus(directory, log, names)
        self.steps = []
        self.final = []
        for record, checkpoint in zip(log.records, log.checkpoints, strict=True):
            bus.show(records=[record], checkpoints=[checkpoint])
            bus.said.clear()
            bus.settle()
            others = [event for name, event in bus.said if name != VICTIM]
            self.steps.append((record, checkpoint, others))
        # A stall in the end: an epoch begins.
        log.request_finality()
        bus.cut = {VICTIM, "node3"}
        bus.said.clear()
        bus.show(*(bus[n] for n in names[:2]), records=log.records[-1:], checkpoints=[])
        bus.wait(6)
        self.epoch = [event for name, event in bus.said if name != VICTIM]
        self.height = bus[VICTIM].final_height


class Death:
    """Kills this process when a point is reached for the n-th time."""

    def __init__(self, point, count):
        self.point = point
        self.count = count

    def __call__(self, point):
        if point == self.point:
            self.count -= 1
            if self.count == 0:
                os.kill(os.getpid(), signal.SIGKILL)


def open_half(death, descriptor, mode):
    """Open a file that may kill the process when half of its bytes are on the disk."""
    file = OPEN(descriptor, mode, buffering=0)

    class Half:
        def __enter__(self):
            return self

        def __exit__(self, *_):
            file.close()

        def write(self, data):
            file.write(data[: len(data) // 2])
            os.fsync(file.fileno())
            death(IN_A_TILE)
            file.write(data[len(data) // 2 :])

        flush = file.flush
        fileno = file.fileno

    return Half()


def mortal(directory, death):
    """Return a node whose stores may kill the process."""

    class Node(LedgerNode):
        highest = (-1, -1)

        def _apply(self, effects):
            # What was heard completed a certificate. It is in no vote before the child
            # is attested: in this step if the child is here, or in a later one.
            own = self._votes.votes
            high = self.consensus.high
            if own is not None and order(high) > max(order(own.high), self.highest):
                self.highest = order(high)
                death("between QC receipt and highQC write")
            super()._apply(effects)

    class Votes(VoteLog):
        def store(self, votes):
            death("before the vote is durable")
            is_cosigning = self.votes and votes.cosigned_size > self.votes.cosigned_size
            super().store(votes)
            death("after the vote is durable")
            if is_cosigning:
                death("between FINAL and COSIG")

    class Blocks(BlockStore):
        def add(self, block):
            death("before a block is stored")
            super().add(block)
            death("after a block is stored")

        def finalise(self, block_id, proof):
            death("before a block is marked final")
            super().finalise(block_id, proof)
            death("between FINAL and the tiles")

    class Tiles(TileStore):
        def _write(self, name, data):
            death("before a tile is written")
            with patch.object(os, "fdopen", lambda *a: open_half(death, *a)):
                super()._write(name, data)

        def publish(self, signed_note):
            death("before a checkpoint is published")
            super().publish(signed_note)

    return Node(
        "clinics",
        votes=Votes(directory),
        blocks=Blocks(directory / "blocks.sqlite"),
        tiles=Tiles(directory / "tiles", sync=death.point == IN_A_TILE),
        unframe=unframe_refused,
        clock=lambda: NOW_S,
    )


def live(directory, script, death):
    """Run the victim through the script; what it says goes to a file."""
    node = mortal(directory, death)

    class Reader:
        pass

    reader = Reader()
    reader.node = node
    with (directory / "sent").open("a") as sent:

        def send():
            while node.outbox:
                sent.write(codec.encode(node.outbox.popleft()).hex() + "\n")
                sent.flush()
                death("after a message is sent")

        def hear(event):
            # A cosignature of an era that is over.
            with suppress(InvalidNoteError):
                node.receive(event)
            send()

        send()
        for record, checkpoint, others in script.steps:
            show_block(reader, record)
            send()
            hear(codec.decode(unframe(checkpoint.value)))
            for event in others:
                hear(event)
        for second in range(6):
            node.tick(second)
            send()
        for event in script.epoch:
            hear(event)
    return node


def run_child(directory, script, point, count):
    """Return whether the child came to its end."""
    pid = os.fork()
    if pid == 0:
        try:
            live(directory, script, Death(point, count))
        except BaseException:  # noqa: BLE001  # a child of ours must not go on
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.WEXITSTATUS(status) == 0, "the node failed; its traceback is above"
    return True


def check_said(directory):
    """Check that nothing the victim ever said contradicts anything."""
    lines = (directory / "sent").read_text().split()
    said = {bytes.fromhex(line): codec.decode(bytes.fromhex(line)) for line in lines}
    messages = sorted(
        (m for m in said.values() if isinstance(m, e.BlockAttested | e.EpochRequested)),
        key=lambda m: (isinstance(m, e.EpochRequested), getattr(m, "height", 0)),
    )
    for size in (2, 3):
        for some in combinations(messages, size):
            assert find_contradiction(some) is None
    roots = {}
    for event in said.values():
        if isinstance(event, e.CheckpointCosigned):
            head = parse_checkpoint(parse_note(event.checkpoint.encode()).text)
            assert roots.setdefault(head.size, head.root) == head.root
    return messages, roots


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    log = short_log()
    log.request_finality()
    names = ("node0", "node1", "node2", "node3")
    return Script(tmp_path_factory.mktemp("others"), log, names)


@pytest.fixture(scope="module")
def unharmed(script, tmp_path_factory):
    """What the victim says when nobody kills it."""
    directory = tmp_path_factory.mktemp("unharmed") / VICTIM
    make_identity(directory, VICTIM)
    assert run_child(directory, script, "never", 0)
    return check_said(directory)


def test_the_script_has_everything_in_it(unharmed, script):
    messages, roots = unharmed
    assert any(isinstance(m, e.EpochRequested) for m in messages)
    assert script.height >= 3
    assert len(roots) == script.height + 1


@pytest.mark.parametrize("point", POINTS)
def test_a_kill_changes_nothing_that_is_said(tmp_path, script, unharmed, point):
    count = 0
    while True:
        count += 1
        directory = tmp_path / str(count) / VICTIM
        make_identity(directory, VICTIM)
        was_killed = not run_child(directory, script, point, count)
        if was_killed and point == IN_A_TILE:
            assert list((directory / "tiles").rglob("*.draft"))
        # Again, so that recovery is interrupted at the same point too.
        run_child(directory, script, point, 1)
        assert run_child(directory, script, "never", 0)
        _, roots = check_said(directory)
        assert set(roots) == set(unharmed[1])
        node = live(directory, script, Death("never", 0))
        assert node.tree.final_height == script.height
        assert node.tiles.size == node.tree.final.header.tree_size
        assert node.signs
        assert not node.alerts.all()
        if not was_killed:
            break
    assert count > 1, "this point was never reached"


def test_a_kill_in_a_change_of_the_nodes(tmp_path):
    log = build_log()
    names = ("node0", "node1", "node2", "node3", "node4")
    script = Script(tmp_path / "others", log, names)
    for number, count in enumerate((40, 70)):
        directory = tmp_path / str(number) / VICTIM
        make_identity(directory, VICTIM)
        run_child(directory, script, "after the vote is durable", count)
        node = live(directory, script, Death("never", 0))
        assert node.tree.final_height == script.height
        assert node.nodes.era == 1
        assert node.signs
        check_said(directory)
