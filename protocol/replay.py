"""Replay: how sceptics process each block of a log.

A block is opened (`protocol.log`), every leaf is judged again (`protocol.admission`),
the deciders run again, and each fact on the log must be the one they concluded, on its
topic, in its turn. The audit reports the faults; a ledger node attests a block only if
there are none. Both run nothing but `replay_block`, so the audit passes whatever a node
does.

A fact is compared in its writer's schema: as decoded, where a field unknown to the
writer has its default. What the deciders conclude must match that, or the fact differs;
and no two encodings with one schema decode to the same fact (`schemas.codec`), so a
writer has no choice left.

A fault does not stop a replay: what should not be there changes no state, and the next
leaf is judged. After a block that does not follow, or a leaf that the deciders cannot
read, nothing can be believed: those are `LogError` and `DeciderError`.

Deliberately not here: records' keys and headers, blobs, checkpoints and finality.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from enum import StrEnum
from typing import Any, Final

from protocol import admission
from protocol.admission import AdmissionState, Received, Refused, Verify
from protocol.deciders import States, compute_initial_states, step_all
from protocol.envelope import verify_event
from protocol.log import LogState, OpenedLeaf, open_block
from protocol.rewards import RewardsState
from protocol.round_state import RoundsState
from protocol.rules import UnknownRulesError
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason

FRAMING_REASONS: Final = frozenset(
    {Reason.NO_VALUE, Reason.TOO_LARGE, Reason.NOT_FRAMED, Reason.UNKNOWN_SCHEMA}
)
UNSEEN_REASONS: Final = frozenset(
    # They depend on the record's signature, key, partition or order, or on what the
    # schema registry or the sequencer's version knew: a refusal keeps none of those.
    {
        Reason.MISSING_SIGNATURE,
        Reason.BAD_SIGNATURE,
        Reason.DUPLICATE_EVENT,
        Reason.WRONG_PARTITION,
        Reason.WRONG_KEY,
        Reason.UNKNOWN_SCHEMA,
        Reason.UNKNOWN_RULES,
    }
)

Unframe = Callable[[bytes], "bytes | Reason"]
"""Maps a refused record's value to single-object bytes, or says why not."""


class FaultCode(StrEnum):
    """What is wrong with a leaf."""

    NOT_ADMISSIBLE = "NOT_ADMISSIBLE"
    FALSE_REFUSAL = "FALSE_REFUSAL"
    FACT_DIFFERS = "FACT_DIFFERS"
    FACT_MISSING = "FACT_MISSING"
    FACT_INVENTED = "FACT_INVENTED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One thing that is wrong with a leaf.

    Attributes:
        code: What kind of thing.
        leaf_index: The leaf.
        message: What it means, as text.
        expected: What should be there.
        found: What is there.
    """

    code: FaultCode
    leaf_index: int
    message: str
    expected: str
    found: str


class DeciderError(Exception):
    """The deciders cannot read a leaf, so it should not be there."""

    def __init__(self, message: str, leaf_index: int) -> None:
        super().__init__(message)
        self.leaf_index = leaf_index


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayState:
    """Everything that a log's leaves lead to.

    Attributes:
        log: How far the log has been read.
        admission: What admission knows.
        states: What each decider knows, by name.
        expected: Facts that the deciders concluded and the log does not have yet, in
            order, by topic.
    """

    log: LogState = field(default_factory=LogState)
    admission: AdmissionState = field(default_factory=AdmissionState)
    states: States = field(default_factory=compute_initial_states)
    expected: Mapping[str, tuple[e.Fact, ...]] = field(default_factory=dict)

    @property
    def rounds(self) -> RoundsState:
        """Return the rounds decider's state."""
        return self.states["rounds"]  # type: ignore[no-any-return]  # its own

    @property
    def rewards(self) -> RewardsState:
        """Return the rewards decider's state."""
        return self.states["rewards"]  # type: ignore[no-any-return]  # its own


@dataclass(frozen=True, slots=True)
class ReplayedLeaf:
    """A leaf and what follows from it.

    Attributes:
        opened: The leaf.
        rounds: The rounds decider's state after it.
        facts: What the deciders concluded.
        is_admissible: Whether it should be there.
    """

    opened: OpenedLeaf
    rounds: RoundsState
    facts: tuple[e.Fact, ...]
    is_admissible: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Replayed:
    """A block, replayed.

    Attributes:
        state: The state after it.
        block: The block.
        leaves: Its leaves.
        faults: What is wrong with them, in order.
        num_refusals_unchecked: Refusals that are the sequencer's word.
    """

    state: ReplayState
    block: e.BlockSequenced
    leaves: tuple[ReplayedLeaf, ...]
    faults: tuple[Fault, ...]
    num_refusals_unchecked: int


def replay_block(
    state: ReplayState,
    block_bytes: bytes,
    signature: bytes | None,
    *,
    unframe: Unframe,
    verify: Verify = verify_event,
) -> Replayed:
    """Replay the next block of a log.

    Args:
        state: What came before.
        block_bytes: Single-object encoding of the block, as received.
        signature: The record's signature header.
        unframe: Unframes refused values.
        verify: Checks the signatures of block and leaves, perhaps from memory.

    Raises:
        LogError: it is not the next block of this log.
        DeciderError: the deciders cannot read it.
        UnknownRulesError: this program does not know the rules that hold from one of
            its leaves on.
    """
    log, block, opened = open_block(state.log, block_bytes, signature, verify=verify)
    return _Replay(state, log, block, unframe, verify).run(opened)


def _turn(fact: e.Fact) -> tuple[int, int]:
    """Return a fact's place among those of its topic."""
    return fact.cause_leaf_index, fact.output_index


def find_missing(state: ReplayState) -> Iterator[e.Fact]:
    """Yield the expected facts that can no longer come.

    Admission passes no fact older than the last one of its topic.
    """
    for topic, expected in state.expected.items():
        last = state.admission.last_facts.get(topic, (-1, -1))
        yield from (fact for fact in expected if _turn(fact) < last)


def find_pending(state: ReplayState) -> Iterator[e.Fact]:
    """Yield the expected facts that are still to come."""
    for topic, expected in state.expected.items():
        last = state.admission.last_facts.get(topic, (-1, -1))
        yield from (fact for fact in expected if _turn(fact) >= last)


def describe_missing(missing: e.Fact, leaf_index: int, found: str) -> Fault:
    """Return the fault of a fact missing from the log."""
    return Fault(
        code=FaultCode.FACT_MISSING,
        leaf_index=leaf_index,
        message=(
            f"a fact that follows from leaf {missing.cause_leaf_index} "
            "is not on the log"
        ),
        expected=str(missing),
        found=found,
    )


class _Replay:
    """One block's replay."""

    def __init__(
        self,
        before: ReplayState,
        log: LogState,
        block: e.BlockSequenced,
        unframe: Unframe,
        verify: Verify,
    ) -> None:
        self._before = before
        self._log = log
        self._block = block
        self._unframe = unframe
        self._verify = verify
        self._states = before.states
        self._expected: defaultdict[str, deque[e.Fact]] = defaultdict(deque)
        for topic, expected in before.expected.items():
            self._expected[topic].extend(expected)
        self._faults: list[Fault] = []
        self._num_unchecked = 0

    def run(self, opened: Sequence[OpenedLeaf]) -> Replayed:
        pairs = [(item.leaf, item.sequenced.event) for item in opened]
        faulty, after = self._find_inadmissible(pairs)
        good = [number for number in range(len(pairs)) if number not in faulty]
        before, done = self._before.admission, 0
        leaves = []
        for number, item in enumerate(opened):
            event = item.sequenced.event
            if isinstance(event, e.EventRejected):
                if number not in faulty:
                    # The state in which the sequencer refused it.
                    earlier = [pairs[i] for i in good if done <= i < number]
                    before, done = admission.evolve(before, earlier), number
                    self._check_refusal(event, before, item.sequenced.leaf_index)
            elif isinstance(event, e.Fact):
                is_admissible = number not in faulty
                self._check_fact(event, item, is_admissible=is_admissible)
            facts = self._decide(item, is_admissible=number not in faulty)
            leaves.append(
                ReplayedLeaf(item, self._states["rounds"], facts, number not in faulty)
            )
        return Replayed(
            state=ReplayState(
                log=self._log,
                # What should not be there changes nothing, but is counted.
                admission=replace(after, num_leaves=self._log.chain.size),
                states=self._states,
                expected={t: tuple(due) for t, due in self._expected.items()},
            ),
            block=self._block,
            leaves=tuple(leaves),
            faults=tuple(self._faults),
            num_refusals_unchecked=self._num_unchecked,
        )

    def _find_inadmissible(
        self, pairs: Sequence[tuple[e.Leaf, e.LedgerEvent]]
    ) -> tuple[set[int], AdmissionState]:
        """Return which leaves should not be there, and the state after the others."""
        found, after = admission.find_faults(
            self._before.admission, pairs, verify=self._verify
        )
        self._faults.extend(
            Fault(
                code=FaultCode.NOT_ADMISSIBLE,
                leaf_index=self._block.first_leaf_index + number,
                message="this leaf should not have been admitted",
                expected=f"a refusal: {reason}",
                found=f"{type(pairs[number][1]).__name__}: {detail}",
            )
            for number, reason, detail in found
        )
        return {number for number, _, _ in found}, after

    def _check_refusal(
        self, refusal: e.EventRejected, state: AdmissionState, leaf_index: int
    ) -> None:
        """Check as much of a refusal as it still shows."""
        problem = self._find_refusal_problem(refusal, state)
        if problem:
            self._faults.append(
                Fault(
                    code=FaultCode.FALSE_REFUSAL,
                    leaf_index=leaf_index,
                    message="a record was refused for what it does not show",
                    expected=problem,
                    found=f"{refusal.reason}: {refusal.detail}",
                )
            )

    def _find_refusal_problem(
        self, refusal: e.EventRejected, state: AdmissionState
    ) -> str:
        """Return why a record should not have been refused like this; empty if so."""
        reason, size = refusal.reason, refusal.value_size_bytes
        if reason == Reason.TOO_LARGE:
            return "" if size > codec.MAX_VALUE_SIZE_BYTES else f"{size} bytes are few"
        if size > admission.MAX_REJECTED_VALUE_BYTES:
            self._num_unchecked += 1
            return ""
        found = self._judge(refusal, state)
        if found == reason or (found in FRAMING_REASONS and reason in FRAMING_REASONS):
            return ""
        if found not in FRAMING_REASONS and reason in UNSEEN_REASONS:
            self._num_unchecked += 1
            return ""
        return f"{found or 'no refusal'}, if any"

    def _judge(self, refusal: e.EventRejected, state: AdmissionState) -> str:
        """Return why admission would refuse the record if its signature were good."""
        event = self._unframe(refusal.value)
        if isinstance(event, Reason):
            return event
        received = Received(
            topic=refusal.source_topic,
            partition=refusal.source_partition,
            offset=refusal.source_offset,
            key=refusal.federation_id.encode(),
            value=refusal.value,
            event=event,
            signature=None,
        )
        verdict = admission.judge_again(self._before.admission, state, received)
        return verdict.event.reason if isinstance(verdict, Refused) else ""

    def _check_fact(
        self, fact: e.Fact, item: OpenedLeaf, *, is_admissible: bool
    ) -> None:
        leaf_index = item.sequenced.leaf_index
        topic = topics.topic_of(fact)
        expected = self._expected[topic]
        turn = _turn(fact)
        place = next((i for i, due in enumerate(expected) if _turn(due) == turn), None)
        if place is None:
            if is_admissible:
                self._faults.append(
                    Fault(
                        code=FaultCode.FACT_INVENTED,
                        leaf_index=leaf_index,
                        message="nothing on the log leads to this fact",
                        expected=f"next: {expected[0]}" if expected else "no fact",
                        found=str(fact),
                    )
                )
            return
        self._faults.extend(
            describe_missing(expected.popleft(), leaf_index, "the next one")
            for _ in range(place)
        )
        due = expected.popleft()
        if due != fact:
            ours, theirs = _describe_difference(due, fact)
            self._faults.append(
                Fault(
                    code=FaultCode.FACT_DIFFERS,
                    leaf_index=leaf_index,
                    message=(
                        f"leaf {fact.cause_leaf_index} leads to another "
                        f"{type(due).__name__}"
                    ),
                    expected=ours,
                    found=theirs,
                )
            )

    def _decide(self, item: OpenedLeaf, *, is_admissible: bool) -> tuple[e.Fact, ...]:
        """Move the deciders by one leaf, and note what must follow."""
        leaf = item.sequenced
        try:
            self._states, facts = step_all(self._states, leaf)
            for fact in facts:
                self._expected[topics.topic_of(fact)].append(fact)
        except MemoryError:
            raise  # which says nothing about a leaf
        except Exception as error:
            if isinstance(error, UnknownRulesError) and is_admissible:
                raise  # which says nothing about a leaf either
            # Only a leaf that should not be there can cause this.
            msg = f"{type(error).__name__}: {error}"
            raise DeciderError(msg, leaf.leaf_index) from error
        return facts


def _describe_difference(ours: e.Fact, theirs: e.Fact) -> tuple[str, str]:
    """Return two facts as text, with only the fields that differ."""
    if type(ours) is not type(theirs):
        return str(ours), str(theirs)
    names = [
        part.name
        for part in fields(ours)
        if getattr(ours, part.name) != getattr(theirs, part.name)
    ]
    return _show_fields(ours, names), _show_fields(theirs, names)


def _show_fields(fact: Any, names: Iterable[str]) -> str:
    return ", ".join(f"{name}={getattr(fact, name)!r}" for name in names)
