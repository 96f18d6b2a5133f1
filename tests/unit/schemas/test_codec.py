"""Events to bytes and back."""

from __future__ import annotations

import re
import time
import tracemalloc
from dataclasses import replace
from typing import Any

import pytest

from schemas import codec, topics
from schemas import events as e
from schemas.codec import CodecError, UnknownSchemaError
from schemas.reasons import Reason

EVENT = e.RoundRequested(federation_id="f", round=3, requested_at_ms=-5)
DATA = codec.encode(EVENT)
BLOCK = e.BlockSequenced(
    federation_id="f",
    height=1,
    previous_block_hash=bytes(32),
    first_leaf_index=1,
    leaves=(b"ab", b"c"),
    tree_root=bytes(32),
    sequenced_at_ms=1,
    traceparents=("", ""),
)


def test_an_event_is_marker_fingerprint_and_body() -> None:
    fingerprint = codec.compute_fingerprint(codec.schema_text("RoundRequested"))
    assert b"\xc3\x01" + fingerprint + b"\x02f" + b"\x06" + b"\x09" == DATA
    assert codec.event_name(fingerprint) == "RoundRequested"
    assert codec.decode(DATA) == EVENT


def test_the_fingerprint_is_the_one_of_the_avro_specification() -> None:
    # Avro 1.12, "Schema Fingerprints": the fingerprint of "null" is 63dd24e7cc258f8a.
    assert codec.compute_fingerprint('"null"') == bytes.fromhex("8a8f25cce724dd63")


@pytest.mark.parametrize(
    "data", [b"", b"\xc3", b"\xc3\x01", DATA[:9], b"\xc3\x02" + DATA[2:], DATA[1:]]
)
def test_bytes_other_than_a_single_object_are_refused(data: bytes) -> None:
    with pytest.raises(CodecError, match="single-object"):
        codec.decode(data)


def test_a_schema_that_was_never_released_is_unknown() -> None:
    with pytest.raises(UnknownSchemaError, match="ff" * 8):
        codec.decode(DATA[:2] + b"\xff" * 8 + DATA[10:])
    assert issubclass(UnknownSchemaError, CodecError)


@pytest.mark.parametrize(
    "body",
    [
        b"\x02f\x06\x09\x00",  # something after the last field
        b"\x02f\x06",  # something missing
        b"\x82\x00f\x06\x09",  # a length that is longer than it need be
        b"\x02f\x86\x00\x09",  # a number that is
        b"\x02f\x86\x80\x80\x80\x80\x80\x80\x80\x80\x00\x09",
        b"\x02f" + b"\xff" * 11 + b"\x09",  # more than 64 bits
        b"\x01f\x06\x09",  # a negative length
        b"\x02\xff\x06\x09",  # not UTF-8
        b"\x06\xed\xa0\x80\x06\x09",  # a surrogate
        b"\x04\xc0\x80\x06\x09",  # NUL in two bytes
    ],
)
def test_an_event_has_one_form(body: bytes) -> None:
    with pytest.raises(CodecError):
        codec.decode(DATA[:10] + body)


def test_an_array_is_one_block_and_its_end() -> None:
    data = codec.encode(BLOCK)
    ours = b"\x04\x04ab\x02c\x00"
    assert ours in data
    for other in (
        b"\x02\x04ab\x02\x02c\x00",  # two blocks
        b"\x03\x0a\x04ab\x02c\x00",  # a block with its size
    ):
        with pytest.raises(CodecError):
            codec.decode(data.replace(ours, other))


@pytest.mark.parametrize("length", [2**31, 2**40, 2**62, 2**63 - 1, -(2**63), -1])
def test_a_length_is_not_believed(length: int) -> None:
    """A few bytes must not cost memory or time."""
    zigzag = (length << 1) ^ (length >> 63)
    varint = bytearray()
    while zigzag > 0x7F:
        varint.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    varint.append(zigzag)
    block = codec.encode(BLOCK)
    start = block.index(b"\x04\x04ab")
    tracemalloc.start()
    begun = time.perf_counter()
    for data in (
        DATA[:10] + varint,  # a string
        DATA[:10] + varint + b"f\x06\x09",
        block[:start] + varint,  # an array
        block[:start] + varint + block[start + 1 :],
        block[: start + 1] + varint + block[start + 2 :],  # bytes
    ):
        with pytest.raises(CodecError):
            codec.decode(bytes(data))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20
    assert time.perf_counter() - begun < 1


@pytest.mark.parametrize(
    "changes",
    [
        {"round": 2**63},
        {"round": -(2**63) - 1},
        {"round": 1.0},
        {"round": True},
        {"round": "1"},
        {"round": None},
        {"federation_id": b"f"},
        {"federation_id": 1},
        {"federation_id": "\ud800"},
    ],
)
def test_what_does_not_fit_its_schema_is_not_written(changes: dict[str, Any]) -> None:
    with pytest.raises(CodecError, match="RoundRequested does not fit"):
        codec.encode(replace(EVENT, **changes))


@pytest.mark.parametrize(
    "changes",
    [
        {"tree_root": bytes(31)},
        {"tree_root": bytes(33)},
        {"tree_root": "x" * 32},
        {"leaves": ("x",)},
        {"leaves": (None,)},
        {"leaves": 7},
        {"traceparents": (b"x",)},
    ],
)
def test_a_block_that_does_not_fit_its_schema_is_not_written(
    changes: dict[str, Any],
) -> None:
    with pytest.raises(CodecError, match="BlockSequenced does not fit"):
        codec.encode(replace(BLOCK, **changes))


@pytest.mark.parametrize("number", [2**31, -(2**31) - 1, 2**63 - 1])
def test_an_int_has_32_bits(number: int) -> None:
    """Other readers of Avro would stop at it, ours must too."""
    refused = e.RoundRefused(
        federation_id="f",
        round=1,
        cause=bytes(32),
        cause_leaf_index=1,
        output_index=2**31 - 1,
        reason="",
        detail="",
    )
    data = codec.encode(refused)
    assert codec.decode(data) == refused
    with pytest.raises(CodecError):
        codec.encode(replace(refused, output_index=number))
    longer = codec.encode(replace(EVENT, federation_id="", round=number))[11:-1]
    with pytest.raises(CodecError):
        codec.decode(data.replace(b"\xfe\xff\xff\xff\x0f", longer))


def test_arrays_are_tuples_once_read() -> None:
    event = codec.decode_as(e.BlockSequenced, codec.encode(BLOCK))
    assert event == BLOCK
    assert isinstance(event.leaves, tuple)


def test_a_kind_can_be_asked_for() -> None:
    assert codec.decode_as(e.RoundRequested, DATA) == EVENT
    with pytest.raises(CodecError, match="expected Leaf, found RoundRequested"):
        codec.decode_as(e.Leaf, DATA)
    kinds: Any = e.UpdateSubmitted | e.UpdateDeclined
    with pytest.raises(CodecError, match=r"expected .*UpdateDeclined, found RoundR"):
        codec.decode_as(kinds, DATA)


def test_the_largest_event_fits_a_leaf() -> None:
    leaf = e.Leaf(
        event=bytes(codec.MAX_EVENT_SIZE_BYTES),
        signature=bytes(64),
        source_topic=max(topics.SEQUENCED_TOPICS, key=len),
        source_partition=2**31 - 1,
        source_offset=2**63 - 1,
    )
    assert len(codec.encode(leaf)) <= codec.MAX_LEAF_SIZE_BYTES


def test_subjects_are_topic_and_record_name() -> None:
    assert topics.topic_of(EVENT) == topics.CONTROL
    name = topics.subject(topics.CONTROL, e.RoundRequested)
    assert name == f"{topics.CONTROL}-folkmoot.v1.RoundRequested"


@pytest.mark.parametrize("reason", Reason)
def test_a_reason_is_its_own_name(reason: Reason) -> None:
    assert reason.value == reason.name
    assert re.fullmatch(r"[A-Z_]+", reason)


def test_an_array_has_so_many_items_that_a_block_fits() -> None:
    most = replace(BLOCK, leaves=(b"",) * codec.MAX_ITEMS)
    assert codec.decode(codec.encode(most)) == most
    more = codec.encode(replace(most, leaves=(b"",) * (codec.MAX_ITEMS + 1)))
    with pytest.raises(CodecError, match="an array of more than"):
        codec.decode(more)


def test_what_is_of_another_kind_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its sender would choose what that costs."""
    data = codec.encode(replace(BLOCK, leaves=(b"",) * 1_000))
    monkeypatch.setattr(codec, "decode", None)
    with pytest.raises(CodecError, match="expected Leaf, found BlockSequenced"):
        codec.decode_as(e.Leaf, data)
