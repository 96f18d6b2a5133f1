"""Blobs of an MPC round, as `protocol.modes.mpc.checker` wants them fetched."""

from __future__ import annotations

from collections.abc import Callable

from adapters.blobs import BlobError
from protocol.modes.mpc.checker import BadBlob, Fetch, MpcRoundError
from schemas.events import BlobRef


def make_fetch(fetch: Callable[..., bytes]) -> Fetch:
    """Return what fetches for an MPC round.

    Args:
        fetch: `adapters.blobs.BlobStore.fetch`, or something that promises the same.
    """

    def fetch_for_round(ref: BlobRef, max_size_bytes: int) -> bytes:
        try:
            return fetch(ref, max_size_bytes=max_size_bytes)
        except BlobError as error:
            blob = BadBlob(error.reason, ref)
            raise MpcRoundError(error.reason, str(error), blob) from error

    return fetch_for_round
