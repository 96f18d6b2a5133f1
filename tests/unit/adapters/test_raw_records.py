"""Whatever a batch's bytes hold, unpacking ends, is bounded, and gets past it."""

import os
import tracemalloc
from dataclasses import replace

import cramjam
import pytest
from aiokafka.consumer import fetcher
from aiokafka.structs import TopicPartition
from hypothesis import example, given
from hypothesis import strategies as st

import adapters.kafka
from adapters import raw_records
from adapters.raw_records import (
    FEW_RECORDS,
    MAX_POLL_BYTES,
    MAX_RECORD_BYTES,
    MAX_UNPACKED_BYTES,
    PROBLEM,
    SIGNATURE_BYTES,
    Batches,
    FetchResult,
    PartitionRecords,
)
from schemas import topics
from schemas.reasons import Reason
from tests.hostile.batches import (
    COMPRESSING,
    CONTROL,
    TRANSACTIONAL,
    Codec,
    RawBatch,
    RawRecord,
    bomb,
    compress,
    encode_varint,
    header_bomb,
    many_records,
)

GOOD = RawBatch([RawRecord(key=b"clinics", value=b"next")])
READ_COMMITTED = 1


def unpack(*batches, topic=topics.CONTROL, start=0, aborted=(), base=None):
    """Read what a broker would send of these batches, one after the other."""
    data, offset = b"", 0
    for batch in batches:
        raw = batch if isinstance(batch, bytes) else batch.encode()
        # The broker gives a batch its place, outside of the checksum.
        data += offset.to_bytes(8, "big") + raw[8:]
        offset += 1 if isinstance(batch, bytes) else len(batch.records) or 1
    records = PartitionRecords(
        TopicPartition(topic, 0),
        Batches(data),
        list(aborted),
        start,
        None,
        None,
        True,
        READ_COMMITTED,
    )
    return list(records), records


def problem_of(record):
    assert (record.key, record.value) == (None, None)
    return dict(record.headers)[PROBLEM].reason


def test_records_are_read_as_they_were_written():
    records = [
        RawRecord(key=b"clinics", value=b"a", headers=[(b"moot-signature", b"s")]),
        RawRecord(key=None, value=None, headers=[(b"empty", None), (b"", b"v")]),
        RawRecord(key=b"", value=b"", headers=[(b"twice", b"1"), (b"twice", b"2")]),
    ]
    for codec in Codec:
        found, state = unpack(RawBatch(records, codec=codec))
        assert [(r.offset, r.key, r.value, r.headers) for r in found] == [
            (0, b"clinics", b"a", (("moot-signature", b"s"),)),
            (1, None, None, (("empty", b""), ("", b"v"))),
            (2, b"", b"", (("twice", b"1"), ("twice", b"2"))),
        ]
        assert state.next_fetch_offset == 3


UNREADABLE_RECORDS = {
    "header name": RawRecord(headers=[(b"\xff\xfe", b"v")]),
    "surrogate": RawRecord(headers=[(b"\xed\xa0\x80", b"v")]),
    "headers": RawRecord(headers=[(b"h", b"")] * 10_000),
    "number of headers": RawRecord(num_headers=2**31 - 1),
    "negative headers": RawRecord(num_headers=-1),
    "key length": RawRecord(key=b"k", key_length=2**40),
    "value length": RawRecord(value=b"v", value_length=2**31 - 1),
    "giant key": RawRecord(key=bytes(100_000)),
    "bytes after": RawRecord(tail=b"tail"),
    "offset ahead": RawRecord(offset_delta=2**31 - 1),
    "offset behind": RawRecord(offset_delta=-1),
}


@pytest.mark.parametrize("codec", list(Codec))
@pytest.mark.parametrize("record", UNREADABLE_RECORDS.values(), ids=UNREADABLE_RECORDS)
def test_one_record_that_cannot_be_read_does_not_stop_the_next(record, codec):
    batch = RawBatch([RawRecord(value=b"before"), record, RawRecord(value=b"after")])
    found, state = unpack(replace(batch, codec=codec), GOOD)
    assert [r.offset for r in found] == [0, 1, 2, 3]
    assert [r.value for r in found] == [b"before", None, b"after", b"next"]
    assert problem_of(found[1]) == Reason.UNREADABLE_RECORD
    assert state.next_fetch_offset == 4


@pytest.mark.parametrize("length", [0, -1, 2**31 - 1, 2**62])
def test_a_length_that_lies_hides_no_more_than_its_batch(length):
    batch = RawBatch([RawRecord(), RawRecord(length=length), RawRecord(value=b"lost")])
    found, state = unpack(batch, GOOD)
    assert [r.offset for r in found] == [0, 2, 3]
    assert problem_of(found[1]) == Reason.UNREADABLE_RECORD
    assert found[2].value == b"next"
    assert state.next_fetch_offset == 4


UNREADABLE_BATCHES = {
    "garbage": replace(GOOD, body=bytes(range(256))),
    "a number without end": replace(GOOD, body=b"\xff" * 100),
    "nothing": replace(GOOD, body=b""),
    "codec 5": replace(GOOD, attributes=5, body=b"x" * 20),
    "codec 7": replace(GOOD, attributes=7, body=b"x" * 20),
    **{
        f"corrupt {codec.name}": replace(GOOD, attributes=codec, body=b"\x13" * 40)
        for codec in COMPRESSING
    },
    **{
        f"truncated {codec.name}": replace(
            GOOD,
            attributes=codec,
            body=compress(codec, [GOOD.records[0].encode()])[:-3],
        )
        for codec in COMPRESSING
    },
    "magic 0": replace(GOOD, magic=0),
    "magic 1": replace(GOOD, magic=1),
    "magic 3": replace(GOOD, magic=3),
    "crc": replace(GOOD, crc=0),
    "count": replace(GOOD, count=2**31 - 1, last_offset_delta=0),
    "negative count": replace(GOOD, count=-1, last_offset_delta=0),
    "negative last delta": replace(GOOD, last_offset_delta=-2),
    "snappy of a declared size": replace(
        GOOD, attributes=Codec.SNAPPY, body=b"\xff\xff\xff\xff\x0f" + b"x"
    ),
    "xerial of a declared size": replace(
        GOOD,
        attributes=Codec.SNAPPY,
        body=b"\x82SNAPPY\0" + bytes(8) + b"\x7f\xff\xff\xff" + b"x",
    ),
}


@pytest.mark.parametrize("batch", UNREADABLE_BATCHES.values(), ids=UNREADABLE_BATCHES)
def test_a_batch_that_cannot_be_read_does_not_stop_the_next(batch):
    found, state = unpack(GOOD, batch, GOOD)
    assert [r.offset for r in found] == [0, 1, 2]
    assert problem_of(found[1]) in {Reason.UNREADABLE_RECORD, Reason.BATCH_TOO_LARGE}
    assert found[2].value == b"next"
    assert state.next_fetch_offset == 3


@pytest.mark.parametrize("codec", COMPRESSING)
@pytest.mark.parametrize(
    "make",
    [
        lambda codec: bomb(codec, 2**27),
        lambda codec: header_bomb(codec, 5_000_000),
        lambda codec: many_records(codec, 1_000_000),
    ],
    ids=["zeros", "headers", "records"],
)
def test_what_unpacks_to_too_much_is_refused_in_little_memory(codec, make):
    batch = make(codec)
    data = batch.encode()
    last = batch.last_offset_delta or (batch.count or len(batch.records)) - 1
    tracemalloc.start()
    found, state = unpack(data)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [problem_of(r) for r in found] == [Reason.BATCH_TOO_LARGE]
    # Read again from anywhere in it, it is the same refusal and no other.
    assert found[0].offset == last
    assert state.next_fetch_offset == last + 1
    assert peak < 4 * MAX_UNPACKED_BYTES + 8 * len(data)


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("count", [FEW_RECORDS + 40, 2_000, 100_000])
def test_more_records_than_signatures_cost_one_refusal(codec, count):
    found, state = unpack(many_records(codec, count))
    assert [problem_of(r) for r in found] == [Reason.BATCH_TOO_LARGE]
    assert found[0].offset == count - 1
    assert state.next_fetch_offset == count


@pytest.mark.parametrize("codec", Codec)
@pytest.mark.parametrize("count", [1, 16, 500])
def test_signed_records_are_never_too_many_however_they_compress(codec, count):
    """Of one event, said again and again with the least that a record can have."""
    signed = [
        RawRecord(value=b"", headers=[(b"moot-signature", os.urandom(SIGNATURE_BYTES))])
        for _ in range(count)
    ]
    found, _ = unpack(RawBatch(signed, codec=codec))
    assert len(found) == count
    assert not any(raw_records.is_stand_in(r.headers) for r in found)


def test_the_ledger_is_its_writers_own():
    batch = many_records(Codec.ZSTD, 2_000, key=b"k")
    found, _ = unpack(batch, topic=topics.LEDGER)
    assert len(found) == 2_000


@pytest.mark.parametrize(
    "large",
    [
        RawRecord(value=bytes(MAX_RECORD_BYTES)),
        RawRecord(headers=[(b"h", bytes(MAX_RECORD_BYTES // 2))] * 2),
    ],
    ids=["value", "headers"],
)
def test_readers_that_hold_records_by_the_thousand_get_no_large_ones(large):
    records = [RawRecord(value=b"a"), large, RawRecord(value=b"b")]
    batch = RawBatch(records, codec=Codec.ZSTD)
    found, _ = unpack(batch)
    assert problem_of(found[1]) == Reason.TOO_LARGE
    assert [(r.offset, r.value) for r in found] == [(0, b"a"), (1, None), (2, b"b")]
    # Blocks are larger.
    found, _ = unpack(batch, topic=topics.LEDGER)
    assert not any(raw_records.is_stand_in(r.headers) for r in found)


def test_many_batches_within_the_limit_are_handed_out_in_pieces():
    record = RawRecord(value=bytes(MAX_RECORD_BYTES - 100))
    piece = compress(Codec.ZSTD, [record.encode(i) for i in range(4)])
    batches = [RawBatch([record] * 4, codec=Codec.ZSTD, body=piece)] * 40
    data = b"".join(
        (4 * i).to_bytes(8, "big") + batch.encode()[8:]
        for i, batch in enumerate(batches)
    )
    state = PartitionRecords(
        TopicPartition(topics.CONTROL, 0), Batches(data), [], 0, None, None, True, 1
    )
    result = FetchResult(
        TopicPartition(topics.CONTROL, 0),
        assignment=Assigned(state),
        partition_records=state,
        backoff=0,
    )
    offsets = []
    while result.has_more():
        found = result.getall()
        assert sum(len(r.value) for r in found) <= MAX_POLL_BYTES + MAX_UNPACKED_BYTES
        offsets += [r.offset for r in found]
    assert offsets == list(range(160))


class Assigned:
    """A partition that is assigned, and read up to where it was handed out."""

    active, paused = True, False

    def __init__(self, records):
        self.position = records.next_fetch_offset

    def state_value(self, _place):
        return self

    def consumed_to(self, offset):
        self.position = offset


def test_a_flag_or_a_stamp_of_a_stranger_changes_no_place():
    found, state = unpack(
        replace(GOOD, flags=CONTROL),  # read as a marker: no record
        replace(GOOD, flags=CONTROL, producer_id=7, body=b"\xff" * 9),
        replace(GOOD, flags=TRANSACTIONAL, producer_id=8),
        replace(GOOD, first_timestamp=-(2**63)),
        replace(GOOD, first_timestamp=2**63 - 1, max_timestamp=2**63 - 1),
        replace(GOOD, flags=0x40, producer_id=2**63 - 1),
        GOOD,
    )
    assert [r.offset for r in found] == [2, 3, 4, 5, 6]
    assert all(0 <= r.timestamp <= 2**53 for r in found)
    assert state.next_fetch_offset == 7


def test_what_was_aborted_is_passed_over_up_to_the_marker():
    aborted = replace(GOOD, flags=TRANSACTIONAL, producer_id=7)
    marker = replace(
        GOOD,
        flags=TRANSACTIONAL | CONTROL,
        producer_id=7,
        records=[RawRecord(key=b"\0\0\0\0", value=bytes(6))],
    )
    found, _ = unpack(aborted, marker, aborted, GOOD, aborted=[(7, 0)])
    assert [r.offset for r in found] == [2, 3]


def test_records_of_a_compacted_topic_keep_their_places():
    kept = [RawRecord(key=b"a", offset_delta=3), RawRecord(key=b"b", offset_delta=8)]
    batch = RawBatch(kept, last_offset_delta=9)
    found, state = unpack(batch)
    assert [r.offset for r in found] == [3, 8]
    assert state.next_fetch_offset == 10


def test_a_batch_of_which_a_part_was_read_goes_on_there():
    batch = RawBatch([RawRecord(value=bytes([i])) for i in range(5)], codec=Codec.LZ4)
    found, _ = unpack(batch, start=3)
    assert [r.offset for r in found] == [3, 4]


def test_a_fetch_that_was_cut_short_is_fetched_again():
    data = GOOD.encode()
    found, state = unpack(data + (1).to_bytes(8, "big") + data[8:-4])
    assert [r.offset for r in found] == [0]
    assert state.next_fetch_offset == 1


def test_aiokafka_still_asks_for_what_is_replaced():
    assert adapters.kafka, "whoever reads Kafka has imported it"
    assert fetcher.MemoryRecords is Batches
    assert fetcher.PartitionRecords is PartitionRecords
    assert fetcher.FetchResult is FetchResult


def test_warnings_become_fewer(caplog):
    for offset in range(1_000):
        raw_records.note_unreadable(
            "a topic", offset, raw_records.Problem(Reason.UNREADABLE_RECORD, "why")
        )
    assert raw_records._num_unreadable["a topic"] == 1_000
    assert len(caplog.records) == 10


@given(st.binary(max_size=300), st.sampled_from(range(8)), st.integers(-3, 300))
@example(encode_varint(20) + bytes(19), Codec.NONE, 1)
def test_any_body_is_passed(body, codec, count):
    batch = replace(GOOD, attributes=codec, body=body, count=count)
    batch = replace(batch, last_offset_delta=count - 1)
    found, state = unpack(batch.encode())
    assert all(0 <= r.offset < max(count, 1) for r in found)
    assert state.next_fetch_offset >= 1


@given(st.data())
def test_any_byte_of_a_batch_may_be_another(data):
    codec = data.draw(st.sampled_from(Codec))
    record = RawRecord(key=b"clinics", value=b"v" * 50, headers=[(b"h", b"v")])
    raw = bytearray(RawBatch([record] * 3, codec=codec).encode())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(8, len(raw) - 1))] = data.draw(st.integers(0, 255))
    found, state = unpack(bytes(raw))
    assert [r.offset for r in found] == sorted({r.offset for r in found})
    assert state.next_fetch_offset >= 0


@given(st.binary(max_size=200))
def test_any_fetch_ends(data):
    unpack(data)
    Batches(None)


def test_two_zstd_frames_are_one_body():
    first, second = (RawRecord(value=bytes([i])).encode(i) for i in range(2))
    body = bytes(cramjam.zstd.compress(first)) + bytes(cramjam.zstd.compress(second))
    batch = RawBatch(attributes=Codec.ZSTD, body=body, count=2)
    found, _ = unpack(batch.encode())
    assert [r.offset for r in found] == [0, 1]


@pytest.mark.parametrize("codec", [Codec.NONE, Codec.GZIP, Codec.ZSTD])
def test_each_byte_may_be_another_and_the_rest_may_be_missing(codec):
    record = RawRecord(key=b"clinics", value=b"value", headers=[(b"name", b"v")])
    good = RawBatch([record] * 2, codec=codec).encode()
    for position in range(len(good)):
        for flip in (0x01, 0x80, 0xFF):
            data = bytearray(good)
            data[position] ^= flip
            found, state = unpack(bytes(data))
            assert state.next_fetch_offset >= 0
            assert len(found) <= 2
            unpack(bytes(data[:position]))
