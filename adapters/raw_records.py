"""From the bytes of a Kafka record batch to records, bounded and without raising.

Kafka stores what no client would make: header names that are not UTF-8, records that
lie about lengths and offsets, a gigabyte of zeros in 30 KB. aiokafka's own unpacking
raises on the first two, where nobody can handle it and again after every restart, and
unpacks the last. So it is replaced here for all our readers, in Faust's processes and
outside of them (ADR 0023).

Rules:

- What cannot be read becomes a stand-in at the right offset, without key and value,
  that says why: a reader goes on with the next record.
- A record's offset is its place in the batch, never its own word: the broker writes the
  batch's and leaves the record's as it came.
- No batch unpacks to more than `max_unpacked_bytes` of its topic, or to more events
  than it can have signatures; no event's record has more than `MAX_RECORD_BYTES`, and
  one poll hands out no more than about `MAX_POLL_BYTES`.
- Work is linear in the bytes of a batch, packed and unpacked.

Layout: Kafka's RecordBatch, magic 2 (KIP-98). A broker of today stores no other.
"""

from __future__ import annotations

import logging
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple

import cramjam
from aiokafka.consumer import fetcher
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import ConsumerRecord

from schemas import topics
from schemas.reasons import Reason

log = logging.getLogger(__name__)

MAX_UNPACKED_BYTES: Final = 2**20
"""What a batch may unpack to: 8 times the largest that the broker takes for most
topics, and 16 events of the greatest size."""
MAX_LEDGER_UNPACKED_BYTES: Final = 2**23
"""The same for the ledger, whose blocks have up to 2 MiB, and for state tables."""
MAX_RECORD_BYTES: Final = topics.MAX_EVENT_RECORD_SIZE_BYTES
"""The largest record, headers included: only compressed ones could be larger, and
readers hold records by the thousand. Not for the ledger and tables."""
MAX_POLL_BYTES: Final = 2**20
"""Bytes of one partition that a reader gets at once, or one batch if that is more."""
RECORD_COST_BYTES: Final = 512
"""A record's cost in memory beside its bytes, as a round number: a million empty ones
are a bomb too."""
FEW_RECORDS: Final = 16
SIGNATURE_BYTES: Final = 64
"""The part of an event's record that cannot be compressed. A batch with more than a few
records and fewer of these bytes for each is refused as a whole: refusing each of the
100,000 empty ones in a few hundred bytes of zstd would take minutes."""
MAX_HEADERS: Final = 64
"""Headers of one record; ours have three. Tracing and meshes add a handful."""
MAX_KEY_BYTES: Final = 2**10
"""A key is a federation's name, at most 64 characters."""

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_LENGTH: Final = struct.Struct(">i")
_CRC_END: Final = 21
_LOG_OVERHEAD: Final = 12  # base offset and length, not in the length
_MAGIC_AT: Final = 16
_MAGIC: Final = 2
_CODEC_MASK: Final = 0x07
_TRANSACTIONAL: Final = 0x10
_CONTROL: Final = 0x20
_NONE, _GZIP, _SNAPPY, _LZ4, _ZSTD = range(5)
_MAX_TIMESTAMP_MS: Final = 2**53
_XERIAL: Final = b"\x82SNAPPY\x00"
_XERIAL_HEADER_SIZE: Final = 16
_MAX_VARINT_BITS: Final = 63
_READ_COMMITTED: Final = 1
_ABORT: Final = b"\x00\x00\x00\x00"  # a control record's version and type


class Marker(Enum):
    """A header name that no record can have: names of headers are text."""

    PROBLEM = "problem"


PROBLEM: Final = Marker.PROBLEM
"""A stand-in's only header: why there is nothing to read."""


class Problem(NamedTuple):
    """Why a record cannot be read.

    Attributes:
        reason: The refusal's code.
        detail: Why, as text; nothing of the record's own text.
    """

    reason: Reason
    detail: str


class UnreadableError(Exception):
    """Bytes that are no records; never leaves this module."""

    def __init__(self, detail: str, reason: Reason = Reason.UNREADABLE_RECORD) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


class Unpacked(NamedTuple):
    """A record, or a stand-in for an unreadable one.

    Attributes:
        offset: Where it is.
        timestamp_ms: When it was made, by its author's word; 0 for a stand-in.
        key: Its key.
        value: Its value.
        headers: Its headers in order, null values as empty ones.
        problem: Why it is a stand-in; None for a record.
    """

    offset: int
    timestamp_ms: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...]
    problem: Problem | None = None


def max_unpacked_bytes(topic: str) -> int:
    """Return how many bytes a batch of a topic may unpack to."""
    if topic == topics.LEDGER or topic not in topics.EVENTS:
        return MAX_LEDGER_UNPACKED_BYTES
    return MAX_UNPACKED_BYTES


class Batch:
    """One fetched record batch, with a correct checksum and a plausible header.

    Args:
        data: From the base offset to the end.

    Raises:
        UnreadableError: it is no batch.
    """

    def __init__(self, data: memoryview) -> None:
        if len(data) <= _MAGIC_AT or data[_MAGIC_AT] != _MAGIC:
            raise UnreadableError("not a record batch of magic 2")
        if len(data) < _HEADER.size:
            raise UnreadableError("a record batch shorter than its header")
        fields = _HEADER.unpack_from(data)
        self.base_offset: int = fields[0]
        self._attributes: int = fields[5]
        self.last_delta: int = fields[6]
        self._timestamp_ms: int = fields[7]
        self.producer_id: int = fields[9]
        self._count: int = fields[12]
        self._data = data
        if calc_crc32c(bytes(data[_CRC_END:])) != fields[4]:
            raise UnreadableError("the batch's checksum is wrong")
        if self.last_delta < 0 or not 0 <= self._count <= self.last_delta + 1:
            raise UnreadableError("the batch's counts do not agree")

    @property
    def next_offset(self) -> int:
        """Offset of the first record after the batch."""
        return self.base_offset + self.last_delta + 1

    @property
    def is_transactional(self) -> bool:
        """Whether it counts only once its transaction is committed."""
        return bool(self._attributes & _TRANSACTIONAL)

    @property
    def is_control(self) -> bool:
        """Whether it holds a transaction's marker instead of records."""
        return bool(self._attributes & _CONTROL)

    @property
    def is_abort(self) -> bool:
        """Whether it says that a transaction was aborted."""
        try:
            body = self.unpack(MAX_UNPACKED_BYTES)
            key = _parse(body, *_frame(body, 0))[2]
        except UnreadableError:
            return False
        return key is not None and key[:4] == _ABORT

    def demand_signatures(self) -> None:
        """Check that its bytes, still compressed, have room for signed records.

        Raises:
            UnreadableError: they have too little.
        """
        most = FEW_RECORDS + len(self._data) // SIGNATURE_BYTES
        if self._count > most:
            msg = f"{self._count} records in {len(self._data)} bytes; at most {most}"
            raise UnreadableError(msg, Reason.BATCH_TOO_LARGE)

    def unpack(self, limit: int) -> bytes:
        """Return the records' bytes, decompressed.

        Args:
            limit: The largest allowed size, bytes.

        Raises:
            UnreadableError: they are more, or cannot be decompressed.
        """
        packed = self._data[_HEADER.size :]
        return _decompress(self._attributes & _CODEC_MASK, packed, limit)

    def records(self, body: bytes, max_record_bytes: int) -> Iterator[Unpacked]:
        """Yield an unpacked body's records, with stand-ins for unreadable ones."""
        # Where nothing was compacted away, a record's place is its offset, and any
        # other claim is a lie. In a compacted topic its claim is all there is.
        is_whole = self._count == self.last_delta + 1
        at, last = 0, -1
        for index in range(self._count):
            try:
                begin, at = _frame(body, at)
            except UnreadableError as error:
                yield self.stand_in(error.problem)
                return
            try:
                _demand_size(at - begin, max_record_bytes)
                delta, time_delta, key, value, headers = _parse(body, begin, at)
                if (is_whole and delta != index) or not last < delta <= self.last_delta:
                    raise UnreadableError("the record lies about its offset")  # noqa: TRY301  # one way out for every problem
            except UnreadableError as error:
                if not is_whole:
                    continue  # nobody can say where it was
                yield _stand_in(self.base_offset + index, error.problem)
                last = index
                continue
            last = delta
            stamp = min(max(self._timestamp_ms + time_delta, 0), _MAX_TIMESTAMP_MS)
            yield Unpacked(self.base_offset + delta, stamp, key, value, headers)
        if at != len(body):
            log.warning("a batch has bytes after its last record")

    def stand_in(self, problem: Problem) -> Unpacked:
        """Return what stands for the rest of the batch, at its last offset.

        A reader that stops and comes back finds it there once.
        """
        return _stand_in(self.next_offset - 1, problem)


def _stand_in(offset: int, problem: Problem) -> Unpacked:
    return Unpacked(offset, 0, None, None, (), problem)


# Records


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Return a zigzag varint of at most 64 bits, and where it ends."""
    try:
        byte = data[at]
        if byte < 0x80:  # noqa: PLR2004  # one byte is the usual case
            return (byte >> 1) ^ -(byte & 1), at + 1
        result, shift = byte & 0x7F, 7
        while True:
            at += 1
            byte = data[at]
            result |= (byte & 0x7F) << shift
            if byte < 0x80:  # noqa: PLR2004  # no continuation
                return (result >> 1) ^ -(result & 1), at + 1
            shift += 7
            if shift > _MAX_VARINT_BITS:
                raise UnreadableError("a number that does not end")
    except IndexError:
        raise UnreadableError("a batch ends within a record") from None


def _frame(data: bytes, at: int) -> tuple[int, int]:
    """Return where a record begins, after its length, and where it ends."""
    length, begin = _varint(data, at)
    end = begin + length
    if length <= 0 or end > len(data):
        raise UnreadableError("a record's length leaves its batch")
    return begin, end


def _demand_size(size: int, most: int) -> None:
    if size > most:
        msg = f"a record of {size} bytes; at most {most}"
        raise UnreadableError(msg, Reason.TOO_LARGE)


def _field(data: bytes, at: int, end: int) -> tuple[bytes | None, int]:
    """Return a nullable byte string, and where it ends."""
    try:
        byte = data[at]
    except IndexError:
        raise UnreadableError("a batch ends within a record") from None
    if byte < 0x80 and not byte & 1:  # noqa: PLR2004  # the usual case: up to 63 bytes
        size, at = byte >> 1, at + 1
    else:
        size, at = _varint(data, at)
    if size < 0:
        return None, at
    stop = at + size
    if stop > end:
        raise UnreadableError("a field leaves its record")
    return data[at:stop], stop


def _parse(
    data: bytes, at: int, end: int
) -> tuple[int, int, bytes | None, bytes | None, tuple[tuple[str, bytes], ...]]:
    """Return a record: offset and time relative to its batch, key, value, headers."""
    time_delta, at = _varint(data, at + 1)  # the attributes mean nothing
    offset_delta, at = _varint(data, at)
    key, at = _field(data, at, end)
    value, at = _field(data, at, end)
    count, at = _varint(data, at)
    if not 0 <= count <= MAX_HEADERS:
        raise UnreadableError(f"{count} headers; at most {MAX_HEADERS}")
    headers: list[tuple[str, bytes]] = []
    for _ in range(count):
        name, at = _field(data, at, end)
        content, at = _field(data, at, end)
        try:
            headers.append((str(name or b"", "utf-8"), content or b""))
        except UnicodeDecodeError:
            raise UnreadableError("the name of a header is not UTF-8") from None
    if at != end:
        raise UnreadableError("a record's length does not fit its fields")
    if key is not None and len(key) > MAX_KEY_BYTES:
        raise UnreadableError(f"a key of {len(key)} bytes; at most {MAX_KEY_BYTES}")
    return offset_delta, time_delta, key, value, tuple(headers)


# Compression


def _decompress(codec: int, packed: memoryview, limit: int) -> bytes:
    """Return what was compressed.

    Raises:
        UnreadableError: it is more than the limit, or cannot be decompressed.
    """
    try:
        if codec == _NONE:
            return bytes(packed)
        if codec == _GZIP:
            return _gunzip(packed, limit)
        if codec == _SNAPPY:
            return _unsnap(packed, limit)
        if codec == _LZ4:
            return _into(cramjam.lz4.decompress_into, packed, limit)
        if codec == _ZSTD:
            return _into(cramjam.zstd.decompress_into, packed, limit)
    except UnreadableError:
        raise
    # Whatever such a library raises, Rust panics included, means the same.
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt | SystemExit | MemoryError):
            raise
        raise UnreadableError("the batch cannot be decompressed") from None
    raise UnreadableError(f"compressed with codec {codec}, which there is not")


def _too_much(limit: int) -> UnreadableError:
    return UnreadableError(
        f"the batch unpacks to more than {limit} bytes", Reason.BATCH_TOO_LARGE
    )


def _gunzip(packed: memoryview, limit: int) -> bytes:
    # One member, as Kafka's clients write it: with many, each costs the rest again.
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    body = stream.decompress(packed, limit + 1)
    if len(body) > limit:
        raise _too_much(limit)
    if not stream.eof or stream.unused_data:
        raise UnreadableError("the batch cannot be decompressed")
    return body


def _unsnap(packed: memoryview, limit: int) -> bytes:
    """Handle Java's clients, which write blocks, and others, which write one."""
    data = bytes(packed)
    if not data.startswith(_XERIAL):
        return _unsnap_block(data, limit, limit)
    body = bytearray()
    at = _XERIAL_HEADER_SIZE
    while at < len(data):
        (size,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if not 0 <= size <= len(data) - at:
            raise UnreadableError("the batch cannot be decompressed")
        body += _unsnap_block(data[at : at + size], limit - len(body), limit)
        at += size
    return bytes(body)


def _unsnap_block(block: bytes, left: int, limit: int) -> bytes:
    # A block states its size, and that much would be allocated.
    if cramjam.snappy.decompress_raw_len(block) > left:
        raise _too_much(limit)
    return bytes(cramjam.snappy.decompress_raw(block))


def _into(decompress: Any, packed: memoryview, limit: int) -> bytes:
    """Decompress into a buffer that does not grow."""
    data = bytes(packed)
    # First one large enough for usual sizes: making the largest takes a while.
    size = min(limit, 2**14 + 8 * len(data))
    while True:
        buffer = bytearray(size)
        try:
            return bytes(memoryview(buffer)[: decompress(data, buffer)])
        except cramjam.DecompressionError as error:
            if "whole buffer" not in str(error):
                raise
        if size == limit:
            raise _too_much(limit)
        size = limit


# aiokafka


class Batches:
    """Cuts what was fetched into batches; stands in for aiokafka's `MemoryRecords`.

    Args:
        data: What the broker sent of a partition; the last batch may be cut off.
    """

    def __init__(self, data: bytes | None) -> None:
        self._view = memoryview(data or b"")
        self._at = 0
        # An incomplete first batch would be incomplete again next time.
        self._end = self._find_end() or len(self._view)

    def size_in_bytes(self) -> int:
        """Return how much was fetched."""
        return len(self._view)

    def has_next(self) -> bool:
        """Return whether there is a batch left."""
        return self._at < self._end

    def next_batch(self) -> memoryview:
        """Return the next batch."""
        found = self._view[self._at : self._end]
        self._at = self._end
        self._end = self._find_end()
        return found

    def _find_end(self) -> int:
        left = len(self._view) - self._at
        if left < _LOG_OVERHEAD:
            return 0
        (length,) = _LENGTH.unpack_from(self._view, self._at + 8)
        if not 0 < length <= left - _LOG_OVERHEAD:
            return 0
        return self._at + _LOG_OVERHEAD + int(length)


class PartitionRecords(Iterator[Any]):
    """Yields a fetch's records; stands in for aiokafka's class of that name.

    Its arguments are that class's. No deserializer is used here, and checksums are
    always compared.
    """

    def __init__(  # aiokafka calls it
        self,
        tp: Any,
        records: Batches,
        aborted_transactions: list[tuple[int, int]] | None,
        fetch_offset: int,
        key_deserializer: Any,  # noqa: ARG002  # aiokafka gives it
        value_deserializer: Any,  # noqa: ARG002
        check_crcs: bool,  # noqa: ARG002, FBT001
        isolation_level: int,
    ) -> None:
        self._tp = tp
        self._batches = records
        # A fetch has room for tens of thousands.
        self._aborted = deque(
            sorted(aborted_transactions or [], key=lambda item: item[1])
        )
        self._aborting: set[int] = set()
        self._is_committed = isolation_level == _READ_COMMITTED
        self._limit = max_unpacked_bytes(tp.topic)
        self._is_small = self._limit == MAX_UNPACKED_BYTES
        self._record_limit = MAX_RECORD_BYTES if self._is_small else self._limit
        self.next_fetch_offset = fetch_offset
        self.cost_bytes = 0
        self._iterator = self._unpack()

    def __iter__(self) -> PartitionRecords:
        return self

    def __next__(self) -> Any:
        return next(self._iterator)

    def _unpack(self) -> Iterator[Any]:
        while self._batches.has_next():
            data = self._batches.next_batch()
            try:
                batch = Batch(data)
            except UnreadableError as error:
                yield from self._pass_batch(data, error.problem)
                continue
            if not self._is_to_skip(batch):
                yield from self._unpack_batch(batch)
            # What was compacted away at a batch's end counts as read too.
            self.next_fetch_offset = max(self.next_fetch_offset, batch.next_offset)

    def _is_to_skip(self, batch: Batch) -> bool:
        if not self._is_committed or batch.producer_id < 0:
            return batch.is_control
        while self._aborted and self._aborted[0][1] <= batch.base_offset:
            self._aborting.add(self._aborted.popleft()[0])
        if batch.is_control:
            if batch.is_abort:
                self._aborting.discard(batch.producer_id)
            return True
        return batch.is_transactional and batch.producer_id in self._aborting

    def _unpack_batch(self, batch: Batch) -> Iterator[Any]:
        try:
            if self._is_small:
                batch.demand_signatures()
            body = batch.unpack(self._limit)
        except UnreadableError as error:
            self.cost_bytes += self._limit  # the work of finding out
            records = iter((batch.stand_in(error.problem),))
        else:
            self.cost_bytes += len(body)
            records = batch.records(body, self._record_limit)
        yield from filter(None, map(self._give, records))

    def _pass_batch(self, data: memoryview, problem: Problem) -> Iterator[Any]:
        """Get past what is no batch; its header is trusted if it is consistent.

        Then the broker has checked it: it wrote the offset, and counted.
        """
        last = self.next_fetch_offset
        if len(data) >= _HEADER.size and data[_MAGIC_AT] == _MAGIC:
            fields = _HEADER.unpack_from(data)
            if fields[12] == fields[6] + 1 > 0:
                last = max(last, fields[0] + fields[6])
        yield from filter(None, [self._give(_stand_in(last, problem))])

    def _give(self, record: Unpacked) -> Any:
        """Return what the consumer gets for a record; None for nothing."""
        offset, timestamp_ms, key, value, headers, problem = record
        if offset < self.next_fetch_offset:
            return None  # of a batch of which a part was read before
        self.next_fetch_offset = offset + 1
        self.cost_bytes += RECORD_COST_BYTES
        named: tuple[Any, ...] = headers
        if problem is not None:
            note_unreadable(self._tp.topic, offset, problem)
            named = ((PROBLEM, problem),)
        return ConsumerRecord(
            self._tp.topic,
            self._tp.partition,
            offset,
            timestamp_ms,
            0,
            key,
            value,
            None,
            -1 if key is None else len(key),
            -1 if value is None else len(value),
            named,
        )


class FetchResult(fetcher.FetchResult):  # type: ignore[misc]  # aiokafka has no types
    """aiokafka's, handing out records in pieces of bounded size."""

    _partition_records: PartitionRecords | None

    def getall(self, max_records: int | None = None) -> list[Any]:
        """Return the next records, in their order."""
        if not self.check_assignment(self._topic_partition) or not self.has_more():
            return []
        records = self._partition_records
        assert records is not None, "there is more"
        found: list[Any] = []
        limit = records.cost_bytes + MAX_POLL_BYTES
        for record in records:
            found.append(record)
            if records.cost_bytes >= limit or len(found) == max_records:
                self._update_position()
                return found
        self._update_position()
        self._partition_records = None
        return found


def is_stand_in(headers: Sequence[tuple[Any, Any]]) -> bool:
    """Return whether these are the headers of a stand-in."""
    return len(headers) == 1 and headers[0][0] is PROBLEM


def install() -> None:
    """Let every aiokafka consumer in this process unpack as this module does."""
    fetcher.MemoryRecords = Batches
    fetcher.PartitionRecords = PartitionRecords
    fetcher.FetchResult = FetchResult


_num_unreadable: dict[str, int] = {}


def note_unreadable(topic: str, offset: int, problem: Problem) -> None:
    """Count an unreadable record, and warn each time the number doubles."""
    number = _num_unreadable[topic] = _num_unreadable.get(topic, 0) + 1
    if number & (number - 1) == 0:
        log.warning(
            "offset %d of %s cannot be read: %s: %s (%d so far)",
            offset,
            topic,
            problem.reason,
            problem.detail,
            number,
        )
