"""An agent that shares something else than it committed to is found, whatever it
tries.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.modes.mpc import checker as mpc
from protocol.modes.mpc.checker import MpcShape, Proven, make_place, open_shares
from protocol.modes.mpc.commitments import SCALAR_ORDER, parse_scalar
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.norm_proof import (
    NormProof,
    NormStatement,
    compute_challenges,
    expand_projection,
    start_transcript,
)
from protocol.modes.mpc.norm_prover import (
    ProverState,
    commit_update,
    find_four_squares,
    prove_norm,
)
from protocol.modes.mpc.projections import Projection
from protocol.modes.mpc.round import Committed
from protocol.modes.mpc.sealing import (
    SealedPlace,
    SealingSecretKey,
    open_share,
    seal_share,
)
from protocol.modes.mpc.share_link import (
    SharesDifferError,
    SumMasks,
    expand_sum_projection,
    verify_link,
)
from protocol.modes.mpc.shares import ShareRefusedError, parse_share, split_update
from schemas import events as e
from tests.builders import BlobDict
from tests.proving import verify_norm_proof
from tests.simulation.federation import MPC_CONFIG, PARTIES, committed, edit
from tests.slow_norm_prover import SlowProver
from tests.vectors.shares.generate import SeededEntropy, derive_keys

NUM_VALUES = 600
KEYS = {name: SealingSecretKey(name.encode().ljust(32)) for name in PARTIES}
NORM_BOUND = 2**17
GENESIS = b"\3" * 32
STARTED = b"\4" * 32
CONFIG = edit(
    MPC_CONFIG,
    num_parameters=NUM_VALUES,
    norm_bound=NORM_BOUND,
    parties=tuple(
        replace(party, sealing_key=KEYS[party.name].public_key.public_key)
        for party in get_mpc(MPC_CONFIG).parties
    ),
)
SHAPE = MpcShape.of(CONFIG)
VALUES = np.random.default_rng(1).integers(-500, 501, NUM_VALUES)


def commit(seed: str = "a") -> ProverState:
    return commit_update(
        VALUES, squared_bound=NORM_BOUND**2, entropy=SeededEntropy(seed)
    )


class Round:
    """What an agent says, and what honest parties say of it."""

    def __init__(self, state: ProverState, shared: ProverState | None = None) -> None:
        self.state = state
        self.blobs = BlobDict()
        self.sealed: dict[tuple[str, bytes], e.BlobRef] = {}
        self.update = committed(
            "ana", commitments=self.blobs.store(state.statement.to_blob())
        )
        self.deal(shared or state)

    def deal(self, state: ProverState) -> None:
        """Share, and seal what is another share than before."""
        dealt = split_update(state, len(PARTIES), SeededEntropy("shares"))
        shares = []
        for party, share in zip(get_mpc(CONFIG).parties, dealt, strict=True):
            name = (party.name, share.plaintext)
            if name not in self.sealed:
                place = make_place(GENESIS, self.update, party.name, share.commitment)
                key = KEYS[party.name].public_key
                sealed = seal_share(share.plaintext, key, place)
                self.sealed[name] = self.blobs.store(sealed)
            shares.append(
                e.SealedShare(
                    party=party.name,
                    sealed=self.sealed[name],
                    commitment=share.commitment,
                )
            )
        self.update = replace(self.update, shares=tuple(shares))

    @property
    def statement(self) -> NormStatement:
        return self.prover.statement

    @property
    def prover(self) -> ProverState:
        return self.state.bind(
            mpc.compute_context(GENESIS, CONFIG, self.update, STARTED)
        )

    @property
    def projection(self) -> Projection:
        statement = self.statement
        return expand_projection(statement, start_transcript(statement)[1])

    def prove(self) -> NormProof:
        return prove_norm(self.prover)

    def link(self) -> None:
        """Prove, let all parties link, and check the links.

        Raises:
            SharesDifferError: they don't add up.
        """
        proof = self.prove()
        verify_norm_proof(self.statement, proof)
        proven = Proven(
            Committed(leaf_index=0, event=self.update),
            self.statement,
            proof,
            compute_challenges(self.statement, proof),
        )
        sum_projection = expand_sum_projection(
            bytes(32), num_rows=SHAPE.num_rows, row_length=SHAPE.row_length
        )
        links = []
        for share in self.update.shares:
            key = KEYS[share.party]
            sealed = self.blobs[share.sealed.sha256]
            opened = open_shares(GENESIS, self.update, share.party, sealed, key, SHAPE)
            masks = SumMasks(key.derive_mask_key(), bytes(32))
            links.append(mpc.link_share(proven, opened, sum_projection, masks))
        verify_link(
            links,
            projections=proof.projection_values,
            blinding=parse_scalar(proof.z_blinding),
        )


def fit(state: ProverState, projection: Projection) -> ProverState:
    """Return another update with masks that make up for it under a projection."""
    difference = np.zeros(NUM_VALUES, dtype=np.uint64)
    difference[7] = 1_000
    moved = projection.multiply_words(difference).tolist()
    return replace(
        state,
        values=state.values + difference.view(np.int64),
        masks=tuple(y - int(m) for y, m in zip(state.masks, moved, strict=True)),
    )


def test_what_is_attacked_below_is_accepted() -> None:
    Round(commit()).link()


def test_shares_of_another_update_do_not_link() -> None:
    state = commit()
    with pytest.raises(SharesDifferError, match="of 309 projections"):
        Round(state, replace(state, values=state.values[::-1].copy())).link()


@pytest.mark.parametrize("num_tries", [1, 3])
def test_shares_that_fit_the_projection_come_too_late(num_tries: int) -> None:
    # The projection follows from the shares' digests, so each try gives another.
    attempt = Round(commit())
    for _ in range(num_tries):
        attempt.deal(fit(attempt.state, attempt.projection))
        with pytest.raises(SharesDifferError, match="of 309 projections"):
            attempt.link()


Mutant = Callable[[e.UpdateCommitted], e.UpdateCommitted]


def forget_digests(update: e.UpdateCommitted) -> e.UpdateCommitted:
    shares = (
        replace(share, sealed=replace(share.sealed, sha256=bytes(32)))
        for share in update.shares
    )
    return replace(update, shares=tuple(shares))


def forget_last_digest(update: e.UpdateCommitted) -> e.UpdateCommitted:
    *first, last = update.shares
    forgotten = replace(last, sealed=replace(last.sealed, sha256=bytes(32)))
    return replace(update, shares=(*first, forgotten))


@pytest.mark.parametrize("forget", [forget_digests, forget_last_digest])
def test_without_the_shares_digests_an_agent_could_share_anything(
    monkeypatch: pytest.MonkeyPatch, forget: Mutant
) -> None:
    compute = mpc.compute_context
    monkeypatch.setattr(
        mpc,
        "compute_context",
        lambda genesis, config, update, started: compute(
            genesis, config, forget(update), started
        ),
    )
    attempt = Round(commit())
    # Of the last party alone the share has other bytes, and the same commitment.
    attempt.deal(fit(attempt.state, attempt.projection))
    attempt.link()


# Columns that the proof says nothing of


class Hiding(Round):
    """An agent that commits to more columns than it shares."""

    def __init__(self, name: str) -> None:
        rows = [part.tolist() for part in np.split(VALUES, [SHAPE.row_length])]
        norm = sum(value * value for row in rows for value in row)
        # What is hidden counts towards the norm, but for the masks'.
        hidden = 0 if name == "masks" else 1
        entropy = SeededEntropy("hiding")
        squares = find_four_squares(NORM_BOUND**2 - norm - hidden, entropy)
        state = replace(commit(), squares=squares)
        bound = [*squares]
        masks = [*state.masks]
        {"values": rows[-1], "squares": bound, "masks": masks}[name].append(1)
        self.slow = SlowProver(
            context=b"",
            num_values=NUM_VALUES,
            row_length=SHAPE.row_length,
            squared_bound=NORM_BOUND**2,
            rows=rows,
            squares=bound,
            masks=masks,
            blindings=state.blindings,
            draw=lambda: int.from_bytes(entropy(64), "little") % SCALAR_ORDER,
        )
        super().__init__(replace(state, statement=self.slow.statement))

    def prove(self) -> NormProof:
        self.slow.statement = self.statement
        return self.slow.prove()


@pytest.mark.parametrize("name", ["values", "squares"])
def test_what_is_committed_to_beyond_the_shares_does_not_link(name: str) -> None:
    # The proof is good: see `protocol.modes.mpc.norm_proof` on these columns.
    attempt = Hiding(name)
    verify_norm_proof(attempt.statement, attempt.prove())
    with pytest.raises(SharesDifferError, match="of 309 projections"):
        attempt.link()


def test_what_is_beyond_the_masks_is_in_nothing() -> None:
    Hiding("masks").link()


def test_guesses_hit_no_more_often_than_the_lemma_says() -> None:
    difference = np.zeros(NUM_VALUES, dtype=np.uint64)
    difference[[0, 5, 513]] = 2**63, 1, 2**62
    tries = 4_000

    def count_misses(num_projections: int) -> int:
        projections = (
            Projection.expand(
                number.to_bytes(32, "big"),
                num_projections=num_projections,
                num_rows=SHAPE.num_rows,
                row_length=SHAPE.row_length,
            )
            for number in range(tries)
        )
        return sum(not p.multiply_words(difference).any() for p in projections)

    expected = tries * 0.75**8
    assert 0 < count_misses(8) < expected + 5 * expected**0.5
    assert count_misses(64) == 0


# A blob with two faces: AES-GCM does not commit to its key


def multiply(left: int, right: int) -> int:
    """Multiply in GF(2^128), bits as GCM has them (NIST SP 800-38D, 6.3)."""
    product = 0
    for place in range(127, -1, -1):
        if right >> place & 1:
            product ^= left
        left = left >> 1 ^ (0xE1 << 120 if left & 1 else 0)
    return product


def power(base: int, exponent: int) -> int:
    result = 1 << 127  # one
    while exponent:
        if exponent & 1:
            result = multiply(result, base)
        base, exponent = multiply(base, base), exponent >> 1
    return result


def encrypt_block(key: bytes, block: bytes) -> int:
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return int.from_bytes(cipher.update(block), "big")


def make_two_faced(keys: list[tuple[bytes, bytes]], num_blocks: int) -> bytes:
    """Return what AES-256-GCM opens under both keys and nonces, ciphertext and tag.

    The tag is linear in each block: the last one is chosen so that both tags agree.
    """
    blocks = [int.from_bytes(SeededEntropy(n)(16), "big") for n in range(num_blocks)]
    blocks[-1] = 0
    length = num_blocks * 128
    hashes = [encrypt_block(key, bytes(16)) for key, _ in keys]
    pads = [encrypt_block(key, nonce + b"\0\0\0\1") for key, nonce in keys]

    def compute_tag(h: int, pad: int) -> int:
        state = 0
        for block in (*blocks, length):
            state = multiply(state ^ block, h)
        return state ^ pad

    # The last block counts times h² in either tag.
    gap = compute_tag(hashes[0], pads[0]) ^ compute_tag(hashes[1], pads[1])
    factor = multiply(hashes[0], hashes[0]) ^ multiply(hashes[1], hashes[1])
    blocks[-1] = multiply(gap, power(factor, 2**128 - 2))
    tag = compute_tag(hashes[0], pads[0])
    assert tag == compute_tag(hashes[1], pads[1])
    return b"".join(block.to_bytes(16, "big") for block in (*blocks, tag))


def test_a_blob_may_open_in_two_places_but_each_has_a_projection_of_its_own() -> None:
    attempt = Round(commit())
    update, other = attempt.update, replace(attempt.update, round=2)
    name, key = PARTIES[0], KEYS[PARTIES[0]]
    commitment = update.shares[0].commitment
    places = [make_place(GENESIS, u, name, commitment) for u in (update, other)]
    infos = [place.compute_info(key.public_key.public_key) for place in places]
    ephemeral = b"\x42" * 32
    derived = [
        derive_keys(key.public_key.public_key, info, ephemeral) for info in infos
    ]
    enc = derived[0][0]
    body = make_two_faced([(k, nonce) for _, k, nonce in derived], 4)
    opened = [open_share(enc + body, key, place) for place in places]
    assert opened[0] != opened[1]
    assert opened[0] == AESGCM(derived[0][1]).decrypt(derived[0][2], body, b"")
    # It is no share at either, whose first bytes are given.
    for plaintext in opened:
        with pytest.raises(ShareRefusedError):
            parse_share(plaintext, shape=SHAPE.shares, commitment=None)
    # And what decides how it opens is in the context.
    contexts = {
        mpc.compute_context(GENESIS, CONFIG, u, STARTED) for u in (update, other)
    }
    assert len(contexts) == 2


def test_every_field_of_a_place_is_in_the_context() -> None:
    update = Round(commit()).update
    config = CONFIG
    party, *rest = get_mpc(config).parties
    first, *others = update.shares
    # Whoever adds a field to a place adds a line here.
    assert set(SealedPlace.__dataclass_fields__) == {
        "genesis",
        "federation_id",
        "round",
        "agent_id",
        "party",
        "statement_digest",
    }
    changed = [
        (config, replace(update, federation_id="banks")),
        (config, replace(update, round=2)),
        (config, replace(update, agent_id="bea")),
        (
            edit(config, parties=(replace(party, name="p9"), *rest)),
            update,
        ),
        (
            edit(config, parties=(replace(party, sealing_key=bytes(32)), *rest)),
            update,
        ),
        # What is hashed to the statement's digest.
        (config, replace(update, base_model_sha256=bytes(32))),
        (
            config,
            replace(update, commitments=replace(update.commitments, sha256=bytes(32))),
        ),
        (
            config,
            replace(update, shares=(replace(first, commitment=bytes(48)), *others)),
        ),
    ]
    contexts = {
        mpc.compute_context(GENESIS, *item, STARTED)
        for item in [(config, update), *changed]
    }
    contexts.add(mpc.compute_context(bytes(32), config, update, STARTED))
    contexts.add(mpc.compute_context(GENESIS, config, update, bytes(32)))
    assert len(contexts) == len(changed) + 3
