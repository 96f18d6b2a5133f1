"""Blobs of a round, as those who check it want them fetched."""

from __future__ import annotations

from collections.abc import Callable

from adapters.blobs import BlobError
from protocol.modes.problem import BadBlob, Fetch, RoundError
from schemas.events import BlobRef


def make_fetch(fetch: Callable[..., bytes]) -> Fetch:
    """Return what fetches for a round.

    Args:
        fetch: `adapters.blobs.BlobStore.fetch`, or something that promises the same.
    """

    def fetch_for_round(ref: BlobRef, max_size_bytes: int) -> bytes:
        try:
            return fetch(ref, max_size_bytes=max_size_bytes)
        except BlobError as error:
            blob = BadBlob(error.reason, ref)
            raise RoundError(error.reason, str(error), blob) from error

    return fetch_for_round
