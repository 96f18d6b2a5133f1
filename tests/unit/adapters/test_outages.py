"""What an error says: that something is away, or that an item is bad."""

from __future__ import annotations

import errno

import pytest
import urllib3
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.schema_registry.common._httpx_compat import httpx
from confluent_kafka.schema_registry.error import SchemaRegistryError
from minio.error import S3Error

from adapters.kafka import KafkaUnavailableError
from adapters.outages import (
    MAX_TEXT,
    describe,
    is_exhausted,
    is_of_the_item,
    is_outage,
    passing_over,
)


def refused_by_minio():
    response = urllib3.HTTPResponse(status=503)
    return S3Error(response, "SlowDown", "try later", "r", "q", "h")


class UnspeakableError(Exception):
    """Users' classes have code of their own."""

    def __str__(self):
        raise SystemExit


OUTAGES = [
    KafkaUnavailableError("silent"),
    KafkaException(KafkaError(KafkaError._TRANSPORT)),
    SchemaRegistryError(503, 50301, "not ready"),
    httpx.ConnectError("refused"),
    urllib3.exceptions.MaxRetryError(None, "/", None),
    refused_by_minio(),
    ConnectionResetError(),
    TimeoutError(),
    ConnectionRefusedError(),
    OSError(errno.ENOSPC, "No space left on device"),
    OSError(errno.EMFILE, "Too many open files"),
]
ITEMS = [
    ValueError("bad"),
    IndexError(),
    KeyError("x"),
    AssertionError(),
    RecursionError(),
    UnicodeDecodeError("ascii", b"\xff", 0, 1, "no"),
    ImportError("no module"),
    ZeroDivisionError(),
    StopIteration(),
    FileNotFoundError(errno.ENOENT, "gone"),
    DeprecationWarning("an error by a filter"),
    UnspeakableError(),
    RuntimeError("shapes"),
]
NEITHER = [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")]


def name(error):
    return type(error).__name__


@pytest.mark.parametrize("error", OUTAGES, ids=name)
def test_an_outage_says_nothing_about_an_item(error):
    assert is_outage(error)
    assert not is_of_the_item(error)
    with pytest.raises(type(error)), passing_over("it"):
        raise error


@pytest.mark.parametrize("error", OUTAGES, ids=name)
def test_what_an_outage_causes_is_an_outage(error):
    with pytest.raises(RuntimeError), passing_over("it"):
        raise RuntimeError("the exporter failed") from error


@pytest.mark.parametrize("error", ITEMS, ids=name)
def test_any_other_error_costs_its_item_alone(error, caplog):
    assert is_of_the_item(error)
    taken = []
    for item in (1, 2, 3):
        with passing_over(f"item {item}"):
            if item == 2:
                raise error
            taken.append(item)
    assert taken == [1, 3]
    (line,) = caplog.messages
    assert line.startswith(f"passing over item 2: {type(error).__name__}")


@pytest.mark.parametrize("error", NEITHER, ids=name)
def test_a_lack_of_memory_is_no_outage_and_no_items(error):
    assert not is_outage(error)
    assert not is_of_the_item(error)


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()], ids=name)
def test_what_ends_a_process_ends_it(error):
    assert not is_of_the_item(error)
    with pytest.raises(type(error)), passing_over("it"):
        raise error


def test_only_this_machine_can_be_exhausted():
    assert [is_exhausted(error) for error in OUTAGES].count(True) == 2
    assert not any(is_exhausted(error) for error in ITEMS)


def test_a_description_is_one_line_and_bounded():
    assert describe(ValueError("a\nb  c")) == "ValueError: a b c"
    assert len(describe(ValueError("x" * 10_000))) == MAX_TEXT
    assert describe(UnspeakableError()) == "UnspeakableError"


def test_a_circle_of_causes_ends():
    one, other = ValueError("one"), ValueError("other")
    one.__cause__, other.__cause__ = other, one
    assert not is_outage(one)
