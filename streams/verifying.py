"""Verifying norm proofs on all cores.

Multiplying points, which is most of the work, leaves Python's lock to others. A batch
of proofs costs less than the proofs one by one, so each core gets one batch.

What waits to be verified is on Kafka: a block is followed when the one before it is
done, so no more than one block's proofs are in memory.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from protocol.mpc import RoundVerifier
from protocol.secret_round import SecretRound

MIN_TOGETHER: Final = 2
"""Proofs in a batch: fewer are not worth a thread."""


class ProofPool:
    """Threads that fetch and verify norm proofs, one for each core."""

    def __init__(self, num_threads: int | None = None) -> None:
        self._num_threads = num_threads or os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._num_threads, "verify")

    def verify(
        self, verifier: RoundVerifier, secret: SecretRound, agent_ids: Sequence[str]
    ) -> None:
        """Verify norm proofs; `verifier` remembers what came out.

        Args:
            verifier: Of the round.
            secret: The round.
            agent_ids: Agents that have proved.
        """
        new = [agent_id for agent_id in agent_ids if not verifier.has_proven(agent_id)]
        num_batches = min(self._num_threads, len(new) // MIN_TOGETHER) or 1
        batches = [new[first::num_batches] for first in range(num_batches)]
        for _ in self._pool.map(
            lambda batch: verifier.verify_proofs(secret, batch), batches
        ):
            pass
