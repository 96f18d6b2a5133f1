"""What ledger nodes say about blocks, and how anybody checks it.

The bytes are those of the ledger specification, section 2.3. Every signed message is

    folkmoot-attest/v1    chain id, era, epoch, height, block id
    folkmoot-newepoch/v1  chain id, era, epoch; era, epoch, height, block id of `high`
    folkmoot-nodeset/v1   chain id, era, hash of the new node set

as an ASCII line, then numbers as 64 bits big-endian (two's complement: height -1 is
2^64-1) and hashes as 32 bytes. The events of `schemas.events` carry them.

Rules:

- A quorum of n nodes is n - f with f = (n-1) // 3: two quorums share an honest node.
- A certificate is one attestation each of a quorum, all of one block in one epoch. One
  without signatures stands for the block that the era starts from.

Deliberately not here: what a node attests when (`ledger.consensus`), when a block is
final (`ledger.finality`), what contradicts what (`ledger.equivocation`), and
cosignatures (`ledger.checkpoint`).
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Final, TypeAlias

from ledger.merkle import HASH_SIZE
from ledger.note import KeyType, VerifierKey
from ledger.signing import (
    PUBLIC_KEY_SIZE,
    SIGNATURE_SIZE,
    InvalidSignatureError,
    SigningKey,
    verify_signature,
)
from schemas import events as e

MAX_NODES: Final = 64
START: Final = bytes(32)
"""Stands for the block before the first of era 0, at height -1."""
CLOSING_HASH: Final = bytes(32)
"""Block hash of a closing child: there is no block behind it."""

_ATTEST: Final = b"folkmoot-attest/v1\n"
_NEW_EPOCH: Final = b"folkmoot-newepoch/v1\n"
_NODE_SET: Final = b"folkmoot-nodeset/v1\n"
_HEADER_DOMAIN: Final = b"folkmoot-header/v1\n"
_NAME: Final = re.compile(r"[a-z0-9._-]{1,64}")
_U64: Final = struct.Struct(">q")
_ATTESTED: Final = struct.Struct(">32sqqq32s")
_REQUESTED: Final = struct.Struct(">32sqqqqq32s")
_HEADER: Final = struct.Struct(">32sqq32s32sq32s32s32s")
_APPROVED: Final = struct.Struct(">32sq32s")

Start: TypeAlias = tuple[int, bytes]
"""Height and id of the block that an era starts from."""
Message: TypeAlias = e.BlockAttested | e.EpochRequested
"""What ledger nodes sign about the order of blocks."""


class InvalidMessageError(ValueError):
    """A message, certificate or proof is invalid, and why. Always bad input."""


class InvalidNodeSetError(ValueError):
    """The nodes cannot be a node set, and why. Always bad input."""


class ByteReader:
    """Parses canonical bytes, strictly.

    Args:
        data: All of them.

    Raises:
        InvalidMessageError: from every method, when there are too few or too many
            bytes.
    """

    __slots__ = ("_data", "_position")

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        """Return the next bytes."""
        end = self._position + size
        if not 0 <= size <= len(self._data) - self._position:
            raise InvalidMessageError(f"{len(self._data)} bytes end before byte {end}")
        part = self._data[self._position : end]
        self._position = end
        return part

    def expect(self, constant: bytes) -> None:
        """Consume exactly these bytes."""
        if self.take(len(constant)) != constant:
            raise InvalidMessageError(f"the bytes do not start with {constant!r}")

    def number(self) -> int:
        """Return the next 64-bit number, -2^63 to 2^63-1."""
        return int(_U64.unpack(self.take(_U64.size))[0])

    def finish(self) -> None:
        """Check that nothing is left."""
        if self._position != len(self._data):
            msg = f"{len(self._data) - self._position} bytes too many"
            raise InvalidMessageError(msg)


def encode_number(number: int) -> bytes:
    """Return a number as 64 bits, big-endian, two's complement."""
    return _U64.pack(number)


@dataclass(frozen=True, slots=True)
class NodeSet:
    """The ledger nodes of one era.

    Attributes:
        era: From 0.
        chain_id: The log: the hash of its genesis, 32 bytes.
        nodes: 1 to 64, in ascending order of name; names and keys are unique.
        hash: Identifies era and nodes in headers and approvals, 32 bytes.

    Raises:
        InvalidNodeSetError: the nodes cannot be a node set.
    """

    era: int
    chain_id: bytes
    nodes: tuple[e.LedgerNode, ...]
    hash: bytes = field(init=False, repr=False, compare=False)
    _by_key: dict[bytes, e.LedgerNode] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 1 <= len(self.nodes) <= MAX_NODES:
            msg = f"a node set has 1 to {MAX_NODES} nodes, not {len(self.nodes)}"
            raise InvalidNodeSetError(msg)
        if self.era < 0 or len(self.chain_id) != HASH_SIZE:
            msg = f"an era is 0 or more and a chain id {HASH_SIZE} bytes"
            raise InvalidNodeSetError(msg)
        for node in self.nodes:
            if not _NAME.fullmatch(node.name):
                msg = f"a node's name is 1 to 64 of a-z 0-9 . _ -: {node.name!r}"
                raise InvalidNodeSetError(msg)
            if len(node.public_key) != PUBLIC_KEY_SIZE:
                msg = f"the key of {node.name} is not {PUBLIC_KEY_SIZE} bytes"
                raise InvalidNodeSetError(msg)
        if any(a.name >= b.name for a, b in pairwise(self.nodes)):
            msg = "nodes are in ascending order of name, each name once"
            raise InvalidNodeSetError(msg)
        by_key = {node.public_key: node for node in self.nodes}
        if len(by_key) != len(self.nodes):
            raise InvalidNodeSetError("two nodes have one key")
        object.__setattr__(self, "_by_key", by_key)
        object.__setattr__(self, "hash", self._compute_hash())

    def _compute_hash(self) -> bytes:
        digest = hashlib.sha256(_NODE_SET + encode_number(self.era))
        for node in self.nodes:
            for part in (node.name.encode(), node.public_key, node.url.encode()):
                digest.update(encode_number(len(part)) + part)
        return digest.digest()

    @property
    def max_faulty(self) -> int:
        """How many nodes may be arbitrarily faulty: f."""
        return (len(self.nodes) - 1) // 3

    @property
    def quorum(self) -> int:
        """How many nodes make a certificate: n - f."""
        return len(self.nodes) - self.max_faulty

    def find(self, public_key: bytes) -> e.LedgerNode | None:
        """Return the node with this key."""
        return self._by_key.get(public_key)

    def vkeys(self) -> tuple[VerifierKey, ...]:
        """Return the keys with which nodes cosign checkpoints."""
        return tuple(
            VerifierKey(node.name, KeyType.COSIGNATURE_V1, node.public_key)
            for node in self.nodes
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Header:
    """What nodes attest: a block, and everything that follows from the log up to it.

    Every node computes it; it is not on the log. It contains no clock, epoch or
    signature.

    Attributes:
        chain_id: The log, 32 bytes.
        era: The node set that attests it.
        height: From 0.
        previous_id: Id of the block before, 32 bytes; `START` at height 0.
        block_hash: `ledger.blocks.block_hash` of the block event, 32 bytes: covers
            every byte of it. `CLOSING_HASH` in a closing child.
        tree_size: Number of leaves up to and including this block's.
        tree_root: Root over them, 32 bytes.
        state_root: Hash of the deciders' states after them, 32 bytes.
        node_set_hash: `NodeSet.hash` of the era's nodes, 32 bytes.
        id: SHA-256 over folkmoot-header/v1 and the bytes, 32 bytes.

    Raises:
        InvalidMessageError: a number is negative or a hash not 32 bytes.
    """

    chain_id: bytes
    era: int
    height: int
    previous_id: bytes
    block_hash: bytes
    tree_size: int
    tree_root: bytes
    state_root: bytes
    node_set_hash: bytes
    id: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if min(self.era, self.height, self.tree_size) < 0:
            msg = "a header's era, height and tree size are 0 or more"
            raise InvalidMessageError(msg)
        # pack pads or cuts silently
        if any(
            len(digest) != HASH_SIZE
            for digest in (
                self.chain_id,
                self.previous_id,
                self.block_hash,
                self.tree_root,
                self.state_root,
                self.node_set_hash,
            )
        ):
            raise InvalidMessageError(f"a header's hashes are {HASH_SIZE} bytes each")
        object.__setattr__(
            self, "id", hashlib.sha256(_HEADER_DOMAIN + self.to_bytes()).digest()
        )

    def to_bytes(self) -> bytes:
        """Return the canonical bytes, always 216."""
        return _HEADER.pack(
            self.chain_id,
            self.era,
            self.height,
            self.previous_id,
            self.block_hash,
            self.tree_size,
            self.tree_root,
            self.state_root,
            self.node_set_hash,
        )

    @classmethod
    def read(cls, reader: ByteReader) -> Header:
        """Return the header whose bytes come next.

        Raises:
            InvalidMessageError: there are too few, or a number is negative.
        """
        chain, era, height, previous, block, size, tree, state, nodes = _HEADER.unpack(
            reader.take(_HEADER.size)
        )
        return cls(
            chain_id=chain,
            era=era,
            height=height,
            previous_id=previous,
            block_hash=block,
            tree_size=size,
            tree_root=tree,
            state_root=state,
            node_set_hash=nodes,
        )

    def closing_child(self) -> Header:
        """Return the empty block that follows the last one of a node set."""
        return replace(
            self,
            height=self.height + 1,
            previous_id=self.id,
            block_hash=CLOSING_HASH,
        )


def order(certificate: e.QuorumCertificate) -> tuple[int, int]:
    """Return a certificate's rank: epoch, then height."""
    return certificate.epoch, certificate.height


def start_certificate(era: int, start: Start) -> e.QuorumCertificate:
    """Return the stand-in for a certificate of the block that an era starts from."""
    height, block_id = start
    return e.QuorumCertificate(
        era=era, epoch=0, height=height, block_id=block_id, signatures=()
    )


def _attestation_bytes(
    chain_id: bytes, era: int, epoch: int, height: int, block_id: bytes
) -> bytes:
    return _ATTEST + _ATTESTED.pack(chain_id, era, epoch, height, block_id)


def request_bytes(
    chain_id: bytes, era: int, epoch: int, high: e.QuorumCertificate
) -> bytes:
    """Return the bytes signed by a request for an epoch (ledger specification, 2.3)."""
    return _NEW_EPOCH + _REQUESTED.pack(
        chain_id, era, epoch, high.era, high.epoch, high.height, high.block_id
    )


def sign_attestation(
    key: SigningKey, node_set: NodeSet, federation_id: str, epoch: int, header: Header
) -> e.BlockAttested:
    """Return a node's attestation of a block. `ledger.consensus` may forbid it."""
    signed = _attestation_bytes(
        node_set.chain_id, node_set.era, epoch, header.height, header.id
    )
    return e.BlockAttested(
        federation_id=federation_id,
        era=node_set.era,
        epoch=epoch,
        height=header.height,
        block_id=header.id,
        public_key=key.public_key,
        signature=key.sign(signed),
    )


def sign_epoch_request(
    key: SigningKey,
    node_set: NodeSet,
    federation_id: str,
    epoch: int,
    high: e.QuorumCertificate,
) -> e.EpochRequested:
    """Return a node's request for an epoch. `ledger.consensus` decides whether it may.

    Args:
        key: The node's key.
        node_set: The era's nodes.
        federation_id: Whose log.
        epoch: The epoch to begin, from 1.
        high: The highest certificate of earlier epochs that the node holds.
    """
    signed = request_bytes(node_set.chain_id, node_set.era, epoch, high)
    return e.EpochRequested(
        federation_id=federation_id,
        era=node_set.era,
        epoch=epoch,
        high=high,
        public_key=key.public_key,
        signature=key.sign(signed),
    )


def check_signature(
    node_set: NodeSet, public_key: bytes, signed: bytes, signature: bytes
) -> None:
    """Check that a node of the era signed something.

    Raises:
        InvalidMessageError: not a node, or not its signature.
    """
    if node_set.find(public_key) is None:
        msg = f"{public_key.hex()} is not a node of era {node_set.era}"
        raise InvalidMessageError(msg)
    try:
        verify_signature(public_key, signed, signature)
    except InvalidSignatureError as error:
        raise InvalidMessageError(str(error)) from None


def _check_era(node_set: NodeSet, era: int) -> None:
    if era != node_set.era:
        raise InvalidMessageError(f"a message of era {era}, not {node_set.era}")


def verify_attestation(node_set: NodeSet, message: e.BlockAttested) -> None:
    """Check that a node of the era attested a block.

    Raises:
        InvalidMessageError: wrong era, not a node, not its signature, or numbers that
            no block has.
    """
    _check_era(node_set, message.era)
    if message.epoch < 0 or message.height < 0:
        msg = f"no block has epoch {message.epoch} and height {message.height}"
        raise InvalidMessageError(msg)
    signed = _attestation_bytes(
        node_set.chain_id,
        message.era,
        message.epoch,
        message.height,
        message.block_id,
    )
    check_signature(node_set, message.public_key, signed, message.signature)


def verify_certificate(
    node_set: NodeSet, certificate: e.QuorumCertificate, start: Start
) -> None:
    """Check that a quorum attested a block, or that it is the era's start.

    Args:
        node_set: The era's nodes.
        certificate: The certificate.
        start: The block that the era starts from.

    Raises:
        InvalidMessageError: neither holds; says why.
    """
    _check_era(node_set, certificate.era)
    if not certificate.signatures:
        if certificate != start_certificate(node_set.era, start):
            msg = f"only the start of era {node_set.era} needs no signatures"
            raise InvalidMessageError(msg)
        return
    if certificate.epoch < 0 or certificate.height <= start[0]:
        raise InvalidMessageError(
            f"no block of era {node_set.era} has epoch {certificate.epoch} and "
            f"height {certificate.height}"
        )
    signers = [signature.public_key for signature in certificate.signatures]
    if any(a >= b for a, b in pairwise(signers)):
        msg = "a certificate's signatures are in ascending order of key, each key once"
        raise InvalidMessageError(msg)
    if len(signers) < node_set.quorum:
        msg = f"{len(signers)} signatures of the {node_set.quorum} that it takes"
        raise InvalidMessageError(msg)
    signed = _attestation_bytes(
        node_set.chain_id,
        certificate.era,
        certificate.epoch,
        certificate.height,
        certificate.block_id,
    )
    for signature in certificate.signatures:
        check_signature(node_set, signature.public_key, signed, signature.signature)


def verify_epoch_request(
    node_set: NodeSet,
    message: e.EpochRequested,
    start: Start,
    *,
    known: Iterable[e.QuorumCertificate] = (),
) -> None:
    """Check that a node asked for an epoch and holds the certificate that it names.

    Args:
        node_set: The era's nodes.
        message: The request.
        start: The block that the era starts from.
        known: Certificates verified before.

    Raises:
        InvalidMessageError: wrong era, not a node, not its signature, or no valid
            certificate of an earlier epoch.
    """
    _check_era(node_set, message.era)
    if not 0 <= message.high.epoch < message.epoch:
        msg = f"epoch {message.epoch} cannot follow one of {message.high.epoch}"
        raise InvalidMessageError(msg)
    signed = request_bytes(node_set.chain_id, message.era, message.epoch, message.high)
    check_signature(node_set, message.public_key, signed, message.signature)
    if message.high not in known:
        verify_certificate(node_set, message.high, start)


def _approval_bytes(chain_id: bytes, era: int, node_set_hash: bytes) -> bytes:
    return _NODE_SET + _APPROVED.pack(chain_id, era, node_set_hash)


def sign_approval(
    key: SigningKey, chain_id: bytes, era: int, node_set_hash: bytes
) -> e.NodeSignature:
    """Return a present node's consent to the next node set.

    Args:
        key: The present node's key.
        chain_id: The log.
        era: The era to begin.
        node_set_hash: `NodeSet.hash` of the nodes to take over.
    """
    signed = _approval_bytes(chain_id, era, node_set_hash)
    return e.NodeSignature(public_key=key.public_key, signature=key.sign(signed))


def verify_node_set_change(current: NodeSet, change: e.NodeSetChanged) -> NodeSet:
    """Return the next node set, if a quorum of the present nodes consents.

    Raises:
        InvalidMessageError: not the next era, or no quorum of good approvals.
        InvalidNodeSetError: the nodes cannot be a node set.
    """
    if change.era != current.era + 1:
        raise InvalidMessageError(f"era {change.era} does not follow era {current.era}")
    following = NodeSet(change.era, current.chain_id, change.nodes)
    signers = [approval.public_key for approval in change.approvals]
    if any(a >= b for a, b in pairwise(signers)):
        msg = "approvals are in ascending order of key, each key once"
        raise InvalidMessageError(msg)
    if len(signers) < current.quorum:
        msg = f"{len(signers)} approvals of the {current.quorum} that it takes"
        raise InvalidMessageError(msg)
    signed = _approval_bytes(current.chain_id, following.era, following.hash)
    for approval in change.approvals:
        check_signature(current, approval.public_key, signed, approval.signature)
    return following


def encode_certificate(certificate: e.QuorumCertificate) -> bytes:
    """Return the canonical bytes of a certificate."""
    return b"".join(
        (
            *map(
                encode_number,
                (certificate.era, certificate.epoch, certificate.height),
            ),
            certificate.block_id,
            encode_number(len(certificate.signatures)),
            *(s.public_key + s.signature for s in certificate.signatures),
        )
    )


def read_certificate(reader: ByteReader) -> e.QuorumCertificate:
    """Return the certificate whose bytes come next, *without verifying anything*.

    Raises:
        InvalidMessageError: there are too few bytes, or too many nodes named.
    """
    era, epoch, height = (reader.number() for _ in range(3))
    block_id = reader.take(HASH_SIZE)
    num_signatures = reader.number()
    if not 0 <= num_signatures <= MAX_NODES:
        msg = f"a certificate of {num_signatures} signatures; at most {MAX_NODES}"
        raise InvalidMessageError(msg)
    return e.QuorumCertificate(
        era=era,
        epoch=epoch,
        height=height,
        block_id=block_id,
        signatures=tuple(
            e.NodeSignature(
                public_key=reader.take(PUBLIC_KEY_SIZE),
                signature=reader.take(SIGNATURE_SIZE),
            )
            for _ in range(num_signatures)
        ),
    )


def check_header(node_set: NodeSet, header: Header) -> None:
    """Check that a header belongs to this log and era.

    Raises:
        InvalidMessageError: it does not.
    """
    if (header.chain_id, header.era, header.node_set_hash) != (
        node_set.chain_id,
        node_set.era,
        node_set.hash,
    ):
        msg = f"block {header.height} is of another log, era or node set"
        raise InvalidMessageError(msg)
