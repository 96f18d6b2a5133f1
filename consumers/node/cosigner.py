"""Cosigning at a ledger node: every final checkpoint, in order, and none twice.

Rules (ledger specification, R5 and R6):

- Only a block that is final here is cosigned, and only if the log signed the tree that
  this node computed.
- Sizes only grow. That a size is cosigned is durable before the signature exists.
- The log owes each block a checkpoint. If one is missing while later ones come, it is
  passed over: it must not end all cosigning.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Final

from adapters.vote_log import VoteLog
from consumers.node.checkpoints import CheckpointDesk
from ledger.attestations import Header
from ledger.checkpoint import cosign_checkpoint
from ledger.consensus import MAX_COSIGNABLE, Consensus, CosignRefusedError

log = logging.getLogger(__name__)

CHECKPOINT_PATIENCE_S: Final = 10.0
"""How long a final block may lack the log's checkpoint before it is passed over."""


class Cosigner:
    """Final blocks awaiting this node's cosignature.

    Args:
        votes: The key and its memory.
        desk: The log's checkpoints.
        clock: Seconds since 1970-01-01 UTC.
        publish: Called with a block's height and its cosigned checkpoint.
    """

    def __init__(
        self,
        votes: VoteLog,
        desk: CheckpointDesk,
        clock: Callable[[], float],
        publish: Callable[[int, bytes], None],
    ) -> None:
        self._votes = votes
        self._desk = desk
        self._clock = clock
        self._publish = publish
        self._waiting: deque[Header] = deque(maxlen=MAX_COSIGNABLE)
        self._since_s: float | None = None

    def add(self, header: Header) -> None:
        """Add a final block, above those added before. Idempotent."""
        if not self._waiting or header.height > self._waiting[-1].height:
            self._waiting.append(header)

    def clear(self) -> None:
        """Forget what waits: another era begins."""
        self._waiting.clear()

    def cosign(
        self, consensus: Consensus, name: str, now_s: float, up_to: int | None = None
    ) -> None:
        """Cosign what can be cosigned.

        Args:
            consensus: Knows what is final.
            name: This node's name in the era.
            now_s: A clock that never steps back, seconds.
            up_to: The largest size to cosign; None for all.
        """
        while self._waiting:
            header = self._waiting[0]
            size = header.tree_size
            if up_to is not None and size > up_to:
                return
            if size >= consensus.votes.cosigned_size:
                note = self._desk.find(size)
                if note is None and not self._is_overdue(now_s):
                    return
                if note is not None and self._desk.check_final(size, header.tree_root):
                    self._cosign_one(consensus, name, header, note)
            self._since_s = None
            self._waiting.popleft()

    def _is_overdue(self, now_s: float) -> bool:
        if self._since_s is None:
            self._since_s = now_s
        return now_s - self._since_s >= CHECKPOINT_PATIENCE_S and any(
            self._desk.find(header.tree_size) for header in self._waiting
        )

    def _cosign_one(
        self, consensus: Consensus, name: str, header: Header, note: bytes
    ) -> None:
        try:
            votes = consensus.mark_cosigned(header.tree_size, header.tree_root)
        except CosignRefusedError as error:
            log.warning("not cosigned: %s", error)
            return
        # After a crash between these two, the same size is cosigned again.
        self._votes.store(votes)
        now_s = int(self._clock())
        self._publish(
            header.height, cosign_checkpoint(note, name, self._votes.key, now_s)
        )
