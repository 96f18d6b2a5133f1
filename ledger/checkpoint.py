"""C2SP checkpoints: the signed head of a tree.

A signed note whose text is

    <origin>                   the log; unique for ever
    <size>                     decimal, without leading zeros
    <base64 root hash>

Rules (c2sp.org/tlog-checkpoint, c2sp.org/tlog-cosignature):

- The reader knows the origin beforehand. A log that may name itself can pass off
  another log's head as its own.
- The log's own Ed25519 signature is always required; cosignatures come on top.
- There is one spelling of a checkpoint: canonical decimal, canonical base64, and no
  extension lines, which C2SP would allow. So one tree has one text: signing, comparing
  or drawing by the text goes by origin, size and root (ADR 0029).

Deliberately not here: whether a checkpoint is consistent with an earlier one
(`ledger.merkle.verify_consistency`), and how many cosignatures are enough.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from ledger.merkle import EMPTY_ROOT, HASH_SIZE, MAX_TREE_SIZE
from ledger.note import (
    InvalidKeyError,
    InvalidNoteError,
    KeyType,
    VerifiedSignature,
    VerifierKey,
    add_signature,
    encode_base64,
    open_note,
    parse_base64,
    parse_note,
    sign_cosignature,
    sign_note,
)
from ledger.signing import SigningKey

_DECIMAL: Final = re.compile(r"0|[1-9][0-9]{0,18}")  # 19 digits hold MAX_TREE_SIZE
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_NUM_LINES: Final = 3  # origin, size, root
_MAX_REMEMBERED_LENGTH: Final = 1_024


def compute_origin(federation_id: str, genesis: bytes) -> str:
    """Return the origin of a federation's log, which is also its key's name.

    C2SP wants it unique for ever, so it names the genesis as well: cosignatures in one
    log, and its receipts, say nothing about another log of that name.

    Args:
        federation_id: The federation.
        genesis: Hash of its genesis, 32 bytes.
    """
    return f"folkmoot/{federation_id}/{genesis.hex()}"


def parse_origin(origin: str) -> tuple[str, bytes]:
    """Return the federation, and the hash of its genesis, that an origin names.

    Raises:
        InvalidCheckpointError: it is not one of our origins.
    """
    _, _, rest = origin.partition("/")
    federation_id, _, genesis = rest.rpartition("/")
    with suppress(ValueError):
        found = federation_id, bytes.fromhex(genesis)
        if compute_origin(*found) == origin and len(found[1]) == HASH_SIZE:
            return found
    raise InvalidCheckpointError(f"{origin[:200]!r} names no federation and genesis")


def make_log_key(
    federation_id: str, genesis: bytes, sequencer_key: bytes
) -> VerifierKey:
    """Return the key that signs the checkpoints of a federation's log.

    Args:
        federation_id: The federation.
        genesis: Hash of its genesis, 32 bytes.
        sequencer_key: Its sequencer's public key, 32 bytes.

    Raises:
        InvalidKeyError: the federation's name is invalid, or the key is not 32 bytes.
    """
    origin = compute_origin(federation_id, genesis)
    return VerifierKey(origin, KeyType.ED25519, sequencer_key)


class InvalidCheckpointError(InvalidNoteError):
    """The text is not a checkpoint, or belongs to another log."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The head of a log.

    Attributes:
        origin: The log: one line, not empty.
        size: Number of leaves, 0 to 2^63-1.
        root: Root hash, 32 bytes.

    Raises:
        InvalidCheckpointError: a value is out of range.
    """

    origin: str
    size: int
    root: bytes

    def __post_init__(self) -> None:
        if not self.origin or _CONTROL.search(self.origin):
            msg = f"an origin is one line, not empty: {self.origin!r}"
            raise InvalidCheckpointError(msg)
        if not 0 <= self.size <= MAX_TREE_SIZE:
            msg = f"a tree size is 0 to {MAX_TREE_SIZE}, not {self.size}"
            raise InvalidCheckpointError(msg)
        if len(self.root) != HASH_SIZE:
            msg = f"a root is {HASH_SIZE} bytes, not {len(self.root)}"
            raise InvalidCheckpointError(msg)
        if self.size == 0 and self.root != EMPTY_ROOT:
            msg = f"the empty tree has root {EMPTY_ROOT.hex()}, not {self.root.hex()}"
            raise InvalidCheckpointError(msg)

    def to_text(self) -> str:
        """Return the text that is signed, with its final newline."""
        return f"{self.origin}\n{self.size}\n{encode_base64(self.root)}\n"


@dataclass(frozen=True, slots=True)
class VerifiedCheckpoint:
    """A checkpoint that its log signed.

    Attributes:
        checkpoint: The head.
        cosignatures: The good ones by known cosigners, one each; may be empty.
    """

    checkpoint: Checkpoint
    cosignatures: tuple[VerifiedSignature, ...]


def parse_checkpoint(text: str) -> Checkpoint:
    """Return a note's text as a checkpoint, *without verifying anything*.

    Every reader of a checkpoint uses this: what it refuses is never signed, cosigned,
    merged, published, sequenced or drawn from.

    Raises:
        InvalidCheckpointError: it is no checkpoint, or not spelled canonically.
    """
    # Several callers parse one checkpoint in turn. Long ones are not worth the memory.
    is_short = len(text) <= _MAX_REMEMBERED_LENGTH
    return _parse_again(text) if is_short else _parse_checkpoint(text)


def _parse_checkpoint(text: str) -> Checkpoint:
    if not text.endswith("\n"):
        raise InvalidCheckpointError("a checkpoint ends in a newline")
    lines = text.removesuffix("\n").split("\n")
    if len(lines) != _NUM_LINES:
        raise InvalidCheckpointError(
            "a checkpoint has origin, size and root, and no extension lines: "
            f"not {len(lines)} lines"
        )
    origin, size, root = lines
    if not _DECIMAL.fullmatch(size):
        msg = f"a tree size is a decimal number without leading zeros: {size[:80]!r}"
        raise InvalidCheckpointError(msg)
    try:
        root_hash = parse_base64(root)
    except ValueError:
        msg = f"a root is canonical base64: {root[:80]!r}"
        raise InvalidCheckpointError(msg) from None
    return Checkpoint(origin, int(size), root_hash)


_parse_again: Final = lru_cache(maxsize=64)(_parse_checkpoint)


def sign_checkpoint(
    checkpoint: Checkpoint, key: SigningKey, name: str | None = None
) -> bytes:
    """Return the checkpoint as a note that its log signed.

    A log must never sign two inconsistent checkpoints. This function cannot know: the
    caller first persists what it is about to sign.

    Args:
        checkpoint: The head.
        key: The log's key.
        name: The key's name; by default the origin, as C2SP recommends.

    Raises:
        InvalidKeyError: the name (or the origin as a name) is not valid.
    """
    return sign_note(
        checkpoint.to_text(), checkpoint.origin if name is None else name, key
    )


def cosign_checkpoint(
    signed_note: bytes, name: str, key: SigningKey, timestamp_s: int
) -> bytes:
    """Return a signed checkpoint with one more cosignature/v1 at its end.

    Verifies only the form: the caller checks first that the log signed it and that it
    is consistent with what the cosigner saw before.

    Args:
        signed_note: The checkpoint.
        name: The cosigner's name.
        key: The cosigner's key, used for nothing else.
        timestamp_s: Now, seconds since 1970-01-01 UTC.

    Raises:
        InvalidNoteError: not a signed checkpoint, or no room, or a time out of range.
        InvalidKeyError: the name is not valid.
    """
    text = parse_note(signed_note).text
    parse_checkpoint(text)
    return add_signature(signed_note, sign_cosignature(text, name, key, timestamp_s))


def verify_checkpoint(
    signed_note: bytes,
    log_key: VerifierKey,
    origin: str,
    cosigner_keys: Iterable[VerifierKey] = (),
) -> VerifiedCheckpoint:
    """Return a log's head and its cosigners.

    Args:
        signed_note: The checkpoint as received.
        log_key: The log's key, of type Ed25519.
        origin: The expected log.
        cosigner_keys: Cosigners that the reader knows, of type cosignature/v1.

    Raises:
        InvalidNoteError: not a note, not signed by the log, or a bad signature by a
            known key.
        InvalidCheckpointError: signed, but not a checkpoint or of another log.
        InvalidKeyError: a key has the wrong type, or two share name and ID. A bug of
            the caller.
    """
    cosigners = tuple(cosigner_keys)
    _check_key_type(log_key, KeyType.ED25519)
    for key in cosigners:
        _check_key_type(key, KeyType.COSIGNATURE_V1)
    opened = open_note(signed_note, (log_key, *cosigners))
    if all(signature.key != log_key for signature in opened.signatures):
        raise InvalidNoteError(f"{log_key.to_vkey()} did not sign the checkpoint")
    checkpoint = parse_checkpoint(opened.text)
    if checkpoint.origin != origin:
        msg = f"a checkpoint of {checkpoint.origin!r}, not of {origin!r}"
        raise InvalidCheckpointError(msg)
    return VerifiedCheckpoint(
        checkpoint,
        tuple(s for s in opened.signatures if s.key != log_key),
    )


def _check_key_type(key: VerifierKey, expected: KeyType) -> None:
    if key.key_type is not expected:
        raise InvalidKeyError(f"{key.to_vkey()} is not of type {expected.name}")
