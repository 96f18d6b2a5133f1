"""What Kafka stores and no client makes: it is read, or a stand-in says why not."""

from dataclasses import replace

import pytest
from aiokafka.consumer import fetcher
from aiokafka.structs import TopicPartition

from adapters.raw_records import (
    MAX_UNPACKED_BYTES,
    PROBLEM,
    Batches,
    PartitionRecords,
    install,
)
from schemas import topics
from schemas.reasons import Reason
from tests.hostile.batches import (
    COMPRESSING,
    Codec,
    RawBatch,
    RawRecord,
    bomb,
    many_records,
)

GOOD = RawRecord(key=b"clinics", value=b"value", headers=[(b"name", b"content")])


def read(data, *, topic=topics.CONTROL, start=0):
    records = PartitionRecords(
        TopicPartition(topic, 0), Batches(data), [], start, None, None, True, 1
    )
    found = list(records)
    return found, records.next_fetch_offset


def problem_of(record):
    ((name, problem),) = record.headers
    assert name is PROBLEM
    assert record.key is None
    assert record.value is None
    return problem.reason


def after(batch, base=0):
    """Return a batch and a good one after it, as the broker numbers them."""
    count = len(batch.records) or 1
    return (
        replace(batch, base_offset=base).encode()
        + RawBatch([GOOD], base_offset=base + count).encode()
    )


@pytest.mark.parametrize("codec", Codec)
def test_what_a_client_makes_is_read_as_it_is(codec):
    batch = RawBatch([GOOD, replace(GOOD, key=None, value=None)], codec=codec)

    found, following = read(batch.encode())

    assert [(r.offset, r.key, r.value) for r in found] == [
        (0, b"clinics", b"value"),
        (1, None, None),
    ]
    assert found[0].headers == (("name", b"content"),)
    assert following == 2


@pytest.mark.parametrize(
    "record",
    [
        replace(GOOD, headers=[(b"\xff\xfe", b"")]),
        replace(GOOD, headers=[(b"\xed\xa0\x80", b"")]),
        replace(GOOD, headers=[(b"x", b"")] * 10_000),
        replace(GOOD, key=b"k" * 100_000),
        replace(GOOD, offset_delta=2**31 - 1),
        replace(GOOD, offset_delta=-1),
    ],
)
def test_one_bad_record_is_a_stand_in_and_the_next_is_read(record):
    found, following = read(after(RawBatch([record])))

    assert problem_of(found[0]) == Reason.UNREADABLE_RECORD
    assert (found[0].offset, found[1].offset, found[1].key) == (0, 1, b"clinics")
    assert following == 2


@pytest.mark.parametrize("length", [0, -1, 3, 300, 2**31 - 1])
def test_a_length_that_lies_costs_its_batch_alone(length):
    found, following = read(after(RawBatch([replace(GOOD, length=length)])))

    assert problem_of(found[0]) == Reason.UNREADABLE_RECORD
    assert (found[-1].offset, found[-1].key) == (1, b"clinics")
    assert following == 2


@pytest.mark.parametrize("codec", COMPRESSING)
def test_a_bomb_is_not_unpacked(codec):
    size = 64 * 2**20
    found, _ = read(after(bomb(codec, size)))

    assert problem_of(found[0]) == Reason.BATCH_TOO_LARGE
    assert found[1].key == b"clinics"


def test_a_million_tiny_records_are_a_bomb_too():
    count = MAX_UNPACKED_BYTES
    batch = many_records(Codec.ZSTD, count)
    found, following = read(batch.encode())

    assert [problem_of(record) for record in found] == [Reason.BATCH_TOO_LARGE]
    assert following == count


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.GZIP, Codec.ZSTD])
def test_any_byte_may_be_another_and_nothing_is_raised(codec):
    good = RawBatch([GOOD, GOOD], codec=codec).encode()
    for position in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(good)
            data[position] ^= flip
            found, following = read(bytes(data))
            assert following >= 0
            assert len(found) <= 2
            for cut in (position, len(good) - 1):
                read(bytes(data[:cut]))


def test_bytes_with_a_good_checksum_that_are_no_records():
    for body in (b"", b"\x00", b"\xff" * 40, bytes(40)):
        for count in (0, 1, 2**31 - 1, -1):
            batch = RawBatch([GOOD], body=body, count=count, last_offset_delta=0)
            read(batch.encode())


def test_every_consumer_of_aiokafka_unpacks_this_way():
    install()

    assert fetcher.PartitionRecords is PartitionRecords
    assert fetcher.MemoryRecords is Batches
