"""From the bytes of a Kafka record batch to records: cannot raise, and is bounded.

Kafka stores what clients would never make: names of headers that are not UTF-8, records
whose lengths and offsets lie, a gigabyte of zeros in 30 KB. aiokafka's own unpacking
raises on the first two, below everybody who could do something about it and again after
every restart, and unpacks the last. So it is replaced here, for every reader of ours,
in Faust's processes and outside of them (ADR 0023).

Rules:

- What cannot be read is a stand-in at the right offset, without key and value, that
  says why: a reader goes on with what comes next.
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
"""What a batch may unpack to: 8 times the largest that the broker takes of most topics,
and 16 events of the greatest size."""
MAX_LEDGER_UNPACKED_BYTES: Final = 2**23
"""The same for the ledger, whose blocks have up to 2 MiB, and for tables of state."""
MAX_RECORD_BYTES: Final = topics.MAX_EVENT_RECORD_SIZE_BYTES
"""What a record may have, headers and all: only what is compressed could have more, and
readers hold records by the thousand. Not for the ledger and tables."""
MAX_POLL_BYTES: Final = 2**20
"""Bytes of one partition that a reader is given at once, or a batch's more."""
RECORD_COST_BYTES: Final = 512
"""What a record costs in memory beside its bytes, as a round number: a million empty
ones are a bomb too."""
FEW_RECORDS: Final = 16
SIGNATURE_BYTES: Final = 64
"""Of an event's record that cannot be compressed. A batch that has more than a few
records and fewer of these bytes for each is refused whole: a refusal for each of the
100,000 empty ones that a few hundred bytes of zstd hold would take minutes."""
MAX_HEADERS: Final = 64
"""Headers of one record; ours have three. Tracing and meshes add a handful."""
MAX_KEY_BYTES: Final = 2**10
"""A key is a federation's name, at most 64 characters."""

_HEADER: Final = struct.Struct(">qiibIhiqqqhii")
_LENGTH: Final = struct.Struct(">i")
_CRC_END: Final = 21
_LOG_OVERHEAD: Final = 12  # base offset and length, which the length does not count
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
    """A name of a header that no record can have: names of headers are text."""

    PROBLEM = "problem"


PROBLEM: Final = Marker.PROBLEM
"""Under it a stand-in carries, as its only header, why there is nothing to read."""


class Problem(NamedTuple):
    """Why a record cannot be read.

    Attributes:
        reason: The code that a refusal carries.
        detail: For people; nothing of the record's own text.
    """

    reason: Reason
    detail: str


class UnreadableError(Exception):
    """Bytes that are no records; never leaves this module."""

    def __init__(self, detail: str, reason: Reason = Reason.UNREADABLE_RECORD) -> None:
        super().__init__(detail)
        self.problem = Problem(reason, detail)


class Unpacked(NamedTuple):
    """A record, or a stand-in for what cannot be read.

    Attributes:
        offset: Where it is.
        timestamp_ms: When its author says it was made; 0 for a stand-in.
        key: Its key.
        value: Its value.
        headers: Its headers in their order, a null value as an empty one.
        problem: Why it is a stand-in; None if it is none.
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
    """One record batch as fetched; its checksum is right and its header makes sense.

    Args:
        data: From the base offset to the end.

    Raises:
        UnreadableError: it is none.
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
        """Whether it holds a transaction's marker and no records."""
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
        """See that its bytes, compressed as they are, have room for signed records.

        Raises:
            UnreadableError: they have not.
        """
        most = FEW_RECORDS + len(self._data) // SIGNATURE_BYTES
        if self._count > most:
            msg = f"{self._count} records in {len(self._data)} bytes; at most {most}"
            raise UnreadableError(msg, Reason.BATCH_TOO_LARGE)

    def unpack(self, limit: int) -> bytes:
        """Return the records' bytes, decompressed.

        Args:
            limit: The most they may be, bytes.

        Raises:
            UnreadableError: they are more, or cannot be decompressed.
        """
        packed = self._data[_HEADER.size :]
        return _decompress(self._attributes & _CODEC_MASK, packed, limit)

    def records(self, body: bytes, max_record_bytes: int) -> Iterator[Unpacked]:
        """Yield the records of an unpacked body, and stand-ins where there are none.

        Args:
            body: What `unpack` returned.
            max_record_bytes: The most that a record may have.
        """
        # Where nothing was compacted away a record's place is its offset, and another
        # word of its own is a lie. In a compacted topic its word is all there is.
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

        There a reader that stops and comes again finds it once.
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
    time_delta, at = _varint(data, at + 1)  # after the attributes, which mean nothing
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
    # Whatever such a library raises, panics of its Rust too, says the same.
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
    # One member, as Kafka's clients write it: with many each costs the rest again.
    stream = zlib.decompressobj(zlib.MAX_WBITS | 16)
    body = stream.decompress(packed, limit + 1)
    if len(body) > limit:
        raise _too_much(limit)
    if not stream.eof or stream.unused_data:
        raise UnreadableError("the batch cannot be decompressed")
    return body


def _unsnap(packed: memoryview, limit: int) -> bytes:
    """Do as Java's clients, who write blocks, or as others, who write one."""
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
    # A block says its size, and that is what would be allocated.
    if cramjam.snappy.decompress_raw_len(block) > left:
        raise _too_much(limit)
    return bytes(cramjam.snappy.decompress_raw(block))


def _into(decompress: Any, packed: memoryview, limit: int) -> bytes:
    """Decompress into a buffer that does not grow."""
    data = bytes(packed)
    # First one that is enough for what is usual: making the largest takes a while.
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
        data: What the broker sent of a partition; the last batch may be cut short.
    """

    def __init__(self, data: bytes | None) -> None:
        self._view = memoryview(data or b"")
        self._at = 0
        # A first batch that is not whole would be so again the next time.
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

    Its arguments are that one's. No deserializer is used here, and a checksum is
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
        # Ten thousands of them fit a fetch.
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
            # What was compacted away at a batch's end counts as read as well.
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
        """Get past what is no batch; its header is believed if it agrees with itself.

        Then the broker has looked at it: it wrote the offset, and counted.
        """
        last = self.next_fetch_offset
        if len(data) >= _HEADER.size and data[_MAGIC_AT] == _MAGIC:
            fields = _HEADER.unpack_from(data)
            if fields[12] == fields[6] + 1 > 0:
                last = max(last, fields[0] + fields[6])
        yield from filter(None, [self._give(_stand_in(last, problem))])

    def _give(self, record: Unpacked) -> Any:
        """Return what the consumer gets for a record; None if that is nothing."""
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
    """aiokafka's, which hands out what it has in pieces of a bounded size."""

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
    """Let every consumer of aiokafka in this process unpack as this module does."""
    fetcher.MemoryRecords = Batches
    fetcher.PartitionRecords = PartitionRecords
    fetcher.FetchResult = FetchResult


_num_unreadable: dict[str, int] = {}


def note_unreadable(topic: str, offset: int, problem: Problem) -> None:
    """Count what could not be read, and warn: each time twice as many have come."""
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
