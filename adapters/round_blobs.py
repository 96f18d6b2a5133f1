"""How a round's checker fetches blobs, and the checker itself."""

from __future__ import annotations

from collections.abc import Callable

from adapters.blobs import BlobError
from protocol.modes import get_mode
from protocol.modes.mode import Checker, MapAll
from protocol.modes.problem import BadBlob, Fetch, RoundError
from protocol.round_view import RoundView
from schemas.events import BlobRef


def make_fetch(fetch: Callable[..., bytes]) -> Fetch:
    """Return a round's fetcher.

    Args:
        fetch: `adapters.blobs.BlobStore.fetch`, or anything with the same contract.
    """

    def fetch_for_round(ref: BlobRef, max_size_bytes: int) -> bytes:
        try:
            return fetch(ref, max_size_bytes=max_size_bytes)
        except BlobError as error:
            blob = BadBlob(error.reason, ref)
            raise RoundError(error.reason, str(error), blob) from error

    return fetch_for_round


class Checking:
    """The checker of the round in progress.

    Args:
        fetch: `adapters.blobs.BlobStore.fetch`, or anything with the same contract.
        map_all: Maps a check over several blobs.
    """

    def __init__(self, fetch: Callable[..., bytes], map_all: MapAll) -> None:
        self._fetch = make_fetch(fetch)
        self._map_all = map_all
        self._current: tuple[bytes, Checker] | None = None

    def get(self, view: RoundView) -> Checker:
        """Return a round's checker, made once: it remembers its findings."""
        if self._current is None or self._current[0] != view.identity:
            make = get_mode(view.config).makes_checker
            self._current = view.identity, make(view, self._fetch, self._map_all)
        return self._current[1]

    def forget(self) -> None:
        """Drop the findings: no round is in progress."""
        self._current = None
