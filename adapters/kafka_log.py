"""A federation's log as read from Kafka, verified block by block."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

from adapters.kafka import (
    END,
    Pause,
    Record,
    count_partitions,
    follow_partition,
)
from adapters.partitions import compute_partition
from adapters.schema_registry import FramingError, SchemaRegistry
from adapters.settings import Settings
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import ForeignRecordError, LogState, OpenedLeaf, open_block
from schemas import topics
from schemas.events import BlockSequenced, FederationConfigured
from schemas.reasons import Reason

log = logging.getLogger(__name__)


class UntrustedFederationError(Exception):
    """The log exists, but with another founder or genesis than the reader trusts."""


@dataclass(frozen=True, slots=True)
class Genesis:
    """How a federation was founded.

    Attributes:
        config: Its parameters.
        hash: The hash that everything signed in its log is bound to, 32 bytes.
    """

    config: FederationConfigured
    hash: bytes


@dataclass(frozen=True, slots=True)
class ReadBlock:
    """A verified block and where it was."""

    offset: int
    block: BlockSequenced
    leaves: list[OpenedLeaf]
    state: LogState


def find_partition(settings: Settings, topic: str, federation_id: str) -> int:
    """Return the partition of a topic that holds a federation's records.

    Raises:
        KafkaUnavailableError: Kafka is away, or has no such topic.
    """
    return compute_partition(federation_id, count_partitions(settings, topic))


def follow_log(
    settings: Settings,
    registry: SchemaRegistry,
    federation_id: str,
    *,
    operator_key: bytes | None = None,
    genesis: bytes | None = None,
) -> Iterator[ReadBlock | Pause]:
    """Yield a federation's blocks from the genesis on, verified, for ever.

    Pauses come through as in `adapters.kafka.follow_partition`.

    Args:
        settings: Where Kafka is.
        registry: How to unframe.
        federation_id: The federation.
        operator_key: Public key of its expected founder, 32 bytes; None takes the log's
            word, which is only enough for viewing.
        genesis: Hash of its expected genesis, 32 bytes; None takes any by that
            operator.

    Raises:
        LogError: the log is broken; says where.
        UntrustedFederationError: somebody else founded it, or it was founded anew.
        KafkaUnavailableError: it cannot be read.
    """
    partition = find_partition(settings, topics.LEDGER, federation_id)
    key = federation_id.encode()
    state = LogState(federation_id=federation_id)
    for record in follow_partition(settings, topics.LEDGER, partition):
        if not isinstance(record, Record):
            yield record
        elif record.key == key:
            read: ReadBlock | None = None
            with PassingOverForeign(record.offset):
                read = _read(state, record, registry)
            if read is None:
                continue
            if state.genesis == b"":
                _check_founding(read, federation_id, operator_key, genesis)
            state = read.state
            yield read


def read_log(
    settings: Settings,
    registry: SchemaRegistry,
    federation_id: str,
    *,
    operator_key: bytes | None = None,
    genesis: bytes | None = None,
) -> Iterator[ReadBlock]:
    """Yield what `follow_log` does, up to the present end."""
    for read in follow_log(
        settings,
        registry,
        federation_id,
        operator_key=operator_key,
        genesis=genesis,
    ):
        if read is END:
            return
        if isinstance(read, ReadBlock):
            yield read


def find_genesis(
    settings: Settings,
    registry: SchemaRegistry,
    federation_id: str,
    *,
    operator_key: bytes | None = None,
    genesis: bytes | None = None,
) -> Genesis | None:
    """Return how a federation was founded; None if it was not yet.

    Arguments and errors as in `follow_log`.
    """
    blocks = read_log(
        settings, registry, federation_id, operator_key=operator_key, genesis=genesis
    )
    first = next(blocks, None)
    if first is None:
        return None
    return Genesis(_config_of(first), first.state.genesis)


class PassingOverForeign:
    """Pass over a record that the federation's sequencer did not write.

    Otherwise anyone who may write to the ledger's topic could stop all its readers. The
    audit passes over nothing and reports it.
    """

    def __init__(self, offset: int) -> None:
        self._offset = offset

    def __enter__(self) -> None:
        """Enter."""

    def __exit__(self, _kind: object, error: object, _traceback: object) -> bool:
        """Swallow errors of foreign records, and no others."""
        if not (
            isinstance(error, ForeignRecordError)
            # Not UNKNOWN_SCHEMA: with a schema registry that lost its ids, every block
            # would look foreign, and a federation as if nobody had founded it.
            or (isinstance(error, FramingError) and error.reason == Reason.NOT_FRAMED)
        ):
            return False
        log.warning(
            "passing over offset %d of %s: %s", self._offset, topics.LEDGER, error
        )
        return True


def _read(state: LogState, record: Record, registry: SchemaRegistry) -> ReadBlock:
    data = registry.unframe_trusted(record.value or b"")
    after, block, leaves = open_block(state, data, record.header(SIGNATURE_HEADER))
    return ReadBlock(record.offset, block, leaves, after)


def _config_of(first: ReadBlock) -> FederationConfigured:
    config = first.leaves[0].sequenced.event
    assert isinstance(config, FederationConfigured), "open_block demands it"
    return config


def _check_founding(
    first: ReadBlock,
    federation_id: str,
    operator_key: bytes | None,
    genesis: bytes | None,
) -> None:
    principals = _config_of(first).principals
    founder = next((p.public_key for p in principals if p.role == "OPERATOR"), b"")
    if operator_key not in {None, founder}:
        assert operator_key is not None
        raise UntrustedFederationError(
            f"federation {federation_id} was founded by {founder.hex()}, "
            f"you trust {operator_key.hex()}"
        )
    found = first.state.genesis
    if genesis not in {None, found}:
        assert genesis is not None
        raise UntrustedFederationError(
            f"federation {federation_id} was founded anew: the log has genesis "
            f"{found.hex()}, you expect {genesis.hex()}"
        )
