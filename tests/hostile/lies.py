"""Every lie that a record batch can tell, and what a real broker says to it.

`LIES` is the table: a name, a batch, and Kafka 4.3's answer. What is stored matters:
every reader of the topic gets it, again after each restart. In short:

- The header of a batch is checked well, counts above all; what the broker does not use
  it leaves alone (flags, producer ids that nobody gave out, negative times).
- Of a record that is *not* compressed the broker does not check the offset, nor any
  header's name. Clients believe such an offset and go up and down.
- Of a record that *is* compressed it checks the offset, and does not check the length.
  librdkafka says nothing for ever at one that lies, aiokafka raises.
- No size is checked but that of the batch as sent.

`tests/integration/test_raw_batches.py` holds the table against the broker.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

from tests.hostile.batches import (
    COMPRESSING,
    CONTROL,
    LOG_APPEND_TIME,
    TRANSACTIONAL,
    Codec,
    Header,
    RawBatch,
    RawMessage,
    RawRecord,
    bomb,
    compress,
    encode_message_set,
    header_bomb,
    many_records,
)

STORED: Final = "NO_ERROR"
INVALID: Final = "INVALID_RECORD"
CORRUPT: Final = "INVALID_MSG"
FAILED: Final = "UNKNOWN"
"""The broker's code raised something that it did not expect."""
STAMP: Final = "INVALID_TIMESTAMP"


@dataclass(frozen=True)
class Lie:
    """Something a batch can say that no client would.

    Attributes:
        name: Of the lie.
        batch: The batch, or bytes that are none.
        answer: The broker's, as `Answer.name`.
        spoils: Whether our readers make stand-ins of some of what is stored.
    """

    name: str
    batch: RawBatch | bytes
    answer: str = STORED
    spoils: bool = False

    @property
    def is_stored(self) -> bool:
        """Whether the broker stores it."""
        return self.answer == STORED

    def encode(self) -> bytes:
        """Return what is sent."""
        return self.batch if isinstance(self.batch, bytes) else self.batch.encode()


def make_lies(key: bytes = b"k", value: bytes = b"v") -> list[Lie]:
    """Return all lies, told by records with this key and value."""
    return list(_lies(key, value))


def _lies(key: bytes, value: bytes) -> Iterator[Lie]:
    def record(**lies: object) -> RawRecord:
        return RawRecord(**{"key": key, "value": value, **lies})  # type: ignore[arg-type]

    good = RawBatch([record()])
    yield from _of_batches(good)
    yield from _of_offsets(record)
    yield from _of_headers(record)
    yield from _of_lengths(record)
    yield from _of_bodies(record)
    yield from _of_times(good, record)
    yield from _bombs(key)
    yield Lie("null key", RawBatch([record(key=None)]))
    yield Lie("null key and value", RawBatch([RawRecord(value=None)]))
    yield Lie("empty key and value", RawBatch([RawRecord(key=b"", value=b"")]))
    yield Lie("tombstone", RawBatch([record(value=None)]))
    yield Lie("key not UTF-8", RawBatch([record(key=b"\xff" + key)]))
    yield Lie("long key", RawBatch([record(key=(key * 50_000)[:50_000])]), spoils=True)
    yield Lie("record attributes", RawBatch([record(attributes=-1)]))


def _of_batches(good: RawBatch) -> Iterator[Lie]:
    two = replace(good, records=[*good.records] * 2)
    for codec in Codec:
        yield Lie(f"no lie, {codec.name}", replace(good, codec=codec))
    for codec in (5, 6, 7):
        yield Lie(f"codec {codec}", replace(good, codec=codec), FAILED)
    yield Lie("checksum", replace(good, crc=1), CORRUPT)
    yield Lie("no checksum", replace(good, crc=0), CORRUPT)
    size = len(good.encode()) - 12
    yield Lie("length one more", replace(good, length=size + 1), INVALID)
    for length in (-1, 0, 10):
        yield Lie(f"length {length}", replace(good, length=length), CORRUPT)
    yield Lie("length 2^31 - 1", replace(good, length=2**31 - 1), FAILED)
    for magic, answer in ((0, INVALID), (1, INVALID), (3, CORRUPT), (-1, CORRUPT)):
        yield Lie(f"magic {magic}", replace(good, magic=magic), answer)
    yield Lie("leader epoch", replace(good, partition_leader_epoch=99))
    for offset in (99, -1):
        yield Lie(f"base offset {offset}", replace(good, base_offset=offset), INVALID)
    yield Lie("unused flags", replace(good, flags=0x7FC0))
    yield Lie("sign of the flags", replace(good, attributes=-(2**15)))
    yield Lie("log append time", replace(good, flags=LOG_APPEND_TIME), STAMP)
    yield Lie("control", replace(good, flags=CONTROL), INVALID)
    no_right = "TRANSACTIONAL_ID_AUTHORIZATION_FAILED"
    yield Lie("transactional", replace(good, flags=TRANSACTIONAL), no_right)
    yield Lie(
        "transactional control", replace(good, flags=TRANSACTIONAL | CONTROL), no_right
    )
    marker = RawRecord(key=b"\0\0\0\1", value=b"\0\0\0\0\0\1")
    yield Lie(
        "commit marker",
        RawBatch([marker], flags=CONTROL, producer_id=1, producer_epoch=0),
        INVALID,
    )
    known = replace(good, producer_epoch=0)
    yield Lie("made-up producer", replace(known, producer_id=5_001, base_sequence=0))
    yield Lie("made-up sequence", replace(known, producer_id=5_002, base_sequence=99))
    yield Lie("producer -2", replace(good, producer_id=-2))
    yield Lie("epoch without producer", replace(good, producer_epoch=5))
    yield Lie(
        "epoch -2",
        replace(good, producer_id=5_003, producer_epoch=-2, base_sequence=0),
        "INVALID_PRODUCER_EPOCH",
    )
    for delta in (5, -1, 2**31 - 1):
        yield Lie(
            f"last delta {delta}", replace(good, last_offset_delta=delta), INVALID
        )
    for count in (-1, 0, 2, 2**31 - 1):
        yield Lie(f"count {count} of 1", replace(good, count=count), INVALID)
    yield Lie(
        "count 2 of 1, last delta 0",
        replace(good, count=2, last_offset_delta=0),
        INVALID,
    )
    yield Lie("count 1 of 2", replace(two, count=1), INVALID)
    yield Lie("no records", RawBatch([]), INVALID)
    yield Lie("no batch", b"", INVALID)
    yield Lie("two batches", good.encode() * 2, INVALID)
    yield Lie("junk after the batch", good.encode() + b"junk")
    yield Lie("cut", good.encode()[:-3], INVALID)
    for old in (0, 1):
        messages = [RawMessage(key=b"k", magic=old)]
        for codec in (Codec.NONE, Codec.GZIP):
            yield Lie(
                f"message set {old}, {codec.name}",
                encode_message_set(messages, codec),
                INVALID,
            )


def _of_offsets(record) -> Iterator[Lie]:
    for delta in (5, -1, 2**31 - 1, -(2**31)):
        batch = RawBatch([record(offset_delta=delta)])
        yield Lie(f"offset delta {delta}", batch, spoils=True)
        packed = replace(batch, codec=Codec.LZ4)
        yield Lie(f"offset delta {delta}, packed", packed, FAILED)
    yield Lie("offset delta 2^40", RawBatch([record(offset_delta=2**40)]), INVALID)
    for name, deltas in {
        "equal": (0, 0),
        "backwards": (1, 0),
        "up and down": (5, 1, 2),
        "below": (0, -1, -2),
    }.items():
        records = [record(offset_delta=delta) for delta in deltas]
        yield Lie(f"offset deltas {name}", RawBatch(records), spoils=True)


def _of_headers(record) -> Iterator[Lie]:
    def lie(name: str, *headers: Header, **how: object) -> Lie:
        return Lie(name, RawBatch([record(headers=headers)]), **how)  # type: ignore[arg-type]

    yield lie("name not UTF-8", (b"\xff\xfe", b"v"), spoils=True)
    yield lie("name is a surrogate", (b"\xed\xa0\x80", b"v"), spoils=True)
    yield lie("name cut", ("é".encode()[:1], b"v"), spoils=True)
    yield lie("name null", (None, b"v"), answer=INVALID)
    yield lie("name empty", (b"", b"v"))
    yield lie("name with NUL", (b"moot\0signature", b"v"))
    yield lie("name with an escape", (b"\x1b[2J\x1b]0;owned\x07", b"v"))
    yield lie("name of 100 KB", (b"n" * 100_000, b"v"))
    yield lie("value of 100 KB", (b"moot-signature", b"v" * 100_000))
    yield lie("value null", (b"moot-signature", None))
    yield lie("one name twice", *[(b"moot-signature", b"v" * 64)] * 2)
    yield lie("10,000 headers", *[(b"a", b"v")] * 10_000, spoils=True)
    for count in (-1, 1, 2**31 - 1):
        yield Lie(
            f"{count} headers of 0",
            RawBatch([record(num_headers=count)]),
            INVALID,
        )
    fewer = record(headers=[(b"a", b"b")], num_headers=0)
    yield Lie("no headers of 1", RawBatch([fewer]), INVALID)


def _of_lengths(record) -> Iterator[Lie]:
    right = len(record().encode()) - 1
    for length in (0, -1, 3, right + 1, right + 300, 2**31 - 1):
        batch = RawBatch([record(length=length)])
        yield Lie(f"record length {length}", batch, INVALID)
        for codec in COMPRESSING:
            name = f"record length {length}, {codec.name}"
            yield Lie(name, replace(batch, codec=codec), spoils=True)
    first = RawBatch([record(length=3), record()], codec=Codec.ZSTD)
    yield Lie("record length of the first of two", first, spoils=True)
    for name, lies in {
        "key length": {"key_length": 1_000},
        "key length -2": {"key_length": -2},
        "key length -1": {"key_length": -1},
        "value length 2^31": {"value_length": 2**31},
        "value length -2": {"value_length": -2},
        "value length 0": {"value_length": 0},
        "bytes after the headers": {"tail": b"more"},
    }.items():
        for codec in (Codec.NONE, Codec.ZSTD):
            batch = RawBatch([record(**lies)], codec=codec)
            yield Lie(f"{name}, {codec.name}", batch, INVALID)
    longer = record().encode()
    end = next(i for i, byte in enumerate(longer) if byte < 0x80)
    longer = longer[:end] + bytes([longer[end] | 0x80, 0]) + longer[end + 1 :]
    yield Lie("varint longer than needed", RawBatch([record(raw=longer)]))
    endless = RawBatch([record(raw=b"\x80" * 12)])
    yield Lie("endless varint", endless, FAILED)
    yield Lie("endless varint, packed", replace(endless, codec=Codec.ZSTD), INVALID)


def _of_bodies(record) -> Iterator[Lie]:
    for codec in COMPRESSING:
        batch = RawBatch(codec=codec, count=1)
        garbage = replace(batch, body=b"garbage!" * 8)
        yield Lie(f"not {codec.name}", garbage, FAILED)
    zstd = [compress(Codec.ZSTD, [record().encode(i)]) for i in range(2)]
    batch = RawBatch(codec=Codec.ZSTD, count=1)
    yield Lie("ZSTD cut", replace(batch, body=zstd[0][:-3]), FAILED)
    yield Lie("ZSTD and junk", replace(batch, body=zstd[0] + b"junkjunk"), FAILED)
    yield Lie("two frames of ZSTD", replace(batch, count=2, body=b"".join(zstd)))
    gzip = [compress(Codec.GZIP, [record().encode(i)]) for i in range(2)]
    yield Lie(
        "two members of GZIP",
        RawBatch(codec=Codec.GZIP, count=2, body=b"".join(gzip)),
        spoils=True,
    )
    trailing = compress(Codec.ZSTD, [record().encode(), record().encode(1)])
    yield Lie("more records than said", replace(batch, body=trailing), INVALID)


def _of_times(good: RawBatch, record) -> Iterator[Lie]:
    for name, stamp in {
        "before 1970": -5,
        "1970": 0,
        "year 9999": 253_402_300_799_000,
        "2^63 - 1": 2**63 - 1,
        "-2^63": -(2**63),
    }.items():
        yield Lie(f"time {name}", replace(good, first_timestamp=stamp))
    yield Lie("last time", replace(good, max_timestamp=2**62))
    for delta in (2**62, -(2**62)):
        batch = RawBatch([record(timestamp_delta=delta)], max_timestamp=0)
        yield Lie(f"time delta {delta}", batch)


def _bombs(key: bytes) -> Iterator[Lie]:
    def lie(name: str, batch: RawBatch) -> Lie:
        return Lie(name, batch, spoils=True)

    # Each as large as 128 KiB hold, or as a test that sends many can afford.
    for codec, megabytes in (
        (Codec.GZIP, 100),
        (Codec.SNAPPY, 2),
        (Codec.LZ4, 25),
        (Codec.ZSTD, 1_000),
    ):
        size = megabytes * 2**20
        yield lie(f"bomb of {megabytes} MB, {codec.name}", bomb(codec, size, key=key))
    yield lie("bomb in the key", bomb(Codec.ZSTD, 100 * 2**20, in_key=True))
    for codec, count in (
        (Codec.GZIP, 20_000_000),
        (Codec.SNAPPY, 1_000_000),
        (Codec.LZ4, 10_000_000),
        (Codec.ZSTD, 20_000_000),
    ):
        yield lie(f"{count} headers, {codec.name}", header_bomb(codec, count, key=key))
    yield lie("2,000 records", many_records(Codec.ZSTD, 2_000, key=key))
    yield lie("100,000 records", many_records(Codec.ZSTD, 100_000))
    same = RawRecord(key=key, value=None).encode()
    yield Lie(
        "a million records at one offset",
        RawBatch(
            codec=Codec.ZSTD,
            count=10**6,
            body=compress(Codec.ZSTD, [same * 10**6]),
        ),
        FAILED,
    )


__all__ = ["CORRUPT", "FAILED", "INVALID", "STAMP", "STORED", "Lie", "make_lies"]
