"""Kafka record batches as bytes, with any field mutated: what no client would make.

A batch is a description, `RawBatch`, of records, `RawRecord`; `RawBatch.encode` makes
its bytes. Whatever is None in a description is computed, so that it is right; whatever
is given is written as it is, so that it may be a lie:

    good = RawBatch([RawRecord(key=b"clinics", value=b"...")])
    replace(good, crc=0)                                   # a wrong checksum
    RawBatch([RawRecord(headers=[(b"\\xff\\xfe", b"")])])    # no UTF-8
    RawBatch([RawRecord(value=b"x")], count=2**31 - 1)     # a count that lies
    bomb(Codec.ZSTD, 2**30)                                # 1 GB in 40 KB

Bombs are compressed piece by piece: what they unpack to is never in memory here.

The layout is Kafka's own: *DefaultRecordBatch* and *DefaultRecord* (magic 2, since
Kafka 0.11), and the message sets before them (magic 0 and 1), which Kafka 4 refuses.
`tests/integration/test_raw_batches.py` says what a real broker takes of all this.
"""

from __future__ import annotations

import gzip
import io
import struct
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

import cramjam
import numpy as np
from aiokafka.record.util import calc_crc32c

CHUNK_SIZE_BYTES: Final = 2**20
TRANSACTIONAL: Final = 0x10
CONTROL: Final = 0x20
LOG_APPEND_TIME: Final = 0x08
"""Flags of a batch's attributes; the lowest three bits are its codec."""

_BEFORE_CRC: Final = struct.Struct(">qiib")
_AFTER_CRC: Final = struct.Struct(">hiqqqhii")
_XERIAL: Final = b"\x82SNAPPY\x00" + struct.pack(">ii", 1, 1)
_XERIAL_BLOCK_BYTES: Final = 2**15


class Codec(IntEnum):
    """How a batch's records are compressed."""

    NONE = 0
    GZIP = 1
    SNAPPY = 2
    LZ4 = 3
    ZSTD = 4


COMPRESSING: Final = (Codec.GZIP, Codec.SNAPPY, Codec.LZ4, Codec.ZSTD)

Header = tuple[bytes | None, bytes | None]
"""A header's name, which should be UTF-8 and not null, and its value."""


def encode_varint(value: int) -> bytes:
    """Return a signed integer in zigzag form, as long as it has to be."""
    rest = value << 1 if value >= 0 else (-value << 1) - 1
    out = bytearray()
    while rest > 0x7F:
        out.append(rest & 0x7F | 0x80)
        rest >>= 7
    out.append(rest)
    return bytes(out)


def encode_bytes(data: bytes | None, length: int | None = None) -> bytes:
    """Return bytes after their length, which may be a lie; null has length -1."""
    if length is None:
        length = -1 if data is None else len(data)
    return encode_varint(length) + (data or b"")


@dataclass(frozen=True)
class RawRecord:
    """One record.

    Attributes:
        key: Its key.
        value: Its value; None is a tombstone.
        headers: Its headers, in order, names as bytes.
        attributes: Unused by Kafka.
        timestamp_delta: Milliseconds after the batch's first timestamp.
        offset_delta: Its place; as it stands in the batch unless given.
        length: What it says of its own length.
        key_length: What it says of its key's.
        value_length: What it says of its value's.
        num_headers: How many headers it says it has.
        tail: Bytes after its headers, counted in the computed length.
        raw: What stands instead of the whole record, its length included.
    """

    key: bytes | None = None
    value: bytes | None = b""
    headers: Sequence[Header] = ()
    attributes: int = 0
    timestamp_delta: int = 0
    offset_delta: int | None = None
    length: int | None = None
    key_length: int | None = None
    value_length: int | None = None
    num_headers: int | None = None
    tail: bytes = b""
    raw: bytes | None = None

    def encode(self, index: int = 0) -> bytes:
        """Return the record's bytes as they stand at a place in a batch."""
        if self.raw is not None:
            return self.raw
        body = b"".join(
            [
                struct.pack(">b", self.attributes),
                encode_varint(self.timestamp_delta),
                encode_varint(
                    index if self.offset_delta is None else self.offset_delta
                ),
                encode_bytes(self.key, self.key_length),
                encode_bytes(self.value, self.value_length),
                encode_varint(
                    len(self.headers) if self.num_headers is None else self.num_headers
                ),
                *(encode_bytes(part) for header in self.headers for part in header),
                self.tail,
            ]
        )
        length = len(body) if self.length is None else self.length
        return encode_varint(length) + body


@dataclass(frozen=True)
class RawBatch:
    """One batch of magic 2.

    Attributes:
        records: Its records.
        codec: How they are compressed.
        flags: Of `TRANSACTIONAL`, `CONTROL`, `LOG_APPEND_TIME`, or any others.
        first_timestamp: Milliseconds since 1970; now unless given.
        max_timestamp: Likewise; that of the latest record unless given.
        count: How many records it says it has.
        last_offset_delta: Of its last record, as it says.
        producer_id: Of an idempotent or transactional producer; -1 for none.
        producer_epoch: Likewise.
        base_sequence: Likewise.
        base_offset: What the broker overwrites.
        partition_leader_epoch: What the broker overwrites, outside of the checksum.
        magic: 2, or a lie.
        length: What it says of its own length.
        crc: Its checksum (CRC-32C).
        attributes: Instead of codec and flags.
        body: Instead of the records, compressed already; give `count` with it.
    """

    records: Sequence[RawRecord] = ()
    codec: int = Codec.NONE
    flags: int = 0
    first_timestamp: int | None = None
    max_timestamp: int | None = None
    count: int | None = None
    last_offset_delta: int | None = None
    producer_id: int = -1
    producer_epoch: int = -1
    base_sequence: int = -1
    base_offset: int = 0
    partition_leader_epoch: int = -1
    magic: int = 2
    length: int | None = None
    crc: int | None = None
    attributes: int | None = None
    body: bytes | None = None

    def encode(self) -> bytes:
        """Return the batch's bytes."""
        body = self.body
        if body is None:
            records = (record.encode(i) for i, record in enumerate(self.records))
            body = compress(self.codec, records)
        count = len(self.records) if self.count is None else self.count
        first, last = self.first_timestamp, self.max_timestamp
        if first is None:
            first = time.time_ns() // 1_000_000
        if last is None:
            last = first + max((r.timestamp_delta for r in self.records), default=0)
        delta = count - 1 if self.last_offset_delta is None else self.last_offset_delta
        checked = (
            _AFTER_CRC.pack(
                self.codec | self.flags if self.attributes is None else self.attributes,
                delta,
                first,
                last,
                self.producer_id,
                self.producer_epoch,
                self.base_sequence,
                count,
            )
            + body
        )
        crc = calc_crc32c(checked) if self.crc is None else self.crc
        # What follows the length: leader epoch, magic, checksum, what is checked.
        length = 9 + len(checked) if self.length is None else self.length
        head = _BEFORE_CRC.pack(
            self.base_offset, length, self.partition_leader_epoch, self.magic
        )
        return head + struct.pack(">I", crc) + checked


def compress(codec: int, chunks: Iterable[bytes]) -> bytes:
    """Return chunks compressed one after the other, as Kafka's clients frame them.

    An unknown codec leaves them as they are.
    """
    if codec == Codec.GZIP:
        gzipped = io.BytesIO()
        with gzip.GzipFile(fileobj=gzipped, mode="wb", mtime=0) as file:
            for chunk in chunks:
                file.write(chunk)
        return gzipped.getvalue()
    if codec == Codec.SNAPPY:
        return _XERIAL + b"".join(
            struct.pack(">i", len(block)) + block
            for block in map(_compress_snappy, _rechunk(chunks, _XERIAL_BLOCK_BYTES))
        )
    if codec == Codec.LZ4:
        # Kafka reads no frames whose blocks depend on each other.
        lz4 = cramjam.lz4.Compressor(
            level=9, content_checksum=False, block_linked=False
        )
        for chunk in chunks:
            lz4.compress(chunk)
        return bytes(lz4.finish())
    if codec == Codec.ZSTD:
        zstd = cramjam.zstd.Compressor(level=3)
        for chunk in chunks:
            zstd.compress(chunk)
        return bytes(zstd.finish())
    return b"".join(chunks)


def _compress_snappy(data: bytes) -> bytes:
    return bytes(cramjam.snappy.compress_raw(data))


def _rechunk(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    rest = bytearray()
    for chunk in chunks:
        rest += chunk
        while len(rest) >= size:
            yield bytes(rest[:size])
            del rest[:size]
    if rest:
        yield bytes(rest)


def bomb(
    codec: int,
    num_bytes: int,
    *,
    key: bytes | None = None,
    fill: bytes = b"\0",
    in_key: bool = False,
) -> RawBatch:
    """Return a batch of one record whose value, or key, is one byte many times.

    Args:
        codec: How it is compressed.
        num_bytes: Length of the value.
        key: Key of the record.
        fill: The byte, or several, that divide a megabyte.
        in_key: Whether the key is the long one; then the value is empty.
    """
    before = RawRecord(
        key=b"" if in_key else key,
        key_length=num_bytes if in_key else None,
        value=b"",
        value_length=None if in_key else num_bytes,
    )
    # The long bytes stand before the last one (no headers), and before that, if it is
    # the key, the value's length, 0.
    end = 2 if in_key else 1
    length = len(before.encode()) - 1 + num_bytes
    head = encode_varint(length) + before.encode()[1:-end]
    body = compress(codec, (head, *_filled(num_bytes, fill), before.encode()[-end:]))
    return RawBatch(codec=codec, count=1, body=body)


def header_bomb(codec: int, num_headers: int, *, key: bytes | None = None) -> RawBatch:
    """Return a batch of one record with many empty headers.

    Each is two bytes before compression, and a tuple of two objects in a client.
    """
    before = RawRecord(key=key, num_headers=num_headers).encode()[1:]
    head = encode_varint(len(before) + 2 * num_headers) + before
    body = compress(codec, (head, *_filled(2 * num_headers, b"\0")))
    return RawBatch(codec=codec, count=1, body=body)


def many_records(codec: int, count: int, *, key: bytes | None = None) -> RawBatch:
    """Return a batch of many records as short as records can be.

    Seven to ten bytes each before compression, and a Python object each in a client.
    """
    return RawBatch(codec=codec, count=count, body=compress(codec, _tiny(count, key)))


def _filled(num_bytes: int, fill: bytes) -> Iterator[bytes]:
    chunk = fill * (CHUNK_SIZE_BYTES // len(fill))
    for start in range(0, num_bytes, len(chunk)):
        yield chunk[: num_bytes - start]


def _tiny(count: int, key: bytes | None) -> Iterator[bytes]:
    """Yield records that differ in nothing but their offset."""
    start = 0
    while start < count:
        # All records whose offset's varint is equally long are equally long.
        width = len(encode_varint(start))
        end = min(count, 2 ** (7 * width - 1), start + CHUNK_SIZE_BYTES // 16)
        zigzag = 2 * np.arange(start, end, dtype=np.int64)
        offsets = np.stack(
            [
                zigzag >> 7 * i & 0x7F | (0x80 if i < width - 1 else 0)
                for i in range(width)
            ],
            axis=1,
        ).astype(np.uint8)
        template = RawRecord(key=key, value=None).encode(start)
        place = template.index(encode_varint(start), 3)
        block = np.tile(np.frombuffer(template, np.uint8), (end - start, 1))
        block[:, place : place + width] = offsets
        yield block.tobytes()
        start = end


@dataclass(frozen=True)
class RawMessage:
    """One message of the formats before Kafka 0.11: magic 0 and 1.

    Attributes:
        key: Its key.
        value: Its value; in a compressed set, the set within.
        magic: 0 or 1, or a lie.
        attributes: Its codec, in the lowest three bits.
        timestamp: Milliseconds since 1970; only magic 1 has one.
        offset: Its offset.
        length: What it says of its own length.
        crc: Its checksum (CRC-32).
        key_length: What it says of its key's length.
        value_length: What it says of its value's length.
    """

    key: bytes | None = None
    value: bytes | None = b""
    magic: int = 1
    attributes: int = 0
    timestamp: int = 0
    offset: int = 0
    length: int | None = None
    crc: int | None = None
    key_length: int | None = None
    value_length: int | None = None

    def encode(self) -> bytes:
        """Return the message's bytes, its offset and length included."""
        checked = struct.pack(">bb", self.magic, self.attributes)
        if self.magic == 1:
            checked += struct.pack(">q", self.timestamp)
        for data, said in (
            (self.key, self.key_length),
            (self.value, self.value_length),
        ):
            right = -1 if data is None else len(data)
            checked += struct.pack(">i", right if said is None else said)
            checked += data or b""
        crc = zlib.crc32(checked) if self.crc is None else self.crc
        length = 4 + len(checked) if self.length is None else self.length
        return struct.pack(">qiI", self.offset, length, crc) + checked


def encode_message_set(
    messages: Sequence[RawMessage], codec: Codec = Codec.NONE
) -> bytes:
    """Return a message set, in one compressed message if there is a codec."""
    inner = b"".join(message.encode() for message in messages)
    if codec == Codec.NONE:
        return inner
    magic = messages[0].magic if messages else 1
    packed = compress(codec, [inner])
    return RawMessage(value=packed, magic=magic, attributes=codec).encode()
