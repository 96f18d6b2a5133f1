"""Kafka as a ledger node sees it: what an append-only log never does.

Finality does not depend on Kafka, so nothing here stops the node. But Kafka's operator
should hear about it, and so should everybody who relies on it.

    KAFKA_REWRITTEN   at a height that is final here Kafka has another block
    KAFKA_TRUNCATED   the beginning is gone, the end is before what was read, or a
                      height is skipped
    KAFKA_RECREATED   the topic is another one under the same name
    KAFKA_REPLAYED    a block comes again out of its turn

Two do a log no harm yet, and end with their cause:

    KAFKA_HELD           an open transaction holds back what was written after it
    KAFKA_MISCONFIGURED  a topic could lose what is written to it
"""

from __future__ import annotations

from collections.abc import Callable

from consumers.node.feed import AlertCode, Alerts


class KafkaWatch:
    """Watches the ledger's partition, from offset 0 on.

    Args:
        find_hash: Returns the hash of the final block at a height, or None.
        alerts: Reports alerts.
        topic_id: The topic's id at the last read; empty if there was none.
    """

    def __init__(
        self,
        find_hash: Callable[[int], bytes | None],
        alerts: Alerts,
        topic_id: str = "",
    ) -> None:
        self._find_hash = find_hash
        self._alerts = alerts
        self.topic_id = topic_id
        """The topic's id, empty if it is not known."""
        self.next_offset = 0
        """The offset after the last one read."""
        self._next_height = 0

    def see_topic(self, topic_id: str) -> bool:
        """Take the topic's id; returns whether to read it from its beginning."""
        before, self.topic_id = self.topic_id, topic_id
        if before in {"", topic_id}:
            return False
        detail = f"the ledger's topic was {before} and is {topic_id}"
        self._alerts.add(AlertCode.KAFKA_RECREATED, detail)
        self.start_over()
        return True

    def start_over(self) -> None:
        """Note that the partition is being read from its beginning again."""
        self.next_offset = self._next_height = 0

    def see_bounds(self, first: int, end: int, next_offset: int) -> bool:
        """Take the partition's bounds; returns whether to read it from its beginning.

        Args:
            first: Offset of the first remaining record.
            end: Offset of the next record to come.
            next_offset: `next_offset` before Kafka was asked.
        """
        if first > 0:
            detail = f"the ledger starts at offset {first}"
            self._alerts.add(AlertCode.KAFKA_TRUNCATED, detail)
        if end >= min(next_offset, self.next_offset):
            return False
        detail = f"the ledger ends before offset {end}; {next_offset - 1} was read"
        self._alerts.add(AlertCode.KAFKA_TRUNCATED, detail)
        self.start_over()
        return True

    def see_block(self, offset: int, height: int, digest: bytes) -> None:
        """Take a block that the sequencer signed, with the height that it states."""
        self.next_offset = max(self.next_offset, offset + 1)
        final = self._find_hash(height)
        place = f"offset {offset}, block {height}"
        if final is not None and final != digest:
            detail = f"{place}: {digest.hex()}; final is {final.hex()}"
            self._alerts.add(AlertCode.KAFKA_REWRITTEN, detail)
        if height > self._next_height:
            detail = f"{place}: blocks from {self._next_height} on are not there"
            self._alerts.add(AlertCode.KAFKA_TRUNCATED, detail)
        elif height < self._next_height:
            self._alerts.add(AlertCode.KAFKA_REPLAYED, f"{place} comes out of turn")
        self._next_height = max(self._next_height, height + 1)
