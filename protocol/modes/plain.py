"""Aggregation PLAIN: agents submit updates, the aggregator checks and sums them."""

from __future__ import annotations

from typing import Final

from protocol.modes.mode import SEALED, Mode, Phase
from schemas import events as e

PLAIN: Final = Mode(
    name="plain",
    answer=e.UpdateSubmitted,
    get_blob=lambda update: update.update,
    awaits_checks=True,
    phases=(Phase(name=SEALED, begins=e.RoundSealed),),
)
