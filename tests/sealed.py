"""The set that a round was sealed with, as its facts show it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from protocol.contributions import Contribution
from schemas import events as e


def list_contributions(
    events: Iterable[object], sealed: e.RoundSealed
) -> tuple[Contribution, ...]:
    """Return the contributions of a sealed round, and see that it has their digest.

    Args:
        events: What is on the log, or the facts of a run, in their order.
        sealed: The fact.
    """
    found: dict[str, Contribution] = {}
    for event in events:
        if event == sealed:
            break
        if isinstance(event, e.ContributionAccepted) and event.round == sealed.round:
            found[event.agent_id] = Contribution(
                agent_id=event.agent_id,
                update_sha256=event.update_sha256,
                num_examples=event.num_examples,
            )
        elif (
            isinstance(event, e.ContributionRejected)
            and event.round == sealed.round
            and event.reason in {"REVOKED_AGENT", "FAR_FROM_OTHERS"}
        ):
            found.pop(event.agent_id, None)
    contributions = tuple(found[agent_id] for agent_id in sorted(found))
    text = b"folkmoot/contributions/v1\n" + b"".join(
        c.update_sha256
        + c.num_examples.to_bytes(8, "big")
        + bytes([len(c.agent_id)])
        + c.agent_id.encode()
        for c in contributions
    )
    assert sealed.contributions_sha256 == hashlib.sha256(text).digest()
    assert sealed.num_contributions == len(contributions)
    assert sealed.num_examples == sum(c.num_examples for c in contributions)
    return contributions


def list_sealed(facts: Iterable[Iterable[object]]) -> tuple[Contribution, ...]:
    """Return the contributions of the round that was sealed last in a run."""
    said = [fact for some in facts for fact in some]
    sealed = [fact for fact in said if isinstance(fact, e.RoundSealed)]
    return list_contributions(said, sealed[-1])
