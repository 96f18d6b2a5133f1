"""What a log says to a witness (c2sp.org/tlog-witness)."""

from __future__ import annotations

from collections.abc import Sequence

from ledger.note import encode_base64


def format_request(old_size: int, proof: Sequence[bytes], signed_note: bytes) -> bytes:
    """Return the body of a request.

    Args:
        old_size: Size of the last checkpoint that the witness cosigned; 0 if unknown,
            then a 409 tells.
        proof: Consistency proof from there; empty from 0.
        signed_note: The checkpoint.
    """
    lines = [f"old {old_size}", *map(encode_base64, proof), "\n"]
    return "\n".join(lines).encode() + signed_note
