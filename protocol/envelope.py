"""What is signed, and what an event is called.

Ids are derived from content, so a redelivered event has the id it had before and
nothing needs to remember which ids it gave out (DESIGN.md section 3).
"""

from __future__ import annotations

import hashlib
from typing import Final

from ledger.signing import SigningKey, verify_signature
from schemas.events import Fact

EVENT_DOMAIN: Final = b"folkmoot/event/v1\n"
INPUT_ID_DOMAIN: Final = b"folkmoot/input/v1\n"
FACT_ID_DOMAIN: Final = b"folkmoot/fact/v1\n"

SIGNATURE_HEADER: Final = "moot-signature"
"""Kafka header with the author's 64-byte Ed25519 signature."""
EVENT_ID_HEADER: Final = "moot-event-id"
"""Kafka header with the 32-byte event id: for people and tools; never trusted."""
TRACEPARENT_HEADER: Final = "traceparent"
"""Kafka header with the W3C trace context."""


def sign_event(key: SigningKey, event_bytes: bytes) -> bytes:
    """Return the author's signature over an event's single-object bytes, 64 bytes."""
    return key.sign(EVENT_DOMAIN + event_bytes)


def verify_event(public_key: bytes, event_bytes: bytes, signature: bytes) -> None:
    """Check an author's signature over an event's single-object bytes.

    Raises:
        InvalidSignatureError: it is not this key's signature over these bytes.
    """
    verify_signature(public_key, EVENT_DOMAIN + event_bytes, signature)


def compute_input_id(author_public_key: bytes, event_bytes: bytes) -> bytes:
    """Return the id of an input: 32 bytes over its author and its body."""
    return hashlib.sha256(INPUT_ID_DOMAIN + author_public_key + event_bytes).digest()


def compute_fact_id(fact: Fact) -> bytes:
    """Return the id of a fact: 32 bytes over its cause and its place among the facts.

    The event's name is in it because two deciders may conclude from one input.
    """
    name = type(fact).__name__.encode()
    place = fact.output_index.to_bytes(4, "big")
    return hashlib.sha256(FACT_ID_DOMAIN + name + b"\n" + fact.cause + place).digest()
