"""The topics: the only place with their names, and what travels on each.

Every record is keyed by its federation id: the sequencer reads all inputs of a
federation, and a partition is what one process reads (ADR 0002). Heartbeats alone are
keyed by process: Kafka keeps the last of each.
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
HEARTBEATS: Final = "moot.heartbeats"

EVENTS: Final[dict[str, tuple[type[e.Event], ...]]] = {
    AGENTS: (e.AgentEnrolmentRequested,),
    CONTROL: (
        e.FederationConfigured,
        e.FederationChanged,
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
    PROOFS: (e.EquivocationProven,),
    PARTIALS: (
        e.SharesLinked,
        e.UpdatesChecked,
        e.UpdatesCompared,
        e.PartialAggregateSubmitted,
        e.PartyDeclined,
        e.AggregateSubmitted,
        e.ModelExported,
    ),
    ROUNDS: (
        e.RoundStarted,
        e.RoundRefused,
        e.ContributionAccepted,
        e.ContributionRejected,
        e.AttendanceChanged,
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
    HEARTBEATS: (e.Heartbeat,),
}
"""Which events each topic carries; every event has exactly one topic."""

INPUT_TOPICS: Final = (AGENTS, CONTROL, UPDATES, PROOFS, PARTIALS)
FACT_TOPICS: Final = (ROUNDS, AGGREGATES, REGISTRY, REWARDS)
SEQUENCED_TOPICS: Final = INPUT_TOPICS + FACT_TOPICS
"""What the sequencer reads: facts are leaves too."""

TOPIC_OF: Final[dict[type[e.Event], str]] = {
    event: topic for topic, events in EVENTS.items() for event in events
}

KEPT_FOR_EVER: Final = (LEDGER, CHECKPOINTS, ATTESTATIONS, REJECTED)
"""The record: none of it is ever deleted. Everything else is on the ledger too once it
was sequenced."""

MAX_RECORD_SIZE_BYTES: Final = 4 * 2**20
"""A block of leaves must fit a record: the broker's limit for the ledger."""
MAX_EVENT_RECORD_SIZE_BYTES: Final = 2**17
"""The broker's limit for all other topics: no event of ours is half as long, and the
sequencer holds a batch of whatever is sent."""

FOR_EVER: Final = "-1"
DAY_MS: Final = 86_400_000
HOUR_MS: Final = 3_600_000
INPUT_RETENTION_MS: Final = 30 * DAY_MS
"""How long agents' records wait for a sequencer that is away. Not for ever: anybody may
write there, and a refusal is shorter than what it refuses."""
MIN_KEPT_MS: Final = DAY_MS
"""With less, a sequencer that is away for a night loses what Kafka acknowledged."""

MIN_REPLICAS: Final = 3
MIN_IN_SYNC: Final = 2
"""With so many replicas, this many must have a record before it is acknowledged."""

MAX_HEARTBEAT_RECORD_SIZE_BYTES: Final = 2**14
HEARTBEAT_RETENTION_MS: Final = 7 * DAY_MS
"""How long a process that is gone is remembered. Not for ever: anybody may write there,
under any key."""
HEARTBEAT_SEGMENT_MS: Final = HOUR_MS
"""Kafka compacts nothing that is younger."""

EXPIRING: Final = (AGENTS, UPDATES, PROOFS)
"""Topics that agents write. A federation's own services write the others: little, and
nobody repeats what is lost."""


def config_of(topic: str) -> dict[str, str]:
    """Return the configuration that a topic is made with: every key that matters.

    All are named: a broker's defaults are somebody else's.
    """
    if topic == HEARTBEATS:
        return {
            "cleanup.policy": "compact,delete",
            "retention.ms": str(HEARTBEAT_RETENTION_MS),
            "retention.bytes": FOR_EVER,
            "segment.ms": str(HEARTBEAT_SEGMENT_MS),
            "max.message.bytes": str(MAX_HEARTBEAT_RECORD_SIZE_BYTES),
            # The broker's clock is a second opinion on when a process spoke.
            "message.timestamp.type": "LogAppendTime",
            "compression.type": "producer",
            "unclean.leader.election.enable": "false",
        }
    is_ledger = topic == LEDGER
    retention_ms = str(INPUT_RETENTION_MS) if topic in EXPIRING else FOR_EVER
    return {
        # Compaction keeps one record of a key, and a federation has one key.
        "cleanup.policy": "delete",
        "retention.ms": retention_ms,
        # By size, whoever writes most would push out others' records.
        "retention.bytes": FOR_EVER,
        "max.message.bytes": str(
            MAX_RECORD_SIZE_BYTES if is_ledger else MAX_EVENT_RECORD_SIZE_BYTES
        ),
        # A producer's clock must not decide how long a record is kept. Nothing reads
        # the stamp: it would be a second, unsigned time (ADR 0027).
        "message.timestamp.type": "LogAppendTime",
        # Otherwise the broker unpacks and packs every batch.
        "compression.type": "producer",
        # A lagging replica must not become the leader: it would forget acknowledged
        # records, and give their offsets again.
        "unclean.leader.election.enable": "false",
    }


def topic_of(event: e.Event) -> str:
    """Return the topic that this event travels on."""
    return TOPIC_OF[type(event)]


def subject(topic: str, event: type[e.Event]) -> str:
    """Return the schema registry's subject: topic and full record name.

    This is Confluent's TopicRecordNameStrategy.
    """
    return f"{topic}-{NAMESPACE}.{event.__name__}"


NAMESPACE: Final = "folkmoot.v1"
