"""What a ledger node tells other nodes and its operator: a feed, and alerts.

The feed is for pulling: everything this node said, and everything it heard and
verified, so one honest path between two nodes is enough. It is not a record: final
blocks are pruned, and a node further behind takes blocks and a finality proof.

Rules:

- Numbers only grow, over restarts too while the clock does not step back; asking for
  what follows a number that was never given out returns everything.
- No author can crowd out another: each has its own bound.
"""

from __future__ import annotations

import logging
from collections import OrderedDict, deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from enum import StrEnum
from itertools import takewhile
from typing import Final

from ledger.checkpoint import parse_checkpoint
from ledger.note import parse_note
from schemas import codec
from schemas import events as e

log = logging.getLogger(__name__)

MAX_PER_AUTHOR: Final = 1_024
"""Entries kept per author, the latest."""
MAX_ALERTS: Final = 64
"""Alerts kept of each kind, so that none hides another."""


@dataclass(frozen=True, slots=True)
class Entry:
    """An event in the feed.

    Attributes:
        number: Its place.
        event: The event.
        data: Its single-object encoding.
        author: The author that it counts against.
        key: Its identity.
        size: Of the tree, if it is a checkpoint; 0 otherwise.
    """

    number: int
    event: e.Event
    data: bytes
    author: bytes
    key: tuple[object, ...]
    size: int = 0


class Feed:
    """Events to be pulled, in the order in which they became known.

    Args:
        first_number: Above all that were given out before a restart.
    """

    def __init__(self, first_number: int = 1) -> None:
        self._next = first_number
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._known: set[tuple[object, ...]] = set()
        self._by_author: dict[bytes, deque[int]] = {}

    @property
    def last(self) -> int:
        """The highest number given out; initially the one before the first."""
        return self._next - 1

    def add(
        self,
        event: e.Event,
        author: bytes,
        *place: int | bytes,
        data: bytes | None = None,
    ) -> bool:
        """Add a verified event; returns whether it is new.

        Args:
            event: The event.
            author: Who signed it.
            place: What the author signed in it. A relay can alter the rest; the first
                to arrive counts.
            data: Its single-object encoding, if at hand.
        """
        key = type(event), author, *place
        if key in self._known:
            return False
        size = 0
        if isinstance(event, e.CheckpointSigned | e.CheckpointCosigned):
            size = size_of(event.checkpoint)
        data = codec.encode(event) if data is None else data
        entry = Entry(self._next, event, data, author, key, size)
        self._next += 1
        self._entries[entry.number] = entry
        self._known.add(key)
        numbers = self._by_author.setdefault(author, deque())
        numbers.append(entry.number)
        while len(numbers) > MAX_PER_AUTHOR:
            self._drop(numbers[0])
        return True

    def add_attestation(
        self, event: e.Attestation, author: bytes, data: bytes | None = None
    ) -> bool:
        """Add what a ledger node said; returns whether it is new."""
        match event:
            case e.BlockAttested():
                place = event.era, event.epoch, event.height, event.block_id
                return self.add(event, author, *place, data=data)
            case e.EpochRequested():
                high = event.high
                place = event.era, event.epoch, high.epoch, high.block_id
                return self.add(event, author, *place, data=data)
            case e.CheckpointCosigned():
                return self.add(event, author, size_of(event.checkpoint), data=data)

    def has_news(self, after: int) -> bool:
        """Return whether there is anything after a number."""
        last = next(reversed(self._entries), None)
        return last is not None and last > after

    def read(self, after: int, max_size_bytes: int) -> list[Entry]:
        """Return what follows a number, oldest first; at least one if there are any.

        Args:
            after: The last number that the reader has; 0 for everything.
            max_size_bytes: Limit on the encoded events.
        """
        if after > self.last:
            after = 0
        # From the end: most readers lack little, and ask often.
        newer = takewhile(lambda number: number > after, reversed(self._entries))
        found: list[Entry] = []
        size = 0
        for number in reversed(list(newer)):
            entry = self._entries[number]
            size += len(entry.data)
            if found and size > max_size_bytes:
                break
            found.append(entry)
        return found

    def prune(self, *, era: int, height: int, size: int) -> None:
        """Drop other eras, lower attestations and smaller checkpoints."""

        def is_old(entry: Entry) -> bool:
            match event := entry.event:
                case e.BlockAttested():
                    return event.era < era or event.height < height
                case e.EpochRequested():
                    return event.era < era
                case e.CheckpointSigned() | e.CheckpointCosigned():
                    return entry.size < size
                case _:
                    return False

        for entry in [item for item in self._entries.values() if is_old(item)]:
            self._drop(entry.number)

    def _drop(self, number: int) -> None:
        entry = self._entries.pop(number)
        self._known.remove(entry.key)
        self._by_author[entry.author].remove(number)


def size_of(checkpoint: str) -> int:
    """Return the size of a checkpoint that was verified."""
    return parse_checkpoint(parse_note(checkpoint.encode()).text).size


class AlertCode(StrEnum):
    """What needs somebody's attention. None of them stops a node."""

    BLOCK_INVALID = "BLOCK_INVALID"
    RULES_UNKNOWN = "RULES_UNKNOWN"
    FORK = "FORK"
    OTHER_GENESIS = "OTHER_GENESIS"
    EQUIVOCATION = "EQUIVOCATION"
    CHECKPOINT_DIFFERS = "CHECKPOINT_DIFFERS"
    OWN_KEY_USED_ELSEWHERE = "OWN_KEY_USED_ELSEWHERE"
    KAFKA_REWRITTEN = "KAFKA_REWRITTEN"
    KAFKA_TRUNCATED = "KAFKA_TRUNCATED"
    KAFKA_RECREATED = "KAFKA_RECREATED"
    KAFKA_REPLAYED = "KAFKA_REPLAYED"
    KAFKA_HELD = "KAFKA_HELD"
    KAFKA_MISCONFIGURED = "KAFKA_MISCONFIGURED"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """Something wrong.

    Attributes:
        code: What kind.
        detail: What and where, as text.
        at_s: When it was seen, seconds since 1970-01-01 UTC.
    """

    code: AlertCode
    detail: str
    at_s: float


class Alerts:
    """Alerts raised; each is logged once.

    Args:
        clock: Seconds since 1970-01-01 UTC.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._alerts: dict[tuple[AlertCode, str], Alert] = {}

    def add(self, code: AlertCode, detail: str) -> None:
        """Report something; once for each code and detail."""
        num_alike = sum(known == code for known, _ in self._alerts)
        if (code, detail) in self._alerts or num_alike >= MAX_ALERTS:
            return
        alert = Alert(code=code, detail=detail, at_s=self._clock())
        self._alerts[code, detail] = alert
        log.error("%s: %s", code, detail)

    def keep(self, code: AlertCode, details: Collection[str]) -> None:
        """Report these alerts of a kind, and drop others of it: they are over."""
        gone = [
            (known, detail)
            for known, detail in self._alerts
            if known == code and detail not in details
        ]
        for alert in gone:
            del self._alerts[alert]
            log.warning("no longer %s: %s", *alert)
        for detail in details:
            self.add(code, detail)

    def all(self) -> tuple[Alert, ...]:
        """Return them, oldest first."""
        return tuple(self._alerts.values())

    def codes(self) -> set[AlertCode]:
        """Return which kinds were raised."""
        return {code for code, _ in self._alerts}
