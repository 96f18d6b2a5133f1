"""What the log says of a round whose updates nobody sees, and whose turn it is.

Agents, parties, the aggregator and the audit all follow a round with `follow`, beside
the rounds decider's own step. It keeps what counted, not what was said: an event that
the decider refused is not here.

Deliberately not here: rules (`protocol.rounds`) and what is in the blobs
(`protocol.modes.mpc.checker`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from protocol.configuration import get_mpc
from protocol.contributions import Contribution
from protocol.decider import Sequenced
from protocol.modes.mpc.phases import (
    CLOSED,
    PARTS,
    get_closed,
    get_comparison_started,
    has_all_comparisons,
    has_all_links,
    has_all_partials,
)
from protocol.persistent import PersistentMap
from protocol.round_state import OpenRound, RoundsState
from schemas import events as e

SKETCH_SEED_DOMAIN: Final = b"folkmoot/sketch-seed/v1\n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """A commitment that counts, and where it is."""

    leaf_index: int
    event: e.UpdateCommitted


@dataclass(frozen=True, slots=True, kw_only=True)
class Partial:
    """A party's part of the sum, and where it is."""

    leaf_index: int
    blob: e.BlobRef


class Owed(StrEnum):
    """What a round waits for."""

    LINKS = "LINKS"
    CHECKS = "CHECKS"
    PARTIAL = "PARTIAL"
    RESULT = "RESULT"


@dataclass(frozen=True, slots=True, kw_only=True)
class MpcRound:
    """The round in progress.

    Attributes:
        config: The federation's parameters.
        genesis: Hash of the log's genesis, 32 bytes: what is secret in one log, and
            what is said of it, is of no use in another.
        started: The fact that opened it.
        started_leaf_hash: Of the leaf with that fact; empty before it is on the log.
            Proofs are about it, so none can be verified before.
        commitments: What agents committed to, by agent; also those rejected since.
        closed: The fact that closed the set, once it is closed.
        links: What parties say of their shares, by party.
        waiting: Leaf indexes of commitments neither accepted nor rejected, by agent.
        has_all_links: Whether all parties have linked.
        comparison: The fact that had the updates compared, if they are.
        has_all_comparisons: Whether all parties have said who is far from whom.
        sealed: The fact that sealed it, once it is sealed.
        contributions: Then its contributions, in ascending order of agent_id.
        partials: Parts of the sum, by party.
        has_all_partials: Whether all parties have given theirs.
        is_result_late: Whether the aggregator has had its time to say what they come
            to: then any party may.
    """

    config: e.FederationConfigured
    genesis: bytes
    started: e.RoundStarted
    started_leaf_hash: bytes = b""
    commitments: PersistentMap[str, Committed] = field(default_factory=PersistentMap)
    closed: e.CommitmentsClosed | None = None
    links: Mapping[str, e.BlobRef] = field(default_factory=dict)
    waiting: PersistentMap[str, int] = field(default_factory=PersistentMap)
    has_all_links: bool = False
    comparison: e.ComparisonStarted | None = None
    has_all_comparisons: bool = False
    sealed: e.RoundSealed | None = None
    contributions: tuple[Contribution, ...] = ()
    partials: Mapping[str, Partial] = field(default_factory=dict)
    has_all_partials: bool = False
    is_result_late: bool = False

    def owed_by_party(self, party: str) -> Owed | None:
        """Return what the round waits for from a party; None if nothing."""
        if self.sealed is not None:
            if party not in self.partials:
                return Owed.PARTIAL
            return Owed.RESULT if self.is_result_late else None
        is_linking = self.closed is not None and bool(self.started_leaf_hash)
        if is_linking and self.waiting and party not in self.links:
            return Owed.LINKS
        return None

    @property
    def identity(self) -> bytes:
        """What tells it from any other, also of another branch of the log."""
        return self.started.cause + self.started_leaf_hash

    @property
    def provable(self) -> frozenset[str]:
        """Agents whose norm proofs can be verified, and may matter."""
        return frozenset(self.waiting) if self.started_leaf_hash else frozenset()

    @property
    def is_comparing(self) -> bool:
        """Whether the round waits until it is known which updates are far apart.

        Then every party is needed, also one that has said it: those that have not can
        find it out with all others only.
        """
        return (
            self.comparison is not None
            and self.sealed is None
            and not self.has_all_comparisons
        )

    def owed_by_aggregator(self) -> Owed | None:
        """Return what the round waits for from the aggregator; None if nothing."""
        if self.sealed is not None:
            return Owed.RESULT if self.has_all_partials else None
        is_linked = self.has_all_links and bool(self.started_leaf_hash)
        return Owed.CHECKS if is_linked and self.waiting else None

    @property
    def mpc(self) -> e.Mpc:
        """Return the federation's parameters of its parties."""
        return get_mpc(self.config)

    def compute_sketch_seed(self) -> bytes:
        """Return the seed of the sketches that updates are compared on, 32 bytes.

        It follows from the closed set and every party's links, so that the last one to
        commit cannot choose among sets: it does not know the links.
        """
        assert self.closed is not None, "nothing is compared before"
        links = (self.links[party.name].sha256 for party in self.mpc.parties)
        return hashlib.sha256(
            SKETCH_SEED_DOMAIN + self.closed.sum_seed + b"".join(links)
        ).digest()

    def accepted(self) -> list[Committed]:
        """Return the commitments of the sealed set, in its order."""
        assert self.sealed is not None, "only a sealed round has a sum"
        return [self.commitments[c.agent_id] for c in self.contributions]


def _list_contributions(current: OpenRound) -> tuple[Contribution, ...]:
    return () if current.sealed is None else current.ordered


def follow(
    secret: MpcRound | None,
    rounds: RoundsState,
    leaf: Sequenced,
) -> MpcRound | None:
    """Move by one leaf.

    Args:
        secret: The round before it; None if there was none, or it is not secret.
        rounds: The rounds decider's state after the leaf.
        leaf: The leaf.

    Returns:
        The round after it; None if none is in progress.
    """
    config, current = rounds.config, rounds.current
    if config is None or config.mpc is None or current is None:
        return None
    if secret is None or secret.started != current.started:
        secret = MpcRound(config=config, genesis=leaf.genesis, started=current.started)
    event, index = leaf.event, leaf.leaf_index
    links, parts = (current.said.get(p.collects, {}) for p in (CLOSED, PARTS))
    match event:
        # Agents hear of it when the log does: an update may come before it.
        case e.RoundStarted(cause=cause) if (
            cause == current.started.cause and not secret.started_leaf_hash
        ):
            secret = replace(secret, started_leaf_hash=leaf.leaf_hash)
        case e.UpdateCommitted(agent_id=agent_id) if index in current.pending:
            committed = Committed(leaf_index=index, event=event)
            commitments = secret.commitments.insert(agent_id, committed)
            secret = replace(secret, commitments=commitments)
        case e.SharesLinked(party=party) if links.get(party) == index:
            secret = replace(secret, links={**secret.links, party: event.links})
        case e.PartialAggregateSubmitted(party=party) if parts.get(party) == index:
            partial = Partial(leaf_index=index, blob=event.partial)
            secret = replace(secret, partials={**secret.partials, party: partial})
        case _:
            pass
    return replace(
        secret,
        closed=get_closed(current),
        waiting=current.pending_of,
        has_all_links=has_all_links(rounds),
        comparison=get_comparison_started(current),
        has_all_comparisons=has_all_comparisons(rounds),
        sealed=current.sealed,
        contributions=secret.contributions or _list_contributions(current),
        partials={
            party: partial
            for party, partial in secret.partials.items()
            if party in parts
        },
        has_all_partials=has_all_partials(rounds),
        is_result_late=current.is_result_late,
    )
