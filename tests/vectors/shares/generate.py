"""Write shares.json and sealed.json: python -m tests.vectors.shares.generate.

HPKE's sealing is written out here a second time, from RFC 9180, because the library
draws its ephemeral key itself: with a fixed one the bytes are the same each time, and
the library has to open what it did not seal.
"""

import hashlib
import hmac
import json
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from protocol.modes.mpc.commitments import SCALAR_ORDER
from protocol.modes.mpc.norm_proof import NormStatement
from protocol.modes.mpc.norm_prover import ProverState
from protocol.modes.mpc.projections import NUM_PROJECTIONS
from protocol.modes.mpc.sealing import SealedPlace, SealingSecretKey
from protocol.modes.mpc.shares import split_update

FOLDER = Path(__file__).parent
NUM_VALUES = 5
NUM_ROWS = 2
HEADER_SIZE = 31
PLACE = {
    "genesis": bytes(range(32, 64)),
    "federation_id": "fed",
    "round": 7,
    "agent_id": "agent-1",
    "party": "party-a",
    "statement_digest": bytes(range(32)),
}


class SeededEntropy:
    """The same bytes each time; a test's alone."""

    def __init__(self, seed):
        self.seed = str(seed).encode()
        self.calls = 0

    def __call__(self, num_bytes):
        self.calls += 1
        name = b"%s|%d" % (self.seed, self.calls)
        return hashlib.shake_256(name).digest(num_bytes)


def make_secrets(seed, num_values=NUM_VALUES, num_rows=NUM_ROWS):
    """Return the state of a prover whose secrets of every kind can be large.

    It has committed to nothing: sharing does not look at the statement.
    """
    entropy = SeededEntropy(f"secrets {seed}")

    def draw():
        return int.from_bytes(entropy(64), "little")

    return ProverState(
        statement=NormStatement(
            context=b"",
            num_values=num_values,
            row_length=512,
            squared_bound=0,
            rows=(),
            squares=b"",
            masks=b"",
        ),
        nonce_key=b"",
        values=np.array([draw() % (2**20 - 1) for _ in range(num_values)])
        - (2**19 - 1),
        squares=tuple(draw() % 2**31 for _ in range(4)),
        masks=tuple(draw() % 2**114 - 2**113 for _ in range(NUM_PROJECTIONS)),
        blindings=tuple(draw() % SCALAR_ORDER for _ in range(num_rows + 3)),
    )


def extract(suite, salt, label, ikm):
    """RFC 9180 section 4: LabeledExtract."""
    return hmac.digest(salt, b"HPKE-v1" + suite + label + ikm, "sha256")


def expand(suite, prk, label, info, size):
    """RFC 9180 section 4: LabeledExpand; at most 32 bytes are needed here."""
    labeled = size.to_bytes(2, "big") + b"HPKE-v1" + suite + label + info
    return hmac.digest(prk, labeled + b"\1", "sha256")[:size]


def derive_keys(public_key, info, ephemeral):
    """RFC 9180 sections 4.1, 5.1: the encapsulated key, the key and the nonce."""
    kem, hpke = b"KEM\x00\x20", b"HPKE\x00\x20\x00\x01\x00\x02"
    secret = X25519PrivateKey.from_private_bytes(ephemeral)
    enc = secret.public_key().public_bytes_raw()
    dh = secret.exchange(X25519PublicKey.from_public_bytes(public_key))
    eae = extract(kem, b"", b"eae_prk", dh)
    shared = expand(kem, eae, b"shared_secret", enc + public_key, 32)
    context = (
        b"\0"
        + extract(hpke, b"", b"psk_id_hash", b"")
        + extract(hpke, b"", b"info_hash", info)
    )
    prk = extract(hpke, shared, b"secret", b"")
    key = expand(hpke, prk, b"key", context, 32)
    return enc, key, expand(hpke, prk, b"base_nonce", context, 12)


def seal(plaintext, public_key, info, ephemeral):
    """RFC 9180 section 5.2: base mode, X25519, SHA-256, AES-256-GCM."""
    enc, key, nonce = derive_keys(public_key, info, ephemeral)
    return enc + AESGCM(key).encrypt(nonce, plaintext, b"")


def build_shares():
    """Return the vectors of shares in plaintext."""
    secrets = make_secrets(1)
    dealt = split_update(secrets, 3, SeededEntropy("shares"))
    good = [
        {
            "kind": "seed" if len(share.plaintext) < 100 else "full",
            "plaintext": share.plaintext.hex(),
            "commitment": share.commitment.hex(),
        }
        for share in dealt
    ]
    seed, _, full = (share.plaintext for share in dealt)
    zero = full[:HEADER_SIZE] + bytes(len(full) - HEADER_SIZE)
    order = SCALAR_ORDER.to_bytes(32, "little")
    bad = {
        "nothing": (b"", 0, "MALFORMED"),
        "header cut short": (seed[: HEADER_SIZE - 1], 0, "MALFORMED"),
        "other version": (seed.replace(b"/v1", b"/v2"), 0, "MALFORMED"),
        "unknown kind": (seed[:18] + b"\2" + seed[19:], 0, "MALFORMED"),
        "a seed that says full": (seed[:18] + b"\1" + seed[19:], 0, "MALFORMED"),
        "seed too short": (seed[:-1], 0, "MALFORMED"),
        "trailing byte after a seed": (seed + b"\0", 0, "MALFORMED"),
        "trailing byte after a full share": (full + b"\0", 2, "MALFORMED"),
        "full share too short": (full[:-1], 2, "MALFORMED"),
        "one value more": (seed[:19] + b"\6" + seed[20:], 0, "WRONG_SHAPE"),
        "one row more": (seed[:27] + b"\3" + seed[28:], 0, "WRONG_SHAPE"),
        "opening not below r": (full[:-32] + order, 2, "OUT_OF_RANGE"),
        "another's seed": (seed, 1, "WRONG_COMMITMENT"),
        "opening changed": (full[:-32] + bytes(32), 2, "WRONG_COMMITMENT"),
    }
    return {
        "num_values": NUM_VALUES,
        "num_rows": NUM_ROWS,
        "secrets": {
            "values": secrets.values.tolist(),
            "squares": list(secrets.squares),
            "masks": [str(mask) for mask in secrets.masks],
            "blindings": [
                blinding.to_bytes(32, "little").hex() for blinding in secrets.blindings
            ],
        },
        "good": good,
        "bad": [
            {
                "name": name,
                "plaintext": plaintext.hex(),
                "commitment": dealt[party].commitment.hex(),
                "reason": reason,
            }
            for name, (plaintext, party, reason) in bad.items()
        ]
        + [
            {
                "name": "zeros, whose commitment is the identity",
                "plaintext": zero.hex(),
                "commitment": (b"\xc0" + bytes(47)).hex(),
                "reason": "WRONG_COMMITMENT",
            }
        ],
    }


def build_sealed():
    """Return the vectors of sealed shares."""
    secret = bytes(range(1, 33))
    key = SealingSecretKey(secret).public_key.public_key
    plaintext = split_update(make_secrets(1), 3, SeededEntropy("shares"))[0].plaintext
    info = SealedPlace(**PLACE).compute_info(key)
    sealed = seal(plaintext, key, info, b"\x42" * 32)
    bad = {
        "nothing": (sealed[:0], {}),
        "cut short": (sealed[:-1], {}),
        "trailing byte": (sealed + b"\0", {}),
        "changed encapsulated key": (bytes([sealed[0] ^ 1]) + sealed[1:], {}),
        "encapsulated key of small order": (bytes(32) + sealed[32:], {}),
        "changed tag": (sealed[:-1] + bytes([sealed[-1] ^ 1]), {}),
        "another founding": (sealed, {"genesis": bytes(32)}),
        "another federation": (sealed, {"federation_id": "fee"}),
        "another round": (sealed, {"round": 8}),
        "another agent": (sealed, {"agent_id": "agent-2"}),
        "another party": (sealed, {"party": "party-b"}),
        "another statement": (sealed, {"statement_digest": bytes(32)}),
        "another key": (seal(plaintext, key[:-1] + b"\x11", info, b"\x42" * 32), {}),
    }
    return {
        "secret": secret.hex(),
        "public_key": key.hex(),
        "place": {
            field: value.hex() if isinstance(value, bytes) else value
            for field, value in PLACE.items()
        },
        "info": info.hex(),
        "plaintext": plaintext.hex(),
        "sealed": sealed.hex(),
        "bad": [
            {
                "name": name,
                "sealed": data.hex(),
                "place": {
                    field: value.hex() if isinstance(value, bytes) else value
                    for field, value in (PLACE | changes).items()
                },
            }
            for name, (data, changes) in bad.items()
        ],
    }


def render(vectors):
    """Return a file's text."""
    return json.dumps(vectors, indent=1) + "\n"


if __name__ == "__main__":
    for name, build in (("shares", build_shares), ("sealed", build_sealed)):
        path = FOLDER / f"{name}.json"
        path.write_text(render(build()), encoding="utf-8")
        print(path)
