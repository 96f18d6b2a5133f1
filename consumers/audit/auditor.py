"""The audit: one federation's log, replayed from its first record.

Nothing is believed that can be computed. Every record is opened with the functions
that wrote it: `protocol.log` (the sequencer's signature, the chain, the tree),
`protocol.admission` (who may say what, every leaf's signature), the deciders (what
follows from every leaf) and `protocol.model` (what follows from every round's blobs).
Finality is counted from the ledger nodes' signatures (`consumers.audit.finality`).

Rules:

- Every byte of a record counts: its author would have written exactly this key, value
  and headers.
- A fact on the log must be byte for byte what the deciders conclude, on its topic, in
  its turn. What they conclude and the log does not have yet is pending, no fault.
- Every block has its checkpoint, and every checkpoint its block.
- Ledger nodes attest the blocks of this log and no others. A block that is not yet
  final is no fault.
- What could be used to frame somebody is no finding (ADR 0026). Where anybody may
  write, what anybody could have written is counted and passed over; what a few ledger
  nodes say wrongly is listed as their fault.
- After a block that does not follow, nothing can be believed: the audit ends there.
  Anything else is noted, and the audit continues. The first few findings of each kind
  are listed and the rest counted, so none hides another.
- An audit can continue from an earlier one if the log still holds what that one saw,
  and still begins where it began.

What it deliberately does not do: read Kafka or MinIO (the caller's iterators do, and
their exceptions pass through), run a model, or claim that the log ends where it was
read: for that, compare the report's tree root with what others saw.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy, deepcopy
from dataclasses import dataclass, replace
from typing import Final

from adapters.kafka import Record
from adapters.schema_registry import FramingError
from adapters.wording import counted
from consumers.audit.blobs import BlobAuditor, FetchBlob
from consumers.audit.checkpoints import CheckpointAuditor
from consumers.audit.claims import AnswersClaim, PartClaim, ResultClaim, read_claims
from consumers.audit.finality import FinalityAuditor, hash_context
from consumers.audit.findings import Findings, Stopped, sort_key
from consumers.audit.notes import list_notes
from consumers.audit.parallel import Helpers
from consumers.audit.records import RecordAuditor, Unframe
from consumers.audit.report import (
    Equivocation,
    Finding,
    FindingCode,
    PendingFact,
    Place,
    RefusedRecord,
    Report,
)
from consumers.audit.state import (
    AuditState,
    ExpectedCheckpoint,
)
from ledger.attestations import InvalidMessageError
from ledger.checkpoint import compute_origin
from ledger.equivocation import identify_contradiction
from ledger.policy import Policy
from protocol import admission
from protocol.admission import AdmissionState
from protocol.envelope import (
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
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
from schemas import events as e
from schemas import topics
from schemas.reasons import Reason

MAX_FINDINGS: Final = 100
"""Findings of each kind that a report lists; the rest are counted."""
MAX_LISTED: Final = 10_000
"""Refused records that a report lists; the rest are counted."""
_TRACEPARENT: Final = re.compile(rb"(?:00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2})?")


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far an audit has come."""

    offset: int
    num_blocks: int
    num_leaves: int
    num_findings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Audited:
    """What an audit returns.

    Attributes:
        report: What was found.
        state: What the next audit continues from. After an audit that ended early, that
            is the state before its first record.
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
    second_opinion: bool = False,
) -> Audited:
    """Audit a federation's log.

    Args:
        records: The ledger's partition from offset 0, in order. Records of other
            federations may be among them.
        federation_id: The federation.
        unframe: Maps wire bytes to single-object bytes.
        fetch_blob: Fetches blobs; None leaves them out.
        checkpoints: The checkpoints' partition from offset 0, in order, read lazily;
            None leaves them out. A checkpoint whose block is not among `records` is a
            finding, so `records` must be read to a later end.
        attestations: The attestations' partition, on the same terms; read after the
            others.
        settled_offset: Blocks below this offset must have their checkpoint; later ones
            may be too new for it. None: every block must.
        first_offsets: By topic, the offset of the partition's first remaining record,
            where known. What an earlier audit read is not read again, so nothing else
            shows that it was deleted.
        operator_key: Public key of its founder, 32 bytes; None takes the log's word.
        policy: The cosignatures that the reader demands; None demands none.
        start: Where an earlier audit ended; not changed. Each partition is then read
            from its ``positions``, that record included.
        on_progress: Called after every block.
        num_fetches: Blobs fetched concurrently.
        jobs: Processes, this one included. The report is the same for any number.
        helpers: Existing processes to use instead of `jobs`.
        max_findings: Findings of each kind that the report lists; the rest are counted.
        lists_refused: Whether the report lists every refused record, or only counts
            them.
        second_opinion: Whether another library opens a sample of every sum again that
            rests on commitments.

    Returns:
        What was found, and where it ended. No record makes this raise; what the
        iterators, ``unframe`` and ``fetch_blob`` raise when they cannot read passes
        through.
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
        second_opinion=second_opinion,
    )
    try:
        audit.run(records, checkpoints, attestations, on_progress)
    finally:
        audit.close()
        if own is not None:
            own.close()
    return Audited(report=audit.summarise(), state=audit.end_state(start))


class _Audit:
    """The state of one audit: what its readers know, and what was found."""

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
        second_opinion: bool,
    ) -> None:
        before = (
            AuditState(report=Report(federation_id=federation_id))
            if start is None
            # The rest is replaced, never changed.
            else replace(
                start,
                view=deepcopy(start.view),
                watches=tuple(map(copy, start.watches)),
                finality=deepcopy(start.finality),
                report=deepcopy(start.report),
            )
        )
        self.report = before.report
        self.report.is_operator_key_pinned = operator_key is not None
        self.report.continued_from = before.replay.log.chain.height
        self.report.has_second_opinion = second_opinion
        self.report.pending = []
        self._findings = Findings(self.report, max_findings)
        self._records = RecordAuditor(
            federation_id, unframe, self._findings, before, first_offsets
        )
        self._unframe = unframe
        self._operator_key = operator_key
        self._policy = policy
        self._helpers = helpers
        self._lists_refused = lists_refused
        self._state = before.replay
        self._rounds = before.replay.rounds
        config = self._rounds.config
        self._blobs = (
            None
            if fetch_blob is None
            else BlobAuditor(
                fetch_blob,
                self.report,
                self._findings.add,
                max(1, num_fetches),
                None if config is None else config.initial_model,
                asks_again=second_opinion,
            )
        )
        self._view = before.view
        self._watches = before.watches
        self._last_place = Place()
        self._finality = FinalityAuditor(
            federation_id, self._findings.add, before.finality
        )
        self._checkpoints = CheckpointAuditor(
            unframe=unframe,
            records=self._records,
            findings=self._findings,
            helpers=helpers,
            finality=self._finality,
            get_log=lambda: self._log,
            expected=before.checkpoints,
            settled_offset=settled_offset,
        )
        self._authors = AdmissionState()

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
                self._checkpoints.open(checkpoints)
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
        except Stopped as stop:
            report.stopped = str(stop)
            # What came before the break still counts.
            with suppress(Stopped):
                self._checkpoints.miss_expected()
                self._drain()

    def end_state(self, start: AuditState | None) -> AuditState:
        """Return what the next audit continues from."""
        if self.report.stopped:
            return start or AuditState(
                report=Report(federation_id=self.report.federation_id)
            )
        report = replace(
            self.report, findings=[], num_findings=Counter(), node_faults=[], notes=[]
        )
        return AuditState(
            positions=self._records.positions,
            first_offsets=self._records.own_firsts,
            replay=self._state,
            view=self._view,
            watches=self._watches,
            checkpoints=list(self._checkpoints.expected),
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

    # Records

    def _read_ledger(self, records: Iterable[Record]) -> Iterator[Record]:
        return self._helpers.read_ahead(
            self._records.skip_read(records, topics.LEDGER, self._log.chain),
            "blocks",
            self._find_authors,
            self._records.open_item,
        )

    def _find_authors(self) -> AdmissionState | None:
        """Return the keys known so far; the same object while they do not change."""
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
        """Audit one record; returns whether it belongs to this federation."""
        if not self._records.is_ours(record, Place(offset=record.offset)):
            return False
        value = record.value or b""
        height = self._log.chain.height
        try:
            data = self._unframe(value)
        except FramingError as error:
            raise self._findings.stop(
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
        self._records.check_headers(
            record, place, after.sequencer_key, data, traceparent
        )
        if block.height == 0:
            self._read_genesis(leaves[0], after, place)
        node_sets = self._state.admission.node_sets
        self._state = replayed.state
        self._finality.add_block(node_sets, self._state)
        self._read_leaves(replayed, place)
        self._checkpoints.expect(
            ExpectedCheckpoint(
                height=block.height,
                offset=record.offset,
                size=after.chain.size,
                root=after.chain.tree.root(),
                traceparent=traceparent,
            )
        )
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
        self._records.mark_read(record, topics.LEDGER)
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
                msg = "the block belongs to another federation"
                raise LogError(  # noqa: TRY301  # one handler says where
                    msg,
                    height=block.height,
                    expected=self.report.federation_id,
                    found=block.federation_id,
                )
        except LogError as error:
            raise self._findings.stop(
                FindingCode.BROKEN_LOG,
                Place(offset=record.offset, height=height, leaf_index=error.leaf_index),
                str(error),
                error.expected,
                error.found,
            ) from error
        except UnknownRulesError as error:
            self.report.unjudged = f"block {height}, {error}"
            raise Stopped(self.report.unjudged) from error
        except DeciderError as error:
            raise self._findings.stop(
                FindingCode.DECIDER_FAILED,
                Place(offset=record.offset, height=height, leaf_index=error.leaf_index),
                "the deciders cannot read this leaf",
                found=str(error),
            ) from error
        return replayed

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
            raise self._findings.stop(
                FindingCode.WRONG_OPERATOR,
                place,
                "the federation was founded by somebody else",
                self._operator_key.hex(),
                founder.hex(),
            )
        fault = admission.find_fault(AdmissionState(), [(leaf.leaf, genesis)])
        if fault is not None:
            raise self._findings.stop(
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
                        self._findings.add(finding)
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
        self._findings.add(
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
        """Follow the round in progress, and check what is claimed about it."""
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
        """Check what a leaf claims about the round in progress before it."""
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

    # Attestations

    def _read_attestations(self, records: Iterable[Record]) -> None:
        """Count what the ledger nodes say about the blocks read.

        Every ledger node must be able to write here, so only the signing node vouches
        for a record: whatever else is wrong with one is noise.
        """
        context = self._finality.context(self._log.genesis, self._log.sequencer_key)
        hashed = hash_context(context)
        ahead = self._helpers.read_ahead(
            self._records.skip_read(records, topics.ATTESTATIONS, self._log.chain),
            "attestations",
            lambda: context,
            self._records.open_item,
        )
        for record in ahead:
            place = Place(topic=topics.ATTESTATIONS, offset=record.offset)
            if record.key != self._records.key:
                wrong = self._records.find_wrong_key(record, place)
                if wrong is not None:
                    self._findings.pass_over(wrong)
                continue
            self._records.mark_read(record, topics.ATTESTATIONS)
            signature = record.header(SIGNATURE_HEADER) or b""
            try:
                data = self._unframe(record.value or b"")
                said = self._helpers.verify_record(context, hashed, data, signature)
            except (FramingError, InvalidMessageError) as error:
                self._findings.pass_over(
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
            self._records.check_headers(
                record,
                place,
                said.public_key,
                data,
                trace.decode(),
                self._findings.pass_over,
            )
            self._finality.add(said, place)
            self.report.num_attestations += 1
            self.report.num_signatures += said.num_signatures

    # The end

    def _finish(self) -> None:
        """Judge what is left when everything has been read."""
        self._checkpoints.finish()
        self._check_policy()
        for missing in find_missing(self._state):
            fault = describe_missing(missing, -1, "nothing")
            self._findings.add(
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

    def _check_policy(self) -> None:
        if self._policy is None:
            return
        key = self._log.sequencer_key
        if self._find_policy_size() == 0:
            origin = compute_origin(self.report.federation_id, self._log.genesis)
            self._findings.add(
                Finding(
                    code=FindingCode.POLICY_NOT_MET,
                    place=Place(topic=topics.ATTESTATIONS),
                    message="no checkpoint of this log satisfies your policy",
                    expected=f"log {origin} and quorum {self._policy.quorum}",
                    found=f"log key {key.hex()} and "
                    f"{counted(self._finality.num_cosigned, 'cosigned size')}",
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
            self._finality.list_faults(self._state.admission.proven), key=sort_key
        )
        report.num_node_faults = +self._finality.state.num_faults
        num_accused = sum(
            finding.code == FindingCode.EQUIVOCATION for finding in report.node_faults
        )
        if num_accused:
            report.num_node_faults[FindingCode.EQUIVOCATION] = num_accused
        report.findings.sort(key=sort_key)
        report.notes = list(
            list_notes(
                report,
                self._watches,
                has_nodes=bool(self._state.admission.node_sets),
            )
        )
        return report
