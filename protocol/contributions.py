"""The contributions of a sealed round, and their digest.

`RoundSealed` holds their number and digest, as a list of ten thousand fits no event.
Which they are follows from the round's earlier facts: every agent accepted
(``ContributionAccepted``) and not rejected since for one of `WITHDRAWN`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from schemas.reasons import Reason

CONTRIBUTIONS_DOMAIN: Final = b"folkmoot/contributions/v1\n"
WITHDRAWN: Final = frozenset({Reason.REVOKED_AGENT, Reason.FAR_FROM_OTHERS})
"""Why an accepted contribution may be rejected later. An agent refused for anything
else once accepted keeps its contribution."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Contribution:
    """A contribution as counted.

    Attributes:
        agent_id: The agent.
        update_sha256: Digest of the blob of its update, or of the commitments to it.
        num_examples: Its aggregation weight.
        num_steps: Optimiser steps that it says it took; None if the strategy does not
            count them.
    """

    agent_id: str
    update_sha256: bytes
    num_examples: int
    num_steps: int | None = None


def compute_contributions_digest(contributions: Iterable[Contribution]) -> bytes:
    r"""Return the digest of a round's contributions, 32 bytes.

    SHA-256 over ``folkmoot/contributions/v1\\n`` and, for each, its update_sha256, its
    num_examples as 8 bytes, the length of its agent_id as one byte, and its agent_id;
    numbers are big-endian. Steps are not in it: their weighted sum is in `RoundSealed`.

    Args:
        contributions: In ascending order of agent_id.
    """
    digest = hashlib.sha256(CONTRIBUTIONS_DOMAIN)
    for contribution in contributions:
        name = contribution.agent_id.encode()
        digest.update(
            contribution.update_sha256
            + contribution.num_examples.to_bytes(8, "big")
            + len(name).to_bytes(1, "big")
            + name
        )
    return digest.digest()
