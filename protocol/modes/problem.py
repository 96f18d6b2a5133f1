"""What is wrong with something said in a round, or with one of its blobs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeAlias

from schemas import events as e
from schemas.reasons import Reason

Problem: TypeAlias = tuple[Reason, str]
"""A reason code, for the ledger, and details, as text."""

MAX_DETAIL_LENGTH: Final = 200
"""Longest detail that may quote what others wrote: a hundred must fit an event."""


@dataclass(frozen=True, slots=True)
class BadBlob:
    """A blob that the store does not have as the log promises.

    Attributes:
        reason: MISSING_BLOB, OVERSIZED_BLOB or CORRUPT_BLOB.
        ref: The reference.
    """

    reason: Reason
    ref: e.BlobRef


class RoundError(ValueError):
    """Something in a round is wrong; bad input.

    Attributes:
        reason: For the ledger.
        detail: Why, as text.
        blob: The blob to blame; None if its content is to blame, or no blob.
    """

    def __init__(
        self, reason: Reason, detail: str, blob: BadBlob | None = None
    ) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
        self.blob = blob


UNFORESEEN: Final = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    RecursionError,
    TypeError,
    ValueError,
)
"""What a reader of others' bytes raises if nobody foresaw them: a bug of ours, and none
of these is an outage. Everybody who reads the bytes finds the same."""


def explain_unforeseen(error: Exception) -> RoundError:
    """Return what to say of bytes that made a reader fail: one bad item, no more."""
    detail = f"it cannot be read: {type(error).__name__}"
    return RoundError(Reason.MALFORMED_BLOB, detail)


Fetch: TypeAlias = Callable[[e.BlobRef, int], bytes]
"""Returns a blob, digest verified, of at most so many bytes; raises `RoundError` if it
is missing or not what the reference promises."""
