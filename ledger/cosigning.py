"""Collecting cosignatures: from notes with one each to one note with a quorum.

Cosigners do not wait for each other: each publishes the checkpoint with its own
cosignature. Whoever needs a quorum collects and merges them. Input is anybody's bytes:
it is verified here, and what is kept is bounded.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Mapping, Sequence
from typing import Final

from ledger.checkpoint import (
    Checkpoint,
    VerifiedCheckpoint,
    parse_checkpoint,
    verify_checkpoint,
)
from ledger.note import (
    InvalidNoteError,
    Note,
    NoteSignature,
    VerifierKey,
    open_note,
    parse_note,
)

MAX_SIZES: Final = 1_024
"""Sizes of checkpoints that are kept; the smallest go first."""
MAX_KNOWN: Final = 64
"""Checkpoints whose log signature is known to be good before any cosigner brings it."""


class CosignatureCollector:
    """Cosignatures of one log's checkpoints by known cosigners.

    Args:
        log_key: The log's key, of type Ed25519; its name is the log's origin.
        cosigner_keys: Known cosigners' keys, of type cosignature/v1.
        quorum: How many cosignatures it takes.
    """

    def __init__(
        self,
        log_key: VerifierKey,
        cosigner_keys: Sequence[VerifierKey],
        quorum: int,
    ) -> None:
        self._log_key = log_key
        self._cosigner_keys = tuple(cosigner_keys)
        self._quorum = quorum
        self._said: dict[int, dict[VerifierKey, tuple[str, NoteSignature]]] = {}
        self._log_lines: dict[str, NoteSignature] = {}
        self._verified: OrderedDict[str, NoteSignature] = OrderedDict()

    def know(self, text: str, log_line: NoteSignature) -> None:
        """Take a checkpoint's log signature from a caller that verified it.

        Every cosigner brings it; that very line is not verified again.
        """
        self._verified[text] = log_line
        if len(self._verified) > MAX_KNOWN:
            self._verified.popitem(last=False)

    def add(self, signed_note: bytes) -> Checkpoint:
        """Add the cosignatures of a checkpoint's note.

        For each size, only a cosigner's first word counts. So a log that signs two
        trees, and a cosigner that helps it, cannot hide the others' quorum.

        Raises:
            InvalidNoteError: not signed by the log or any known cosigner, or a bad
                signature.
        """
        note = parse_note(signed_note)
        lines = {(line.name, line.key_id): line for line in reversed(note.signatures)}
        verified = self._verify(signed_note, note, lines)
        if not verified.cosignatures:
            raise InvalidNoteError("no known cosigner signed the checkpoint")
        said = self._said.setdefault(verified.checkpoint.size, {})
        for signature in verified.cosignatures:
            key = signature.key
            said.setdefault(key, (note.text, lines[key.name, key.key_id]))
        if any(text == note.text for text, _ in said.values()):
            log_line = lines[self._log_key.name, self._log_key.key_id]
            self._log_lines.setdefault(note.text, log_line)
        while len(self._said) > MAX_SIZES:
            for text, _ in self._said.pop(min(self._said)).values():
                self._log_lines.pop(text, None)
        return verified.checkpoint

    def _verify(
        self,
        signed_note: bytes,
        note: Note,
        lines: Mapping[tuple[str, bytes], NoteSignature],
    ) -> VerifiedCheckpoint:
        log_line = lines.get((self._log_key.name, self._log_key.key_id))
        known = self._log_lines.get(note.text), self._verified.get(note.text)
        if log_line is None or log_line not in known:
            return verify_checkpoint(
                signed_note, self._log_key, self._log_key.name, self._cosigner_keys
            )
        # Every cosigner brings the log's own signature, which was verified already.
        opened = open_note(signed_note, self._cosigner_keys)
        return VerifiedCheckpoint(parse_checkpoint(note.text), opened.signatures)

    def merge(self, size: int) -> bytes | None:
        """Return the checkpoint of a size with all its cosignatures, in the cosigners'
        order; None without a quorum.
        """
        said = self._said.get(size, {})
        for text in dict.fromkeys(text for text, _ in said.values()):
            lines = [
                said[key][1]
                for key in self._cosigner_keys
                if key in said and said[key][0] == text
            ]
            if len(lines) >= self._quorum:
                return Note(text, (self._log_lines[text], *lines)).to_bytes()
        return None

    def has_quorum(self, size: int) -> bool:
        """Return whether `merge` has a result."""
        texts = Counter(text for text, _ in self._said.get(size, {}).values())
        return max(texts.values(), default=0) >= self._quorum

    def largest(self) -> int:
        """Return the largest size with a quorum; 0 for none."""
        return max(filter(self.has_quorum, self._said), default=0)
