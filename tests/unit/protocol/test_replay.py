"""What a replay says about honest and dishonest blocks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest

from adapters.schema_registry import FramingError
from protocol.admission import AdmissionState
from protocol.envelope import SIGNATURE_HEADER, sign_event, verify_event
from protocol.log import LogError
from protocol.replay import (
    DeciderError,
    Fault,
    FaultCode,
    Replayed,
    ReplayState,
    describe_missing,
    find_missing,
    find_pending,
    replay_block,
)
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import LogBuilder, build_log, frame, make_key, make_nodes, unframe


def look(value: bytes) -> bytes | Reason:
    try:
        return unframe(value)
    except FramingError as error:
        return error.reason


def replay(log: LogBuilder) -> list[Replayed]:
    """Replay a whole log, block by block."""
    state, blocks = ReplayState(), []
    for record in log.records:
        replayed = replay_block(
            state,
            unframe(record.value or b""),
            record.header(SIGNATURE_HEADER),
            unframe=look,
        )
        blocks.append(replayed)
        state = replayed.state
    return blocks


def faults_of(log: LogBuilder) -> list[Fault]:
    return [fault for replayed in replay(log) for fault in replayed.faults]


def codes_of(log: LogBuilder) -> list[FaultCode]:
    return [fault.code for fault in faults_of(log)]


@pytest.fixture
def log() -> LogBuilder:
    """A federation with two agents, before its first round."""
    log = LogBuilder()
    log.found()
    log.admit("ada", "bea")
    return log


# Honest logs


@pytest.mark.parametrize("nodes", [(), ("node0", "node1", "node2", "node3")])
def test_an_honest_log_has_no_fault(nodes: Sequence[str]) -> None:
    log = build_log(ledger_nodes=nodes)
    blocks = replay(log)
    assert [fault for replayed in blocks for fault in replayed.faults] == []
    state = blocks[-1].state
    # What everybody else makes of the same leaves.
    assert state.log.chain == log.state.log.chain
    assert state.admission == log.state.admission
    assert state.states == log._states
    assert list(find_missing(state)) == list(find_pending(state)) == []
    leaves = [leaf for replayed in blocks for leaf in replayed.leaves]
    assert [leaf.opened.sequenced.event for leaf in leaves] == log.leaves
    assert all(leaf.is_admissible for leaf in leaves)
    assert leaves[-1].rounds == state.rounds
    on_the_log = [event for event in log.leaves if isinstance(event, e.Fact)]
    followed = [fact for leaf in leaves for fact in leaf.facts]
    assert sorted(map(codec.encode, followed)) == sorted(map(codec.encode, on_the_log))
    assert sum(isinstance(fact, e.BalanceChanged) for fact in followed) > 0
    # The forged update and that of eve, who was revoked: the latter shows.
    assert sum(replayed.num_refusals_unchecked for replayed in blocks) == 1


def test_facts_to_come_are_pending_and_no_fault() -> None:
    log = LogBuilder(send_fact=lambda fact: [])
    log.found()
    log.request_round()
    state = replay(log)[-1].state
    assert codes_of(log) == []
    assert list(find_missing(state)) == []
    [due] = find_pending(state)
    assert isinstance(due, e.RoundRefused)
    assert (due.cause_leaf_index, due.output_index) == (1, 0)


# Refusals: what the sequencer says of what it did not let in

Trouble = Callable[[LogBuilder], None]


def _future_block(log: LogBuilder) -> None:
    event = e.FinalityRequested(federation_id=log.federation_id, height=10**6)
    log.say(event, make_key("TIMER"))


def _future_update(log: LogBuilder) -> None:
    check = e.UpdateCheck(leaf_index=10**6, reason="", detail="")
    event = e.UpdatesChecked(federation_id=log.federation_id, round=1, results=(check,))
    log.say(event, make_key("AGGREGATOR"))


def _unapproved_nodes(log: LogBuilder) -> None:
    event = e.NodeSetChanged(
        federation_id=log.federation_id,
        era=1,
        nodes=make_nodes(["node0"]),
        approvals=(),
    )
    log.say(event, make_key("OPERATOR"))


def _not_a_checkpoint(log: LogBuilder) -> None:
    event = e.CheckpointFinalised(federation_id=log.federation_id, checkpoint="x")
    log.say(event, make_key("TIMER"))


def _stale_checkpoint(log: LogBuilder) -> None:
    [last] = [v for v in log.leaves if isinstance(v, e.CheckpointFinalised)][-1:]
    log.say(last, make_key("TIMER"))


def _no_evidence(log: LogBuilder) -> None:
    event = e.EquivocationProven(
        federation_id=log.federation_id,
        public_key=bytes(32),
        messages=(b"a", b"b"),
        reported_by=make_key("node0").public_key,
    )
    log.say(event, make_key("node0"))


def _unknown_reporter(log: LogBuilder) -> None:
    event = e.EquivocationProven(
        federation_id=log.federation_id,
        public_key=bytes(32),
        messages=(b"a", b"b"),
        reported_by=make_key("mallory").public_key,
    )
    log.say(event, make_key("mallory"))


def _fact_before_its_cause(log: LogBuilder) -> None:
    event = e.RoundAbandoned(
        federation_id=log.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=10**6,
        output_index=0,
        reason="",
        detail="",
    )
    log.say(event, make_key("DECIDER"))


def _wrong_topic(log: LogBuilder) -> None:
    event = e.AgentRevoked(
        federation_id=log.federation_id, agent_id="ada", explanation=""
    )
    log.say(event, make_key("OPERATOR"), topic=topics.UPDATES)


def _stranger(log: LogBuilder) -> None:
    event = e.UpdateDeclined(
        federation_id=log.federation_id, round=1, agent_id="eve", reason="", detail=""
    )
    log.say(event, make_key("eve"))


def _barely_too_large(log: LogBuilder) -> None:
    event = e.AgentRevoked(
        federation_id=log.federation_id, agent_id="ada", explanation=""
    )
    room = codec.MAX_EVENT_SIZE_BYTES + 1 - len(codec.encode(event))
    event = replace(event, explanation="x" * (room - 2))  # its length takes two more
    assert len(codec.encode(event)) == codec.MAX_EVENT_SIZE_BYTES + 1
    assert len(frame(event)) <= codec.MAX_EVENT_SIZE_BYTES
    log.say(event, make_key("mallory"))


@pytest.mark.parametrize(
    ("trouble", "reason"),
    [
        (_future_block, Reason.INVALID_FIELD),
        (_future_update, Reason.INVALID_FIELD),
        (_unapproved_nodes, Reason.NOT_APPROVED),
        (_not_a_checkpoint, Reason.NOT_FINAL),
        (_stale_checkpoint, Reason.STALE_CHECKPOINT),
        (_no_evidence, Reason.NOT_PROVEN),
        (_unknown_reporter, Reason.UNKNOWN_LEDGER_NODE),
        (_fact_before_its_cause, Reason.INVALID_FIELD),
        (_wrong_topic, Reason.WRONG_TOPIC),
        (_stranger, Reason.UNKNOWN_AGENT),
        (_barely_too_large, Reason.TOO_LARGE),
    ],
)
def test_an_honest_refusal_is_confirmed(
    log: LogBuilder, trouble: Trouble, reason: Reason
) -> None:
    """Also by the rules that come after the signature, which a refusal does not keep:
    a node that thought otherwise would never attest again.
    """
    log.finalise()
    trouble(log)
    log.settle()
    assert [refusal.reason for refusal in log.refused] == [reason]
    blocks = replay(log)
    assert [fault for replayed in blocks for fault in replayed.faults] == []
    assert sum(replayed.num_refusals_unchecked for replayed in blocks) == 0


def test_a_second_change_of_the_nodes_in_one_block_is_an_honest_refusal(
    log: LogBuilder,
) -> None:
    """The refusal depends on where the block began."""
    other = log.copy()
    other.change_nodes("node0", "node1")
    other.change_nodes("node0")
    for event in other.leaves:
        if isinstance(event, e.NodeSetChanged):
            log.say(event, make_key("OPERATOR"))
    log.settle()
    assert [refusal.reason for refusal in log.refused] == [Reason.NODE_SET_PENDING]
    assert codes_of(log) == []


def refuse(log: LogBuilder, event: e.LedgerEvent, reason: Reason) -> None:
    """Let the sequencer refuse what it should have let in."""
    value = frame(event)
    leaf = log.make_leaf(event, make_key("OPERATOR"))
    refusal = e.EventRejected(
        federation_id=log.federation_id,
        reason=reason,
        detail="because",
        source_topic=leaf.source_topic,
        source_partition=leaf.source_partition,
        source_offset=leaf.source_offset,
        value_sha256=hashlib.sha256(value).digest(),
        value_size_bytes=len(value),
        value=value,
    )
    data = codec.encode(refusal)
    log.append(
        [
            (
                replace(
                    leaf,
                    event=data,
                    signature=sign_event(make_key("SEQUENCER"), log.genesis, data),
                ),
                refusal,
            )
        ]
    )


REQUEST = e.RoundRequested(federation_id="clinics", round=1, requested_at_ms=1)
UNSEEN = {
    Reason.MISSING_SIGNATURE,
    Reason.BAD_SIGNATURE,
    Reason.DUPLICATE_EVENT,
    Reason.WRONG_PARTITION,
    Reason.WRONG_KEY,
    Reason.UNKNOWN_SCHEMA,
    Reason.UNKNOWN_RULES,
}


@pytest.mark.parametrize("reason", list(Reason))
def test_a_refusal_of_what_is_good_is_false_or_the_sequencers_word(
    log: LogBuilder, reason: Reason
) -> None:
    refuse(log, REQUEST, reason)
    last = replay(log)[-1]
    if reason in UNSEEN:
        assert last.faults == ()
        assert last.num_refusals_unchecked == 1
        return
    [fault] = last.faults
    assert fault.code == FaultCode.FALSE_REFUSAL
    assert fault.leaf_index == len(log.leaves) - 1
    assert fault.found == f"{reason}: because"
    assert last.num_refusals_unchecked == 0
    expected = "bytes are few" if reason == Reason.TOO_LARGE else "no refusal, if any"
    assert expected in fault.expected


def test_a_refusal_of_what_is_bad_needs_the_right_reason(log: LogBuilder) -> None:
    refuse(log, replace(REQUEST, round=0), Reason.UNKNOWN_AGENT)
    [fault] = faults_of(log)
    assert (fault.code, fault.expected) == (
        FaultCode.FALSE_REFUSAL,
        "INVALID_FIELD, if any",
    )


# Leaves that should not be there


def test_a_leaf_that_should_not_be_there_changes_nothing_and_counts(
    log: LogBuilder,
) -> None:
    before = replay(log)[-1].state.admission
    event = e.AgentRevoked(
        federation_id=log.federation_id, agent_id="ada", explanation=""
    )
    log.append([(log.make_leaf(event, make_key("mallory")), event)])
    last = replay(log)[-1]
    [fault] = last.faults
    assert fault.code == FaultCode.NOT_ADMISSIBLE
    assert fault.leaf_index == before.num_leaves
    assert fault.expected == "a refusal: BAD_SIGNATURE"
    assert fault.found.startswith("AgentRevoked: ")
    assert [leaf.is_admissible for leaf in last.leaves] == [False]
    assert last.state.admission.agents == before.agents
    assert last.state.admission.num_leaves == before.num_leaves + 1
    # And the replay goes on.
    log.request_finality()
    assert replay(log)[-1].faults == ()


def test_a_fact_that_differs_says_what_differs(log: LogBuilder) -> None:
    log.send_fact = lambda fact: (
        [replace(fact, base_version=7)] if isinstance(fact, e.RoundStarted) else [fact]
    )
    log.request_round()
    [fault] = faults_of(log)
    assert fault.code == FaultCode.FACT_DIFFERS
    assert (fault.expected, fault.found) == ("base_version=0", "base_version=7")
    assert "another RoundStarted" in fault.message


def test_a_fact_of_another_kind_differs_as_a_whole(log: LogBuilder) -> None:
    def lie(fact: e.Fact) -> Sequence[e.Fact]:
        return [
            e.RoundRefused(
                federation_id=fact.federation_id,
                round=1,
                cause=fact.cause,
                cause_leaf_index=fact.cause_leaf_index,
                output_index=fact.output_index,
                reason=Reason.ROUND_OPEN,
                detail="",
            )
        ]

    log.send_fact = lie
    log.request_round()
    [fault] = faults_of(log)
    assert fault.code == FaultCode.FACT_DIFFERS
    assert fault.expected.startswith("RoundStarted(")
    assert fault.found.startswith("RoundRefused(")


def test_a_fact_that_nothing_leads_to_is_invented(log: LogBuilder) -> None:
    lie = e.RoundAbandoned(
        federation_id=log.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=0,
        reason="",
        detail="",
    )
    log.say(lie, make_key("DECIDER"))
    log.settle()
    [fault] = faults_of(log)
    assert (fault.code, fault.expected) == (FaultCode.FACT_INVENTED, "no fact")
    assert fault.found == str(lie)


def test_a_forged_fact_that_nothing_leads_to_is_one_fault_not_two(
    log: LogBuilder,
) -> None:
    lie = e.RoundAbandoned(
        federation_id=log.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=0,
        reason="",
        detail="",
    )
    log.append([(log.make_leaf(lie, make_key("mallory")), lie)])
    assert codes_of(log) == [FaultCode.NOT_ADMISSIBLE]


def test_a_fact_that_is_left_out_is_missing_once_the_next_one_comes() -> None:
    dropped: list[e.Fact] = []

    def drop(fact: e.Fact) -> Sequence[e.Fact]:
        if isinstance(fact, e.RoundRefused) and not dropped:
            dropped.append(fact)
            return []
        return [fact]

    log = LogBuilder(send_fact=drop)
    log.found()
    log.request_round()
    assert codes_of(log) == []
    log.request_round(7)
    [fault] = faults_of(log)
    assert fault.code == FaultCode.FACT_MISSING
    assert (fault.expected, fault.found) == (str(dropped[0]), "the next one")
    # Said once: it is not expected any more.
    assert list(find_missing(replay(log)[-1].state)) == []


def test_a_fact_that_an_invented_one_overtook_cannot_come_any_more() -> None:
    log = LogBuilder(send_fact=lambda fact: [])
    log.found()
    log.request_round()
    lie = e.RoundAbandoned(
        federation_id=log.federation_id,
        round=1,
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=1,
        reason="",
        detail="",
    )
    log.say(lie, make_key("DECIDER"))
    log.settle()
    last = replay(log)[-1]
    [fault] = last.faults
    assert fault.code == FaultCode.FACT_INVENTED
    assert fault.expected.startswith("next: RoundRefused(")
    [missing] = find_missing(last.state)
    assert list(find_pending(last.state)) == []
    assert describe_missing(missing, 3, "the end") == Fault(
        code=FaultCode.FACT_MISSING,
        leaf_index=3,
        message="a fact that follows from leaf 1 is not on the log",
        expected=str(missing),
        found="the end",
    )


def test_a_fact_on_another_topics_turn_is_not_confused(log: LogBuilder) -> None:
    """Topics have their own order: rounds' facts do not overtake the registry's."""
    log.run_round()
    kinds = [type(event) for event in log.leaves if isinstance(event, e.Fact)]
    assert {e.RoundSealed, e.ModelVersionRegistered, e.BalanceChanged} <= set(kinds)
    assert codes_of(log) == []


# What ends a replay


def test_a_block_that_does_not_follow_ends_it(log: LogBuilder) -> None:
    state = replay(log)[-1].state
    again = log.records[-1]
    with pytest.raises(LogError):
        replay_block(
            state,
            unframe(again.value or b""),
            again.header(SIGNATURE_HEADER),
            unframe=look,
        )
    with pytest.raises(LogError):
        replay_block(
            ReplayState(), unframe(log.records[0].value or b""), None, unframe=look
        )


def test_a_leaf_that_the_deciders_cannot_read_ends_it(log: LogBuilder) -> None:
    event = e.CheckpointFinalised(
        federation_id=log.federation_id, checkpoint="not a checkpoint"
    )
    leaf = log.make_leaf(event, make_key("TIMER"))
    log.append([(leaf, event)], is_followed=False)
    with pytest.raises(DeciderError, match="InvalidNoteError") as caught:
        replay(log)
    assert caught.value.leaf_index == log.state.log.chain.size - 1


def test_signatures_are_checked_as_the_caller_likes(log: LogBuilder) -> None:
    """Whoever verified them ahead need not do it twice."""
    asked: list[tuple[bytes, bytes, bytes]] = []

    def verify(key: bytes, genesis: bytes, data: bytes, signature: bytes) -> None:
        asked.append((key, data, signature))
        verify_event(key, genesis, data, signature)

    record = log.records[0]
    data = unframe(record.value or b"")
    signature = record.header(SIGNATURE_HEADER)
    replay_block(ReplayState(), data, signature, unframe=look, verify=verify)
    sequencer, operator = make_key("SEQUENCER"), make_key("OPERATOR")
    assert [(key, said) for key, said, _ in asked] == [
        (sequencer.public_key, data),
        (operator.public_key, codec.encode(log.leaves[0])),
    ]


def test_the_first_state_knows_nothing() -> None:
    state = ReplayState()
    assert state.admission == AdmissionState()
    assert list(find_pending(state)) == list(find_missing(state)) == []
