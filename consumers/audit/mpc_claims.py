"""What an aggregator claims of an MPC round, leaf by leaf.

The audit and ledger nodes check the same claims: those that the rounds decider acted
upon. A claim that it refused changes nothing, so nobody looks at it.

Deliberately not here: whether they are true. `protocol.modes.mpc.checker.RoundVerifier`
says so.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from schemas import events as e


@dataclass(frozen=True, slots=True)
class CommitmentsClaim:
    """Which commitments count: the reason that was given by agent, empty if it does."""

    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartialClaim:
    """That a party's part of the sum is wrong, and why."""

    party: str
    reason: str


@dataclass(frozen=True, slots=True)
class SumClaim:
    """The sum that opens the commitments, and the model that follows."""

    published: e.AggregatePublished


Claim: TypeAlias = CommitmentsClaim | PartialClaim | SumClaim


def read_claims(event: e.LedgerEvent, facts: Sequence[e.Fact]) -> list[Claim]:
    """Return what a leaf of an MPC round claims.

    Args:
        event: The leaf's.
        facts: What the deciders concluded from it.
    """
    claims: list[Claim] = []
    if isinstance(event, e.UpdatesChecked):
        reasons = {
            fact.agent_id: getattr(fact, "reason", "")
            for fact in facts
            if isinstance(fact, e.ContributionAccepted | e.ContributionRejected)
        }
        if reasons:
            claims.append(CommitmentsClaim(reasons))
    for fact in facts:
        if isinstance(fact, e.PartialRejected):
            claims.append(PartialClaim(fact.party, fact.reason))
        elif isinstance(fact, e.AggregatePublished):
            claims.append(SumClaim(fact))
    return claims
