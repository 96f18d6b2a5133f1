"""Who has a rival, and which errors say that a producer can do nothing more."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import pytest
from aiokafka import errors
from faust.exceptions import FaustError

from adapters import alive
from adapters.kafka import KafkaUnavailableError, Member
from streams import fenced
from streams.app import PromptProducer
from streams.fenced import find_rival, is_lost

PLACE = "ledger", 0
OTHER = "ledger", 1


def member(member_id, instance_id, *places):
    return Member(member_id, instance_id, "/10.0.0.9", frozenset(places))


def unsettled(member_id, instance_id):
    return member(member_id, instance_id)._replace(places=None)


@pytest.mark.parametrize(
    ("members", "has_rival"),
    [
        ([], False),
        ([member("me", "moot-0", PLACE)], False),
        ([member("me", "moot-0", PLACE), member("b", "moot-1", OTHER)], False),
        ([member("b", "moot-1", OTHER)], False),
        ([member("b", "moot-0", PLACE)], True),
        ([member("b", "moot-0", OTHER)], True),
        ([member("b", "moot-1", PLACE)], True),
        ([member("b", "moot-1")], False),
        ([unsettled("me", "moot-0")], False),
        ([unsettled("b", "moot-1")], True),
        ([member("me", "moot-0"), member("b", "moot-1", PLACE, OTHER)], True),
    ],
)
def test_a_rival_has_our_name_or_our_place_or_may_have_it(members, has_rival):
    found = find_rival(
        members, member_id="me", instance_id="moot-0", places=[PLACE, ("control", 0)]
    )
    assert (found is not None) == has_rival
    assert found is None or found.member_id == "b"


def wrapped(error):
    outer = FaustError("while sending")
    outer.__cause__ = error
    return outer


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (errors.ProducerFenced(), True),
        (errors.InvalidProducerIdMapping(), True),
        (errors.OutOfOrderSequenceNumber(), True),
        (errors.IllegalOperation("Not in the middle of a transaction"), True),
        (errors.KafkaError("Unexpected error during batch delivery"), True),
        (wrapped(errors.ProducerFenced()), True),
        (errors.MessageSizeTooLargeError(), False),
        (errors.TopicAuthorizationFailedError("t"), False),
        (wrapped(errors.MessageSizeTooLargeError()), False),
        (ValueError("ours"), False),
    ],
)
def test_a_record_that_kafka_refuses_is_not_a_producer_that_it_forgot(error, expected):
    assert is_lost(error) == expected


class BegunAgain(BaseException):
    """Instead of a fresh process."""


class Ended(BaseException):
    """Instead of the end of this one."""


@pytest.fixture
def fate(monkeypatch):
    """What becomes of a process, by the members of its group."""

    def raise_(what):
        raise what

    monkeypatch.setattr(alive, "begin_again", lambda: raise_(BegunAgain))
    monkeypatch.setattr(alive, "end_process", lambda: raise_(Ended))

    def decide(*members):
        monkeypatch.setattr(fenced, "find_members", lambda *_: members)

    decide()
    return decide


def make_producer(error, *, should_stop=False):
    """Return a producer with a transaction that Kafka ended."""

    async def fail(*_):
        raise error

    coordinator = SimpleNamespace(member_id="me")
    client = SimpleNamespace(_coordinator=coordinator)
    consumer = SimpleNamespace(_thread=SimpleNamespace(_consumer=client))
    producer = object.__new__(PromptProducer)
    producer.transport = SimpleNamespace(settings=None)
    producer.app = SimpleNamespace(
        should_stop=should_stop,
        conf=SimpleNamespace(id="moot", consumer_group_instance_id="moot-0"),
        consumer=consumer,
        _assignment=[SimpleNamespace(topic=PLACE[0], partition=PLACE[1])],
    )
    producer._transaction_producers = {
        "t": SimpleNamespace(send_offsets_to_transaction=fail)
    }
    producer._trn_locks = defaultdict(asyncio.Lock)
    producer._unconfirmed = defaultdict(list)
    return producer


def commit(producer):
    asyncio.run(producer.commit_transactions({"t": {"partition": 7}}, "moot"))


def test_without_a_rival_it_joins_again_and_with_one_it_ends(fate):
    producer = make_producer(errors.ProducerFenced())
    with pytest.raises(BegunAgain):
        commit(producer)
    fate(member("me", "moot-0", PLACE))
    with pytest.raises(BegunAgain):
        commit(producer)
    fate(member("b", "moot-0", PLACE))
    with pytest.raises(Ended):
        commit(producer)


def test_while_nobody_knows_of_rivals_it_ends(fate, monkeypatch):
    def ask(*_):
        raise KafkaUnavailableError("away")

    monkeypatch.setattr(fenced, "find_members", ask)
    with pytest.raises(Ended):
        commit(make_producer(errors.ProducerFenced()))


@pytest.mark.usefixtures("fate")
@pytest.mark.parametrize(
    "producer",
    [
        make_producer(ValueError("ours")),
        make_producer(errors.IllegalOperation(), should_stop=True),
    ],
)
def test_whoever_fails_otherwise_or_is_told_to_stop_does_not_begin_again(producer):
    with pytest.raises(Ended):
        commit(producer)
