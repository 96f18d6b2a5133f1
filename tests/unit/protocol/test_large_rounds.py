"""Ten thousand agents in a round: what it costs, and that it passes everywhere."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterator
from dataclasses import fields, replace

import pytest

from ledger.signing import SigningKey
from protocol.admission import Received
from protocol.decider import Sequenced
from protocol.deciders import compute_initial_states, step_all
from protocol.envelope import choose_genesis, sign_event
from protocol.log import (
    MAX_BLOCK_LEAVES,
    LogState,
    SequencerState,
    open_block,
    sequence,
)
from protocol.persistent import PersistentMap, PersistentSet
from protocol.replay import ReplayState, replay_block
from protocol.validation import MAX_AGENTS_IN_COHORT, MAX_CHECKS, MAX_WEIGHT
from schemas import codec, topics
from schemas import events as e
from tests.builders import unframe
from tests.sealed import list_contributions
from tests.simulation.federation import (
    CONFIG,
    DURATION_MS,
    FEDERATION,
    NOW_MS,
    admitted,
    aggregate,
    checked,
    deadline,
    exported,
    make_blob,
    make_key,
    request,
    update,
)

NUM_SILENT = 10
"""Agents' keys are not what this is about: they share one."""


def name(number: int) -> str:
    return f"agent-{number:05d}-" + "x" * 52


def configure(num_agents: int) -> e.FederationConfigured:
    return replace(
        CONFIG,
        cohort_size=num_agents,
        min_cohort=num_agents // 2,
        max_num_examples=MAX_WEIGHT // num_agents,
        reward_rule=e.RewardRule(per_contribution=1, missed_assignment=1),
    )


def say(num_agents: int) -> Iterator[list[e.LedgerEvent]]:
    """Yield what is said in a federation with one round, batch by batch."""
    yield [configure(num_agents)]
    names = [name(number) for number in range(num_agents)]
    yield [
        replace(admitted(agent_id), public_key=make_key(agent_id).public_key)
        for agent_id in names
    ]
    yield [request(1)]
    yield [update(agent_id) for agent_id in names[NUM_SILENT:]]


def check_all(indexes: list[int]) -> list[e.LedgerEvent]:
    return [
        checked(*indexes[start : start + MAX_CHECKS])
        for start in range(0, len(indexes), MAX_CHECKS)
    ]


class Work:
    """Counts what is copied and what is looked through.

    A container that is not persistent and takes the place of another was made anew,
    item by item; one that is persistent costs as many steps as are read of it.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        for kind in (PersistentMap, PersistentSet):
            monkeypatch.setattr(kind, "__iter__", self._watch(kind.__iter__))

    def _watch(self, iterate):
        def watched(container):
            self.count += len(container)
            return iterate(container)

        return watched

    def compare(self, before: object, after: object) -> None:
        if after is before or isinstance(after, PersistentMap | PersistentSet):
            return
        if isinstance(after, dict | frozenset | tuple | list | set):
            self.count += len(after)
        elif hasattr(after, "__dataclass_fields__"):
            for field in fields(after):
                old = getattr(before, field.name, None)
                self.compare(old, getattr(after, field.name))


def measure(num_agents: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """Return how many items the deciders touch in a federation with one round."""
    states, waiting, size = compute_initial_states(), deque[e.LedgerEvent](), 0
    indexes: list[int] = []
    with monkeypatch.context() as patch:
        work = Work(patch)

        def fold(event: e.LedgerEvent) -> None:
            nonlocal states, size
            leaf = Sequenced(
                event=event,
                leaf_hash=size.to_bytes(32, "big"),
                leaf_index=size,
                sequenced_at_ms=now_ms,
                previous_block_hash=bytes(32),
                tree_size=size + 1,
                genesis=bytes(32),
            )
            before = states
            states, facts = step_all(states, leaf)
            for part, state in states.items():
                work.compare(before[part], state)
            if isinstance(event, e.UpdateSubmitted):
                indexes.append(size)
            waiting.extend(facts)
            size += 1

        now_ms = NOW_MS
        said = [event for batch in say(num_agents) for event in batch]
        for event in said:
            fold(event)
        for event in check_all(indexes):
            fold(event)
        now_ms = NOW_MS + DURATION_MS + 1
        fold(deadline(1))
        current = states["rounds"].current
        assert current.sealed.num_contributions == num_agents - NUM_SILENT
        while waiting:
            fold(waiting.popleft())
        silent = {name(number) for number in range(NUM_SILENT)}
        assert {*states["rewards"].balances} == silent
        return work.count


def test_a_round_takes_work_in_proportion_to_its_agents(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, many = (measure(number, monkeypatch) for number in (250, 1_000))
    assert many < 6 * few, (few, many)


class Federation:
    """Sequences what is said, and every fact that follows, in blocks of full size."""

    def __init__(self) -> None:
        self.blocks: list[tuple[bytes, bytes]] = []
        self.leaves: list[e.LedgerEvent] = []
        self.states = compute_initial_states()
        self.now_ms = NOW_MS
        self._state = SequencerState()
        self._reader = LogState()
        self._offsets: Counter[str] = Counter()

    def say(self, events: list[e.LedgerEvent]) -> None:
        waiting = deque(events)
        while waiting:
            size = min(len(waiting), MAX_BLOCK_LEAVES)
            self._sequence([waiting.popleft() for _ in range(size)], waiting)

    def _sequence(
        self, events: list[e.LedgerEvent], waiting: deque[e.LedgerEvent]
    ) -> None:
        batch = [self._receive(event) for event in events]
        self._state, block, refused = sequence(
            self._state, batch, key=make_key("SEQUENCER"), now_ms=self.now_ms
        )
        assert refused == []
        assert block is not None
        self.blocks.append((block.data, block.signature))
        self._reader, _, opened = open_block(self._reader, block.data, block.signature)
        for item in opened:
            self.leaves.append(item.sequenced.event)
            self.states, facts = step_all(self.states, item.sequenced)
            waiting.extend(facts)

    def _receive(self, event: e.LedgerEvent) -> Received:
        data, topic = codec.encode(event), topics.topic_of(event)
        assert len(data) <= codec.MAX_EVENT_SIZE_BYTES
        self._offsets[topic] += 1
        return Received(
            topic=topic,
            partition=0,
            offset=self._offsets[topic],
            key=FEDERATION.encode(),
            value=data,
            event=data,
            signature=sign_event(
                find_key(event), choose_genesis(event, self._state.log.genesis), data
            ),
        )


def find_key(event: e.LedgerEvent) -> SigningKey:
    match event:
        case e.UpdateSubmitted():
            return make_key(event.agent_id)
        case e.UpdatesChecked() | e.AggregateSubmitted():
            return make_key("AGGREGATOR")
        case e.ModelExported():
            return make_key("EXPORTER")
        case e.DeadlineReached():
            return make_key("TIMER")
        case _ if isinstance(event, e.Fact):
            return make_key("DECIDER")
    return make_key("OPERATOR")


def test_ten_thousand_agents_pass_admission_deciders_and_replay() -> None:
    number = MAX_AGENTS_IN_COHORT
    federation = Federation()
    for batch in say(number):
        federation.say(batch)
    updates = [
        index
        for index, event in enumerate(federation.leaves)
        if isinstance(event, e.UpdateSubmitted)
    ]
    federation.say(check_all(updates))
    federation.now_ms += DURATION_MS + 1
    federation.say([deadline(1)])
    (sealed,) = [x for x in federation.leaves if isinstance(x, e.RoundSealed)]
    federation.say([aggregate(sealed.num_contributions, sealed.num_examples)])
    federation.say([exported(1, make_blob("the next model"))])
    counted = list_contributions(federation.leaves, sealed)
    assert [c.agent_id for c in counted] == [
        name(place) for place in range(NUM_SILENT, number)
    ]
    balances = federation.states["rewards"].balances
    assert Counter(balances.values()) == {1: number - NUM_SILENT, -1: NUM_SILENT}
    state = ReplayState()
    for data, signature in federation.blocks:
        replayed = replay_block(
            state, data, signature, unframe=unframe, verify=lambda *_: None
        )
        assert replayed.faults == ()
        state = replayed.state
    assert state.states == federation.states
