"""How a processor follows the ledger: verified blocks in, one state per federation.

The state is cached in the app's table after every block. The cache is believed only
if it is exactly at the block before the one that arrives; in any other case (deleted,
behind, ahead because a transaction was aborted, or of a state of another shape, whose
writer folded other things) the log is read again from its beginning, through the same
functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from adapters.genesis import OtherGenesisError, remember_genesis
from adapters.kafka import MAX_RECORD_SIZE_BYTES, read_partition
from adapters.kafka_log import PassingOverForeign
from protocol.envelope import SIGNATURE_HEADER
from protocol.log import (
    ForeignRecordError,
    LogState,
    OpenedLeaf,
    open_block,
    verify_author,
)
from schemas import topics
from streams.app import Service

log = logging.getLogger(__name__)

MAX_SNAPSHOT_BYTES: Final = MAX_RECORD_SIZE_BYTES - 2**16
"""What Kafka takes of a state: 70,000 agents of one federation are more, and would end
the service for all the others."""

State = TypeVar("State")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed(Generic[State]):
    """How far a federation's log was followed, and the state there."""

    log: LogState
    state: State


class _Shape(GenerateJsonSchema):
    """Leaves out the defaults that JSON cannot say: they are no part of a shape."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # pydantic names its type


class Follower(Generic[State, Output]):
    """Follows the ledger and runs a step for every leaf.

    Args:
        service: The app it belongs to.
        state_type: Type of the state, a frozen dataclass.
        initial: The state before the first leaf.
        step: Moves the state by one leaf and returns what follows.
        directory: Where the foundings that it takes part in are remembered; None for
            a service that keeps nothing of them.
    """

    def __init__(
        self,
        service: Service,
        state_type: type[State],
        initial: State,
        step: Callable[[State, OpenedLeaf], tuple[State, list[Output]]],
        directory: Path | None = None,
    ) -> None:
        self._service = service
        self._initial = initial
        self._step = step
        self._directory = directory
        self._refused: set[bytes] = set()
        self._table = service.table()
        self._known: dict[bytes, Followed[State]] = {}
        self._snapshots: TypeAdapter[Followed[State]] = TypeAdapter(
            Followed[state_type],  # type: ignore[valid-type]  # a type argument at run time
            config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"),
        )
        schema = self._snapshots.json_schema(schema_generator=_Shape)
        shape = json.dumps(schema, sort_keys=True)
        self._shape = hashlib.sha256(shape.encode()).digest()
        """What snapshots begin with."""

    async def follow(self, event: Any) -> list[Output]:
        """Take the next record of the ledger and return what follows from it.

        Raises:
            LogError: the block does not fit the log; nothing after it can be trusted.
        """
        signature = event.headers.get(SIGNATURE_HEADER)
        outputs: list[Output] = []
        if event.key in self._refused:
            return outputs
        with PassingOverForeign(event.message.offset):
            data = self._service.registry.unframe_trusted(event.value or b"")
            before = await self._find_before(event, data, signature)
            after, outputs = self._advance(before, data, signature)
            if event.key not in self._known and not self._takes_part(after.log):
                self._refused.add(event.key)
                return []
            self._known[event.key] = after
            snapshot = self._shape + self._snapshots.dump_json(after)
            if len(snapshot) <= MAX_SNAPSHOT_BYTES:
                self._table[event.key] = snapshot
            # What is in the cache now is behind, so after a restart the log is read.
        return outputs

    def get_genesis(self, key: bytes | None) -> bytes:
        """Return a federation's genesis hash, by record key; empty before its block."""
        known = self._known.get(key or b"")
        return b"" if known is None else known.log.genesis

    def get_state(self, key: bytes | None) -> State:
        """Return the state after the last block of a federation, by record key."""
        known = self._known.get(key or b"")
        return self._initial if known is None else known.state

    async def _find_before(
        self, event: Any, data: bytes, signature: bytes | None
    ) -> Followed[State]:
        """Return the state before this block: the cached one or, if that is not it,
        what the log says.

        Raises:
            ForeignRecordError: the federation's sequencer did not sign the block.
        """
        known = self._known.get(event.key) or self._load(event.key)
        try:
            block, _ = verify_author(known.log, data, signature)
            if block.height == known.log.chain.height:
                return known
        except ForeignRecordError:
            if known.log.genesis:
                raise
            # Without a state nobody can say whose it is; the log can.
        message = event.message
        rebuilt = await asyncio.to_thread(
            self._rebuild, event.key, message.partition, message.offset
        )
        verify_author(rebuilt.log, data, signature)
        return rebuilt

    def _advance(
        self, before: Followed[State], data: bytes, signature: bytes | None
    ) -> tuple[Followed[State], list[Output]]:
        state, outputs = before.state, []
        log_state, _, opened = open_block(before.log, data, signature)
        for leaf in opened:
            state, more = self._step(state, leaf)
            outputs.extend(more)
        return Followed(log=log_state, state=state), outputs

    def _takes_part(self, state: LogState) -> bool:
        """Return whether a log is of the founding that this directory knows."""
        if self._directory is None:
            return True
        try:
            remember_genesis(self._directory, state.federation_id, state.genesis)
        except OtherGenesisError as error:
            # Others, of other names, are served all the same.
            log.critical("not following it: %s", error)
            return False
        return True

    def _load(self, key: bytes | None) -> Followed[State]:
        cached = None if key is None else self._table.get(key)
        if cached is not None and cached.startswith(self._shape):
            try:
                return self._snapshots.validate_json(cached[len(self._shape) :])
            except ValueError as error:
                log.warning("the cached state is of no use, reading the log: %s", error)
        return self._start(key)

    def _start(self, key: bytes | None) -> Followed[State]:
        # A record's key names its federation: no other's blocks count under it.
        name = (key or b"").decode(errors="replace")
        return Followed(log=LogState(federation_id=name), state=self._initial)

    def _rebuild(self, key: bytes | None, partition: int, end: int) -> Followed[State]:
        """Follow the log from its beginning up to an offset, without its outputs."""
        started = time.monotonic()
        followed = self._start(key)
        records = read_partition(
            self._service.settings, topics.LEDGER, partition, start=0
        )
        for record in records:
            if record.offset >= end:
                break
            if record.key == key:
                with PassingOverForeign(record.offset):
                    data = self._service.registry.unframe_trusted(record.value or b"")
                    signature = record.header(SIGNATURE_HEADER)
                    followed, _ = self._advance(followed, data, signature)
        log.info(
            "followed %s again from its beginning: %d leaves in %.1f s",
            (key or b"").decode(errors="replace"),
            followed.log.chain.size,
            time.monotonic() - started,
        )
        return followed
