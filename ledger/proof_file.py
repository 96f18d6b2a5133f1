"""C2SP proof files: proof that something is in a log, in one file, without the log.

    c2sp.org/tlog-proof@v1
    [extra <base64>]                 not authenticated; a receipt holds its leaf here
    index <decimal>                  the leaf's place
    <base64 hash>                    inclusion proof, the leaf's sibling first
                                     an empty line
    <checkpoint>                     signed and cosigned, as it is

Rules (c2sp.org/tlog-proof):

- The reader brings a policy: which logs, and whose cosignatures are enough.
- The reader computes the leaf. A receipt may bring it, since a wrong leaf does not
  verify.
- A file is measured before it is read.

Stricter than other readers: numbers and base64 have one spelling, and an empty extra
line is refused.

Deliberately not here: what a leaf means, and how old a cosignature may be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, NamedTuple

from ledger.checkpoint import VerifiedCheckpoint
from ledger.merkle import (
    HASH_SIZE,
    MAX_PROOF_HASHES,
    MAX_TREE_SIZE,
    leaf_hash,
    verify_inclusion,
)
from ledger.note import MAX_NOTE_SIZE_BYTES, encode_base64, parse_base64
from ledger.policy import Policy
from schemas.codec import MAX_LEAF_SIZE_BYTES

HEADER: Final = "c2sp.org/tlog-proof@v1"
FILE_EXTENSION: Final = ".tlog-proof"
MAX_EXTRA_SIZE_BYTES: Final = MAX_LEAF_SIZE_BYTES
"""What a receipt needs. The specification has no limit, but programs may: Go's
transparency-dev/formats reads no line above 64 KiB, so no leaf above 49,146 bytes.
"""
MAX_HEAD_SIZE_BYTES: Final = (
    2**17  # = 131,072: base64 of the extra data (87,380), 63 hashes (2,835), the rest
)
MAX_PROOF_FILE_SIZE_BYTES: Final = MAX_HEAD_SIZE_BYTES + MAX_NOTE_SIZE_BYTES

_EXTRA: Final = "extra "
_INDEX: Final = re.compile(r"index (0|[1-9][0-9]{0,18})")


class InvalidProofFileError(ValueError):
    """The bytes are not a proof file, or not a receipt. Always bad input."""


@dataclass(frozen=True, slots=True)
class ProofFile:
    """A parsed proof file: nothing is verified.

    Attributes:
        index: The leaf's place, 0 to 2^63-2.
        hashes: Inclusion proof, up to 63 hashes of 32 bytes.
        checkpoint: The signed note, unchanged; at most 1,000,000 bytes.
        extra: Up to 65,535 bytes of anything; empty for none.

    Raises:
        InvalidProofFileError: a value is out of range.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: bytes
    extra: bytes = b""

    def __post_init__(self) -> None:
        if not 0 <= self.index < MAX_TREE_SIZE:
            msg = f"a leaf index is 0 to {MAX_TREE_SIZE - 1}, not {self.index}"
            raise InvalidProofFileError(msg)
        if len(self.hashes) > MAX_PROOF_HASHES:
            msg = f"{len(self.hashes)} hashes; at most {MAX_PROOF_HASHES}"
            raise InvalidProofFileError(msg)
        for element in self.hashes:
            if len(element) != HASH_SIZE:
                msg = f"a hash is {HASH_SIZE} bytes, not {len(element)}"
                raise InvalidProofFileError(msg)
        for what, data, limit in (
            ("a checkpoint", self.checkpoint, MAX_NOTE_SIZE_BYTES),
            ("extra data", self.extra, MAX_EXTRA_SIZE_BYTES),
        ):
            if len(data) > limit:
                msg = f"{what} of {len(data)} bytes; at most {limit}"
                raise InvalidProofFileError(msg)

    def to_bytes(self) -> bytes:
        """Return the file."""
        lines = [HEADER]
        if self.extra:
            lines.append(_EXTRA + encode_base64(self.extra))
        lines.append(f"index {self.index}")
        lines += map(encode_base64, self.hashes)
        return "".join(f"{line}\n" for line in lines).encode() + b"\n" + self.checkpoint


def _decode(what: str, line: str) -> bytes:
    try:
        return parse_base64(line)
    except ValueError:
        msg = f"{what} is not canonical base64: {line[:80]!r}"
        raise InvalidProofFileError(msg) from None


def parse_proof_file(data: bytes) -> ProofFile:
    """Return a proof file's content, *without verifying anything*.

    Args:
        data: The file, at most 1,131,072 bytes.

    Raises:
        InvalidProofFileError: it is no proof file; says why.
    """
    if len(data) > MAX_PROOF_FILE_SIZE_BYTES:
        msg = f"a proof file of {len(data)} bytes; at most {MAX_PROOF_FILE_SIZE_BYTES}"
        raise InvalidProofFileError(msg)
    end = data.find(b"\n\n", 0, MAX_HEAD_SIZE_BYTES)
    if end < 0:
        msg = f"no empty line within the first {MAX_HEAD_SIZE_BYTES} bytes"
        raise InvalidProofFileError(msg)
    try:
        lines = data[:end].decode("ascii").split("\n")
    except UnicodeDecodeError:
        msg = "a proof file is ASCII up to the empty line"
        raise InvalidProofFileError(msg) from None
    if lines.pop(0) != HEADER:
        raise InvalidProofFileError(f"a proof file starts with {HEADER}")
    extra = b""
    if lines and lines[0].startswith(_EXTRA):
        extra = _decode("the extra data", lines.pop(0).removeprefix(_EXTRA))
        if not extra:
            raise InvalidProofFileError("an extra line that says nothing")
    index = _INDEX.fullmatch(lines.pop(0)) if lines else None
    if index is None:
        msg = "the line 'index <n>', without leading zeros, is missing"
        raise InvalidProofFileError(msg)
    if len(lines) > MAX_PROOF_HASHES:
        raise InvalidProofFileError(f"{len(lines)} hashes; at most {MAX_PROOF_HASHES}")
    hashes = tuple(_decode("a hash", line) for line in lines)
    return ProofFile(int(index[1]), hashes, data[end + 2 :], extra)


def verify_proof_file(
    proof_file: ProofFile, leaf: bytes, policy: Policy, origin: str | None = None
) -> VerifiedCheckpoint:
    """Return the checkpoint under which a log contains a leaf.

    Args:
        proof_file: As parsed.
        leaf: The whole entry, not its hash.
        policy: Whom the reader trusts.
        origin: The expected log; by default any of the policy's.

    Raises:
        InvalidNoteError: the policy does not accept the checkpoint; says why.
        InvalidProofError: the leaf is not at this place under it.
    """
    verified = policy.verify(proof_file.checkpoint, origin)
    verify_inclusion(
        proof_file.hashes,
        leaf_hash=leaf_hash(leaf),
        leaf_index=proof_file.index,
        tree_size=verified.checkpoint.size,
        root=verified.checkpoint.root,
    )
    return verified


class VerifiedReceipt(NamedTuple):
    """What a receipt proves.

    Attributes:
        leaf: The entry.
        leaf_index: Its place in the log.
        verified: The checkpoint and its cosigners.
    """

    leaf: bytes
    leaf_index: int
    verified: VerifiedCheckpoint


def make_receipt(
    leaf: bytes, leaf_index: int, proof: Sequence[bytes], signed_note: bytes
) -> bytes:
    """Return a proof file that also holds the leaf.

    Args:
        leaf: The entry, 1 to 65,535 bytes.
        leaf_index: Its place in the log.
        proof: Inclusion proof in the checkpoint's tree.
        signed_note: The checkpoint, signed and cosigned.

    Raises:
        InvalidProofFileError: a value is out of range. A bug of the caller.
    """
    if not leaf:
        raise InvalidProofFileError("a receipt of an empty leaf")
    return ProofFile(leaf_index, tuple(proof), signed_note, leaf).to_bytes()


def verify_receipt(
    data: bytes, policy: Policy, origin: str | None = None
) -> VerifiedReceipt:
    """Return what a receipt proves.

    Args:
        data: The file as received.
        policy: Whom the reader trusts.
        origin: The expected log; by default any of the policy's.

    Raises:
        InvalidProofFileError: not a proof file, or without a leaf.
        InvalidNoteError: the policy does not accept the checkpoint; says why.
        InvalidProofError: the leaf is not at this place under it.
    """
    proof_file = parse_proof_file(data)
    if not proof_file.extra:
        raise InvalidProofFileError("a proof file without a leaf is not a receipt")
    verified = verify_proof_file(proof_file, proof_file.extra, policy, origin)
    return VerifiedReceipt(proof_file.extra, proof_file.index, verified)
