"""What an error says: that something is away, or that an item is bad.

Every loop over what others made (records, models, answers) takes the next item when one
fails, whatever it failed with: only foreseen errors are never all. But an outage says
nothing about the item at hand. It is waited for, or ends the process, which its
supervisor starts again; nobody is blamed for it.

Deciders and admission are no such loops. They fail as a whole: a bug that they passed
over would be a rule for ever (docs/adr/0047-one-bad-item-does-not-stop-the-rest.md).
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from confluent_kafka import KafkaException
from confluent_kafka.schema_registry.error import SchemaRegistryError

from adapters.blobs import STORE_ERRORS
from adapters.kafka import KafkaUnavailableError

log = logging.getLogger(__name__)

_SERVICES: Final = (
    KafkaException,
    KafkaUnavailableError,
    SchemaRegistryError,
    *STORE_ERRORS,
)
_HTTP_CLIENTS: Final = ("httpx", "httpx2", "httpcore", "urllib3", "aiohttp", "aiokafka")
"""Packages whose errors are all about connections; the schema registry's client raises
those of whichever it finds."""
_EXHAUSTED: Final = frozenset(
    {errno.ENOSPC, errno.EDQUOT, errno.EMFILE, errno.ENFILE, errno.EIO, errno.EROFS}
)
MAX_TEXT: Final = 500


def is_outage(error: BaseException) -> bool:
    """Return whether an error, or what caused it, says that something is away or full:
    Kafka, the schema registry, MinIO, the network, the disk.
    """
    return is_exhausted(error) or any(
        isinstance(each, (*_SERVICES, ConnectionError, TimeoutError))
        or type(each).__module__.partition(".")[0] in _HTTP_CLIENTS
        for each in _trace(error)
    )


def is_exhausted(error: BaseException) -> bool:
    """Return whether an error, or what caused it, says that this machine has no more:
    disk, or open files.
    """
    return any(
        isinstance(each, OSError) and each.errno in _EXHAUSTED for each in _trace(error)
    )


def is_short_of_memory(error: BaseException) -> bool:
    """Return whether an error, or what caused it, is a lack of memory."""
    return any(
        isinstance(each, MemoryError)
        # torch's, which is not imported here.
        or type(each).__name__ == "OutOfMemoryError"
        or (isinstance(each, RuntimeError) and "CPUAllocator" in describe(each))
        for each in _trace(error)
    )


def describe(error: BaseException) -> str:
    """Return an error's type and text, bounded, whatever its class does when asked."""
    try:
        text = " ".join(str(error).split())
    except BaseException:  # noqa: BLE001  # users' classes have code of their own
        text = ""
    name = type(error).__name__
    return f"{name}: {text}"[:MAX_TEXT] if text else name


def is_of_the_item(error: BaseException) -> bool:
    """Return whether an error may be an item's: it is no outage, and no lack of memory.

    Nor is it what ends a process.
    """
    return (
        isinstance(error, Exception)
        and not is_outage(error)
        and not is_short_of_memory(error)
    )


@contextmanager
def passing_over(what: str) -> Iterator[None]:
    """Pass over one item that others made, whatever it does, with a warning.

    Args:
        what: The item, for the log.
    """
    try:
        yield
    except Exception as error:
        if not is_of_the_item(error):
            raise
        log.warning("passing over %s: %s", what, describe(error))


def _trace(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from, the latest first."""
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or cause.__context__
