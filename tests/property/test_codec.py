"""Any event survives its encoding; any bytes are an event or refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any, get_args, get_type_hints

from hypothesis import example, given, settings
from hypothesis import strategies as st

from schemas import codec
from schemas.codec import CodecError

Known = dict[str, Any]


def strategy_of(schema: Any, annotation: Any, known: Known) -> st.SearchStrategy[Any]:
    """Return a strategy of values of a field, from its schema and its type."""
    if isinstance(schema, str) and schema in known:
        schema = known[schema]
    if isinstance(schema, list):
        null, some = schema
        assert null == "null"
        return st.none() | strategy_of(some, get_args(annotation)[0], known)
    kind = schema if isinstance(schema, str) else schema["type"]
    match kind:
        case "string":
            return st.text(st.characters(codec="utf-8"), max_size=12)
        case "int":
            return st.integers(-(2**31), 2**31 - 1)
        case "long":
            return st.integers(-(2**63), 2**63 - 1)
        case "bytes":
            return st.binary(max_size=12)
        case "fixed":
            known[schema["name"]] = schema
            return st.binary(min_size=schema["size"], max_size=schema["size"])
        case "array":
            inner = strategy_of(schema["items"], get_args(annotation)[0], known)
            return st.lists(inner, max_size=3).map(tuple)
        case _:
            assert kind == "record"
            known[schema["name"]] = schema
            hints = get_type_hints(annotation)
            parts = {
                field["name"]: strategy_of(field["type"], hints[field["name"]], known)
                for field in schema["fields"]
            }
            return st.builds(annotation, **parts)


@cache
def events_named(name: str) -> st.SearchStrategy[Any]:
    schema = json.loads(codec.schema_text(name))
    return strategy_of(schema, codec.CLASSES[name], {})


events = st.sampled_from(sorted(codec.CLASSES)).flatmap(events_named)


def change(data: bytes, draw: Callable[..., Any]) -> bytes:
    """Damage an encoding somewhere behind its fingerprint."""
    size = len(data)
    place: int = draw(st.integers(codec.HEADER_SIZE, size))
    more: bytes = draw(st.binary(min_size=1, max_size=4))
    match draw(
        st.sampled_from(["cut", "extend", "flip", "put in", "take out", "swap"])
    ):
        case "cut":
            return data[:place]
        case "extend":
            return data + more
        case "flip" if place < size:
            bit = 1 << draw(st.integers(0, 7))
            return data[:place] + bytes([data[place] ^ bit]) + data[place + 1 :]
        case "put in":
            return data[:place] + more + data[place:]
        case "take out":
            end: int = draw(st.integers(place, size))
            return data[:place] + data[end:]
        case _:
            return data[:place] + more


def is_event_or_refused(data: bytes) -> bool:
    """Whether these bytes are an event that is written so; nothing else may happen."""
    try:
        event = codec.decode(data)
    except CodecError:
        return False
    assert codec.encode(event) == data
    return True


@settings(max_examples=300)
@given(events)
def test_every_event_survives_its_encoding(event: Any) -> None:
    data = codec.encode(event)
    assert codec.decode(data) == event
    assert codec.encode(codec.decode(data)) == data


@settings(max_examples=600)
@given(events, st.data())
def test_damaged_events_are_other_events_or_none(
    event: Any, data: st.DataObject
) -> None:
    damaged = codec.encode(event)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged = change(damaged, data.draw)
    is_event_or_refused(damaged)


@settings(max_examples=300)
@given(st.sampled_from(sorted(codec.CLASSES)), st.binary(max_size=200))
@example("BlockSequenced", b"\xff" * 200)
def test_any_bytes_behind_a_fingerprint_are_an_event_or_none(
    name: str, body: bytes
) -> None:
    fingerprint = bytes.fromhex(codec.lock()[name][-1])
    is_event_or_refused(codec.MARKER + fingerprint + body)


@given(st.binary(max_size=64))
def test_any_bytes_at_all_are_an_event_or_none(data: bytes) -> None:
    is_event_or_refused(data)
    is_event_or_refused(codec.MARKER + data)
