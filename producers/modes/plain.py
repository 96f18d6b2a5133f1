"""An agent's side of aggregation PLAIN: it submits its update in the clear."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from producers.agent.kept_update import KeptUpdate
from producers.modes.side import Site
from protocol.encoding import encode_update, update_to_blob
from schemas.events import RoundStarted, UpdateSubmitted


class PlainSide:
    """See `producers.modes.side.AgentSide`."""

    bound = 0

    def __init__(self, site: Site) -> None:
        self._site = site

    def encode(
        self, delta: NDArray[np.floating[Any]], started: RoundStarted
    ) -> NDArray[np.int64]:
        """Return the update in fixed point."""
        return encode_update(delta, started.fractional_bits).astype(np.int64)

    def answer(
        self, update: KeptUpdate, started: RoundStarted, _started_leaf_hash: bytes
    ) -> UpdateSubmitted:
        """Return where the update is."""
        blob = update_to_blob(update.values.astype(np.int32))
        return UpdateSubmitted(
            federation_id=started.federation_id,
            round=started.round,
            agent_id=self._site.agent_id,
            base_model_sha256=started.base_model.sha256,
            update=self._site.store.store(blob),
            num_examples=update.num_examples,
            loss_micros=update.loss_micros,
        )
