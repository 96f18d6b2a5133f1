"""`moot names`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.environment import find_settings
from cli.options import AgentId, AsJson, Federation

app = typer.Typer(
    help="Record who is behind agents' pseudonyms, off the log.", no_args_is_help=True
)


@app.command("set")
def set_(
    agent_id: AgentId,
    name: Annotated[str, typer.Argument(help="The name; empty removes it.")],
    federation: Federation,
) -> None:
    """Record who is behind an agent's pseudonym, encrypted, on this machine only."""
    from cli.names import set_name

    set_name(find_settings(), federation, agent_id, name)


@app.command("list")
def list_(federation: Federation, as_json: AsJson = False) -> None:
    """Show who is behind each pseudonym."""
    from cli.names import list_names

    list_names(find_settings(), federation, as_json=as_json)


@app.command("destroy-key")
def destroy_key(federation: Federation) -> None:
    """Make the names unreadable, for good; the log stays as it is."""
    from cli.names import destroy_key

    destroy_key(find_settings(), federation)
