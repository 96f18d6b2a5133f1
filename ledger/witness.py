"""The witness protocol's rules: which checkpoint a witness may cosign.

    POST <submission prefix>/add-checkpoint

    old <size>                       of the last checkpoint that the witness cosigned
    <base64 hash>                    consistency proof from there, 0 to 63 lines
                                     an empty line
    <checkpoint>                     signed by its log

    outcome                                                              status
    cosigned: signature lines                                               200
    malformed, or old size above the checkpoint's                           400
    no good signature of the log's key                                      403
    another origin than the witness knows                                   404
    old size is not what the witness has; the body says that                409
    not consistent with what the witness has                                422

Rules (c2sp.org/tlog-witness):

- The first rule that a request breaks answers it, in the order 404, 403, 400, 409, 422.
  A malformed request is refused before anything is looked up.
- **The caller checks and persists atomically**: from reading the stored head, through
  `judge`, until the new one is durable, nothing else may touch it. Only then does it
  sign.
- A cosignature names a time, which is never 0.

Deliberately not here: HTTP, storage, the clock, and subtree cosignatures.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Final

from ledger.checkpoint import (
    Checkpoint,
    InvalidCheckpointError,
    parse_checkpoint,
    verify_checkpoint,
)
from ledger.merkle import (
    EMPTY_ROOT,
    HASH_SIZE,
    MAX_PROOF_HASHES,
    InvalidProofError,
    verify_consistency,
)
from ledger.note import (
    MAX_NOTE_SIZE_BYTES,
    InvalidNoteError,
    VerifierKey,
    encode_base64,
    parse_base64,
    parse_note,
    sign_cosignature,
)
from ledger.signing import SigningKey

ADD_CHECKPOINT_PATH: Final = "add-checkpoint"
SIZE_CONTENT_TYPE: Final = "text/x.tlog.size"
TEXT_CONTENT_TYPE: Final = "text/plain; charset=utf-8"
MAX_HEAD_SIZE_BYTES: Final = 4_096  # 63 lines of 45 bytes, and the first
MAX_REQUEST_SIZE_BYTES: Final = MAX_HEAD_SIZE_BYTES + MAX_NOTE_SIZE_BYTES

_OLD: Final = re.compile(r"old (0|[1-9][0-9]{0,18})")
_SIZE_ZERO: Final = "0"


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer other than a cosignature.

    Attributes:
        status: HTTP status code.
        body: The answer: a sentence, except for 409.
        content_type: Of the body.
    """

    status: int
    body: bytes
    content_type: str = TEXT_CONTENT_TYPE


class InvalidRequestError(ValueError):
    """The request cannot be judged; `refusal` is the answer. Always bad input."""

    def __init__(self, detail: str, status: int = 400) -> None:
        super().__init__(detail)
        self.refusal = _refuse(status, detail)


def _refuse(status: int, detail: object) -> Refusal:
    return Refusal(status, f"{detail}\n".encode("utf-8", "backslashreplace"))


@dataclass(frozen=True, slots=True)
class AddCheckpoint:
    """A parsed request: nothing is verified.

    Attributes:
        old_size: Where the proof starts, 0 or more.
        proof: Consistency proof, up to 63 hashes of 32 bytes.
        signed_note: The checkpoint, unchanged.
        checkpoint: The parsed checkpoint.
    """

    old_size: int
    proof: tuple[bytes, ...]
    signed_note: bytes
    checkpoint: Checkpoint


def _parse_head(signed_note: bytes) -> Checkpoint:
    try:
        text = parse_note(signed_note).text
        return parse_checkpoint(text)
    except InvalidCheckpointError as error:
        # The one malformed checkpoint with its own status: a size of 0 with a root that
        # is not the empty tree's. It is one if that root would make it valid.
        lines = text.split("\n")
        if len(lines) > 2 and lines[1] == _SIZE_ZERO and _is_hash(lines[2]):  # noqa: PLR2004
            lines[2] = encode_base64(EMPTY_ROOT)
            try:
                parse_checkpoint("\n".join(lines))
            except InvalidCheckpointError:
                pass
            else:
                raise InvalidRequestError(str(error), 422) from error
        raise InvalidRequestError(str(error)) from error
    except InvalidNoteError as error:
        raise InvalidRequestError(str(error)) from error


def _is_hash(line: str) -> bool:
    try:
        return len(parse_base64(line)) == HASH_SIZE
    except ValueError:
        return False


def parse_request(body: bytes) -> AddCheckpoint:
    """Return a parsed request, *without verifying anything*.

    Args:
        body: As received, at most 1,004,096 bytes.

    Raises:
        InvalidRequestError: it is malformed; carries the answer: 400, or 422 for a
            checkpoint of size 0 with a root that is not the empty tree's.
    """
    if len(body) > MAX_REQUEST_SIZE_BYTES:
        msg = f"a request of {len(body)} bytes; at most {MAX_REQUEST_SIZE_BYTES}"
        raise InvalidRequestError(msg)
    end = body.find(b"\n\n", 0, MAX_HEAD_SIZE_BYTES)
    if end < 0:
        msg = f"no empty line within the first {MAX_HEAD_SIZE_BYTES} bytes"
        raise InvalidRequestError(msg)
    old, *hashes = body[:end].decode("utf-8", "replace").split("\n")
    match = _OLD.fullmatch(old)
    if match is None:
        msg = f"a request starts with 'old <size>', not {old[:80]!r}"
        raise InvalidRequestError(msg)
    if len(hashes) > MAX_PROOF_HASHES:
        msg = f"{len(hashes)} proof lines; at most {MAX_PROOF_HASHES}"
        raise InvalidRequestError(msg)
    for line in hashes:
        if not _is_hash(line):
            msg = f"a proof line is canonical base64 of 32 bytes: {line[:80]!r}"
            raise InvalidRequestError(msg)
    signed_note = body[end + 2 :]
    return AddCheckpoint(
        int(match[1]),
        tuple(map(parse_base64, hashes)),
        signed_note,
        _parse_head(signed_note),
    )


def judge(
    request: AddCheckpoint,
    *,
    origin: str,
    log_key: VerifierKey,
    stored_size: int,
    stored_root: bytes = EMPTY_ROOT,
) -> Checkpoint | Refusal:
    """Return the checkpoint to persist and cosign, or why not.

    Args:
        request: As parsed.
        origin: The log that the witness knows.
        log_key: Its key, of type Ed25519.
        stored_size: Size of the last checkpoint that it cosigned; 0 for none.
        stored_root: Its root, 32 bytes; ignored for size 0.

    Raises:
        InvalidKeyError: the key is of another type. A bug of the caller.
    """
    new = request.checkpoint
    if new.origin != origin:
        return _refuse(404, f"no log {new.origin!r} is known here")
    try:
        verify_checkpoint(request.signed_note, log_key, origin)
    except InvalidNoteError as error:
        return _refuse(403, error)
    if request.old_size > new.size:
        detail = f"old size {request.old_size} is above the checkpoint's, {new.size}"
        return _refuse(400, detail)
    if request.old_size != stored_size:
        return Refusal(409, f"{stored_size}\n".encode(), SIZE_CONTENT_TYPE)
    if stored_size == 0:
        # Everything is consistent with nothing: the first head is taken on trust.
        return _refuse(422, "a proof from size 0 is empty") if request.proof else new
    try:
        verify_consistency(
            request.proof,
            old_size=request.old_size,
            old_root=stored_root,
            new_size=new.size,
            new_root=new.root,
        )
    except InvalidProofError as error:
        return _refuse(422, error)
    return new


def make_response(
    signed_note: bytes, name: str, key: SigningKey, timestamp_s: int
) -> bytes:
    """Return the body of the answer 200: one cosigner's line.

    The new head must be durable before this is called.

    Args:
        signed_note: The checkpoint that `judge` accepted.
        name: The cosigner's name.
        key: The cosigner's key, used for nothing else.
        timestamp_s: Now, seconds since 1970-01-01 UTC, 1 or more.

    Raises:
        InvalidNoteError: not a checkpoint, or the time is out of range.
        InvalidKeyError: the name is invalid.
    """
    if timestamp_s < 1:
        raise InvalidNoteError(f"a witness signs with a time, not {timestamp_s}")
    text = parse_note(signed_note).text
    parse_checkpoint(text)
    return sign_cosignature(text, name, key, timestamp_s).to_line().encode()


def monitoring_path(origin: str) -> str:
    """Return where, below its monitoring prefix, a witness serves a log's last head."""
    return f"{hashlib.sha256(origin.encode()).hexdigest()}/checkpoint"
