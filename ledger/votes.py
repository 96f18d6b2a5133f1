"""Votes: everything that a ledger node must remember for ever.

Rule R6 of the ledger specification, section 2.4: a node persists everything before
sending it, and sends what it persisted again after a restart.

Deliberately not here: files (an adapter), and what may be voted (`ledger.consensus`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Final, TypeVar

from ledger.attestations import (
    ByteReader,
    InvalidMessageError,
    Message,
    Start,
    encode_certificate,
    encode_number,
    read_certificate,
    start_certificate,
)
from ledger.merkle import EMPTY_ROOT, HASH_SIZE
from schemas import codec
from schemas import events as e

_VOTES: Final = b"folkmoot-votes/v1\n"
_DIGEST_SIZE: Final = hashlib.sha256().digest_size
_M = TypeVar("_M", e.BlockAttested, e.EpochRequested)


class VotesLostError(ValueError):
    """The bytes are not the votes that were stored. The node must not sign: it cannot
    know what it signed.
    """


@dataclass(frozen=True, slots=True, kw_only=True)
class VoteState:
    """Everything that a node must remember for ever (R6).

    Attributes:
        era: The node set.
        epoch: The epoch that it attests in.
        attested: Height and id of the last block attested in this epoch; initially the
            base's.
        base: What everything it attests in this epoch descends from.
        high: The highest certificate it ever acted on.
        requested_epoch: The highest epoch it asked for or entered.
        entered: The requests that began this epoch, for nodes that missed them; none in
            epoch 0.
        last_attestation: To be sent again, byte for byte.
        last_request: Likewise.
        cosigned_size: Size of the largest tree that it cosigned; 0 for none.
        cosigned_root: Its root, 32 bytes.
    """

    era: int
    epoch: int
    attested: Start
    base: e.QuorumCertificate
    high: e.QuorumCertificate
    requested_epoch: int
    entered: tuple[e.EpochRequested, ...]
    last_attestation: e.BlockAttested | None
    last_request: e.EpochRequested | None
    cosigned_size: int
    cosigned_root: bytes

    @classmethod
    def begin(
        cls,
        era: int,
        start: Start,
        *,
        cosigned_size: int = 0,
        cosigned_root: bytes = EMPTY_ROOT,
    ) -> VoteState:
        """Return the state before anything was signed in an era.

        Args:
            era: From 0.
            start: The block that the era starts from.
            cosigned_size: What the node last cosigned in the era before.
            cosigned_root: Its root.
        """
        base = start_certificate(era, start)
        return cls(
            era=era,
            epoch=0,
            attested=start,
            base=base,
            high=base,
            requested_epoch=0,
            entered=(),
            last_attestation=None,
            last_request=None,
            cosigned_size=cosigned_size,
            cosigned_root=cosigned_root,
        )

    def to_bytes(self) -> bytes:
        """Return the bytes to store, ending in their SHA-256."""
        body = b"".join(
            (
                _VOTES,
                encode_number(self.era),
                encode_number(self.epoch),
                encode_number(self.attested[0]),
                self.attested[1],
                encode_certificate(self.base),
                encode_certificate(self.high),
                encode_number(self.requested_epoch),
                encode_number(len(self.entered)),
                *map(_encode_message, self.entered),
                _encode_message(self.last_attestation),
                _encode_message(self.last_request),
                encode_number(self.cosigned_size),
                self.cosigned_root,
            )
        )
        return body + hashlib.sha256(body).digest()

    @classmethod
    def from_bytes(cls, data: bytes) -> VoteState:
        """Return what was stored.

        Raises:
            VotesLostError: the bytes are anything else.
        """
        body, digest = data[:-_DIGEST_SIZE], data[-_DIGEST_SIZE:]
        if hashlib.sha256(body).digest() != digest:
            raise VotesLostError("the votes are not as they were written")
        reader = ByteReader(body)
        try:
            reader.expect(_VOTES)
            votes = cls(
                era=reader.number(),
                epoch=reader.number(),
                attested=(reader.number(), reader.take(HASH_SIZE)),
                base=read_certificate(reader),
                high=read_certificate(reader),
                requested_epoch=reader.number(),
                entered=tuple(
                    codec.decode_as(e.EpochRequested, reader.take(reader.number()))
                    for _ in range(reader.number())
                ),
                last_attestation=_read_message(reader, e.BlockAttested),
                last_request=_read_message(reader, e.EpochRequested),
                cosigned_size=reader.number(),
                cosigned_root=reader.take(HASH_SIZE),
            )
            reader.finish()
        except (InvalidMessageError, codec.CodecError) as error:
            raise VotesLostError(str(error)) from None
        return votes


def _encode_message(message: Message | None) -> bytes:
    data = b"" if message is None else codec.encode(message)
    return encode_number(len(data)) + data


def _read_message(reader: ByteReader, kind: type[_M]) -> _M | None:
    data = reader.take(reader.number())
    return codec.decode_as(kind, data) if data else None
