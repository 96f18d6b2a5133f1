"""What is signed, and how events are identified.

A signature is valid in one log. Authors sign the event's single-object bytes and the
*genesis hash* of the log they address: SHA-256, with a domain, over the single-object
bytes of the `FederationConfigured` that founded it. That event has a nonce, so two
geneses differ in their hash even with identical parameters. What is in no log yet, the
genesis itself, is signed with `NO_GENESIS` (ADR 0029).

Ids are derived from content, so a redelivered event keeps its id, and nobody needs to
remember which ids were given out (DESIGN.md section 3).
"""

from __future__ import annotations

import hashlib
from typing import Final

from ledger.signing import SigningKey, verify_signature
from schemas.events import (
    Event,
    EventRejected,
    Fact,
    FederationConfigured,
    Heartbeat,
)

EVENT_DOMAIN: Final = b"folkmoot/event/v1\n"
GENESIS_DOMAIN: Final = b"folkmoot/genesis/v1\n"
INPUT_ID_DOMAIN: Final = b"folkmoot/input/v1\n"
FACT_ID_DOMAIN: Final = b"folkmoot/fact/v1\n"

SIGNATURE_HEADER: Final = "moot-signature"
"""Kafka header with the author's 64-byte Ed25519 signature."""
EVENT_ID_HEADER: Final = "moot-event-id"
"""Kafka header with the 32-byte event id, for people and tools; never trusted."""
TRACEPARENT_HEADER: Final = "traceparent"
"""Kafka header with the W3C trace context."""

NO_GENESIS: Final = bytes(32)
"""Replaces the genesis hash in signatures made before there is a log, or outside any: a
genesis, a heartbeat, and a refusal that names no known federation. Only a genesis is
admitted with it."""


def compute_genesis_hash(event_bytes: bytes) -> bytes:
    """Return what tells a federation's log from every other, 32 bytes.

    Args:
        event_bytes: Single-object bytes of the `FederationConfigured` that founded it,
            as received.
    """
    return hashlib.sha256(GENESIS_DOMAIN + event_bytes).digest()


def choose_genesis(event: Event, genesis: bytes) -> bytes:
    """Return the genesis hash that an event's signature covers, 32 bytes."""
    is_outside = isinstance(event, FederationConfigured | Heartbeat) or (
        isinstance(event, EventRejected) and not event.federation_id
    )
    return NO_GENESIS if is_outside else genesis


def sign_event(key: SigningKey, genesis: bytes, event_bytes: bytes) -> bytes:
    """Return the author's signature over an event, 64 bytes.

    Args:
        key: The author's key.
        genesis: Genesis hash of its log, 32 bytes; `NO_GENESIS` for the genesis itself.
        event_bytes: The event's single-object bytes.
    """
    return key.sign(EVENT_DOMAIN + genesis + event_bytes)


def verify_event(
    public_key: bytes, genesis: bytes, event_bytes: bytes, signature: bytes
) -> None:
    """Check an author's signature over an event; arguments as for `sign_event`.

    Raises:
        InvalidSignatureError: it is not this key's signature over these bytes in this
            log.
    """
    verify_signature(public_key, EVENT_DOMAIN + genesis + event_bytes, signature)


def compute_input_id(author_public_key: bytes, event_bytes: bytes) -> bytes:
    """Return an input's id: 32 bytes over its author and its body."""
    return hashlib.sha256(INPUT_ID_DOMAIN + author_public_key + event_bytes).digest()


def compute_fact_id(fact: Fact) -> bytes:
    """Return a fact's id: 32 bytes over its cause and its place among the facts.

    It covers the event's name because two deciders may conclude from one input.
    """
    name = type(fact).__name__.encode()
    place = fact.output_index.to_bytes(4, "big")
    return hashlib.sha256(FACT_ID_DOMAIN + name + b"\n" + fact.cause + place).digest()
