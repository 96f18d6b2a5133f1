"""Consensus: what a ledger node attests, and when a block is final.

The rules are those of the ledger specification, section 2.4, for one era. The caller
brings verified blocks, messages and time-outs, and carries out the `Effects`:

    effects = consensus.receive(message)
    store(effects.votes)        first, with fsync
    send(effects.messages)      then

Rules (R1 to R7 are cited where they are enforced):

- R1 Attest a block only in the present epoch, above the last one attested in it, and on
  the epoch's base or a block whose certificate of this epoch the node holds.
- R2 At most one block for each epoch and height.
- R3 A node that has asked for an epoch never again attests in an earlier one.
- R4 One base for each epoch: the highest certificate, by epoch and height, among a
  quorum of requests. Attest only descendants of it.
- R5 Cosign final blocks only, and sizes only grow.
- R6 Whatever is sent was persisted before. After a restart the same bytes go out, and a
  key whose memory is lost never signs again.
- R7 Ask for the next epoch after a time-out, once f + 1 others have asked, or at once
  when the attestations seen show that no block can be certified next.

Three choices of ours are stricter than the specification, so they cannot make it less
safe:

- From epoch 1 on, the nodes take turns to lead: at each height the others attest only
  the block that the leader attested. So nodes that were shown different blocks agree
  again as soon as one leader is honest. In epoch 0 every node attests what it read
  first.
- The base moves up: what a node attests descends from the block that it last built on.
  So the vote alone, without the blocks between, says after a restart what may follow.
- A block that the caller refuses is not attested, nor is what follows it: attesting a
  child would make the parent final. Other nodes may; what is final binds this node too.

After a block that changes the nodes, only closing children follow, and once it is final
the era is over. Two bases of one epoch may hold two different changes, so a certificate
is not enough to take the next nodes from (section 2.7).

Deliberately not here: whether a block follows from the log, clocks, files and networks.
Memory is bounded whatever the nodes send; blocks are the caller's.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Final

from ledger.attestations import (
    Header,
    InvalidMessageError,
    Message,
    NodeSet,
    Start,
    check_header,
    order,
    sign_attestation,
    sign_epoch_request,
    verify_attestation,
    verify_certificate,
    verify_epoch_request,
)
from ledger.equivocation import find_contradiction, prove_equivocation
from ledger.finality import FinalityProof
from ledger.signing import SigningKey
from ledger.votes import VoteState
from schemas import events as e

MAX_REMEMBERED: Final = 256
"""Attestations kept per node, the highest. A node that sends more displaces its own; a
node that lags further behind catches up by certificates."""
MAX_COSIGNABLE: Final = 1_024
"""Final blocks that may await their cosignature; older ones go without."""
MAX_FINAL: Final = 1_024
"""Final blocks whose ids are kept, the latest. A node entering an epoch with a base
below them sits it out."""


class InvalidBlockError(ValueError):
    """A block that cannot follow what is known, and why: bad input, or no parent."""


class CosignRefusedError(ValueError):
    """A checkpoint that must not be cosigned, and why."""


@dataclass(frozen=True, slots=True)
class Finalised:
    """A block that can never be replaced.

    Attributes:
        header: The block.
        proof: Of this block, or of a later one, which covers it.
    """

    header: Header
    proof: FinalityProof


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """What a step requires of its caller.

    Attributes:
        votes: What to store *before* anything is sent; None if nothing changed.
        messages: What to send to everybody.
        finalised: Blocks that became final, in order of height.
        contradictions: Evidence to publish: the first found for each node.
        missing: Height and id of unknown blocks, to be fetched from other nodes:
            certified ones and, while this node has nothing to attest, those that others
            attested, at most one per node.
        started_epoch: The epoch that began, if one did.
    """

    votes: VoteState | None = None
    messages: tuple[Message, ...] = ()
    finalised: tuple[Finalised, ...] = ()
    contradictions: tuple[e.EquivocationProven, ...] = ()
    missing: tuple[Start, ...] = ()
    started_epoch: int | None = None


@dataclass(slots=True)
class _Step:
    """`Effects` in the making; without news there is nothing to conclude."""

    news: bool = False
    persist: bool = False
    messages: list[Message] = field(default_factory=list)
    finalised: list[Finalised] = field(default_factory=list)
    contradictions: list[e.EquivocationProven] = field(default_factory=list)
    started_epoch: int | None = None


class Consensus:
    """A ledger node's part in one era, or an observer's.

    After a restart the caller adds the blocks above `final` again and passes what it
    stored: the votes, and the certificates of its last finality proof to `receive`.

    Args:
        node_set: The era's nodes.
        federation_id: Whose log.
        start: The block that the era starts from; (-1, `START`) for era 0.
        key: The node's key; None for an observer, which follows finality and signs
            nothing.
        votes: What was stored last; None only if the key never signed in this era:
            `VoteState.begin` says what to carry over from the era before.
        final: A block that the caller knows to be final, at or after the start.

    Raises:
        ValueError: the key is not a node's, or the votes are of another era. A bug.
    """

    def __init__(
        self,
        node_set: NodeSet,
        federation_id: str,
        start: Start,
        *,
        key: SigningKey | None = None,
        votes: VoteState | None = None,
        final: Header | None = None,
    ) -> None:
        if key is not None and node_set.find(key.public_key) is None:
            msg = f"{key.public_key.hex()} is not a node of era {node_set.era}"
            raise ValueError(msg)
        self.votes = VoteState.begin(node_set.era, start) if votes is None else votes
        """What must be remembered for ever."""
        if self.votes.era != node_set.era:
            raise ValueError(f"votes of era {self.votes.era}, not {node_set.era}")
        self._nodes = node_set
        self._federation_id = federation_id
        self._start = start
        self._key = key
        self.key_used_elsewhere = False
        """Whether this key signed something unknown here: then it signs no more."""
        self.ended: Finalised | None = None
        """The era's last block, once it is final: see `ledger.finality`."""
        # Blocks from the last final one on, parents first.
        self._blocks: dict[bytes, Header] = {}
        self._children: dict[bytes, list[Header]] = {}
        self._final = start
        self._final_ids = dict([start])
        self._cosignable: dict[int, bytes] = {}
        if final is not None:
            self._blocks[final.id] = final
            self._final = final.height, final.id
            self._final_ids[final.height] = final.id
            self._cosignable[final.tree_size] = final.tree_root
        # Blocks that only a closing child may follow, and the last of each such line.
        self._changing: set[bytes] = set()
        self._tips: list[Header] = []
        # Blocks that this node does not attest, nor anything that follows them.
        self._refused: set[bytes] = set()
        # By epoch and height; by node, and then by epoch and height or by epoch.
        self._certificates: dict[tuple[int, int], e.QuorumCertificate] = {}
        self._attestations: dict[bytes, dict[tuple[int, int], e.BlockAttested]] = {}
        self._requests: dict[bytes, dict[int, e.EpochRequested]] = {}
        self._accused: set[bytes] = set()
        self.missing: tuple[Start, ...] = ()
        """As in `Effects`."""
        self._step = _Step()
        self._branch: set[bytes] = set()
        self._find_branch()
        self._recall()

    def _recall(self) -> None:
        votes = self.votes
        for certificate in (votes.base, votes.high):
            self._keep_certificate(certificate)
        for request in (*votes.entered, votes.last_request):
            if request is not None:
                self._record_request(request)
        if votes.last_attestation is not None:
            self._record_attestation(votes.last_attestation)

    @property
    def epoch(self) -> int:
        """The present epoch."""
        return self.votes.epoch

    @property
    def leader(self) -> e.LedgerNode | None:
        """The leader of the present epoch; epoch 0 has none."""
        epoch, nodes = self.votes.epoch, self._nodes.nodes
        return nodes[epoch % len(nodes)] if epoch else None

    @property
    def high(self) -> e.QuorumCertificate:
        """The highest known certificate."""
        return max(self._certificates.values(), key=order, default=self.votes.high)

    @property
    def final_height(self) -> int:
        """Height of the last final block; initially the start's."""
        return self._final[0]

    @property
    def final_id(self) -> bytes:
        """Id of the last final block, 32 bytes."""
        return self._final[1]

    @property
    def pending(self) -> tuple[Header, ...]:
        """Blocks above the last final one, parents first."""
        return tuple(b for b in self._blocks.values() if b.height > self._final[0])

    def is_refused(self, header: Header) -> bool:
        """Return whether a block, or one that it follows, is refused and not final."""
        known: Header | None = header
        while self._refused and known is not None:
            if known.id in self._refused:
                return True
            known = self._blocks.get(known.previous_id)
        return False

    def certificates(self) -> tuple[e.QuorumCertificate, ...]:
        """Return the certificates of the last final block and those above it."""
        return tuple(self._certificates.values())

    def count_attesters(self, height: int) -> int:
        """Return how many nodes attested a block at a height in the present epoch."""
        place = self.votes.epoch, height
        return sum(place in said for said in self._attestations.values())

    def resend(self) -> tuple[Message, ...]:
        """Return what a node that missed everything needs from this one (R6).

        The requests that began the epoch, and this node's last attestation and request,
        byte for byte.
        """
        votes = self.votes
        messages: list[Message] = list(votes.entered)
        if votes.last_attestation is not None:
            messages.append(votes.last_attestation)
        if votes.last_request is not None and votes.last_request not in messages:
            messages.append(votes.last_request)
        return tuple(messages)

    def add_block(
        self, header: Header, *, changes_nodes: bool = False, is_refused: bool = False
    ) -> Effects:
        """Take a block that the caller verified. Idempotent; old ones are ignored.

        Several blocks may have one parent, if the log forked.

        Args:
            header: What the caller computed, its parent's before.
            changes_nodes: Whether a valid `NodeSetChanged` is in it.
            is_refused: Whether this node attests neither it nor what follows it. If
                others make it final, it is final here too.

        Raises:
            InvalidBlockError: its parent is unknown, it is of another log or era, or
                the era's last block precedes it.
        """
        self._step = _Step()
        if (
            self.ended is None
            and header.height > self._final[0]
            and header.id not in self._blocks
        ):
            self._check_block(header)
            if is_refused:
                self._refused.add(header.id)
            self._insert(header)
            if changes_nodes:
                closing = header.closing_child()
                self._insert(closing)
                self._tips.append(closing)
                self._changing |= {header.id, closing.id}
        return self._advance()

    def receive(
        self, message: e.BlockAttested | e.EpochRequested | e.QuorumCertificate
    ) -> Effects:
        """Take what another node said. Idempotent; old messages are ignored.

        Raises:
            InvalidMessageError: it is invalid, or of another log or era.
        """
        self._step = _Step()
        match message:
            case e.BlockAttested():
                self._receive_attestation(message)
            case e.EpochRequested():
                self._receive_request(message)
            case e.QuorumCertificate():
                self._receive_certificate(message)
        return self._advance()

    def give_up(self) -> Effects:
        """Ask for the next epoch after too long without progress (R7).

        Repeating gives the same bytes. Never two epochs ahead, so that a node that was
        cut off returns to where the others are.
        """
        self._step = _Step()
        votes = self.votes
        if self._may_sign() and votes.requested_epoch == votes.epoch:
            self._request(votes.epoch + 1)
            self._adopt()
        elif self._may_sign() and votes.last_request is not None:
            self._step.messages.append(votes.last_request)
        return self._advance()

    def mark_cosigned(self, size: int, root: bytes) -> VoteState:
        """Return what to store before a final checkpoint is cosigned (R5).

        Idempotent: it may be cosigned again.

        Raises:
            CosignRefusedError: it is of no block known to be final, smaller than one
                already cosigned, or this is an observer.
        """
        votes = self.votes
        if self._key is None or self.key_used_elsewhere:
            raise CosignRefusedError("this key cosigns nothing")
        if (size, root) == (votes.cosigned_size, votes.cosigned_root):
            return votes
        if size <= votes.cosigned_size:
            msg = f"size {size} after size {votes.cosigned_size} was cosigned"
            raise CosignRefusedError(msg)
        if self._cosignable.get(size) != root:
            msg = f"no block known to be final has size {size} and root {root.hex()}"
            raise CosignRefusedError(msg)
        self.votes = replace(votes, cosigned_size=size, cosigned_root=root)
        self._cosignable = {s: r for s, r in self._cosignable.items() if s > size}
        return self.votes

    # Blocks.

    def _check_block(self, header: Header) -> None:
        try:
            check_header(self._nodes, header)
        except InvalidMessageError as error:
            raise InvalidBlockError(str(error)) from None
        parent_id = header.previous_id
        parent = self._blocks.get(parent_id)
        height = self._final[0] if parent is None else parent.height
        if parent is None and parent_id != self._final[1]:
            msg = f"the parent of block {header.height}, {parent_id.hex()}, is unknown"
            raise InvalidBlockError(msg)
        if header.height != height + 1:
            msg = f"block {header.height} cannot follow block {height}"
            raise InvalidBlockError(msg)
        if parent_id in self._changing:
            # The closing child itself was inserted with its parent.
            msg = f"block {header.height} follows the last block of the era"
            raise InvalidBlockError(msg)

    def _insert(self, header: Header) -> None:
        self._step.news = True
        self._blocks[header.id] = header
        self._children.setdefault(header.previous_id, []).append(header)
        if header.previous_id in self._branch:
            self._branch.add(header.id)

    def _close(self) -> None:
        """Make the closing children that certified blocks need to become final."""
        if not self._tips:
            return
        highest = max((height for _, height in self._certificates), default=-1)
        for index, tip in enumerate(self._tips):
            last = tip
            while last.height <= highest:
                last = last.closing_child()
                self._insert(last)
                self._changing.add(last.id)
            self._tips[index] = last

    def _find_branch(self) -> None:
        """Work out which known blocks descend from the base (R4)."""
        votes = self.votes
        self._branch = {votes.base.block_id}
        if votes.base.height < self._final[0] and (
            # All that is certified in one epoch is on one branch (invariant I2).
            votes.base.epoch == votes.epoch
            # A node that enters an epoch late may know final blocks of it already.
            or self._final_ids.get(votes.base.height) == votes.base.block_id
        ):
            self._branch.add(self._final[1])
        for header in self._blocks.values():
            if header.previous_id in self._branch:
                self._branch.add(header.id)

    def _finalise(self) -> None:
        """Find the highest block that is certified in the same epoch as its child."""
        best: FinalityProof | None = None
        for (epoch, height), child_certificate in self._certificates.items():
            certificate = self._certificates.get((epoch, height - 1))
            child = self._blocks.get(child_certificate.block_id)
            if (
                certificate is not None
                and child is not None
                and child.previous_id == certificate.block_id
                and height - 1
                > (self._final[0] if best is None else best.header.height)
            ):
                header = self._blocks[certificate.block_id]
                best = FinalityProof(header, certificate, child, child_certificate)
        if best is not None:
            self._settle(best)

    def _settle(self, proof: FinalityProof) -> None:
        """Make a block and everything before it final, and forget what it excludes."""
        line = [proof.header]
        while line[-1].previous_id != self._final[1]:
            line.append(self._blocks[line[-1].previous_id])
        for header in reversed(line):
            block = Finalised(header, proof)
            self._step.finalised.append(block)
            self._final = header.height, header.id
            self._final_ids[header.height] = header.id
            self._cosignable[header.tree_size] = header.tree_root
            if header.id in self._changing:
                self.ended = block
                break
        while len(self._cosignable) > MAX_COSIGNABLE:
            del self._cosignable[min(self._cosignable)]
        while len(self._final_ids) > MAX_FINAL:
            del self._final_ids[min(self._final_ids)]
        self._forget()

    def _forget(self) -> None:
        height, final_id = self._final
        kept = {final_id: self._blocks[final_id]}
        for header in self._blocks.values():
            if header.previous_id in kept:
                kept[header.id] = header
        self._blocks = kept
        self._children = {i: c for i, c in self._children.items() if i in kept}
        self._branch &= {*kept, self.votes.base.block_id}
        self._changing &= kept.keys()
        self._refused &= kept.keys() - {final_id}
        self._tips = [tip for tip in self._tips if tip.id in kept]
        self._certificates = {
            place: certificate
            for place, certificate in self._certificates.items()
            if certificate.height >= height
        }

    # Messages.

    def _check_federation(self, message: Message) -> None:
        if message.federation_id != self._federation_id:
            msg = f"a message of {message.federation_id!r}, not {self._federation_id!r}"
            raise InvalidMessageError(msg)

    def _receive_attestation(self, message: e.BlockAttested) -> None:
        known = self._attestations.get(message.public_key, {})
        if known.get((message.epoch, message.height)) == message:
            return
        self._check_federation(message)
        verify_attestation(self._nodes, message)
        if message.height <= self._start[0]:
            raise InvalidMessageError(f"block {message.height} is of an earlier era")
        self._record_attestation(message)

    def _receive_request(self, message: e.EpochRequested) -> None:
        known = self._requests.get(message.public_key, {})
        if known.get(message.epoch) == message:
            return
        self._check_federation(message)
        verified = self._certificates.values()
        verify_epoch_request(self._nodes, message, self._start, known=verified)
        self._take_certificate(message.high)
        self._record_request(message)
        if self.ended is None:
            self._join()
            self._adopt()

    def _receive_certificate(self, certificate: e.QuorumCertificate) -> None:
        if certificate not in self._certificates.values():
            verify_certificate(self._nodes, certificate, self._start)
            self._take_certificate(certificate)

    def _take_certificate(self, certificate: e.QuorumCertificate) -> None:
        """Take a verified certificate, and each attestation in it."""
        if certificate in self._certificates.values():
            return
        self._keep_certificate(certificate)
        for signature in certificate.signatures:
            self._record_attestation(
                e.BlockAttested(
                    federation_id=self._federation_id,
                    era=certificate.era,
                    epoch=certificate.epoch,
                    height=certificate.height,
                    block_id=certificate.block_id,
                    public_key=signature.public_key,
                    signature=signature.signature,
                )
            )

    def _keep_certificate(self, certificate: e.QuorumCertificate) -> None:
        if certificate.signatures and certificate.height >= self._final[0]:
            self._step.news = True
            # There is no second one for this epoch and height (invariant I1).
            self._certificates.setdefault(order(certificate), certificate)

    def _record_attestation(self, message: e.BlockAttested) -> None:
        place = message.epoch, message.height
        said = self._attestations.setdefault(message.public_key, {})
        known = said.get(place)
        if known is not None:
            self._accuse(known, message)
            return
        attested = self.votes.epoch, self.votes.attested[0]
        self._guard_key(message, forgotten=place > attested)
        self._step.news = True
        said[place] = message
        for request in self._requests.get(message.public_key, {}).values():
            self._accuse_hiding(request, (message.epoch, message.height - 1))
            self._accuse_hiding(request, place)
        if len(said) > MAX_REMEMBERED:
            del said[min(said)]
        if place not in self._certificates:
            self._count(message)

    def _count(self, message: e.BlockAttested) -> None:
        """Make a certificate, if this was the attestation it lacked."""
        place = message.epoch, message.height
        signatures = sorted(
            (key, same.signature)
            for key, said in self._attestations.items()
            if (same := said.get(place)) and same.block_id == message.block_id
        )
        if len(signatures) >= self._nodes.quorum:
            self._keep_certificate(
                e.QuorumCertificate(
                    era=message.era,
                    epoch=message.epoch,
                    height=message.height,
                    block_id=message.block_id,
                    signatures=tuple(
                        e.NodeSignature(public_key=key, signature=signature)
                        for key, signature in signatures
                    ),
                )
            )

    def _record_request(self, message: e.EpochRequested) -> None:
        said = self._requests.setdefault(message.public_key, {})
        known = said.get(message.epoch)
        if known is not None:
            self._accuse(known, message)
            return
        self._guard_key(message, forgotten=message.epoch > self.votes.requested_epoch)
        for epoch, height in tuple(self._attestations.get(message.public_key, ())):
            self._accuse_hiding(message, (epoch, height))
            self._accuse_hiding(message, (epoch, height - 1))
        # The last one shows how far the node is; the one for the requested epoch counts
        # towards its beginning.
        kept = {*said, message.epoch}
        kept &= {max(kept), self.votes.requested_epoch}
        said[message.epoch] = message
        self._requests[message.public_key] = {epoch: said[epoch] for epoch in kept}

    def _guard_key(self, message: Message, *, forgotten: bool) -> None:
        """Stop signing if somebody else signs with this key (R6)."""
        if self._is_mine(message.public_key) and forgotten:
            self.key_used_elsewhere = True

    def _is_mine(self, public_key: bytes) -> bool:
        return self._key is not None and self._key.public_key == public_key

    def _accuse(self, *messages: Message) -> None:
        public_key = messages[0].public_key
        if public_key in self._accused or find_contradiction(messages) is None:
            return
        self._accused.add(public_key)
        if self._is_mine(public_key):
            self.key_used_elsewhere = True
        if self._key is not None:
            self._step.contradictions.append(
                prove_equivocation(self._federation_id, messages, self._key.public_key)
            )

    def _accuse_hiding(self, request: e.EpochRequested, place: tuple[int, int]) -> None:
        """Accuse if a request hides the certificate of this epoch and height."""
        said = self._attestations.get(request.public_key, {})
        epoch, height = place
        lower, upper = said.get(place), said.get((epoch, height + 1))
        if upper is not None:
            self._accuse(upper, request)
            if lower is not None:
                self._accuse(lower, upper, request)

    # Epochs.

    def _join(self) -> None:
        """Ask for the epoch that f + 1 others asked for: one of them is honest (R7)."""
        others = sorted(
            (
                max(said)
                for key, said in self._requests.items()
                if not self._is_mine(key)
            ),
            reverse=True,
        )
        enough = self._nodes.max_faulty
        if len(others) > enough and others[enough] > self.votes.requested_epoch:
            self._request(others[enough])

    def _give_up_split(self) -> bool:
        """Ask for the next epoch if this one is split beyond repair (R7).

        The epoch cannot begin by this: had enough others asked for it, this node would
        have joined.
        """
        votes = self.votes
        if (
            not self._may_sign()
            or votes.requested_epoch != votes.epoch
            or not self._is_split(self._find_parent().height + 1)
        ):
            return False
        self._request(votes.epoch + 1)
        return True

    def _is_split(self, height: int) -> bool:
        """Return whether no block of a height can still reach a quorum in this epoch.

        Then, for every block, at least f + 1 nodes attested another one, an honest node
        among them: f liars alone cannot cause it.
        """
        place = self.votes.epoch, height
        if any(
            epoch == place[0] and other >= height for epoch, other in self._certificates
        ):
            return False  # it got one, though its block may be missing here
        heard = [said[place] for said in self._attestations.values() if place in said]
        counts = Counter(message.block_id for message in heard)
        num_silent = len(self._nodes.nodes) - len(heard)
        return max(counts.values(), default=0) + num_silent < self._nodes.quorum

    def _request(self, epoch: int) -> None:
        """Ask for an epoch. From now on nothing is attested before it (R3)."""
        self.votes = replace(self.votes, requested_epoch=epoch)
        if not self._may_sign() or self._key is None:
            return
        before = (c for c in self._certificates.values() if c.epoch < epoch)
        high = max((self.votes.high, *before), key=order)
        message = sign_epoch_request(
            self._key, self._nodes, self._federation_id, epoch, high
        )
        self.votes = replace(self.votes, high=high, last_request=message)
        self._record_request(message)
        self._step.persist = True
        self._step.messages.append(message)

    def _adopt(self) -> None:
        """Enter the requested epoch once a quorum asks for it (R4)."""
        votes = self.votes
        epoch = votes.requested_epoch
        requests = tuple(
            said[epoch] for _, said in sorted(self._requests.items()) if epoch in said
        )
        if epoch == votes.epoch or len(requests) < self._nodes.quorum:
            return
        base = self._choose_base(requests)
        self.votes = replace(
            votes,
            epoch=epoch,
            attested=(base.height, base.block_id),
            base=base,
            high=max(votes.high, base, key=order),
            entered=requests,
        )
        self._find_branch()
        self._step.news = True
        self._step.persist = True
        self._step.started_epoch = epoch

    def _choose_base(self, requests: Iterable[e.EpochRequested]) -> e.QuorumCertificate:
        return max((request.high for request in requests), key=order)

    # Attestations.

    def _may_sign(self) -> bool:
        return (
            self._key is not None
            and not self.key_used_elsewhere  # R6
            and self.ended is None
        )

    def _find_parent(self) -> e.QuorumCertificate:
        """Return what to build on: the highest of this epoch, or its base (R1)."""
        certified = (
            certificate
            for certificate in self._certificates.values()
            if certificate.epoch == self.votes.epoch
            and certificate.block_id in self._branch  # R4
        )
        return max(certified, key=order, default=self.votes.base)

    def _find_led(self, height: int) -> bytes | None:
        """Return what the leader attested at a height of this epoch, if binding."""
        leader = self.leader
        assert leader is not None
        said = self._attestations.get(leader.public_key, {})
        message = said.get((self.votes.epoch, height))
        return None if message is None else message.block_id

    def _follows(self) -> bool:
        """Return whether somebody else leads this epoch."""
        return self.leader is not None and not self._is_mine(self.leader.public_key)

    def _choose(self, parent: e.QuorumCertificate) -> Header | None:
        children = [
            child
            for child in self._children.get(parent.block_id, [])
            if not self.is_refused(child)
        ]
        if self._follows():
            led = self._find_led(parent.height + 1)
            children = [child for child in children if child.id == led]
        return children[0] if children else None

    def _may_attest(self, height: int) -> bool:
        votes = self.votes
        return (
            self._may_sign()
            and votes.requested_epoch == votes.epoch  # R3
            and height > votes.attested[0]  # R1, R2
        )

    def _attest(self) -> bool:
        """Attest the next block, if there is one."""
        parent = self._find_parent()
        if not self._may_attest(parent.height + 1) or self._key is None:
            return False
        header = self._choose(parent)
        if header is None:
            return False
        votes = self.votes
        message = sign_attestation(
            self._key, self._nodes, self._federation_id, votes.epoch, header
        )
        self.votes = replace(
            votes,
            attested=(header.height, header.id),
            base=parent,
            high=max(votes.high, parent, key=order),
            last_attestation=message,
        )
        self._record_attestation(message)
        self._step.persist = True
        self._step.messages.append(message)
        return True

    def _find_missing(self) -> tuple[Start, ...]:
        if self.ended is not None:
            return ()
        wanted = {
            (certificate.height, certificate.block_id)
            for certificate in self._certificates.values()
            if certificate.height > self._final[0]
        }
        height = self._find_parent().height + 1
        if height > self._final[0] and self._may_attest(height):
            wanted |= {(height, block_id) for block_id in self._find_attested(height)}
        return tuple(sorted(want for want in wanted if want[1] not in self._blocks))

    def _find_attested(self, height: int) -> set[bytes]:
        """Return what this node could attest, as others did.

        Kafka's operator may show a block to one node only. Each node has one say at a
        height, so a liar makes others look for one block, and only until they have any
        other.
        """
        if self._follows():
            led = self._find_led(height)
            return set() if led is None else {led}
        place = self.votes.epoch, height
        said = (said.get(place) for said in self._attestations.values())
        return {message.block_id for message in said if message is not None}

    def _advance(self) -> Effects:
        """Draw every conclusion from what is known now."""
        step = self._step
        progress = step.news
        while progress and self.ended is None:
            self._close()
            self._finalise()
            progress = self._attest() or self._give_up_split()
        if step.news:
            self.missing = self._find_missing()
        return Effects(
            votes=self.votes if step.persist else None,
            messages=tuple(step.messages),
            finalised=tuple(step.finalised),
            contradictions=tuple(step.contradictions),
            missing=self.missing,
            started_epoch=step.started_epoch,
        )
