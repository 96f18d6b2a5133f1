"""An agent's side of aggregation PLAIN: it submits its update in the clear."""

from __future__ import annotations

import numpy as np

from producers.agent.kept_update import KeptUpdate
from producers.modes.side import EncodedUpdate, Site
from protocol import averaged_apart
from protocol.encoding import compute_encoding_loss, encode_update, update_to_blob
from protocol.exchanged_state import Update
from schemas.events import RoundStarted, UpdateSubmitted


class PlainSide:
    """See `producers.modes.side.AgentSide`."""

    bound = 0

    def __init__(self, site: Site) -> None:
        self._site = site

    def encode(self, update: Update, started: RoundStarted) -> EncodedUpdate:
        """Return the update in fixed point."""
        trained = encode_update(update.trained, started.fractional_bits)
        averaged = averaged_apart.encode_values(update.base, update.after)
        return EncodedUpdate(
            np.concatenate((trained, averaged.integers)),
            compute_encoding_loss(update.trained, trained),
            averaged.num_held_back,
        )

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
            encoding_loss=update.encoding_loss,
            num_steps=update.num_steps,
        )
