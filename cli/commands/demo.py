"""`moot demo`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def demo(
    rounds: Annotated[int, typer.Option(min=1, help="Number of rounds.")] = 5,
    task: Annotated[
        str, typer.Option(help="Example to train: digits or breast-cancer.")
    ] = "digits",
    directory: Annotated[
        Path | None,
        typer.Option(help="Keep everything here; a temporary folder by default."),
    ] = None,
) -> None:
    """Train across five organisations on a fresh stack, then audit the result."""
    from cli.demo import run_demo

    raise typer.Exit(run_demo(rounds=rounds, task=task, directory=directory))
