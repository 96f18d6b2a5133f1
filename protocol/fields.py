"""Rules for fields that many events share."""

from __future__ import annotations

import re
from typing import Final

from protocol.strategies.strategy import MAX_NUM_STEPS
from schemas import events as e

NAME: Final = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?")
BLOB_URI: Final = re.compile(r"s3://[a-z0-9][a-z0-9.-]{1,62}/sha256/[0-9a-f]{64}")
ADDRESS: Final = re.compile(
    r"(?:[a-zA-Z0-9._-]{1,200}|\[[0-9a-fA-F:.]{2,64}\]):[1-9][0-9]{0,4}", re.ASCII
)
REFUSAL_CODE: Final = re.compile(r"[A-Z_]{1,64}")
MAX_TEXT_LENGTH: Final = 500
_ALL_PERCENT: Final = 100


def find_blob_problem(blob: e.BlobRef) -> str | None:
    """Return what is wrong with a reference to a blob; None if nothing."""
    if blob.size_bytes < 1:
        return "a blob's size_bytes must be at least 1"
    if BLOB_URI.fullmatch(blob.uri) is None or blob.uri[-64:] != blob.sha256.hex():
        return "a blob's uri must be s3://<bucket>/sha256/<hex of its sha256>"
    return None


def find_text_problem(text: str) -> str | None:
    """Return what is wrong with a text; None if nothing."""
    if len(text) > MAX_TEXT_LENGTH:
        return f"a text is longer than {MAX_TEXT_LENGTH} characters"
    return None


def find_training_problem(
    num_examples: int, loss: e.EncodingLoss | None, num_steps: int | None = None
) -> str | None:
    """Return what is wrong with what an agent says of its training; None if nothing."""
    if loss is not None and (
        loss.shrunk_times < 1 or not 0 <= loss.zeroed_percent <= _ALL_PERCENT
    ):
        return "shrunk_times must be at least 1, and zeroed_percent 0 to 100"
    if num_steps is not None and not 1 <= num_steps <= MAX_NUM_STEPS:
        return f"num_steps must be 1 to {MAX_NUM_STEPS}"
    return "num_examples must be at least 1" if num_examples < 1 else None
