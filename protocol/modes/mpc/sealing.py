"""Shares sealed to their party: HPKE, bound to the one place where they count.

A sealed share is in a public store; only its party can open it. HPKE's `info` names the
log, federation, round, agent, party, the party's key and the digest of the agent's
statement, so that a sealed share taken elsewhere does not open. In bytes:

    "folkmoot-sealed-share/v1" 0A
    hash of the log's genesis             32 bytes
    federation_id, agent_id, party        each: length (u16), UTF-8
    the party's sealing key               length (u16), bytes
    round                                 u64
    statement digest                      32 bytes

Integers are big-endian, as in HPKE itself. A sealed share is HPKE's output: the
encapsulated key, then the ciphertext.

Two suites, told apart by the length of the party's key:

- 32 bytes: DHKEM(X25519, HKDF-SHA256), HKDF-SHA256, AES-256-GCM (RFC 9180).
- 1,216 bytes: the same with the KEM MLKEM768-X25519 (draft-ietf-hpke-pq), for shares
  that must stay secret from those who store them until they have a quantum computer.

AES-GCM does not commit to its key: the author of a blob can have it open under two keys
or two `info`. So everything that decides how a blob opens, and its digest, is hashed
into the projection that checks its content
(`protocol.modes.mpc.checker.compute_context`), and nothing in `info` may follow from
that projection.

Base mode does not authenticate the sender: the event that refers to the sealed share is
signed. It hides a share's content, not its length, which is public anyway.

The library draws its ephemeral key from the operating system itself. So sealing is the
one act here whose bytes no argument determines; opening is a pure function.
"""

from __future__ import annotations

import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import (
    MLKEM768PrivateKey,
    MLKEM768PublicKey,
)
from cryptography.hazmat.primitives.asymmetric.x25519 import (
    X25519PrivateKey,
    X25519PublicKey,
)
from cryptography.hazmat.primitives.hpke import (
    AEAD,
    KDF,
    KEM,
    MLKEM768X25519PrivateKey,
    MLKEM768X25519PublicKey,
    Suite,
)

SEALING_DOMAIN: Final = b"folkmoot-sealed-share/v1\n"
MASK_KEY_DOMAIN: Final = b"folkmoot-mask-key/v1\n"
X25519_KEY_SIZE: Final = 32  # RFC 7748
MLKEM_KEY_SIZE: Final = 1184  # FIPS 203, table 3: ML-KEM-768
HYBRID_KEY_SIZE: Final = MLKEM_KEY_SIZE + X25519_KEY_SIZE  # = 1,216
SECRET_SIZE: Final = 32  # RFC 9180 section 7.1; draft-ietf-hpke-pq: the seed
DIGEST_SIZE: Final = 32

_FIELD_PRIME: Final = 2**255 - 19  # RFC 7748 section 4.1
_MLKEM_SEED_SIZE: Final = 64  # FIPS 203: d || z
_SUITE: Final = Suite(KEM.X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)
_HYBRID_SUITE: Final = Suite(KEM.MLKEM768_X25519, KDF.HKDF_SHA256, AEAD.AES_256_GCM)


class InvalidSealingKeyError(ValueError):
    """The bytes are not a key to which shares can be sealed, or that opens them."""


class SealError(ValueError):
    """The bytes are not a share sealed to this key in this place. Always bad input."""


def _parse_x25519(data: bytes) -> X25519PublicKey:
    if int.from_bytes(data, "little") >= _FIELD_PRIME:
        msg = "an X25519 key that is not below 2^255 - 19: every key has one spelling"
        raise InvalidSealingKeyError(msg)
    key = X25519PublicKey.from_public_bytes(data)
    try:
        # Any scalar works: points of small order give zero, whatever the multiplier.
        X25519PrivateKey.from_private_bytes(b"\1" * X25519_KEY_SIZE).exchange(key)
    except ValueError:
        msg = "an X25519 key of small order: anybody could open what is sealed to it"
        raise InvalidSealingKeyError(msg) from None
    return key


def _parse_public_key(data: bytes) -> X25519PublicKey | MLKEM768X25519PublicKey:
    if len(data) == X25519_KEY_SIZE:
        return _parse_x25519(data)
    if len(data) == HYBRID_KEY_SIZE:
        try:
            mlkem = MLKEM768PublicKey.from_public_bytes(data[:MLKEM_KEY_SIZE])
        except ValueError:
            msg = "an ML-KEM-768 key with a coefficient that is not below 3329"
            raise InvalidSealingKeyError(msg) from None
        return MLKEM768X25519PublicKey(mlkem, _parse_x25519(data[MLKEM_KEY_SIZE:]))
    raise InvalidSealingKeyError(
        f"a sealing key is {X25519_KEY_SIZE} bytes (X25519) or {HYBRID_KEY_SIZE} "
        f"(ML-KEM-768, X25519), not {len(data)}"
    )


@dataclass(frozen=True, slots=True)
class SealingKey:
    """The key to which a party's shares are sealed.

    Attributes:
        public_key: 32 bytes of X25519, or 1,216 of ML-KEM-768 and X25519.

    Raises:
        InvalidSealingKeyError: the bytes are not such a key, or one of small order.
    """

    public_key: bytes

    def __post_init__(self) -> None:
        _parse_public_key(self.public_key)


class SealingSecretKey:
    """The key with which a party opens what is sealed to it.

    Printing it, even in logs and tracebacks, shows only the public key.

    Args:
        secret: 32 bytes of entropy. **Secret.**
        is_hybrid: True for ML-KEM-768 and X25519, False for X25519 alone.

    Raises:
        InvalidSealingKeyError: the secret is not 32 bytes.
    """

    __slots__ = ("_is_hybrid", "_key", "_public_key", "_secret")

    def __init__(self, secret: bytes, *, is_hybrid: bool = False) -> None:
        if len(secret) != SECRET_SIZE:
            # The length only: a secret of the wrong size is still somebody's.
            msg = f"a sealing secret is {SECRET_SIZE} bytes, not {len(secret)}"
            raise InvalidSealingKeyError(msg)
        self._secret = secret
        self._is_hybrid = is_hybrid
        self._key: X25519PrivateKey | MLKEM768X25519PrivateKey
        if is_hybrid:
            # draft-ietf-hpke-pq: both halves are expanded from the one seed.
            seeds = hashlib.shake_256(secret).digest(_MLKEM_SEED_SIZE + X25519_KEY_SIZE)
            mlkem = MLKEM768PrivateKey.from_seed_bytes(seeds[:_MLKEM_SEED_SIZE])
            x25519 = X25519PrivateKey.from_private_bytes(seeds[_MLKEM_SEED_SIZE:])
            self._key = MLKEM768X25519PrivateKey(mlkem, x25519)
            public_key = (
                mlkem.public_key().public_bytes_raw()
                + x25519.public_key().public_bytes_raw()
            )
        else:
            self._key = X25519PrivateKey.from_private_bytes(secret)
            public_key = self._key.public_key().public_bytes_raw()
        self._public_key = SealingKey(public_key)

    def __repr__(self) -> str:
        """Show which key it is, never the key itself."""
        shown = self._public_key.public_key[-X25519_KEY_SIZE:].hex()
        return f"SealingSecretKey(<secret>, public_key=…{shown})"

    @property
    def public_key(self) -> SealingKey:
        """The key to which shares are sealed."""
        return self._public_key

    @property
    def secret(self) -> bytes:
        """The secret, 32 bytes, for writing key files.

        **Secret:** the result.
        """
        return self._secret

    def derive_mask_key(self) -> bytes:
        """Return the key for the party's own masks, 32 bytes.

        HMAC-SHA256 of `MASK_KEY_DOMAIN` under the secret: independent of every other
        use of it.

        **Secret:** the result.
        """
        return hmac.digest(self._secret, MASK_KEY_DOMAIN, "sha256")

    def open_sealed(self, sealed: bytes, info: bytes) -> bytes:
        """Return what was sealed to this key with this `info`.

        **Secret:** the result.

        Raises:
            SealError: something else was, or nothing.
        """
        suite = _HYBRID_SUITE if self._is_hybrid else _SUITE
        try:
            return suite.decrypt(sealed, self._key, info)
        except InvalidTag:
            msg = "not sealed to this key, or not for this place, or changed since"
            raise SealError(msg) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedPlace:
    """Where a sealed share counts; it opens nowhere else.

    Attributes:
        genesis: Hash of the log's genesis, 32 bytes.
        federation_id: The federation.
        round: The round's number, 0 to 2^64-1.
        agent_id: The agent whose update it is a share of.
        party: Name of the receiving party.
        statement_digest: SHA-256 of the agent's statement, 32 bytes: the commitments,
            at least.

    Raises:
        ValueError: a hash of another length, a round out of range, or a name of 65,536
            bytes or more; a bug.
    """

    genesis: bytes
    federation_id: str
    round: int
    agent_id: str
    party: str
    statement_digest: bytes

    def __post_init__(self) -> None:
        for digest in (self.genesis, self.statement_digest):
            if len(digest) != DIGEST_SIZE:
                raise ValueError(f"a hash is {DIGEST_SIZE} bytes, not {len(digest)}")
        self.compute_info(b"")

    def compute_info(self, public_key: bytes) -> bytes:
        """Return HPKE's `info` for a share sealed to this key."""
        texts = (self.federation_id, self.agent_id, self.party)
        try:
            return (
                SEALING_DOMAIN
                + self.genesis
                + b"".join(_prefixed(text.encode()) for text in texts)
                + _prefixed(public_key)
                + self.round.to_bytes(8, "big")
                + self.statement_digest
            )
        except OverflowError:
            msg = f"round {self.round} or a name is too long to seal anything for"
            raise ValueError(msg) from None


def seal_share(plaintext: bytes, key: SealingKey, place: SealedPlace) -> bytes:
    """Return a share that only its party can open, and only for its place.

    Args:
        plaintext: The share, in the encoding of `protocol.modes.mpc.shares`.
            **Secret.**
        key: The party's key.
        place: Where it counts.

    Returns:
        48 bytes more than the plaintext, or 1,136 more with ML-KEM-768. Different bytes
        each time.
    """
    suite = _SUITE if len(key.public_key) == X25519_KEY_SIZE else _HYBRID_SUITE
    info = place.compute_info(key.public_key)
    return suite.encrypt(plaintext, _parse_public_key(key.public_key), info)


def open_share(sealed: bytes, key: SealingSecretKey, place: SealedPlace) -> bytes:
    """Return the plaintext of a sealed share.

    Args:
        sealed: The agent's blob; untrusted.
        key: The party's key.
        place: Where it must count.

    Returns:
        The plaintext; anybody may have sealed it, so it is untrusted too. **Secret.**

    Raises:
        SealError: it is not sealed to this key, or not for this place.
    """
    return key.open_sealed(sealed, place.compute_info(key.public_key.public_key))


def _prefixed(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data
