"""What an aggregator claims about a round, leaf by leaf.

The audit and ledger nodes check the same claims: those that the rounds decider acted
on. A claim that it refused changes nothing and is not checked.

Deliberately not here: whether they are true. The round's checker decides that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from protocol.modes import find_refused_part
from schemas import events as e


@dataclass(frozen=True, slots=True)
class AnswersClaim:
    """Which answers count: the reason given by agent, empty if it counts."""

    reasons: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class PartClaim:
    """That an author's part of the result is wrong, and why."""

    author: str
    reason: str


@dataclass(frozen=True, slots=True)
class ResultClaim:
    """The sum, and the model that follows."""

    published: e.AggregatePublished


Claim: TypeAlias = AnswersClaim | PartClaim | ResultClaim


def read_claims(event: e.LedgerEvent, facts: Sequence[e.Fact]) -> list[Claim]:
    """Return what a leaf claims about the round in progress, given its facts."""
    claims: list[Claim] = []
    if isinstance(event, e.UpdatesChecked):
        reasons = {
            fact.agent_id: getattr(fact, "reason", "")
            for fact in facts
            if isinstance(fact, e.ContributionAccepted | e.ContributionRejected)
        }
        if reasons:
            claims.append(AnswersClaim(reasons))
    for fact in facts:
        part = find_refused_part(fact)
        if part is not None:
            claims.append(PartClaim(part.author, part.reason))
        elif isinstance(fact, e.AggregatePublished):
            claims.append(ResultClaim(fact))
    return claims
