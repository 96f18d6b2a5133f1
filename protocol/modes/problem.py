"""What is wrong with something said: a reason code, and the details for people."""

from __future__ import annotations

from typing import TypeAlias

from schemas.reasons import Reason

Problem: TypeAlias = tuple[Reason, str]
