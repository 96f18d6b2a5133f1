"""One federation's records on shared topics: every byte of one counts.

An audit that continues from an earlier one first checks that the topics still have what
that one saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping

from adapters.kafka import Record
from adapters.schema_registry import FramingError
from consumers.audit.findings import Findings
from consumers.audit.parallel import Item
from consumers.audit.report import Finding, FindingCode, Place
from consumers.audit.state import AuditState, Position, hash_record
from ledger.blocks import Chain
from protocol.envelope import (
    EVENT_ID_HEADER,
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    compute_input_id,
)
from schemas import codec, topics

Unframe = Callable[[bytes], bytes]
"""`adapters.schema_registry.SchemaRegistry.unframe_trusted`."""


class RecordAuditor:
    """Knows which records belong to a federation, and how far they were read.

    Args:
        federation_id: The federation.
        unframe: Maps wire bytes to single-object bytes.
        findings: Takes findings.
        before: Where an earlier audit ended.
        first_offsets: By topic, the first remaining record, where known.
    """

    def __init__(
        self,
        federation_id: str,
        unframe: Unframe,
        findings: Findings,
        before: AuditState,
        first_offsets: Mapping[str, int],
    ) -> None:
        self.key = federation_id.encode()
        self._mark = _string_prefix(self.key)
        self._unframe = unframe
        self._findings = findings
        self._first_offsets = first_offsets
        self.positions = dict(before.positions)
        self.own_firsts = dict(before.first_offsets)

    def skip_read(
        self, records: Iterable[Record], topic: str, chain: Chain
    ) -> Iterator[Record]:
        """Yield what comes after the records that an earlier audit saw.

        Args:
            records: A topic's, from the last one that an earlier audit saw.
            topic: The topic.
            chain: The log's, as that audit left it.

        Raises:
            Stopped: the topic lacks what that audit saw.
        """
        position = self.positions.get(topic)
        remaining = iter(records)
        if position is not None:
            self._demand_beginning(topic)
            self._demand(next(remaining, None), position, topic, chain)
        yield from remaining

    def _demand_beginning(self, topic: str) -> None:
        """Check that nothing an earlier audit saw first was deleted.

        A partition holds several federations: the audit says nothing about records
        before this one's first.
        """
        first = self._first_offsets.get(topic, 0)
        own_first = self.own_firsts.get(topic, 0)
        if first > own_first:
            raise self._findings.stop(
                FindingCode.LOG_TRUNCATED,
                Place(topic=topic, offset=own_first),
                "the beginning of what an earlier audit saw was deleted; Kafka's "
                "operator can do that. Copy what is left, and what ledger nodes have",
                f"a partition that begins at offset {own_first} or before",
                f"it begins at offset {first}",
            )

    def _demand(
        self, found: Record | None, position: Position, topic: str, chain: Chain
    ) -> None:
        """Check that the last record that an earlier audit saw is still there."""
        place = Place(topic=topic, offset=position.offset)
        expected = f"a record with SHA-256 {position.digest.hex()}"
        if topic == topics.LEDGER:
            expected += (
                f", block hash {chain.previous_block_hash.hex()}, tree size "
                f"{chain.size} and root {chain.tree.root().hex()}"
            )
        if found is None or found.offset != position.offset:
            raise self._findings.stop(
                FindingCode.LOG_TRUNCATED,
                place,
                "the topic does not have what an earlier audit saw here",
                expected,
                "nothing" if found is None else f"offset {found.offset} instead",
            )
        if hash_record(found) != position.digest:
            raise self._findings.stop(
                FindingCode.LOG_REWRITTEN,
                place,
                "this is not the record that an earlier audit saw here",
                expected,
                f"SHA-256 {hash_record(found).hex()}",
            )

    def mark_read(self, record: Record, topic: str) -> None:
        """Remember how far a topic was read."""
        self.own_firsts.setdefault(topic, record.offset)
        self.positions[topic] = Position(
            offset=record.offset, digest=hash_record(record)
        )

    def open_item(self, record: Record) -> Item | None:
        """Return what of a record can be checked ahead."""
        if record.key != self.key:
            return None
        try:
            data = self._unframe(record.value or b"")
        except FramingError:
            return None
        return data, record.header(SIGNATURE_HEADER) or b""

    def is_ours(self, record: Record, place: Place) -> bool:
        """Return whether a record belongs to the federation; reports a wrong key."""
        if record.key == self.key:
            return True
        wrong = self.find_wrong_key(record, place)
        if wrong is not None:
            self._findings.add(wrong)
        return wrong is not None

    def find_wrong_key(self, record: Record, place: Place) -> Finding | None:
        """Return what is wrong if only a record's key is not this federation's."""
        # Every event on these topics begins with its federation.
        if record.value is None or not record.value.startswith(
            self._mark, codec.FRAMING_SIZE
        ):
            return None
        return Finding(
            code=FindingCode.WRONG_KEY,
            place=place,
            message="a record of this federation has another key",
            expected=repr(self.key),
            found=repr(record.key),
        )

    def check_headers(
        self,
        record: Record,
        place: Place,
        sequencer_key: bytes,
        data: bytes,
        traceparent: str,
        add: Callable[[Finding], None] | None = None,
    ) -> None:
        """Check that headers are, byte for byte, what a record's author writes."""
        # The signature was verified, or the block would not have opened.
        expected = (
            (SIGNATURE_HEADER, record.header(SIGNATURE_HEADER) or b""),
            (EVENT_ID_HEADER, compute_input_id(sequencer_key, data)),
            (TRACEPARENT_HEADER, traceparent.encode()),
        )
        if record.headers != expected:
            (add or self._findings.add)(
                Finding(
                    code=FindingCode.WRONG_HEADERS,
                    place=place,
                    message="the headers are not what the record's author writes",
                    expected=_show_headers(expected),
                    found=_show_headers(record.headers),
                )
            )


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
