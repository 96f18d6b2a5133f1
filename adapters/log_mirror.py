"""A copy of the tiled log in the object store, for readers without a log server.

    log/<federation id>/checkpoint
    log/<federation id>/tile/...

The copy is a view: readers verify it, and it can be made again. It may lag.
"""

from __future__ import annotations

import io
from pathlib import Path

import urllib3
from minio.error import S3Error

from adapters.blobs import make_client
from adapters.settings import Settings
from adapters.tile_store import TileStore, mirror
from ledger.checkpoint import parse_checkpoint
from ledger.note import MAX_NOTE_SIZE_BYTES, InvalidNoteError, parse_note
from ledger.tiles import CHECKPOINT_PATH


class LogMirror:
    """Copies one federation's log from its tile store. For one thread."""

    def __init__(self, settings: Settings, federation_id: str, directory: Path) -> None:
        self._prefix = f"log/{federation_id}/"
        self._bucket = settings.bucket
        self._directory = directory
        self._size: int | None = None
        self._client = make_client(
            settings,
            urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=5, read=30), retries=urllib3.Retry(2)
            ),
        )

    def copy(self) -> int:
        """Copy what was published since the last copy; returns the copy's size.

        Raises:
            Exception: the object store is away or the tiles changed meanwhile: try
                again later.
        """
        if self._size is None:
            self._size = self._find_size()
        # A store of its own: another thread is writing the other one.
        store = TileStore(self._directory, sync=False)
        # If a log's tiles were deleted, its copy starts anew.
        old_size = self._size if self._size <= store.published_size else 0
        self._size = mirror(store, self._put, old_size=old_size)
        return self._size

    def _find_size(self) -> int:
        """Return the copy's size: its checkpoint was written last."""
        try:
            answer = self._client.get_object(
                bucket_name=self._bucket, object_name=self._prefix + CHECKPOINT_PATH
            )
        except S3Error as error:
            if error.code == "NoSuchKey":
                return 0
            raise
        try:
            # One byte too many is no note.
            note = answer.read(MAX_NOTE_SIZE_BYTES + 1, decode_content=False)
            return parse_checkpoint(parse_note(note).text).size
        except InvalidNoteError:
            return 0
        finally:
            answer.close()
            answer.release_conn()

    def _put(self, path: str, data: bytes, content_type: str) -> None:
        self._client.put_object(
            bucket_name=self._bucket,
            object_name=self._prefix + path,
            data=io.BytesIO(data),
            length=len(data),
            content_type=content_type,
        )
