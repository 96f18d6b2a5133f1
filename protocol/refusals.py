"""Errors about bytes that somebody sent: which rule they break, and how."""

from __future__ import annotations

from enum import StrEnum
from typing import Generic, TypeVar

R = TypeVar("R", bound=StrEnum)


class RefusedError(ValueError, Generic[R]):
    """Bad input, never a bug of ours.

    Attributes:
        reason: The first rule that is broken.
        detail: Why, as text; shows nothing secret, never part of anything hashed.
    """

    def __init__(self, reason: R, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail
