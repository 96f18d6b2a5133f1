"""The timer: says what nobody else has a reason to say in time.

- A round's deadline has passed.
- Nothing has followed a block for a while: one more leaf gives it the child that it
  needs to become final.
- The checkpoint that the next cohort is drawn from has a quorum of cosignatures.

It decides nothing: the decider counts a `DeadlineReached` only when the block's own
stamp is past the deadline too, and admission verifies every cosignature. So an early or
lying timer changes nothing, and a late one only delays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Final

from adapters import heartbeats
from adapters.kafka import Pause, Publisher, Record, follow_partition
from adapters.kafka_log import ReadBlock, find_partition, follow_log
from adapters.outages import describe, is_of_the_item
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from ledger.attestations import NodeSet
from ledger.checkpoint import make_log_key, parse_checkpoint
from ledger.cosigning import CosignatureCollector
from ledger.note import parse_note
from ledger.signing import SigningKey
from protocol.admission import AdmissionState
from protocol.decider import step
from protocol.log import OpenedLeaf, fold_admission
from protocol.round_state import RoundsState
from protocol.rounds import DECIDER
from schemas import codec, topics
from schemas.events import (
    CheckpointCosigned,
    CheckpointFinalised,
    DeadlineReached,
    Event,
    FinalityRequested,
    RoundStarted,
)

log = logging.getLogger(__name__)

MAX_COLLECTED: Final = 1_000
"""Attestations between two looks at the clock; many parties send them."""
REPEAT_AFTER_MS: Final = 2_000
MAX_REPEAT_AFTER_MS: Final = 60_000
"""If the sequencer's clock is behind ours, the first announcement was too early; if
updates wait for their check, another changes nothing. So each waits longer."""
QUIET_AFTER_S: Final = 0.5
"""How long a block may be the last one before it is given a child."""
FINAL_AFTER_S: Final = 5.0
MAX_FINAL_AFTER_S: Final = 300.0
"""A block whose child was certified in another epoch needs more children: it gets
another whenever it is not final after this long, each time later."""


class Timer:
    """Watches the rounds of one federation."""

    def __init__(self, settings: Settings, federation_id: str, key: SigningKey) -> None:
        self._settings = settings
        self._federation_id = federation_id
        self._key = key
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._publisher = Publisher(settings, self._registry)
        self._open: tuple[RoundStarted, str] | None = None
        self._deadline_ms = 0
        self._due_ms = 0
        self._repeat_after_ms = REPEAT_AFTER_MS
        self._rounds: RoundsState = DECIDER.initial
        self._admission = AdmissionState()
        self._open_size: int | None = None
        self._last_height = -1
        self._child_due_s = 0.0
        self._next_wait_s = FINAL_AFTER_S
        self._nodes: NodeSet | None = None
        self._cosigned: CosignatureCollector | None = None
        self._announced_size = 0
        self._num_passed_over = 0

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Announce deadlines until told to stop.

        Raises:
            LogError: the log is broken.
            KafkaUnavailableError: Kafka is away; start again later.
        """
        partition = find_partition(
            self._settings, topics.ATTESTATIONS, self._federation_id
        )
        heartbeats.do("watching deadlines")
        attestations = follow_partition(self._settings, topics.ATTESTATIONS, partition)
        for read in follow_log(self._settings, self._registry, self._federation_id):
            if should_stop():
                return
            if isinstance(read, ReadBlock):
                self._learn(read)
                continue
            self._announce_if_due(time.time_ns() // 1_000_000)
            if self._admission.node_sets:
                self._collect(attestations)
                self._announce_final()
                self._request_finality()

    def _learn(self, read: ReadBlock) -> None:
        self._admission = fold_admission(self._admission, read.leaves)
        self._last_height = read.block.height
        if not all(
            isinstance(item.sequenced.event, FinalityRequested) for item in read.leaves
        ):
            self._open_size = read.state.chain.size
            self._child_due_s = time.monotonic() + QUIET_AFTER_S
            self._next_wait_s = FINAL_AFTER_S
        elif self._next_wait_s == FINAL_AFTER_S:
            # A child already, whoever asked for it.
            self._child_due_s = time.monotonic() + FINAL_AFTER_S
        for leaf in read.leaves:
            self._rounds, _ = step(DECIDER, self._rounds, leaf.sequenced)
            event = leaf.sequenced.event
            if isinstance(event, CheckpointFinalised):
                self._announced_size = self._admission.finalised_size
            self._learn_deadline(leaf)

    def _learn_deadline(self, leaf: OpenedLeaf) -> None:
        """Watch the deadline of the round's present phase, if it has one."""
        current = self._rounds.current
        deadline_ms = None if current is None else current.deadline_ms
        if current is None or deadline_ms is None:
            self._open = None
        elif self._open is None or self._deadline_ms != deadline_ms:
            self._open = (current.started, leaf.traceparent)
            self._deadline_ms = self._due_ms = deadline_ms
            self._repeat_after_ms = REPEAT_AFTER_MS

    def _announce_if_due(self, now_ms: int) -> None:
        if self._open is None or now_ms < self._due_ms:
            return
        started, traceparent = self._open
        event = DeadlineReached(
            federation_id=self._federation_id,
            round=started.round,
            observed_at_ms=now_ms,
        )
        self._publish(event, traceparent)
        self._due_ms = now_ms + self._repeat_after_ms
        self._repeat_after_ms = min(2 * self._repeat_after_ms, MAX_REPEAT_AFTER_MS)
        log.info("round %d: deadline announced", started.round)

    def _publish(self, event: Event, traceparent: str = "") -> None:
        genesis = self._admission.genesis
        self._publisher.publish(event, self._key, genesis, traceparent=traceparent)

    def _request_finality(self) -> None:
        """Give the last block that says something a child, until it is final."""
        if self._open_size is None or time.monotonic() < self._child_due_s:
            return
        if self._cosigned is not None and self._cosigned.largest() >= self._open_size:
            self._open_size = None
            return
        # By the last height: the same event would be refused the next time.
        event = FinalityRequested(
            federation_id=self._federation_id, height=self._last_height
        )
        self._publish(event)
        self._child_due_s = time.monotonic() + self._next_wait_s
        self._next_wait_s = min(2 * self._next_wait_s, MAX_FINAL_AFTER_S)

    def _collect(self, attestations: Iterator[Record | Pause]) -> None:
        """Keep new cosignatures of checkpoints that matter."""
        cosigned = self._collector()
        # Bounded: a flooded topic must not keep us from the deadlines.
        for record in islice(attestations, MAX_COLLECTED):
            if not isinstance(record, Record):
                return
            if record.key != self._federation_id.encode():
                continue
            try:
                data = self._registry.unframe_trusted(record.value or b"")
                if codec.kind_of(data) is not CheckpointCosigned:
                    continue
                event = codec.decode_as(CheckpointCosigned, data)
                note = event.checkpoint.encode()
                size = parse_checkpoint(parse_note(note).text).size
                if size == self._rounds.draw_size or size >= (self._open_size or 0):
                    cosigned.add(note)
            except Exception as error:
                if not is_of_the_item(error):
                    raise
                self._pass_over(record, error)

    def _pass_over(self, record: Record, error: Exception) -> None:
        """Warn each time the number doubles."""
        self._num_passed_over = number = self._num_passed_over + 1
        if number & (number - 1) == 0:
            log.warning(
                "passing over attestation %d: %s (%d so far)",
                record.offset,
                describe(error),
                number,
            )

    def _collector(self) -> CosignatureCollector:
        """Return what collects the present ledger nodes' cosignatures."""
        nodes = self._admission.node_sets[-1]
        if self._cosigned is None or self._nodes != nodes:
            sequencer_key = self._admission.principals["SEQUENCER"]
            self._nodes = nodes
            self._cosigned = CosignatureCollector(
                make_log_key(
                    self._federation_id, self._admission.genesis, sequencer_key
                ),
                nodes.vkeys(),
                nodes.quorum,
            )
        return self._cosigned

    def _announce_final(self) -> None:
        """Put the checkpoint that the next draw needs on the log once it is final."""
        size = self._rounds.draw_size
        if size <= self._announced_size:
            return
        merged = self._collector().merge(size)
        if merged is None:
            return
        event = CheckpointFinalised(
            federation_id=self._federation_id, checkpoint=merged.decode()
        )
        self._publish(event)
        self._announced_size = size
        log.info("the checkpoint of size %d is final", size)
