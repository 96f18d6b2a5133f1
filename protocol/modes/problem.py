"""What is wrong with something said in a round, or with a blob of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from schemas import events as e
from schemas.reasons import Reason

Problem: TypeAlias = tuple[Reason, str]
"""A reason code, for the ledger, and the details, for people."""


@dataclass(frozen=True, slots=True)
class BadBlob:
    """A blob that is not in the store as the log promises.

    Attributes:
        reason: MISSING_BLOB, OVERSIZED_BLOB or CORRUPT_BLOB.
        ref: The promise.
    """

    reason: Reason
    ref: e.BlobRef


class RoundError(ValueError):
    """Something in a round is not what it must be; bad input.

    Attributes:
        reason: For the ledger.
        detail: For people.
        blob: The blob that is to blame; None if its content is, or none of them.
    """

    def __init__(
        self, reason: Reason, detail: str, blob: BadBlob | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.blob = blob


Fetch: TypeAlias = Callable[[e.BlobRef, int], bytes]
"""Returns a blob, digest verified, of at most so many bytes; raises `RoundError` if it
is not there or not what the reference promises."""
