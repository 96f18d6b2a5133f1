"""`moot round`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.environment import find_kafka
from cli.options import AsJson, Federation
from cli.show import say

app = typer.Typer(help="Start, abandon and watch rounds.", no_args_is_help=True)


@app.command("start")
def start(
    federation: Federation,
    wait: Annotated[bool, typer.Option(help="Wait until the round ends.")] = True,
    timeout_s: Annotated[float, typer.Option(help="Seconds to wait at most.")] = 600,
) -> None:
    """Request the next round and watch it."""
    from cli.operate import start_round

    raise typer.Exit(
        start_round(find_kafka(), federation, wait=wait, timeout_s=timeout_s)
    )


@app.command("abandon")
def abandon(
    federation: Federation,
    explanation: Annotated[
        str, typer.Option("--because", help="The reason, for the log.")
    ],
) -> None:
    """Abandon the round in progress, so that another can start."""
    from cli.operate import abandon_round

    say(f"gave up round {abandon_round(find_kafka(), federation, explanation)}")


@app.command("watch")
def watch(
    federation: Federation,
    as_json: AsJson = False,
    follow: Annotated[
        bool, typer.Option(help="Keep printing as events arrive.")
    ] = True,
) -> None:
    """Print what happens in a federation, from the beginning."""
    from cli.operate import watch

    watch(find_kafka(), federation, as_json=as_json, follow=follow)
