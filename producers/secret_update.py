"""An agent's side of a round whose updates nobody sees: commit, then prove.

Between the two an agent must not forget what it committed to, and must not prove it
twice: two proofs under two projections have the same masks, which were committed to
with the update, and their difference would show the update. So the update and the seed
of everything random in it are on disk before the commitment leaves the process,
readable by their owner alone; which projection it is proved under is on disk before
there is a proof in the store; the proof is on disk before it is said, and only what is
on disk is ever said again. What is secret is deleted when the round is over.

A copy of the directory from before the proof knows nothing of the projection. So a
secret that is bound to no projection yet is of use only in the directory's place where
it was written, and binding it gives the directory another place
(`producers.agent_directory`). One that is bound proves the same again, and is harmless
wherever it turns up.

What is random in commitments and in shares is derived from drawn bytes and the update
together: should a machine draw the same bytes twice, as one that is put back with its
memory may, two updates still share no blinding, no mask and no pad.
"""

from __future__ import annotations

import hashlib
import logging
import os
import secrets
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from adapters.blobs import BlobStore
from producers.agent_directory import PAGE, compute_place, renew_place
from protocol.clipping import clip_and_encode
from protocol.configuration import get_mpc
from protocol.mpc import (
    MpcShape,
    compute_context,
    encode_proof,
    make_place,
)
from protocol.norm_proof import NormStatement, Projection
from protocol.norm_prover import ProverState, commit_update, prove_norm
from protocol.sealing import SealingKey, seal_share
from protocol.shares import split_update
from schemas.events import (
    CommitmentsClosed,
    FederationConfigured,
    RoundStarted,
    SealedShare,
    UpdateCommitted,
)

log = logging.getLogger(__name__)

SEED_SIZE: Final = 32
_MAGIC: Final = b"folkmoot-agent-secret/v2\n"
SUFFIX: Final = ".secret"
SEED_SUFFIX: Final = ".seed"
_COMMITMENT: Final = b"folkmoot-agent-commitment/v1\n"
_SHARES: Final = b"folkmoot-agent-shares/v1\n"


class SecretError(Exception):
    """What an agent kept for its proof cannot be used; the message says why."""


@dataclass(frozen=True, slots=True, eq=False)
class Secret:
    """What an agent committed to. **Secret:** printing it shows nothing.

    Attributes:
        values: The update, shape (d,) int64.
        seed: Of everything random in its commitments and its proof, 32 bytes.
    """

    values: NDArray[np.int64] = field(repr=False)
    seed: bytes = field(repr=False)

    @classmethod
    def make(
        cls, delta: NDArray[np.floating[Any]], config: FederationConfigured
    ) -> Secret:
        """Clip and encode an update.

        Raises:
            NotFiniteError: the training diverged.
            NormBoundTooSmallError: the federation's bound is too small for its model.
        """
        values = clip_and_encode(
            delta,
            fractional_bits=config.fractional_bits,
            norm_bound=get_mpc(config).norm_bound,
            entropy=secrets.token_bytes,
        )
        return cls.draw(values)

    @classmethod
    def draw(cls, values: NDArray[np.int64]) -> Secret:
        """Return an update to commit to, with a seed that was never used."""
        return cls(values, secrets.token_bytes(SEED_SIZE))

    def commit(self, config: FederationConfigured) -> ProverState:
        """Return the commitments, and what proving takes: always the same."""
        return commit_update(
            self.values,
            context=b"",  # known once the shares are sealed: see `prove`
            squared_bound=get_mpc(config).norm_bound ** 2,
            entropy=_Stream.hedge(_COMMITMENT, self.seed, self.values),
        )

    def to_bytes(self) -> bytes:
        """Return it for its file."""
        return _MAGIC + self.seed + self.values.astype("<i4").tobytes()

    @classmethod
    def from_bytes(cls, data: bytes) -> Secret:
        """Read it.

        Raises:
            SecretError: the bytes are no secret of ours.
        """
        head = len(_MAGIC) + SEED_SIZE
        if data[: len(_MAGIC)] != _MAGIC or len(data) <= head or (len(data) - head) % 4:
            msg = "the file is damaged: this round cannot be proved"
            raise SecretError(msg)
        values = np.frombuffer(data, dtype="<i4", offset=head).astype(np.int64)
        return cls(values, data[len(_MAGIC) : head])


class _Stream:
    """Bytes that a seed stands for: AES-256 in counter mode."""

    @classmethod
    def hedge(cls, domain: bytes, seed: bytes, values: NDArray[np.int64]) -> _Stream:
        """Return what a seed stands for beside an update: another for another one."""
        digest = hashlib.sha512(domain + seed)
        digest.update(values.astype("<i8").tobytes())
        return cls(digest.digest()[:SEED_SIZE])

    def __init__(self, seed: bytes) -> None:
        cipher = Cipher(algorithms.AES256(seed), modes.CTR(bytes(16)))
        self._encryptor = cipher.encryptor()

    def __call__(self, num_bytes: int) -> bytes:
        return self._encryptor.update(bytes(num_bytes))


def submit_commitment(
    state: ProverState,
    started: RoundStarted,
    config: FederationConfigured,
    genesis: bytes,
    store: BlobStore,
    *,
    agent_id: str,
    num_examples: int,
    loss_micros: int | None,
) -> UpdateCommitted:
    """Share an update among the parties, seal and store the shares.

    Returns:
        What the agent publishes. Called again it makes other shares of the same update:
        only what was written down may be said.
    """
    update = UpdateCommitted(
        federation_id=started.federation_id,
        round=started.round,
        agent_id=agent_id,
        base_model_sha256=started.base_model.sha256,
        commitments=store.store(state.statement.to_blob()),
        shares=(),
        num_examples=num_examples,
        loss_micros=loss_micros,
    )
    drawn = secrets.token_bytes(SEED_SIZE)
    entropy = _Stream.hedge(_SHARES, drawn, state.values)
    parties = get_mpc(config).parties
    dealt = split_update(state, len(parties), entropy)
    shares = []
    for party, share in zip(parties, dealt, strict=True):
        place = make_place(genesis, update, party.name, share.commitment)
        sealed = seal_share(share.plaintext, SealingKey(party.sealing_key), place)
        shares.append(
            SealedShare(
                party=party.name,
                sealed=store.store(sealed),
                commitment=share.commitment,
            )
        )
    return replace(update, shares=tuple(shares))


def prove(
    state: ProverState,
    update: UpdateCommitted,
    closed: CommitmentsClosed,
    config: FederationConfigured,
    genesis: bytes,
) -> bytes:
    """Return the blob of the norm proof: always the same for the same arguments."""
    shape = MpcShape.of(config)
    projection = Projection.expand(
        closed.projection_seed, num_rows=shape.num_rows, row_length=shape.row_length
    )
    statement: NormStatement = replace(
        state.statement, context=compute_context(genesis, config, update)
    )
    return encode_proof(prove_norm(replace(state, statement=statement), projection))


class SecretKeeper:
    """What an agent keeps on disk between committing and proving.

    Args:
        directory: Private to the agent.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._last: tuple[str, ProverState] | None = None

    def keep(self, stem: str, secret: Secret, state: ProverState) -> None:
        """Remember what is about to be committed to, durably."""
        place = compute_place(self._directory)
        path = self._directory / f"{stem}-{place}{SUFFIX}"
        write_private(path, secret.to_bytes())
        for other in self._find_files(stem):  # of an attempt that was said nowhere
            if other != path:
                other.unlink()
        self._last = (stem, state)

    def find(self, stem: str, config: FederationConfigured) -> ProverState:
        """Return what proving takes.

        Raises:
            SecretError: it is gone or damaged.
        """
        if self._last is not None and self._last[0] == stem:
            return self._last[1]
        data = self._find_file(stem).read_bytes()
        return Secret.from_bytes(data).commit(config)

    def bind(self, stem: str, seed: bytes) -> None:
        """Return if a commitment may be proved under this projection; no other may.

        Durably: a proof that was stored, and forgotten in a crash, counts too.

        Args:
            stem: Of the commitment.
            seed: Of the projection, 32 bytes.

        Raises:
            SecretError: another projection came first, or may have: the secret is a
                copy.
        """
        path = self._directory / f"{stem}{SEED_SUFFIX}"
        if path.exists():
            if path.read_bytes() != seed:
                msg = "asked for a second proof under another projection: never"
                raise SecretError(msg)
        else:
            place = compute_place(self._directory)
            if self._find_file(stem).name != f"{stem}-{place}{SUFFIX}":
                msg = (
                    "RESTORED_FROM_COPY: the directory was restored or copied, or the "
                    "machine started again, after this agent committed. It may have "
                    "proved that already, and a second proof could show the update. "
                    f"The next round goes well; see {PAGE}"
                )
                raise SecretError(msg)
            write_private(path, seed)
        renew_place(self._directory)

    def forget(self, *, but: str = "") -> None:
        """Delete all secrets: the round is over, or another one begins.

        Args:
            but: What stays: an agent that was killed may read of its round's beginning
                again after it has committed.
        """
        if self._last is not None and self._last[0] != but:
            self._last = None
        for path in self._directory.glob(f"*{SUFFIX}*"):  # drafts too
            if not but or path not in self._find_files(but):
                path.unlink(missing_ok=True)

    def _find_files(self, stem: str) -> list[Path]:
        return list(self._directory.glob(f"{stem}-*{SUFFIX}"))

    def _find_file(self, stem: str) -> Path:
        found = self._find_files(stem)
        if len(found) != 1:
            msg = "the secrets of this round's commitment are gone"
            raise SecretError(msg)
        return found[0]


def write_private(path: Path, data: bytes) -> None:
    """Write a file that its owner alone may read: durable, whole or not at all."""
    draft = path.with_name(f".{path.name}.draft")
    draft.unlink(missing_ok=True)
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)
