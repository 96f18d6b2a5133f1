"""Checkpoints at a ledger node: what the log signed, and who cosigned it.

Rules:

- Input is anybody's bytes: nothing is kept unless the log's key signed it.
- The log signs one tree of each size. Two are evidence; one that differs from this
  node's tree is an alert.
- A checkpoint is published only with a quorum of cosignatures, and only of a tree that
  is final here. Tiles come first, the checkpoint last.
"""

from __future__ import annotations

from typing import Final

from adapters.tile_store import TileStore, TileStoreError
from consumers.node.feed import AlertCode, Alerts
from ledger.attestations import NodeSet
from ledger.checkpoint import (
    Checkpoint,
    make_log_key,
    parse_checkpoint,
    verify_checkpoint,
)
from ledger.cosigning import CosignatureCollector
from ledger.note import InvalidNoteError, Note, VerifierKey, parse_note
from ledger.tiles import tree_from_tiles
from schemas import codec
from schemas import events as e

MAX_SIGNED: Final = 4_096
"""Sizes whose log-signed checkpoints are kept."""


class CheckpointDesk:
    """The checkpoints of one log."""

    def __init__(self, federation_id: str, tiles: TileStore, alerts: Alerts) -> None:
        self._federation_id = federation_id
        self.genesis = b""
        """Hash of the log's genesis; empty before the first block."""
        self.origin = ""
        """The log's origin; empty before the first block names it."""
        self._tiles = tiles
        self._alerts = alerts
        self.log_key: VerifierKey | None = None
        """The log's key; None before the first block names it."""
        self._cosigner_keys: tuple[VerifierKey, ...] = ()
        self._collector: CosignatureCollector | None = None
        # By size: the log's checkpoints, with its signature alone.
        self._signed: dict[int, bytes] = {}
        # Sizes with a quorum that are unpublished or gained a cosignature.
        self._ready: set[int] = set()

    def begin(
        self, genesis: bytes, sequencer_key: bytes, nodes: NodeSet | None
    ) -> None:
        """Set who signs and who cosigns from now on.

        Args:
            genesis: Hash of the log's genesis, 32 bytes.
            sequencer_key: The log's key, 32 bytes.
            nodes: Whose cosignatures count; None if the log's signature is enough.
        """
        self.genesis = genesis
        self.log_key = make_log_key(self._federation_id, genesis, sequencer_key)
        self.origin = self.log_key.name
        self._cosigner_keys = () if nodes is None else nodes.vkeys()
        self._collector = None
        if nodes is not None:
            self._collector = CosignatureCollector(
                self.log_key, self._cosigner_keys, nodes.quorum
            )

    def find(self, size: int) -> bytes | None:
        """Return the log's checkpoint of a size, with its signature alone."""
        return self._signed.get(size)

    def add_signed(self, signed_note: bytes) -> e.EquivocationProven | None:
        """Take a checkpoint of the log, whoever else signed it.

        Returns:
            Evidence, if the log signed another tree of this size; not yet reported.

        Raises:
            InvalidNoteError: the log did not sign it.
        """
        if self.log_key is None:
            raise InvalidNoteError("the log's key is not known yet")
        note = parse_note(signed_note)
        name = self.log_key.name, self.log_key.key_id
        lines = [line for line in note.signatures if (line.name, line.key_id) == name]
        bare = Note(note.text, tuple(lines[:1])).to_bytes()
        if bare == self._signed.get(parse_checkpoint(note.text).size):
            return None  # every cosigner brings it, and it was verified
        head = verify_checkpoint(signed_note, self.log_key, self.origin).checkpoint
        known = self._signed.setdefault(head.size, bare)
        if self._collector is not None:
            self._collector.know(note.text, lines[0])
        if 0 < head.size <= self._tiles.size:
            tree = tree_from_tiles(self._tiles.read_tile, head.size)
            self._check_root(head, tree.root())
        if self._collector is None:
            self._ready.add(head.size)
        self._forget_some()
        if parse_note(known).text == note.text:
            return None
        messages = [
            codec.encode(
                e.CheckpointSigned(
                    federation_id=self._federation_id,
                    height=0,
                    checkpoint=data.decode(),
                )
            )
            for data in sorted((known, bare))
        ]
        return e.EquivocationProven(
            federation_id=self._federation_id,
            public_key=self.log_key.public_key,
            messages=tuple(messages),
            reported_by=b"",
        )

    def check_final(self, size: int, root: bytes) -> bool:
        """Return whether the log's checkpoint of a final tree is here and matches."""
        note = self._signed.get(size)
        return note is not None and self._check_root(
            parse_checkpoint(parse_note(note).text), root
        )

    def _check_root(self, head: Checkpoint, root: bytes) -> bool:
        if root != head.root:
            detail = (
                f"the log signed root {head.root.hex()} for size {head.size}; final is "
                f"{root.hex()}"
            )
            self._alerts.add(AlertCode.CHECKPOINT_DIFFERS, detail)
        return root == head.root

    def _forget_some(self) -> None:
        while len(self._signed) > MAX_SIGNED:
            smallest = min(self._signed)
            # What is ahead must come; what is far behind was published.
            is_old = smallest < self._tiles.published_size
            del self._signed[smallest if is_old else max(self._signed)]

    def add_cosigned(self, signed_note: bytes) -> list[tuple[bytes, bytes]]:
        """Take a cosigned checkpoint.

        Returns:
            For each known cosigner, its key and the checkpoint with only the log's
            signature and its own.

        Raises:
            InvalidNoteError: nobody known cosigned it, or the log did not sign it.
        """
        if self._collector is None or self.log_key is None:
            return []
        size = self._collector.add(signed_note).size
        if self._collector.has_quorum(size):
            self._ready.add(size)
        note = parse_note(signed_note)
        lines = {(line.name, line.key_id): line for line in note.signatures}
        log_line = lines[self.log_key.name, self.log_key.key_id]
        return [
            (key.public_key, Note(note.text, (log_line, line)).to_bytes())
            for key in self._cosigner_keys
            if (line := lines.get((key.name, key.key_id))) is not None
        ]

    def publish(self) -> bool:
        """Publish the largest final checkpoint allowed; returns whether one was."""
        published = self._tiles.published_size
        self._ready = {size for size in self._ready if size >= published}
        reached = [size for size in self._ready if size <= self._tiles.size]
        if not reached:
            return False
        size = max(reached)
        self._ready -= set(reached)
        note = (
            self._signed.get(size)
            if self._collector is None
            else self._collector.merge(size)
        )
        if note is None or note == self._tiles.checkpoint():
            return False
        try:
            self._tiles.publish(note)
        except TileStoreError as error:
            self._alerts.add(AlertCode.CHECKPOINT_DIFFERS, str(error))
            return False
        return True
