"""What differs between modes for an agent: how it encodes an update, what it says."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapters.blobs import BlobStore
from producers.agent.kept_update import KeptUpdate
from protocol.exchanged_state import Update
from protocol.modes.mode import Answer
from schemas.events import EncodingLoss, FederationConfigured, RoundStarted


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


@dataclass(frozen=True, slots=True, eq=False)
class EncodedUpdate:
    """An update as a mode takes it.

    Attributes:
        values: What is combined: the trained entries' integers, then those of what is
            averaged apart, shape (d,) int64. **Secret** in some modes.
        loss: What was lost of the trained ones; None if that is not worth saying.
        num_held_back: How many values averaged apart could not be said in full.
    """

    values: NDArray[np.int64] = field(repr=False)
    loss: EncodingLoss | None
    num_held_back: int


class AgentSide(Protocol):
    """An agent's side of one mode."""

    @property
    def bound(self) -> int:
        """Return the bound that updates are encoded within; 0 for none."""
        ...

    def encode(self, update: Update, started: RoundStarted) -> EncodedUpdate:
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
