"""A federation's log: blocks built, opened, verified."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from ledger.blocks import Chain, plan_block
from ledger.merkle import leaf_hash
from protocol import log
from protocol.admission import Received
from protocol.envelope import sign_event
from protocol.log import (
    ForeignRecordError,
    LogError,
    LogState,
    NewBlock,
    SequencerState,
    open_block,
    read_block,
    sequence,
)
from schemas import codec
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    CONFIG,
    FEDERATION,
    GENESIS,
    NOW_MS,
    Records,
    admitted,
    make_key,
    request,
    update,
)

SEQUENCER = make_key("SEQUENCER")


class Log:
    """The sequencer of one federation and the blocks it made."""

    def __init__(self) -> None:
        self.make = Records()
        self.state = SequencerState()
        self.blocks: list[NewBlock] = []

    def append(self, *batch: Received, now_ms: int = NOW_MS) -> list[e.EventRejected]:
        self.state, block, refused = sequence(
            self.state, batch, key=SEQUENCER, now_ms=now_ms
        )
        if block is not None:
            self.blocks.append(block)
        return refused

    def say(self, *events: e.LedgerEvent, now_ms: int = NOW_MS) -> NewBlock:
        assert self.append(*self.make.records(events), now_ms=now_ms) == []
        return self.blocks[-1]


def founded() -> Log:
    made = Log()
    made.say(CONFIG)
    made.say(admitted("ana"), admitted("bea"), now_ms=NOW_MS + 5)
    return made


def follow(blocks: list[NewBlock]) -> LogState:
    state = LogState()
    for block in blocks:
        state, _, _ = open_block(state, block.data, block.signature)
    return state


def test_what_was_sequenced_can_be_opened() -> None:
    made = founded()
    before = follow(made.blocks[:1])
    after, block, opened = open_block(
        before, made.blocks[1].data, made.blocks[1].signature
    )
    assert block == made.blocks[1].event
    assert [leaf.sequenced.event for leaf in opened] == [
        admitted("ana"),
        admitted("bea"),
    ]
    assert [leaf.sequenced.leaf_index for leaf in opened] == [1, 2]
    assert [leaf.sequenced.leaf_hash for leaf in opened] == [
        leaf_hash(data) for data in block.leaves
    ]
    assert {leaf.sequenced.sequenced_at_ms for leaf in opened} == {NOW_MS + 5}
    assert {leaf.sequenced.previous_block_hash for leaf in opened} == {
        before.chain.previous_block_hash
    }
    assert after == made.state.log
    assert after.federation_id == FEDERATION


def test_reading_is_what_writing_was() -> None:
    """Recovery and live share one fold."""
    made = founded()
    made.append(made.make.record(request(0)))
    made.say(request(1), update("ana"))
    state = SequencerState()
    for block in made.blocks:
        state = read_block(state, block.data, block.signature)
    assert state == made.state


def test_nothing_new_makes_no_block() -> None:
    made = founded()
    received = made.make.record(request(1))
    made.append(received)
    before = made.state
    assert made.append(received) == []
    assert made.append() == []
    assert made.state == before
    assert len(made.blocks) == 3


def test_a_refusal_is_published_and_is_a_leaf() -> None:
    made = founded()
    (refusal,) = made.append(made.make.record(request(0)))
    assert refusal.reason == Reason.INVALID_FIELD
    _, _, opened = open_block(
        follow(made.blocks[:2]), made.blocks[2].data, made.blocks[2].signature
    )
    assert [leaf.sequenced.event for leaf in opened] == [refusal]


def test_a_refusal_before_the_genesis_is_published_only() -> None:
    made = Log()
    (refusal,) = made.append(made.make.record(request(1)))
    assert (refusal.federation_id, refusal.reason) == ("", Reason.UNKNOWN_FEDERATION)
    assert made.blocks == []
    assert made.state == SequencerState()


def test_a_federation_that_names_another_sequencer_is_not_founded() -> None:
    """Its own readers would refuse its first block."""
    made = Log()
    principals = tuple(
        replace(p, public_key=make_key("eve").public_key)
        if p.role == "SEQUENCER"
        else p
        for p in CONFIG.principals
    )
    other = replace(CONFIG, principals=principals)
    (refusal,) = made.append(made.make.record(other))
    assert refusal.reason == Reason.INVALID_CONFIGURATION
    assert made.blocks == []
    made.say(CONFIG)


def test_leaves_come_in_the_order_they_were_read() -> None:
    made = founded()
    batch = [
        replace(made.make.record(update("ana")), traceparent="one"),
        replace(made.make.record(request(0)), traceparent="two"),
        made.make.record(update("ana")),
        replace(made.make.record(request(1)), traceparent="four"),
    ]
    refused = made.append(*batch)
    block = made.blocks[-1].event
    events = [
        codec.decode(codec.decode_as(e.Leaf, data).event) for data in block.leaves
    ]
    assert events == [update("ana"), refused[0], refused[1], request(1)]
    assert block.traceparents == ("one", "two", "", "four")


def test_the_logs_time_does_not_go_back_when_the_clock_does() -> None:
    made = founded()
    assert made.say(request(1), now_ms=0).event.sequenced_at_ms == NOW_MS + 5
    assert made.say(request(2), now_ms=NOW_MS + 6).event.sequenced_at_ms == NOW_MS + 6


def test_the_same_inputs_make_the_same_bytes() -> None:
    assert founded().blocks == founded().blocks


# What is refused


def forge(
    made: Log,
    events: list[e.LedgerEvent | e.Leaf],
    *,
    signer: str = "SEQUENCER",
    encode: Callable[[e.Leaf], bytes] = codec.encode,
    **changes: Any,
) -> tuple[bytes, bytes]:
    """Return a next block that follows all rules but the ones that are broken here."""
    chain = changes.pop("chain", made.state.log.chain)
    leaves = []
    for event in events:
        data = codec.encode(event)
        leaf = e.Leaf(
            event=data,
            signature=sign_event(SEQUENCER, GENESIS, data),
            source_topic="t",
            source_partition=0,
            source_offset=0,
        )
        leaves.append(encode(leaf))
    plan = plan_block(chain, leaves, chain.sequenced_at_ms)
    block = e.BlockSequenced(
        federation_id=FEDERATION,
        height=plan.header.height,
        previous_block_hash=plan.header.previous_block_hash,
        first_leaf_index=plan.header.first_leaf_index,
        leaves=tuple(leaves),
        tree_root=plan.header.tree_root,
        sequenced_at_ms=plan.header.sequenced_at_ms,
        traceparents=("",) * len(leaves),
    )
    data = codec.encode(replace(block, **changes))
    return data, sign_event(make_key(signer), GENESIS, data)


def fail(made: Log, data: bytes, signature: bytes | None) -> LogError:
    before = made.state.log
    with pytest.raises(LogError) as caught:
        open_block(before, data, signature)
    with pytest.raises(LogError):
        read_block(made.state, data, signature)
    return caught.value


def test_the_forge_makes_good_blocks() -> None:
    made = founded()
    data, signature = forge(made, [request(1)])
    open_block(made.state.log, data, signature)


@pytest.mark.parametrize("data", [b"", b"x", b"a block of anybody's"])
def test_what_the_sequencer_did_not_sign_is_not_decoded(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = founded()
    monkeypatch.setattr(codec, "decode", None)
    error = fail(made, data, bytes(64))
    assert isinstance(error, ForeignRecordError)
    assert "did not sign" in str(error)


@pytest.mark.parametrize("data", [b"", b"x", codec.encode(request(1))])
def test_only_blocks_are_on_the_ledger(data: bytes) -> None:
    assert fail(founded(), data, sign_event(SEQUENCER, GENESIS, data)).height == -1


def test_every_block_is_the_sequencers() -> None:
    made = founded()
    data, _ = forge(made, [request(1)])
    for signature in (
        None,
        b"",
        bytes(64),
        sign_event(make_key("OPERATOR"), GENESIS, data),
    ):
        error = fail(made, data, signature)
        # What it says is not read: it may be anybody's.
        assert error.height == -1
        assert error.leaf_index is None


@pytest.mark.parametrize(
    "changes",
    [
        {"height": 1},
        {"height": 3},
        {"height": -1},
        {"previous_block_hash": bytes(32)},
        {"first_leaf_index": 0},
        {"first_leaf_index": 4},
        {"tree_root": bytes(32)},
        {"sequenced_at_ms": NOW_MS},
        {"sequenced_at_ms": -1},
        {"leaves": (), "traceparents": ()},
        {"traceparents": ()},
        {"traceparents": ("", "")},
        {"federation_id": "banks"},
    ],
)
def test_a_block_must_be_the_next(changes: dict[str, Any]) -> None:
    made = founded()
    assert fail(made, *forge(made, [request(1)], **changes)).expected is not None


def test_a_log_cannot_become_another_federations() -> None:
    made = founded()
    other = replace(request(1), federation_id="banks")
    error = fail(made, *forge(made, [other], federation_id="banks"))
    assert (error.expected, error.found) == (FEDERATION, "banks")
    error = fail(made, *forge(made, [request(1), other]))
    assert error.leaf_index == 4


def test_a_leaf_of_another_federation_does_not_belong() -> None:
    made = founded()
    leaves: list[e.LedgerEvent | e.Leaf] = [
        request(1),
        replace(request(2), federation_id="banks"),
    ]
    assert fail(made, *forge(made, leaves)).leaf_index == 4


@pytest.mark.parametrize(
    "event",
    [
        e.Leaf(
            event=b"",
            signature=bytes(64),
            source_topic="",
            source_partition=0,
            source_offset=0,
        ),
        e.CheckpointSigned(federation_id=FEDERATION, height=0, checkpoint=""),
        founded().blocks[0].event,
    ],
    ids=["leaf", "checkpoint", "block"],
)
def test_a_leaf_holds_an_event_of_the_ledger(event: Any) -> None:
    made = founded()
    assert fail(made, *forge(made, [request(1), event])).leaf_index == 4


@pytest.mark.parametrize(
    "encode",
    [
        lambda leaf: b"",
        lambda leaf: leaf.event,
        lambda leaf: codec.encode(leaf) + b"\0",
        lambda leaf: codec.encode(replace(leaf, event=b"x")),
        lambda leaf: codec.encode(replace(leaf, event=leaf.event + b"\0")),
    ],
    ids=["empty", "bare", "longer", "no event", "longer event"],
)
def test_every_leaf_must_decode(encode: Callable[[e.Leaf], bytes]) -> None:
    made = founded()
    assert fail(made, *forge(made, [request(1)], encode=encode)).leaf_index == 3


def test_a_log_begins_with_its_genesis() -> None:
    made = Log()
    wrong: list[list[e.LedgerEvent | e.Leaf]] = [[request(1)], [request(1), CONFIG]]
    for events in wrong:
        error = fail(made, *forge(made, events))
        assert error.leaf_index == 0
    roles = tuple(p for p in CONFIG.principals if p.role != "SEQUENCER")
    error = fail(made, *forge(made, [replace(CONFIG, principals=roles)]))
    assert error.leaf_index == 0
    fail(made, *forge(made, [CONFIG], signer="OPERATOR"))
    open_block(LogState(), *forge(made, [CONFIG]))


def test_a_block_is_not_read_twice_and_none_is_left_out() -> None:
    made = founded()
    block = made.say(request(1))
    fail(made, block.data, block.signature)
    made.state = replace(made.state, log=follow(made.blocks[:1]))
    fail(made, block.data, block.signature)


def test_a_fork_is_not_followed() -> None:
    made, other = founded(), founded()
    made.say(request(1))
    other.say(update("ana"))
    block = other.say(request(1))
    fail(made, block.data, block.signature)


def test_any_flipped_bit_of_a_block_is_noticed() -> None:
    made = founded()
    data, signature = forge(made, [request(1)])
    for index in range(0, len(data), 3):
        flipped = bytearray(data)
        flipped[index] ^= 1 << index % 8
        fail(made, bytes(flipped), signature)


def test_hashes_are_shown_in_hex_and_numbers_in_decimal() -> None:
    assert log.show(b"\x01\xff") == "01ff"
    assert log.show(17) == "17"
    assert Chain().height == 0
