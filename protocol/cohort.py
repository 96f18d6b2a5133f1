"""Who is drawn for a round: a lottery that anyone can repeat from the log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from functools import partial
from typing import Final

from ledger.checkpoint import Checkpoint
from schemas.events import RoundStarted

COHORT_DOMAIN: Final = b"folkmoot/cohort/v1\n"
CHECKPOINT_DOMAIN: Final = b"folkmoot/cohort-checkpoint/v1\n"


def compute_checkpoint_entropy(checkpoint: Checkpoint) -> bytes:
    """Return a final checkpoint's contribution to the draw, 32 bytes.

    Args:
        checkpoint: Origin, size and root, which its log and its cosigners signed; not
            the signatures, among which a collector may choose.
    """
    return hashlib.sha256(CHECKPOINT_DOMAIN + checkpoint.to_text().encode()).digest()


def compute_cohort_seed(entropy: bytes, federation_id: str, round_number: int) -> bytes:
    """Return the seed of a round's draw, 32 bytes.

    Args:
        entropy: 32 bytes fixed before the round was requested: see `protocol.rounds`.
        federation_id: The federation.
        round_number: The round, from 1.

    Source: DESIGN.md section 4, ADR 0013.
    """
    return hashlib.sha256(
        COHORT_DOMAIN
        + entropy
        + round_number.to_bytes(8, "big")
        + federation_id.encode()
    ).digest()


def compute_ticket(seed: bytes, agent_id: str) -> bytes:
    """Return an agent's ticket for a draw, 32 bytes: SHA-256(seed || agent_id)."""
    return hashlib.sha256(seed + agent_id.encode()).digest()


def draw_cohort(seed: bytes, agent_ids: Iterable[str], size: int) -> tuple[str, ...]:
    """Draw at most ``size`` agents without replacement.

    The lowest tickets win (`compute_ticket`).

    Returns:
        The agents drawn, in ascending order of their tickets.
    """
    return tuple(sorted(agent_ids, key=partial(compute_ticket, seed))[:size])


def is_drawn(started: RoundStarted, agent_id: str) -> bool:
    """Return whether an agent eligible for a round was drawn.

    It is eligible if admitted, and not revoked, when the round was requested. A later
    one may hold a winning ticket too: the deciders refuse its answer.
    """
    return compute_ticket(started.cohort_seed, agent_id) <= started.last_ticket
