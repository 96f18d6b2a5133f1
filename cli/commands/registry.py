"""`moot registry`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import find_kafka
from cli.options import AsJson, Federation

app = typer.Typer(help="List and fetch model versions.", no_args_is_help=True)


@app.command("list")
def list_(federation: Federation, as_json: AsJson = False) -> None:
    """List a federation's model versions, and models that are not registered yet."""
    from cli.operate import list_versions

    list_versions(find_kafka(), federation, as_json=as_json)


@app.command("get")
def get(
    version: Annotated[
        int, typer.Argument(min=0, help="Its number; 0: the initial model.")
    ],
    federation: Federation,
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
    form: Annotated[
        str, typer.Option("--format", help="onnx or safetensors.")
    ] = "onnx",
) -> None:
    """Fetch a model version, registered or not, and verify its digest."""
    from cli.operate import demand_format, get_version

    demand_format(form)
    get_version(find_kafka(), federation, version, form, output)
