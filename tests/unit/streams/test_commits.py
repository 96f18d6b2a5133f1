"""When what was said becomes visible, and what a transaction waits for."""

import asyncio
from collections import defaultdict
from types import SimpleNamespace

import pytest

import streams.app
from adapters import alive
from streams.app import Batches, PromptProducer, Service
from streams.following import follow_ledger

OFFSETS = {"transaction": {"partition": 7}}


class Consumer:
    """Faust's, as far as commits go: it says whether it committed."""

    def __init__(self, *answers):
        self.answers, self.num_commits, self.unacked = [*answers], 0, set()

    async def commit(self):
        self.num_commits += 1
        return self.answers.pop(0) if self.answers else True


class Transactions:
    """Faust's producer, as far as the end of a commit goes."""

    async def commit_rest(self):
        pass


def make_service(consumer):
    app = SimpleNamespace(consumer=consumer, producer=Transactions())
    return Service("s", app, None, None, None, 1, None)


def commit(service, *, has_said=True, is_busy=False):
    asyncio.run(service.commit(has_said=has_said, is_busy=is_busy))
    return service.app.consumer.num_commits


def test_what_was_said_is_committed_at_once_and_nothing_else_is():
    service = make_service(Consumer())
    assert commit(service, has_said=False) == 0
    assert commit(service) == 1
    assert commit(service, has_said=False) == 1
    assert commit(service) == 2


def test_a_commit_that_had_begun_before_is_followed_by_another():
    """It may lack what was said last."""
    service = make_service(Consumer(False))
    assert commit(service) == 2


def test_whoever_has_more_to_say_commits_now_and_then(monkeypatch):
    now = 100.0
    monkeypatch.setattr(streams.app.time, "monotonic", lambda: now)
    service = make_service(Consumer())
    assert commit(service, is_busy=True) == 1
    assert commit(service, is_busy=True) == 1
    # The last of many said nothing: what those before it said is not forgotten.
    assert commit(service, has_said=False) == 2
    assert commit(service, is_busy=True) == 2
    now += streams.app.BUSY_COMMIT_S
    assert commit(service, is_busy=True, has_said=False) == 3


class Event:
    """A record as a stream hands it out."""

    def __init__(self, name="", **fields):
        self.name, self.num_references = name, 1
        self.message = SimpleNamespace(incref=self._incref, partition=0)
        self.__dict__ |= fields

    def _incref(self):
        self.num_references += 1

    def ack(self):
        self.num_references -= 1


def test_a_batch_is_what_came_while_the_one_before_was_committed():
    async def run():
        batches = Batches(3)
        events = [Event() for _ in range(5)]
        for event in events[:3]:
            await batches.put(event)
        waiting = asyncio.ensure_future(batches.put(events[3]))
        await asyncio.sleep(0)
        assert not waiting.done(), "no more than a batch waits"
        service = make_service(Consumer())
        await batches.commit(service)
        await batches.commit(service)
        assert service.app.consumer.num_commits == 1, "a whole batch waits already"
        assert await batches.take() == events[:3]
        await waiting
        await batches.put(events[4])
        assert await batches.take() == events[3:]
        await batches.commit(service)
        assert service.app.consumer.num_commits == 2
        # Their streams' references, and those of who works on them.
        assert {event.num_references for event in events} == {2}

    asyncio.run(run())


def test_under_load_a_batch_gathers_until_it_is_full(monkeypatch):
    """A burst does not wait; records that keep coming share transactions."""
    monkeypatch.setattr(streams.app, "hold", lambda event: event)

    async def run():
        now = 100.0
        clock = SimpleNamespace(monotonic=lambda: now)
        monkeypatch.setattr(streams.app, "time", clock)
        monkeypatch.setattr(streams.app, "GATHER_S", 1_000.0)
        batches = Batches(3)

        async def take(first, *others):
            await batches.put(first)
            taking = asyncio.ensure_future(batches.take())
            for other in others:
                await asyncio.sleep(0)
                await batches.put(other)
            return await taking

        waiting = asyncio.ensure_future(batches.take())
        await asyncio.sleep(0)
        await batches.put("alone")
        assert await waiting == ["alone"]
        assert await take("burst", "later") == ["burst"]
        now += 2 * streams.app.LOAD_S
        assert await take("a", "b") == ["later", "a", "b"], "full"
        monkeypatch.setattr(streams.app, "GATHER_S", 0.01)
        assert await take("c") == ["c"], "it has gathered for long enough"

    asyncio.run(run())


def make_producer(calls):
    """Return a producer with a transaction, which notes what it is asked for."""

    async def note(name):
        await asyncio.sleep(0)
        calls.append(name)

    kafka = SimpleNamespace(
        send_offsets_to_transaction=lambda *_: note("offsets"),
        commit_transaction=lambda: note("commit"),
        begin_transaction=lambda: note("begin"),
    )
    producer = object.__new__(PromptProducer)
    producer._transaction_producers = {"transaction": kafka}
    producer._trn_locks = defaultdict(asyncio.Lock)
    producer._unconfirmed = defaultdict(list)
    return producer


async def confirm(calls, error=None):
    for _ in range(5):
        await asyncio.sleep(0)
    calls.append("confirmed")
    if error is not None:
        raise error


def test_a_transaction_commits_when_kafka_has_what_was_sent_in_it():
    calls = []
    producer = make_producer(calls)
    producer._unconfirmed["transaction"] = [confirm(calls), confirm(calls)]
    asyncio.run(producer.commit_transactions(OFFSETS, "group"))
    assert calls == ["offsets", "confirmed", "confirmed", "commit", "begin"]
    assert not producer._unconfirmed
    calls.clear()
    asyncio.run(producer.commit_transactions(OFFSETS, "group", False))
    assert calls == ["offsets", "commit"]


def test_a_transaction_without_an_offset_to_commit_ends_too():
    """Kafka would abort it, and take the process for a stale one at its next word."""
    calls = []
    producer = make_producer(calls)
    producer.app = SimpleNamespace(conf=SimpleNamespace(id="group"))
    asyncio.run(producer.commit_rest())
    assert calls == [], "nothing was sent"
    producer._unconfirmed["transaction"] = [confirm(calls)]
    asyncio.run(producer.commit_rest())
    assert calls == ["confirmed", "commit", "begin"]
    asyncio.run(producer.commit_rest())
    assert calls == ["confirmed", "commit", "begin"]


def test_a_commit_ends_what_faust_has_no_offsets_for():
    service = make_service(Consumer(False, False))
    ended = []

    async def commit_rest():
        ended.append(service.app.consumer.num_commits)

    service.app.producer.commit_rest = commit_rest
    commit(service)
    assert ended == [2], "after Faust's own"


def test_a_record_that_kafka_refuses_ends_the_process_uncommitted(monkeypatch):
    calls = []
    monkeypatch.setattr(alive, "end_process", lambda: calls.append("end"))
    producer = make_producer(calls)
    producer._unconfirmed["transaction"] = [confirm(calls, ValueError("too large"))]
    asyncio.run(producer.commit_transactions(OFFSETS, "group"))
    assert calls == ["offsets", "confirmed", "end"]


@pytest.mark.parametrize("owed", [[], ["work"]])
def test_work_is_done_before_a_transaction_begins(owed):
    """Kafka ends one that takes long, and the process with it."""
    calls, agents = [], []

    async def send(what, _genesis, _cause, _source):
        calls.append(f"send {what}")

    async def follow(_event):
        return owed

    async def keep(_key):
        calls.append("keep")

    async def commit_said(*, has_said, is_busy):
        calls.append(f"commit {has_said} {is_busy}")

    def answer(outputs):
        calls.extend(outputs)
        return [(f"of {output}", "") for output in outputs]

    service = SimpleNamespace(
        name="s",
        topic=lambda name: name,
        app=SimpleNamespace(consumer=Consumer(), agent=lambda *_, **__: agents.append),
        send=send,
        commit=commit_said,
    )
    follower = SimpleNamespace(follow=follow, keep=keep, get_genesis=lambda _: b"")
    event = Event(key=b"clinics")

    async def stream():
        yield event

    follow_ledger(service, follower, answer, lambda _: calls.append("look"))
    (agent,) = agents
    asyncio.run(agent(SimpleNamespace(events=stream)))
    said = [f"send of {output}" for output in owed]
    assert calls == [*owed, *said, "look", f"commit {bool(owed)} False", "keep"]
    assert event.num_references == 0, "its offset is in the same transaction"
