"""The sequencer: reads every input and fact, appends blocks to the ledger.

Its state is a fold over the ledger. On start it reads the ledger to its end before it
writes, so that what it wrote before a crash counts, whatever its committed offsets say:
records read again are recognised by their source offsets.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

from adapters import alive, heartbeats, telemetry
from adapters.kafka import (
    KafkaUnavailableError,
    find_committed,
    make_admin,
    make_headers,
    read_partition,
)
from adapters.kafka_log import PassingOverForeign
from adapters.outages import passing_over
from adapters.partitions import compute_partition
from adapters.raw_records import PROBLEM
from adapters.schema_registry import FramingError
from adapters.topic_watch import Ends, Hold, HoldWatch, Place, find_ends, find_lost
from ledger.checkpoint import (
    Checkpoint,
    compute_origin,
    parse_checkpoint,
    parse_origin,
    sign_checkpoint,
)
from ledger.note import parse_note
from protocol.admission import Received
from protocol.envelope import (
    SIGNATURE_HEADER,
    TRACEPARENT_HEADER,
    verify_event,
)
from protocol.log import (
    MAX_BLOCK_LEAVES,
    MAX_BLOCK_SIZE_BYTES,
    LogState,
    SequencerState,
    read_block,
    sequence,
)
from schemas import codec, topics
from schemas.events import BlockSequenced, CheckpointSigned
from schemas.reasons import Reason
from streams.app import Batches, Service, Source, fail_stop, make_service

log = logging.getLogger(__name__)

MAX_BATCH: Final = 500
"""Records: as many again may wait meanwhile."""
WATCH_S: Final = 2.0
"""Between two checks for what is held up, or was deleted unread."""


class InputsReplacedError(Exception):
    """An input topic is not the one that the ledger was made from."""


class Sequencer:
    """The edge around `protocol.log.sequence`: unframes, sends, and remembers."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._states: dict[int, dict[bytes, SequencerState]] = {}
        self._admin = make_admin(service.settings)
        self._places = [
            Place(topic, partition)
            for partition in range(service.num_partitions)
            for topic in topics.SEQUENCED_TOPICS
        ]
        self._nexts: dict[Place, int] = {}
        self._said_lost: set[str] = set()
        self._holds = HoldWatch()
        self._held: dict[Place, Hold] = {}

    async def process(self, batch: Sequence[Any]) -> None:
        """Sequence one batch of Faust events, in the order they were read."""
        received = [self._receive(event) for event in batch]
        # Anybody can name a federation: a batch may have as many keys as records.
        groups: dict[tuple[int, bytes], list[Received]] = {}
        for record in received:
            place = record.partition, record.key or b""
            groups.setdefault(place, []).append(record)
        for (partition, key), mine in groups.items():
            if partition not in self._states:
                self._states[partition] = await self._start(partition)
            for part in _blocks_of(mine):
                await self._append(partition, key, part)
        self._nexts |= {
            Place(record.topic, record.partition): record.offset + 1
            for record in received
        }

    def _begin(self, key: bytes) -> SequencerState:
        """Return the state of an empty log: only ours can be its first block."""
        return SequencerState(
            log=LogState(
                federation_id=key.decode(errors="replace"),
                sequencer_key=self._service.key.public_key,
            )
        )

    async def _start(self, partition: int) -> dict[bytes, SequencerState]:
        """Read the ledger to its end, and sign what a crash left unsigned."""
        states, unsigned = await asyncio.to_thread(self._recover, partition)
        for key, state, traceparent in unsigned:
            checkpoint = self._sign_checkpoint(key, state)
            genesis = state.log.genesis
            await self._send(key, checkpoint, genesis, traceparent, _source(partition))
        return states

    async def _append(
        self, partition: int, key: bytes, batch: Sequence[Received]
    ) -> None:
        states, source = self._states[partition], _source(partition)
        before = states.get(key) or self._begin(key)
        batch = [_process(record) for record in batch]
        state, block, refused = sequence(
            before,
            batch,
            key=self._service.key,
            now_ms=time.time_ns() // 1_000_000,
        )
        if block is not None:
            states[key] = state
            first = _first_traceparent(block.event)
            await self._send(key, block.event, state.log.genesis, first, source)
            checkpoint = self._sign_checkpoint(key, state)
            await self._send(key, checkpoint, state.log.genesis, first, source)
        for refusal in refused:
            log.info("refused %s: %s", refusal.reason, refusal.detail)
            await self._service.send(refusal, state.log.genesis, "", source)

    async def _send(
        self,
        key: bytes,
        event: BlockSequenced | CheckpointSigned,
        genesis: bytes,
        traceparent: str,
        source: Source,
    ) -> None:
        """Send a block or checkpoint: the permanent record.

        It has no span of its own: so every byte of it, headers included, follows from
        the block, and the audit can check them all.
        """
        data, value = self._service.registry.frame(event)
        headers = make_headers(event, data, self._service.key, genesis, traceparent)
        topic = topics.topic_of(event)
        await self._service.send_raw(topic, key, value, headers, source)

    def _sign_checkpoint(self, key: bytes, state: SequencerState) -> CheckpointSigned:
        chain = state.log.chain
        origin = compute_origin(key.decode(), state.log.genesis)
        checkpoint = Checkpoint(origin=origin, size=chain.size, root=chain.tree.root())
        return CheckpointSigned(
            federation_id=key.decode(),
            height=chain.height - 1,
            checkpoint=sign_checkpoint(checkpoint, self._service.key).decode(),
        )

    def _receive(self, event: Any) -> Received:
        message = event.message
        headers = event.headers
        signature = headers.get(SIGNATURE_HEADER)
        data, problem = None, headers.get(PROBLEM)
        try:
            if problem is None:
                data = self._service.registry.unframe(event.value)
        except FramingError as error:
            problem = (error.reason, str(error))
        if problem is None and event.key is not None:
            problem = self._find_partition_problem(event.key, message.partition)
        return Received(
            topic=message.topic,
            partition=message.partition,
            offset=message.offset,
            key=event.key,
            value=event.value,
            event=data,
            signature=signature if signature and len(signature) == 64 else None,  # noqa: PLR2004  # Ed25519
            problem=problem,
            traceparent=telemetry.clean(headers.get(TRACEPARENT_HEADER)),
        )

    def _find_partition_problem(
        self, key: bytes, partition: int
    ) -> tuple[Reason, str] | None:
        """Refuse what another partitioner put elsewhere: it would fork the log."""
        number = self._service.num_partitions
        right = compute_partition(key.decode("utf-8", "replace"), number)
        if partition == right:
            return None
        detail = (
            f"this key belongs in partition {right}: set partitioner=murmur2_random"
        )
        return Reason.WRONG_PARTITION, detail

    def _recover(
        self, partition: int
    ) -> tuple[dict[bytes, SequencerState], list[tuple[bytes, SequencerState, str]]]:
        """Fold all committed blocks of the partition.

        Returns:
            The states by key, and the blocks whose checkpoints a crash kept from being
            sent.
        """
        states: dict[bytes, SequencerState] = {}
        unsigned: list[tuple[bytes, SequencerState, str]] = []
        started = time.monotonic()
        signed = self._find_signed_heights(partition)
        for record in read_partition(self._service.settings, topics.LEDGER, partition):
            key = record.key or b""
            with PassingOverForeign(record.offset):
                data = self._service.registry.unframe_trusted(record.value or b"")
                states[key] = read_block(
                    states.get(key) or self._begin(key),
                    data,
                    record.header(SIGNATURE_HEADER),
                )
                place = key, states[key].log.genesis
                if states[key].log.chain.height - 1 > signed.get(place, -1):
                    block = codec.decode_as(BlockSequenced, data)
                    unsigned.append((key, states[key], _first_traceparent(block)))
        self._demand_offsets(partition, states)
        log.info(
            "ledger partition %d: %d federations, %d leaves, %d checkpoints to sign, "
            "read in %.1f s",
            partition,
            len(states),
            sum(state.log.chain.size for state in states.values()),
            len(unsigned),
            time.monotonic() - started,
        )
        return states, unsigned

    def _demand_offsets(
        self, partition: int, states: Mapping[bytes, SequencerState]
    ) -> None:
        """Refuse to run on other inputs than those that the ledger was made from.

        Reports what was deleted before it was sequenced, which nothing brings back.

        Raises:
            InputsReplacedError: a topic ends before its last record on the ledger: it
                was made anew, and its records would be taken for ones read before.
        """
        places = [place for place in self._places if place.partition == partition]
        ends = find_ends(self._admin, places)
        nexts = {place: self._nexts.get(place, 0) for place in places}
        for key, state in states.items():
            for place in places:
                offset = state.admission.offsets.get(str(place), -1)
                nexts[place] = max(nexts[place], offset + 1)
                if ends[place].stable <= offset:
                    raise InputsReplacedError(
                        f"{place} ends at {ends[place].stable}, but the ledger of "
                        f"{key.decode(errors='replace')} has its record {offset}: the "
                        "topic was made anew. Restore it, or put records before the "
                        "new ones until it is as long as it was."
                    )
        self._say_lost(ends, nexts)

    def _say_lost(self, ends: Mapping[Place, Ends], nexts: Mapping[Place, int]) -> None:
        """Name what was deleted unread, each once: there is no other trace of it."""
        for lost in find_lost(ends, nexts):
            if str(lost) not in self._said_lost:
                self._said_lost.add(str(lost))
                log.critical("%s; see docs/howto/deploy-services.md", lost)

    def look_before_start(self) -> None:
        """Report what expired while nobody read: once reading, Kafka skips it.

        Raises:
            KafkaUnavailableError: Kafka does not answer.
        """
        group = f"moot-{self._service.name}"
        self._nexts = {
            Place(*place): offset
            for place, offset in find_committed(
                self._service.settings, group, self._places
            ).items()
        }
        if self._nexts:
            ends = find_ends(self._admin, self._nexts)
            self._say_lost(ends, self._nexts)

    def watch(self) -> None:
        """Watch for what nothing else would show. For a thread."""
        while True:
            time.sleep(WATCH_S)
            try:
                self._look(time.monotonic())
            except KafkaUnavailableError as error:
                log.info("%s", error)
            except Exception:
                log.exception("the inputs could not be checked")

    def _look(self, now_s: float) -> None:
        # Before the question: what is read meanwhile is not lost.
        nexts = {
            place: offset
            for place, offset in self._nexts.copy().items()
            if place.partition in self._states
        }
        ends = find_ends(self._admin, self._places)
        # Another process knows about what it sequences.
        own = {place: found for place, found in ends.items() if place in nexts}
        self._say_lost(own, nexts)
        held = {hold.place: hold for hold in self._holds.see(ends, now_s)}
        servers = self._service.settings.bootstrap_servers
        for place, hold in held.items():
            if self._held.get(place) != hold:
                log.critical(
                    "%s, %d offsets by now, for %.0f s: %s",
                    hold,
                    ends[place].end - hold.offset,
                    now_s - hold.since_s,
                    hold.describe_cure(servers),
                )
        for place, hold in self._held.items():
            if held.get(place) != hold:
                waited_s = now_s - hold.since_s
                log.warning("%s: no longer held, after %.0f s", place, waited_s)
        self._held = held

    def _find_signed_heights(self, partition: int) -> dict[tuple[bytes, bytes], int]:
        """Return the last checkpoint's height by key and genesis; they come in
        order.
        """
        settings, registry = self._service.settings, self._service.registry
        heights: dict[tuple[bytes, bytes], int] = {}
        for record in read_partition(settings, topics.CHECKPOINTS, partition):
            # Anybody who may write to the topic wrote it.
            with passing_over(f"checkpoint {record.offset}"):
                data = registry.unframe_trusted(record.value or b"")
                signature = record.header(SIGNATURE_HEADER) or b""
                signed = codec.decode_as(CheckpointSigned, data)
                text = parse_note(signed.checkpoint.encode()).text
                _, genesis = parse_origin(parse_checkpoint(text).origin)
                verify_event(self._service.key.public_key, genesis, data, signature)
                heights[record.key or b"", genesis] = signed.height
        return heights

    def leave(self) -> None:
        """End the process if it ever wrote: its partitions were taken away.

        Reading the ledger again would not be enough. Faust keeps the transaction open,
        so its uncommitted blocks would not be seen, and the same heights would be
        written twice. A successor aborts that transaction before it reads.
        """
        if self._states:
            log.warning("partitions were revoked: starting again from the ledger")
            alive.end_process()


def _source(partition: int) -> Source:
    # Its topics all have the same number of partitions, and so share a transaction for
    # each.
    return Source(topics.CONTROL, partition)


def _first_traceparent(block: BlockSequenced) -> str:
    return next(filter(None, block.traceparents), "")


def _process(record: Received) -> Received:
    """Put a span around a record's sequencing, if spans are exported."""
    if not telemetry.is_exporting() or not record.traceparent:
        return record
    with telemetry.span(
        "process",
        record.topic,
        kind=telemetry.CONSUMER,
        parent=record.traceparent,
        messaging__kafka__offset=record.offset,
    ) as current:
        return replace(record, traceparent=current)


def _blocks_of(batch: Sequence[Received]) -> Iterator[list[Received]]:
    """Cut a batch so that each part's leaves fit a block."""
    part: list[Received] = []
    size = 0
    for record in batch:
        length = len(record.value or b"") + 512  # leaf envelope or refusal
        if part and (
            size + length > MAX_BLOCK_SIZE_BYTES or len(part) >= MAX_BLOCK_LEAVES
        ):
            yield part
            part, size = [], 0
        part.append(record)
        size += length
    if part:
        yield part


def make_sequencer() -> Service:
    """Return the sequencer's Faust app.

    Raises:
        InputsReplacedError: an input topic is not the one that a ledger was made from.
    """
    service = make_service("sequencer", "SEQUENCER")
    sequencer = Sequencer(service)
    sequencer.look_before_start()
    app, batches = service.app, Batches(MAX_BATCH)

    @app.agent(service.topic(*topics.SEQUENCED_TOPICS), name="sequencer", concurrency=1)
    async def read_inputs(stream: Any) -> None:
        async for event in stream.events():
            await batches.put(event)

    @app.task
    async def sequence_inputs() -> None:
        heartbeats.do("sequencing")
        while True:
            batch = await batches.take()
            with fail_stop(*batch):
                await sequencer.process(batch)
            await batches.commit(service)

    @app.task
    async def watch_inputs() -> None:
        alive.start_thread(sequencer.watch, "watch")

    @app.on_partitions_revoked.connect
    async def on_partitions_revoked(*_: Any, **__: Any) -> None:
        # A process that knows nothing reads the ledger, and only then writes.
        sequencer.leave()

    return service
