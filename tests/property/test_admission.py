"""Properties of the sequencer: recovery is live, batches do not matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from protocol import admission
from protocol.admission import AdmissionState, Admitted, Dropped, Received, Refused
from protocol.log import NewBlock, SequencerState, open_block, read_block, sequence
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    BASE,
    CONFIG,
    NOW_MS,
    Records,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    enrolment,
    evaluation,
    exported,
    make_key,
    request,
    revoked,
    update,
)

SEQUENCER = make_key("SEQUENCER")
agents = st.sampled_from(["ana", "bea", "eve"])
numbers = st.integers(0, 2)
GENESIS = Records().record(CONFIG)


def fact(cause: int, place: int) -> e.RoundAbandoned:
    return e.RoundAbandoned(
        federation_id=CONFIG.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=cause,
        output_index=place,
        reason="",
        detail="",
    )


def other_fact(cause: int, place: int) -> e.ModelVersionRegistered:
    return e.ModelVersionRegistered(
        federation_id=CONFIG.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=cause,
        output_index=place,
        version=1,
        parent_version=0,
        model=BASE,
        onnx=BASE,
        no_onnx="",
        evaluation=evaluation(1),
        no_evaluation="",
        registered_at_ms=1,
    )


events = st.one_of(
    st.just(CONFIG),
    st.just(replace(CONFIG, min_cohort=0)),
    st.builds(enrolment, agents),
    st.builds(admitted, agents),
    st.builds(revoked, agents),
    st.builds(request, numbers),
    st.builds(deadline, numbers),
    st.builds(update, agents, numbers),
    st.builds(declined, agents, numbers),
    st.builds(checked, st.integers(0, 3)),
    st.just(aggregate(2, 20)),
    st.just(exported(1, BASE)),
    st.builds(fact, st.integers(-1, 8), st.integers(-1, 2)),
    st.builds(other_fact, st.integers(-1, 8), st.integers(-1, 2)),
)
changes: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.just({}),
    st.just({}),
    st.fixed_dictionaries({"signer": st.sampled_from(["eve", "OPERATOR"])}),
    st.just({"signature": None}),
    st.just({"event": b"?"}),
    st.just({"event": None, "problem": (Reason.NOT_FRAMED, "")}),
    st.just({"key": b"banks"}),
    st.fixed_dictionaries({"topic": st.sampled_from(topics.SEQUENCED_TOPICS)}),
)


@st.composite
def histories(draw: st.DrawFn) -> list[Received]:
    """Return what a sequencer may read: anything by anybody, some of it again."""
    make = Records()
    read: list[Received] = []
    if draw(st.sampled_from([True, True, True, False])):
        read += make.records([CONFIG, admitted("ana"), admitted("bea")])
    for event, how in draw(st.lists(st.tuples(events, changes), max_size=25)):
        read.append(make.record(event, **how))
        if draw(st.sampled_from([True, False, False])):
            # Read again: the same records from some point on.
            read += read[-draw(st.integers(1, 4)) :]
    return read


class Sequencer:
    """A sequencer, its blocks, and every verdict."""

    def __init__(self) -> None:
        self.state = SequencerState()
        self.blocks: list[NewBlock] = []

    def append(self, batch: Sequence[Received]) -> None:
        self.state, block, _ = sequence(self.state, batch, key=SEQUENCER, now_ms=NOW_MS)
        if block is not None:
            self.blocks.append(block)

    @property
    def leaves(self) -> list[bytes]:
        return [leaf for block in self.blocks for leaf in block.event.leaves]

    def recover(self) -> SequencerState:
        state = SequencerState()
        for block in self.blocks:
            state = read_block(state, block.data, block.signature)
        return state


def cut(read: list[Received], data: st.DataObject) -> list[list[Received]]:
    places = sorted(data.draw(st.sets(st.integers(0, len(read)))))
    bounds = [0, *places, len(read)]
    return [read[a:b] for a, b in pairwise(bounds)]


@settings(max_examples=150)
@given(histories(), st.data())
def test_how_records_are_batched_changes_no_leaf(
    read: list[Received], data: st.DataObject
) -> None:
    one, many, single = Sequencer(), Sequencer(), Sequencer()
    one.append(read)
    for batch in cut(read, data):
        many.append(batch)
    for record in read:
        single.append([record])
    assert one.leaves == many.leaves == single.leaves


def test_what_no_log_has_moves_no_offset() -> None:
    """What came before the founding may come again after it, as a leaf."""
    make = Records()
    early = make.record(enrolment("ana"), signer="eve")
    other = make.record(enrolment("bea"), key=b"banks")
    read = [early, *make.records([CONFIG]), other, early]
    one, single = Sequencer(), Sequencer()
    one.append(read)
    for record in read:
        single.append([record])
    assert one.leaves == single.leaves
    assert len(one.leaves) == 2


@settings(max_examples=150)
@given(histories(), st.data())
def test_recovery_is_live(read: list[Received], data: st.DataObject) -> None:
    sequencer = Sequencer()
    for batch in cut(read, data):
        sequencer.append(batch)
        assert sequencer.recover() == sequencer.state


@settings(max_examples=150)
@given(histories(), st.data())
def test_a_crash_loses_and_doubles_nothing(
    read: list[Received], data: st.DataObject
) -> None:
    """Whatever was committed of the offsets: what the log has seen is dropped."""
    read = [record for record in read if record != GENESIS]
    calm, crashing = Sequencer(), Sequencer()
    for sequencer in (calm, crashing):
        sequencer.append([GENESIS])
    calm.append(read)
    place = 0
    while place < len(read):
        start = data.draw(st.integers(0, place))
        place = min(place + data.draw(st.integers(1, 10)), len(read))
        crashing.state = crashing.recover()
        crashing.append(read[start:place])
    assert crashing.leaves == calm.leaves
    assert sorted(crashing.leaves) == sorted(set(crashing.leaves))
    facts = [
        leaf for leaf in map(event_of, crashing.leaves) if isinstance(leaf, e.Fact)
    ]
    for topic in topics.FACT_TOPICS:
        order = [
            (f.cause_leaf_index, f.output_index)
            for f in facts
            if topics.topic_of(f) == topic
        ]
        assert order == sorted(set(order))


def event_of(leaf: bytes) -> Any:
    return codec.decode(codec.decode_as(e.Leaf, leaf).event)


@settings(max_examples=150)
@given(histories())
def test_the_audit_finds_no_fault_in_what_was_admitted(read: list[Received]) -> None:
    sequencer = Sequencer()
    for start in range(0, len(read), 3):
        before = sequencer.state
        count = len(sequencer.blocks)
        sequencer.append(read[start : start + 3])
        for block in sequencer.blocks[count:]:
            _, _, opened = open_block(before.log, block.data, block.signature)
            leaves = [(item.leaf, item.sequenced.event) for item in opened]
            assert admission.find_fault(before.admission, leaves) is None


@settings(max_examples=200)
@given(histories())
def test_the_audit_finds_what_should_not_have_been_admitted(
    read: list[Received],
) -> None:
    state = AdmissionState()
    for received in read:
        (verdict,) = admission.decide(state, [received])
        if isinstance(verdict, Admitted):
            assert admission.find_fault(state, [(verdict.leaf, verdict.event)]) is None
            state = admission.evolve(state, [(verdict.leaf, verdict.event)])
        elif can_be_forced(received, verdict):
            event: Any = codec.decode(received.event or b"")
            leaf = e.Leaf(
                event=received.event or b"",
                signature=received.signature or bytes(64),
                source_topic=received.topic,
                source_partition=received.partition,
                source_offset=received.offset,
            )
            assert admission.find_fault(state, [(leaf, event)]) is not None


def can_be_forced(received: Received, verdict: Refused | Dropped) -> bool:
    """Whether a refused record can be made a leaf, and the leaf shows why not."""
    if received.event is None or received.event == b"?":
        return False  # no event: the leaf would not decode
    # A leaf has no key. Its federation does, and that is where it is.
    return not (
        isinstance(verdict, Refused) and verdict.event.reason == Reason.WRONG_KEY
    )
