"""The blocks that a ledger node knows above its last final one, all verified.

A block comes from anywhere: Kafka, another node, the node's own store. It is replayed
on its parent as in an audit, and enters the tree only if the log, the deciders and
every leaf agree. Several blocks may share a parent if the sequencer lies; which one
counts is for `ledger.consensus`.

Rules:

- Only what the federation's sequencer signed is considered. The first block names the
  sequencer, and must come from the operator that the node was told to trust.
- A block whose parent is unknown waits, and the parent is requested from other nodes.
- What `consumers.node.rechecks` proves false stays in the tree: this node does not
  attest it, and a quorum that does makes it final here too.
- Memory is bounded. The caller stops reading Kafka while the tree `is_full`; there is
  always room for what other nodes certified.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from consumers.node.feed import AlertCode, Alerts
from consumers.node.rechecks import (
    NOTHING_CLAIMED,
    Rechecked,
    Rechecker,
    follow_block,
)
from ledger.attestations import START, Header, NodeSet, Start
from ledger.blocks import GENESIS_HASH, block_hash
from protocol.envelope import verify_event
from protocol.log import ForeignRecordError, LogError, LogState, verify_author
from protocol.replay import DeciderError, ReplayState, Unframe, replay_block
from protocol.round_view import RoundView
from protocol.rules import UnknownRulesError
from protocol.state_root import StateHasher

MAX_PENDING: Final = 1_024
"""Blocks above the last final one before no more are read from Kafka."""
MAX_PENDING_SIZE_BYTES: Final = 2**28  # = 268,435,456
MAX_ORPHANS: Final = 256
"""Blocks waiting for their parent."""
MAX_ORPHANS_SIZE_BYTES: Final = 2**27  # = 134,217,728
MAX_SIBLINGS: Final = 8
"""Blocks with one parent; a sequencer that signs more deserves no memory."""
MAX_REJECTED: Final = 4_096

NO_NODES_HASH: Final = bytes(32)
"""Stands for the node set of a federation without ledger nodes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreeBlock:
    """A verified block.

    Attributes:
        header: What is attested.
        hash: `ledger.blocks.block_hash`: how its child refers to it.
        data: Single-object encoding, as received.
        signature: The sequencer's, 64 bytes.
        state: What follows from the log up to it.
        leaves: Its leaves, encoded.
        leaf_hashes: Their hashes.
        changes_nodes: Whether other nodes attest its child.
        next_nodes: The nodes that attest its child; None if the federation has no
            ledger nodes.
        next_start: The block that its child's era starts from.
        view: The round in progress after it, if nodes check what is in its blobs.
        rechecked: What its blobs show about it.
    """

    header: Header
    hash: bytes
    data: bytes
    signature: bytes
    state: ReplayState
    leaves: tuple[bytes, ...]
    leaf_hashes: tuple[bytes, ...]
    changes_nodes: bool
    next_nodes: NodeSet | None
    next_start: Start
    view: RoundView | None
    rechecked: Rechecked

    @property
    def is_refused(self) -> bool:
        """Whether this node refuses to attest it, though it follows from the log."""
        return bool(self.rechecked.falsehoods)


@dataclass(frozen=True, slots=True)
class _Waiting:
    """A block that the sequencer signed, not verified yet.

    Attributes:
        previous: Its parent's hash.
        height: The height it states.
        digest: Its own hash.
        data: Single-object encoding, as received.
        signature: The sequencer's.
        log: The log state under whose key and genesis it is valid.
    """

    previous: bytes
    height: int
    digest: bytes
    data: bytes
    signature: bytes
    log: LogState


class RegistryAwayError(Exception):
    """The schema registry is silent, so a block cannot be judged: add it again."""


class UnfitBlockError(Exception):
    """A block that the sequencer signed is not what follows from the log."""


class UnjudgedBlockError(UnfitBlockError):
    """A block may be valid by rules unknown to this version, which attests none."""


class BlockTree:
    """Verified blocks from the last final one up.

    Args:
        federation_id: Whose log.
        unframe: Unframes refused values; raises `RegistryAwayError` if it cannot tell.
        alerts: Reports what the sequencer should not have signed.
        operator_key: Public key of the expected founder, 32 bytes; None takes the log's
            word.
        genesis: Hash of the genesis, 32 bytes; None takes any by that operator.
    """

    def __init__(
        self,
        federation_id: str,
        unframe: Unframe,
        alerts: Alerts,
        *,
        operator_key: bytes | None = None,
        genesis: bytes | None = None,
    ) -> None:
        self._root = ReplayState(log=LogState(federation_id=federation_id))
        self._unframe = unframe
        self._alerts = alerts
        self._operator_key = operator_key
        self._genesis = genesis
        self._hasher = StateHasher()
        self.final: TreeBlock | None = None
        """The last final block; None before any."""
        self._blocks: dict[bytes, TreeBlock] = {}
        self._by_hash: dict[bytes, TreeBlock] = {}
        self._size_bytes = 0
        # By the parent's hash they wait for, then by their own.
        self._orphans: OrderedDict[bytes, dict[bytes, _Waiting]] = OrderedDict()
        self._rejected: OrderedDict[bytes, None] = OrderedDict()
        # The last one whose signature was checked: several callers check in turn.
        self._looked: _Waiting | None = None
        self._replayed: dict[tuple[bytes, bytes], TreeBlock | UnfitBlockError] = {}
        self.rechecker: Rechecker | None = None
        """Checks the blobs of what is verified; set once the stored blocks are read,
        which were checked before they were stored."""
        self.num_added = 0
        """How many blocks were added: it grows while there is progress."""
        self.is_replaying = False
        """Whether a block is being replayed ahead."""
        self.missing: tuple[Start, ...] = ()
        """Height and id of blocks that others certified and that are unknown here."""

    @property
    def final_height(self) -> int:
        """Its height; -1 before any."""
        return -1 if self.final is None else self.final.header.height

    @property
    def height(self) -> int:
        """The highest known block's; -1 before any."""
        return max(
            (block.header.height for block in self._blocks.values()),
            default=self.final_height,
        )

    @property
    def tip(self) -> TreeBlock | None:
        """The highest block above the last final one, the first of several."""
        return max(
            self._blocks.values(), key=lambda block: block.header.height, default=None
        )

    def knows(self, digest: bytes) -> bool:
        """Return whether a block of this hash is here, waiting, or worthless."""
        return (
            self.find_hash(digest) is not None
            or digest in self._rejected
            or any(digest in group for group in self._orphans.values())
        )

    @property
    def is_full(self) -> bool:
        """Whether to read no more until something is final."""
        return (
            len(self._blocks) >= MAX_PENDING
            or self._size_bytes >= MAX_PENDING_SIZE_BYTES
        )

    def find(self, block_id: bytes) -> TreeBlock | None:
        """Return a block by its id: the last final one, or one above."""
        if self.final is not None and self.final.header.id == block_id:
            return self.final
        return self._blocks.get(block_id)

    def find_hash(self, digest: bytes) -> TreeBlock | None:
        """Return a block by its hash: the last final one, or one above."""
        if self.final is not None and self.final.hash == digest:
            return self.final
        return self._by_hash.get(digest)

    def pending(self) -> list[TreeBlock]:
        """Return the blocks above the last final one, parents first."""
        return sorted(self._blocks.values(), key=lambda block: block.header.height)

    def wanted(self, *, is_reading: bool = False) -> list[bytes]:
        """Return ids and hashes of blocks to fetch from other nodes.

        Args:
            is_reading: Whether blocks are being read anyway: those above all that are
                known here are mostly among them.
        """
        highest = self.height if is_reading else None
        ids = [
            block_id
            for height, block_id in self.missing
            if self.find(block_id) is None and (highest is None or height <= highest)
        ]
        waiting = {digest for group in self._orphans.values() for digest in group}
        parents = [
            digest
            for digest in self._orphans
            if digest not in waiting and self.find_hash(digest) is None
        ]
        return [*ids, *parents]

    def add(self, data: bytes, signature: bytes) -> list[TreeBlock]:
        """Add a block; returns what is new in the tree: it, and what waited for it.

        Raises:
            ForeignRecordError: the federation's sequencer did not sign it.
            RegistryAwayError: add it again.
        """
        item = self._look(data, signature)
        if item is None:
            return []
        if not self._is_first(item) and self.find_hash(item.previous) is None:
            self._wait(item)
            return self._connect([])
        return self._connect([item])

    def prepare(self, data: bytes, signature: bytes) -> Callable[[], None] | None:
        """Return what replays a block, and those waiting for it, ahead of `add`.

        It changes nothing that `add` would not, so another thread may run it meanwhile,
        one at a time. None if there is nothing to replay.

        Raises:
            ForeignRecordError: the federation's sequencer did not sign it.
        """
        item = self._look(data, signature)
        parent = None if item is None else self.find_hash(item.previous)
        if item is None or parent is None:
            return None
        orphans = {p: tuple(group.values()) for p, group in self._orphans.items()}
        todo = [(parent, item)]

        def replay() -> None:
            self.is_replaying, self._replayed = True, {}
            try:
                while todo:
                    before, this = todo.pop()
                    found = self._try(before, this)
                    self._replayed[this.digest, this.signature] = found
                    if isinstance(found, TreeBlock):
                        todo.extend((found, o) for o in orphans.get(found.hash, ()))
            except RegistryAwayError:
                pass  # `add` will find the same
            finally:
                self.is_replaying = False

        return replay

    def _try(self, parent: TreeBlock, item: _Waiting) -> TreeBlock | UnfitBlockError:
        try:
            return self.verify(parent, item.data, item.signature)
        except UnfitBlockError as error:
            return error

    def _look(self, data: bytes, signature: bytes) -> _Waiting | None:
        """Return a block that the sequencer signed, if it may be of any use."""
        digest = block_hash(data)
        if digest in self._rejected or self.find_hash(digest) is not None:
            return None
        state = self._root if self.final is None else self.final.state
        if self.final is None and self._blocks:
            state = next(iter(self._blocks.values())).state
        item = self._looked
        if item is None or (item.digest, item.signature, item.log.genesis) != (
            digest,
            signature,
            state.log.genesis,
        ):
            block, known = verify_author(state.log, data, signature)
            item = self._looked = _Waiting(
                previous=block.previous_block_hash,
                height=block.height,
                digest=digest,
                data=data,
                signature=signature,
                log=known,
            )
        return None if item.height <= self.final_height else item

    def _verify_signature(
        self, public_key: bytes, genesis: bytes, data: bytes, signature: bytes
    ) -> None:
        """Check a signature, unless it was the last one checked."""
        item = self._looked
        if item is None or (
            item.log.sequencer_key,
            item.log.genesis,
            item.signature,
            item.data,
        ) != (public_key, genesis, signature, data):
            verify_event(public_key, genesis, data, signature)

    def verify(
        self, parent: TreeBlock | None, data: bytes, signature: bytes
    ) -> TreeBlock:
        """Return a block, replayed on its parent; nothing is kept.

        Args:
            parent: The block before; None for the first.
            data: Single-object encoding.
            signature: The sequencer's.

        Raises:
            ForeignRecordError: the federation's sequencer did not sign it.
            UnfitBlockError: the sequencer did, and it does not follow.
            RegistryAwayError: it cannot be judged.
        """
        before = self._root if parent is None else parent.state
        try:
            replayed = replay_block(
                before,
                data,
                signature,
                unframe=self._unframe,
                verify=self._verify_signature,
            )
        except (ForeignRecordError, RegistryAwayError):
            raise
        except LogError as error:
            detail = f"{error}: expected {error.expected}, found {error.found}"
            raise UnfitBlockError(detail) from error
        except UnknownRulesError as error:
            raise UnjudgedBlockError(str(error)) from error
        except DeciderError as error:
            detail = f"leaf {error.leaf_index} cannot be read: {error}"
            raise UnfitBlockError(detail) from error
        except Exception as error:
            # A sequencer that lies must not be able to stop its verifiers.
            raise UnfitBlockError(f"{type(error).__name__}: {error}") from error
        if replayed.faults:
            fault = replayed.faults[0]
            detail = (
                f"leaf {fault.leaf_index}: {fault.code}: {fault.message}: expected "
                f"{fault.expected}, found {fault.found}"
            )
            raise UnfitBlockError(detail)
        state, leaves = replayed.state, replayed.leaves
        if parent is None:
            self._check_founder(state)
        node_sets = state.admission.node_sets
        nodes = node_sets[0] if parent is None and node_sets else None
        start: Start = (-1, START)
        if parent is not None:
            nodes, start = parent.next_nodes, parent.next_start
        header = Header(
            chain_id=state.log.genesis,
            era=0 if nodes is None else nodes.era,
            height=replayed.block.height,
            previous_id=START if parent is None else parent.header.id,
            block_hash=state.log.chain.previous_block_hash,
            tree_size=state.log.chain.size,
            tree_root=state.log.chain.tree.root(),
            state_root=self._hasher.compute_root(state),
            node_set_hash=NO_NODES_HASH if nodes is None else nodes.hash,
        )
        views = follow_block(None if parent is None else parent.view, replayed)
        following = node_sets[-1] if node_sets else None
        changes_nodes = following is not nodes and following != nodes
        return TreeBlock(
            header=header,
            hash=header.block_hash,
            data=data,
            signature=signature,
            state=state,
            leaves=replayed.block.leaves,
            leaf_hashes=tuple(leaf.opened.sequenced.leaf_hash for leaf in leaves),
            changes_nodes=changes_nodes,
            next_nodes=following,
            next_start=(header.height, header.id) if changes_nodes else start,
            view=views[-1],
            rechecked=NOTHING_CLAIMED
            if self.rechecker is None
            else self.rechecker.check(replayed, views),
        )

    def _check_founder(self, state: ReplayState) -> None:
        founder, genesis = state.admission.principals["OPERATOR"], state.log.genesis
        if self._operator_key is not None and founder != self._operator_key:
            detail = (
                f"{state.log.federation_id} was founded by {founder.hex()}; this node "
                f"trusts {self._operator_key.hex()}"
            )
        elif self._genesis is not None and genesis != self._genesis:
            detail = (
                f"{state.log.federation_id} was founded anew: the log has genesis "
                f"{genesis.hex()}; this node expects {self._genesis.hex()}"
            )
        else:
            return
        self._alerts.add(AlertCode.OTHER_GENESIS, detail)
        raise ForeignRecordError(detail, height=0)

    def settle(self, block: TreeBlock) -> None:
        """Make a block the last final one, and forget whatever does not follow it."""
        kept = {block.header.id}
        for candidate in self.pending():
            if candidate.header.previous_id in kept:
                kept.add(candidate.header.id)
        self.final = block
        self._blocks = {
            block_id: known
            for block_id, known in self._blocks.items()
            if block_id in kept and block_id != block.header.id
        }
        self._by_hash = {known.hash: known for known in self._blocks.values()}
        self._size_bytes = sum(len(known.data) for known in self._blocks.values())

    def _is_first(self, item: _Waiting) -> bool:
        return item.previous == GENESIS_HASH and self.final is None

    def _connect(self, waiting: list[_Waiting]) -> list[TreeBlock]:
        added: list[TreeBlock] = []
        for previous in [p for p in self._orphans if self.find_hash(p) is not None]:
            waiting += self._orphans.pop(previous).values()  # the registry was away
        while waiting:
            item = waiting.pop()
            try:
                block = self._grow(item)
            except RegistryAwayError:
                if not added:
                    raise
                for left in (item, *waiting):
                    self._wait(left)
                break
            if block is not None:
                added.append(block)
                waiting += self._orphans.pop(block.hash, {}).values()
        return added

    def _grow(self, item: _Waiting) -> TreeBlock | None:
        """Add a block whose parent is known, if it follows."""
        parent = self.find_hash(item.previous)
        siblings = [
            known
            for known in self._blocks.values()
            if known.header.previous_id
            == (START if parent is None else parent.header.id)
        ]
        try:
            found = self._replayed.pop((item.digest, item.signature), None)
            if isinstance(found, UnfitBlockError):
                raise found
            block = found or self.verify(parent, item.data, item.signature)
        except UnfitBlockError as error:
            height = 0 if parent is None else parent.header.height + 1
            detail = f"block {height}, {item.digest.hex()}: {error}"
            self._alerts.add(
                AlertCode.RULES_UNKNOWN
                if isinstance(error, UnjudgedBlockError)
                else AlertCode.BLOCK_INVALID,
                detail,
            )
            self._reject(item.digest)
            return None
        if len(siblings) >= MAX_SIBLINGS and not any(
            block.header.id == block_id for _, block_id in self.missing
        ):
            return None
        if siblings:
            detail = (
                f"the sequencer signed two blocks {block.header.height}: "
                f"{siblings[0].hash.hex()} and {block.hash.hex()}"
            )
            self._alerts.add(AlertCode.FORK, detail)
        self._blocks[block.header.id] = block
        self._by_hash[block.hash] = block
        self._size_bytes += len(block.data)
        self.num_added += 1
        return block

    def _reject(self, digest: bytes) -> None:
        """Remember that a block deserves no second look."""
        self._rejected[digest] = None
        if len(self._rejected) > MAX_REJECTED:
            self._rejected.popitem(last=False)

    def _wait(self, item: _Waiting) -> None:
        group = self._orphans.setdefault(item.previous, {})
        if len(group) < MAX_SIBLINGS:
            group[item.digest] = item
        while (
            sum(map(len, self._orphans.values())) > MAX_ORPHANS
            or sum(len(i.data) for g in self._orphans.values() for i in g.values())
            > MAX_ORPHANS_SIZE_BYTES
        ):
            # The oldest has waited longest for what perhaps nobody has.
            self._orphans.popitem(last=False)
