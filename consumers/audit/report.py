"""What an audit reports: findings, what was checked, and what had to be believed."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass, field, fields
from enum import StrEnum
from typing import Any

from schemas import topics


class FindingCode(StrEnum):
    """What is wrong, as a code."""

    # the log; after these nothing later can be believed
    NOT_FRAMED = "NOT_FRAMED"
    BROKEN_LOG = "BROKEN_LOG"
    WRONG_OPERATOR = "WRONG_OPERATOR"
    DECIDER_FAILED = "DECIDER_FAILED"
    LOG_REWRITTEN = "LOG_REWRITTEN"
    LOG_TRUNCATED = "LOG_TRUNCATED"
    # a record
    WRONG_KEY = "WRONG_KEY"
    WRONG_HEADERS = "WRONG_HEADERS"
    # a leaf
    NOT_ADMISSIBLE = "NOT_ADMISSIBLE"
    FALSE_REFUSAL = "FALSE_REFUSAL"
    # a fact
    FACT_DIFFERS = "FACT_DIFFERS"
    FACT_MISSING = "FACT_MISSING"
    FACT_INVENTED = "FACT_INVENTED"
    # a blob
    MISSING_BLOB = "MISSING_BLOB"
    CORRUPT_BLOB = "CORRUPT_BLOB"
    OVERSIZED_BLOB = "OVERSIZED_BLOB"
    INVALID_MODEL = "INVALID_MODEL"
    INVALID_UPDATE = "INVALID_UPDATE"
    WRONG_SUM = "WRONG_SUM"
    WRONG_MODEL = "WRONG_MODEL"
    WRONG_STATE = "WRONG_STATE"
    NOT_COMPUTABLE = "NOT_COMPUTABLE"
    CLAIM_CONTRADICTED = "CLAIM_CONTRADICTED"
    SUMS_OVERLAP = "SUMS_OVERLAP"
    SECOND_OPINION_DIFFERS = "SECOND_OPINION_DIFFERS"
    # a checkpoint
    CHECKPOINT_INVALID = "CHECKPOINT_INVALID"
    CHECKPOINT_DIFFERS = "CHECKPOINT_DIFFERS"
    CHECKPOINT_MISSING = "CHECKPOINT_MISSING"
    CHECKPOINT_MISPLACED = "CHECKPOINT_MISPLACED"
    CHECKPOINT_BEYOND_END = "CHECKPOINT_BEYOND_END"
    # what ledger nodes say
    FINAL_BLOCK_DIFFERS = "FINAL_BLOCK_DIFFERS"
    ATTESTATION_DIFFERS = "ATTESTATION_DIFFERS"
    ATTESTATION_INVALID = "ATTESTATION_INVALID"
    COSIGNATURE_DIFFERS = "COSIGNATURE_DIFFERS"
    COSIGNATURE_MISPLACED = "COSIGNATURE_MISPLACED"
    EQUIVOCATION = "EQUIVOCATION"
    POLICY_NOT_MET = "POLICY_NOT_MET"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A place in the log.

    Attributes:
        topic: The topic.
        offset: Offset of the record; None for the end of the topic.
        height: The block's height; None if unknown.
        leaf_index: The leaf; None for the record as a whole.
    """

    topic: str = topics.LEDGER
    offset: int | None = None
    height: int | None = None
    leaf_index: int | None = None

    def __str__(self) -> str:
        parts = [self.topic]
        if self.offset is not None:
            parts.append(f"offset {self.offset}")
        if self.height is not None:
            parts.append(f"block {self.height}")
        if self.leaf_index is not None:
            parts.append(f"leaf {self.leaf_index}")
        return ", ".join(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        code: What kind of thing.
        place: Where.
        message: What it means, as text.
        expected: What should be there.
        found: What is there.
        blob_sha256: The blob concerned, in hex; empty if none.
        evidence: Signed messages that prove it, single-object bytes in hex: what an
            `EquivocationProven` would hold; usually none.
    """

    code: FindingCode
    place: Place
    message: str
    expected: str = ""
    found: str = ""
    blob_sha256: str = ""
    evidence: tuple[str, ...] = ()


@dataclass(slots=True, kw_only=True)
class Noise:
    """Records that anybody could have written: passed over, no findings.

    Attributes:
        topic: Their topic.
        code: Which finding they would be on a topic that nobody else may write to.
        count: How many.
        first: Where the first one is.
        message: What is wrong with the first one, as text.
    """

    topic: str
    code: FindingCode
    count: int
    first: Place
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PendingFact:
    """A fact that follows from the log and is not yet on it."""

    event: str
    cause_leaf_index: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RefusedRecord:
    """A record that the sequencer refused.

    Attributes:
        leaf_index: The leaf of the refusal.
        reason: Why, as a code.
        detail: Why, as text.
        source: Where the record was: topic, partition and offset.
    """

    leaf_index: int
    reason: str
    detail: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Rechecked:
    """Rows of a round's sum that another library opened again.

    Attributes:
        round: The round.
        rows: The rows, counted from 0.
        num_rows: Number of rows of the sum.
        problems: What is wrong with them, for people; empty if they open.
    """

    round: int
    rows: tuple[int, ...]
    num_rows: int
    problems: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivocation:
    """A contradiction proven on the ledger.

    Attributes:
        leaf_index: Its leaf.
        public_key: The key that contradicted itself, hex.
        offence: How, as `ledger.equivocation.Offence`.
        era: The node set.
        epoch: The epoch.
        position: Height of the block, -1 for requests; for the sequencer the size.
    """

    leaf_index: int
    public_key: str
    offence: str
    era: int
    epoch: int
    position: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EraReport:
    """A node set.

    Attributes:
        era: From 0.
        first_height: Its first block.
        quorum: How many nodes make a certificate.
        nodes: Their names.
    """

    era: int
    first_height: int
    quorum: int
    nodes: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class NodeReport:
    """What one ledger node said.

    Attributes:
        name: Its name in its last era.
        public_key: Hex.
        is_present: Whether it belongs to the present node set.
        num_attestations: Attestations of blocks of this log.
        last_height: The highest block that it attested; -1 for none.
        num_cosignatures: Checkpoints of this log that it cosigned.
        num_blocks_behind: How many blocks of this log come after that.
    """

    name: str
    public_key: str
    is_present: bool
    num_attestations: int
    last_height: int
    num_cosignatures: int
    num_blocks_behind: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Finality:
    """What the ledger nodes' signatures alone make final.

    Attributes:
        final_height: The last final block; -1 for none.
        final_size: Number of leaves up to its end.
        num_certified: Final blocks with both certificates of their own.
        num_by_descendant: Blocks that are final only through a later one.
        num_not_final: Blocks after the last final one.
        num_epochs: Epochs in which blocks of this log were certified.
        cosigned_size: Size of the largest checkpoint that a quorum cosigned; 0 for
            none.
        cosigned_at_s: When a quorum had cosigned it by the nodes' clocks, seconds since
            1970-01-01 UTC; 0 for none.
        policy_size: Size of the largest checkpoint that the reader's policy accepts; 0
            for none, None without a policy.
        eras: The history of node sets.
        nodes: Every node of any era.
    """

    final_height: int
    final_size: int
    num_certified: int
    num_by_descendant: int
    num_not_final: int
    num_epochs: int
    cosigned_size: int
    cosigned_at_s: int
    policy_size: int | None
    eras: tuple[EraReport, ...]
    nodes: tuple[NodeReport, ...]


@dataclass(slots=True, kw_only=True)
class Report:
    """What an audit found and covered.

    Attributes:
        federation_id: The federation.
        operator_key: Public key of its founder, hex; empty without a genesis.
        is_operator_key_pinned: Whether the reader named that key beforehand.
        sequencer_key: The key that signs its blocks, hex.
        num_blocks: Blocks verified.
        num_leaves: Leaves verified.
        num_signatures: Ed25519 signatures verified.
        num_checkpoints: Checkpoints verified.
        num_unsigned_blocks: Blocks at the end that were too new for a checkpoint.
        log_bytes: Size of the records read.
        tree_root: Root of the log, hex, to compare with what others saw.
        events: Leaves by event.
        facts: Facts that are exactly what the deciders conclude, by event.
        refusals: Records that the sequencer refused, by reason.
        rejections: What the rounds decider rejected, by reason.
        num_rounds_recomputed: Rounds whose sum and model were computed again.
        has_second_opinion: Whether another library opened sums again.
        rechecked: The rows that it opened.
        num_blobs: Blobs fetched and verified.
        blob_bytes: Their size.
        num_claims_checked: Rejections whose blob was checked again.
        num_claims_unchecked: Rejections whose blob is missing.
        num_refusals_unchecked: Refusals that are the sequencer's word.
        refused: The records themselves, if asked for.
        num_attestations: Records of ledger nodes verified.
        finality: What is final; None without ledger nodes, or if attestations were left
            out.
        equivocations: Contradictions proven on the ledger.
        balances: Points by account, as the rewards decider computes them.
        last_block_at_ms: The stamp of the last block.
        awaited_size: Number of leaves up to the end of the last block with more than
            `FinalityRequested`: what must become final. Nothing gives later blocks a
            child (ADR 0015).
        awaited_at_ms: That block's stamp.
        has_blobs: Whether blobs were fetched, and every round computed again.
        has_checkpoints: Whether checkpoints were read.
        has_attestations: Whether attestations were read.
        continued_from: Number of blocks that an earlier audit verified; 0 if this one
            began at the beginning.
        pending: Facts not sequenced yet; no fault.
        findings: What is wrong with the log, in its order; the first few of each kind.
        num_findings: How many findings there were, by code.
        node_faults: What single ledger nodes, f at most, said wrongly: it counts for
            nothing, and is no finding about the log.
        num_node_faults: How many of those there were, by code.
        noise: Records that anybody could have written, by topic and kind.
        stopped: Why the audit ended early; empty if it did not.
        unjudged: From where this version cannot judge the log, and why; empty if it
            judged all of it.
        notes: What the verdict rests on.
    """

    federation_id: str
    operator_key: str = ""
    is_operator_key_pinned: bool = False
    sequencer_key: str = ""
    num_blocks: int = 0
    num_leaves: int = 0
    num_signatures: int = 0
    num_checkpoints: int = 0
    num_unsigned_blocks: int = 0
    log_bytes: int = 0
    tree_root: str = ""
    events: Counter[str] = field(default_factory=Counter)
    facts: Counter[str] = field(default_factory=Counter)
    refusals: Counter[str] = field(default_factory=Counter)
    rejections: Counter[str] = field(default_factory=Counter)
    num_rounds_recomputed: int = 0
    has_second_opinion: bool = False
    rechecked: list[Rechecked] = field(default_factory=list)
    num_blobs: int = 0
    blob_bytes: int = 0
    num_claims_checked: int = 0
    num_claims_unchecked: int = 0
    num_refusals_unchecked: int = 0
    refused: list[RefusedRecord] = field(default_factory=list)
    num_attestations: int = 0
    finality: Finality | None = None
    equivocations: list[Equivocation] = field(default_factory=list)
    balances: dict[str, int] = field(default_factory=dict)
    last_block_at_ms: int = 0
    awaited_size: int = 0
    awaited_at_ms: int = 0
    has_blobs: bool = False
    has_checkpoints: bool = False
    has_attestations: bool = False
    continued_from: int = 0
    pending: list[PendingFact] = field(default_factory=list)
    findings: list[Finding] = field(default_factory=list)
    num_findings: Counter[str] = field(default_factory=Counter)
    node_faults: list[Finding] = field(default_factory=list)
    num_node_faults: Counter[str] = field(default_factory=Counter)
    noise: list[Noise] = field(default_factory=list)
    stopped: str = ""
    unjudged: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def is_sound(self) -> bool:
        """Whether there is a log, all of it was judged, and nothing is wrong."""
        return self.num_blocks > 0 and not self.findings and not self.unjudged

    @property
    def is_unknown(self) -> bool:
        """Whether nothing is wrong with what was judged, which is not everything."""
        return bool(self.unjudged) and not self.findings

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON types."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, value in values.items():
            if isinstance(value, Counter):
                values[name] = dict(sorted(value.items()))
            elif isinstance(value, list):
                values[name] = [v if isinstance(v, str) else asdict(v) for v in value]
            elif isinstance(value, Finality):
                values[name] = asdict(value)
        is_sound = None if self.is_unknown else self.is_sound
        return {"is_sound": is_sound, **values}
