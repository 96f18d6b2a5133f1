"""The events of Folkmoot: one frozen dataclass per Avro schema in ``schemas/avro``.

The ``.avsc`` files are the contract and hold the meaning, unit and range of every
field; a test proves that these classes agree with them. Arrays are tuples, ``fixed``
is ``bytes``, and there are no floats: everything here is hashed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True, kw_only=True)
class Principal:
    """A key and what it may sign."""

    role: str
    public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """What an agent trains."""

    module: str
    module_config: str
    data_module: str
    data_config: str
    local_epochs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BlobRef:
    """A claim check: where a blob is, and the digest that whoever reads it verifies
    before use.
    """

    uri: str
    sha256: bytes
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerNode:
    """A ledger node: who attests to blocks."""

    name: str
    public_key: bytes
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerNodes:
    """Who attests to blocks from the first one on."""

    nodes: tuple[LedgerNode, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardRule:
    """What contributions earn and failures cost, in points."""

    per_contribution: int = 0
    per_thousand_examples: int = 0
    per_accuracy_percent: int = 0
    missed_assignment: int = 0
    failed_proof: int = 0
    equivocation: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Party:
    """A party: one of those that add up secret shares, each in other hands."""

    name: str
    public_key: bytes
    sealing_key: bytes
    address: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How the parties compare updates, each of which stays shared."""

    far_threshold: int
    dealer_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """Aggregation in the clear: the aggregator sees every update."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Mpc:
    """Aggregation of secret shares: nobody sees an update, unless all parties
    collude.
    """

    parties: tuple[Party, ...]
    norm_bound: int
    comparison: Comparison | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyParameter:
    """A number that the strategy takes."""

    name: str
    value_micros: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationConfigured:
    """The operator founds a federation: its parameters and the keys of its principals.
    The first leaf of the federation's log.
    """

    federation_id: str
    nonce: bytes
    rules_version: int
    principals: tuple[Principal, ...]
    task: Task
    initial_model: BlobRef
    num_parameters: int
    fractional_bits: int
    max_num_examples: int
    cohort_size: int
    min_cohort: int
    round_duration_ms: int
    strategy: str
    plain: Plain | None = None
    mpc: Mpc | None = None
    ledger_nodes: LedgerNodes | None = None
    reward_rule: RewardRule | None = None
    strategy_parameters: tuple[StrategyParameter, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class FederationChanged:
    """The operator changes what may be changed in a federation, from the next round on
    that is asked for.
    """

    federation_id: str
    number: int
    configuration: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentEnrolmentRequested:
    """An agent asks to join, signed with the key it names: proof that it holds it."""

    federation_id: str
    agent_id: str
    public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentAdmitted:
    """The operator binds an agent to its key; from here on its events count."""

    federation_id: str
    agent_id: str
    public_key: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentRevoked:
    """The operator ends an agent's membership; what it signs afterwards is refused."""

    federation_id: str
    agent_id: str
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequested:
    """The operator asks for the next round."""

    federation_id: str
    round: int
    requested_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAbandonRequested:
    """The operator gives up the round in progress, so that another can start."""

    federation_id: str
    round: int
    explanation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class DeadlineReached:
    """The timer says that a round's deadline has passed; it counts once the block's
    own stamp is past it too.
    """

    federation_id: str
    round: int
    observed_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSignature:
    """What a ledger node signed, once more than one sign the same."""

    public_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class QuorumCertificate:
    """Attestations of enough nodes to one block in one epoch. Without signatures it
    stands for the block that an era starts from.
    """

    era: int
    epoch: int
    height: int
    block_id: bytes
    signatures: tuple[NodeSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeSetChanged:
    """From the block after this one on, other ledger nodes attest. Needs the consent
    of a quorum of the present ones.
    """

    federation_id: str
    era: int
    nodes: tuple[LedgerNode, ...]
    approvals: tuple[NodeSignature, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFinalised:
    """A checkpoint that a quorum of ledger nodes cosigned: from here on the deciders
    know it.
    """

    federation_id: str
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FinalityRequested:
    """Nothing has come after a block for a while: this leaf makes the child that the
    block needs to become final.
    """

    federation_id: str
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EquivocationProven:
    """Messages, signed with one key, that contradict each other."""

    federation_id: str
    public_key: bytes
    messages: tuple[bytes, ...]
    reported_by: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodingLoss:
    """What an update lost when it was encoded, as its agent says."""

    shrunk_times: int
    zeroed_percent: int


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateSubmitted:
    """An agent's update for a round: the difference of its trained parameters from the
    base model, as integers in a blob.
    """

    federation_id: str
    round: int
    agent_id: str
    base_model_sha256: bytes
    update: BlobRef
    num_examples: int
    loss_micros: int | None = None
    encoding_loss: EncodingLoss | None = None
    num_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SealedShare:
    """The secret share of one party."""

    party: str
    sealed: BlobRef
    commitment: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCommitted:
    """An agent's update for a round of aggregation MPC, all that the agent says:
    commitments to it, its secret shares, each sealed to its party, and the norm proof.
    Nobody sees the update.
    """

    federation_id: str
    round: int
    agent_id: str
    base_model_sha256: bytes
    commitments: BlobRef
    shares: tuple[SealedShare, ...]
    proof: BlobRef
    num_examples: int
    loss_micros: int | None = None
    encoding_loss: EncodingLoss | None = None
    num_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyNoise:
    """A party's commitment to the noise that it adds to its part of the sum."""

    commitments: BlobRef
    proof: BlobRef
    blindings: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SharesLinked:
    """A party's projections of the shares that it opened: with those of all parties
    anybody can check that the shares add up to what was committed to.
    """

    federation_id: str
    round: int
    party: str
    links: BlobRef
    noise: PartyNoise | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesCompared:
    """A party's word on which updates of a round are far apart, as all parties found
    it together; it is all that they opened.
    """

    federation_id: str
    round: int
    party: str
    far: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialAggregateSubmitted:
    """A party's share of a sealed round's sum."""

    federation_id: str
    round: int
    party: str
    num_contributions: int
    num_examples: int
    partial: BlobRef


@dataclass(frozen=True, slots=True, kw_only=True)
class PartyDeclined:
    """A party will not give what a round waits for: its memory does not permit it. The
    round ends.
    """

    federation_id: str
    round: int
    party: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateDeclined:
    """An agent drawn for a round says that it will not contribute, so that nobody
    waits for it.
    """

    federation_id: str
    round: int
    agent_id: str
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdateCheck:
    """The outcome for one update."""

    leaf_index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class UpdatesChecked:
    """The claim of the aggregator, or of a party in its place, about the blobs of
    sequenced updates, commitments or partial sums.
    """

    federation_id: str
    round: int
    results: tuple[UpdateCheck, ...]
    party: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregateSubmitted:
    """The claim of the aggregator, or of a party in its place: the exact sum of a
    sealed round and the model that follows from it.
    """

    federation_id: str
    round: int
    base_model_sha256: bytes
    num_contributions: int
    num_examples: int
    sum: BlobRef
    model: BlobRef
    party: str = ""
    state: BlobRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A number that says how good a model is."""

    name: str
    value_micros: int
    direction: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """How good a model is on validation data."""

    num_examples: int
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelExported:
    """The exporter's claim: artifacts of a published model and its metrics, or why
    there are none.
    """

    federation_id: str
    round: int
    model_sha256: bytes
    onnx: BlobRef | None
    no_onnx: str
    evaluation: Evaluation | None
    no_evaluation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundPrivacy:
    """What a round costs each of its agents, by agent-level differential privacy."""

    sigma: int
    norm_bound: int
    weight: int
    inverse_delta: int
    order: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundStarted:
    """A round begins: everything an agent needs for its part."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    num_drawn: int
    cohort_seed: bytes
    last_ticket: bytes
    base_version: int
    base_model: BlobRef
    task: Task
    num_parameters: int
    fractional_bits: int
    deadline_ms: int
    change: int = 0
    privacy: RoundPrivacy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRefused:
    """A round was asked for and cannot start."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionAccepted:
    """An update counts in its round."""

    federation_id: str
    round: int
    agent_id: str
    cause: bytes
    cause_leaf_index: int
    output_index: int
    update_leaf_index: int
    update_sha256: bytes
    num_examples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContributionRejected:
    """An update, or the lack of one, does not count in its round, and why."""

    federation_id: str
    round: int
    agent_id: str
    cause: bytes
    cause_leaf_index: int
    output_index: int
    update_leaf_index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AttendanceChanged:
    """An agent missed another round that it was drawn for, or answers again: who has
    missed one is drawn less often. Since version 2 of the rules.
    """

    federation_id: str
    round: int
    agent_id: str
    cause: bytes
    cause_leaf_index: int
    output_index: int
    num_missed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CommitmentsClosed:
    """The set of commitments of a round is final: from here on nobody can choose an
    update, and what the sum will be projected on is known.
    """

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    num_commitments: int
    sum_seed: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparisonStarted:
    """The accepted contributions of a round are known; before they are sealed, the
    parties find out which of them are far apart.
    """

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    agent_ids: tuple[str, ...]
    far_threshold: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialRejected:
    """A party's share of the sum is wrong: what it published contradicts what it had
    opened.
    """

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    party: str
    partial_leaf_index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundSealed:
    """The set of contributions is final: every member of the cohort answered, or the
    deadline passed with at least min_cohort.
    """

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    num_contributions: int
    contributions_sha256: bytes
    num_examples: int
    base_model: BlobRef
    fractional_bits: int
    num_parameters: int
    base_state: BlobRef | None = None
    num_weighted_steps: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundAbandoned:
    """A round ends without an aggregate."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClaimRejected:
    """A worker's claim does not fit the state of its round."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    reason: str
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class AggregatePublished:
    """The result of a round: the exact sum and the next global model."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    base_model_sha256: bytes
    num_contributions: int
    num_examples: int
    sum: BlobRef
    model: BlobRef
    task: Task
    state: BlobRef | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelVersionRegistered:
    """A new version in the model registry."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    version: int
    parent_version: int
    model: BlobRef
    onnx: BlobRef | None
    no_onnx: str
    evaluation: Evaluation | None
    no_evaluation: str
    registered_at_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class BalanceChanged:
    """A reward or a penalty."""

    federation_id: str
    round: int
    cause: bytes
    cause_leaf_index: int
    output_index: int
    account: str
    amount: int
    balance: int
    basis: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EventRejected:
    """The sequencer refused a record; what it was and why."""

    federation_id: str
    reason: str
    detail: str
    source_topic: str
    source_partition: int
    source_offset: int
    value_sha256: bytes
    value_size_bytes: int
    value: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSequenced:
    """A block of the federation's log: ordered leaves, chained to the block before."""

    federation_id: str
    height: int
    previous_block_hash: bytes
    first_leaf_index: int
    leaves: tuple[bytes, ...]
    tree_root: bytes
    sequenced_at_ms: int
    traceparents: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointSigned:
    """The signed tree head after a block, in the form that other transparency log
    tools read.
    """

    federation_id: str
    height: int
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockAttested:
    """A ledger node has verified a block and everything before it."""

    federation_id: str
    era: int
    epoch: int
    height: int
    block_id: bytes
    public_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRequested:
    """A ledger node gives up an epoch and says how far it got: once a quorum does, the
    next epoch begins.
    """

    federation_id: str
    era: int
    epoch: int
    high: QuorumCertificate
    public_key: bytes
    signature: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointCosigned:
    """A ledger node cosigns the checkpoint of a final block."""

    federation_id: str
    height: int
    checkpoint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heartbeat:
    """A process says that it runs, and what it does. Beside the log: no leaf, and
    nothing follows from it.
    """

    federation_id: str
    kind: str
    name: str
    public_key: bytes
    version: str
    started_at_ms: int
    doing: str
    doing_since_ms: int
    said_at_ms: int
    next_within_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """An entry of the log: an event as received, who signed it, and where it came
    from. Not on a topic of its own.
    """

    event: bytes
    signature: bytes
    source_topic: str
    source_partition: int
    source_offset: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NormProof:
    """A norm proof. Not on a topic: in a blob. Points are compressed points of
    BLS12-381 G1; scalars 32 bytes little-endian, below the group's order.
    """

    projections: bytes
    z_mask: bytes
    z_prime_mask: bytes
    coefficients: tuple[bytes, ...]
    z: bytes
    z_prime: bytes
    z_blinding: bytes
    z_prime_blinding: bytes
    relation_blinding: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareLink:
    """What a party says of its share of one update."""

    agent_id: str
    reason: str
    detail: str
    projections: bytes
    blinding: bytes
    sum_projections: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ShareLinks:
    """What a party says of the shares that it opened in a round. Not on a topic: in a
    blob.
    """

    entries: tuple[ShareLink, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PartialSum:
    """A party's part of a round's sum. Not on a topic: in a blob."""

    values: bytes
    masks: bytes
    row_blindings: bytes
    opening: bytes


RoundFact: TypeAlias = (
    RoundStarted
    | RoundRefused
    | ContributionAccepted
    | ContributionRejected
    | AttendanceChanged
    | CommitmentsClosed
    | ComparisonStarted
    | RoundSealed
    | PartialRejected
    | RoundAbandoned
    | ClaimRejected
    | AggregatePublished
)
RegistryFact: TypeAlias = ModelVersionRegistered
RewardFact: TypeAlias = BalanceChanged
Fact: TypeAlias = RoundFact | RegistryFact | RewardFact
"""What a decider concluded: derived, never new information."""

Input: TypeAlias = (
    FederationConfigured
    | FederationChanged
    | AgentEnrolmentRequested
    | AgentAdmitted
    | AgentRevoked
    | NodeSetChanged
    | RoundRequested
    | RoundAbandonRequested
    | DeadlineReached
    | FinalityRequested
    | CheckpointFinalised
    | EquivocationProven
    | UpdateSubmitted
    | UpdateCommitted
    | UpdateDeclined
    | SharesLinked
    | UpdatesChecked
    | UpdatesCompared
    | PartialAggregateSubmitted
    | PartyDeclined
    | AggregateSubmitted
    | ModelExported
)
"""What somebody said: new information, signed by its author."""

BlobRecord: TypeAlias = NormProof | ShareLinks | PartialSum
"""What is too large for an event, and so in a blob."""

LedgerEvent: TypeAlias = Input | Fact | EventRejected
"""What a leaf may hold."""

Attestation: TypeAlias = BlockAttested | EpochRequested | CheckpointCosigned
"""What a ledger node says of the log; not on it."""

Event: TypeAlias = (
    LedgerEvent | BlockSequenced | CheckpointSigned | Attestation | Heartbeat
)
"""What may travel on a topic."""
