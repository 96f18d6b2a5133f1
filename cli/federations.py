"""Which federations there are, for those who name one that is not."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import suppress
from typing import Final

from adapters.kafka import (
    END,
    KafkaUnavailableError,
    Pause,
    count_partitions,
    read_partition,
)
from adapters.kafka_log import ReadBlock, find_partition, follow_log
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from cli.stack.processes import StackError
from protocol.fields import NAME
from schemas import topics

log = logging.getLogger(__name__)

MAX_SHOWN: Final = 20


def list_federations(settings: Settings) -> list[str]:
    """Return the names under which there are blocks on this Kafka, sorted.

    Nothing is verified: anybody who may write to the ledger's topic can add a name.

    Raises:
        KafkaUnavailableError: Kafka does not answer, or has no such topic.
    """
    keys = {
        (record.key or b"").decode(errors="replace")
        for partition in range(count_partitions(settings, topics.LEDGER))
        for record in read_partition(settings, topics.LEDGER, partition)
    }
    return sorted(key for key in keys if NAME.fullmatch(key))


def describe_federations(settings: Settings) -> str:
    """Return a sentence that names the federations on this Kafka."""
    names = list_federations(settings)
    if not names:
        return "There is none yet: `moot federation create` founds one."
    more = f", and {len(names) - MAX_SHOWN} more" if len(names) > MAX_SHOWN else ""
    return f"There are: {', '.join(names[:MAX_SHOWN])}{more}."


def make_no_federation(settings: Settings, federation_id: str) -> StackError:
    """Return what to raise when nobody founded a federation of this name."""
    return StackError(
        f"there is no federation {federation_id!r} on this Kafka",
        describe_federations(settings),
    )


def follow_existing(
    settings: Settings, registry: SchemaRegistry, federation_id: str
) -> Iterator[ReadBlock | Pause]:
    """Yield what `follow_log` does of a federation that exists.

    Raises:
        StackError: there is no such federation.
    """
    is_found = False
    for read in follow_log(settings, registry, federation_id):
        is_found |= isinstance(read, ReadBlock)
        if read is END and not is_found:
            raise make_no_federation(settings, federation_id)
        yield read


def warn_if_unfounded(settings: Settings, federation_id: str) -> None:
    """Log that a federation does not exist, for services that wait until it does."""
    key = federation_id.encode()
    # Whoever follows the log says that Kafka is away.
    with suppress(KafkaUnavailableError):
        partition = find_partition(settings, topics.LEDGER, federation_id)
        records = read_partition(settings, topics.LEDGER, partition)
        if not any(record.key == key for record in records):
            log.warning(
                "there is no federation %r on this Kafka; waiting until it is founded. "
                "%s",
                federation_id,
                describe_federations(settings),
            )
