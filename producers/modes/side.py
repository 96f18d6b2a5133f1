"""What differs between modes for an agent: how it encodes an update, what it says."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.blobs import BlobStore
from producers.agent.kept_update import KeptUpdate
from protocol.modes.mode import Answer
from schemas.events import FederationConfigured, RoundStarted


@dataclass(frozen=True, slots=True, kw_only=True)
class Site:
    """The agent and where it acts.

    Attributes:
        config: The federation's parameters.
        genesis: Hash of the log's genesis, 32 bytes.
        agent_id: The agent.
        store: Where blobs are stored.
    """

    config: FederationConfigured
    genesis: bytes
    agent_id: str
    store: BlobStore


class AgentSide(Protocol):
    """An agent's side of one mode."""

    @property
    def bound(self) -> int:
        """Return the bound that updates are encoded within; 0 for none."""
        ...

    def encode(
        self, delta: NDArray[np.floating[Any]], started: RoundStarted
    ) -> NDArray[np.int64]:
        """Return an update as integers to be combined.

        Raises:
            NotFiniteError: the training diverged.
            OutOfRangeError: a parameter moved further than can be encoded.
        """
        ...

    def answer(
        self, update: KeptUpdate, started: RoundStarted, started_leaf_hash: bytes
    ) -> Answer:
        """Return what to say, and store the blobs that it refers to.

        Args:
            update: The update. **Secret** in some modes.
            started: The fact that opened the round.
            started_leaf_hash: Hash of the leaf that holds the fact, 32 bytes.
        """
        ...
