"""The topics: the only place with their names, and what travels on each.

Every record is keyed by its federation id: the sequencer reads all inputs of a
federation, and a partition is what one process reads (ADR 0002).
"""

from __future__ import annotations

from typing import Final

from schemas import events as e

AGENTS: Final = "moot.agents"
CONTROL: Final = "moot.control"
UPDATES: Final = "moot.updates"
PROOFS: Final = "moot.proofs"
PARTIALS: Final = "moot.partials"
ROUNDS: Final = "moot.rounds"
AGGREGATES: Final = "moot.aggregates"
REGISTRY: Final = "moot.registry"
REWARDS: Final = "moot.rewards"
LEDGER: Final = "moot.ledger"
CHECKPOINTS: Final = "moot.checkpoints"
ATTESTATIONS: Final = "moot.attestations"
REJECTED: Final = "moot.rejected"

EVENTS: Final[dict[str, tuple[type[e.Event], ...]]] = {
    AGENTS: (e.AgentEnrolmentRequested,),
    CONTROL: (
        e.FederationConfigured,
        e.AgentAdmitted,
        e.AgentRevoked,
        e.NodeSetChanged,
        e.RoundRequested,
        e.RoundAbandonRequested,
        e.DeadlineReached,
        e.FinalityRequested,
        e.CheckpointFinalised,
    ),
    UPDATES: (e.UpdateSubmitted, e.UpdateCommitted, e.UpdateDeclined),
    PROOFS: (e.NormProofSubmitted, e.EquivocationProven),
    PARTIALS: (
        e.SharesLinked,
        e.UpdatesChecked,
        e.UpdatesCompared,
        e.PartialAggregateSubmitted,
        e.AggregateSubmitted,
        e.ModelExported,
    ),
    ROUNDS: (
        e.RoundStarted,
        e.RoundRefused,
        e.ContributionAccepted,
        e.ContributionRejected,
        e.CommitmentsClosed,
        e.ComparisonStarted,
        e.RoundSealed,
        e.PartialRejected,
        e.RoundAbandoned,
        e.ClaimRejected,
    ),
    AGGREGATES: (e.AggregatePublished,),
    REGISTRY: (e.ModelVersionRegistered,),
    REWARDS: (e.BalanceChanged,),
    LEDGER: (e.BlockSequenced,),
    CHECKPOINTS: (e.CheckpointSigned,),
    ATTESTATIONS: (e.BlockAttested, e.EpochRequested, e.CheckpointCosigned),
    REJECTED: (e.EventRejected,),
}
"""Which events each topic carries; every event has exactly one topic."""

INPUT_TOPICS: Final = (AGENTS, CONTROL, UPDATES, PROOFS, PARTIALS)
FACT_TOPICS: Final = (ROUNDS, AGGREGATES, REGISTRY, REWARDS)
SEQUENCED_TOPICS: Final = INPUT_TOPICS + FACT_TOPICS
"""What the sequencer reads: facts are leaves too."""

TOPIC_OF: Final[dict[type[e.Event], str]] = {
    event: topic for topic, events in EVENTS.items() for event in events
}

# The ledger, its checkpoints and its attestations are the record: they are never
# compacted or deleted. Everything else is on the ledger as well, so a broker's ordinary
# retention is enough.
KEPT_FOR_EVER: Final = (LEDGER, CHECKPOINTS, ATTESTATIONS, REJECTED)


def topic_of(event: e.Event) -> str:
    """Return the topic that this event travels on."""
    return TOPIC_OF[type(event)]


def subject(topic: str, event: type[e.Event]) -> str:
    """Return the schema registry's subject: topic and full record name.

    This is Confluent's TopicRecordNameStrategy.
    """
    return f"{topic}-{NAMESPACE}.{event.__name__}"


NAMESPACE: Final = "folkmoot.v1"
