"""`moot schemas`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.environment import find_settings
from cli.options import AsJson, make_failure
from cli.show import say, say_json

app = typer.Typer(help="Register and show Avro schemas.", no_args_is_help=True)


@app.command("register")
def register(as_json: AsJson = False) -> None:
    """Register every schema under its subject, with FULL_TRANSITIVE compatibility."""
    from adapters.schema_registry import SchemaRegistry

    ids = SchemaRegistry(find_settings().schema_registry_url).register_all()
    if as_json:
        say_json(ids)
        return
    for subject, schema_id in ids.items():
        say(f"{schema_id:>5} {subject}")


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="Name of the event.")],
) -> None:
    """Print the Avro schema of an event."""
    from schemas import codec

    if name not in codec.CLASSES:
        raise make_failure(f"no event {name}; `moot topics list` shows them all")
    say(*codec.schema_text(name).splitlines())
