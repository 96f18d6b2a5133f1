"""Facts of a round, with the fields they share: which leaf they follow from."""

from __future__ import annotations

from typing import Any

from protocol.decider import Sequenced
from schemas import events as e
from schemas.reasons import Reason


def name_cause(leaf: Sequenced) -> dict[str, Any]:
    """Return the fields with which a fact names the leaf that it follows from."""
    return {
        "cause": leaf.leaf_hash,
        "cause_leaf_index": leaf.leaf_index,
        "output_index": 0,  # `step` numbers the facts
        "federation_id": leaf.event.federation_id,
    }


def reject(
    leaf: Sequenced, agent_id: str, number: int, reason: str, detail: str
) -> e.ContributionRejected:
    """Return that something an agent said does not count, or no longer does."""
    return e.ContributionRejected(
        round=number,
        agent_id=agent_id,
        update_leaf_index=leaf.leaf_index,
        reason=reason,
        detail=detail,
        **name_cause(leaf),
    )


def refuse_claim(leaf: Sequenced, number: int, detail: str) -> e.ClaimRejected:
    """Return that a round awaits no such claim."""
    return e.ClaimRejected(
        round=number, reason=Reason.UNEXPECTED_CLAIM, detail=detail, **name_cause(leaf)
    )
