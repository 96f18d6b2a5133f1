"""Ed25519, the one signature scheme for keys of people, agents and nodes.

A thin, typed layer over libsodium. It refuses what libsodium refuses, which is more
than RFC 8032 demands: keys and commitments of small order, non-canonical points, and
scalars outside the group order. So a signature has only one valid form, and no key
"signs" every message.

Deliberately not here: key generation (needs entropy) and key storage (needs I/O);
adapters do both.
"""

from __future__ import annotations

from typing import Final

from nacl import bindings
from nacl.exceptions import BadSignatureError

SEED_SIZE: Final = 32  # RFC 8032 section 5.1.5: the private key
PUBLIC_KEY_SIZE: Final = 32  # RFC 8032 section 5.1.5
SIGNATURE_SIZE: Final = 64  # RFC 8032 section 5.1.6: R || S


class InvalidSignatureError(ValueError):
    """The bytes are not this key's signature over this message."""


class SigningKey:
    """An Ed25519 private key.

    Printing it, even in logs and tracebacks, shows only the public key. Two keys are
    equal if they come from the same seed.

    Args:
        seed: 32 bytes of entropy (RFC 8032 section 5.1.5). **Secret.**

    Raises:
        ValueError: the seed is not 32 bytes.
    """

    __slots__ = ("_public_key", "_secret_key")

    def __init__(self, seed: bytes) -> None:
        if len(seed) != SEED_SIZE:
            # The length only: a seed of the wrong size is still somebody's secret.
            raise ValueError(f"an Ed25519 seed is {SEED_SIZE} bytes, not {len(seed)}")
        # libsodium's secret key is seed || public key, so that signing need not
        # derive the public key again.
        self._public_key, self._secret_key = bindings.crypto_sign_seed_keypair(seed)

    def __repr__(self) -> str:
        """Show which key it is, never the key itself."""
        return f"SigningKey(<secret>, public_key={self._public_key.hex()})"

    def __eq__(self, other: object) -> bool:
        """Compare by public key; each has one seed."""
        if not isinstance(other, SigningKey):
            return NotImplemented
        return self._public_key == other.public_key

    def __hash__(self) -> int:
        """Hash the public key, so that no secret influences a table."""
        return hash(self._public_key)

    @property
    def public_key(self) -> bytes:
        """The public key, 32 bytes."""
        return self._public_key

    @property
    def seed(self) -> bytes:
        """The seed, 32 bytes, for writing key files.

        **Secret:** the result.
        """
        return self._secret_key[:SEED_SIZE]

    def sign(self, message: bytes) -> bytes:
        """Return the signature over a message, 64 bytes (RFC 8032 section 5.1.6).

        Deterministic: the same message gives the same bytes.
        """
        return bindings.crypto_sign(message, self._secret_key)[:SIGNATURE_SIZE]


def verify_signature(public_key: bytes, message: bytes, signature: bytes) -> None:
    """Verify a signature (RFC 8032 section 5.1.7, with libsodium's stricter rules).

    Args:
        public_key: The expected signer's key, 32 bytes.
        message: The expected message, any length.
        signature: R || S, 64 bytes.

    Raises:
        InvalidSignatureError: it is not this key's signature over this message; also
            when key or signature has a wrong length or a form that libsodium refuses.
            Always bad input.
    """
    # libsodium gets bare pointers, so lengths are checked first: a short key would be
    # read beyond its end, and as signature and message travel joined, a signature of 63
    # bytes would borrow the message's first.
    if len(public_key) != PUBLIC_KEY_SIZE:
        msg = f"a public key is {PUBLIC_KEY_SIZE} bytes, not {len(public_key)}"
        raise InvalidSignatureError(msg)
    if len(signature) != SIGNATURE_SIZE:
        msg = f"a signature is {SIGNATURE_SIZE} bytes, not {len(signature)}"
        raise InvalidSignatureError(msg)
    try:
        bindings.crypto_sign_open(signature + message, public_key)
    except BadSignatureError:
        msg = f"not a signature of key {public_key.hex()} over this message"
        raise InvalidSignatureError(msg) from None
