"""Every block has its checkpoint, and every checkpoint its block."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from adapters.kafka import Record
from adapters.schema_registry import FramingError
from adapters.wording import counted
from consumers.audit.finality import FinalityAuditor
from consumers.audit.findings import Findings
from consumers.audit.parallel import CheckpointContext, Helpers
from consumers.audit.records import RecordAuditor, Unframe
from consumers.audit.report import Finding, FindingCode, Place
from consumers.audit.state import ExpectedCheckpoint
from ledger.checkpoint import Checkpoint
from ledger.note import InvalidNoteError
from ledger.signing import InvalidSignatureError
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import LogState
from schemas import codec, topics
from schemas import events as e


@dataclass(frozen=True, slots=True)
class _Signed:
    """A checkpoint that the sequencer signed, still to be compared with the log."""

    record: Record
    place: Place
    data: bytes
    event: e.CheckpointSigned
    checkpoint: Checkpoint


class CheckpointAuditor:
    """Compares checkpoints with blocks as the blocks come.

    Args:
        unframe: Maps wire bytes to single-object bytes.
        records: Knows which records belong to the federation.
        findings: Takes findings.
        helpers: Opens records ahead.
        finality: Knows the heads of blocks.
        get_log: Returns the log as read so far.
        expected: Checkpoints of blocks that had none when an earlier audit ended.
        settled_offset: Blocks below this offset must have theirs; None: every block.
    """

    def __init__(
        self,
        *,
        unframe: Unframe,
        records: RecordAuditor,
        findings: Findings,
        helpers: Helpers,
        finality: FinalityAuditor,
        get_log: Callable[[], LogState],
        expected: Iterable[ExpectedCheckpoint],
        settled_offset: int | None,
    ) -> None:
        self.expected = deque(expected)
        self._unframe = unframe
        self._records = records
        self._findings = findings
        self._report = findings.report
        self._helpers = helpers
        self._finality = finality
        self._log = get_log
        self._settled_offset = settled_offset
        self._context: CheckpointContext | None = None
        self._next: _Signed | None = None
        self._checkpoints: Iterator[_Signed] | None = None

    def open(self, records: Iterable[Record]) -> None:
        """Begin to read the checkpoints' partition, lazily and in order."""
        self._checkpoints = self._open_all(records)

    def expect(self, checkpoint: ExpectedCheckpoint) -> None:
        """Look for the next block's checkpoint, if any are read."""
        if self._checkpoints is not None:
            self.expected.append(checkpoint)
            self._match()

    def _open_all(self, records: Iterable[Record]) -> Iterator[_Signed]:
        """Yield the federation's checkpoints that its sequencer signed."""
        ahead = self._helpers.read_ahead(
            self._records.skip_read(records, topics.CHECKPOINTS, self._log().chain),
            "checkpoints",
            self._find_context,
            self._records.open_item,
        )
        for record in ahead:
            place = Place(topic=topics.CHECKPOINTS, offset=record.offset)
            if not self._records.is_ours(record, place):
                continue
            self._records.mark_read(record, topics.CHECKPOINTS)
            signed = self._open(record, place)
            if signed is not None:
                yield signed

    def _find_context(self) -> CheckpointContext | None:
        if self._context is None and self._log().sequencer_key:
            self._context = CheckpointContext(
                federation_id=self._report.federation_id,
                genesis=self._log().genesis,
                sequencer_key=self._log().sequencer_key,
            )
        return self._context

    def _open(self, record: Record, place: Place) -> _Signed | None:
        try:
            data = self._unframe(record.value or b"")
            event, checkpoint = self._helpers.open_checkpoint(
                self._find_context()
                or CheckpointContext(
                    federation_id=self._report.federation_id,
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
            self._findings.add(
                Finding(
                    code=FindingCode.CHECKPOINT_INVALID,
                    place=place,
                    message="not a checkpoint that this log's sequencer signed",
                    found=str(error),
                )
            )
            return None
        self._report.num_signatures += 2
        place = Place(topic=place.topic, offset=place.offset, height=event.height)
        return _Signed(record, place, data, event, checkpoint)

    def _match(self) -> None:
        """Match checkpoints with the blocks they follow, and compare."""
        while self.expected:
            expected = self.expected[0]
            if self._next is None and self._checkpoints is not None:
                self._next = next(self._checkpoints, None)
            signed = self._next
            if signed is None:
                return  # it may be too new
            if signed.event.height > expected.height:
                self.expected.popleft()
                self._miss(expected)
                continue
            self._next = None
            if signed.event.height == expected.height:
                self.expected.popleft()
                self._compare(signed, expected)
                continue
            self._findings.add(self._judge_misplaced(signed, expected.height))

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

    def _miss(self, expected: ExpectedCheckpoint) -> None:
        self._findings.add(
            Finding(
                code=FindingCode.CHECKPOINT_MISSING,
                place=Place(offset=expected.offset, height=expected.height),
                message="the block has no checkpoint",
                expected=f"a checkpoint of size {expected.size}",
                found="none",
            )
        )

    def _compare(self, signed: _Signed, expected: ExpectedCheckpoint) -> None:
        found = signed.checkpoint
        if (found.size, found.root) != (expected.size, expected.root):
            self._findings.add(self._differing(signed, expected.size, expected.root))
        self._records.check_headers(
            signed.record,
            signed.place,
            self._log().sequencer_key,
            signed.data,
            expected.traceparent,
        )
        self._report.num_checkpoints += 1

    def finish(self) -> None:
        """Judge what is left when everything has been read."""
        checkpoints = self._checkpoints
        if checkpoints is None:
            return
        # Blocks left by an earlier audit may have their checkpoint now.
        self._match()
        if self._log().sequencer_key == b"":
            # Without a log nobody knows whose signature to expect; the records are
            # reported as they are.
            for _ in checkpoints:
                pass
            return
        self.miss_expected()
        first = self._next or next(checkpoints, None)
        if first is None:
            return
        count, last = 1, first
        for last in checkpoints:  # noqa: B007  # its last value is what counts
            count += 1
        self._findings.add(
            Finding(
                code=FindingCode.CHECKPOINT_BEYOND_END,
                place=first.place,
                message=(
                    f"{counted(count, 'checkpoint')} of blocks that the log does not "
                    "have: it was cut off, or these are out of turn"
                ),
                expected=f"none after block {self._log().chain.height - 1}",
                found=f"up to block {last.event.height}, "
                + _show_checkpoint(last.checkpoint),
            )
        )

    def miss_expected(self) -> None:
        """Report the blocks that should have their checkpoint by now."""
        settled = self._settled_offset
        while self.expected and (settled is None or self.expected[0].offset < settled):
            self._miss(self.expected.popleft())
        self._report.num_unsigned_blocks = len(self.expected)


def _show_checkpoint(checkpoint: Checkpoint) -> str:
    return f"size {checkpoint.size}, root {checkpoint.root.hex()}"
