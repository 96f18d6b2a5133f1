"""Ledger nodes in a hostile world: real `Consensus` objects on an in-memory network.

One seed is one scenario. `World.live` lets everything go wrong: the Kafka operator shows
different blocks to different nodes, the network loses, delays, repeats and reorders
messages and falls into parts that change, time-outs come at any time, and nodes crash
at every point between receiving and sending. `World.heal` ends it: one view of the log,
everybody up, every message arrives, and something must become final.

Dishonest nodes are *twins*, two unmodified nodes with one key in different parts of the
network (Bano et al., "Twins: BFT Systems Made Robust"), or a *forger*, which signs
whatever completes somebody's certificate.

After every step the world checks what must always hold: one final block at a height,
one root for a cosigned size, and no honest node accused. `World.check_honesty` then
looks for any contradiction in all that honest nodes ever signed.

Signatures are an injected fake, since Ed25519 would take most of the time: `FakeKey` and
`use_fake_signatures`. Nobody here forges, so a hash under the public key is as good.
"""

from __future__ import annotations

import hashlib
import itertools
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Final

from ledger import attestations
from ledger.attestations import (
    START,
    Header,
    Message,
    NodeSet,
    sign_attestation,
    sign_epoch_request,
)
from ledger.consensus import Consensus, Effects, Finalised
from ledger.equivocation import find_contradiction, verify_equivocation
from ledger.finality import verify_finality, verify_last_block
from ledger.signing import InvalidSignatureError
from ledger.votes import VoteState
from schemas import events as e

FEDERATION: Final = "clinics"
CHAIN_ID: Final = hashlib.sha256(b"a chain").digest()
BEGIN: Final = (-1, START)
MAX_ROUNDS: Final = 12
"""In a healed world: f + 1 leaders may be dishonest or late, and before them bases may
differ for an epoch or two."""


class FakeKey:
    """A key that signs with a hash; see the module."""

    def __init__(self, name: str) -> None:
        self.public_key = hashlib.sha256(name.encode()).digest()

    def sign(self, message: bytes) -> bytes:
        return hashlib.blake2b(message, key=self.public_key).digest()


def _verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    if hashlib.blake2b(message, key=public_key).digest() != signature:
        raise InvalidSignatureError("not its signature")


def use_fake_signatures(monkeypatch) -> None:
    """Let attestations be verified as `FakeKey` signs them."""
    monkeypatch.setattr(attestations, "verify_signature", _verify)


def make_nodes(names: Iterable[str], era: int = 0) -> NodeSet:
    nodes = (
        e.LedgerNode(name=name, public_key=FakeKey(name).public_key, url="")
        for name in names
    )
    return NodeSet(era, CHAIN_ID, tuple(nodes))


class Twin(Consensus):
    """One of two nodes with one key.

    Unmodified but for one thing: it does not fall silent when it meets its twin (R6).
    """

    def _may_sign(self) -> bool:
        return self._key is not None and self._ended is None


@dataclass(frozen=True)
class Block:
    header: Header
    changes_nodes: bool


@dataclass(eq=False)
class Member:
    """A node, with what it has on its disk."""

    index: int
    key: FakeKey
    honest: bool
    kind: type[Consensus]
    consensus: Consensus
    stored: VoteState | None = None
    blocks: dict[bytes, Block] = field(default_factory=dict)
    final: Header | None = None
    up: bool = True


class Refused(AssertionError):
    """Something happened that must never happen."""


class World:
    """A log, its nodes, and an adversary.

    Args:
        seed: Which scenario.
        node_sets: Those of all eras.
        twins: Names of nodes that are two.
        forger: Name of a node that has no code, only a key.
        kind: Class of the honest nodes.
        watch: Told of everything that an honest node stored.
        max_height: No block is higher in `live`.
    """

    def __init__(
        self,
        seed: int,
        node_sets: tuple[NodeSet, ...],
        *,
        twins: Iterable[str] = (),
        forger: str | None = None,
        kind: type[Consensus] = Consensus,
        watch: Callable[[Member, Effects], None] | None = None,
        max_height: int = 8,
    ) -> None:
        self.rng = random.Random(seed)
        self.node_sets = node_sets
        self.forger = None if forger is None else FakeKey(forger)
        self.watch = watch
        self.max_height = max_height
        self.pool: dict[bytes, Block] = {}
        self.finals: dict[int, bytes] = {}
        self.cosigned: dict[int, bytes] = {}
        self.said: dict[bytes, dict[Message, None]] = {}
        self.queue: list[tuple[int, int, Message | e.QuorumCertificate]] = []
        self.crashes = 0.0
        twin_names = set(twins)
        self.dishonest = {FakeKey(name).public_key for name in twin_names}
        if self.forger is not None:
            self.dishonest.add(self.forger.public_key)
        names = sorted({n.name for nodes in node_sets for n in nodes.nodes})
        self.members: list[Member] = []
        for name in names:
            key = FakeKey(name)
            if forger == name:
                continue
            for _ in range(2 if name in twin_names else 1):
                honest = name not in twin_names
                member = Member(
                    len(self.members), key, honest, kind if honest else Twin, None
                )
                member.consensus = self.start(member, 0, BEGIN, None, None)
                self.members.append(member)
        self.parts = [0] * len(self.members)
        self.honest = [member for member in self.members if member.honest]

    def start(self, member, era, start, votes, final) -> Consensus:
        nodes = self.node_sets[era]
        key = member.key if nodes.find(member.key.public_key) else None
        return member.kind(nodes, FEDERATION, start, key=key, votes=votes, final=final)

    # What a node does with what a step wants.

    def handle(self, member: Member, effects: Effects) -> None:
        for block in effects.finalised:
            self.check_final(member, block)
        crash = self.rng.random() if self.crashes else 1.0
        if effects.votes is not None:
            if crash < self.crashes:
                self.crash(member)
                return
            member.stored = effects.votes
            if self.watch is not None and member.honest:
                self.watch(member, effects)
            # From here on it may be sent, now or after a restart.
            self.said.setdefault(member.key.public_key, {}).update(
                dict.fromkeys(effects.messages)
            )
            if crash < 2 * self.crashes:
                self.crash(member)
                return
        for message in effects.messages:
            self.send(member, message)
            if self.forger is not None:
                self.forge(message)
        for proven in effects.contradictions:
            self.check_evidence(member, proven)
        if effects.finalised:
            if crash < 3 * self.crashes:
                self.crash(member)
                return
            self.cosign(member, effects.finalised)
        if member.up and member.consensus.ended is not None:
            self.begin_era(member)

    def cosign(self, member: Member, finalised: Iterable[Finalised]) -> None:
        for block in finalised:
            header = block.header
            member.final = header
            if member.consensus.votes.cosigned_size >= header.tree_size:
                continue
            if member.consensus._key is None:
                continue
            size, root = header.tree_size, header.tree_root
            member.stored = member.consensus.mark_cosigned(size, root)
            if member.honest and self.cosigned.setdefault(size, root) != root:
                raise Refused(f"two roots were cosigned for size {size}")

    def begin_era(self, member: Member) -> None:
        ended = member.consensus.ended
        assert ended is not None
        before = self.node_sets[member.consensus.votes.era]
        verify_last_block(before, ended.header, ended.proof, self.start_of(member))
        member.final = ended.header
        start = ended.header.height, ended.header.id
        # An observer has nothing of its own to take along.
        old = member.stored or member.consensus.votes
        member.stored = VoteState.begin(
            before.era + 1,
            start,
            cosigned_size=old.cosigned_size,
            cosigned_root=old.cosigned_root,
        )
        member.consensus = self.start(
            member, before.era + 1, start, member.stored, ended.header
        )
        self.add_blocks(member)

    def start_of(self, member: Member) -> tuple[int, bytes]:
        return member.consensus._start

    def crash(self, member: Member) -> None:
        member.up = False

    def restart(self, member: Member) -> None:
        """Start a node again from its votes as bytes, and its blocks."""
        member.up = True
        votes = member.stored
        if votes is not None:
            votes = VoteState.from_bytes(votes.to_bytes())
        era = member.consensus.votes.era if votes is None else votes.era
        final = member.final
        if final is not None and self.rng.random() < 0.3:  # noqa: PLR2004
            # It may have lost its last final blocks, or all of this era's.
            final = None if final.era == era else final
        member.consensus = self.start(
            member, era, self.start_of(member), votes, final
        )
        self.add_blocks(member)

    def add_blocks(self, member: Member) -> None:
        for block in tuple(member.blocks.values()):
            if not member.up:
                return
            self.add_block(member, block)

    def add_block(self, member: Member, block: Block) -> None:
        """Let a node have a block whose parent it has."""
        header = block.header
        member.blocks[header.id] = block
        consensus = member.consensus
        if not member.up or header.era != consensus.votes.era:
            return
        known = consensus.find_block(header.previous_id) is not None
        if known or header.previous_id == consensus.final_id:
            self.handle(
                member,
                consensus.add_block(header, changes_nodes=block.changes_nodes),
            )

    # The log.

    def make_block(self, parent_id: bytes, label: int, *, changes: bool) -> Block:
        parent = self.pool.get(parent_id)
        era, height, size = 0, 0, 2
        if parent is not None:
            above = parent.header
            era, height = above.era + parent.changes_nodes, above.height + 1
            size = above.tree_size + 1 + label
        block_hash = hashlib.sha256(b"%d" % label + parent_id).digest()
        nodes = self.node_sets[era]
        header = Header(
            chain_id=CHAIN_ID,
            era=era,
            height=height,
            previous_id=parent_id,
            block_hash=block_hash,
            tree_size=size,
            tree_root=block_hash,
            state_root=block_hash,
            node_set_hash=nodes.hash,
        )
        changes = changes and era + 1 < len(self.node_sets)
        return self.pool.setdefault(header.id, Block(header, changes))

    def show(self, member: Member, block: Block) -> None:
        """Let a node have a block, and what comes before it."""
        line = [block]
        while line[-1].header.previous_id in self.pool:
            line.append(self.pool[line[-1].header.previous_id])
        for above in reversed(line):
            if above.header.id not in member.blocks:
                self.add_block(member, above)

    def tip_of(self, member: Member) -> bytes:
        """Return the block that a node waits for a child of, closing ones aside."""
        votes = member.consensus.votes
        for block_id in (votes.attested[1], votes.base.block_id):
            if block_id in self.pool or block_id == START:
                return block_id
        return member.consensus.final_id

    def fork(self) -> None:
        """Show a block to some nodes."""
        tips = [self.tip_of(self.rng.choice(self.members))]
        if self.pool and self.rng.random() < 0.2:  # noqa: PLR2004
            tips = list(self.pool)
        parent_id = self.rng.choice(tips)
        parent = self.pool.get(parent_id)
        if parent is not None and parent.header.height + 1 >= self.max_height:
            return
        if parent is not None and parent.changes_nodes:
            # The next era begins once somebody knows that this one is over.
            era = parent.header.era
            if all(m.consensus.votes.era <= era for m in self.members):
                return
        changes = self.rng.random() < 0.3  # noqa: PLR2004
        block = self.make_block(parent_id, self.rng.randrange(2), changes=changes)
        for member in self.members:
            if member.up and self.rng.random() < 0.7:  # noqa: PLR2004
                self.show(member, block)

    # The network.

    def send(self, member: Member, message: Message | e.QuorumCertificate) -> None:
        for other in self.members:
            if other.key.public_key != member.key.public_key:
                self.queue.append((member.index, other.index, message))

    def forge(self, message: Message) -> None:
        """Let the forger say what makes a certificate of somebody's message."""
        assert self.forger is not None
        nodes = self.node_sets[message.era]
        if nodes.find(self.forger.public_key) is None:
            return
        for member in self.members:
            if self.rng.random() < 0.5:  # noqa: PLR2004
                continue
            if isinstance(message, e.BlockAttested):
                header = self.find_header(message.block_id)
                forged: Message = sign_attestation(
                    self.forger, nodes, FEDERATION, message.epoch, header
                )
            else:
                known = [message.high]
                for other in self.members:
                    if other.consensus.votes.era == message.era:
                        known += other.consensus.certificates()
                high = self.rng.choice([c for c in known if c.epoch < message.epoch])
                forged = sign_epoch_request(
                    self.forger, nodes, FEDERATION, message.epoch, high
                )
            self.queue.append((member.index, member.index, forged))

    def find_header(self, block_id: bytes) -> Header:
        if block_id in self.pool:
            return self.pool[block_id].header
        return next(
            header
            for member in self.members
            if (header := member.consensus.find_block(block_id))
        )

    def deliver(self, position: int) -> None:
        source, target, message = self.queue[position]
        self.queue[position] = self.queue[-1]
        self.queue.pop()
        self.hand(self.members[source], self.members[target], message)

    def hand(self, source: Member, target: Member, message) -> None:
        if self.parts[source.index] != self.parts[target.index] or not target.up:
            return
        if message.era == target.consensus.votes.era:
            self.handle(target, target.consensus.receive(message))

    def sync(self, source: Member, target: Member) -> None:
        """Let a node ask another one for all it has."""
        if self.parts[source.index] != self.parts[target.index] or not source.up:
            return
        if source.key.public_key == target.key.public_key:
            return
        if source.consensus.votes.era > target.consensus.votes.era:
            self.catch_up(source, target)
        for message in (*source.consensus.certificates(), *source.consensus.resend()):
            self.hand(source, target, message)
        self.fetch(source, target)

    def fetch(self, source: Member, target: Member) -> None:
        if not target.up:
            return
        for _, block_id in target.consensus._find_missing():
            if block_id in source.blocks:
                self.show(target, self.pool[block_id])
            else:  # a closing child, perhaps: then what it closes
                for block in tuple(source.blocks.values()):
                    if block.changes_nodes:
                        self.show(target, block)

    def catch_up(self, source: Member, target: Member) -> None:
        """Show a node in an old era how that one ended."""
        last = source.consensus._start[1]
        self.show(target, self.pool[last])
        if target.up:
            proof = self.endings.get(last)
            for certificate in () if proof is None else proof:
                self.hand(source, target, certificate)

    @property
    def endings(self) -> dict[bytes, tuple[e.QuorumCertificate, ...]]:
        return self._endings

    _endings: dict[bytes, tuple[e.QuorumCertificate, ...]]

    # What must hold.

    def check_final(self, member: Member, block: Finalised) -> None:
        header = block.header
        if not member.honest:
            return
        if self.finals.setdefault(header.height, header.id) != header.id:
            raise Refused(f"two final blocks at height {header.height}")

    def check_evidence(self, member: Member, proven: e.EquivocationProven) -> None:
        if proven.public_key not in self.dishonest:
            raise Refused(f"an honest node was accused by {member.index}: {proven}")
        verify_equivocation(self.node_sets, bytes(32), proven)

    def check_honesty(self) -> None:
        """Look for contradictions in all that honest nodes ever signed."""
        for public_key, said in self.said.items():
            if public_key not in self.dishonest:
                for messages in candidates(said):
                    if find_contradiction(messages) is not None:
                        raise Refused(f"an honest node looks like a liar: {messages}")
