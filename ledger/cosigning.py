"""Collecting cosignatures: from notes with one each to one note with a quorum.

Cosigners do not wait for each other: each publishes the checkpoint with its own
cosignature. Whoever needs the quorum's word collects and merges them. What comes is
anybody's bytes: it is verified here, and what is kept is bounded.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from ledger.checkpoint import Checkpoint, verify_checkpoint
from ledger.note import (
    InvalidNoteError,
    Note,
    NoteSignature,
    VerifierKey,
    parse_note,
)

MAX_SIZES: Final = 1_024
"""Checkpoints of how many sizes are kept; the smallest go first."""


class CosignatureCollector:
    """Cosignatures of one log's checkpoints by known cosigners.

    Args:
        origin: The log.
        log_key: The log's key, of type Ed25519.
        cosigner_keys: Who may cosign, of type cosignature/v1.
        quorum: How many must have.
    """

    def __init__(
        self,
        origin: str,
        log_key: VerifierKey,
        cosigner_keys: Sequence[VerifierKey],
        quorum: int,
    ) -> None:
        self._origin = origin
        self._log_key = log_key
        self._cosigner_keys = tuple(cosigner_keys)
        self._quorum = quorum
        self._texts: dict[int, str] = {}
        self._lines: dict[int, dict[tuple[str, bytes], NoteSignature]] = {}

    def add(self, signed_note: bytes) -> Checkpoint:
        """Add what a checkpoint's note brings; a cosigner's first signature counts.

        Raises:
            InvalidNoteError: the log did not sign it, no known cosigner did, a
                signature is not good, or its root is not that of the others of its
                size.
        """
        verified = verify_checkpoint(
            signed_note, self._log_key, self._origin, self._cosigner_keys
        )
        if not verified.cosignatures:
            msg = "no known cosigner signed the checkpoint"
            raise InvalidNoteError(msg)
        note, size = parse_note(signed_note), verified.checkpoint.size
        if self._texts.setdefault(size, note.text) != note.text:
            msg = f"two different checkpoints of size {size}"
            raise InvalidNoteError(msg)
        known = {
            (key.name, key.key_id) for key in (self._log_key, *self._cosigner_keys)
        }
        lines = self._lines.setdefault(size, {})
        for line in note.signatures:
            if (line.name, line.key_id) in known:
                lines.setdefault((line.name, line.key_id), line)
        while len(self._texts) > MAX_SIZES:
            smallest = min(self._texts)
            del self._texts[smallest], self._lines[smallest]
        return verified.checkpoint

    def merge(self, size: int) -> bytes | None:
        """Return the checkpoint of a size with all its cosignatures, in the cosigners'
        order; None as long as there are fewer than a quorum.
        """
        lines = self._lines.get(size, {})
        keys = (self._log_key, *self._cosigner_keys)
        signatures = tuple(
            lines[key.name, key.key_id]
            for key in keys
            if (key.name, key.key_id) in lines
        )
        if len(signatures) - 1 < self._quorum:  # one is the log's
            return None
        return Note(self._texts[size], signatures).to_bytes()

    def largest(self) -> int:
        """Return the largest size with a quorum; 0 if there is none."""
        return max(
            (size for size in self._texts if self.merge(size) is not None), default=0
        )
