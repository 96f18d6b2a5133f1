"""Loops over what others made take the next item, whatever one of them does.

ADR 0047. The exporter's, the agent's and the aggregator's loops have tests of their
own, beside everything else that these do.
"""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from adapters.kafka import END, KafkaUnavailableError, Record
from consumers.node.loop import NodeLoop
from producers import timer as timers
from producers.agent import receipts
from producers.timer import Timer
from schemas import codec, topics
from schemas import events as e
from streams import sequencer as sequencers
from streams.sequencer import Sequencer

KINDS = (
    *(ZeroDivisionError, AssertionError, AttributeError, IndexError, KeyError),
    *(RecursionError, TypeError, ValueError, UnicodeError),
)
ITEMS = (b"first", b"second", b"third")


def record(offset, value):
    return Record(
        topic=topics.ATTESTATIONS, partition=0, offset=offset, key=b"clinics",
        value=value, headers=(),
    )  # fmt: skip


class Reader:
    """Reads items; the second one makes it fail."""

    def __init__(self, error):
        self.error = error
        self.taken = []

    def __call__(self, data, *_):
        if data == ITEMS[1]:
            raise self.error
        self.taken.append(data)
        return data

    unframe_trusted = __call__


def take_attestations(reader, monkeypatch):
    timer = Timer.__new__(Timer)
    timer._federation_id, timer._registry = "clinics", reader
    timer._cosigned = timer._nodes = None
    timer._num_passed_over = 0
    monkeypatch.setattr(timer, "_collector", lambda: None)
    monkeypatch.setattr(timers.codec, "kind_of", lambda _: None)
    timer._collect(iter([*(record(n, x) for n, x in enumerate(ITEMS)), END]))


def take_checkpoints(reader, monkeypatch):
    sequencer = Sequencer.__new__(Sequencer)
    key = SimpleNamespace(public_key=b"")
    sequencer._service = SimpleNamespace(settings=None, registry=reader, key=key)
    records = [record(n, x) for n, x in enumerate(ITEMS)]
    monkeypatch.setattr(sequencers, "read_partition", lambda *_: iter(records))
    sequencer._find_signed_heights(0)


def take_messages(reader, _monkeypatch):
    loop = NodeLoop.__new__(NodeLoop)
    loop.node = SimpleNamespace(hear=reader)
    loop._hear(ITEMS)


def take_leaves(reader, monkeypatch):
    keeper = receipts.ReceiptKeeper.__new__(receipts.ReceiptKeeper)
    keeper._public_key, keeper._on_answer = b"key", lambda leaf: reader(leaf.name)
    agents = {"ada": SimpleNamespace(public_key=b"key")}
    keeper._admission = SimpleNamespace(agents=agents)
    monkeypatch.setattr(receipts, "fold_admission", lambda state, _: state)
    leaf = e.AgentRevoked(federation_id="clinics", agent_id="ada", explanation="")
    keeper._learn(
        SimpleNamespace(
            leaves=[
                SimpleNamespace(
                    name=name, sequenced=SimpleNamespace(event=leaf, leaf_index=n)
                )
                for n, name in enumerate(ITEMS)
            ]
        )
    )


LOOPS = {
    "a timer's attestations": take_attestations,
    "a sequencer's checkpoints": take_checkpoints,
    "a ledger node's messages": take_messages,
    "an agent's leaves": take_leaves,
}
NAMES = [kind.__name__ for kind in KINDS]


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("name", LOOPS)
def test_an_item_that_fails_costs_itself_alone(name, kind, monkeypatch):
    reader = Reader(kind("as nobody foresaw"))
    LOOPS[name](reader, monkeypatch)
    assert reader.taken == [ITEMS[0], ITEMS[2]]


@pytest.mark.parametrize(
    "error", [KafkaUnavailableError("silent"), ConnectionResetError(), MemoryError()]
)
@pytest.mark.parametrize("name", LOOPS)
def test_an_outage_is_no_items_fault(name, error, monkeypatch):
    """Whoever meets it ends, or waits: nothing is passed over meanwhile."""
    reader = Reader(error)
    with pytest.raises(type(error)):
        LOOPS[name](reader, monkeypatch)
    assert reader.taken == [ITEMS[0]]


def test_what_is_foreseen_is_passed_over_too(monkeypatch):
    for name, take in LOOPS.items():
        reader = Reader(codec.CodecError("malformed"))
        with monkeypatch.context() as patch:
            take(reader, patch)
        assert reader.taken == [ITEMS[0], ITEMS[2]], name
