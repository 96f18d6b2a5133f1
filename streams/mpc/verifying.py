"""Verifying MPC rounds, as parties and the aggregator do; norm proofs on all cores.

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

from protocol.modes.mpc.checker import RoundVerifier
from protocol.modes.mpc.round import MpcRound
from protocol.modes.problem import Fetch

MIN_TOGETHER: Final = 2
"""Proofs in a batch: fewer are not worth a thread."""


class Verifying:
    """The verifier of the round in progress, and a thread for each core.

    Args:
        fetch: How to fetch blobs.
    """

    def __init__(self, fetch: Fetch) -> None:
        self._fetch = fetch
        self._num_threads = os.cpu_count() or 1
        self._pool = ThreadPoolExecutor(self._num_threads, "verify")
        self._current: tuple[bytes, RoundVerifier] | None = None

    def get(self, secret: MpcRound) -> RoundVerifier:
        """Return a round's verifier, made once: it remembers what it has verified."""
        if self._current is None or self._current[0] != secret.identity:
            self._current = (secret.identity, RoundVerifier(secret, self._fetch))
        return self._current[1]

    def verify_proofs(self, secret: MpcRound, agent_ids: Sequence[str]) -> None:
        """Verify norm proofs; the round's verifier remembers what came out.

        Args:
            secret: The round.
            agent_ids: Agents that have committed.
        """
        verifier = self.get(secret)
        new = [
            agent_id
            for agent_id in agent_ids
            if not verifier.has_proven(secret, agent_id)
        ]
        num_batches = min(self._num_threads, len(new) // MIN_TOGETHER) or 1
        batches = [new[first::num_batches] for first in range(num_batches)]
        for _ in self._pool.map(
            lambda batch: verifier.verify_proofs(secret, batch), batches
        ):
            pass
