"""Hostile records by the thousand, from a seed: each another one.

`generate` draws kinds at random, all equally often, and of each kind a new case. It
knows what a stranger with a reader's eyes knows: what the topics hold (`Seen`), names
of federations, ids of schemas. It holds no key of anybody.
"""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

from ledger.signing import SigningKey
from protocol.envelope import (
    NO_GENESIS,
    SIGNATURE_HEADER,
    choose_genesis,
    compute_genesis_hash,
    sign_event,
)
from schemas import codec as event_codec
from schemas import events as e
from tests.hostile.batches import (
    COMPRESSING,
    Codec,
    Header,
    RawBatch,
    RawRecord,
    encode_varint,
)
from tests.hostile.lies import Lie, make_lies

SIGNATURE: Final = SIGNATURE_HEADER.encode()
MAX_BATCH_BYTES: Final = 120_000
NASTY: Final = (
    "\x00", "\x1b[2J", "\x1b]0;owned\x07", "\u202e", "\u2066", "\ufeff", " ", "\n",
    "\r", "\x7f", "\x9b31m", "\ud7ff", "\U0010ffff", "../", "%s%n", "${jndi:x}", "'--",
)  # fmt: skip
"""What texts can do to a terminal, a path, a log, a query."""


@dataclass(frozen=True)
class Seen:
    """A genuine record, as anybody can read it.

    Attributes:
        topic: Where it was.
        key: Its key.
        value: Its value, a schema id in front.
        headers: Its headers.
        event: What is signed of it: single-object bytes.
    """

    topic: str
    key: bytes
    value: bytes
    headers: tuple[Header, ...]
    event: bytes


@dataclass(frozen=True)
class Hostile:
    """A batch to send.

    Attributes:
        kind: What is wrong with it, in a word.
        data: The batch.
        num_records: How many it holds, by its own word.
    """

    kind: str
    data: bytes
    num_records: int


@dataclass(frozen=True)
class Stranger:
    """Who sends them, and what they know.

    Attributes:
        draw: Where the cases come from.
        names: Federations that are known.
        seen: What they all have said.
        schema_ids: Ids in the schema registry, by event; of other schemas too.
        key: The stranger's own.
    """

    draw: random.Random
    names: Sequence[str]
    seen: Sequence[Seen]
    schema_ids: Mapping[str, int]
    key: SigningKey

    @cached_property
    def foundings(self) -> list[e.FederationConfigured]:
        """What the known federations were founded with."""
        events = [event_codec.decode(seen.event) for seen in self.seen]
        return [x for x in events if isinstance(x, e.FederationConfigured)]

    @cached_property
    def geneses(self) -> dict[str, bytes]:
        """Their genesis hashes, by name: anybody can compute them."""
        return {
            config.federation_id: compute_genesis_hash(event_codec.encode(config))
            for config in self.foundings
        }

    def sign(self, event: e.Event, data: bytes) -> bytes:
        """Sign what is said in a federation, if it is known."""
        genesis = self.geneses.get(event.federation_id, NO_GENESIS)
        return sign_event(self.key, choose_genesis(event, genesis), data)

    # Parts

    def name(self) -> bytes:
        """A known federation, of them all equally often."""
        return self.draw.choice(self.names).encode()

    def genuine(self) -> Seen:
        return self.draw.choice(self.seen)

    def prefix(self) -> bytes:
        return b"\0" + struct.pack(">I", self.draw.choice([*self.schema_ids.values()]))

    def junk(self, most: int = 2_000) -> bytes:
        return self.draw.randbytes(self.draw.randrange(1, most))

    def nasty(self) -> str:
        return "".join(self.draw.choices(NASTY, k=self.draw.randrange(1, 9)))

    def say(self, event: e.Event) -> RawRecord:
        """Say something that is as it must be, in the stranger's own name."""
        data = event_codec.encode(event)
        number = struct.pack(">I", self.schema_ids[type(event).__name__])
        return RawRecord(
            key=event.federation_id.encode(),
            value=b"\0" + number + data[event_codec.HEADER_SIZE :],
            headers=((SIGNATURE, self.sign(event, data)),),
        )

    # Kinds

    def truncated(self) -> RawRecord:
        seen = self.genuine()
        cut = self.draw.randrange(len(seen.value))
        return _record(seen, value=seen.value[:cut])

    def extended(self) -> RawRecord:
        seen = self.genuine()
        return _record(seen, value=seen.value + self.junk(100))

    def bit_flipped(self) -> RawRecord:
        seen = self.genuine()
        value = bytearray(seen.value)
        for _ in range(self.draw.randrange(1, 4)):
            value[self.draw.randrange(len(value))] ^= 1 << self.draw.randrange(8)
        return _record(seen, value=bytes(value))

    def spliced(self) -> RawRecord:
        seen, other = self.genuine(), self.genuine()
        cut = self.draw.randrange(len(seen.value))
        tail = other.value[self.draw.randrange(len(other.value)) :]
        return _record(seen, value=seen.value[:cut] + tail)

    def repeated(self) -> RawRecord:
        return _record(self.genuine())

    def under_another_name(self) -> RawRecord:
        return _record(self.genuine(), key=self.name())

    def unsigned(self) -> RawRecord:
        return _record(self.genuine(), headers=())

    def wrongly_signed(self) -> RawRecord:
        seen = self.genuine()
        signature = self.draw.choice(
            [
                self.draw.randbytes(64),
                bytes(64),
                b"\xff" * 64,
                self.key.sign(seen.value),
                self.draw.randbytes(self.draw.randrange(200)),
                dict(self.genuine().headers).get(SIGNATURE) or b"",
                None,
            ]
        )
        return _record(seen, headers=((SIGNATURE, signature),))

    def with_odd_headers(self) -> RawRecord:
        seen = self.genuine()
        headers: list[Header] = [
            (
                self.draw.choice(
                    [SIGNATURE, b"moot-event-id", b"traceparent", self.nasty().encode()]
                ),
                self.draw.choice(
                    [None, b"", self.junk(100), self.nasty().encode(), b"0" * 9_000]
                ),
            )
            for _ in range(self.draw.randrange(1, 20))
        ]
        return _record(seen, headers=(*seen.headers, *headers))

    def with_a_name_of_no_text(self) -> RawRecord:
        names = (b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"a\xfe")
        odd = self.draw.choice(names) + self.junk(8)[:2]
        seen = self.genuine()
        return _record(seen, headers=((odd, b"v"), *seen.headers))

    def under_an_odd_key(self) -> RawRecord:
        name = self.name()
        nasty = self.nasty().encode()
        key = self.draw.choice(
            [
                None,
                b"",
                name + b"\0",
                name.upper(),
                name + b" ",
                nasty + name,
                self.junk(64),
                name * 10,
                self.draw.randbytes(60_000),
                name.replace(b"a", "а".encode()),  # Cyrillic
            ]
        )
        return _record(self.genuine(), key=key)

    def of_another_schema(self) -> RawRecord:
        seen = self.genuine()
        return _record(seen, value=self.prefix() + seen.value[5:])

    def of_no_schema(self) -> RawRecord:
        ids = (0, 2**31 - 1, 2**31, 2**32 - 1, self.draw.randrange(2**32))
        number = struct.pack(">I", self.draw.choice(ids))
        seen = self.genuine()
        return _record(seen, value=b"\0" + number + seen.value[5:])

    def framed_otherwise(self) -> RawRecord:
        seen = self.genuine()
        body = seen.value[5:]
        value = self.draw.choice(
            [
                body,
                b"\xc3\x01" + self.draw.randbytes(8) + body,
                event_codec.MARKER + self.draw.randbytes(8) + body,
                b"\x01" + seen.value[1:],
                seen.value[:5],
                b"",
                b"\0",
                b"Obj\x01" + body,
            ]
        )
        return _record(seen, value=value)

    def avro_garbage(self) -> RawRecord:
        """Lengths and counts of arrays that promise much, behind a good schema id."""
        number = self.draw.choice([2**62, -(2**62), -1, 2**31, 2**20, 10**6, -(10**6)])
        varint = encode_varint(number)
        begin = self.draw.choice(
            [b"", encode_varint(len(self.name())) + self.name(), b"\x02a"]
        )
        body = begin + self.draw.choice(
            [varint, varint * 2_000, varint + bytes(4_000), self.junk()]
        )
        return RawRecord(key=self.name(), value=self.prefix() + body)

    def long_arrays(self) -> RawRecord:
        """An event cut at a place, and then as many empty items as fit."""
        seen = self.genuine()
        cut = self.draw.randrange(5, len(seen.value))
        count = self.draw.randrange(1_000, 50_000)
        value = seen.value[:cut] + encode_varint(count) + bytes(count)
        return _record(seen, value=value[:64_990])

    def deep_text(self) -> RawRecord:
        """JSON as deep as a record, in place of a value or within an event."""
        depth = self.draw.randrange(1_000, 30_000)
        opened = self.draw.choice([b"[", b'{"a":', b"[{", b"(", b"\x0c", b"["])
        text = (opened * depth)[:60_000]
        if self.draw.random() < 0.5:
            return RawRecord(key=self.name(), value=text)
        seen = self.genuine()
        cut = self.draw.randrange(5, len(seen.value))
        value = seen.value[:cut] + encode_varint(len(text)) + text + seen.value[cut:]
        return _record(seen, value=value[:64_990])

    def great_numbers(self) -> RawRecord:
        text = self.draw.choice([b"9" * 60_000, b"1e" + b"9" * 6_000, b"-" * 60_000])
        return RawRecord(key=self.name(), value=self.prefix() + text)

    def signed_by_a_stranger(self) -> RawRecord:
        """Everything about it is right, but who says it."""
        seen = self.genuine()
        signature = self.sign(event_codec.decode(seen.event), seen.event)
        return _record(seen, headers=((SIGNATURE, signature),))

    def asking_to_join(self) -> RawRecord:
        """Anybody may; with any words."""
        number = self.draw.randrange(2**32)
        return self.say(
            e.AgentEnrolmentRequested(
                federation_id=self.name().decode(),
                agent_id=self.draw.choice([f"stranger-{number}", self.nasty()]),
                public_key=self.key.public_key,
            )
        )

    def founding_with_deep_text(self) -> RawRecord:
        """Anybody may; with a task whose configuration is as deep as it is long."""
        genuine = self.draw.choice(self.foundings)
        opened, closed = self.draw.choice([("[", "]"), ('{"a":[', "]}"), ("[[],", "]")])
        depth = self.draw.randrange(1, 30_000 // len(opened))
        text = opened * depth + closed * (depth if self.draw.random() < 0.5 else 0)
        task = replace(genuine.task, module_config=text)
        name = f"strangers-{self.draw.randrange(2**32)}"
        return self.say(replace(genuine, federation_id=name, task=task))

    def random_bytes(self) -> RawRecord:
        value = self.draw.choice([self.junk(), self.draw.randbytes(64_000)])
        return RawRecord(key=self.name(), value=value)

    def nasty_text(self) -> RawRecord:
        text = (self.nasty() * self.draw.randrange(1, 900)).encode()
        value = self.draw.choice([text, self.prefix() + text])
        return RawRecord(key=self.name(), value=value[:64_000])

    def tombstone(self) -> RawRecord:
        return _record(self.genuine(), value=None)

    def too_large(self) -> RawRecord:
        size = self.draw.randrange(64_996, 110_000)
        return RawRecord(key=self.name(), value=self.prefix() + bytes(size))


def _record(seen: Seen, **changes: object) -> RawRecord:
    record = RawRecord(key=seen.key, value=seen.value, headers=seen.headers)
    return replace(record, **changes)  # type: ignore[arg-type]


KINDS: Final[tuple[Callable[[Stranger], RawRecord], ...]] = (
    Stranger.truncated,
    Stranger.extended,
    Stranger.bit_flipped,
    Stranger.spliced,
    Stranger.repeated,
    Stranger.under_another_name,
    Stranger.unsigned,
    Stranger.wrongly_signed,
    Stranger.with_odd_headers,
    Stranger.with_a_name_of_no_text,
    Stranger.under_an_odd_key,
    Stranger.of_another_schema,
    Stranger.of_no_schema,
    Stranger.framed_otherwise,
    Stranger.avro_garbage,
    Stranger.long_arrays,
    Stranger.deep_text,
    Stranger.great_numbers,
    Stranger.signed_by_a_stranger,
    Stranger.asking_to_join,
    Stranger.founding_with_deep_text,
    Stranger.random_bytes,
    Stranger.nasty_text,
    Stranger.tombstone,
    Stranger.too_large,
)
"""What one record can be; a batch around it may lie besides."""


def generate(stranger: Stranger, count: int) -> Iterator[Hostile]:
    """Yield batches of this many records, for one topic.

    Every lie of `make_lies` is among them once, those too that a broker refuses; then
    records of all kinds, alone or a few in one batch, packed in any way, with odd
    times, flags and producers.
    """
    draw = stranger.draw
    lies = make_lies(stranger.name(), stranger.genuine().value)
    made = 0
    for lie in draw.sample(lies, min(len(lies), count // 4)):
        if len(lie.encode()) <= MAX_BATCH_BYTES:
            made += 1
            yield _of_lie(lie)
    while made < count:
        kinds = [draw.choice(KINDS) for _ in range(min(_few(draw), count - made))]
        records = [kind(stranger) for kind in kinds]
        while len(records) > 1 and sum(map(_size, records)) > MAX_BATCH_BYTES:
            records.pop()
        batch = RawBatch(records, **_manners(draw))
        made += len(records)
        yield Hostile(kinds[0].__name__, batch.encode(), len(records))


def _few(draw: random.Random) -> int:
    return draw.choice([1, 1, 1, 2, 5, 20])


def _size(record: RawRecord) -> int:
    return len(record.encode())


def _of_lie(lie: Lie) -> Hostile:
    batch = lie.batch
    count = 1  # of bytes that are none, what is stored has one
    if isinstance(batch, RawBatch):
        count = len(batch.records) if batch.count is None else batch.count
    return Hostile(f"lie: {lie.name}", lie.encode(), count)


def _manners(draw: random.Random) -> dict[str, int]:
    """How a batch comes that says nothing wrong about itself."""
    manners: dict[str, int] = {"codec": draw.choice([Codec.NONE, *COMPRESSING])}
    if draw.random() < 0.2:
        manners["first_timestamp"] = draw.choice(
            [0, -1, -(2**40), 253_402_300_799_000, 2**62, 1]
        )
    if draw.random() < 0.1:
        manners["flags"] = 0x40 << draw.randrange(9)
    if draw.random() < 0.1:
        manners |= {
            "producer_id": draw.randrange(10**6, 10**9),
            "producer_epoch": draw.randrange(100),
            "base_sequence": draw.randrange(1_000),
        }
    return manners


__all__ = ["KINDS", "Hostile", "Seen", "Stranger", "generate"]
