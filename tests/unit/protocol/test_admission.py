"""Which records become leaves, which are refused and why, which are dropped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from protocol import admission
from protocol.admission import (
    MAX_REJECTED_VALUE_BYTES,
    REMEMBERED_BLOCKS,
    AdmissionState,
    Admitted,
    Dropped,
    Received,
    Refused,
    Verdict,
    decide,
)
from protocol.envelope import sign_event
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.simulation.federation import (
    BASE,
    CONFIG,
    FEDERATION,
    GENESIS,
    Records,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    enrolment,
    evaluation,
    exported,
    find_author,
    make_blob,
    make_key,
    request,
    revoked,
    update,
)

Leaves = list[tuple[e.Leaf, e.LedgerEvent]]

FACT = e.RoundAbandoned(
    federation_id=FEDERATION,
    round=1,
    cause=bytes(32),
    cause_leaf_index=0,
    output_index=0,
    reason="NOT_ENOUGH_CONTRIBUTIONS",
    detail="",
)
REGISTERED = e.ModelVersionRegistered(
    federation_id=FEDERATION,
    round=1,
    cause=bytes(32),
    cause_leaf_index=0,
    output_index=0,
    version=1,
    parent_version=0,
    model=BASE,
    onnx=BASE,
    no_onnx="",
    evaluation=evaluation(1),
    no_evaluation="",
    registered_at_ms=1,
)


def leaves_of(verdicts: Sequence[Verdict]) -> Leaves:
    """Return the leaves that the sequencer makes of these verdicts."""
    leaves: Leaves = []
    for verdict in verdicts:
        if isinstance(verdict, Admitted):
            leaves.append((verdict.leaf, verdict.event))
        elif isinstance(verdict, Refused) and verdict.event.federation_id:
            leaves.append((refusal_leaf(verdict.event), verdict.event))
    return leaves


def refusal_leaf(event: e.EventRejected, signer: str = "SEQUENCER") -> e.Leaf:
    data = codec.encode(event)
    return e.Leaf(
        event=data,
        signature=sign_event(make_key(signer), GENESIS, data),
        source_topic=event.source_topic,
        source_partition=event.source_partition,
        source_offset=event.source_offset,
    )


def force(received: Received) -> Leaves:
    """Return the leaf that a sequencer without any rules would make."""
    assert received.event is not None
    event: Any = codec.decode(received.event)
    leaf = e.Leaf(
        event=received.event,
        signature=received.signature or bytes(64),
        source_topic=received.topic,
        source_partition=received.partition,
        source_offset=received.offset,
    )
    return [(leaf, event)]


class Desk:
    """The admission of one federation, one block for each batch."""

    def __init__(self, *events: e.LedgerEvent) -> None:
        self.make = Records()
        self.state = AdmissionState()
        for event in events:
            assert self.judge(self.make.record(event)) is None

    def sequence(self, *batch: Received) -> list[Verdict]:
        verdicts = admission.decide(self.state, batch)
        self.state = admission.evolve(self.state, leaves_of(verdicts))
        return verdicts

    def judge(self, received: Received) -> Reason | str | None:
        """Sequence one record; returns why it was refused, None if it was not."""
        (verdict,) = self.sequence(received)
        match verdict:
            case Refused(event=event):
                return event.reason
            case Dropped():
                return "dropped"
            case Admitted():
                return None

    def say(self, event: e.LedgerEvent, /, **changes: Any) -> Reason | str | None:
        return self.judge(self.make.record(event, **changes))


def founded() -> Desk:
    return Desk(CONFIG, admitted("ana"), admitted("bea"))


GOOD: list[e.LedgerEvent] = [
    enrolment("cem"),
    admitted("cem"),
    revoked("ana"),
    request(1),
    deadline(1),
    update("ana"),
    declined("ana"),
    checked(1),
    aggregate(2, 20),
    exported(1, BASE),
    FACT,
    replace(FACT, cause_leaf_index=2, output_index=7),
    REGISTERED,
]


@pytest.mark.parametrize("event", GOOD)
def test_what_its_author_says_becomes_a_leaf_as_it_was_received(
    event: e.LedgerEvent,
) -> None:
    desk = founded()
    received = desk.make.record(event)
    assert desk.sequence(received) == [
        Admitted(
            e.Leaf(
                event=codec.encode(event),
                signature=received.signature or b"",
                source_topic=received.topic,
                source_partition=received.partition,
                source_offset=received.offset,
            ),
            event,
        )
    ]


@pytest.mark.parametrize("event", GOOD)
@pytest.mark.parametrize(
    "signer", ["ana", "bea", "eve", *admission._AUTHOR_ROLE.values()]
)
def test_nobody_speaks_for_another(event: e.LedgerEvent, signer: str) -> None:
    if signer == find_author(event):
        return
    desk = founded()
    assert desk.say(event, signer=signer) == Reason.BAD_SIGNATURE


def test_the_genesis_is_signed_by_the_operator_that_it_names() -> None:
    assert Desk().say(CONFIG) is None
    assert Desk().say(CONFIG, signer="eve") == Reason.BAD_SIGNATURE


@pytest.mark.parametrize("event", [*GOOD, CONFIG])
def test_before_the_genesis_there_is_no_federation(event: e.LedgerEvent) -> None:
    desk = Desk()
    if event != CONFIG:
        assert desk.say(event) == Reason.UNKNOWN_FEDERATION


@pytest.mark.parametrize("event", GOOD)
def test_a_federation_with_another_name_is_unknown(event: e.LedgerEvent) -> None:
    desk = founded()
    assert desk.say(replace(event, federation_id="banks")) == Reason.UNKNOWN_FEDERATION


def test_a_federation_is_founded_once() -> None:
    desk = founded()
    for again in (CONFIG, replace(CONFIG, min_cohort=1)):
        assert desk.say(again) == Reason.FEDERATION_EXISTS
    usurper = tuple(
        replace(p, public_key=make_key("eve").public_key) for p in CONFIG.principals
    )
    again = replace(CONFIG, principals=usurper)
    assert desk.say(again, signer="eve") == Reason.FEDERATION_EXISTS
    assert desk.say(request(1), signer="eve") == Reason.BAD_SIGNATURE


def test_a_configuration_must_make_sense() -> None:
    desk = Desk()
    assert desk.say(replace(CONFIG, min_cohort=0)) == Reason.INVALID_CONFIGURATION
    roles = CONFIG.principals[1:]  # no OPERATOR
    assert desk.say(replace(CONFIG, principals=roles)) == Reason.INVALID_PRINCIPALS
    no_mode = replace(CONFIG, plain=None)
    assert desk.say(no_mode) == Reason.NOT_ONE_MODE
    no_name = replace(CONFIG, federation_id="A")
    assert desk.say(no_name) == Reason.INVALID_CONFIGURATION
    assert desk.say(CONFIG) is None


def test_nobody_speaks_for_a_principal_that_is_not_there() -> None:
    roles = tuple(p for p in CONFIG.principals if p.role != "EXPORTER")
    desk = Desk(replace(CONFIG, principals=roles))
    event = exported(1, BASE)
    for signer in ("EXPORTER", "OPERATOR", "eve"):
        assert desk.say(event, signer=signer) == Reason.NO_SUCH_PRINCIPAL
    assert Desk(CONFIG).say(event, signer="EXPORTER") is None


@pytest.mark.parametrize("changes", [{"signer": "eve"}, {"signature": bytes(64)}])
@pytest.mark.parametrize(
    "event", [request(0), update("ana", num_examples=0), enrolment("ANA")]
)
def test_what_others_say_in_an_authors_name_is_not_looked_at(
    event: e.LedgerEvent, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    desk = founded()
    monkeypatch.setattr(admission, "find_problem", None)
    assert desk.say(event, **changes) == Reason.BAD_SIGNATURE
    assert desk.say(event, signature=None) == Reason.MISSING_SIGNATURE
    config = replace(CONFIG, min_cohort=0)
    assert Desk().say(config, **changes) == Reason.BAD_SIGNATURE


def test_whose_author_is_not_known_is_told_of_its_fields_first() -> None:
    # As logs have it on record: a refusal does not keep the signature.
    desk = founded()
    assert desk.say(update("eve", num_examples=0)) == Reason.INVALID_FIELD
    config = replace(CONFIG, min_cohort=0)
    assert desk.say(config) == Reason.INVALID_CONFIGURATION


@pytest.mark.parametrize("event", [event for event in GOOD if event != CONFIG])
def test_nobody_speaks_for_a_federation_without_a_name(event: e.LedgerEvent) -> None:
    nameless = replace(event, federation_id="")
    assert Desk().say(nameless, key=b"") in {
        Reason.INVALID_FIELD,
        Reason.UNKNOWN_FEDERATION,
    }


def test_fields_must_make_sense() -> None:
    desk = founded()
    assert desk.say(request(0)) == Reason.INVALID_FIELD
    assert desk.say(update("ana", num_examples=0)) == Reason.INVALID_FIELD


@pytest.mark.parametrize("key", [None, b"", b"banks", b"clinics ", b"\xff"])
def test_a_records_key_is_its_federation(key: bytes | None) -> None:
    desk = founded()
    assert desk.say(request(1), key=key) == Reason.WRONG_KEY
    assert desk.say(request(1), key=b"clinics") is None


@pytest.mark.parametrize("topic", topics.SEQUENCED_TOPICS)
@pytest.mark.parametrize("event", GOOD)
def test_an_event_belongs_on_its_topic(event: e.LedgerEvent, topic: str) -> None:
    expected = None if topic == topics.topic_of(event) else Reason.WRONG_TOPIC
    assert founded().say(event, topic=topic) == expected


def test_what_does_not_belong_on_its_topic_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Blobs and blocks cost more than what does; anybody may send them."""
    desk = founded()
    blob = codec.encode(e.ShareLinks(entries=()))
    monkeypatch.setattr(codec, "decode", None)
    received = Received(
        topic=topics.AGENTS,
        partition=0,
        offset=10**6,
        key=FEDERATION.encode(),
        value=b"",
        event=blob,
        signature=None,
    )
    [verdict] = decide(desk.state, [received])
    assert isinstance(verdict, Refused)
    assert verdict.event.reason == Reason.WRONG_TOPIC


def test_what_only_the_sequencer_writes_is_on_no_topic_of_inputs() -> None:
    block = e.BlockSequenced(
        federation_id=FEDERATION,
        height=1,
        previous_block_hash=bytes(32),
        first_leaf_index=1,
        leaves=(b"x",),
        tree_root=bytes(32),
        sequenced_at_ms=1,
        traceparents=("",),
    )
    leaf = e.Leaf(
        event=b"x",
        signature=bytes(64),
        source_topic="",
        source_partition=0,
        source_offset=0,
    )
    checkpoint = e.CheckpointSigned(federation_id=FEDERATION, height=1, checkpoint="x")
    refusal = e.EventRejected(
        federation_id=FEDERATION,
        reason="",
        detail="",
        source_topic="",
        source_partition=0,
        source_offset=0,
        value_sha256=bytes(32),
        value_size_bytes=0,
        value=b"",
    )
    for event in (block, leaf, checkpoint, refusal):
        data = codec.encode(event)
        for topic in topics.SEQUENCED_TOPICS:
            desk = founded()
            received = desk.make.record(request(1), topic=topic)
            received = replace(
                received,
                event=data,
                signature=sign_event(make_key("SEQUENCER"), GENESIS, data),
            )
            assert desk.judge(received) == Reason.WRONG_TOPIC


@pytest.mark.parametrize(
    "event",
    [b"", b"x", codec.encode(request(1)) + b"\0", codec.encode(request(1))[:-1]],
)
def test_what_cannot_be_decoded_is_refused(event: bytes) -> None:
    assert founded().say(request(1), event=event) == Reason.MALFORMED_EVENT


def test_an_event_must_fit_a_leaf() -> None:
    desk = founded()
    long = declined("ana", reason="x" * 65_001)
    assert desk.say(long) == Reason.TOO_LARGE
    overhead = len(codec.encode(long)) - 65_001
    fits = declined("ana", reason="x" * (codec.MAX_EVENT_SIZE_BYTES - overhead))
    assert len(codec.encode(fits)) == codec.MAX_EVENT_SIZE_BYTES
    received = desk.make.record(fits)
    assert desk.judge(received) is None
    ((leaf, _),) = force(replace(received, offset=2**62, partition=2**31 - 1))
    assert len(codec.encode(leaf)) <= codec.MAX_LEAF_SIZE_BYTES


@pytest.mark.parametrize(
    "reason",
    [
        Reason.NO_VALUE,
        Reason.TOO_LARGE,
        Reason.NOT_FRAMED,
        Reason.UNKNOWN_SCHEMA,
        Reason.WRONG_PARTITION,
    ],
)
def test_what_the_adapter_found_is_the_reason(reason: Reason) -> None:
    desk = founded()
    for event in (None, codec.encode(request(1))):
        got = desk.say(request(1), event=event, problem=(reason, "why"))
        assert got == reason


def test_no_event_is_no_value() -> None:
    assert founded().say(request(1), event=None, value=None) == Reason.NO_VALUE


def test_a_signature_is_needed() -> None:
    desk = founded()
    assert desk.say(request(1), signature=None) == Reason.MISSING_SIGNATURE
    assert desk.say(FACT, signature=None) == Reason.MISSING_SIGNATURE
    for signature in (b"", bytes(63), bytes(64), bytes(65)):
        assert desk.say(request(1), signature=signature) == Reason.BAD_SIGNATURE


@pytest.mark.parametrize("answer", [update("eve"), declined("eve")])
def test_an_agent_that_was_never_admitted_is_unknown(
    answer: e.UpdateSubmitted | e.UpdateDeclined,
) -> None:
    desk = founded()
    assert desk.say(answer) == Reason.UNKNOWN_AGENT
    assert desk.say(enrolment("eve")) is None
    assert desk.say(answer) == Reason.UNKNOWN_AGENT
    assert desk.say(admitted("eve")) is None
    assert desk.say(replace(answer, round=2)) is None


def test_an_agent_that_was_never_admitted_cannot_be_revoked() -> None:
    assert founded().say(revoked("eve")) == Reason.UNKNOWN_AGENT


def test_a_revoked_agent_is_refused_from_then_on() -> None:
    desk = founded()
    assert desk.say(update("ana")) is None
    assert desk.say(revoked("ana")) is None
    assert desk.say(update("ana", 2)) == Reason.REVOKED_AGENT
    assert desk.say(declined("ana", 2)) == Reason.REVOKED_AGENT
    assert desk.say(update("bea")) is None


def test_a_revocation_counts_within_the_batch() -> None:
    desk = founded()
    make = desk.make
    verdicts = desk.sequence(make.record(revoked("ana")), make.record(update("ana")))
    assert [type(verdict) for verdict in verdicts] == [Admitted, Refused]


def test_an_agents_name_is_taken_for_good() -> None:
    desk = founded()
    assert desk.say(revoked("ana")) is None
    assert desk.say(admitted("ana")) == Reason.AGENT_EXISTS
    assert desk.say(enrolment("ana")) == Reason.AGENT_EXISTS
    usurper = replace(enrolment("bea"), public_key=make_key("eve").public_key)
    assert desk.say(usurper, signer="eve") == Reason.AGENT_EXISTS
    other = replace(admitted("bea"), public_key=make_key("eve").public_key)
    assert desk.say(other) == Reason.AGENT_EXISTS


@pytest.mark.parametrize("is_revoked", [False, True])
def test_an_agents_key_has_one_name_for_good(is_revoked: bool) -> None:
    """Who is drawn, summed and rewarded once is not so again as somebody else."""
    desk = founded()
    if is_revoked:
        assert desk.say(revoked("ana")) is None
    key = make_key("ana").public_key
    again = replace(enrolment("ana-again"), public_key=key)
    assert desk.say(again, signer="ana") == Reason.AGENT_EXISTS
    again = replace(admitted("ana-again"), public_key=key)
    assert desk.say(again) == Reason.AGENT_EXISTS
    assert desk.say(admitted("eve")) is None


def test_an_applicant_proves_that_it_holds_its_key() -> None:
    desk = founded()
    theft = replace(enrolment("eve"), public_key=make_key("fay").public_key)
    assert desk.say(theft, signer="eve") == Reason.BAD_SIGNATURE


# Said once


@pytest.mark.parametrize(
    "event", [event for event in GOOD if not isinstance(event, e.Fact)]
)
def test_an_input_is_said_once(event: e.LedgerEvent) -> None:
    desk = founded()
    assert desk.say(event) is None
    expected = Reason.DUPLICATE_EVENT
    if isinstance(event, e.AgentAdmitted):
        expected = Reason.AGENT_EXISTS
    assert desk.say(event) == expected


def test_an_input_is_said_once_in_a_batch() -> None:
    desk = founded()
    twice = [desk.make.record(update("ana")) for _ in range(2)]
    assert [type(verdict) for verdict in desk.sequence(*twice)] == [Admitted, Refused]


def test_the_same_words_of_another_agent_are_something_else() -> None:
    desk = founded()
    assert desk.say(update("ana")) is None
    assert desk.say(update("bea", update=update("ana").update)) is None


def test_a_refused_input_may_be_said_again() -> None:
    desk = founded()
    assert desk.say(request(1), signature=None) == Reason.MISSING_SIGNATURE
    assert desk.say(request(1)) is None


def test_inputs_are_remembered_for_a_number_of_blocks() -> None:
    desk = founded()
    assert desk.say(update("ana")) is None
    for number in range(1, REMEMBERED_BLOCKS):
        assert desk.say(request(number)) is None
    assert desk.say(update("ana")) == Reason.DUPLICATE_EVENT
    # That refusal was a block as well: the update's own is forgotten now.
    assert desk.say(update("ana")) is None
    assert len(desk.state.recent_ids) == REMEMBERED_BLOCKS


@pytest.mark.parametrize("event", [*GOOD, CONFIG])
def test_a_record_that_is_read_again_is_dropped(event: e.LedgerEvent) -> None:
    desk = founded() if event != CONFIG else Desk()
    received = desk.make.record(event)
    assert desk.judge(received) is None
    before = desk.state
    assert desk.sequence(received) == [Dropped()]
    assert replace(desk.state, recent_ids=()) == replace(before, recent_ids=())


def test_a_refused_record_that_is_read_again_is_dropped() -> None:
    desk = founded()
    received = desk.make.record(request(1), signature=None)
    assert desk.judge(received) == Reason.MISSING_SIGNATURE
    assert desk.judge(received) == "dropped"


def test_offsets_are_counted_by_topic_and_partition() -> None:
    desk = founded()
    assert desk.say(request(1), offset=50) is None
    assert desk.say(request(2), offset=49) == "dropped"
    assert desk.say(request(2), offset=49, partition=1) is None
    assert desk.say(update("ana"), offset=0) is None


# Facts


def test_a_decider_that_restarts_repeats_facts_and_they_are_dropped() -> None:
    desk = founded()
    facts = [
        replace(FACT, cause_leaf_index=cause, output_index=place)
        for cause, place in ((0, 0), (1, 0), (1, 1), (2, 0))
    ]
    for fact in facts[:3]:
        assert desk.say(fact) is None
    assert [desk.say(fact) for fact in facts] == ["dropped"] * 3 + [None]
    assert [desk.say(fact) for fact in facts] == ["dropped"] * 4


def test_repeated_facts_are_dropped_within_a_batch() -> None:
    desk = founded()
    batch = [desk.make.record(FACT) for _ in range(2)]
    assert [type(verdict) for verdict in desk.sequence(*batch)] == [Admitted, Dropped]


def test_a_decider_cannot_take_back_what_it_said() -> None:
    desk = founded()
    assert desk.say(FACT) is None
    assert desk.say(replace(FACT, reason="ANOTHER")) == "dropped"


def test_facts_of_two_topics_may_come_in_any_order() -> None:
    """Kafka promises none, so none is asked for."""
    desk = founded()
    assert desk.say(replace(FACT, cause_leaf_index=2)) is None
    assert desk.say(replace(REGISTERED, cause_leaf_index=1)) is None
    assert desk.say(replace(FACT, cause_leaf_index=1)) == "dropped"


def test_a_fact_follows_its_cause() -> None:
    """Or one fact with a cause far ahead would make all that follow look old."""
    desk = founded()
    for index in (3, 2**62):
        fact = replace(FACT, cause_leaf_index=index)
        assert desk.say(fact) == Reason.INVALID_FIELD
    assert desk.say(replace(FACT, cause_leaf_index=5)) == Reason.INVALID_FIELD
    assert desk.say(replace(FACT, cause_leaf_index=5)) is None  # that refusal's index
    assert desk.state.num_leaves == 7


def test_a_check_follows_its_update() -> None:
    """Or a claim made too early would make the same claim in time a duplicate."""
    desk = founded()
    early = checked(3, 4)
    assert desk.say(early) == Reason.INVALID_FIELD
    assert desk.say(update("ana")) is None
    assert desk.state.num_leaves == 5
    assert desk.say(early) is None


# Refusals


def test_a_refusal_quotes_what_was_refused() -> None:
    desk = founded()
    value = b"\0" * (MAX_REJECTED_VALUE_BYTES + 1)
    received = desk.make.record(request(1), value=value, event=b"?")
    (verdict,) = desk.sequence(received)
    assert isinstance(verdict, Refused)
    assert verdict.event == e.EventRejected(
        federation_id=FEDERATION,
        reason=Reason.MALFORMED_EVENT,
        detail=verdict.event.detail,
        source_topic=received.topic,
        source_partition=received.partition,
        source_offset=received.offset,
        value_sha256=hashlib.sha256(value).digest(),
        value_size_bytes=len(value),
        value=value[:-1],
    )
    assert len(verdict.event.detail) <= 500


def test_a_refusal_under_another_key_becomes_no_leaf() -> None:
    desk = founded()
    (verdict,) = desk.sequence(desk.make.record(request(1), key=b"banks"))
    assert isinstance(verdict, Refused)
    assert verdict.event.federation_id == ""


# What an auditor asks of a block


@pytest.mark.parametrize("event", GOOD)
def test_what_was_admitted_has_no_fault(event: e.LedgerEvent) -> None:
    desk = founded()
    before = desk.state
    verdicts = desk.sequence(
        desk.make.record(event), desk.make.record(request(9), signature=None)
    )
    leaves = leaves_of(verdicts)
    assert len(leaves) == 2
    assert admission.find_fault(before, leaves) is None


@pytest.mark.parametrize(
    ("event", "changes", "reason"),
    [
        (request(1), {"signer": "eve"}, Reason.BAD_SIGNATURE),
        (request(1), {"signature": None}, Reason.BAD_SIGNATURE),
        (FACT, {"signer": "OPERATOR"}, Reason.BAD_SIGNATURE),
        (request(1), {"topic": topics.AGENTS}, Reason.WRONG_TOPIC),
        (request(0), {}, Reason.INVALID_FIELD),
        (CONFIG, {}, Reason.FEDERATION_EXISTS),
        (replace(CONFIG, min_cohort=0), {}, Reason.INVALID_CONFIGURATION),
        (replace(request(1), federation_id="banks"), {}, Reason.UNKNOWN_FEDERATION),
        (update("eve"), {}, Reason.UNKNOWN_AGENT),
        (admitted("ana"), {}, Reason.AGENT_EXISTS),
        (declined("ana", reason="x" * 65_000), {}, Reason.TOO_LARGE),
        (replace(FACT, cause_leaf_index=9), {}, Reason.INVALID_FIELD),
        (replace(FACT, output_index=-1), {}, Reason.INVALID_FIELD),
        (admitted("cem"), {"offset": 0}, Reason.DUPLICATE_EVENT),
        (admitted("cem"), {"offset": 3}, Reason.DUPLICATE_EVENT),
    ],
)
def test_a_leaf_that_should_not_be_there_is_a_fault(
    event: e.LedgerEvent, changes: dict[str, Any], reason: Reason
) -> None:
    desk = founded()
    good = force(desk.make.record(request(7)))
    bad = force(desk.make.record(event, **changes))
    fault = admission.find_fault(desk.state, [*good, *bad])
    assert fault is not None
    assert fault[:2] == (1, reason)


def test_a_leaf_may_depend_on_one_before_it_in_the_block() -> None:
    make = Records()
    leaves = [
        leaf
        for event in (CONFIG, admitted("ana"), update("ana"), revoked("ana"))
        for leaf in force(make.record(event))
    ]
    assert admission.find_fault(AdmissionState(), leaves) is None
    late = force(make.record(update("ana", 2)))
    fault = admission.find_fault(AdmissionState(), [*leaves, *late])
    assert fault is not None
    assert fault[:2] == (4, Reason.REVOKED_AGENT)


def test_a_repetition_in_a_block_is_a_fault() -> None:
    desk = founded()
    for event in (update("ana"), FACT):
        twice = [force(desk.make.record(event))[0] for _ in range(2)]
        fault = admission.find_fault(desk.state, twice)
        assert fault is not None
        assert fault[:2] == (1, Reason.DUPLICATE_EVENT)


@pytest.mark.parametrize(
    ("changes", "signer", "reason"),
    [
        ({}, "OPERATOR", Reason.BAD_SIGNATURE),
        ({"federation_id": "banks"}, "SEQUENCER", Reason.UNKNOWN_FEDERATION),
        ({"federation_id": ""}, "SEQUENCER", Reason.UNKNOWN_FEDERATION),
        ({"value_size_bytes": 7}, "SEQUENCER", Reason.INVALID_FIELD),
        ({"value": b""}, "SEQUENCER", Reason.INVALID_FIELD),
        ({"value_sha256": bytes(32)}, "SEQUENCER", Reason.INVALID_FIELD),
    ],
)
def test_a_refusal_must_be_the_sequencers_and_quote_truly(
    changes: dict[str, Any], signer: str, reason: Reason
) -> None:
    desk = founded()
    (verdict,) = admission.decide(desk.state, [desk.make.record(request(0))])
    assert isinstance(verdict, Refused)
    event = verdict.event
    assert admission.find_fault(desk.state, [(refusal_leaf(event), event)]) is None
    event = replace(event, **changes)
    fault = admission.find_fault(desk.state, [(refusal_leaf(event, signer), event)])
    assert fault is not None
    assert fault[:2] == (0, reason)


def test_a_refusal_must_name_the_source_of_its_leaf() -> None:
    desk = founded()
    (verdict,) = admission.decide(desk.state, [desk.make.record(request(0))])
    assert isinstance(verdict, Refused)
    leaf = replace(refusal_leaf(verdict.event), source_offset=77)
    fault = admission.find_fault(desk.state, [(leaf, verdict.event)])
    assert fault is not None
    assert fault[:2] == (0, Reason.INVALID_FIELD)


def test_a_log_cannot_begin_with_a_refusal() -> None:
    event = e.EventRejected(
        federation_id=FEDERATION,
        reason="NO_VALUE",
        detail="",
        source_topic=topics.CONTROL,
        source_partition=0,
        source_offset=0,
        value_sha256=hashlib.sha256().digest(),
        value_size_bytes=0,
        value=b"",
    )
    fault = admission.find_fault(AdmissionState(), [(refusal_leaf(event), event)])
    assert fault is not None


def test_every_event_that_may_be_a_leaf_has_an_author() -> None:
    speak_for_themselves = {
        e.AgentEnrolmentRequested,
        e.UpdateSubmitted,
        e.UpdateCommitted,
        e.UpdateDeclined,
        e.SharesLinked,
        e.UpdatesCompared,
        e.PartialAggregateSubmitted,
        e.PartyDeclined,
        e.EquivocationProven,
    }
    authors = {*admission._AUTHOR_ROLE, *speak_for_themselves}
    leaves = {e for t in topics.SEQUENCED_TOPICS for e in topics.EVENTS[t]}
    assert authors == {*leaves, e.EventRejected}


def test_a_blobs_reference_is_checked() -> None:
    bad = replace(make_blob("x"), uri="file:///etc/passwd")
    assert founded().say(update("ana", update=bad)) == Reason.INVALID_FIELD
