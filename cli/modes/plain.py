"""What aggregation PLAIN adds to the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from schemas.events import LedgerEvent


def forge_update(federation_id: str, agent_id: str) -> LedgerEvent:
    """Return an update that its agent never sent, claiming a million examples."""
    from schemas.events import BlobRef, UpdateSubmitted

    return UpdateSubmitted(
        federation_id=federation_id,
        round=1,
        agent_id=agent_id,
        base_model_sha256=bytes(32),
        update=BlobRef(
            uri=f"s3://moot/sha256/{'0' * 64}", sha256=bytes(32), size_bytes=1
        ),
        num_examples=1_000_000,
    )


def make_trial(_clip_norm: float) -> dict[str, Any]:
    """Return parameters to try out what an agent's answer takes."""
    return {}


def describe(event: LedgerEvent) -> str:
    """Return an event of this mode as one line of text; empty for any other."""
    from cli.describe import describe_training
    from schemas.events import UpdateSubmitted

    if not isinstance(event, UpdateSubmitted):
        return ""
    return f"round {event.round} update of {event.agent_id}: {describe_training(event)}"
