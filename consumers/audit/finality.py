"""Finality as an outsider sees it: what the ledger nodes' signatures make final.

The audit replays the log, so it knows every block's header. Here it compares those with
what the nodes say on `moot.attestations`.

Rules (ledger specification, section 2.3):

- A quorum of attestations to one block in one epoch certifies it; a block is final when
  it and its child are certified in the same epoch, and so is every block before it.
- An era's last block is followed by closing children, which are on no topic: their
  headers follow from the block's.
- Up to f nodes may say anything, so what they alone say is no finding about the log: it
  is listed as their fault (ADR 0026). More than f attesting another block than this
  log's contradict the log; a quorum proves that the nodes hold another log.
- No honest node contradicts itself (`ledger.equivocation`): one that does is named,
  with the messages that prove it.

Everything is looked up by height, so the order of the records does not matter; blocks
come first. Old attestations are forgotten, block ids are not: a long log needs only 72
bytes per block here. Memory is bounded for each node separately, so nobody can make the
audit forget what others said.

Deliberately not here: reading Kafka, framing, and what a node may attest when.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, Final, cast

from adapters.wording import counted
from consumers.audit.report import (
    EraReport,
    Finality,
    Finding,
    FindingCode,
    NodeReport,
    Place,
)
from ledger.attestations import (
    START,
    ByteReader,
    Header,
    InvalidMessageError,
    Message,
    NodeSet,
    Start,
    order,
    verify_attestation,
    verify_epoch_request,
)
from ledger.checkpoint import Checkpoint, make_log_key, verify_checkpoint
from ledger.equivocation import Contradiction, find_contradiction, prove_equivocation
from ledger.merkle import HASH_SIZE
from ledger.note import InvalidNoteError, VerifierKey
from ledger.policy import Policy
from ledger.signing import InvalidSignatureError
from protocol.envelope import verify_event
from protocol.replay import ReplayState
from protocol.state_root import StateHasher
from schemas import codec
from schemas import events as e

MAX_REMEMBERED: Final = 16_384
"""Attestations of this log's blocks remembered per node and era, the latest. If a node
contradicts older ones, only the ledger shows it."""
MAX_OTHERS: Final = 1_024
"""Heights at which a node's attestations of other blocks are remembered, the latest."""
MAX_OTHERS_AT_HEIGHT: Final = 16
"""Attestations of other blocks remembered per node and height."""
MAX_CLOSING: Final = 1_024
"""Closing children that are followed: one per failed epoch."""
MAX_REQUESTS: Final = 256
"""Requests remembered per node and era, the latest; also the epochs whose highest
attestations are checked against a request."""
MAX_COSIGNED: Final = 1_024
"""Cosigned sizes remembered per node, the largest."""
MAX_FAULTS: Final = 10
"""Faults of each kind listed per node."""

_SIZE_BYTES: Final = 8
_HEAD_BYTES: Final = _SIZE_BYTES + HASH_SIZE


@dataclass(slots=True, kw_only=True)
class Era:
    """A node set and where it begins and ends.

    Attributes:
        node_set: The nodes.
        start: The block that it starts from.
        last: Bytes of its last block's header; empty as long as it lasts.
    """

    node_set: NodeSet
    start: Start
    last: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What it takes to verify a node's record.

    Attributes:
        federation_id: The federation.
        genesis: Hash of the log's genesis, 32 bytes.
        sequencer_key: The key that signs checkpoints, 32 bytes.
        eras: Node set and start of every era.
    """

    federation_id: str
    genesis: bytes
    sequencer_key: bytes
    eras: tuple[tuple[NodeSet, Start], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A verified record of a ledger node.

    Attributes:
        event: What it says.
        public_key: The node's key, 32 bytes.
        checkpoint: The head that it cosigns; None for other records.
        timestamp_s: When it cosigned, by its own clock.
    """

    event: e.Attestation
    public_key: bytes
    checkpoint: Checkpoint | None = None
    timestamp_s: int = 0

    @property
    def num_signatures(self) -> int:
        """How many signatures it bears, the record's included."""
        match self.event:
            case e.EpochRequested(high=high):
                return 2 + len(high.signatures)
            case e.CheckpointCosigned():
                return 3
            case _:
                return 2


def verify_record(context: Context, data: bytes, signature: bytes) -> Said:
    """Return what a ledger node says, if a ledger node says it.

    Args:
        context: The federation and its nodes.
        data: Single-object bytes.
        signature: The record's signature header.

    Raises:
        InvalidMessageError: it is no attestation, not by a node, or not signed by it;
            says why.
    """
    try:
        # Attestation is a union, not a type: mypy cannot follow.
        event: e.Attestation = codec.decode_as(cast("Any", e.Attestation), data)
        if event.federation_id != context.federation_id:
            msg = f"it belongs to federation {event.federation_id!r}"
            raise InvalidMessageError(msg)
        said = _open(context, event)
        verify_event(said.public_key, context.genesis, data, signature)
    except (codec.CodecError, InvalidNoteError, InvalidSignatureError) as error:
        raise InvalidMessageError(str(error)) from error
    return said


def _open(context: Context, event: e.Attestation) -> Said:
    if isinstance(event, e.CheckpointCosigned):
        return _open_cosigned(context, event)
    if not 0 <= event.era < len(context.eras):
        raise InvalidMessageError(f"the log has no era {event.era}")
    node_set, start = context.eras[event.era]
    if isinstance(event, e.EpochRequested):
        verify_epoch_request(node_set, event, start)
    else:
        verify_attestation(node_set, event)
        if event.height <= start[0]:
            msg = f"block {event.height} belongs to an earlier era than {event.era}"
            raise InvalidMessageError(msg)
    return Said(event=event, public_key=event.public_key)


def _open_cosigned(context: Context, event: e.CheckpointCosigned) -> Said:
    log_key = make_log_key(
        context.federation_id, context.genesis, context.sequencer_key
    )
    cosigners = _list_cosigners(tuple(nodes for nodes, _ in context.eras))
    note = event.checkpoint.encode()
    verified = verify_checkpoint(note, log_key, log_key.name, cosigners)
    if len(verified.cosignatures) != 1:
        msg = f"{counted(len(verified.cosignatures), 'cosignature')}; a record has one"
        raise InvalidMessageError(msg)
    (cosignature,) = verified.cosignatures
    return Said(
        event=event,
        public_key=cosignature.key.public_key,
        checkpoint=verified.checkpoint,
        timestamp_s=cosignature.timestamp_s or 0,
    )


@lru_cache(maxsize=8)
def _list_cosigners(node_sets: tuple[NodeSet, ...]) -> tuple[VerifierKey, ...]:
    """Return every node's key, once: a node of several eras is one cosigner."""
    return tuple({key: None for nodes in node_sets for key in nodes.vkeys()})


@dataclass(slots=True, kw_only=True)
class NodeCount:
    """What was counted for one node."""

    num_attestations: int = 0
    last_height: int = -1
    num_cosignatures: int = 0


@dataclass(slots=True)
class _Top:
    """The highest attestations of a node in an epoch.

    Attributes:
        height: The highest.
        on_certified: The highest whose parent the node attested in this epoch too; -1
            for none.
    """

    height: int = -1
    on_certified: int = -1


@dataclass(slots=True, kw_only=True)
class FinalityState:
    """Everything needed to continue counting; can be saved.

    Attributes:
        eras: Every era so far.
        ids: Header ids of all blocks, 32 bytes each.
        heads: Tree size (8 bytes, big-endian) and root of all blocks, 40 bytes each.
        certified: For each block, 1 if it is final by its own certificates.
        last: Bytes of the last block's header.
        final_height: The last final block; -1 for none.
        epochs: Epochs with certificates, by era.
        votes: Signatures of attestations to this log's blocks, by era, the node's place
            in its set, and epoch and height.
        others: Signatures of attestations to other blocks, by era, the node's place,
            height, and epoch and block id.
        requests: Requests by era, the node's place and epoch.
        nodes: Counts by public key in hex.
        cosigned: Times of cosignatures, by public key in hex and size.
        accused: Contradictions, proven on the ledger or not.
        faults: What single nodes said wrongly, by public key in hex, and era and
            height.
        num_faults: How many such faults there were, by code.
    """

    eras: list[Era] = field(default_factory=list)
    ids: bytearray = field(default_factory=bytearray)
    heads: bytearray = field(default_factory=bytearray)
    certified: bytearray = field(default_factory=bytearray)
    last: bytes = b""
    final_height: int = -1
    epochs: dict[int, list[int]] = field(default_factory=dict)
    votes: dict[int, dict[int, dict[tuple[int, int], bytes]]] = field(
        default_factory=dict
    )
    others: dict[int, dict[int, dict[int, dict[tuple[int, bytes], bytes]]]] = field(
        default_factory=dict
    )
    requests: dict[int, dict[int, dict[int, e.EpochRequested]]] = field(
        default_factory=dict
    )
    nodes: dict[str, NodeCount] = field(default_factory=dict)
    cosigned: dict[str, dict[int, int]] = field(default_factory=dict)
    accused: dict[Contradiction, Finding] = field(default_factory=dict)
    faults: dict[str, dict[tuple[int, int], Finding]] = field(default_factory=dict)
    num_faults: Counter[str] = field(default_factory=Counter)


class FinalityAuditor:
    """Counts what ledger nodes say about one log.

    Args:
        federation_id: The federation.
        add: Takes a finding.
        state: Where an earlier audit ended; changed in place.
    """

    def __init__(
        self,
        federation_id: str,
        add: Callable[[Finding], None],
        state: FinalityState | None = None,
    ) -> None:
        self.state = FinalityState() if state is None else state
        self._federation_id = federation_id
        self._add = add
        self._hasher = StateHasher()
        self._tops: dict[tuple[int, int], dict[int, _Top]] = {}
        for era, nodes in self.state.votes.items():
            for position, slots in nodes.items():
                for slot in slots:
                    self._raise_top(era, position, slot)

    @property
    def num_blocks(self) -> int:
        """How many blocks were added."""
        return len(self.state.heads) // _HEAD_BYTES

    def context(self, genesis: bytes, sequencer_key: bytes) -> Context:
        """Return what it takes to verify records now."""
        return Context(
            federation_id=self._federation_id,
            genesis=genesis,
            sequencer_key=sequencer_key,
            eras=tuple((era.node_set, era.start) for era in self.state.eras),
        )

    # Blocks

    def add_block(self, before: Sequence[NodeSet], after: ReplayState) -> None:
        """Take the next block; without ledger nodes only its checkpoint counts."""
        node_sets, state = after.admission.node_sets, self.state
        chain = after.log.chain
        root = chain.tree.root()
        state.heads += chain.size.to_bytes(_SIZE_BYTES, "big") + root
        if not node_sets:
            return
        if not state.eras:
            state.eras.append(Era(node_set=node_sets[0], start=(-1, START)))
        era = state.eras[-1]
        header = Header(
            chain_id=era.node_set.chain_id,
            era=era.node_set.era,
            height=chain.height - 1,
            previous_id=bytes(state.ids[-HASH_SIZE:]) or START,
            block_hash=chain.previous_block_hash,
            tree_size=chain.size,
            tree_root=root,
            state_root=self._hasher.compute_root(after),
            node_set_hash=era.node_set.hash,
        )
        state.last = header.to_bytes()
        state.ids += header.id
        state.certified.append(0)
        if before and len(node_sets) > len(before):
            era.last = state.last
            start = (header.height, header.id)
            state.eras.append(Era(node_set=node_sets[-1], start=start))

    def _end_of(self, era: int) -> int:
        """Return the height of an era's last block so far, without closing children."""
        following = self.state.eras[era + 1 : era + 2]
        return following[0].start[0] if following else self.num_blocks - 1

    def _find_id(self, era: int, height: int) -> bytes | None:
        """Return the id of this log's block at a height of an era; None if none."""
        state = self.state
        if height > self._end_of(era):
            last = state.eras[era].last
            return self._find_closing(last, height) if last else None
        return bytes(state.ids[height * HASH_SIZE : (height + 1) * HASH_SIZE])

    @staticmethod
    def _find_closing(last: bytes, height: int) -> bytes | None:
        header = Header.read(ByteReader(last))
        if height > header.height + MAX_CLOSING:
            return None
        while header.height < height:
            header = header.closing_child()
        return header.id

    def head(self, height: int) -> tuple[int, bytes] | None:
        """Return size and root of this log after a block; None if there is none."""
        if not 0 <= height < self.num_blocks:
            return None
        head = self.state.heads[height * _HEAD_BYTES : (height + 1) * _HEAD_BYTES]
        return int.from_bytes(head[:_SIZE_BYTES], "big"), bytes(head[_SIZE_BYTES:])

    # What nodes say

    def add(self, said: Said, place: Place) -> None:
        """Count a verified record, once the blocks that it may concern were added."""
        match said.event:
            case e.BlockAttested() as message:
                self._add_attestation(message, place)
            case e.EpochRequested() as message:
                self._add_request(message, place)
            case e.CheckpointCosigned() as event:
                self._add_cosignature(said, event.height, place)

    def _position(self, era: int, public_key: bytes) -> int:
        nodes = self.state.eras[era].node_set.nodes
        return next(i for i, node in enumerate(nodes) if node.public_key == public_key)

    def _count(self, public_key: bytes) -> NodeCount:
        count = self.state.nodes.get(public_key.hex())
        if count is None:
            count = self.state.nodes[public_key.hex()] = NodeCount()
        return count

    def _add_attestation(self, message: e.BlockAttested, place: Place) -> None:
        era, slot = message.era, (message.epoch, message.height)
        position = self._position(era, message.public_key)
        if message.block_id != self._find_id(era, message.height):
            self._add_other(message, position, place)
            return
        votes = self.state.votes.setdefault(era, {})
        mine = votes.setdefault(position, {})
        if slot in mine:
            return  # sent again
        mine[slot] = message.signature
        if len(mine) > MAX_REMEMBERED:
            del mine[next(iter(mine))]
        self._raise_top(era, position, slot)
        count = self._count(message.public_key)
        count.num_attestations += 1
        count.last_height = max(
            count.last_height, min(message.height, self._end_of(era))
        )
        quorum = self.state.eras[era].node_set.quorum
        if sum(slot in said for said in votes.values()) == quorum:
            self._certify(era, *slot)
        for other in self._others_at(era, position, slot):
            self._accuse(place, message, other)
        for request in self.state.requests.get(era, {}).get(position, {}).values():
            for below in (message.height - 1, message.height):
                self._accuse_hiding(place, request, position, (message.epoch, below))

    def _raise_top(self, era: int, position: int, slot: tuple[int, int]) -> None:
        """Keep the highest attestations of a node in an epoch."""
        epoch, height = slot
        mine = self.state.votes[era][position]
        tops = self._tops.setdefault((era, position), {})
        top = tops.setdefault(epoch, _Top())
        top.height = max(top.height, height)
        for upper in (height, height + 1):
            if (epoch, upper - 1) in mine and (epoch, upper) in mine:
                top.on_certified = max(top.on_certified, upper)
        if len(tops) > MAX_REQUESTS:
            del tops[min(tops)]

    def _others_at(
        self, era: int, position: int, slot: tuple[int, int]
    ) -> list[e.BlockAttested]:
        """Return what a node said about other blocks at a height of an epoch."""
        epoch, height = slot
        said = self.state.others.get(era, {}).get(position, {}).get(height, {})
        return [
            self._attested(era, position, slot, block_id, signature)
            for (other_epoch, block_id), signature in said.items()
            if other_epoch == epoch
        ]

    def _add_other(self, message: e.BlockAttested, position: int, place: Place) -> None:
        """Judge what a node says about another block than this log's."""
        era, epoch, height = message.era, message.epoch, message.height
        said = (epoch, message.block_id)
        others = self.state.others.setdefault(era, {})
        mine = others.setdefault(position, {})
        at_height = mine.get(height, {})
        if said in at_height:
            return  # sent again
        for other in self._others_at(era, position, (epoch, height)):
            self._accuse(place, message, other)
        vote = self._vote(era, position, epoch, height)
        if vote is not None:
            self._accuse(place, message, vote)
        if len(at_height) >= MAX_OTHERS_AT_HEIGHT:
            return  # a node that signs so much is accused already
        mine.setdefault(height, at_height)[said] = message.signature
        if len(mine) > MAX_OTHERS:
            del mine[next(iter(mine))]
        node_set = self.state.eras[era].node_set
        num_nodes = sum(height in heights for heights in others.values())
        same = {
            other: heights[height][said]
            for other, heights in others.items()
            if said in heights.get(height, {})
        }
        ours = self._find_id(era, height)
        where = (
            "a block that the log does not have" if ours is None else "another block"
        )
        node = node_set.nodes[position]
        finding = Finding(
            code=FindingCode.ATTESTATION_DIFFERS,
            place=place,
            message=f"{node.name} attests {where} at height {height}",
            expected="none" if ours is None else ours.hex(),
            found=message.block_id.hex(),
        )
        if num_nodes <= node_set.max_faulty:
            self._blame(node.public_key, (era, height), finding)
            return
        # One of so many is honest: what they say counts, and is no single node's fault.
        for faults in self.state.faults.values():
            if faults.pop((era, height), None) is not None:
                self.state.num_faults[FindingCode.ATTESTATION_DIFFERS] -= 1
        if len(same) == node_set.quorum:
            self._add(
                replace(
                    finding,
                    code=FindingCode.FINAL_BLOCK_DIFFERS,
                    message=(
                        f"a quorum of ledger nodes certified {where}: this is not the "
                        "log that they hold"
                    ),
                    evidence=tuple(
                        codec.encode(
                            self._attested(
                                era, other, (epoch, height), said[1], signature
                            )
                        ).hex()
                        for other, signature in same.items()
                    ),
                )
            )
        elif len(at_height) == 1 and num_nodes == node_set.max_faulty + 1:
            message_ = (
                f"{where} at height {height} is attested by "
                f"{counted(num_nodes, 'ledger node')}, and "
                f"{node_set.max_faulty} of {len(node_set.nodes)} may lie: the "
                "sequencer signed a second block"
            )
            self._add(replace(finding, message=message_))

    def _blame(
        self, public_key: bytes, where: tuple[int, int], finding: Finding
    ) -> None:
        """Note a single node's statement: it says something about that node only."""
        faults = self.state.faults.setdefault(public_key.hex(), {})
        if where in faults:
            return
        self.state.num_faults[finding.code] += 1
        if sum(known.code == finding.code for known in faults.values()) < MAX_FAULTS:
            faults[where] = finding

    def _attested(
        self,
        era: int,
        position: int,
        slot: tuple[int, int],
        block_id: bytes,
        signature: bytes,
    ) -> e.BlockAttested:
        """Return an attestation as its node signed it."""
        return e.BlockAttested(
            federation_id=self._federation_id,
            era=era,
            epoch=slot[0],
            height=slot[1],
            block_id=block_id,
            public_key=self.state.eras[era].node_set.nodes[position].public_key,
            signature=signature,
        )

    def _vote(
        self, era: int, position: int, epoch: int, height: int
    ) -> e.BlockAttested | None:
        """Return a node's attestation of this log's block, if it is remembered."""
        slot = (epoch, height)
        signature = self.state.votes.get(era, {}).get(position, {}).get(slot)
        block_id = self._find_id(era, height)
        if signature is None or block_id is None:
            return None
        return self._attested(era, position, slot, block_id, signature)

    def _certify(self, era: int, epoch: int, height: int) -> None:
        """Draw the conclusions from a certificate of one of this log's blocks."""
        epochs = self.state.epochs.setdefault(era, [])
        if epoch not in epochs:
            epochs.append(epoch)
        for lower in (height - 1, height):
            if self._is_certified(era, epoch, lower) and self._is_certified(
                era, epoch, lower + 1
            ):
                self._finalise(era, lower)

    def _is_certified(self, era: int, epoch: int, height: int) -> bool:
        votes = self.state.votes[era].values()
        num_votes = sum((epoch, height) in said for said in votes)
        return num_votes >= self.state.eras[era].node_set.quorum

    def _finalise(self, era: int, height: int) -> None:
        state, last = self.state, self._end_of(era)
        if height <= last:
            state.certified[height] = 1
        # A closing child makes its era's last block final.
        state.final_height = max(state.final_height, min(height, last))

    # Contradictions

    def _add_request(self, message: e.EpochRequested, place: Place) -> None:
        position = self._position(message.era, message.public_key)
        self._count(message.public_key)
        known = self.state.requests.setdefault(message.era, {}).setdefault(position, {})
        if message.epoch in known:
            self._accuse(place, known[message.epoch], message)
            return
        known[message.epoch] = message
        if len(known) > MAX_REQUESTS:
            del known[min(known)]
        for epoch, top in self._tops.get((message.era, position), {}).items():
            # A request that hides any certificate hides the highest.
            for upper in {top.on_certified, top.height} - {-1}:
                self._accuse_hiding(place, message, position, (epoch, upper - 1))

    def _accuse_hiding(
        self,
        place: Place,
        request: e.EpochRequested,
        position: int,
        hidden: tuple[int, int],
    ) -> None:
        """Accuse if a request hides the certificate of this epoch and height."""
        epoch, height = hidden
        if not order(request.high) < hidden < (request.epoch, 0):
            return
        lower = self._vote(request.era, position, epoch, height)
        upper = self._vote(request.era, position, epoch, height + 1)
        if upper is not None:
            self._accuse(place, upper, request)
            if lower is not None:
                self._accuse(place, lower, upper, request)

    def _accuse(self, place: Place, *messages: Message) -> None:
        contradiction = find_contradiction(messages)
        accused = self.state.accused
        if contradiction is None or contradiction in accused:
            return
        key, offence = contradiction.public_key, contradiction.offence
        known = [x for x in accused if (x.public_key, x.offence) == (key, offence)]
        if len(known) >= MAX_FAULTS:
            return
        proven = prove_equivocation(
            self._federation_id, messages, contradiction.public_key
        )
        node = self.state.eras[contradiction.era].node_set.find(
            contradiction.public_key
        )
        assert node is not None, "only verified records are counted"
        accused[contradiction] = Finding(
            code=FindingCode.EQUIVOCATION,
            place=place,
            message=(
                f"{node.name} contradicts itself ({contradiction.offence}), and the "
                "ledger does not have the proof"
            ),
            expected="an EquivocationProven with this evidence",
            found=f"era {contradiction.era}, epoch {contradiction.epoch}, "
            f"height {contradiction.position}",
            evidence=tuple(message.hex() for message in proven.messages),
        )

    def list_faults(self, proven: Iterable[Contradiction]) -> Iterator[Finding]:
        """Yield what is wrong with nodes and says nothing about the log.

        Args:
            proven: Contradictions already on the ledger; those are listed elsewhere.
        """
        for faults in self.state.faults.values():
            yield from faults.values()
        known = frozenset(proven)
        for contradiction, finding in self.state.accused.items():
            if contradiction not in known:
                yield finding

    # Cosignatures

    def _add_cosignature(self, said: Said, height: int, place: Place) -> None:
        checkpoint = said.checkpoint
        assert checkpoint is not None, "verify_record parsed it"
        found, size = (checkpoint.size, checkpoint.root), checkpoint.size
        # Only the node vouches for the height; the log signed the rest too.
        true_height = self._find_height(size)
        ours = self.head(true_height)
        if ours != found:
            self._add(
                Finding(
                    code=FindingCode.COSIGNATURE_DIFFERS,
                    place=place,
                    message="log and ledger node signed another log than this one",
                    expected="no such block" if ours is None else _show_head(*ours),
                    found=_show_head(*found),
                )
            )
            return
        if height != true_height:
            finding = Finding(
                code=FindingCode.COSIGNATURE_MISPLACED,
                place=place,
                message="a ledger node cosigned a checkpoint as another block's",
                expected=f"block {true_height}",
                found=f"block {height}",
            )
            self._blame(said.public_key, (-1, height), finding)
            return
        mine = self.state.cosigned.setdefault(said.public_key.hex(), {})
        if size in mine:
            return
        self._count(said.public_key).num_cosignatures += 1
        mine[size] = said.timestamp_s
        if len(mine) >= 2 * MAX_COSIGNED:
            for smaller in sorted(mine)[:-MAX_COSIGNED]:
                del mine[smaller]

    def _find_height(self, size: int) -> int:
        """Return the height of the block that ends at a size; -1 if none does."""
        low, high = 0, self.num_blocks
        while low < high:
            middle = (low + high) // 2
            if (self.head(middle) or (0,))[0] < size:
                low = middle + 1
            else:
                high = middle
        return low if (self.head(low) or (-1,))[0] == size else -1

    def _list_cosigned(self) -> list[int]:
        """Return the sizes that any node cosigned, the largest first."""
        sizes = {size for mine in self.state.cosigned.values() for size in mine}
        return sorted(sizes, reverse=True)

    def _nodes_at(self, height: int) -> NodeSet:
        """Return the node set that a block belongs to."""
        return next(
            era.node_set for era in reversed(self.state.eras) if height > era.start[0]
        )

    def _find_cosigned(self) -> tuple[int, int]:
        """Return size and time of the largest checkpoint that a quorum cosigned."""
        for size in self._list_cosigned():
            nodes = self._nodes_at(self._find_height(size))
            times = sorted(
                mine[size]
                for key, mine in self.state.cosigned.items()
                if size in mine and nodes.find(bytes.fromhex(key)) is not None
            )
            if len(times) >= nodes.quorum:
                return size, times[nodes.quorum - 1]
        return 0, 0

    @property
    def num_cosigned(self) -> int:
        """How many of the remembered sizes any node cosigned."""
        return len(self._list_cosigned())

    def find_accepted(
        self, policy: Policy, genesis: bytes, sequencer_key: bytes
    ) -> int:
        """Return the size of the largest checkpoint that a policy accepts; 0 if none.

        Args:
            policy: The reader's.
            genesis: Hash of the log's genesis, 32 bytes.
            sequencer_key: The key that signs the log's checkpoints, 32 bytes.
        """
        log_key = make_log_key(self._federation_id, genesis, sequencer_key)
        if log_key not in [log.key for log in policy.logs]:
            return 0
        cosigned = self.state.cosigned
        vkeys = {key for era in self.state.eras for key in era.node_set.vkeys()}
        for size in self._list_cosigned():
            if policy.is_satisfied(
                k for k in vkeys if size in cosigned.get(k.public_key.hex(), {})
            ):
                return size
        return 0

    # The end

    def summarise(self, policy_size: int | None) -> Finality:
        """Return what was counted."""
        state = self.state
        num_certified = sum(state.certified)
        final = state.final_height
        size, at_s = self._find_cosigned()
        return Finality(
            final_height=final,
            final_size=(self.head(final) or (0,))[0],
            num_certified=num_certified,
            num_by_descendant=final + 1 - num_certified,
            num_not_final=self.num_blocks - final - 1,
            num_epochs=sum(map(len, state.epochs.values())),
            cosigned_size=size,
            cosigned_at_s=at_s,
            policy_size=policy_size,
            eras=tuple(
                EraReport(
                    era=era.node_set.era,
                    first_height=era.start[0] + 1,
                    quorum=era.node_set.quorum,
                    nodes=tuple(node.name for node in era.node_set.nodes),
                )
                for era in state.eras
            ),
            nodes=tuple(self._report_nodes()),
        )

    def _report_nodes(self) -> Iterator[NodeReport]:
        present = self.state.eras[-1].node_set
        known = {
            n.public_key: n.name for x in self.state.eras for n in x.node_set.nodes
        }
        for public_key, name in sorted(known.items(), key=lambda item: item[1]):
            count = self.state.nodes.get(public_key.hex(), NodeCount())
            yield NodeReport(
                name=name,
                public_key=public_key.hex(),
                is_present=present.find(public_key) is not None,
                num_attestations=count.num_attestations,
                last_height=count.last_height,
                num_cosignatures=count.num_cosignatures,
                num_blocks_behind=self.num_blocks - 1 - count.last_height,
            )


def hash_context(context: Context) -> bytes:
    """Return a digest that tells contexts apart, 32 bytes."""
    digest = hashlib.sha256(
        context.genesis + context.sequencer_key + context.federation_id.encode()
    )
    for node_set, start in context.eras:
        digest.update(node_set.chain_id + node_set.hash + start[1])
    return digest.digest()


def _show_head(size: int, root: bytes) -> str:
    return f"size {size}, root {root.hex()}"
