"""Ledger nodes for a `LogBuilder`'s log, with the words of honest ones.

Headers are put together here once more, so that the audit's are compared with others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from adapters.kafka import Record, make_headers
from ledger.attestations import (
    START,
    Header,
    NodeSet,
    sign_attestation,
    sign_epoch_request,
    start_certificate,
)
from ledger.checkpoint import cosign_checkpoint
from ledger.signing import SigningKey
from protocol.envelope import SIGNATURE_HEADER
from protocol.replay import ReplayState, replay_block
from protocol.state_root import StateHasher
from schemas import codec, topics
from schemas import events as e
from tests.builders import LogBuilder, frame, make_key, unframe

NOW_S = 1_760_000_100


@dataclass(frozen=True)
class Attestable:
    """A block that nodes may attest, or a closing child of one."""

    node_set: NodeSet
    header: Header
    is_closing: bool = False


@dataclass
class Nodes:
    """The ledger nodes of a log."""

    log: LogBuilder
    records: list[Record] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Compute every header of the log."""
        self.blocks: list[Attestable] = []
        self.closing: list[Attestable] = []
        self._eras: list[tuple[NodeSet, tuple[int, bytes]]] = []
        state, hasher, previous = ReplayState(), StateHasher(), START
        for record in self.log.records:
            before = state.admission.node_sets
            state = replay_block(
                state,
                unframe(record.value or b""),
                record.header(SIGNATURE_HEADER),
                unframe=unframe,
            ).state
            nodes = (before or state.admission.node_sets)[-1]
            if not self._eras:
                self._eras.append((nodes, (-1, START)))
            header = Header(
                chain_id=nodes.chain_id,
                era=nodes.era,
                height=state.log.chain.height - 1,
                previous_id=previous,
                block_hash=state.log.chain.previous_block_hash,
                tree_size=state.log.chain.size,
                tree_root=state.log.chain.tree.root(),
                state_root=hasher.compute_root(state),
                node_set_hash=nodes.hash,
            )
            previous = header.id
            self.blocks.append(Attestable(nodes, header))
            if before and state.admission.node_sets != before:
                self._eras.append(
                    (state.admission.node_sets[-1], (header.height, header.id))
                )
                child = header.closing_child()
                self.closing += [
                    Attestable(nodes, child, is_closing=True),
                    Attestable(nodes, child.closing_child(), is_closing=True),
                ]

    def attest_all(self, *, num_silent: int = 0) -> list[Record]:
        """Let the nodes attest every block and cosign what becomes final."""
        blocks = sorted(
            [*self.blocks, *self.closing],
            key=lambda b: (b.header.era, b.header.height),
        )
        for block in blocks:
            voters = block.node_set.nodes[: len(block.node_set.nodes) - num_silent]
            for node in voters:
                self.attest(block, node.name)
            if not block.is_closing and block.header.height < len(self.blocks) - 1:
                for node in voters:
                    self.cosign(block.header.height, node.name)
        return self.records

    def attest(
        self,
        block: Attestable,
        name: str,
        *,
        epoch: int = 0,
        header: Header | None = None,
    ) -> None:
        """Let a node attest a block, or another header."""
        key = make_key(name)
        event = sign_attestation(
            key,
            block.node_set,
            self.log.federation_id,
            epoch,
            header or block.header,
        )
        self.say(event, key)

    def request(
        self, era: int, name: str, epoch: int, high: e.QuorumCertificate | None = None
    ) -> None:
        """Let a node ask for an epoch."""
        nodes, start = self._eras[era]
        key = make_key(name)
        certificate = high or start_certificate(era, start)
        federation = self.log.federation_id
        self.say(sign_epoch_request(key, nodes, federation, epoch, certificate), key)

    def certify(self, block: Attestable, *, epoch: int = 0) -> e.QuorumCertificate:
        """Return a certificate of a block, whoever has said so."""
        messages = [
            sign_attestation(
                make_key(node.name),
                block.node_set,
                self.log.federation_id,
                epoch,
                block.header,
            )
            for node in block.node_set.nodes[: block.node_set.quorum]
        ]
        return e.QuorumCertificate(
            era=block.header.era,
            epoch=epoch,
            height=block.header.height,
            block_id=block.header.id,
            signatures=tuple(
                e.NodeSignature(public_key=m.public_key, signature=m.signature)
                for m in sorted(messages, key=lambda m: m.public_key)
            ),
        )

    def cosign(
        self, height: int, name: str, *, note: bytes | None = None, at_s: int = NOW_S
    ) -> None:
        """Let a node cosign a block's checkpoint, or another one."""
        key = make_key(name)
        if note is None:
            value = unframe(self.log.checkpoints[height].value or b"")
            note = codec.decode_as(e.CheckpointSigned, value).checkpoint.encode()
        event = e.CheckpointCosigned(
            federation_id=self.log.federation_id,
            height=height,
            checkpoint=cosign_checkpoint(note, name, key, at_s).decode(),
        )
        self.say(event, key)

    def say(self, event: e.Attestation, key: SigningKey, traceparent: str = "") -> None:
        """Publish what a node says."""
        data = codec.encode(event)
        self.records.append(
            Record(
                topic=topics.ATTESTATIONS,
                partition=0,
                offset=2 * len(self.records),
                key=event.federation_id.encode(),
                value=frame(event),
                headers=tuple(
                    make_headers(event, data, key, self.log.genesis, traceparent)
                ),
            )
        )


def renumbered(records: Iterable[Record]) -> Sequence[Record]:
    """Return records with offsets in their order."""
    from dataclasses import replace

    return [replace(record, offset=2 * i) for i, record in enumerate(records)]


def attest_all(log: LogBuilder) -> tuple[Record, ...]:
    """Return what the nodes of a log say if all of them are up and honest."""
    return tuple(Nodes(log).attest_all())
