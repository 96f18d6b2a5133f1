"""Ledger nodes in a hostile world: real `Consensus` objects on an in-memory network.

One seed is one scenario. `World.live` lets everything go wrong: the Kafka operator
shows different blocks to different nodes, the network loses, delays, repeats and
reorders messages and falls into parts that change, time-outs come at any time, and
nodes crash at every point between receiving and sending. `World.heal` ends it: one view
of the log, everybody up, every message arrives, and something must become final.

Dishonest nodes are *twins*, two nodes with one key in different parts of the network
(Bano et al., "Twins: BFT Systems Made Robust"), unmodified or tireless, or a *forger*,
which signs whatever completes somebody's certificate.

After every step the world checks what must always hold: one final block at a height,
one root for a cosigned size, and no honest node accused. `World.check_honesty` then
looks for any contradiction in all that honest nodes ever signed.

Signatures are an injected fake, since Ed25519 would take most of the time: `FakeKey`
and `use_fake_signatures`. Nobody here forges, so a hash under the public key will do.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Final, TypeAlias

import pytest

from ledger import attestations
from ledger.attestations import (
    START,
    Header,
    Message,
    NodeSet,
    Start,
    order,
    sign_attestation,
    sign_epoch_request,
)
from ledger.consensus import Consensus, Effects, Finalised
from ledger.equivocation import find_contradiction, verify_equivocation
from ledger.finality import verify_finality
from ledger.signing import InvalidSignatureError, SigningKey
from ledger.votes import VoteState
from schemas import events as e
from tests.endings import verify_last_block

FEDERATION: Final = "clinics"
CHAIN_ID: Final = hashlib.sha256(b"a chain").digest()
BEGIN: Final = (-1, START)
CHANGE: Final = 2
"""Label of a block that changes the nodes; 0 and 1 are ordinary ones."""
MAX_ROUNDS: Final = 12
"""In a healed world: f + 1 leaders may be dishonest, and bases may differ at first."""

HALF: Final = 0.5
OFTEN: Final = 0.7

Sent: TypeAlias = Message | e.QuorumCertificate


class FakeKey(SigningKey):
    """A key that signs with a hash; see the module."""

    def __init__(self, name: str) -> None:
        super().__init__(hashlib.sha256(name.encode()).digest())

    def sign(self, message: bytes) -> bytes:
        return hashlib.blake2b(message, key=self.public_key).digest()


def _verify(public_key: bytes, message: bytes, signature: bytes) -> None:
    if hashlib.blake2b(message, key=public_key).digest() != signature:
        raise InvalidSignatureError("not its signature")


def use_fake_signatures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let attestations be verified as `FakeKey` signs them."""
    monkeypatch.setattr(attestations, "verify_signature", _verify)


make_key = cache(FakeKey)


@cache
def make_nodes(names: str, era: int = 0) -> NodeSet:
    nodes = (
        e.LedgerNode(name=name, public_key=make_key(name).public_key, url="")
        for name in names
    )
    return NodeSet(era, CHAIN_ID, tuple(nodes))


class TirelessTwin(Consensus):
    """One of two nodes with one key, unmodified but for one thing.

    It does not fall silent when it meets what its twin signed (R6). The unmodified
    class does, as it should: what its twin signed reaches it in a certificate or an
    epoch request before long, and from then on until a restart it is only a node that
    is down. So both kinds are played.
    """

    def _may_sign(self) -> bool:
        return self._key is not None and self.ended is None


class BrokenWorldError(AssertionError):
    """Something happened that must never happen."""


@dataclass(frozen=True)
class Block:
    header: Header
    changes_nodes: bool


@dataclass(eq=False)
class Member:
    """A node, and what it has on its disk."""

    index: int
    key: FakeKey
    honest: bool
    kind: type[Consensus]
    consensus: Consensus
    era: int = 0
    start: Start = BEGIN
    up: bool = True
    stored: VoteState | None = None
    blocks: dict[bytes, Block] = field(default_factory=dict)
    final: Header | None = None
    endings: list[Finalised] = field(default_factory=list)


class World:
    """A log, its nodes, and an adversary.

    Args:
        seed: Which scenario.
        node_sets: Those of all eras.
        twins: Names of the nodes that are two; one letter each.
        forger: Name of the node that has no code, only a key.
        kind: Class of the honest nodes.
        twin_kind: Class of the twins: the unmodified one, or `TirelessTwin`.
        watch: Told what an honest node stored, and why.
        max_height: No block is higher while everything goes wrong.
    """

    def __init__(
        self,
        seed: int,
        *node_sets: NodeSet,
        twins: str = "",
        forger: str = "",
        kind: type[Consensus] = Consensus,
        twin_kind: type[Consensus] = TirelessTwin,
        watch: Callable[[Member, Effects], None] | None = None,
        max_height: int = 8,
    ) -> None:
        self.rng = random.Random(seed)
        self.node_sets = node_sets
        self.watch = watch
        self.max_height = max_height
        self.forger = make_key(forger) if forger else None
        self.dishonest = {make_key(name).public_key for name in twins + forger}
        self.pool: dict[bytes, Block] = {}
        self.finals: dict[int, bytes] = {}
        self.cosigned: dict[int, bytes] = {}
        self.said: dict[bytes, dict[Message, None]] = {}
        self.queue: list[tuple[Member, Member, Sent]] = []
        self.evidence: list[e.EquivocationProven] = []
        self.crashes = 0.0
        self.crashed: Counter[str] = Counter()
        self.members: list[Member] = []
        for name in sorted({n.name for nodes in node_sets for n in nodes.nodes}):
            if name != forger:
                honest = name not in twins
                for _ in range(1 if honest else 2):
                    self._join(make_key(name), honest, kind if honest else twin_kind)
        self.honest = [member for member in self.members if member.honest]
        self.parts = [0] * len(self.members)

    def _join(self, key: FakeKey, honest: bool, kind: type[Consensus]) -> None:
        nodes = self.node_sets[0]
        signer = key if nodes.find(key.public_key) else None
        consensus = kind(nodes, FEDERATION, BEGIN, key=signer)
        self.members.append(Member(len(self.members), key, honest, kind, consensus))

    # What a node does with what a step wants.

    def handle(self, member: Member, effects: Effects) -> None:
        """Store, then send, then cosign; a crash may come anywhere between."""
        for block in effects.finalised:
            self.check_final(member, block)
        fate = self.rng.random() if self.crashes else 1.0
        if effects.votes is not None:
            if fate < self.crashes:
                self.crash(member, "before the votes were stored")
                return
            member.stored = effects.votes
            # From here on it may be sent, now or after a restart.
            said = self.said.setdefault(member.key.public_key, {})
            said.update(dict.fromkeys(effects.messages))
        if self.watch is not None and member.honest:
            self.watch(member, effects)
        if effects.votes is not None and fate < 2 * self.crashes:
            self.crash(member, "after the votes were stored")
            return
        for message in effects.messages:
            self.send(member, message)
        if effects.messages and fate < 3 * self.crashes:
            self.crash(member, "after sending")
            return
        for proven in effects.contradictions:
            self.check_evidence(proven)
        if effects.finalised and fate < 4 * self.crashes:
            self.crash(member, "between final and cosigned")
            return
        for block in effects.finalised:
            self.cosign(member, block.header)
        if member.consensus.ended is not None:
            self.begin_era(member, member.consensus.ended)

    def crash(self, member: Member, where: str) -> None:
        member.up = False
        self.crashed[where] += 1

    def cosign(self, member: Member, header: Header) -> None:
        member.final = header
        size, root = header.tree_size, header.tree_root
        observes = self.node_sets[member.era].find(member.key.public_key) is None
        if observes or member.consensus.votes.cosigned_size >= size:
            return
        if member.consensus.key_used_elsewhere and not member.honest:
            return
        member.stored = member.consensus.mark_cosigned(size, root)
        if member.honest and self.cosigned.setdefault(size, root) != root:
            raise BrokenWorldError(f"two roots were cosigned for size {size}")

    def begin_era(self, member: Member, ended: Finalised) -> None:
        nodes = self.node_sets[member.era]
        verify_last_block(nodes, ended.header, ended.proof, member.start)
        member.endings.append(ended)
        member.era += 1
        member.start = ended.header.height, ended.header.id
        member.final = ended.header
        before = member.consensus.votes
        votes = VoteState.begin(
            member.era,
            member.start,
            cosigned_size=before.cosigned_size,
            cosigned_root=before.cosigned_root,
        )
        member.stored = votes
        self.restart(member)

    def restart(self, member: Member) -> None:
        """Start a node from what is on its disk: votes as bytes, and blocks."""
        nodes = self.node_sets[member.era]
        votes, final = member.stored, member.final
        if votes is not None:
            votes = VoteState.from_bytes(votes.to_bytes())
        if final is not None and final.era == member.era and self.rng.random() < HALF:
            final = None  # it may as well read its blocks from the era's start
        member.consensus = member.kind(
            nodes,
            FEDERATION,
            member.start,
            key=member.key if nodes.find(member.key.public_key) else None,
            votes=votes,
            final=final,
        )
        member.up = True
        for block in tuple(member.blocks.values()):
            self.add_block(member, block)

    def add_block(self, member: Member, block: Block) -> None:
        header = block.header
        if not member.up:
            return
        member.blocks[header.id] = block
        if header.era != member.era:
            return
        consensus, parent_id = member.consensus, header.previous_id
        if parent_id == consensus.final_id or consensus._blocks.get(parent_id):
            changes = block.changes_nodes
            self.handle(member, consensus.add_block(header, changes_nodes=changes))

    # The log.

    def make_block(self, parent_id: bytes, label: int) -> Block:
        parent = self.pool.get(parent_id)
        above = None if parent is None else parent.header
        era = above.era + parent.changes_nodes if parent and above else 0
        content = hashlib.sha256(bytes([label]) + parent_id).digest()
        header = Header(
            chain_id=CHAIN_ID,
            era=era,
            height=above.height + 1 if above else 0,
            previous_id=parent_id,
            block_hash=content,
            tree_size=above.tree_size + 1 if above else 1,
            tree_root=content,
            state_root=content,
            node_set_hash=self.node_sets[era].hash,
        )
        return self.pool.setdefault(header.id, Block(header, label == CHANGE))

    def show(self, member: Member, block: Block) -> None:
        """Let a node have a block, and what comes before it."""
        line = [block]
        while (above := self.pool.get(line[-1].header.previous_id)) is not None:
            if above.header.id in member.blocks:
                break
            line.append(above)
        for one in reversed(line):
            self.add_block(member, one)

    def fork(self) -> None:
        """Show a block to some nodes; to each part of the network its own, perhaps."""
        votes = self.rng.choice(self.members).consensus.votes
        tips = [votes.attested[1], votes.base.block_id, *list(self.pool)[-4:]]
        parent_id = self.rng.choice(tips)
        parent = self.pool.get(parent_id)
        if parent is None and parent_id != START:
            return  # a closing child
        era = 0
        if parent is not None:
            era = parent.header.era + parent.changes_nodes
            if parent.header.height + 1 >= self.max_height:
                return
            if era > parent.header.era and all(m.era < era for m in self.members):
                return  # nobody knows yet that the era before is over
        labels = [0, 1] if era + 1 == len(self.node_sets) else [0, 1, CHANGE]
        label, apart = self.rng.choice(labels), self.rng.random() < HALF
        for member in self.members:
            if self.rng.random() < OFTEN:
                if apart:
                    label = labels[self.parts[member.index] % len(labels)]
                self.show(member, self.make_block(parent_id, label))

    # The network.

    def send(self, member: Member, message: Message) -> None:
        for other in self.members:
            if other.key is not member.key:
                self.queue.append((member, other, message))
        if self.forger is not None and member.honest:
            self.forge(self.forger, message)

    def forge(self, key: FakeKey, message: Message) -> None:
        """Let the forger tell some nodes what completes a certificate for them."""
        nodes = self.node_sets[message.era]
        for member in self.members:
            if self.rng.random() < HALF:
                continue
            forged: Message
            if isinstance(message, e.BlockAttested):
                header = self.find_header(message.block_id)
                forged = sign_attestation(key, nodes, FEDERATION, message.epoch, header)
            else:
                known = {message.high}
                for other in self.members:
                    if other.up:  # else it may have known what it never said
                        known |= set(other.consensus.certificates())
                high = self.rng.choice(
                    sorted((c for c in known if c.epoch < message.epoch), key=repr)
                )
                forged = sign_epoch_request(key, nodes, FEDERATION, message.epoch, high)
            self.queue.append((member, member, forged))

    def find_header(self, block_id: bytes) -> Header:
        return self.pool[block_id].header

    def hand(self, source: Member, target: Member, message: Sent) -> None:
        together = self.parts[source.index] == self.parts[target.index]
        if together and target.up and message.era == target.era:
            self.handle(target, target.consensus.receive(message))

    def sync(self, source: Member, target: Member) -> None:
        """Let a node ask another one for all that it lacks."""
        if not source.up or source.key is target.key:
            return
        if self.parts[source.index] != self.parts[target.index]:
            return
        while source.era > target.era and target.up:
            ending = source.endings[target.era]
            era = target.era
            self.show(target, self.pool[ending.header.id])
            self.hand(source, target, ending.proof.certificate)
            self.hand(source, target, ending.proof.child_certificate)
            if target.up and target.era == era:
                raise BrokenWorldError(f"the proof does not end era {era}")
        for message in (*source.consensus.certificates(), *source.consensus.resend()):
            self.hand(source, target, message)
        self.fetch(source, target)

    def fetch(self, source: Member, target: Member) -> None:
        """Let a node ask another one for blocks that it misses."""
        if not target.up or source.era != target.era:
            return
        for _, block_id in target.consensus.missing:
            wanted = source.blocks.get(block_id)
            if wanted is not None:
                self.show(target, wanted)
            elif source.consensus._blocks.get(block_id):
                # A closing child follows from the block that it closes.
                for block in tuple(source.blocks.values()):
                    if block.changes_nodes:
                        self.show(target, block)

    # One scenario.

    def live(self, num_steps: int) -> None:
        """Let everything go wrong for a while."""
        rng, members = self.rng, self.members
        self.crashes = rng.choice((0.0, 0.0, 0.02, 0.08))
        loss, turmoil = rng.choice((0.0, 0.1, 0.3)), rng.choice((0.0, 0.03, 0.1))
        patience = rng.choice((0.0, 0.03, 0.15))
        for _ in range(num_steps):
            what = rng.random()
            if what < turmoil:
                num_parts = rng.randint(1, 3)
                self.parts = [rng.randrange(num_parts) for _ in members]
            elif what < turmoil + patience:
                member = rng.choice(members)
                if member.up:
                    self.handle(member, member.consensus.give_up())
            elif what < turmoil + patience + 0.2:
                self.fork()
            elif what < turmoil + patience + 0.25:
                member = rng.choice(members)
                if not member.up:
                    self.restart(member)
                elif rng.random() < 2 * self.crashes:
                    fresh = order(member.consensus.high) > order(
                        member.consensus.votes.high
                    )
                    self.crash(member, "with a new certificate" if fresh else "idle")
                else:
                    self.sync(rng.choice(members), member)
            else:
                for _ in range(min(8, len(self.queue))):
                    self.pass_on(loss)

    def pass_on(self, loss: float) -> None:
        """Deliver a message, any one; or lose it, or deliver it again later."""
        position = self.rng.randrange(len(self.queue))
        sent = self.queue[position]
        fate = self.rng.random()
        if fate > loss / 3:  # else it will come again
            self.queue[position] = self.queue[-1]
            self.queue.pop()
        if fate < 1 - loss:
            self.hand(*sent)

    def heal(self) -> int:
        """Let everything go right, until all honest nodes have a new final block.

        Everything but the dishonest nodes, which may fall silent.

        Returns:
            How many rounds it took: the first has no time-out.
        """
        self.crashes = 0.0
        self.parts = [0] * len(self.members)
        for member in self.members:
            if not member.honest and self.rng.random() < HALF:
                member.up = False  # from now on it is silent
            elif not member.up:
                self.restart(member)
        before = max(member.consensus.final_height for member in self.honest)
        for num_rounds in range(MAX_ROUNDS):
            if num_rounds:
                for member in self.honest:
                    self.handle(member, member.consensus.give_up())
            self.settle()
            for _ in range(2):
                self.extend()
                self.settle()
            if all(m.consensus.final_height > before for m in self.honest):
                return num_rounds
        raise BrokenWorldError(f"nothing is final in {MAX_ROUNDS} healthy rounds")

    def settle(self) -> None:
        """Deliver everything, and let everybody ask everybody."""
        self.drain()
        for target in self.members:
            for source in self.members:
                self.sync(source, target)
        self.drain()

    def drain(self) -> None:
        while self.queue:
            sent, self.queue = self.queue, []
            for one in sent:
                self.hand(*one)

    def extend(self) -> None:
        """Go on with the log where the highest certificate of an honest node is."""
        _, _, parent_id = max(
            (m.era, order(m.consensus.high), m.consensus.high.block_id)
            for m in self.honest
        )
        parent = self.pool.get(parent_id)
        era = max(member.era for member in self.honest)
        if parent is None:
            if parent_id != START:
                return  # a closing child
        elif parent.changes_nodes and parent.header.era == era:
            return
        block = self.make_block(parent_id, 0)
        for member in self.members:
            self.show(member, block)

    # What must hold.

    def check_final(self, member: Member, block: Finalised) -> None:
        header = block.header
        verify_finality(self.node_sets[member.era], block.proof, member.start)
        known = self.finals.setdefault(header.height, header.id)
        if member.honest and known != header.id:
            raise BrokenWorldError(f"two final blocks at height {header.height}")

    def check_evidence(self, proven: e.EquivocationProven) -> None:
        if proven.public_key not in self.dishonest:
            raise BrokenWorldError(f"an honest node was accused: {proven}")
        verify_equivocation(self.node_sets, bytes(32), bytes(32), proven)
        self.evidence.append(proven)

    def check_honesty(self) -> None:
        """Look for contradictions in all that honest nodes ever signed."""
        for public_key, said in self.said.items():
            if public_key in self.dishonest:
                continue
            for messages in combine(said):
                if find_contradiction(messages) is not None:
                    raise BrokenWorldError(f"an honest node looks guilty: {messages}")


def combine(said: Iterable[Message]) -> Iterator[tuple[Message, ...]]:
    """Return all messages of one node that could be evidence together."""
    attested: dict[tuple[int, int, int], e.BlockAttested] = {}
    requested: dict[tuple[int, int], e.EpochRequested] = {}
    for message in said:
        if isinstance(message, e.BlockAttested):
            place = message.era, message.epoch, message.height
            yield attested.setdefault(place, message), message
        else:
            epoch = message.era, message.epoch
            yield requested.setdefault(epoch, message), message
    for (era, epoch, height), upper in attested.items():
        lower = attested.get((era, epoch, height - 1))
        for request in requested.values():
            if request.era == era and request.epoch > epoch:
                yield upper, request
                if lower is not None:
                    yield lower, upper, request
