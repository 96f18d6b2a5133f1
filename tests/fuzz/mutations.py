"""Changes to bytes that parsers trip over: lengths, numbers, repeats, depth, cuts.

All are drawn from a seeded generator: the same seed gives the same bytes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass, replace
from random import Random
from typing import Any, Final, get_args, get_type_hints

from schemas import codec
from tests.hostile.batches import encode_varint

NUMBERS: Final = (
    *(0, 1, -1, 2, 7, 63, 64, 65, 127, 128, 255, 256, 32_767, 32_768, 65_535, 65_536),
    *(sign * 2**bits + step for bits in (31, 32, 62, 63, 64) for sign in (1, -1)
      for step in (-1, 0, 1)),
    *(10**9, 10**18, 10**19),
)  # fmt: skip
FILLERS: Final = (
    *(b"\0", b"\xff", b"\x80", b"\x01", b"0", b"9", b"a", b" ", b"\n", b"\t", b"\r\n"),
    *(b'"', b"\\", b'"\\', b"[", b"{", b"]", b'{"a":', b'["', b",", b":", b"[],"),
    *(b"+", b"=", b"/", b"\n\n", b"A" * 4, b"x000/", b"\xe2\x80\x94 ", b"\xc3\xa4"),
    *(b"e9", b"-", b".", b'\\"', b"\\u0000", b"\0\0\0\x01", b"\x02a"),
)
"""What to repeat; also what `test_parser_cost` makes long inputs of."""
TOKENS: Final = (
    *(b"1e999", b"NaN", b"Infinity", b"-0", b"null", b"true", b"{}", b"[]", b'""'),
    *(b"\\ud800", b"\xed\xa0\x80", b"\xff\xfe", b"\xf4\x90\x80\x80", b"\x1b[2J"),
    *("\u202e\u2066\u200b\ufeff\u2028".encode(), b"\xc2\x85", b"\xc2\xa0", b"%00"),
    *(b"../../", b"9" * 400, b"9" * 5_000, b"-" + b"9" * 19, b"\xff" * 9 + b"\x01"),
    *(b"\x80" * 10, b"\xc3\x01", b"\x82SNAPPY\0", b"\x28\xb5\x2f\xfd", b"\x1f\x8b"),
)
_DIGITS: Final = re.compile(rb"[0-9]+")


def mutate(data: bytes, random: Random, others: Sequence[bytes] = ()) -> bytes:
    """Return bytes that differ in one to six places.

    Args:
        data: To begin with.
        random: What is drawn from.
        others: Whose parts may be put into it.
    """
    for _ in range(random.choice((1, 1, 1, 2, 2, 3, 6))):
        change = random.choice(_CHANGES)
        data = change(data, random) if data else _insert(data, random)
        if others and random.random() < 0.1:
            data = _splice(data, random.choice(others), random)
    return data


def _place(data: bytes, random: Random) -> tuple[int, int]:
    """Return the beginning and end of a part, mostly a short one."""
    begin = random.randrange(len(data) + 1)
    longest = random.choice((1, 1, 4, 8, 32, len(data)))
    return begin, min(len(data), begin + random.randint(0, longest))


def _flip(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]


def _set(data: bytes, random: Random) -> bytes:
    at = random.randrange(len(data))
    byte = random.choice((0, 1, 0x7F, 0x80, 0xFF, random.randrange(256)))
    return data[:at] + bytes([byte]) + data[at + 1 :]


def _cut(data: bytes, random: Random) -> bytes:
    begin, end = _place(data, random)
    return random.choice((data[:begin], data[begin:], data[:begin] + data[end:]))


def _repeat(data: bytes, random: Random) -> bytes:
    begin, end = _place(data, random)
    times = random.choice((2, 3, 16, 300, 5_000))
    part = data[begin:end][:64] if times > 16 else data[begin:end]
    return data[:begin] + part * times + data[end:]


def _insert(data: bytes, random: Random) -> bytes:
    begin, end = _place(data, random) if data else (0, 0)
    if random.random() < 0.5:
        part = random.choice(FILLERS) * random.choice((1, 2, 20, 500, 4_000))
    else:
        part = random.choice(TOKENS)
    return data[:begin] + part + data[random.choice((begin, end)) :]


def _number(data: bytes, random: Random) -> bytes:
    """Put a number where a binary number may be: fixed, or a varint."""
    begin = random.randrange(len(data))
    number = random.choice(NUMBERS)
    size = random.choice((0, 1, 2, 4, 8))
    if not size:
        end = begin
        while end < len(data) and data[end] & 0x80:
            end += 1
        return data[:begin] + encode_varint(number) + data[end + 1 :]
    order = random.choice(("big", "little"))
    return (
        data[:begin] + (number % 256**size).to_bytes(size, order) + data[begin + size :]
    )


def _length(data: bytes, random: Random) -> bytes:
    """Change a byte by little: a length that does not fit any more."""
    at = random.randrange(len(data))
    return (
        data[:at]
        + bytes([(data[at] + random.choice((-2, -1, 1, 2))) % 256])
        + data[at + 1 :]
    )


def _decimal(data: bytes, random: Random) -> bytes:
    """Put another number where one is written in digits."""
    found = [*_DIGITS.finditer(data)]
    if not found:
        return _insert(data, random)
    begin, end = random.choice(found).span()
    number = str(random.choice(NUMBERS)).encode()
    return data[:begin] + random.choice((number, *TOKENS[:4])) + data[end:]


def _swap(data: bytes, random: Random) -> bytes:
    begin, end = _place(data, random)
    to = random.randrange(len(data) + 1)
    part, rest = data[begin:end], data[:begin] + data[end:]
    return rest[:to] + part + rest[to:]


def _splice(data: bytes, other: bytes, random: Random) -> bytes:
    begin, end = _place(data, random)
    first, last = _place(other, random)
    return data[:begin] + other[first:last] + data[end:]


_CHANGES: Final[Sequence[Callable[[bytes, Random], bytes]]] = (
    *(_flip, _set, _cut, _repeat, _insert, _number, _length, _decimal, _swap),
)


# Events: of the right form, and with fields that nobody would give them


def mutate_event(data: bytes, random: Random) -> bytes:
    """Return an event with another field; bytes that are no event are just mutated."""
    try:
        return codec.encode(mutate_fields(codec.decode(data), random))
    except codec.CodecError:
        return mutate(data, random)


def _may_be_null(cls: type, name: str) -> bool:
    return type(None) in get_args(get_type_hints(cls)[name])


def mutate_fields(value: Any, random: Random) -> Any:
    """Return a value of the same type in which something, somewhere, is another."""
    match value:
        case _ if is_dataclass(value) and fields(value):
            name = random.choice([field.name for field in fields(value)])
            changed = mutate_fields(getattr(value, name), random)
            if random.random() < 0.1 and _may_be_null(type(value), name):
                changed = None
            return replace(value, **{name: changed})  # type: ignore[type-var]
        case bool():
            return not value
        case int():
            return random.choice((*NUMBERS, value + 1, value - 1, -value))
        case str():
            changed = mutate(value.encode(), random)
            return type(value)(changed.decode("utf-8", "ignore"))
        case bytes():
            if random.random() < 0.5 and value:
                return _flip(value, random)
            return mutate(value, random)
        case tuple() if value:
            at = random.randrange(len(value))
            kept = value[:at], value[at + 1 :]
            several = (value[at],) * random.choice((0, 2, 300))
            if random.random() < 0.6:
                several = (mutate_fields(value[at], random),)
            return (*kept[0], *several, *kept[1])
        case _:
            return value
