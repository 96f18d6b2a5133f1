"""Who is drawn for a round: a lottery that anyone can repeat from the log."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

COHORT_DOMAIN: Final = b"folkmoot/cohort/v1\n"


def compute_cohort_seed(
    previous_block_hash: bytes, federation_id: str, round_number: int
) -> bytes:
    """Return the seed of a round's draw, 32 bytes.

    Args:
        previous_block_hash: Hash of the block before the one with the request, 32
            bytes: it is fixed before anyone can know which block the request enters.
        federation_id: The federation.
        round_number: The round, from 1.

    Source: DESIGN.md section 4. Until checkpoints are final by quorum, whoever runs
    the sequencer can influence the seed, and so can the operator on a quiet log, who
    may add records until the seed suits; SECURITY.md says so.
    """
    return hashlib.sha256(
        COHORT_DOMAIN
        + previous_block_hash
        + round_number.to_bytes(8, "big")
        + federation_id.encode()
    ).digest()


def draw_cohort(seed: bytes, agent_ids: Iterable[str], size: int) -> tuple[str, ...]:
    """Draw at most ``size`` agents without replacement.

    Each agent's ticket is SHA-256(seed || agent_id); the lowest tickets win.

    Returns:
        The agents drawn, in ascending order of agent_id.
    """

    def ticket(agent_id: str) -> bytes:
        return hashlib.sha256(seed + agent_id.encode()).digest()

    return tuple(sorted(sorted(agent_ids, key=ticket)[:size]))
