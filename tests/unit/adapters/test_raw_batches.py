"""Batches made by hand are what a client's own parser takes them for."""

import tracemalloc
from dataclasses import replace

import pytest
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatch, _DefaultRecordBatchPy
from aiokafka.record.memory_records import MemoryRecords

from tests.hostile.batches import (
    COMPRESSING,
    CONTROL,
    TRANSACTIONAL,
    Codec,
    RawBatch,
    RawMessage,
    RawRecord,
    bomb,
    compress,
    encode_message_set,
    encode_varint,
    header_bomb,
    many_records,
)

RECORDS = (
    RawRecord(key=b"clinics", value=b"v" * 300, headers=[(b"a", b"b"), (b"c", None)]),
    RawRecord(key=None, value=None, timestamp_delta=7),
    RawRecord(key=b"", value=b""),
)


def _parse(batch: bytes, parser=DefaultRecordBatch):
    parsed = parser(bytearray(batch))
    assert parsed.validate_crc()
    return parsed, list(parsed)


@pytest.mark.parametrize("parser", [DefaultRecordBatch, _DefaultRecordBatchPy])
@pytest.mark.parametrize("codec", Codec)
def test_what_is_described_is_what_a_client_reads(codec: Codec, parser) -> None:
    batch = RawBatch(RECORDS, codec=codec, first_timestamp=1_000)

    parsed, read = _parse(batch.encode(), parser)

    assert [(r.key, r.value, r.offset, r.timestamp) for r in read] == [
        (b"clinics", b"v" * 300, 0, 1_000),
        (None, None, 1, 1_007),
        (b"", b"", 2, 1_000),
    ]
    assert list(read[0].headers) == [("a", b"b"), ("c", None)]
    assert (parsed.compression_type, parsed.max_timestamp) == (codec, 1_007)


def test_every_field_of_a_batch_can_be_set() -> None:
    said = RawBatch(
        RECORDS,
        flags=TRANSACTIONAL | CONTROL,
        first_timestamp=-5,
        max_timestamp=9,
        last_offset_delta=77,
        producer_id=12,
        producer_epoch=3,
        base_sequence=4,
        base_offset=55,
        count=3,
    )

    parsed, read = _parse(said.encode())

    assert parsed.is_transactional
    assert parsed.is_control_batch
    assert (parsed.first_timestamp, parsed.max_timestamp) == (-5, 9)
    assert (parsed.producer_id, parsed.producer_epoch, parsed.base_sequence) == (
        12,
        3,
        4,
    )
    assert (parsed.base_offset, parsed.next_offset) == (55, 55 + 77 + 1)
    assert len(read) == 3


@pytest.mark.parametrize(
    "lie",
    [
        RawBatch([RawRecord(headers=[(b"\xff", b"")])]),
        RawBatch([RawRecord(headers=[(None, b"")])]),
        RawBatch([RawRecord(num_headers=-1)]),
        RawBatch([RawRecord(length=3)]),
        RawBatch([RawRecord(key=b"k", key_length=1_000)]),
        RawBatch([RawRecord(value=b"v", value_length=2**31)]),
        RawBatch([RawRecord(tail=b"more")]),
        RawBatch([RawRecord(raw=b"\x80" * 12)]),
        RawBatch(RECORDS, count=2),
        RawBatch(RECORDS, count=4),
    ],
)
def test_lies_reach_the_parser_behind_a_right_checksum(lie: RawBatch) -> None:
    with pytest.raises((CorruptRecordException, UnicodeDecodeError)):
        _parse(lie.encode())


def test_a_checksum_and_a_length_can_be_wrong() -> None:
    good = RawBatch(RECORDS)
    right = MemoryRecords(good.encode()).next_batch()

    assert right.validate_crc()
    assert not DefaultRecordBatch(
        bytearray(replace(good, crc=1).encode())
    ).validate_crc()
    too_long = MemoryRecords(replace(good, length=2**20).encode())
    assert not too_long.has_next()


@pytest.mark.parametrize("value", [0, -1, 1, 63, 64, -64, -65, 2**31, -(2**63)])
def test_varints_are_kafkas(value: int) -> None:
    from aiokafka.record.util import decode_varint_py

    data = encode_varint(value)

    assert decode_varint_py(bytearray(data)) == (value, len(data))


@pytest.mark.parametrize("codec", COMPRESSING)
@pytest.mark.parametrize("in_key", [False, True])
def test_a_bomb_is_one_record_of_that_many_bytes(codec: Codec, in_key: bool) -> None:
    batch = bomb(codec, 3_000_000, key=b"k", fill=b"ab", in_key=in_key)

    _, [record] = _parse(batch.encode())

    found = record.key if in_key else record.value
    assert found == b"ab" * 1_500_000
    assert record.key == (found if in_key else b"k")


@pytest.mark.parametrize("codec", COMPRESSING)
def test_bombs_of_headers_and_records_have_that_many(codec: Codec) -> None:
    _, [record] = _parse(header_bomb(codec, 100_000).encode())
    _, records = _parse(many_records(codec, 100_000, key=b"k").encode())

    assert len(record.headers) == 100_000
    assert [r.offset for r in records] == list(range(100_000))
    assert {(r.key, r.value) for r in records} == {(b"k", None)}


def test_a_bomb_is_never_unpacked_here() -> None:
    size = 2**28
    tracemalloc.start()
    try:
        packed = len(bomb(Codec.ZSTD, size).encode())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert packed < 2**17
    assert peak < size / 16


@pytest.mark.parametrize("magic", [0, 1])
@pytest.mark.parametrize("codec", [Codec.NONE, Codec.GZIP, Codec.SNAPPY])
def test_message_sets_of_old_are_what_a_client_reads(magic: int, codec: Codec) -> None:
    messages = [
        RawMessage(key=b"k", value=b"v", magic=magic, offset=0),
        RawMessage(key=None, value=None, magic=magic, offset=1),
    ]

    records = MemoryRecords(encode_message_set(messages, codec))

    found = []
    while (batch := records.next_batch()) is not None:
        assert batch.validate_crc()
        found.extend((record.key, record.value) for record in batch)
    assert found == [(b"k", b"v"), (None, None)]


def test_an_unknown_codec_compresses_nothing() -> None:
    assert compress(7, [b"a", b"b"]) == b"ab"
