"""An MPC round as the log records it, and who must act next."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from protocol.contributions import Contribution
from protocol.modes.mode import Phase, find_missing
from protocol.modes.mpc.configuration import get_mpc
from protocol.modes.mpc.phases import (
    CLOSED,
    COMPARISON,
    PARTS,
    get_closed,
    get_comparison_started,
)
from protocol.persistent import PersistentMap
from protocol.round_view import RoundView
from schemas import events as e

SKETCH_SEED_DOMAIN: Final = b"folkmoot/sketch-seed/v1\n"


class Committed(NamedTuple):
    """A commitment that counts, and its place."""

    leaf_index: int
    event: e.UpdateCommitted


class Partial(NamedTuple):
    """A party's part of the sum, and its place."""

    leaf_index: int
    blob: e.BlobRef


class Owed(StrEnum):
    """What a round waits for from a party."""

    LINKS = "LINKS"
    PARTIAL = "PARTIAL"
    RESULT = "RESULT"


@dataclass(frozen=True, slots=True)
class MpcRound:
    """The round in progress, in this mode's terms.

    Attributes:
        view: The round as the log records it.
    """

    view: RoundView

    @property
    def config(self) -> e.FederationConfigured:
        """Return the federation's parameters."""
        return self.view.config

    @property
    def mpc(self) -> e.Mpc:
        """Return the federation's MPC section."""
        return get_mpc(self.view.config)

    @property
    def genesis(self) -> bytes:
        """Return the hash of the log's genesis."""
        return self.view.genesis

    @property
    def started(self) -> e.RoundStarted:
        """Return the fact that opened it."""
        return self.view.started

    @property
    def started_leaf_hash(self) -> bytes:
        """Return the hash of its leaf; empty before it is on the log.

        Proofs are about it, so none can be verified before.
        """
        return self.view.started_leaf_hash

    @property
    def identity(self) -> bytes:
        """What tells it from any other round, even on another branch of the log."""
        return self.view.identity

    @property
    def commitments(self) -> Mapping[str, Committed]:
        """Return what agents committed to, by agent."""
        return {
            agent_id: self.get_committed(agent_id) for agent_id in self.view.answers
        }

    def get_committed(self, agent_id: str) -> Committed:
        """Return an agent's commitment, even if it was rejected since."""
        answered = self.view.answers[agent_id]
        assert isinstance(answered.event, e.UpdateCommitted), "no other answer counts"
        return Committed(answered.leaf_index, answered.event)

    @property
    def waiting(self) -> PersistentMap[str, int]:
        """Return leaf indexes of commitments not decided yet, by agent."""
        return self.view.open.pending_of

    @property
    def closed(self) -> e.CommitmentsClosed | None:
        """Return the fact that closed the set, if any."""
        return get_closed(self.view.open)

    @property
    def comparison(self) -> e.ComparisonStarted | None:
        """Return the fact that started the comparison of updates, if any."""
        return get_comparison_started(self.view.open)

    @property
    def sealed(self) -> e.RoundSealed | None:
        """Return the fact that sealed it, if any."""
        return self.view.open.sealed

    @property
    def contributions(self) -> tuple[Contribution, ...]:
        """Return what it was sealed with, in ascending order of agent_id."""
        return self.view.contributions

    @property
    def links(self) -> Mapping[str, e.BlobRef]:
        """Return the parties' links, by party."""
        said = self.view.open.said.get(CLOSED.collects, {})
        return {party: self.view.get_said(int(at)).links for party, at in said.items()}

    @property
    def partials(self) -> Mapping[str, Partial]:
        """Return the parts of the sum, by party."""
        said = self.view.open.said.get(PARTS.collects, {})
        return {
            party: Partial(int(at), self.view.get_said(int(at)).partial)
            for party, at in said.items()
        }

    @property
    def has_all_comparisons(self) -> bool:
        """Whether all parties have said which updates are far apart."""
        return self._has_all(COMPARISON)

    @property
    def has_all_partials(self) -> bool:
        """Whether all parties have given their part of the sum."""
        return self._has_all(PARTS)

    def _has_all(self, phase: Phase) -> bool:
        return not find_missing(phase, self.config, self.view.open)

    def owed_by_party(self, party: str) -> Owed | None:
        """Return what the round waits for from a party; None if nothing."""
        said = self.view.open.said
        if self.sealed is not None:
            if party not in said.get(PARTS.collects, {}):
                return Owed.PARTIAL
            return Owed.RESULT if self.view.open.is_result_late else None
        is_linking = self.closed is not None and bool(self.started_leaf_hash)
        if is_linking and self.waiting and party not in said.get(CLOSED.collects, {}):
            return Owed.LINKS
        return None

    @property
    def provable(self) -> frozenset[str]:
        """Agents whose norm proofs can be verified, and may matter."""
        return frozenset(self.waiting) if self.started_leaf_hash else frozenset()

    @property
    def is_comparing(self) -> bool:
        """Whether the round waits to learn which updates are far apart.

        Then every party is needed, even one that has said it: the others can find it
        out only with all parties.
        """
        return (
            self.comparison is not None
            and self.sealed is None
            and not self.has_all_comparisons
        )

    def compute_sketch_seed(self) -> bytes:
        """Return the seed of the sketches on which updates are compared, 32 bytes.

        It follows from the closed set and every party's links, so that the last agent
        to commit cannot choose among sets: it does not know the links.
        """
        assert self.closed is not None, "nothing is compared before"
        found = self.links
        links = (found[party.name].sha256 for party in self.mpc.parties)
        return hashlib.sha256(
            SKETCH_SEED_DOMAIN + self.closed.sum_seed + b"".join(links)
        ).digest()

    def accepted(self) -> list[Committed]:
        """Return the commitments of the sealed set, in order."""
        assert self.sealed is not None, "only a sealed round has a sum"
        return [self.get_committed(c.agent_id) for c in self.contributions]


def see(view: RoundView | None) -> MpcRound | None:
    """Return a round as an MPC round; None if there is none, or of another mode."""
    if view is None or view.config.mpc is None:
        return None
    return MpcRound(view)
