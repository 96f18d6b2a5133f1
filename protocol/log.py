"""A federation's log as everybody reads it: blocks opened, verified, and built.

The sequencer builds blocks; deciders, workers, agents and the audit open them. Both
sides share the chain's rules (`ledger.blocks`), so they accept the same blocks. This
module does not check whether each leaf should have been admitted: `protocol.admission`
does, and the sequencer and the audit run it on top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, cast

from ledger.blocks import BlockHeader, Chain, ChainError, plan_block, verify_block
from ledger.signing import InvalidSignatureError, SigningKey
from protocol import admission
from protocol.admission import AdmissionState, Admitted, Received, Refused, Verify
from protocol.decider import Sequenced
from protocol.envelope import compute_genesis_hash, sign_event, verify_event
from protocol.rules import verify_rules
from schemas import codec
from schemas import events as e

MAX_BLOCK_LEAVES: Final = 1_000
MAX_BLOCK_SIZE_BYTES: Final = 2 * 2**20
"""A block closes before its leaves exceed this, so that it fits a Kafka record."""


class LogError(Exception):
    """A block is not the next one of this log; nothing after it can be believed.

    Attributes:
        height: The block's height; -1 if unknown.
        leaf_index: The leaf at fault; None for the block as a whole.
        expected: What should have been there.
        found: What was.
    """

    def __init__(
        self,
        message: str,
        *,
        height: int = -1,
        leaf_index: int | None = None,
        expected: str = "",
        found: str = "",
    ) -> None:
        super().__init__(message)
        self.height = height
        self.leaf_index = leaf_index
        self.expected = expected
        self.found = found


class ForeignRecordError(LogError):
    """The federation's sequencer did not write this record: it is not part of the log.

    Anyone who can write to the topic can put such a record there. Processors pass over
    it; the audit reports it.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class LogState:
    """How far a log has been read.

    Attributes:
        federation_id: Whose log it is; empty before the genesis.
        chain: The hash chain and the Merkle tree so far.
        sequencer_key: The key that signs blocks; empty before the genesis, which names
            it.
        genesis: Hash of its genesis; empty before it.
    """

    federation_id: str = ""
    chain: Chain = field(default_factory=Chain)
    sequencer_key: bytes = b""
    genesis: bytes = b""


@dataclass(frozen=True, slots=True)
class OpenedLeaf:
    """A leaf of a block, decoded."""

    leaf: e.Leaf
    sequenced: Sequenced
    traceparent: str


def open_block(
    state: LogState,
    block_bytes: bytes,
    signature: bytes | None,
    *,
    verify: Verify = verify_event,
) -> tuple[LogState, e.BlockSequenced, list[OpenedLeaf]]:
    """Check that a block is the next one, and return its leaves.

    Checks the sequencer's signature over every byte of the block, the hash chain, the
    Merkle root, and that every leaf decodes and belongs to this federation.

    Args:
        state: How far the log has been read.
        block_bytes: Single-object encoding of the block, as received.
        signature: The record's signature header.
        verify: Checks the sequencer's signature.

    Raises:
        ForeignRecordError: the sequencer did not sign it.
        LogError: the sequencer signed it, but it is not the next block of this log.
    """
    block, known = verify_author(state, block_bytes, signature, verify=verify)
    height = block.height
    leaves = [
        _open_leaf(data, height, block.first_leaf_index + index)
        for index, data in enumerate(block.leaves)
    ]
    header = BlockHeader(
        height=height,
        previous_block_hash=block.previous_block_hash,
        first_leaf_index=block.first_leaf_index,
        tree_root=block.tree_root,
        sequenced_at_ms=block.sequenced_at_ms,
    )
    try:
        plan = verify_block(state.chain, header, block.leaves)
    except ChainError as error:
        raise LogError(
            str(error),
            height=height,
            expected=show(error.expected),
            found=show(error.found),
        ) from error
    if len(block.traceparents) != len(block.leaves):
        raise LogError("a block has one trace context for each leaf", height=height)
    opened = [
        OpenedLeaf(
            leaf,
            Sequenced(
                event=event,
                leaf_hash=plan.leaf_hashes[index],
                leaf_index=block.first_leaf_index + index,
                sequenced_at_ms=block.sequenced_at_ms,
                previous_block_hash=block.previous_block_hash,
                tree_size=plan.tree.size,
                genesis=known.genesis,
            ),
            block.traceparents[index],
        )
        for index, (leaf, event) in enumerate(leaves)
    ]
    for item in opened:
        if item.sequenced.event.federation_id != block.federation_id:
            msg = "a leaf belongs to another federation"
            raise LogError(msg, height=height, leaf_index=item.sequenced.leaf_index)
    return replace(known, chain=plan.seal(block_bytes)), block, opened


def fold_admission(
    state: AdmissionState, opened: Sequence[OpenedLeaf]
) -> AdmissionState:
    """Return what admission knows after the leaves of an opened block."""
    pairs = [(item.leaf, item.sequenced.event) for item in opened]
    return admission.evolve(state, pairs)


def verify_author(
    state: LogState,
    block_bytes: bytes,
    signature: bytes | None,
    *,
    verify: Verify = verify_event,
) -> tuple[e.BlockSequenced, LogState]:
    """Return a block that the federation's sequencer signed, and the state with what
    the block reveals about whose log this is; its chain is unchanged.

    Does not check whether the block is the next one: see `open_block`.

    Raises:
        ForeignRecordError: these bytes are not a block, or somebody else's.
    """
    if state.genesis:
        # A stranger's bytes cost one signature check at most.
        _verify_block(verify, state, block_bytes, signature)
    try:
        block = _decode_block(block_bytes)
    except codec.CodecError as error:
        raise ForeignRecordError(f"not a block: {error}") from error
    if state.federation_id not in {"", block.federation_id}:
        msg = "the block belongs to another federation"
        raise ForeignRecordError(
            msg,
            height=block.height,
            expected=state.federation_id,
            found=block.federation_id,
        )
    if state.genesis:
        return block, state
    known = _read_genesis(block)
    if state.sequencer_key not in {b"", known.sequencer_key}:
        msg = "the genesis names another sequencer"
        raise ForeignRecordError(
            msg,
            height=block.height,
            expected=state.sequencer_key.hex(),
            found=known.sequencer_key.hex(),
        )
    _verify_block(verify, known, block_bytes, signature)
    return block, known


def _verify_block(
    verify: Verify, known: LogState, block_bytes: bytes, signature: bytes | None
) -> None:
    try:
        verify(known.sequencer_key, known.genesis, block_bytes, signature or b"")
    except InvalidSignatureError as error:
        msg = "the sequencer did not sign this block"
        raise ForeignRecordError(
            msg, expected="its signature", found=str(error)
        ) from error


@lru_cache(maxsize=2)
def _decode_block(block_bytes: bytes) -> e.BlockSequenced:
    """Decode a block, once for callers that open it in turn."""
    return codec.decode_as(e.BlockSequenced, block_bytes)


def show(value: int | bytes) -> str:
    """Return a value in readable form: numbers in decimal, hashes in hex."""
    return value.hex() if isinstance(value, bytes) else str(value)


def _open_leaf(
    data: bytes, height: int, leaf_index: int
) -> tuple[e.Leaf, e.LedgerEvent]:
    try:
        leaf = codec.decode_as(e.Leaf, data)
        # LedgerEvent is a union, not a type: mypy cannot follow.
        event: Any = codec.decode_as(cast("Any", e.LedgerEvent), leaf.event)
    except codec.CodecError as error:
        msg = f"leaf {leaf_index} cannot be decoded: {error}"
        raise LogError(msg, height=height, leaf_index=leaf_index) from error
    return leaf, event


def _read_genesis(block: e.BlockSequenced) -> LogState:
    """Return the log state given by a first block's first leaf."""
    if block.height == 0 and block.leaves:
        leaf, genesis = _open_leaf(block.leaves[0], 0, 0)
        if isinstance(genesis, e.FederationConfigured):
            for principal in genesis.principals:
                if principal.role == "SEQUENCER":
                    return LogState(
                        federation_id=block.federation_id,
                        sequencer_key=principal.public_key,
                        genesis=compute_genesis_hash(leaf.event),
                    )
    msg = "a log begins with FederationConfigured, which names its sequencer"
    raise ForeignRecordError(msg, height=block.height, leaf_index=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class SequencerState:
    """What the sequencer knows of one federation: a fold over its log."""

    log: LogState = field(default_factory=LogState)
    admission: AdmissionState = field(default_factory=AdmissionState)


@dataclass(frozen=True, slots=True)
class NewBlock:
    """A block to be published."""

    event: e.BlockSequenced
    data: bytes
    signature: bytes


def sequence(
    state: SequencerState, batch: Sequence[Received], *, key: SigningKey, now_ms: int
) -> tuple[SequencerState, NewBlock | None, list[e.EventRejected]]:
    """Turn what was read for one federation into its next block.

    Args:
        state: The fold over the federation's log.
        batch: Records in the order they were read; their leaves must fit a block.
        key: The sequencer's key.
        now_ms: The sequencer's clock, milliseconds since 1970-01-01 UTC.

    Returns:
        The next state, the block (None if nothing became a leaf), and the refusals. A
        refusal in a known federation is also a leaf.
    """
    verdicts = admission.decide(state.admission, batch, sequencer_key=key.public_key)
    refused = [verdict.event for verdict in verdicts if isinstance(verdict, Refused)]
    genesis = state.admission.genesis or next(
        (
            compute_genesis_hash(verdict.leaf.event)
            for verdict in verdicts
            if isinstance(verdict, Admitted)
        ),
        b"",
    )
    leaves: list[tuple[e.Leaf, e.LedgerEvent]] = []
    traceparents: list[str] = []
    for received, verdict in zip(batch, verdicts, strict=True):
        if isinstance(verdict, Admitted):
            leaves.append((verdict.leaf, verdict.event))
        elif isinstance(verdict, Refused) and verdict.event.federation_id:
            leaves.append((_refusal_leaf(verdict.event, key, genesis), verdict.event))
        else:
            continue
        traceparents.append(received.traceparent)
    if not leaves:
        return state, None, refused
    chain = state.log.chain
    encoded = tuple(codec.encode(leaf) for leaf, _ in leaves)
    # The clock may step back; the log's time does not.
    plan = plan_block(chain, encoded, max(now_ms, chain.sequenced_at_ms))
    block = e.BlockSequenced(
        federation_id=leaves[0][1].federation_id,
        height=plan.header.height,
        previous_block_hash=plan.header.previous_block_hash,
        first_leaf_index=plan.header.first_leaf_index,
        leaves=encoded,
        tree_root=plan.header.tree_root,
        sequenced_at_ms=plan.header.sequenced_at_ms,
        traceparents=tuple(traceparents),
    )
    data = codec.encode(block)
    after = SequencerState(
        log=LogState(
            federation_id=block.federation_id,
            chain=plan.seal(data),
            sequencer_key=key.public_key,
            genesis=genesis,
        ),
        admission=admission.evolve(state.admission, leaves),
    )
    return after, NewBlock(block, data, sign_event(key, genesis, data)), refused


def read_block(
    state: SequencerState, block_bytes: bytes, signature: bytes | None
) -> SequencerState:
    """Fold one block into the sequencer's state, live and in recovery.

    Raises:
        LogError: it is not the next block of this log.
        UnknownRulesError: the log follows unknown rules: its writer would refuse what a
            newer version admits.
    """
    log, _, opened = open_block(state.log, block_bytes, signature)
    for item in opened:
        verify_rules(item.sequenced.event, item.sequenced.leaf_index)
    return SequencerState(log=log, admission=fold_admission(state.admission, opened))


def _refusal_leaf(refusal: e.EventRejected, key: SigningKey, genesis: bytes) -> e.Leaf:
    data = codec.encode(refusal)
    return e.Leaf(
        event=data,
        signature=sign_event(key, genesis, data),
        source_topic=refusal.source_topic,
        source_partition=refusal.source_partition,
        source_offset=refusal.source_offset,
    )
