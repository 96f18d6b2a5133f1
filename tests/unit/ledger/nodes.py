"""Ledger nodes, headers and certificates for tests; keys are derived from names."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

from ledger.attestations import (
    START,
    Header,
    NodeSet,
    sign_attestation,
    sign_epoch_request,
    start_certificate,
)
from ledger.signing import SigningKey
from schemas import events as e

FEDERATION = "clinics"
CHAIN = hashlib.sha256(b"a chain").digest()
BEGIN = (-1, START)


def make_key(name: str) -> SigningKey:
    return SigningKey(hashlib.sha256(name.encode()).digest())


def make_nodes(*names: str, era: int = 0) -> NodeSet:
    return NodeSet(
        era,
        CHAIN,
        tuple(
            e.LedgerNode(name=n, public_key=make_key(n).public_key, url=f"http://{n}")
            for n in names
        ),
    )


NAMES = ("n0", "n1", "n2", "n3")
NODES = make_nodes(*NAMES)
KEYS = tuple(map(make_key, NAMES))
STRANGER = make_key("stranger")


def make_header(
    parent: Header | None = None, label: str = "", *, nodes: NodeSet = NODES, **changes
) -> Header:
    """Return a child; another label, another block."""
    height = 0 if parent is None else parent.height + 1

    def digest(what: str) -> bytes:
        return hashlib.sha256(f"{what} {height} {label}".encode()).digest()

    fields = {
        "chain_id": nodes.chain_id,
        "era": nodes.era,
        "height": height,
        "previous_id": START if parent is None else parent.id,
        "block_hash": digest("block"),
        "tree_size": 3 * (height + 1),
        "tree_root": digest("tree"),
        "state_root": digest("state"),
        "node_set_hash": nodes.hash,
    }
    return Header(**{**fields, **changes})


def make_chain(length: int, label: str = "", parent: Header | None = None):
    chain: list[Header] = []
    for _ in range(length):
        parent = make_header(parent, label)
        chain.append(parent)
    return chain


def attest(
    key: SigningKey, header: Header, epoch: int = 0, nodes: NodeSet = NODES
) -> e.BlockAttested:
    return sign_attestation(key, nodes, FEDERATION, epoch, header)


def certify(
    header: Header,
    epoch: int = 0,
    keys: Iterable[SigningKey] = KEYS[:3],
    nodes: NodeSet = NODES,
) -> e.QuorumCertificate:
    said = [attest(key, header, epoch, nodes) for key in keys]
    return e.QuorumCertificate(
        era=nodes.era,
        epoch=epoch,
        height=header.height,
        block_id=header.id,
        signatures=tuple(
            e.NodeSignature(public_key=m.public_key, signature=m.signature)
            for m in sorted(said, key=lambda m: m.public_key)
        ),
    )


def request(
    key: SigningKey,
    epoch: int = 1,
    high: e.QuorumCertificate | None = None,
    nodes: NodeSet = NODES,
) -> e.EpochRequested:
    high = start_certificate(nodes.era, BEGIN) if high is None else high
    return sign_epoch_request(key, nodes, FEDERATION, epoch, high)
