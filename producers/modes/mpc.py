"""An agent's side of an MPC round: everything it says, in one message.

The message is computed in memory: commitments, sealed shares, norm proof. Then its
blobs are stored, and the event that refers to them is written down and published
(`producers.agent.agent`). An agent killed before it was written down starts over,
drawing all randomness anew: two proofs with the same masks would reveal combinations of
the update. So nothing random is ever on the agent's disk, and no copy of its directory
can prove anything.

The randomness of commitments and shares is derived from drawn bytes, the round and the
update together: should a machine draw the same bytes twice, as one restored with its
memory may, two messages still share no blinding, mask or pad. A machine restored
between drawing and sealing goes unnoticed.
"""

from __future__ import annotations

import hashlib
import math
import secrets
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from adapters.blobs import BlobStore
from producers.agent.kept_update import KeptUpdate
from producers.modes.side import EncodedUpdate, Site
from protocol import averaged_apart
from protocol.clipping import clip_and_encode, compute_squared_norm
from protocol.encoding import compute_encoding_loss
from protocol.exchanged_state import Update
from protocol.modes.mpc.checker import compute_context, encode_proof, make_place
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.norm_prover import ProverState, commit_update, prove_norm
from protocol.modes.mpc.projections import SEED_SIZE
from protocol.modes.mpc.sealing import SealingKey, seal_share
from protocol.modes.mpc.shares import split_update
from schemas.events import (
    BlobRef,
    FederationConfigured,
    RoundStarted,
    SealedShare,
    UpdateCommitted,
)

_DOMAIN: Final = b"folkmoot-agent-update/v1\n"
_NOTHING: Final = BlobRef(uri="", sha256=bytes(32), size_bytes=1)


class MpcSide:
    """See `producers.modes.side.AgentSide`."""

    def __init__(self, site: Site) -> None:
        self._site = site

    @property
    def bound(self) -> int:
        """Return the federation's bound on the norm of an update."""
        return get_mpc(self._site.config).norm_bound

    def encode(self, update: Update, _started: RoundStarted) -> EncodedUpdate:
        """Clip and encode the update."""
        return encode_within_bound(update, self._site.config)

    def answer(
        self, update: KeptUpdate, started: RoundStarted, started_leaf_hash: bytes
    ) -> UpdateCommitted:
        """Commit to the update, share it, prove its norm.

        The update may have been committed to before; its randomness never was.
        """
        site = self._site
        committed = commit(
            update.values,
            started,
            site.config,
            site.genesis,
            site.store,
            started_leaf_hash=started_leaf_hash,
            agent_id=site.agent_id,
            num_examples=update.num_examples,
            loss_micros=update.loss_micros,
        )
        return replace(
            committed, encoding_loss=update.encoding_loss, num_steps=update.num_steps
        )


def encode_within_bound(update: Update, config: FederationConfigured) -> EncodedUpdate:
    """Encode an update, so that all its integers together are within the norm bound.

    What is averaged apart takes next to nothing of it, and never more than half: then
    trained values keep 86 %.

    Raises:
        NotFiniteError: the training diverged.
        NormBoundTooSmallError: the federation's bound is too small for its model.
    """
    bound = get_mpc(config).norm_bound
    averaged = averaged_apart.encode_values(
        update.base, update.after, max_norm=max(1, bound // 2)
    )
    left = bound**2 - compute_squared_norm(averaged.integers)
    trained = clip_and_encode(
        update.trained,
        fractional_bits=config.fractional_bits,
        norm_bound=math.isqrt(left),
        entropy=secrets.token_bytes,
    )
    return EncodedUpdate(
        np.concatenate((trained.values, averaged.integers)),
        compute_encoding_loss(
            update.trained, trained.values, shrunk_by=trained.shrunk_by
        ),
        averaged.num_held_back,
    )


def commit(
    values: NDArray[np.int64],
    started: RoundStarted,
    config: FederationConfigured,
    genesis: bytes,
    store: BlobStore,
    *,
    started_leaf_hash: bytes,
    agent_id: str,
    num_examples: int,
    loss_micros: int | None,
) -> UpdateCommitted:
    """Commit to an update, share it, prove its norm; store the blobs.

    All randomness is drawn here, and lives no longer than this call.

    Args:
        values: The update, as `encode_within_bound` returned it. **Secret.**
        started: The fact that opened the round.
        config: The federation's parameters.
        genesis: Hash of the log's genesis, 32 bytes.
        store: Where blobs are stored.
        started_leaf_hash: Hash of the leaf that holds the fact, 32 bytes.
        agent_id: The agent.
        num_examples: Its weight.
        loss_micros: Its training loss, in millionths.

    Returns:
        What to say.
    """
    drawn = secrets.token_bytes(SEED_SIZE)
    entropy = _Stream(drawn + started_leaf_hash, values)
    state = commit_update(
        values, squared_bound=get_mpc(config).norm_bound ** 2, entropy=entropy
    )
    update = share(
        state,
        started,
        config,
        genesis,
        store,
        entropy,
        agent_id=agent_id,
        num_examples=num_examples,
        loss_micros=loss_micros,
    )
    return prove(
        state, update, config, genesis, store, started_leaf_hash=started_leaf_hash
    )


def share(
    state: ProverState,
    started: RoundStarted,
    config: FederationConfigured,
    genesis: bytes,
    store: BlobStore,
    entropy: Callable[[int], bytes],
    *,
    agent_id: str,
    num_examples: int,
    loss_micros: int | None,
) -> UpdateCommitted:
    """Share an update among the parties; seal and store the shares, prove nothing.
    Arguments as for `commit`, but for the unbound ``state``, which is **secret**, and
    ``entropy``, which returns as many unpredictable bytes as asked.

    Returns:
        What to say, without the proof.
    """
    parties = get_mpc(config).parties
    update = UpdateCommitted(
        federation_id=started.federation_id,
        round=started.round,
        agent_id=agent_id,
        base_model_sha256=started.base_model.sha256,
        commitments=store.store(state.statement.to_blob()),
        shares=(),
        proof=_NOTHING,
        num_examples=num_examples,
        loss_micros=loss_micros,
    )
    shares = []
    dealt = split_update(state, len(parties), entropy)
    for party, made in zip(parties, dealt, strict=True):
        place = make_place(genesis, update, party.name, made.commitment)
        sealed = seal_share(made.plaintext, SealingKey(party.sealing_key), place)
        shares.append(
            SealedShare(
                party=party.name,
                sealed=store.store(sealed),
                commitment=made.commitment,
            )
        )
    return replace(update, shares=tuple(shares))


def prove(
    state: ProverState,
    update: UpdateCommitted,
    config: FederationConfigured,
    genesis: bytes,
    store: BlobStore,
    *,
    started_leaf_hash: bytes,
) -> UpdateCommitted:
    """Prove what `share` returned, once per state. Arguments as for `commit`; ``state``
    is **secret**.

    Returns:
        The same, with its proof.
    """
    context = compute_context(genesis, config, update, started_leaf_hash)
    proof = encode_proof(prove_norm(state.bind(context)))
    return replace(update, proof=store.store(proof))


class _Stream:
    """The bytes given by a seed and an update: AES-256 in counter mode."""

    def __init__(self, seed: bytes, values: NDArray[np.int64]) -> None:
        digest = hashlib.sha512(_DOMAIN + seed)
        digest.update(values.astype("<i8").tobytes())
        key = digest.digest()[:SEED_SIZE]
        cipher = Cipher(algorithms.AES256(key), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def __call__(self, num_bytes: int) -> bytes:
        return self._encryptor.update(bytes(num_bytes))
