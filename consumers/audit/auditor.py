"""The audit: one federation's log, replayed from its first record.

Nothing is believed that can be computed. Every record is opened with the functions
that wrote it: `protocol.log` (the sequencer's signature, the chain, the tree),
`protocol.admission` (who may say what, every leaf's signature), the deciders (what
follows from every leaf) and `protocol.model` (what follows from every round's blobs).
Finality is counted from the ledger nodes' signatures (`consumers.audit.finality`).

Rules:

- Every byte of a record counts: key, value and headers are what its author would have
  written.
- A fact on the log must be the very bytes that the deciders conclude, on its topic, in
  its turn. What they conclude and the log does not have yet is pending, no fault.
- Every block has its checkpoint, and every checkpoint its block.
- Ledger nodes attest the blocks of this log and no others. Blocks that are not final
  yet are no fault.
- Whom a finding could be laid to by somebody else is no finding (ADR 0026). Where
  anybody may write, what anybody could have written is counted and passed over; what
  few ledger nodes say wrongly is listed as their fault.
- After a block that does not follow nothing can be believed: the audit ends there.
  Anything else is noted, and the audit goes on. Of each kind of finding the first few
  are listed and the rest counted: none hides another.
- An audit can go on from where an earlier one ended, if the log still has there what it
  had then, and still begins where it began.

What it deliberately does not do: read Kafka or MinIO (the caller's iterators do, and
their exceptions pass through), run a model, or say that the log does not go on after
its end: for that compare the report's tree root with what others saw.
"""

from __future__ import annotations

import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Final

from adapters.kafka import Record
from adapters.schema_registry import FramingError
from consumers.audit.blobs import BlobAuditor, FetchBlob
from consumers.audit.claims import AnswersClaim, PartClaim, ResultClaim, read_claims
from consumers.audit.finality import FinalityAuditor, hash_context
from consumers.audit.parallel import CheckpointContext, Helpers, Item
from consumers.audit.report import (
    Equivocation,
    Finding,
    FindingCode,
    Noise,
    PendingFact,
    Place,
    RefusedRecord,
    Report,
)
from consumers.audit.state import (
    AuditState,
    ExpectedCheckpoint,
    Position,
    hash_record,
)
from ledger.attestations import InvalidMessageError
from ledger.checkpoint import Checkpoint, compute_origin
from ledger.equivocation import identify_contradiction
from ledger.note import InvalidNoteError
from ledger.policy import Policy
from ledger.signing import InvalidSignatureError
from protocol import admission
from protocol.admission import AdmissionState
from protocol.envelope import (
    EVENT_ID_HEADER,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    compute_input_id,
)
from protocol.log import LogError, LogState, OpenedLeaf
from protocol.replay import (
    DeciderError,
    Fault,
    FaultCode,
    Replayed,
    ReplayedLeaf,
    describe_missing,
    find_missing,
    find_pending,
    replay_block,
)
from protocol.round_view import RoundView, follow
from protocol.rules import UnknownRulesError
from schemas import codec, topics
from schemas import events as e
from schemas.reasons import Reason

MAX_FINDINGS: Final = 100
"""Findings of each kind that a report lists; the counts go on."""
MAX_SHOWN: Final = 1_000
"""Characters of what was expected and what was found."""
MAX_LISTED: Final = 10_000
"""Refused records that a report lists; the counts go on."""
_TRACEPARENT: Final = re.compile(rb"(?:00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?")

Unframe = Callable[[bytes], bytes]
"""`adapters.schema_registry.SchemaRegistry.unframe_trusted`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an audit is."""

    offset: int
    num_blocks: int
    num_leaves: int
    num_findings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit leaves.

    Attributes:
        report: What was found.
        state: What the next audit goes on from. After an audit that ended early it is
            that before its first record.
    """

    report: Report
    state: AuditState


def run_audit(
    records: Iterable[Record],
    *,
    federation_id: str,
    unframe: Unframe,
    fetch_blob: FetchBlob | None = None,
    checkpoints: Iterable[Record] | None = None,
    attestations: Iterable[Record] | None = None,
    settled_offset: int | None = None,
    first_offsets: Mapping[str, int] | None = None,
    operator_key: bytes | None = None,
    policy: Policy | None = None,
    start: AuditState | None = None,
    on_progress: Callable[[Progress], None] | None = None,
    num_fetches: int = 2,
    jobs: int = 1,
    helpers: Helpers | None = None,
    max_findings: int = MAX_FINDINGS,
    lists_refused: bool = False,
) -> Audited:
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
        attestations: The attestations' partition likewise, with the same demand; read
            after the others.
        settled_offset: Blocks below this offset must have their checkpoint; later ones
            may be too new for it. None: every block must.
        first_offsets: By topic, the offset of the partition's first record that is
            left, where that is known. What an earlier audit read is not read again, so
            nothing else shows that it was deleted.
        operator_key: Who founded it, 32 bytes; None takes the log's word.
        policy: Whose cosignatures the reader demands; None demands none.
        start: Where an earlier audit ended. Each partition is then read from its
            ``positions`` on, that record included. It is not changed.
        on_progress: Called after every block.
        num_fetches: Blobs fetched at a time.
        jobs: Processes, this one included. The report is the same for any number.
        helpers: Other processes that exist already, instead of `jobs`.
        max_findings: How many findings of each kind the report lists; the rest is
            counted.
        lists_refused: Whether the report lists every refused record, or counts alone.

    Returns:
        What was found, and where it ended. Whatever the records hold, this does not
        raise; what the iterators, ``unframe`` and ``fetch_blob`` raise because they
        cannot read passes through.
    """
    own = Helpers(jobs - 1) if helpers is None else None
    audit = _Audit(
        federation_id=federation_id,
        unframe=unframe,
        fetch_blob=fetch_blob,
        settled_offset=settled_offset,
        first_offsets=first_offsets or {},
        operator_key=operator_key,
        policy=policy,
        start=start,
        num_fetches=num_fetches,
        helpers=helpers or own or Helpers(0),
        max_findings=max_findings,
        lists_refused=lists_refused,
    )
    try:
        audit.run(records, checkpoints, attestations, on_progress)
    finally:
        audit.close()
        if own is not None:
            own.close()
    return Audited(report=audit.summarise(), state=audit.end_state(start))


class _Stop(Exception):  # noqa: N818  # not an error of the audit
    """Nothing later can be believed, or there is enough to say."""


class _Audit:
    """The state of one audit: what the log's readers know, and what was found."""

    def __init__(
        self,
        *,
        federation_id: str,
        unframe: Unframe,
        fetch_blob: FetchBlob | None,
        settled_offset: int | None,
        first_offsets: Mapping[str, int],
        operator_key: bytes | None,
        policy: Policy | None,
        start: AuditState | None,
        num_fetches: int,
        helpers: Helpers,
        max_findings: int,
        lists_refused: bool,
    ) -> None:
        before = (
            AuditState(report=Report(federation_id=federation_id))
            if start is None
            # The rest is never changed, only replaced.
            else replace(
                start,
                positions=dict(start.positions),
                first_offsets=dict(start.first_offsets),
                view=deepcopy(start.view),
                watches=tuple(map(copy, start.watches)),
                finality=deepcopy(start.finality),
                report=deepcopy(start.report),
            )
        )
        self.report = before.report
        self.report.is_operator_key_pinned = operator_key is not None
        self.report.continued_from = before.replay.log.chain.height
        self.report.pending = []
        self._noise = {(n.topic, n.code): n for n in self.report.noise}
        self._key = federation_id.encode()
        self._mark = _string_prefix(self._key)
        self._unframe = unframe
        self._operator_key = operator_key
        self._policy = policy
        self._settled_offset = settled_offset
        self._helpers = helpers
        self._max_findings = max_findings
        self._lists_refused = lists_refused
        self._state = before.replay
        self._rounds = before.replay.rounds
        self._positions = before.positions
        self._own_firsts = before.first_offsets
        self._first_offsets = first_offsets
        config = self._rounds.config
        self._blobs = (
            None
            if fetch_blob is None
            else BlobAuditor(
                fetch_blob,
                self.report,
                self._add,
                max(1, num_fetches),
                None if config is None else config.initial_model,
            )
        )
        self._view = before.view
        self._watches = before.watches
        self._last_place = Place()
        self._expected = deque(before.checkpoints)
        self._checkpoints: Iterator[_Signed] | None = None
        self._next_checkpoint: _Signed | None = None
        self._finality = FinalityAuditor(federation_id, self._add, before.finality)
        self._authors = AdmissionState()
        self._checkpoint_context: CheckpointContext | None = None

    def run(
        self,
        records: Iterable[Record],
        checkpoints: Iterable[Record] | None,
        attestations: Iterable[Record] | None,
        on_progress: Callable[[Progress], None] | None,
    ) -> None:
        """Read everything, or as much as can be believed."""
        report = self.report
        report.has_blobs = self._blobs is not None
        report.has_checkpoints = checkpoints is not None
        report.has_attestations = attestations is not None
        try:
            if checkpoints is not None:
                self._checkpoints = self._open_checkpoints(checkpoints)
            for record in self._read_ledger(records):
                if self.read(record) and on_progress is not None:
                    on_progress(
                        Progress(
                            offset=record.offset,
                            num_blocks=report.num_blocks,
                            num_leaves=report.num_leaves,
                            num_findings=len(report.findings),
                        )
                    )
            if attestations is not None:
                self._read_attestations(attestations)
            self._finish()
        except _Stop as stop:
            report.stopped = str(stop)
            # What came before the break still counts.
            with suppress(_Stop):
                self._finish_expected()
                self._drain()

    def end_state(self, start: AuditState | None) -> AuditState:
        """Return what the next audit goes on from."""
        if self.report.stopped:
            return start or AuditState(
                report=Report(federation_id=self.report.federation_id)
            )
        report = replace(
            self.report, findings=[], num_findings=Counter(), node_faults=[], notes=[]
        )
        return AuditState(
            positions=self._positions,
            first_offsets=self._own_firsts,
            replay=self._state,
            view=self._view,
            watches=self._watches,
            checkpoints=list(self._expected),
            finality=self._finality.state,
            report=report,
        )

    @property
    def _log(self) -> LogState:
        return self._state.log

    def _unframe_refused(self, value: bytes) -> bytes | Reason:
        try:
            return self._unframe(value)
        except FramingError as error:
            return error.reason

    def close(self) -> None:
        """End the threads."""
        if self._blobs is not None:
            self._blobs.close()

    def _add(self, finding: Finding) -> None:
        counts = self.report.num_findings
        counts[finding.code] += 1
        if counts[finding.code] <= self._max_findings:
            self.report.findings.append(
                replace(
                    finding,
                    expected=_shorten(finding.expected),
                    found=_shorten(finding.found),
                )
            )

    def _pass_over(self, finding: Finding) -> None:
        """Count what anybody could have written, instead of a finding."""
        key = (finding.place.topic, finding.code)
        noise = self._noise.get(key)
        if noise is None:
            noise = self._noise[key] = Noise(
                topic=finding.place.topic,
                code=finding.code,
                count=0,
                first=finding.place,
                message=_shorten(f"{finding.message}: {finding.found}"),
            )
            self.report.noise.append(noise)
        noise.count += 1

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

    def _continue(self, records: Iterable[Record], topic: str) -> Iterator[Record]:
        """Yield what comes after the records that an earlier audit saw."""
        position = self._positions.get(topic)
        remaining = iter(records)
        if position is not None:
            self._demand_beginning(topic)
            self._demand(next(remaining, None), position, topic)
        yield from remaining

    def _demand_beginning(self, topic: str) -> None:
        """Check that nothing was deleted of what an earlier audit saw first.

        A partition holds several federations: of records before this one's first the
        audit says nothing.
        """
        first = self._first_offsets.get(topic, 0)
        own_first = self._own_firsts.get(topic, 0)
        if first > own_first:
            raise self._stop(
                FindingCode.LOG_TRUNCATED,
                Place(topic=topic, offset=own_first),
                "the beginning of what an earlier audit saw was deleted; Kafka's "
                "operator can do that. Copy what is left, and what ledger nodes have",
                f"a partition that begins at offset {own_first} or before",
                f"it begins at offset {first}",
            )

    def _demand(self, found: Record | None, position: Position, topic: str) -> None:
        """Check that the last record that an earlier audit saw still is there."""
        chain = self._log.chain
        place = Place(topic=topic, offset=position.offset)
        expected = f"a record with SHA-256 {position.digest.hex()}"
        if topic == topics.LEDGER:
            expected += (
                f", block hash {chain.previous_block_hash.hex()}, tree size "
                f"{chain.size} and root {chain.tree.root().hex()}"
            )
        if found is None or found.offset != position.offset:
            raise self._stop(
                FindingCode.LOG_TRUNCATED,
                place,
                "the topic does not have what an earlier audit saw here",
                expected,
                "nothing" if found is None else f"offset {found.offset} instead",
            )
        if hash_record(found) != position.digest:
            raise self._stop(
                FindingCode.LOG_REWRITTEN,
                place,
                "this is not the record that an earlier audit saw here",
                expected,
                f"SHA-256 {hash_record(found).hex()}",
            )

    def _mark_read(self, record: Record, topic: str) -> None:
        self._own_firsts.setdefault(topic, record.offset)
        self._positions[topic] = Position(
            offset=record.offset, digest=hash_record(record)
        )

    def _open_item(self, record: Record) -> Item | None:
        """Return what of a record others can check ahead."""
        if record.key != self._key:
            return None
        try:
            data = self._unframe(record.value or b"")
        except FramingError:
            return None
        return data, record.header(SIGNATURE_HEADER) or b""

    def _read_ledger(self, records: Iterable[Record]) -> Iterator[Record]:
        return self._helpers.read_ahead(
            self._continue(records, topics.LEDGER),
            "blocks",
            self._find_authors,
            self._open_item,
        )

    def _find_authors(self) -> AdmissionState | None:
        """Return the keys that are known by now; the same object if they did not
        change.
        """
        state = self._state.admission
        if (
            state.agents is not self._authors.agents
            or state.principals is not self._authors.principals
        ):
            self._authors = AdmissionState(
                federation_id=state.federation_id,
                genesis=state.genesis,
                principals=state.principals,
                agents=state.agents,
            )
        return self._authors if self._authors.principals else None

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
        replayed = self._replay(record, data)
        block, after = replayed.block, replayed.state.log
        leaves = [item.opened for item in replayed.leaves]
        place = Place(offset=record.offset, height=block.height)
        traceparent = next(filter(None, block.traceparents), "")
        self._check_headers(record, place, after.sequencer_key, data, traceparent)
        if block.height == 0:
            self._read_genesis(leaves[0], after, place)
        node_sets = self._state.admission.node_sets
        self._state = replayed.state
        self._finality.add_block(node_sets, self._state)
        self._read_leaves(replayed, place)
        if self._checkpoints is not None:
            self._expected.append(
                ExpectedCheckpoint(
                    height=block.height,
                    offset=record.offset,
                    size=after.chain.size,
                    root=after.chain.tree.root(),
                    traceparent=traceparent,
                )
            )
            self._match_checkpoints()
        report = self.report
        report.num_blocks += 1
        report.num_leaves += len(leaves)
        report.num_signatures += len(leaves) + 1
        report.log_bytes += len(value)
        report.last_block_at_ms = block.sequenced_at_ms
        if not all(
            isinstance(leaf.sequenced.event, e.FinalityRequested) for leaf in leaves
        ):
            report.awaited_size = report.num_leaves
            report.awaited_at_ms = block.sequenced_at_ms
        self._last_place = place
        self._mark_read(record, topics.LEDGER)
        return True

    def _replay(self, record: Record, data: bytes) -> Replayed:
        height = self._log.chain.height
        try:
            replayed = replay_block(
                self._state,
                data,
                record.header(SIGNATURE_HEADER),
                unframe=self._unframe_refused,
                verify=self._helpers.verify,
            )
            block = replayed.block
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
        except UnknownRulesError as error:
            self.report.unjudged = f"block {height}, {error}"
            raise _Stop(self.report.unjudged) from error
        except DeciderError as error:
            raise self._stop(
                FindingCode.DECIDER_FAILED,
                Place(offset=record.offset, height=height, leaf_index=error.leaf_index),
                "the deciders cannot read this leaf",
                found=str(error),
            ) from error
        return replayed

    def _is_ours(self, record: Record, place: Place) -> bool:
        if record.key == self._key:
            return True
        wrong = self._find_wrong_key(record, place)
        if wrong is not None:
            self._add(wrong)
        return wrong is not None

    def _find_wrong_key(self, record: Record, place: Place) -> Finding | None:
        # Every event on these topics begins with its federation.
        if record.value is None or not record.value.startswith(
            self._mark, codec.FRAMING_SIZE
        ):
            return None
        return Finding(
            code=FindingCode.WRONG_KEY,
            place=place,
            message="a record of this federation has another key",
            expected=repr(self._key),
            found=repr(record.key),
        )

    def _check_headers(
        self,
        record: Record,
        place: Place,
        sequencer_key: bytes,
        data: bytes,
        traceparent: str,
        add: Callable[[Finding], None] | None = None,
    ) -> None:
        # The signature itself was verified, or the block would not have opened.
        expected = (
            (SIGNATURE_HEADER, record.header(SIGNATURE_HEADER) or b""),
            (EVENT_ID_HEADER, compute_input_id(sequencer_key, data)),
            (TRACEPARENT_HEADER, traceparent.encode()),
        )
        if record.headers != expected:
            (add or self._add)(
                Finding(
                    code=FindingCode.WRONG_HEADERS,
                    place=place,
                    message="the headers are not what the record's author writes",
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

    def _read_leaves(self, replayed: Replayed, block: Place) -> None:
        """Report what a block's replay found, and follow its rounds."""
        report = self.report
        report.num_refusals_unchecked += replayed.num_refusals_unchecked
        wrong_facts = {
            fault.leaf_index
            for fault in replayed.faults
            if fault.code is not FaultCode.FACT_MISSING
        }
        for item in replayed.leaves:
            leaf = item.opened.sequenced
            place = replace(block, leaf_index=leaf.leaf_index)
            report.events[type(leaf.event).__name__] += 1
            if isinstance(leaf.event, e.EventRejected):
                self._read_refusal(leaf.event, leaf.leaf_index)
            elif isinstance(leaf.event, e.EquivocationProven) and item.is_admissible:
                self._read_proof(leaf.event, leaf.leaf_index)
            elif isinstance(leaf.event, e.Fact) and leaf.leaf_index not in wrong_facts:
                report.facts[type(leaf.event).__name__] += 1
            self._rounds = item.rounds
            if item.is_admissible:
                for watch in self._watches:
                    finding = watch.follow(leaf.event, self._rounds.config, place)
                    if finding is not None:
                        self._add(finding)
            self._follow_round(item, place)
        for fault in replayed.faults:
            self._add_fault(fault, block)

    def _read_refusal(self, refusal: e.EventRejected, leaf_index: int) -> None:
        self.report.refusals[refusal.reason] += 1
        if self._lists_refused and len(self.report.refused) < MAX_LISTED:
            self.report.refused.append(
                RefusedRecord(
                    leaf_index=leaf_index,
                    reason=refusal.reason,
                    detail=refusal.detail,
                    source=f"{refusal.source_topic}/{refusal.source_partition} "
                    f"offset {refusal.source_offset}",
                )
            )

    def _read_proof(self, proven: e.EquivocationProven, leaf_index: int) -> None:
        contradiction = identify_contradiction(proven)
        self.report.equivocations.append(
            Equivocation(
                leaf_index=leaf_index,
                public_key=contradiction.public_key.hex(),
                offence=contradiction.offence,
                era=contradiction.era,
                epoch=contradiction.epoch,
                position=contradiction.position,
            )
        )

    def _add_fault(self, fault: Fault, block: Place) -> None:
        self._add(
            Finding(
                code=FindingCode(fault.code),
                place=replace(block, leaf_index=fault.leaf_index),
                message=fault.message,
                expected=fault.expected,
                found=fault.found,
            )
        )

    # Blobs

    def _follow_round(self, item: ReplayedLeaf, place: Place) -> None:
        """Keep the round in progress in view, and check what is claimed of it."""
        leaf = item.opened.sequenced
        before = self._view
        self._view = follow(before, self._rounds, leaf)
        for fact in item.facts:
            if isinstance(fact, e.ContributionRejected):
                self.report.rejections[fact.reason] += 1
        if self._blobs is None:
            return
        if isinstance(leaf.event, e.FederationConfigured):
            self._blobs.check_initial_model(
                leaf.event.initial_model, leaf.event.num_parameters, place
            )
        if before is not None:
            self._check_claims(leaf.event, before, item.facts, place)
        for fact in item.facts:
            if isinstance(fact, e.ModelVersionRegistered) and fact.onnx is not None:
                self._blobs.check_onnx(fact.onnx, place)

    def _check_claims(
        self,
        event: e.LedgerEvent,
        before: RoundView,
        facts: Sequence[e.Fact],
        place: Place,
    ) -> None:
        """Check what a leaf claims of the round that was in progress before it."""
        assert self._blobs is not None, "or nothing is checked"
        for claim in read_claims(event, facts):
            match claim:
                case AnswersClaim():
                    self._blobs.check_answers(before, claim.reasons, place)
                case PartClaim():
                    self._blobs.check_part(before, claim.author, claim.reason, place)
                case ResultClaim():
                    self._blobs.check_result(before, claim.published, place)
        if any(isinstance(fact, e.RoundAbandoned) for fact in facts):
            self._blobs.check_unsummed(before, place)

    # Checkpoints

    def _open_checkpoints(self, records: Iterable[Record]) -> Iterator[_Signed]:
        """Yield the federation's checkpoints that its sequencer signed."""
        ahead = self._helpers.read_ahead(
            self._continue(records, topics.CHECKPOINTS),
            "checkpoints",
            self._find_checkpoint_context,
            self._open_item,
        )
        for record in ahead:
            place = Place(topic=topics.CHECKPOINTS, offset=record.offset)
            if not self._is_ours(record, place):
                continue
            self._mark_read(record, topics.CHECKPOINTS)
            signed = self._open_checkpoint(record, place)
            if signed is not None:
                yield signed

    def _find_checkpoint_context(self) -> CheckpointContext | None:
        if self._checkpoint_context is None and self._log.sequencer_key:
            self._checkpoint_context = CheckpointContext(
                federation_id=self.report.federation_id,
                genesis=self._log.genesis,
                sequencer_key=self._log.sequencer_key,
            )
        return self._checkpoint_context

    def _open_checkpoint(self, record: Record, place: Place) -> _Signed | None:
        try:
            data = self._unframe(record.value or b"")
            event, checkpoint = self._helpers.open_checkpoint(
                self._find_checkpoint_context()
                or CheckpointContext(
                    federation_id=self.report.federation_id,
                    genesis=b"",
                    sequencer_key=b"",
                ),
                data,
                record.header(SIGNATURE_HEADER) or b"",
            )
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
        return _Signed(record, place, data, event, checkpoint)

    def _match_checkpoints(self) -> None:
        """Find the checkpoints that follow the blocks, and compare."""
        while self._expected:
            expected = self._expected[0]
            if self._next_checkpoint is None and self._checkpoints is not None:
                self._next_checkpoint = next(self._checkpoints, None)
            signed = self._next_checkpoint
            if signed is None:
                return  # it may be too new
            if signed.event.height > expected.height:
                self._expected.popleft()
                self._miss_checkpoint(expected)
                continue
            self._next_checkpoint = None
            if signed.event.height == expected.height:
                self._expected.popleft()
                self._compare_checkpoint(signed, expected)
                continue
            self._add(self._judge_misplaced(signed, expected.height))

    def _judge_misplaced(self, signed: _Signed, height: int) -> Finding:
        ours = self._finality.head(signed.event.height)
        found = signed.checkpoint
        if ours is not None and ours != (found.size, found.root):
            return self._differing(signed, *ours)
        return Finding(
            code=FindingCode.CHECKPOINT_MISPLACED,
            place=signed.place,
            message="the checkpoint was there before, or comes out of turn",
            expected=f"the checkpoint of block {height}",
            found=f"that of block {signed.event.height}",
        )

    @staticmethod
    def _differing(signed: _Signed, size: int, root: bytes) -> Finding:
        ours = Checkpoint(origin=signed.checkpoint.origin, size=size, root=root)
        return Finding(
            code=FindingCode.CHECKPOINT_DIFFERS,
            place=signed.place,
            message="the sequencer signed another log than this one",
            expected=_show_checkpoint(ours),
            found=_show_checkpoint(signed.checkpoint),
        )

    def _miss_checkpoint(self, expected: ExpectedCheckpoint) -> None:
        self._add(
            Finding(
                code=FindingCode.CHECKPOINT_MISSING,
                place=Place(offset=expected.offset, height=expected.height),
                message="the block has no checkpoint",
                expected=f"a checkpoint of size {expected.size}",
                found="none",
            )
        )

    def _compare_checkpoint(
        self, signed: _Signed, expected: ExpectedCheckpoint
    ) -> None:
        found = signed.checkpoint
        if (found.size, found.root) != (expected.size, expected.root):
            self._add(self._differing(signed, expected.size, expected.root))
        self._check_headers(
            signed.record,
            signed.place,
            self._log.sequencer_key,
            signed.data,
            expected.traceparent,
        )
        self.report.num_checkpoints += 1

    # Attestations

    def _read_attestations(self, records: Iterable[Record]) -> None:
        """Count what the ledger nodes say of the blocks that were read.

        Every ledger node must be able to write here, so nobody vouches for a record
        but the node that signed it: whatever else is wrong with one is noise.
        """
        context = self._finality.context(self._log.genesis, self._log.sequencer_key)
        hashed = hash_context(context)
        ahead = self._helpers.read_ahead(
            self._continue(records, topics.ATTESTATIONS),
            "attestations",
            lambda: context,
            self._open_item,
        )
        for record in ahead:
            place = Place(topic=topics.ATTESTATIONS, offset=record.offset)
            if record.key != self._key:
                wrong = self._find_wrong_key(record, place)
                if wrong is not None:
                    self._pass_over(wrong)
                continue
            self._mark_read(record, topics.ATTESTATIONS)
            signature = record.header(SIGNATURE_HEADER) or b""
            try:
                data = self._unframe(record.value or b"")
                said = self._helpers.verify_record(context, hashed, data, signature)
            except (FramingError, InvalidMessageError) as error:
                self._pass_over(
                    Finding(
                        code=FindingCode.ATTESTATION_INVALID,
                        place=place,
                        message="not what a ledger node of this federation signed",
                        found=str(error),
                    )
                )
                continue
            trace = record.header(TRACEPARENT_HEADER) or b""
            if _TRACEPARENT.fullmatch(trace) is None:
                trace = b""
            self._check_headers(
                record, place, said.public_key, data, trace.decode(), self._pass_over
            )
            self._finality.add(said, place)
            self.report.num_attestations += 1
            self.report.num_signatures += said.num_signatures

    # The end

    def _finish(self) -> None:
        """Look at what is left when everything has been read."""
        if self._checkpoints is not None:
            self._finish_checkpoints(self._checkpoints)
        self._check_policy()
        for missing in find_missing(self._state):
            fault = describe_missing(missing, -1, "nothing")
            self._add(
                Finding(
                    code=FindingCode.FACT_MISSING,
                    place=Place(),
                    message=fault.message,
                    expected=fault.expected,
                    found=fault.found,
                )
            )
        self.report.pending.extend(
            PendingFact(
                event=type(due).__name__,
                cause_leaf_index=due.cause_leaf_index,
            )
            for due in find_pending(self._state)
        )
        if self._blobs is not None and self._view is not None:
            self._blobs.check_unsummed(self._view, self._last_place)
        self._drain()

    def _drain(self) -> None:
        if self._blobs is not None:
            self._blobs.drain()

    def _finish_checkpoints(self, checkpoints: Iterator[_Signed]) -> None:
        # An earlier audit may have left blocks that have their checkpoint now.
        self._match_checkpoints()
        if self._log.sequencer_key == b"":
            # Without a log nobody knows whose signature to look for; the records are
            # reported as what they are.
            for _ in checkpoints:
                pass
            return
        self._finish_expected()
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

    def _finish_expected(self) -> None:
        """Report the blocks that should have their checkpoint by now."""
        settled = self._settled_offset
        while self._expected and (
            settled is None or self._expected[0].offset < settled
        ):
            self._miss_checkpoint(self._expected.popleft())
        self.report.num_unsigned_blocks = len(self._expected)

    def _check_policy(self) -> None:
        if self._policy is None:
            return
        key = self._log.sequencer_key
        if self._find_policy_size() == 0:
            origin = compute_origin(self.report.federation_id, self._log.genesis)
            self._add(
                Finding(
                    code=FindingCode.POLICY_NOT_MET,
                    place=Place(topic=topics.ATTESTATIONS),
                    message="no checkpoint of this log satisfies your policy",
                    expected=f"log {origin} and quorum {self._policy.quorum}",
                    found=f"log key {key.hex()} and "
                    f"{self._finality.num_cosigned} cosigned sizes",
                )
            )

    def _find_policy_size(self) -> int:
        key = self._log.sequencer_key
        if self._policy is None or not key:
            return 0
        return self._finality.find_accepted(self._policy, self._log.genesis, key)

    def summarise(self) -> Report:
        """Return the report with everything that the verdict rests on."""
        report = self.report
        chain = self._log.chain
        if chain.height:
            report.tree_root = chain.tree.root().hex()
        report.balances = dict(sorted(self._state.rewards.balances.items()))
        if report.has_attestations and self._finality.state.eras:
            report.finality = self._finality.summarise(
                None if self._policy is None else self._find_policy_size()
            )
        report.node_faults = sorted(
            self._finality.list_faults(self._state.admission.proven), key=_sort_key
        )
        report.num_node_faults = +self._finality.state.num_faults
        num_accused = sum(
            finding.code == FindingCode.EQUIVOCATION for finding in report.node_faults
        )
        if num_accused:
            report.num_node_faults[FindingCode.EQUIVOCATION] = num_accused
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
        if not report.has_checkpoints:
            yield "Checkpoints were left out: a cut at the log's end would not show."
        yield from self._noise_notes()
        yield from self._finality_notes()
        if report.continued_from:
            yield (
                f"The first {report.continued_from} blocks are as an earlier audit of "
                "yours found them; they were not read again."
            )
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
        for watch in self._watches:
            yield from watch.list_notes(report)
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

    def _noise_notes(self) -> Iterator[str]:
        for topic in sorted({noise.topic for noise in self.report.noise}):
            kinds = [noise for noise in self.report.noise if noise.topic == topic]
            count = sum(noise.count for noise in kinds)
            yield (
                f"{count} records on {topic} are no ledger node's, or were changed by "
                "somebody else who may write there, the first at offset "
                f"{min(noise.first.offset or 0 for noise in kinds)}: they were passed "
                "over, and change nothing."
            )
        if self.report.node_faults:
            yield (
                "Of what single ledger nodes said, some is wrong: it counts for "
                "nothing alone, and says something about those nodes only."
            )

    def _finality_notes(self) -> Iterator[str]:
        report, finality = self.report, self.report.finality
        if not self._state.admission.node_sets:
            if report.num_blocks:
                yield (
                    "This federation has no ledger nodes: nothing but the sequencer's "
                    "word says that there is no second log."
                )
        elif finality is None:
            yield "Attestations were left out: what is final was not looked at."
        else:
            if finality.num_not_final:
                yield (
                    f"The last {finality.num_not_final} blocks are not final yet by "
                    "the attestations that were read."
                )
            if finality.cosigned_size:
                late_s = report.last_block_at_ms / 1_000 - finality.cosigned_at_s
                yield (
                    f"The last checkpoint that a quorum cosigned has size "
                    f"{finality.cosigned_size} of {report.num_leaves}; by its nodes' "
                    f"clocks it was cosigned {abs(late_s):.0f} s "
                    f"{'before' if late_s > 0 else 'after'} the last block."
                )
            else:
                yield "No checkpoint was cosigned by a quorum of ledger nodes."


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


def _shorten(text: str) -> str:
    if len(text) <= MAX_SHOWN:
        return text
    return f"{text[:MAX_SHOWN]}… ({len(text) - MAX_SHOWN} characters more)"


def _show_headers(headers: Iterable[tuple[str, bytes]]) -> str:
    return ", ".join(
        f"{name}={value.decode('ascii', 'replace')}"
        if name == TRACEPARENT_HEADER
        else f"{name}={value.hex()}"
        for name, value in headers
    )


def _show_checkpoint(checkpoint: Checkpoint) -> str:
    return f"size {checkpoint.size}, root {checkpoint.root.hex()}"


def _sort_key(finding: Finding) -> tuple[bool, str, int, int]:
    place = finding.place
    return (
        place.topic != topics.LEDGER,
        place.topic,
        -1 if place.offset is None else place.offset,
        -1 if place.leaf_index is None else place.leaf_index,
    )
