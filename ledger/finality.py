"""Finality: proof that a block can never be replaced.

A block is final when it and its child are certified in the *same* epoch, and with it
every block before it (ledger specification, section 2.3). One certificate is not
enough: after a time-out it may exist unseen by nodes that go on without it.

An era's last block is followed by *closing children*, which are empty and follow from
it, so anyone with the block and a proof of one of them knows that the block is final.

Deliberately not here: how blocks become final (`ledger.consensus`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from ledger.attestations import (
    ByteReader,
    Header,
    InvalidMessageError,
    NodeSet,
    Start,
    check_header,
    encode_certificate,
    read_certificate,
    verify_certificate,
)
from schemas import events as e

_FINALITY: Final = b"folkmoot-finality/v1\n"


@dataclass(frozen=True, slots=True)
class FinalityProof:
    """A block is final, and with it every block before it.

    Attributes:
        header: The block.
        certificate: A quorum attested it.
        child: The block after it.
        child_certificate: A quorum attested that one, in the same epoch.
    """

    header: Header
    certificate: e.QuorumCertificate
    child: Header
    child_certificate: e.QuorumCertificate

    def to_bytes(self) -> bytes:
        """Return the canonical bytes."""
        return b"".join(
            (
                _FINALITY,
                self.header.to_bytes(),
                encode_certificate(self.certificate),
                self.child.to_bytes(),
                encode_certificate(self.child_certificate),
            )
        )

    @classmethod
    def from_bytes(cls, data: bytes) -> FinalityProof:
        """Return the proof in these bytes, *without verifying anything*.

        Raises:
            InvalidMessageError: they hold none.
        """
        reader = ByteReader(data)
        reader.expect(_FINALITY)
        proof = cls(
            header=Header.read(reader),
            certificate=read_certificate(reader),
            child=Header.read(reader),
            child_certificate=read_certificate(reader),
        )
        reader.finish()
        return proof


def verify_finality(node_set: NodeSet, proof: FinalityProof, start: Start) -> None:
    """Check that a block is final (ledger specification, section 2.3, FINAL).

    Args:
        node_set: The era's nodes.
        proof: The proof.
        start: The block that the era starts from.

    Raises:
        InvalidMessageError: the proof does not show it; says why.
    """
    for header, certificate in (
        (proof.header, proof.certificate),
        (proof.child, proof.child_certificate),
    ):
        check_header(node_set, header)
        if (certificate.height, certificate.block_id) != (header.height, header.id):
            msg = f"the certificate is not of block {header.height}, {header.id.hex()}"
            raise InvalidMessageError(msg)
        if not certificate.signatures:
            raise InvalidMessageError("a start proves nothing about its era")
        verify_certificate(node_set, certificate, start)
    if proof.certificate.epoch != proof.child_certificate.epoch:
        raise InvalidMessageError("block and child are certified in different epochs")
    if (proof.child.height, proof.child.previous_id) != (
        proof.header.height + 1,
        proof.header.id,
    ):
        raise InvalidMessageError("the second block is not the child of the first")
