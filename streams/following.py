"""How a processor follows the ledger: verified blocks in, one state per federation.

Now and then the state is cached in a file, so that a starting service need not read the
whole log. The cache is believed only if the log continues it; in any other case
(deleted, ahead of an aborted transaction, of another genesis, or of another shape,
whose writer folded other things) the log is read from its beginning, through the same
functions.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Generic, TypeVar

from pydantic import ConfigDict, TypeAdapter
from pydantic.json_schema import GenerateJsonSchema

from adapters import heartbeats, telemetry
from adapters.durable import replace_file
from adapters.genesis import OtherGenesisError, remember_genesis
from adapters.kafka import read_partition
from adapters.kafka_log import PassingOverForeign
from protocol.envelope import SIGNATURE_HEADER, TRACEPARENT_HEADER
from protocol.log import LogError, LogState, OpenedLeaf, open_block, verify_author
from schemas import topics
from schemas.events import Event
from streams.app import Service, Source, fail_stop, hold

log = logging.getLogger(__name__)

KEEP_EVERY_S: Final = 5.0
"""Between two snapshots of a state; a start reads again what came since."""
MAX_KEEPING: Final = 0.02
"""Share of a service's time for snapshots: one of 70,000 agents takes a second."""

State = TypeVar("State")
Output = TypeVar("Output")


@dataclass(frozen=True, slots=True, kw_only=True)
class Followed(Generic[State]):
    """How far a federation's log was followed, and its state there.

    Attributes:
        log: How far.
        state: The state there.
        next_offset: In the ledger's partition, after the last block.
    """

    log: LogState
    state: State
    next_offset: int = 0


class _Shape(GenerateJsonSchema):
    """Leaves out the defaults that JSON cannot express: they are no part of a shape."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012  # pydantic names its type


class Follower(Generic[State, Output]):
    """Follows the ledger and runs a step for every leaf.

    Args:
        service: The app it belongs to.
        state_type: Type of the state, a frozen dataclass.
        initial: The state before the first leaf.
        step: Moves the state by one leaf and returns what follows.
        find_owed: Returns what a state found at start calls for, whenever that began;
            gets the trace of the next block. None: nothing.
        directory: Where the geneses that it takes part in are remembered; None for a
            service that keeps none.
    """

    def __init__(
        self,
        service: Service,
        state_type: type[State],
        initial: State,
        step: Callable[[State, OpenedLeaf], tuple[State, list[Output]]],
        *,
        find_owed: Callable[[State, str], list[Output]] | None = None,
        directory: Path | None = None,
    ) -> None:
        self._service = service
        self._initial = initial
        self._step = step
        self._find_owed = find_owed
        self._directory = directory
        self._refused: set[bytes] = set()
        self._known: dict[bytes, Followed[State]] = {}
        self._keep_after_s: dict[bytes, float] = {}
        self._snapshots: TypeAdapter[Followed[State]] = TypeAdapter(
            Followed[state_type],  # type: ignore[valid-type]  # a type argument at run time
            config=ConfigDict(ser_json_bytes="base64", val_json_bytes="base64"),
        )
        schema = self._snapshots.json_schema(schema_generator=_Shape)
        shape = json.dumps(schema, sort_keys=True)
        self._shape = hashlib.sha256(shape.encode()).digest()
        """The bytes that snapshots begin with."""

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
            after, outputs = self._advance(
                before, data, signature, event.message.offset
            )
            if event.key not in self._known:
                if not self._takes_part(after.log):
                    self._refused.add(event.key)
                    return []
                if self._find_owed is not None and not outputs:
                    traceparent = event.headers.get(TRACEPARENT_HEADER)
                    outputs = self._find_owed(after.state, telemetry.clean(traceparent))
            self._known[event.key] = after
        return outputs

    def get_genesis(self, key: bytes | None) -> bytes:
        """Return a federation's genesis hash, by record key; empty before any block."""
        known = self._known.get(key or b"")
        return b"" if known is None else known.log.genesis

    def get_state(self, key: bytes | None) -> State:
        """Return the state after the last block of a federation, by record key."""
        known = self._known.get(key or b"")
        return self._initial if known is None else known.state

    async def keep(self, key: bytes | None) -> None:
        """Cache a federation's state, if it is time."""
        key = key or b""
        began = time.monotonic()
        if key not in self._known or began < self._keep_after_s.get(key, began):
            return
        # A cache ahead of what counts as read would be useless after a crash.
        await self._service.commit(has_said=True, is_busy=False)
        await asyncio.to_thread(self._write, key, self._known[key])
        now = time.monotonic()
        wait_s = max(KEEP_EVERY_S, (now - began) / MAX_KEEPING)
        self._keep_after_s[key] = now + wait_s

    async def _find_before(
        self, event: Any, data: bytes, signature: bytes | None
    ) -> Followed[State]:
        """Return the state before this block: the known one, or else the log's.

        Raises:
            ForeignRecordError: the federation's sequencer did not sign the block.
        """
        known = self._known.get(event.key)
        if known is not None:
            block, _ = verify_author(known.log, data, signature)
            if block.height == known.log.chain.height:
                return known
        return await asyncio.to_thread(
            self._read_until, event.key, event.message, data, signature
        )

    def _read_until(
        self, key: bytes | None, message: Any, data: bytes, signature: bytes | None
    ) -> Followed[State]:
        cached = self._load(key)
        if cached is not None and cached.next_offset <= message.offset:
            with suppress(LogError):
                found = self._read(cached, key, message)
                open_block(found.log, data, signature)
                return found
            log.warning("the cached state belongs to another log, reading this one")
        # A record's key names its federation: other federations' blocks do not count.
        name = (key or b"").decode(errors="replace")
        start = Followed(log=LogState(federation_id=name), state=self._initial)
        found = self._read(start, key, message)
        verify_author(found.log, data, signature)
        return found

    def _advance(
        self,
        before: Followed[State],
        data: bytes,
        signature: bytes | None,
        offset: int,
    ) -> tuple[Followed[State], list[Output]]:
        state, outputs = before.state, []
        log_state, _, opened = open_block(before.log, data, signature)
        for leaf in opened:
            state, more = self._step(state, leaf)
            outputs.extend(more)
        after = Followed(log=log_state, state=state, next_offset=offset + 1)
        return after, outputs

    def _takes_part(self, state: LogState) -> bool:
        """Return whether a log has the genesis that this directory knows."""
        if self._directory is None:
            return True
        try:
            remember_genesis(self._directory, state.federation_id, state.genesis)
        except OtherGenesisError as error:
            # Federations with other names are still served.
            log.critical("not following it: %s", error)
            return False
        return True

    def _path(self, key: bytes | None) -> Path:
        name = hashlib.sha256(key or b"").hexdigest()
        return self._service.cache_directory / f"{name}.state"

    def _load(self, key: bytes | None) -> Followed[State] | None:
        try:
            cached = self._path(key).read_bytes()
            if cached.startswith(self._shape):
                return self._snapshots.validate_json(cached[len(self._shape) :])
        except FileNotFoundError:
            pass
        except (OSError, ValueError) as error:
            log.warning("the cached state is of no use, reading the log: %s", error)
        return None

    def _write(self, key: bytes, followed: Followed[State]) -> None:
        path = self._path(key)
        data = self._shape + self._snapshots.dump_json(followed)
        try:
            replace_file(path, data, sync=False)
        except OSError as error:
            log.warning("the state is not cached: %s", error)

    def _read(
        self, followed: Followed[State], key: bytes | None, message: Any
    ) -> Followed[State]:
        """Follow the log up to a record, discarding its outputs."""
        if followed.next_offset == message.offset:
            return followed
        heartbeats.do("reading the ledger")
        started, size = time.monotonic(), followed.log.chain.size
        records = read_partition(
            self._service.settings,
            topics.LEDGER,
            message.partition,
            start=followed.next_offset,
        )
        for record in records:
            if record.offset >= message.offset:
                break
            if record.key != key:
                continue
            with PassingOverForeign(record.offset):
                data = self._service.registry.unframe_trusted(record.value or b"")
                signature = record.header(SIGNATURE_HEADER)
                followed, _ = self._advance(followed, data, signature, record.offset)
        heartbeats.do(heartbeats.FOLLOWING)
        log.info(
            "followed %s on from leaf %d: %d leaves in %.1f s",
            (key or b"").decode(errors="replace"),
            size,
            followed.log.chain.size - size,
            time.monotonic() - started,
        )
        return followed


async def _answer(
    answer: Callable[[list[Output]], list[tuple[Event, str]]], outputs: list[Output]
) -> list[tuple[Event, str]]:
    # Most blocks lead to nothing: no thread for those.
    return await asyncio.to_thread(answer, outputs) if outputs else []


def follow_ledger(
    service: Service,
    follower: Follower[Any, Output],
    answer: Callable[[list[Output]], list[tuple[Event, str]]],
    look: Callable[[Any], None] = lambda _: None,
) -> None:
    """Make the app follow the ledger and say what follows.

    Args:
        service: The app.
        follower: Its follower.
        answer: Returns what to say about a block's outputs, each with its trace. It may
            take long, and runs in a thread: no transaction is open meanwhile.
        look: Called with every record, after that.
    """

    @service.app.agent(service.topic(topics.LEDGER), name=service.name, concurrency=1)
    async def follow(stream: Any) -> None:
        heartbeats.do(heartbeats.FOLLOWING)
        async for event in stream.events():
            with fail_stop(hold(event)):
                outputs = await follower.follow(event)
                said = await _answer(answer, outputs)
                genesis = follower.get_genesis(event.key)
                source = Source(topics.LEDGER, event.message.partition)
                for what, cause in said:
                    await service.send(what, genesis, cause, source)
                look(event)
            event.ack()  # for the stream, which would ack it with the next record
            is_busy = bool(service.app.consumer.unacked)
            await service.commit(has_said=bool(said), is_busy=is_busy)
            await follower.keep(event.key)
