"""`moot party` and `moot dealer`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.environment import find_settings
from cli.show import say

app = typer.Typer(help="Parties and their keys.", no_args_is_help=True)
dealer_app = typer.Typer(help="Dealers and their keys.", no_args_is_help=True)


@app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="Its name among the parties.")],
    address: Annotated[
        str,
        typer.Option(help="Where other parties reach it to compare, HOST:PORT."),
    ] = "",
) -> None:
    """Make a party's keys and memory, and print it for `federation create`."""
    from cli.party import make_party, show_party

    say(show_party(make_party(find_settings(), name, address)))


@dealer_app.command("init")
def init_dealer(
    name: Annotated[str, typer.Argument(help="What this machine calls it.")],
) -> None:
    """Make a dealer's key, and print it for `federation create`."""
    from cli.party import make_dealer_key

    say(make_dealer_key(find_settings(), name).hex())
