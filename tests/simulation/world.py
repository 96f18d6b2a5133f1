"""A whole federation in memory: a fake Kafka, every processor, agents, and faults.

Everything that decides is the real code; what is faked is what carries it. Every
processor may be killed between any two of its writes, in both kinds: before its
output was written, or after that and before its offset was. A record may be delivered
twice, topics are read in any order, and some agents and workers lie.

`World.check` is an auditor that never forgets: it runs after every step, opens each new
block, asks whether each leaf should be there and each refusal was right, and replays
the deciders: each fact on the log must be the very one that follows.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, Generic, TypeVar

import numpy as np

from adapters.schema_registry import FramingError
from protocol import registry, rewards, rounds
from protocol.admission import Received
from protocol.cohort import is_drawn
from protocol.contributions import Contribution
from protocol.decider import Decider, Sequenced, step
from protocol.encoding import UpdateRefusedError, parse_update, update_to_blob
from protocol.envelope import (
    NO_GENESIS,
    choose_genesis,
    compute_genesis_hash,
    sign_event,
)
from protocol.log import (
    LogState,
    NewBlock,
    OpenedLeaf,
    SequencerState,
    open_block,
    read_block,
    sequence,
)
from protocol.model import compute_result
from protocol.replay import ReplayState, find_missing, replay_block
from protocol.state_root import StateHasher
from protocol.tensors import tensors_to_blob
from protocol.validation import ROLES
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason
from tests.builders import frame, unframe
from tests.simulation.federation import (
    AGENTS,
    CONFIG,
    FEDERATION,
    NOW_MS,
    admitted,
    aggregate,
    checked,
    deadline,
    declined,
    enrolment,
    exported,
    find_author,
    make_blob,
    make_key,
    request,
    revoked,
)

NUM_PARAMETERS: Final = 4
DURATIONS_MS: Final = (150, 500, 2_000)
"""Most rounds end by their deadline, some do, hardly any does."""
BASE_BLOB: Final = tensors_to_blob({"w": np.zeros(NUM_PARAMETERS, dtype="f4")})
GENESIS: Final = replace(
    CONFIG,
    initial_model=make_blob(BASE_BLOB),
    num_parameters=NUM_PARAMETERS,
    max_num_examples=50,
    reward_rule=rewards.RECOMMENDED_RULE,
)
KEYS: Final = {name: make_key(name) for name in (*AGENTS, *ROLES, "eve")}

StateT = TypeVar("StateT")
Output = TypeVar("Output")
Said = e.LedgerEvent | tuple[e.LedgerEvent, str]
"""An event, signed by its author, or by whoever is named."""


DECIDERS: Final[dict[str, tuple[Decider[Any, Any], Any]]] = {
    "rounds": (rounds.DECIDER, e.RoundFact),
    "registry": (registry.DECIDER, e.RegistryFact),
    "rewards": (rewards.DECIDER, e.RewardFact),
}
"""Each with the facts that it concludes."""


def look(value: bytes) -> bytes | Reason:
    """Return what a refused value is, or why it is nothing."""
    try:
        return unframe(value)
    except FramingError as error:
        return error.reason


open_once = lru_cache(maxsize=512)(open_block)
"""For the followers: all of them open the same blocks. The auditor opens its own."""


class Killed(Exception):  # noqa: N818  # not an error: what `kill -9` leaves behind
    """The process died here."""


@dataclass
class Faults:
    """When processes die and records double; all of it from one seed."""

    rng: random.Random
    rate: float

    def happen(self) -> bool:
        return self.rng.random() < self.rate

    def may_kill(self) -> None:
        if self.happen():
            raise Killed


@dataclass
class Kafka:
    """Topics that survive everything, and a store of blobs."""

    faults: Faults
    topics: dict[str, list[Received]] = field(default_factory=dict)
    ledger: list[NewBlock] = field(default_factory=list)
    blobs: dict[bytes, bytes] = field(default_factory=dict)
    genesis: bytes = NO_GENESIS

    def publish(self, event: e.LedgerEvent, signer: str | None = None) -> None:
        """Append an event to its topic; now and then it arrives twice."""
        data = codec.encode(event)
        if isinstance(event, e.FederationConfigured) and self.genesis == NO_GENESIS:
            self.genesis = compute_genesis_hash(data)
        topic = topics.topic_of(event)
        records = self.topics.setdefault(topic, [])
        for _ in range(2 if self.faults.happen() else 1):
            received = Received(
                topic=topic,
                partition=0,
                offset=len(records),
                key=event.federation_id.encode(),
                value=frame(event),
                event=data,
                signature=sign_event(
                    KEYS[signer or find_author(event)],
                    choose_genesis(event, self.genesis),
                    data,
                ),
            )
            records.append(received)

    def store(self, data: bytes) -> e.BlobRef:
        blob = make_blob(data)
        self.blobs[blob.sha256] = data
        return blob


class Sequencer:
    """The sequencer: state in memory, offsets beside it, the truth in the ledger."""

    def __init__(self, kafka: Kafka) -> None:
        self._kafka = kafka
        self._offsets: dict[str, int] = {}
        self._state: SequencerState | None = None

    def work(self, now_ms: int) -> bool:
        """Append one block of what is there, from any topics in any order."""
        rng = self._kafka.faults.rng
        batch: list[Received] = []
        offsets = dict(self._offsets)
        waiting = self._waiting(offsets)
        while waiting and len(batch) < rng.randint(1, 8):
            topic = rng.choice(waiting)
            batch.append(self._kafka.topics[topic][offsets.get(topic, 0)])
            offsets[topic] = offsets.get(topic, 0) + 1
            waiting = self._waiting(offsets)
        if not batch:
            return False
        try:
            self._append(batch, now_ms)
            self._kafka.faults.may_kill()  # persisted, but nobody remembers
            self._offsets = offsets
        except Killed:
            self._state = None
        return True

    def _waiting(self, offsets: dict[str, int]) -> list[str]:
        return [
            topic
            for topic in topics.SEQUENCED_TOPICS
            if offsets.get(topic, 0) < len(self._kafka.topics.get(topic, []))
        ]

    def _append(self, batch: Sequence[Received], now_ms: int) -> None:
        if self._state is None:
            self._state = SequencerState()
            for written in self._kafka.ledger:
                self._state = read_block(self._state, written.data, written.signature)
        state, block, _ = sequence(
            self._state, batch, key=KEYS["SEQUENCER"], now_ms=now_ms
        )
        self._kafka.faults.may_kill()  # and not persisted
        if block is not None:
            self._kafka.ledger.append(block)
        self._state = state


class Follower(Generic[StateT]):
    """A processor that follows the ledger: a decider, or a worker with its claims."""

    def __init__(
        self,
        kafka: Kafka,
        initial: StateT,
        advance: Callable[[StateT, OpenedLeaf], tuple[StateT, list[Said]]],
    ) -> None:
        self._kafka = kafka
        self._initial = initial
        self._advance = advance
        self._height = 0
        self._memory: tuple[LogState, StateT] | None = (LogState(), initial)

    @property
    def state(self) -> StateT:
        if self._memory is None:
            self._rebuild()
        assert self._memory is not None
        return self._memory[1]

    def work(self) -> bool:
        """Process one block and say what follows."""
        if self._height == len(self._kafka.ledger):
            return False
        try:
            if self._memory is None:
                self._rebuild()
            memory, outputs = self._read(self._kafka.ledger[self._height])
            self._kafka.faults.may_kill()  # nothing was said
            for output in outputs:
                said = output if isinstance(output, tuple) else (output, None)
                self._kafka.publish(*said)
                self._kafka.faults.may_kill()  # said in part, or all, and forgotten
            self._memory = memory
            self._height += 1
        except Killed:
            self._memory = None
        return True

    def _read(self, block: NewBlock) -> tuple[tuple[LogState, StateT], list[Said]]:
        assert self._memory is not None
        log, state = self._memory
        log, _, opened = open_once(log, block.data, block.signature)
        outputs: list[Said] = []
        for leaf in opened:
            state, more = self._advance(state, leaf)
            outputs += more
        return (log, state), outputs

    def _rebuild(self) -> None:
        """Fold the log again, through the same function, without saying anything."""
        self._memory = (LogState(), self._initial)
        for block in self._kafka.ledger[: self._height]:
            self._memory, _ = self._read(block)


def follow_decider(kafka: Kafka, decider: Decider[StateT, Any]) -> Follower[StateT]:
    """Return a decider's processor."""

    def advance(state: StateT, leaf: OpenedLeaf) -> tuple[StateT, list[Said]]:
        after, facts = step(decider, state, leaf.sequenced)
        return after, list(facts)

    return Follower(kafka, decider.initial, advance)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What the aggregator knows: the rounds, and where updates are."""

    rounds: rounds.RoundsState = rounds.DECIDER.initial
    updates: dict[int, e.UpdateSubmitted] = field(default_factory=dict)


class World:
    """A federation, what it did, and an auditor that looks over its shoulder."""

    def __init__(self, seed: int, fault_rate: float = 0.08) -> None:
        self.rng = random.Random(seed)  # a repeatable schedule
        self.seed = seed
        self.faults = Faults(self.rng, fault_rate)
        self.kafka = Kafka(self.faults)
        self.now_ms = NOW_MS
        self.sequencer = Sequencer(self.kafka)
        self.rounds = follow_decider(self.kafka, rounds.DECIDER)
        self.registry = follow_decider(self.kafka, registry.DECIDER)
        self.rewards = follow_decider(self.kafka, rewards.DECIDER)
        self.aggregator = Follower(self.kafka, WorkerState(), self._aggregate)
        self.exporter = Follower(self.kafka, None, self._export)
        self.agents = Follower(self.kafka, None, self._train)
        self.honest = self.rng.sample(AGENTS, k=self.rng.randint(2, 4))
        self.auditor = Auditor()
        self.kafka.store(BASE_BLOB)
        self._due: tuple[int, int] | None = None
        genesis = replace(
            GENESIS,
            round_duration_ms=self.rng.choice(DURATIONS_MS),
            min_cohort=self.rng.randint(1, 3),
        )
        events: list[e.LedgerEvent] = [genesis, *map(enrolment, AGENTS)]
        for event in (*events, *map(admitted, AGENTS)):
            self.kafka.publish(event)

    # Who does the work

    def _train(self, _: None, leaf: OpenedLeaf) -> tuple[None, list[Said]]:
        """All agents: each answers a round as it is, always with the same bytes."""
        started = leaf.sequenced.event
        if not isinstance(started, e.RoundStarted):
            return None, []
        return None, [
            answer
            for agent_id in AGENTS
            if is_drawn(started, agent_id)
            for answer in self._answer(agent_id, started)
        ]

    def _answer(self, agent_id: str, started: e.RoundStarted) -> list[Said]:
        what = f"{self.seed}/{agent_id}/{started.round}"
        seed = hashlib.sha256(what.encode()).digest()
        rng = random.Random(seed)  # what it trained
        vector = np.array(
            [rng.randint(-(2**16), 2**16) for _ in range(NUM_PARAMETERS)], dtype="i4"
        )
        good = e.UpdateSubmitted(
            federation_id=FEDERATION,
            round=started.round,
            agent_id=agent_id,
            base_model_sha256=started.base_model.sha256,
            update=self.kafka.store(update_to_blob(vector)),
            num_examples=rng.randint(1, 50),
            loss_micros=rng.randint(0, 10**6),
        )
        decline = declined(agent_id, started.round)
        if agent_id in self.honest:
            return [good]
        garbage = self.kafka.store(rng.randbytes(40))
        lies: list[list[Said]] = [
            [],  # silent
            [decline],
            [decline, good],
            [good, replace(good, num_examples=50, loss_micros=-1), decline],
            [replace(good, base_model_sha256=bytes(32)), good],
            [replace(good, num_examples=51)],
            [replace(good, update=garbage), good],
            [replace(good, update=make_blob(rng.randbytes(8)))],
            [replace(good, round=started.round + 1), replace(good, round=1)],
            [(replace(good, agent_id=rng.choice(self.honest)), agent_id)],
            [replace(good, num_examples=0)],
        ]
        # One after the other, so that a few seeds meet them all.
        turn = self.seed + started.round + AGENTS.index(agent_id)
        return lies[turn % len(lies)]

    def _aggregate(
        self, state: WorkerState, leaf: OpenedLeaf
    ) -> tuple[WorkerState, list[Said]]:
        after, facts = step(rounds.DECIDER, state.rounds, leaf.sequenced)
        event, index = leaf.sequenced.event, leaf.sequenced.leaf_index
        updates = dict(state.updates)
        claims: list[Said] = []
        if after.current is not None and index in after.current.pending:
            assert isinstance(event, e.UpdateSubmitted)
            updates[index] = event
            reason = self._check_blob(event.update)
            claims.append(checked(index, number=event.round, reason=reason))
        claims += [
            self._sum(fact, after.current.ordered, updates)
            for fact in facts
            if isinstance(fact, e.RoundSealed) and after.current is not None
        ]
        return WorkerState(rounds=after, updates=updates), claims

    def _check_blob(self, blob: e.BlobRef) -> str:
        data = self.kafka.blobs.get(blob.sha256)
        if data is None:
            return Reason.MISSING_BLOB
        try:
            parse_update(data, num_parameters=NUM_PARAMETERS)
        except UpdateRefusedError as error:
            return error.reason
        return ""

    def _sum(
        self,
        sealed: e.RoundSealed,
        contributions: tuple[Contribution, ...],
        updates: dict[int, e.UpdateSubmitted],
    ) -> e.AggregateSubmitted:
        result = compute_result(
            "FEDAVG",
            sealed,
            [c.num_examples for c in contributions],
            self.kafka.blobs[sealed.base_model.sha256],
            [self.kafka.blobs[c.update_sha256] for c in contributions],
        )
        digests = {update.update.sha256 for update in updates.values()}
        assert {c.update_sha256 for c in contributions} <= digests
        return e.AggregateSubmitted(
            federation_id=FEDERATION,
            round=sealed.round,
            base_model_sha256=sealed.base_model.sha256,
            num_contributions=sealed.num_contributions,
            num_examples=sealed.num_examples,
            sum=self.kafka.store(result.sum_blob),
            model=self.kafka.store(result.model_blob),
        )

    def _export(self, _: None, leaf: OpenedLeaf) -> tuple[None, list[Said]]:
        published = leaf.sequenced.event
        if not isinstance(published, e.AggregatePublished):
            return None, []
        return None, [exported(published.round, published.model)]

    def _keep_time(self) -> bool:
        """The timer: announces the deadline of the round that is open on the log."""
        current = self.rounds.state.current
        if current is None or current.sealed is not None:
            return False
        if self.now_ms <= current.started.deadline_ms:
            return False
        self.kafka.publish(deadline(current.started.round, self.now_ms))
        return True

    def _disturb(self) -> None:
        """Somebody says something that has no place here, or the operator does."""
        rng = self.rng
        number = rng.randint(1, 3)
        ahead, behind = rng.randint(0, 2**40), rng.randint(0, 60)
        forged = e.RoundAbandoned(
            federation_id=FEDERATION,
            round=number,
            cause=bytes(32),
            cause_leaf_index=rng.choice((ahead, behind)),
            output_index=0,
            reason="",
            detail="forged",
        )
        choices: list[tuple[e.LedgerEvent, str | None]] = [
            (deadline(number, observed_at_ms=ahead), None),
            (aggregate(2, 20, number), None),
            (aggregate(2, 20, number), "eve"),
            (checked(behind, number=number, reason=Reason.NOT_FINITE), "eve"),
            (checked(behind, number=number), None),
            (forged, "eve"),
            (request(number, self.now_ms), "eve"),
            (exported(number, make_blob(rng.randbytes(4))), None),
            (GENESIS, None),
            (replace(GENESIS, federation_id="banks"), None),
        ]
        if rng.random() < 0.1 and len(self.honest) > 2:
            gone = self.honest.pop()
            choices = [(revoked(gone), None)]
        self.kafka.publish(*rng.choice(choices))

    def _ask(self) -> None:
        state = self.rounds.state
        # Clocks step back; the operator's requests do not.
        at_ms = max(self.now_ms, state.last_requested_at_ms + 1)
        self.kafka.publish(request(state.last_round + 1, at_ms))

    # What happens

    def step(self) -> None:
        """Let one of them do one thing, then look at everything."""
        self.now_ms += self.rng.choice((0, 1, 5, 40))
        match self.rng.randrange(20):
            case 0:
                self._disturb()
            case 1:
                self._keep_time()
            case 2 if self.rounds.state.current is None or self.rng.random() < 0.2:
                self._ask()
            case 3:
                self.now_ms += self.rng.choice((-30, 300))
            case _:
                for work in self.rng.choices(self.workers, k=3):
                    work()
        self.check()

    @property
    def workers(self) -> list[Callable[[], object]]:
        return [
            lambda: self.sequencer.work(self.now_ms),
            lambda: self.sequencer.work(self.now_ms),
            self.rounds.work,
            self.registry.work,
            self.rewards.work,
            self.aggregator.work,
            self.exporter.work,
            self.agents.work,
        ]

    def settle(self) -> None:
        """Stop all faults and let everybody finish, deadlines included."""
        self.faults.rate = 0.0
        for _ in range(1_000):
            busy = [work() for work in self.workers]
            if not any(busy) and not self._end_round():
                self.check()
                return
        msg = "the federation does not come to rest"
        raise AssertionError(msg)

    def _end_round(self) -> bool:
        current = self.rounds.state.current
        if current is None:
            return False
        assert current.sealed is None, "a sealed round was not published"
        self.now_ms = max(self.now_ms, current.started.deadline_ms + 1)
        return self._keep_time()

    def check(self) -> None:
        """Verify every new block, leaf and fact."""
        self.auditor.read(self.kafka.ledger)


class Auditor:
    """Knows nothing but the log."""

    def __init__(self) -> None:
        self.state = ReplayState()
        self.hasher = StateHasher()
        self.inputs: Counter[bytes] = Counter()
        self.leaves: list[Sequenced] = []
        self.height = 0

    @property
    def states(self) -> dict[str, Any]:
        """Return the deciders' states."""
        return dict(self.state.states)

    def read(self, ledger: Sequence[NewBlock]) -> None:
        """Read on where it stopped."""
        for block in ledger[self.height :]:
            replayed = replay_block(
                self.state, block.data, block.signature, unframe=look
            )
            assert replayed.faults == ()
            self.state = replayed.state
            assert not any(find_missing(self.state))
            for leaf in replayed.leaves:
                self._count(leaf.opened)
            root = self.hasher.compute_root(self.state)
            assert root == StateHasher().compute_root(self.state)
        self.height = len(ledger)

    def _count(self, leaf: OpenedLeaf) -> None:
        event = leaf.sequenced.event
        self.leaves.append(leaf.sequenced)
        if not isinstance(event, e.Fact | e.EventRejected):
            self.inputs[leaf.leaf.event] += 1
            assert self.inputs[leaf.leaf.event] == 1, f"doubled: {event}"

    def check_complete(self) -> None:
        """Check that every fact that follows is on the log, once everybody is done."""
        assert not any(self.state.expected.values())

    def check_fold(self) -> None:
        """Check that the log alone gives the states, without deciding anything."""
        for name, (decider, kind) in DECIDERS.items():
            facts: dict[int, list[Any]] = {}
            for leaf in self.leaves:
                if isinstance(leaf.event, kind):
                    facts.setdefault(leaf.event.cause_leaf_index, []).append(leaf.event)
            state = decider.initial
            for leaf in self.leaves:
                follows = facts.get(leaf.leaf_index, [])
                state = decider.evolve(state, leaf, follows)
            assert state == self.states[name], name
