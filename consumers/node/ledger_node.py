"""A ledger node: verifies every block, attests, and cosigns what is final.

All of a node but sockets, Kafka and the clock: blocks and messages come in from
anywhere, and events go out through `LedgerNode.outbox` and the feed. Without a key, the
same class is an observer, such as the log server: it follows finality, publishes the
tiled log, and signs nothing.

    add_block       a block, from Kafka or another node   replayed (`node_blocks`)
    receive         what a node or the log said           counted (`ledger.consensus`)
    hear            the same, as bytes                    once
    tick            time passes                           a stalled epoch is given up
    add_checkpoint  the witness protocol                  cosigned, if it is final

Rules (ledger specification, section 2.4):

- A block is stored before it is attested (R1); votes are durable before a message
  leaves, and after a restart the same bytes go out again (R6).
- Final blocks go to the block store, then to the tiles, and are then cosigned, in order
  (R5). The same code makes up for a crash anywhere in between.
- A node that sees its own key say what it does not remember stops signing at once, for
  good. It keeps observing.
- A block with a claim that its blobs prove false is not attested, nor is what follows
  it. It is stored only if it becomes final, so a restart checks it again
  (`node_rechecks`).
- A federation without ledger nodes has no finality: every verified block counts, and
  the log's own signature suffices to publish it.

One thread makes all calls. Methods may raise `OSError` and the stores' errors: then the
node must stop, since it cannot remember.
"""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from typing import Any, Final

from adapters.block_store import BlockStore, BlockStoreError, StoredBlock
from adapters.tile_store import TileStore, TileStoreError
from adapters.vote_log import VoteLog
from consumers.node.blocks import BlockTree, TreeBlock, UnfitBlockError
from consumers.node.checkpoints import CheckpointDesk
from consumers.node.cosigner import Cosigner
from consumers.node.feed import AlertCode, Alerts, Feed, size_of
from consumers.node.rechecks import Rechecker, RecheckTally
from ledger.attestations import (
    Header,
    InvalidMessageError,
    NodeSet,
    Start,
    order,
)
from ledger.consensus import (
    MAX_COSIGNABLE,
    Consensus,
    Effects,
    Finalised,
    InvalidBlockError,
)
from ledger.equivocation import Contradiction, identify_contradiction
from ledger.finality import FinalityProof
from ledger.note import InvalidNoteError
from ledger.signing import SigningKey
from ledger.tiles import tree_from_tiles
from ledger.votes import VoteState
from ledger.witness import (
    InvalidRequestError,
    Refusal,
    judge,
    make_response,
    parse_request,
)
from protocol.log import ForeignRecordError
from protocol.replay import Unframe
from schemas import codec
from schemas import events as e

log = logging.getLogger(__name__)

PATIENCE_S: Final = 4.0
"""How long an epoch may go without a possible certificate; doubles each time."""
MAX_PATIENCE_S: Final = 64.0
"""Where doubling ends, and how long signs of life restart it."""
REPLAYS_OF_PATIENCE: Final = 4
"""An epoch gets at least this many times the longest recent replay here: others replay
that block too, on slower machines or on this one."""
RECENT_REPLAYS: Final = 32
MAX_HEARD: Final = 2_048
"""Messages recognised by their digests. Each comes from Kafka and from every node; a
few seconds' worth is enough, and takes less than the messages themselves."""
MAX_EARLY: Final = 8_192
"""Messages of future eras, or from before the first block, that are kept."""
MAX_EARLY_SIZE_BYTES: Final = 2**24
"""For all of these together: no signature is checked yet."""
MAX_OUTBOX: Final = 4_096
MAX_EVIDENCE: Final = 256
FEED_MARGIN: Final = 32
"""How far below the last final block the feed reaches."""
PRUNE_EVERY: Final = 8
"""Blocks between two prunings of the feed."""
_ELSEWHERE: Final = "own key used elsewhere"
"""A note in older block stores, now remembered with the votes."""


class LedgerNode:
    """One node of one federation; an observer if it has no votes.

    Args:
        federation_id: Whose log.
        votes: Its key and memory; None for an observer.
        blocks: Its blocks.
        tiles: Publishes the log.
        unframe: Maps a refused record's value to single-object bytes.
        clock: Seconds since 1970-01-01 UTC, only for cosignatures and alerts.
        operator_key: Public key of the expected founder; None takes the log's word.
        genesis: Hash of the genesis, 32 bytes; None takes any by that operator.
        rechecker: Checks the blobs of rounds; None, or an observer, checks none.

    Raises:
        BlockStoreError: a stored block does not follow from those before it.
        VoteLogError: the key may not sign for this log.
    """

    def __init__(
        self,
        federation_id: str,
        *,
        votes: VoteLog | None,
        blocks: BlockStore,
        tiles: TileStore,
        unframe: Unframe,
        clock: Callable[[], float],
        operator_key: bytes | None = None,
        genesis: bytes | None = None,
        rechecker: Rechecker | None = None,
    ) -> None:
        self.federation_id = federation_id
        self.alerts = Alerts(clock)
        self.feed = Feed(int(clock() * 1_000))
        self.outbox: deque[e.Event] = deque(maxlen=MAX_OUTBOX)
        self.evidence: list[e.EquivocationProven] = []
        self.last_cosigned: bytes | None = None
        self.blocks = blocks
        self.tiles = tiles
        self.tree = BlockTree(
            federation_id,
            unframe,
            self.alerts,
            operator_key=operator_key,
            genesis=genesis,
        )
        self.desk = CheckpointDesk(federation_id, tiles, self.alerts)
        self._votes = votes
        self._clock = clock
        self.consensus: Consensus | None = None
        """The present era's; None before the first block or without nodes."""
        self.nodes: NodeSet | None = None
        """The present era's nodes; None before the first block or without nodes."""
        self._early: deque[bytes] = deque()
        self._early_size_bytes = 0
        self._heard: OrderedDict[bytes, None] = OrderedDict()
        self._reported: set[Contradiction] = set()
        self._cosigner = None
        if votes is not None:
            self._cosigner = Cosigner(votes, self.desk, clock, self._publish_cosigned)
        self._now_s = 0.0
        self._is_ticking = False
        self._may_publish = True
        self._waits_since_s: float | None = None
        self._stalled_since_s = 0.0
        self._pruned = (-1, -1)
        self._place = (-1, -2)
        self._life = (0, 0)
        self._patience_s = PATIENCE_S
        self._replays_s: deque[float] = deque(maxlen=RECENT_REPLAYS)
        self._is_signing = False
        if votes is not None and (votes.is_retired or blocks.note(_ELSEWHERE)):
            self._retire(votes)
        self._tally = RecheckTally()
        self._restore()
        if votes is not None:
            self.tree.rechecker = rechecker

    # What it knows

    @property
    def name(self) -> str:
        """This node's name in the present era; empty for an observer."""
        if self._votes is None or self.nodes is None:
            return ""
        node = self.nodes.find(self._votes.key.public_key)
        return "" if node is None else node.name

    @property
    def signs(self) -> bool:
        """Whether it may sign now."""
        return self._is_signing and self.consensus is not None

    def describe(self) -> dict[str, Any]:
        """Return the node's status, as JSON types."""
        consensus, final = self.consensus, self.tree.final
        certificates = () if consensus is None else consensus.certificates()
        return {
            "federation": self.federation_id,
            "name": self.name,
            "signs": self.signs,
            "era": -1 if self.nodes is None else self.nodes.era,
            "epoch": -1 if consensus is None else consensus.epoch,
            "pending_height": self.tree.height,
            "certified_height": max((c.height for c in certificates), default=-1),
            "final_height": self.tree.final_height,
            "final_size": 0 if final is None else final.header.tree_size,
            "final_id": "" if final is None else final.header.id.hex(),
            "published_size": self.tiles.published_size,
            "cosigned_size": 0 if consensus is None else consensus.votes.cosigned_size,
            "evidence": len(self.evidence),
            "rechecks": None if self.tree.rechecker is None else self._tally.describe(),
            "alerts": [asdict(alert) for alert in self.alerts.all()],
        }

    # Starting

    def _restore(self) -> None:
        """Rebuild from what is stored, with the code that first took it in."""
        block: TreeBlock | None = None
        era_blocks: deque[Header] = deque(maxlen=MAX_COSIGNABLE)
        stored = None if self._votes is None else self._votes.votes
        cosigned = 0 if stored is None else stored.cosigned_size
        for kept in self.blocks.final_blocks():
            try:
                block = self.tree.verify(block, kept.data, kept.signature)
            except (ForeignRecordError, UnfitBlockError) as error:
                msg = f"stored block {kept.height} does not follow: {error}"
                raise BlockStoreError(msg) from error
            if block.header.id != kept.id:
                raise BlockStoreError(
                    f"block {kept.height} is stored under another id: delete the store"
                )
            self._append(block)
            if block.changes_nodes or block.header.tree_size <= cosigned:
                era_blocks.clear()
            era_blocks.append(block.header)
        if block is not None:
            self._check_tiles(block.header)
            self.tree.settle(block)
            self._resume(block, tuple(era_blocks))
        for pending in self.blocks.pending_blocks():
            self.add_block(pending.data, pending.signature)
            if self.tree.find(pending.id) is None:
                self.blocks.forget(pending.id)

    def _resume(self, last: TreeBlock, finals: tuple[Header, ...]) -> None:
        """Continue from stored final blocks. The latest become final again by their
        proof, so what was not cosigned before a crash is now.
        """
        if last.next_nodes is None:
            known = last.state.log
            self.desk.begin(known.genesis, known.sequencer_key, None)
            return
        first, *rest = finals
        self._open_era(last, first)
        for header in rest:
            self._add_header(header)
        data = self.blocks.last_proof(last.next_nodes.era)
        if data is not None:
            self.add_proof(FinalityProof.from_bytes(data))

    def _open_era(self, last: TreeBlock, final: Header | None) -> None:
        """Begin the era of a block's child.

        Args:
            last: A block of the era, or the last one of the era before.
            final: A final block of the era, or its start; None before any.
        """
        nodes, start = last.next_nodes, last.next_start
        assert nodes is not None, "an era has nodes"
        self.nodes = nodes
        key, votes = self._find_votes(nodes, start)
        self._is_signing = key is not None
        self.consensus = Consensus(
            nodes, self.federation_id, start, key=key, votes=votes, final=final
        )
        known = last.state.log
        self.desk.begin(known.genesis, known.sequencer_key, nodes)
        self._patience_s, self._waits_since_s = PATIENCE_S, None
        if final is not None and self._cosigner is not None:
            self._cosigner.add(final)
        # First of all: what is sent again is what was stored (R6).
        if self.signs:
            for message in self.consensus.resend():
                self.feed.add_attestation(message, message.public_key)
                self.outbox.append(message)
        self._receive_early()

    def _receive_early(self) -> None:
        self._heard.clear()  # what did not fit may come again
        early, self._early, self._early_size_bytes = self._early, deque(), 0
        for data in early:
            event = codec.decode(data)
            assert isinstance(event, e.Event), "it was one"
            with suppress(InvalidMessageError, InvalidNoteError):
                self.receive(event, data)

    def _keep_early(self, event: e.Event, data: bytes | None) -> None:
        """Keep a message for later; when there are too many, the oldest go."""
        # Encoded: decoded, it may take many times the memory.
        data = data or codec.encode(event)
        self._early.append(data)
        self._early_size_bytes += len(data)
        while (
            len(self._early) > MAX_EARLY
            or self._early_size_bytes > MAX_EARLY_SIZE_BYTES
        ):
            self._early_size_bytes -= len(self._early.popleft())

    def _find_votes(
        self, nodes: NodeSet, start: Start
    ) -> tuple[SigningKey | None, VoteState | None]:
        """Return the key to sign with in an era, and the votes to remember."""
        own = self._votes
        if own is None or nodes.find(own.key.public_key) is None or own.is_retired:
            return None, None
        own.bind(nodes.chain_id)
        stored = own.votes
        if stored is None or stored.era == nodes.era:
            return own.key, stored
        if stored.era > nodes.era:  # the blocks were lost, the votes were not
            return None, None
        votes = VoteState.begin(
            nodes.era,
            start,
            cosigned_size=stored.cosigned_size,
            cosigned_root=stored.cosigned_root,
        )
        return own.key, votes

    # Blocks

    def add_block(self, data: bytes, signature: bytes) -> None:
        """Take an encoded block as received. Idempotent; useless blocks are ignored.

        Raises:
            RegistryAwayError: it cannot be judged yet: add it again.
        """
        try:
            added = self.tree.add(data, signature)
        except ForeignRecordError as error:
            log.warning("passing over a block: %s", error)
            return
        for block in added:
            self._take_block(block)

    def _take_block(self, block: TreeBlock) -> None:
        self._tally.add(block.rechecked, block.header.height)
        for falsehood in block.rechecked.falsehoods:
            detail = f"block {block.header.height}, {block.hash.hex()}: {falsehood}"
            self.alerts.add(AlertCode.BLOCK_INVALID, detail)
        if not block.is_refused:
            self._store_block(block)
        if block.next_nodes is None:
            if block.header.height == 0:
                known = block.state.log
                self.desk.begin(known.genesis, known.sequencer_key, None)
                self._receive_early()
            self._make_final(block, None)
            self._publish()
            return
        if self.consensus is None:
            self._open_era(block, None)
        if self.nodes is not None and block.header.era == self.nodes.era:
            self._add_to_consensus(block)

    def _store_block(self, block: TreeBlock) -> None:
        self.blocks.add(
            StoredBlock(
                id=block.header.id,
                height=block.header.height,
                hash=block.hash,
                signature=block.signature,
                data=block.data,
            )
        )

    def _add_to_consensus(self, block: TreeBlock) -> None:
        self._add_header(
            block.header,
            changes_nodes=block.changes_nodes,
            is_refused=block.is_refused,
        )

    def _add_header(
        self, header: Header, *, changes_nodes: bool = False, is_refused: bool = False
    ) -> None:
        assert self.consensus is not None, "an era is open"
        try:
            effects = self.consensus.add_block(
                header, changes_nodes=changes_nodes, is_refused=is_refused
            )
        except InvalidBlockError as error:
            # Of another genesis, or behind an era's last block on another branch.
            log.warning("block %d cannot be attested: %s", header.height, error)
        else:
            self._apply(effects)

    def add_proof(self, proof: FinalityProof) -> None:
        """Take a finality proof of the present era, from another node.

        Raises:
            InvalidMessageError: it is not valid.
        """
        for certificate in (proof.certificate, proof.child_certificate):
            if self.consensus is None or self.nodes is None:
                return
            if certificate.era == self.nodes.era:
                self._apply(self.consensus.receive(certificate))

    def _apply(self, effects: Effects) -> None:
        """Carry out what the consensus wants, in the only safe order."""
        assert self.consensus is not None, "effects come from it"
        if self.consensus.key_used_elsewhere and self._votes is not None:
            self._retire(self._votes)
        if self.signs:
            if effects.votes is not None:
                self._store(effects.votes)
            for message in effects.messages:
                self._send(message)
        for finalised in effects.finalised:
            self._settle(finalised)
        for proven in effects.contradictions:
            self._report(proven)
        self.tree.missing = effects.missing
        if effects.finalised:
            self._patience_s = PATIENCE_S
            self._prune_feed()
            self._cosign_and_publish()
        if self.consensus.ended is not None:
            self._begin_next_era()

    def _store(self, votes: VoteState) -> None:
        assert self._votes is not None, "an observer has none"
        self._votes.store(votes)

    def _send(self, event: e.Attestation) -> None:
        """Tell everybody. Whatever it rests on is durable by now."""
        assert self._votes is not None, "an observer says nothing"
        data = codec.encode(event)
        self.feed.add_attestation(event, self._votes.key.public_key, data)
        self.outbox.append(event)
        # Kafka and all others bring it back: these very bytes are no news.
        self._remember(data)

    def _settle(self, finalised: Finalised) -> None:
        header, proof = finalised.header, finalised.proof
        if header.height > self.tree.final_height:
            block = self.tree.find(header.id)
            assert block is not None, "what was attested is in the tree"
            place = proof.header.era, proof.header.height, proof.to_bytes()
            self._make_final(block, place)
        if self._cosigner is not None:
            self._cosigner.add(header)

    def _make_final(
        self, block: TreeBlock, proof: tuple[int, int, bytes] | None
    ) -> None:
        if block.is_refused:
            log.error("block %d is final nevertheless", block.header.height)
            self._store_block(block)
        # After a crash between these two, `_restore` appends what the tiles lack.
        self.blocks.finalise(block.header.id, proof)
        self._append(block)
        self._check_tiles(block.header)
        self.tree.settle(block)
        self.desk.check_final(block.header.tree_size, block.header.tree_root)

    def _append(self, block: TreeBlock) -> None:
        if self.tiles.size == block.header.tree_size - len(block.leaves):
            self.tiles.append(block.leaves, block.leaf_hashes)

    def _check_tiles(self, header: Header) -> None:
        size = self.tiles.size
        tree = self.tiles.tree()
        if size > header.tree_size:  # the blocks were lost, and the tiles were not
            tree = tree_from_tiles(self.tiles.read_tile, header.tree_size)
        if (tree.size, tree.root()) != (header.tree_size, header.tree_root):
            msg = f"the tiles belong to another log than block {header.height}"
            raise TileStoreError(msg)

    def _begin_next_era(self) -> None:
        last = self.tree.final
        assert last is not None, "an era ends with a final block"
        assert last.changes_nodes, "which changes the nodes"
        self._cosign_and_publish()
        if self._cosigner is not None:
            self._cosigner.clear()
        self._open_era(last, last.header)
        assert self.nodes is not None
        log.info("era %d begins after block %d", self.nodes.era, last.header.height)
        for block in self.tree.pending():
            if block.header.era == self.nodes.era:
                self._add_to_consensus(block)
        self._cosign_and_publish()

    def _retire(self, votes: VoteLog) -> None:
        """Stop signing for good, whatever is deleted and whenever the node restarts."""
        if not votes.is_retired:
            votes.retire()
        self._is_signing = False
        detail = (
            "a message with this node's signature is not in its vote log: it signs no "
            "more; make a new key and have the node set changed"
        )
        self.alerts.add(AlertCode.OWN_KEY_USED_ELSEWHERE, detail)

    # Messages

    def hear(self, data: bytes) -> None:
        """Take an encoded event from anybody. Idempotent.

        Raises:
            CodecError: it is no event.
            InvalidMessageError: it is invalid; likewise `InvalidNoteError`.
        """
        if hashlib.sha256(data).digest() in self._heard:
            return
        kind = codec.kind_of(data)
        if not issubclass(kind, e.Attestation | e.CheckpointSigned):
            raise InvalidMessageError(f"nobody tells a ledger node a {kind.__name__}")
        event = codec.decode_as(kind, data)
        self.receive(event, data if codec.is_present(event, data) else None)
        self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Ignore a message when it comes again."""
        self._heard[hashlib.sha256(data).digest()] = None
        if len(self._heard) > MAX_HEARD:
            self._heard.popitem(last=False)

    def receive(self, event: e.Event, data: bytes | None = None) -> None:
        """Take what a node or the log said, from anywhere. Idempotent.

        Raises:
            InvalidMessageError: it is invalid.
            InvalidNoteError: likewise, for a checkpoint.
        """
        if event.federation_id != self.federation_id:
            msg = f"a message of federation {event.federation_id!r}"
            raise InvalidMessageError(msg)
        match event:
            case e.BlockAttested() | e.EpochRequested():
                if self.nodes is None or event.era > self.nodes.era:
                    self._keep_early(event, data)
                elif event.era == self.nodes.era and self.consensus is not None:
                    self._apply_message(event, self.consensus, data)
            case e.CheckpointSigned() | e.CheckpointCosigned():
                if self.desk.log_key is None:
                    self._keep_early(event, data)
                else:
                    self._receive_checkpoint(event, data)
            case _:
                msg = f"nobody tells a ledger node a {type(event).__name__}"
                raise InvalidMessageError(msg)

    def _apply_message(
        self,
        event: e.BlockAttested | e.EpochRequested,
        consensus: Consensus,
        data: bytes | None,
    ) -> None:
        effects = consensus.receive(event)
        self.feed.add_attestation(event, event.public_key, data)
        self._apply(effects)

    def _receive_checkpoint(
        self, event: e.CheckpointSigned | e.CheckpointCosigned, data: bytes | None
    ) -> None:
        note = event.checkpoint.encode()
        self._take_signed(note, event.height)
        if isinstance(event, e.CheckpointCosigned):
            for author, own_note in self.desk.add_cosigned(note):
                own = replace(event, checkpoint=own_note.decode())
                self.feed.add_attestation(own, author, data if own == event else None)
        self._cosign_and_publish()

    def _take_signed(self, note: bytes, height: int) -> None:
        size = size_of(note.decode())
        is_new = self.desk.find(size) is None
        proven = self.desk.add_signed(note)
        if proven is not None:
            self._report(proven)
        assert self.desk.log_key is not None
        known = self.desk.find(size)
        if is_new and known is not None and proven is None:
            event = e.CheckpointSigned(
                federation_id=self.federation_id,
                height=height,
                checkpoint=known.decode(),
            )
            self.feed.add(event, self.desk.log_key.public_key, size)

    def _report(self, proven: e.EquivocationProven) -> None:
        """Publish evidence, once; only a node may report."""
        contradiction = identify_contradiction(proven)
        if contradiction in self._reported:
            return
        self._reported.add(contradiction)
        detail = (
            f"{contradiction.offence} by {contradiction.public_key.hex()} at era "
            f"{contradiction.era}, epoch {contradiction.epoch}, "
            f"position {contradiction.position}"
        )
        self.alerts.add(AlertCode.EQUIVOCATION, detail)
        if self._votes is None or len(self.evidence) >= MAX_EVIDENCE:
            return
        proven = replace(proven, reported_by=self._votes.key.public_key)
        self.evidence.append(proven)
        last = self.tree.final
        is_known = last is not None and contradiction in last.state.admission.proven
        if self.signs and not is_known:
            self.outbox.append(proven)

    def _prune_feed(self) -> None:
        final = self.tree.final
        assert final is not None
        assert self.nodes is not None
        # This scans all entries, so not for every block: they go a little later.
        place = self.nodes.era, final.header.height // PRUNE_EVERY
        if place == self._pruned:
            return
        self._pruned = place
        self.feed.prune(
            era=self.nodes.era,
            height=final.header.height - FEED_MARGIN,
            # Until it is published, readers need the feed's; then /checkpoint has it.
            size=min(self.tiles.published_size, final.header.tree_size),
        )

    # Checkpoints

    def _cosign_and_publish(self, up_to: int | None = None) -> None:
        if self._cosigner is not None and self.signs and self.consensus is not None:
            self._cosigner.cosign(self.consensus, self.name, self._now_s, up_to)
        self._publish()

    def _publish(self) -> None:
        # Syncing the files takes longer than all else: once between two ticks will do.
        if self._may_publish and self.desk.publish():
            self._may_publish = not self._is_ticking

    def _publish_cosigned(self, height: int, cosigned: bytes) -> None:
        self.last_cosigned = cosigned
        event = e.CheckpointCosigned(
            federation_id=self.federation_id,
            height=height,
            checkpoint=cosigned.decode(),
        )
        self._send(event)
        self.desk.add_cosigned(cosigned)

    def add_checkpoint(self, body: bytes) -> bytes | Refusal:
        """Answer a request of the witness protocol.

        Checking and persisting is one step, as one thread makes all calls. What is not
        final here is not cosigned, however consistent it is: 503, ask again.
        """
        try:
            request = parse_request(body)
        except InvalidRequestError as error:
            return error.refusal
        if not self.signs or self.consensus is None or self._votes is None:
            return Refusal(503, b"this server cosigns nothing now\n")
        log_key = self.desk.log_key
        assert log_key is not None, "an era is open"
        votes = self.consensus.votes
        verdict = judge(
            request,
            origin=self.desk.origin,
            log_key=log_key,
            stored_size=votes.cosigned_size,
            stored_root=votes.cosigned_root,
        )
        if isinstance(verdict, Refusal):
            return verdict
        self._take_signed(request.signed_note, 0)
        self._cosign_and_publish(up_to=verdict.size)
        votes = self.consensus.votes
        if (votes.cosigned_size, votes.cosigned_root) != (verdict.size, verdict.root):
            return Refusal(503, b"this checkpoint is not final here yet\n")
        return make_response(
            request.signed_note, self.name, self._votes.key, int(self._clock())
        )

    # Time

    def note_replay(self, took_s: float) -> None:
        """Take how long a block's replay took, by the clock."""
        self._replays_s.append(took_s)

    def _find_patience_s(self) -> float:
        """Return how long an epoch may stall now."""
        busy_s = REPLAYS_OF_PATIENCE * max(self._replays_s, default=0.0)
        return min(max(self._patience_s, busy_s), MAX_PATIENCE_S)

    def tick(self, now_s: float) -> None:
        """Let time pass: a stalled epoch is abandoned (R7).

        Args:
            now_s: A clock that never steps back, seconds.
        """
        self._now_s = now_s
        self._is_ticking = self._may_publish = True
        self._cosign_and_publish()
        if self.consensus is None or not self.signs:
            return
        parent = max(
            (
                certificate
                for certificate in self.consensus.certificates()
                if certificate.epoch == self.consensus.epoch
            ),
            key=order,
            default=self.consensus.votes.base,
        )
        place = self.consensus.epoch, parent.height
        heard = self.consensus.count_attesters(parent.height + 1)
        life = heard, self.tree.num_added
        # A certified tip without a child waits for the log alone.
        is_waiting = any(
            block.previous_id == parent.block_id
            and not self.consensus.is_refused(block)
            for block in self.consensus.pending
        )
        if not is_waiting or place != self._place:
            self._waits_since_s = None
        self._place = place
        if not is_waiting:
            return
        if self._waits_since_s is None:
            self._waits_since_s = self._stalled_since_s = now_s
        # A busy node has not heard the others out yet. But not for ever: a lying
        # sequencer can always make more blocks.
        is_alive = life != self._life or self.tree.is_replaying
        self._life = life
        if is_alive and now_s - self._waits_since_s < MAX_PATIENCE_S:
            self._stalled_since_s = now_s
        if now_s - self._stalled_since_s >= self._find_patience_s():
            self._stalled_since_s = now_s
            self._patience_s = min(2 * self._patience_s, MAX_PATIENCE_S)
            log.warning("epoch %d stalls at block %d", *place)
            self._apply(self.consensus.give_up())
