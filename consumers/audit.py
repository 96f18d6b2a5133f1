"""The audit: one federation's log, replayed from its first record.

Nothing is believed that can be computed. Every record is opened with the functions
that wrote it: `protocol.log` (the sequencer's signature, the chain, the tree),
`protocol.admission` (who may say what, every leaf's signature), the deciders (what
follows from every leaf) and `protocol.plain` (what follows from every round's blobs).

Rules:

- Every byte of a record counts: key, value and headers are what the sequencer would
  have written.
- A fact on the log must be the very bytes that the deciders conclude, on its topic, in
  its turn. What they conclude and the log does not have yet is pending, no fault.
- Every block has its checkpoint, and every checkpoint its block.
- After a block that does not follow nothing can be believed: the audit ends there.
  Anything else is noted, and the audit goes on.

What it deliberately does not do: read Kafka or MinIO (the caller's iterators do, and
their exceptions pass through), run a model, or say that the log does not go on after
its end: for that compare the report's tree root with what others saw.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from typing import Final, cast

from adapters.kafka import Record
from adapters.schema_registry import FramingError
from consumers.audit_blobs import BlobAuditor, FetchBlob
from consumers.audit_report import (
    Finding,
    FindingCode,
    PendingFact,
    Place,
    Report,
)
from ledger.checkpoint import Checkpoint, verify_checkpoint
from ledger.note import InvalidNoteError, KeyType, VerifierKey
from ledger.signing import InvalidSignatureError
from protocol import admission, registry, rounds
from protocol.admission import AdmissionState, Received, Refused
from protocol.decider import step
from protocol.envelope import (
    EVENT_ID_HEADER,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    compute_input_id,
    verify_event,
)
from protocol.log import LogError, LogState, OpenedLeaf, open_block
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason

MAX_FINDINGS: Final = 100
FRAMING_SIZE: Final = 5
MAX_REJECTED_VALUE_BYTES: Final = admission.MAX_REJECTED_VALUE_BYTES

_FRAMING_REASONS: Final = frozenset(
    {Reason.NO_VALUE, Reason.TOO_LARGE, Reason.NOT_FRAMED, Reason.UNKNOWN_SCHEMA}
)
_UNSEEN_REASONS: Final = frozenset(
    # They depend on the record's signature, key, partition or order, or on what the
    # schema registry knew: a refusal does not keep those.
    {
        Reason.MISSING_SIGNATURE,
        Reason.BAD_SIGNATURE,
        Reason.DUPLICATE_EVENT,
        Reason.WRONG_PARTITION,
        Reason.WRONG_KEY,
        Reason.UNKNOWN_SCHEMA,
    }
)

Unframe = Callable[[bytes], bytes]
"""`adapters.schema_registry.SchemaRegistry.unframe_trusted`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an audit is."""

    offset: int
    num_blocks: int
    num_leaves: int
    num_findings: int


def audit_log(
    records: Iterable[Record],
    *,
    federation_id: str,
    unframe: Unframe,
    fetch_blob: FetchBlob | None = None,
    checkpoints: Iterable[Record] | None = None,
    settled_offset: int | None = None,
    operator_key: bytes | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    jobs: int = 2,
    max_findings: int = MAX_FINDINGS,
) -> Report:
    """Audit a federation's log.

    Args:
        records: The ledger's partition from offset 0, in order. Records of other
            federations may be among them.
        federation_id: The federation.
        unframe: From the wire to single-object bytes.
        fetch_blob: Where blobs are; None leaves them out.
        checkpoints: The checkpoints' partition from offset 0, in order, read lazily;
            None leaves them out. A checkpoint of a block that `records` does not have
            is a finding, so `records` must be read to an end that is later.
        settled_offset: Blocks below this offset must have their checkpoint; later ones
            may be too new for it. None: every block must.
        operator_key: Who founded it, 32 bytes; None takes the log's word.
        on_progress: Called after every block.
        jobs: Blobs fetched at a time.
        max_findings: The audit ends when it has so many.

    Returns:
        What was found. Whatever the records hold, this does not raise; what the
        iterators, ``unframe`` and ``fetch_blob`` raise because they cannot read
        passes through.
    """
    audit = _Audit(
        federation_id=federation_id,
        unframe=unframe,
        fetch_blob=fetch_blob,
        checkpoints=checkpoints,
        settled_offset=settled_offset,
        operator_key=operator_key,
        jobs=jobs,
        max_findings=max_findings,
    )
    try:
        audit.run(records, on_progress)
    finally:
        audit.close()
    return audit.summarise()


class _Stop(Exception):  # noqa: N818  # not an error of the audit
    """Nothing later can be believed, or there is enough to say."""


@dataclass(frozen=True, slots=True)
class _Expected:
    """A fact that the deciders concluded and the log should have next.

    Attributes:
        fact: The fact.
        data: Its encoding: what the leaf must hold.
        turn: Where its place among the facts of its topic is.
    """

    fact: e.Fact
    data: bytes
    turn: tuple[int, int]


class _Audit:
    """The state of one audit: what the log's readers know, and what was found."""

    def __init__(
        self,
        *,
        federation_id: str,
        unframe: Unframe,
        fetch_blob: FetchBlob | None,
        checkpoints: Iterable[Record] | None,
        settled_offset: int | None,
        operator_key: bytes | None,
        jobs: int,
        max_findings: int,
    ) -> None:
        self.report = Report(
            federation_id=federation_id,
            is_operator_key_pinned=operator_key is not None,
        )
        self._key = federation_id.encode()
        self._mark = _string_prefix(self._key)
        self._unframe = unframe
        self._operator_key = operator_key
        self._settled_offset = settled_offset
        self._max_findings = max_findings
        self._log = LogState()
        self._admission = AdmissionState()
        self._rounds = rounds.DECIDER.initial
        self._registry = registry.DECIDER.initial
        self._expected: defaultdict[str, deque[_Expected]] = defaultdict(deque)
        self._blobs = (
            None
            if fetch_blob is None
            else BlobAuditor(fetch_blob, self.report, self._add, max(1, jobs))
        )
        # The current round's updates: where each is, and which were accepted.
        self._updates: dict[int, e.UpdateSubmitted] = {}
        self._accepted: dict[str, e.BlobRef] = {}
        self._sealed: e.RoundSealed | None = None
        self._last_place = Place()
        self._checkpoints = (
            None if checkpoints is None else self._open_checkpoints(checkpoints)
        )
        self._next_checkpoint: _Signed | None = None

    def run(
        self,
        records: Iterable[Record],
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        """Read everything, or as much as can be believed."""
        report = self.report
        try:
            for record in records:
                if self.read(record) and on_progress is not None:
                    on_progress(
                        Progress(
                            offset=record.offset,
                            num_blocks=report.num_blocks,
                            num_leaves=report.num_leaves,
                            num_findings=len(report.findings),
                        )
                    )
            self._finish()
        except _Stop as stop:
            report.stopped = str(stop)
            # What came before the break still counts.
            with suppress(_Stop):
                self._drain()

    def close(self) -> None:
        """End the threads."""
        if self._blobs is not None:
            self._blobs.close()

    def _add(self, finding: Finding) -> None:
        self.report.findings.append(finding)
        if len(self.report.findings) >= self._max_findings:
            msg = f"{len(self.report.findings)} findings are enough"
            raise _Stop(msg)

    def _stop(
        self,
        code: FindingCode,
        place: Place,
        message: str,
        expected: str = "",
        found: str = "",
    ) -> _Stop:
        self._add(
            Finding(
                code=code, place=place, message=message, expected=expected, found=found
            )
        )
        return _Stop(f"{code} at {place}: nothing later can be believed")

    # Records

    def read(self, record: Record) -> bool:
        """Audit one record; returns whether it was of this federation."""
        if not self._is_ours(record, Place(offset=record.offset)):
            return False
        value = record.value or b""
        height = self._log.chain.height
        try:
            data = self._unframe(value)
        except FramingError as error:
            raise self._stop(
                FindingCode.NOT_FRAMED,
                Place(offset=record.offset, height=height),
                "the record is not a framed event",
                found=str(error),
            ) from error
        signature = record.header(SIGNATURE_HEADER)
        try:
            after, block, leaves = open_block(self._log, data, signature)
            if block.federation_id != self.report.federation_id:
                msg = "the block is of another federation"
                raise LogError(  # noqa: TRY301  # one handler says where
                    msg,
                    height=block.height,
                    expected=self.report.federation_id,
                    found=block.federation_id,
                )
        except LogError as error:
            raise self._stop(
                FindingCode.BROKEN_LOG,
                Place(offset=record.offset, height=height, leaf_index=error.leaf_index),
                str(error),
                error.expected,
                error.found,
            ) from error
        place = Place(offset=record.offset, height=block.height)
        traceparent = next(filter(None, block.traceparents), "")
        self._check_headers(record, place, after.sequencer_key, data, traceparent)
        if block.height == 0:
            self._read_genesis(leaves[0], after, place)
        self._log = after
        self._read_leaves(leaves, place)
        self._match_checkpoint(place, traceparent)
        report = self.report
        report.num_blocks += 1
        report.num_leaves += len(leaves)
        report.num_signatures += len(leaves) + 1
        report.log_bytes += len(value)
        self._last_place = place
        return True

    def _is_ours(self, record: Record, place: Place) -> bool:
        if record.key == self._key:
            return True
        # Every event on these topics begins with its federation.
        if record.value is None or not record.value.startswith(
            self._mark, FRAMING_SIZE
        ):
            return False
        self._add(
            Finding(
                code=FindingCode.WRONG_KEY,
                place=place,
                message="a record of this federation has another key",
                expected=repr(self._key),
                found=repr(record.key),
            )
        )
        return True

    def _check_headers(
        self,
        record: Record,
        place: Place,
        sequencer_key: bytes,
        data: bytes,
        traceparent: str,
    ) -> None:
        # The signature itself was verified, or the block would not have opened.
        expected = (
            (SIGNATURE_HEADER, record.header(SIGNATURE_HEADER) or b""),
            (EVENT_ID_HEADER, compute_input_id(sequencer_key, data)),
            (TRACEPARENT_HEADER, traceparent.encode()),
        )
        if record.headers != expected:
            self._add(
                Finding(
                    code=FindingCode.WRONG_HEADERS,
                    place=place,
                    message="the headers are not what the sequencer writes",
                    expected=_show_headers(expected),
                    found=_show_headers(record.headers),
                )
            )

    def _read_genesis(self, leaf: OpenedLeaf, log: LogState, place: Place) -> None:
        genesis = leaf.sequenced.event
        assert isinstance(genesis, e.FederationConfigured), "open_block demands it"
        founder = next(
            (p.public_key for p in genesis.principals if p.role == "OPERATOR"), b""
        )
        self.report.operator_key = founder.hex()
        self.report.sequencer_key = log.sequencer_key.hex()
        place = Place(offset=place.offset, height=0, leaf_index=0)
        if self._operator_key is not None and founder != self._operator_key:
            raise self._stop(
                FindingCode.WRONG_OPERATOR,
                place,
                "the federation was founded by somebody else",
                self._operator_key.hex(),
                founder.hex(),
            )
        fault = admission.find_fault(AdmissionState(), [(leaf.leaf, genesis)])
        if fault is not None:
            raise self._stop(
                FindingCode.NOT_ADMISSIBLE,
                place,
                f"the federation is not validly founded: {fault[1]}: {fault[2]}",
            )

    # Leaves

    def _read_leaves(self, leaves: list[OpenedLeaf], block: Place) -> None:
        pairs = [(item.leaf, item.sequenced.event) for item in leaves]
        faulty = self._check_admission(pairs, leaves, block)
        before = self._admission
        done = 0
        for number, item in enumerate(leaves):
            event = item.sequenced.event
            self.report.events[type(event).__name__] += 1
            place = Place(
                offset=block.offset,
                height=block.height,
                leaf_index=item.sequenced.leaf_index,
            )
            if isinstance(event, e.EventRejected):
                self.report.refusals[event.reason] += 1
                if number in faulty:
                    continue  # no decider reads refusals
                # The state that the sequencer refused it in.
                before = admission.evolve(
                    before,
                    [
                        p
                        for i, p in enumerate(pairs[done:number], done)
                        if i not in faulty
                    ],
                )
                done = number
                self._check_refusal(event, before, place)
            elif isinstance(event, e.Fact):
                self._check_fact(event, item.leaf, place, is_faulty=number in faulty)
            self._decide(item, place)
        after = admission.evolve(
            self._admission, [p for i, p in enumerate(pairs) if i not in faulty]
        )
        # What should not be there changes nothing, but it counts.
        self._admission = replace(after, num_leaves=self._log.chain.size)

    def _check_admission(
        self,
        pairs: list[tuple[e.Leaf, e.LedgerEvent]],
        leaves: list[OpenedLeaf],
        block: Place,
    ) -> set[int]:
        """Return which leaves of a block should not be there; they are reported."""
        faulty: set[int] = set()
        while True:
            left = [number for number in range(len(pairs)) if number not in faulty]
            fault = admission.find_fault(
                self._admission, [pairs[number] for number in left]
            )
            if fault is None:
                return faulty
            number = left[fault[0]]
            faulty.add(number)
            event = pairs[number][1]
            self._add(
                Finding(
                    code=FindingCode.NOT_ADMISSIBLE,
                    place=Place(
                        offset=block.offset,
                        height=block.height,
                        leaf_index=leaves[number].sequenced.leaf_index,
                    ),
                    message="this leaf should not have been admitted",
                    expected=f"a refusal: {fault[1]}",
                    found=f"{type(event).__name__}: {fault[2]}",
                )
            )

    def _check_refusal(
        self, refusal: e.EventRejected, state: AdmissionState, place: Place
    ) -> None:
        """Check as much of a refusal as it still shows."""
        problem = self._find_refusal_problem(refusal, state)
        if problem:
            self._add(
                Finding(
                    code=FindingCode.FALSE_REFUSAL,
                    place=place,
                    message="a record was refused for what it does not show",
                    expected=problem,
                    found=f"{refusal.reason}: {refusal.detail}",
                )
            )

    def _find_refusal_problem(
        self, refusal: e.EventRejected, state: AdmissionState
    ) -> str:
        """Return why it should not have been refused like this; empty if it should."""
        reason, size = refusal.reason, refusal.value_size_bytes
        if reason == Reason.TOO_LARGE:
            return "" if size > codec.MAX_EVENT_SIZE_BYTES else f"{size} bytes are few"
        if size > MAX_REJECTED_VALUE_BYTES:
            self.report.num_refusals_unchecked += 1
            return ""
        found = self._judge(refusal, state)
        if found == reason or (
            found in _FRAMING_REASONS and reason in _FRAMING_REASONS
        ):
            return ""
        if found not in _FRAMING_REASONS and reason in _UNSEEN_REASONS:
            self.report.num_refusals_unchecked += 1
            return ""
        return f"{found or 'no refusal'}, if any"

    def _judge(self, refusal: e.EventRejected, state: AdmissionState) -> str:
        """Return why admission would refuse the record, without its signature."""
        try:
            event = self._unframe(refusal.value)
        except FramingError as error:
            return error.reason
        received = Received(
            topic=refusal.source_topic,
            partition=refusal.source_partition,
            offset=refusal.source_offset,
            key=self._key,
            value=refusal.value,
            event=event,
            signature=None,
        )
        verdict = admission.decide(state, [received])[0]
        return verdict.event.reason if isinstance(verdict, Refused) else ""

    # Facts

    def _check_fact(
        self, fact: e.Fact, leaf: e.Leaf, place: Place, *, is_faulty: bool
    ) -> None:
        expected = self._expected[topics.topic_of(fact)]
        turn = (fact.cause_leaf_index, fact.output_index)
        if all(item.turn != turn for item in expected):
            if not is_faulty:
                self._add(
                    Finding(
                        code=FindingCode.FACT_INVENTED,
                        place=place,
                        message="nothing on the log leads to this fact",
                        expected=f"next: {expected[0].fact}" if expected else "no fact",
                        found=str(fact),
                    )
                )
            return
        while expected[0].turn != turn:
            self._add_missing(expected.popleft(), place)
        due = expected.popleft()
        if due.data == leaf.event:
            if not is_faulty:
                self.report.facts[type(fact).__name__] += 1
            return
        ours, theirs = _describe_fact_difference(due.fact, fact)
        self._add(
            Finding(
                code=FindingCode.FACT_DIFFERS,
                place=place,
                message=(
                    f"leaf {fact.cause_leaf_index} leads to another "
                    f"{type(due.fact).__name__}"
                ),
                expected=ours,
                found=theirs,
            )
        )

    def _add_missing(self, missing: _Expected, place: Place) -> None:
        fact = missing.fact
        self._add(
            Finding(
                code=FindingCode.FACT_MISSING,
                place=place,
                message=(
                    f"a fact that follows from leaf {fact.cause_leaf_index} "
                    "is not on the log"
                ),
                expected=str(fact),
                found="the next one" if place.leaf_index is not None else "nothing",
            )
        )

    def _decide(self, item: OpenedLeaf, place: Place) -> None:
        """Move the deciders by one leaf, and note what must follow."""
        try:
            self._rounds, facts = step(rounds.DECIDER, self._rounds, item.sequenced)
            self._registry, versions = step(
                registry.DECIDER, self._registry, item.sequenced
            )
            for fact in (*facts, *versions):
                turn = (fact.cause_leaf_index, fact.output_index)
                self._expected[topics.topic_of(fact)].append(
                    _Expected(fact, codec.encode(fact), turn)
                )
        except Exception as error:
            # Only a leaf that should not be there can do this.
            raise self._stop(
                FindingCode.DECIDER_FAILED,
                place,
                "the deciders cannot read this leaf",
                found=f"{type(error).__name__}: {error}",
            ) from error
        self._follow_round(item, facts, versions, place)

    # Blobs

    def _follow_round(
        self,
        item: OpenedLeaf,
        facts: Iterable[e.RoundFact],
        versions: Iterable[e.RegistryFact],
        place: Place,
    ) -> None:
        """Keep the current round's blobs in view, and check what is decided."""
        event = item.sequenced.event
        current = self._rounds.current
        if isinstance(event, e.UpdateSubmitted):
            if current is not None and item.sequenced.leaf_index in current.pending:
                self._updates[item.sequenced.leaf_index] = event
        elif isinstance(event, e.FederationConfigured) and self._blobs is not None:
            self._blobs.check_initial_model(
                event.initial_model, event.num_parameters, place
            )
        for fact in facts:
            self._follow_fact(event, fact, place)
        if self._blobs is not None:
            for version in versions:
                self._blobs.check_onnx(version.onnx, place)

    def _follow_fact(
        self, event: e.LedgerEvent, fact: e.RoundFact, place: Place
    ) -> None:
        match fact:
            case e.ContributionAccepted():
                update = self._updates.pop(fact.update_leaf_index)
                self._accepted[fact.agent_id] = update.update
            case e.ContributionRejected():
                self.report.rejections[fact.reason] += 1
                rejected = self._updates.pop(fact.update_leaf_index, None)
                if (
                    isinstance(event, e.UpdatesChecked)
                    and rejected is not None
                    and self._blobs is not None
                ):
                    size = self._num_parameters()
                    self._blobs.check_claim(rejected.update, size, fact.reason, place)
            case e.RoundSealed():
                self._sealed = fact
            case e.AggregatePublished():
                assert self._sealed is not None, "the decider publishes what it sealed"
                refs = [self._accepted[c.agent_id] for c in self._sealed.contributions]
                if self._blobs is not None:
                    self._blobs.check_round(self._sealed, refs, fact, place)
                self._end_round()
            case e.RoundAbandoned():
                self._check_unsummed(place)
                self._end_round()
            case _:
                pass

    def _check_unsummed(self, place: Place) -> None:
        """Check accepted updates that did not enter a published sum."""
        if self._blobs is not None:
            for ref in self._accepted.values():
                self._blobs.check_update(ref, self._num_parameters(), place)

    def _end_round(self) -> None:
        self._updates.clear()
        self._accepted.clear()
        self._sealed = None

    def _num_parameters(self) -> int:
        config = self._rounds.config
        assert config is not None, "a round has a configuration"
        return config.num_parameters

    # Checkpoints

    def _open_checkpoints(self, records: Iterable[Record]) -> Iterator[_Signed]:
        """Yield the federation's checkpoints that its sequencer signed."""
        for record in records:
            place = Place(topic=topics.CHECKPOINTS, offset=record.offset)
            if not self._is_ours(record, place):
                continue
            signed = self._open_checkpoint(record, place)
            if signed is not None:
                yield signed

    def _open_checkpoint(self, record: Record, place: Place) -> _Signed | None:
        try:
            data = self._unframe(record.value or b"")
            event = codec.decode_as(e.CheckpointSigned, data)
            verify_event(
                self._log.sequencer_key, data, record.header(SIGNATURE_HEADER) or b""
            )
            origin = f"folkmoot/{self.report.federation_id}"
            key = VerifierKey(origin, KeyType.ED25519, self._log.sequencer_key)
            verified = verify_checkpoint(event.checkpoint.encode(), key, origin)
        except (
            FramingError,
            codec.CodecError,
            InvalidSignatureError,
            InvalidNoteError,
        ) as error:
            self._add(
                Finding(
                    code=FindingCode.CHECKPOINT_INVALID,
                    place=place,
                    message="not a checkpoint that this log's sequencer signed",
                    found=str(error),
                )
            )
            return None
        self.report.num_signatures += 2
        place = Place(topic=place.topic, offset=place.offset, height=event.height)
        return _Signed(record, place, data, event, verified.checkpoint)

    def _match_checkpoint(self, block: Place, traceparent: str) -> None:
        """Find the checkpoint that follows a block, and compare."""
        if self._checkpoints is None:
            return
        height = cast("int", block.height)
        while True:
            if self._next_checkpoint is None:
                self._next_checkpoint = next(self._checkpoints, None)
            signed = self._next_checkpoint
            if signed is None or signed.event.height > height:
                self._miss_checkpoint(block, is_end=signed is None)
                return
            self._next_checkpoint = None
            if signed.event.height == height:
                self._compare_checkpoint(signed, traceparent)
                return
            self._add(
                Finding(
                    code=FindingCode.CHECKPOINT_MISPLACED,
                    place=signed.place,
                    message="the checkpoint was there before, or comes out of turn",
                    expected=f"the checkpoint of block {height}",
                    found=f"that of block {signed.event.height}",
                )
            )

    def _miss_checkpoint(self, block: Place, *, is_end: bool) -> None:
        if (
            is_end
            and self._settled_offset is not None
            and block.offset is not None
            and block.offset >= self._settled_offset
        ):
            self.report.num_unsigned_blocks += 1
            return
        self._add(
            Finding(
                code=FindingCode.CHECKPOINT_MISSING,
                place=block,
                message="the block has no checkpoint",
                expected=f"a checkpoint of size {self._log.chain.size}",
                found="none",
            )
        )

    def _compare_checkpoint(self, signed: _Signed, traceparent: str) -> None:
        chain = self._log.chain
        checkpoint = signed.checkpoint
        ours = Checkpoint(
            origin=checkpoint.origin, size=chain.size, root=chain.tree.root()
        )
        if checkpoint != ours or signed.event.height != chain.height - 1:
            self._add(
                Finding(
                    code=FindingCode.CHECKPOINT_DIFFERS,
                    place=signed.place,
                    message="the sequencer signed another log than this one",
                    expected=_show_checkpoint(ours),
                    found=_show_checkpoint(checkpoint),
                )
            )
        self._check_headers(
            signed.record,
            signed.place,
            self._log.sequencer_key,
            signed.data,
            traceparent,
        )
        self.report.num_checkpoints += 1

    # The end

    def _finish(self) -> None:
        """Look at what is left when the log has been read."""
        if self._checkpoints is not None:
            self._finish_checkpoints(self._checkpoints)
        for topic, expected in self._expected.items():
            last = self._admission.last_facts.get(topic, (-1, -1))
            for item in expected:
                if item.turn < last:  # admission lets nothing go back
                    self._add_missing(item, Place())
                else:
                    name = type(item.fact).__name__
                    self.report.pending.append(
                        PendingFact(
                            event=name, cause_leaf_index=item.fact.cause_leaf_index
                        )
                    )
        self._check_unsummed(self._last_place)
        self._drain()

    def _drain(self) -> None:
        if self._blobs is not None:
            self._blobs.drain()

    def _finish_checkpoints(self, checkpoints: Iterator[_Signed]) -> None:
        if self._log.sequencer_key == b"":
            # Without a log nobody knows whose signature to look for; the records are
            # reported as what they are.
            for _ in checkpoints:
                pass
            return
        first = self._next_checkpoint or next(checkpoints, None)
        if first is None:
            return
        count, last = 1, first
        for last in checkpoints:  # noqa: B007  # its last value is what counts
            count += 1
        self._add(
            Finding(
                code=FindingCode.CHECKPOINT_BEYOND_END,
                place=first.place,
                message=(
                    f"{count} checkpoints are of blocks that the log does not have: "
                    "it was cut off, or these are out of turn"
                ),
                expected=f"none after block {self._log.chain.height - 1}",
                found=f"up to block {last.event.height}, "
                + _show_checkpoint(last.checkpoint),
            )
        )

    def summarise(self) -> Report:
        """Return the report with everything that the verdict rests on."""
        report = self.report
        chain = self._log.chain
        if chain.height:
            report.tree_root = chain.tree.root().hex()
        report.findings.sort(key=_sort_key)
        report.notes = list(self._notes())
        return report

    def _notes(self) -> Iterator[str]:
        report = self.report
        if report.operator_key and not report.is_operator_key_pinned:
            yield (
                f"The operator's key {report.operator_key} is the log's own word: "
                "compare it with what the operator gave you, and pin it."
            )
        if self._blobs is None:
            yield "Blobs were left out: no sum and no model was computed again."
        if self._checkpoints is None:
            yield "Checkpoints were left out: a cut at the log's end would not show."
        if report.num_blocks:
            yield (
                f"Nothing in a log proves that it goes no further: compare size "
                f"{report.num_leaves} and root {report.tree_root} with what others saw."
            )
        if report.num_claims_unchecked:
            yield (
                f"{report.num_claims_unchecked} updates were rejected because of blobs "
                "that are not in the store: the aggregator's word."
            )
        if report.num_refusals_unchecked:
            yield (
                f"{report.num_refusals_unchecked} records were refused for their "
                "signature, key or order, which a refusal does not keep: the "
                "sequencer's word."
            )
        if report.facts["ModelVersionRegistered"]:
            yield (
                "Accuracy and loss of model versions, and that an ONNX file is the "
                "model, are the exporter's word."
            )
        if report.pending:
            oldest = min(item.cause_leaf_index for item in report.pending)
            yield (
                f"{len(report.pending)} facts follow from the log and are not on it "
                f"yet, the oldest from leaf {oldest}."
            )


@dataclass(frozen=True, slots=True)
class _Signed:
    """A checkpoint that the sequencer signed, to be compared with the log."""

    record: Record
    place: Place
    data: bytes
    event: e.CheckpointSigned
    checkpoint: Checkpoint


def _string_prefix(text: bytes) -> bytes:
    """Return a string as Avro writes it: its length, zigzag and varint, then itself."""
    number = len(text) << 1
    out = bytearray()
    while number > 0x7F:  # noqa: PLR2004  # Avro 1.12, "Binary encoding"
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out) + text


def _show_headers(headers: Iterable[tuple[str, bytes]]) -> str:
    return ", ".join(
        f"{name}={value.decode('ascii', 'replace')}"
        if name == TRACEPARENT_HEADER
        else f"{name}={value.hex()}"
        for name, value in headers
    )


def _show_checkpoint(checkpoint: Checkpoint) -> str:
    extra = "".join(f", {line!r}" for line in checkpoint.extensions)
    return f"size {checkpoint.size}, root {checkpoint.root.hex()}{extra}"


def _describe_fact_difference(ours: e.Fact, theirs: e.Fact) -> tuple[str, str]:
    """Return two facts as people compare them: only the fields that differ."""
    if type(ours) is not type(theirs):
        return str(ours), str(theirs)
    names = [
        field.name
        for field in fields(ours)
        if getattr(ours, field.name) != getattr(theirs, field.name)
    ]
    return _show_fields(ours, names), _show_fields(theirs, names)


def _show_fields(fact: e.Fact, names: Iterable[str]) -> str:
    return ", ".join(f"{name}={getattr(fact, name)!r}" for name in names)


def _sort_key(finding: Finding) -> tuple[bool, str, int, int]:
    place = finding.place
    return (
        place.topic != topics.LEDGER,
        place.topic,
        -1 if place.offset is None else place.offset,
        -1 if place.leaf_index is None else place.leaf_index,
    )
