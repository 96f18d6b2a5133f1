"""Checks that no two sums that a log shows opened overlap.

A sum of aggregation `MPC` is open once every party has given its part, whatever became
of the round. For one base model no agent may be in two of them: their difference would
cover fewer agents than a party may sum (ADR 0032). This goes by what the log says, not
by what should be on it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from adapters.wording import counted
from consumers.audit.report import Finding, FindingCode, Place, Rechecked, Report
from protocol.contributions import WITHDRAWN, Contribution
from protocol.modes.mpc.configuration import list_parties
from protocol.modes.mpc.party_memory import (
    Known,
    PartyRefusesError,
    Summed,
    demand_not_left,
    find_summed_agents,
    remember,
)
from protocol.modes.problem import Fetch
from protocol.persistent import PersistentMap
from protocol.round_view import RoundView
from schemas import events as e


def recheck(view: RoundView, total: NDArray[np.int64], fetch: Fetch) -> Rechecked:
    """Do as `consumers.audit.modes.second_opinion.recheck`."""
    # It takes a while to load, and few ask for it.
    from consumers.audit.modes import second_opinion  # noqa: PLC0415

    return second_opinion.recheck(view, total, fetch)


@dataclass(slots=True, kw_only=True)
class OpenedSums:
    """The sums opened so far; see `consumers.audit.modes.Watch`.

    Attributes:
        accepted: Contributions of the round in progress, by agent.
        sealed: The sum that the log asks for now; None once it is open.
        given: Parties that gave their part of it.
        known: Opened sums, as a party remembers them.
    """

    accepted: PersistentMap[str, Contribution] = field(default_factory=PersistentMap)
    sealed: Summed | None = None
    given: frozenset[str] = frozenset()
    known: tuple[Known, ...] = ()

    def follow(
        self, event: e.LedgerEvent, config: e.FederationConfigured | None, place: Place
    ) -> Finding | None:
        """Follow a leaf; returns why a sum that is open now should not be."""
        problem = "" if config is None else self._follow(event, list_parties(config))
        return (
            Finding(
                code=FindingCode.SUMS_OVERLAP,
                place=place,
                message="every party gave its part of a sum that should not be open",
                expected="agents that are in no other sum over this base model",
                found=problem,
            )
            if problem
            else None
        )

    def list_notes(self, report: Report) -> Iterator[str]:
        """Yield what rests on the word of all parties together."""
        if report.facts[e.ComparisonStarted.__name__]:
            yield (
                "Which updates are far apart is the word of all parties together: it "
                "cannot be computed again."
            )

    def _follow(self, event: e.LedgerEvent, parties: tuple[e.Party, ...]) -> str:
        if not parties:
            return ""
        match event:
            case e.RoundStarted():
                self.accepted, self.sealed = PersistentMap(), None
            case e.ContributionAccepted(agent_id=agent_id):
                contribution = Contribution(
                    agent_id=agent_id,
                    update_sha256=event.update_sha256,
                    num_examples=event.num_examples,
                )
                self.accepted = self.accepted.insert(agent_id, contribution)
            case e.ContributionRejected(agent_id=agent_id, reason=reason) if (
                reason in WITHDRAWN
            ):
                self.accepted = self.accepted.discard(agent_id)
            case e.RoundSealed():
                contributions = (item for _, item in sorted(self.accepted.items()))
                self.sealed, self.given = Summed.of(event, contributions), frozenset()
            case e.PartialAggregateSubmitted(party=party, round=number) if (
                self.sealed is not None and number == self.sealed.round
            ):
                self.given |= {party}
                if self.given >= {party.name for party in parties}:
                    return self._open(self.sealed)
            case _:
                pass
        return ""

    def _open(self, asked: Summed) -> str:
        self.sealed = None
        known = self.known
        self.known = tuple(remember(known, asked))
        again = asked.agents & find_summed_agents(
            asked.federation_id, asked.base_model, known
        )
        if again:
            return (
                f"{counted(len(again), 'agent')}, {min(again)} first, in another "
                f"opened sum over base model {asked.base_model.hex()}"
            )
        try:
            demand_not_left(asked, known)
        except PartyRefusesError as error:
            return error.detail
        return ""
