"""Proof that an era is over: its last block is final."""

from __future__ import annotations

from typing import Final

from ledger.attestations import Header, InvalidMessageError, NodeSet, Start
from ledger.finality import FinalityProof, verify_finality

_MAX_CLOSING: Final = 2**16


def verify_last_block(
    node_set: NodeSet, header: Header, proof: FinalityProof, start: Start
) -> None:
    """Check that a block that changes the nodes is final, so that its era is over.

    Args:
        node_set: The nodes of the era that ends.
        header: The block that holds the `NodeSetChanged`.
        proof: Of this block or of one of its closing children.
        start: The block that the era that ends started from.

    Raises:
        InvalidMessageError: it is not shown to be; says why.
    """
    verify_finality(node_set, proof, start)
    distance = proof.header.height - header.height
    if not 0 <= distance <= _MAX_CLOSING:
        msg = f"block {proof.header.height} says nothing of block {header.height}"
        raise InvalidMessageError(msg)
    descendant = header
    for _ in range(distance):
        descendant = descendant.closing_child()
    if descendant != proof.header or proof.child != descendant.closing_child():
        msg = f"the proof is not of block {header.height} or a closing child of it"
        raise InvalidMessageError(msg)
