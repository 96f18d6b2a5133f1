"""The timer: says when a round's deadline has passed.

It decides nothing: the decider counts a `DeadlineReached` only when the block's own
stamp is past the deadline too, so an early or lying timer changes nothing, and a late
one only delays.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Final

from adapters.kafka import Publisher
from adapters.ledger import ReadBlock, follow_log
from adapters.schema_registry import SchemaRegistry
from adapters.settings import Settings
from ledger.signing import SigningKey
from schemas.events import (
    AggregatePublished,
    DeadlineReached,
    RoundAbandoned,
    RoundSealed,
    RoundStarted,
)

log = logging.getLogger(__name__)

REPEAT_AFTER_MS: Final = 2_000
MAX_REPEAT_AFTER_MS: Final = 60_000
"""If the sequencer's clock is behind ours, the first announcement was too early; if
updates wait for their check, another changes nothing. So each waits longer."""


class Timer:
    """Watches the rounds of one federation."""

    def __init__(self, settings: Settings, federation_id: str, key: SigningKey) -> None:
        self._settings = settings
        self._federation_id = federation_id
        self._key = key
        self._registry = SchemaRegistry(settings.schema_registry_url)
        self._publisher = Publisher(settings, self._registry)
        self._open: tuple[RoundStarted, str] | None = None
        self._due_ms = 0
        self._repeat_after_ms = REPEAT_AFTER_MS

    def run(self, should_stop: Callable[[], bool]) -> None:
        """Announce deadlines until told to stop.

        Raises:
            LogError: the log is broken.
            KafkaUnavailableError: Kafka is away; start again later.
        """
        for read in follow_log(self._settings, self._registry, self._federation_id):
            if should_stop():
                return
            if isinstance(read, ReadBlock):
                self._learn(read)
            else:
                self._announce_if_due(time.time_ns() // 1_000_000)

    def _learn(self, read: ReadBlock) -> None:
        for leaf in read.leaves:
            event = leaf.sequenced.event
            if isinstance(event, RoundStarted):
                self._open = (event, leaf.traceparent)
                self._due_ms = event.deadline_ms
                self._repeat_after_ms = REPEAT_AFTER_MS
            elif isinstance(event, RoundSealed | RoundAbandoned | AggregatePublished):
                self._open = None

    def _announce_if_due(self, now_ms: int) -> None:
        if self._open is None or now_ms < self._due_ms:
            return
        started, traceparent = self._open
        event = DeadlineReached(
            federation_id=self._federation_id,
            round=started.round,
            observed_at_ms=now_ms,
        )
        self._publisher.publish(event, self._key, traceparent=traceparent)
        self._due_ms = now_ms + self._repeat_after_ms
        self._repeat_after_ms = min(2 * self._repeat_after_ms, MAX_REPEAT_AFTER_MS)
        log.info("round %d: deadline announced", started.round)
