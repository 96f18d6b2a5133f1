"""`moot rewards`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.environment import find_kafka
from cli.options import AsJson, Federation


def rewards(
    federation: Federation,
    history: Annotated[
        bool, typer.Option("--history", help="Show every change and its leaf.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show what agents, parties, ledger nodes and the sequencer earned and lost."""
    from cli.rewards import show_rewards

    show_rewards(find_kafka(), federation, as_json=as_json, history=history)
