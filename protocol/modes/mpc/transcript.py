"""Challenges that nobody chooses: a proof's messages, hashed (Fiat and Shamir).

Prover and verifier feed the same messages in the same order and draw the same
challenges; changing a message changes every later challenge. The state is 64 bytes, and
each step replaces it:

    append:     SHA-512(state ‖ 00 ‖ |label| ‖ label ‖ |data| ‖ data)
    challenge:  SHA-512(state ‖ 01 ‖ |label| ‖ label), which is also the challenge,
                or its first 32 bytes a seed

with lengths as 8 bytes, little-endian, and the domain appended first to a state of
zeros.
"""

from __future__ import annotations

import hashlib
from typing import Final

from protocol.modes.mpc.commitments import SCALAR_ORDER
from protocol.modes.mpc.projections import SEED_SIZE

STATE_SIZE: Final = 64

_APPEND: Final = b"\x00"
_CHALLENGE: Final = b"\x01"


def _frame(data: bytes) -> bytes:
    return len(data).to_bytes(8, "little") + data


class Transcript:
    """The messages of one proof so far."""

    __slots__ = ("state",)

    def __init__(self, domain: bytes) -> None:
        """Begin with what tells this protocol from all others."""
        self.state = bytes(STATE_SIZE)
        """A digest of everything so far, 64 bytes."""
        self.append(b"domain", domain)

    def append(self, label: bytes, data: bytes) -> None:
        """Add a message."""
        framed = _APPEND + _frame(label) + _frame(data)
        self.state = hashlib.sha512(self.state + framed).digest()

    def draw_challenge(self, label: bytes) -> int:
        """Return a challenge, 1 ≤ e < r, within 2^-257 of uniform."""
        self._draw(label)
        # Never zero, so that it can always be divided by.
        return 1 + int.from_bytes(self.state, "little") % (SCALAR_ORDER - 1)

    def draw_seed(self, label: bytes) -> bytes:
        """Return a challenge of 32 bytes, to be expanded."""
        self._draw(label)
        return self.state[:SEED_SIZE]

    def _draw(self, label: bytes) -> None:
        framed = _CHALLENGE + _frame(label)
        self.state = hashlib.sha512(self.state + framed).digest()
