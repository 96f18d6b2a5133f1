"""`moot model`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import find_kafka
from cli.options import DEFAULT_ALLOWED, AsJson, Federation, parse_config

app = typer.Typer(help="Use published models.", no_args_is_help=True)


@app.command("evaluate")
def evaluate(
    federation: Federation,
    versions: Annotated[
        list[int] | None,
        typer.Argument(
            min=0, help="Versions, 0 for the initial model; the newest by default."
        ),
    ] = None,
    is_all: Annotated[
        bool, typer.Option("--all", help="Every version, for curves.")
    ] = False,
    data_module: Annotated[
        str | None,
        typer.Option(help="LightningDataModule of your own; the task's by default."),
    ] = None,
    data_config: Annotated[
        str,
        typer.Option(
            help="Its arguments, JSON; added to the task's, unless --data-module is "
            "given."
        ),
    ] = "{}",
    output_csv: Annotated[
        Path | None, typer.Option("--csv", help="File for the numbers.")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="File for the curves, .svg.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Module prefix that may be loaded.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure published versions on your own test data, by the module's own test step.

    If it has none, its validation step is used.
    """
    from cli.model import (
        OwnData,
        demand_plot,
        evaluate_versions,
        show_measured,
        write_csv,
        write_plot,
    )

    demand_plot(plot)
    data = OwnData(
        data_module=data_module,
        data_config=parse_config("--data-config", data_config),
        allowed_prefixes=tuple(allow or ()) or DEFAULT_ALLOWED,
    )
    measured = evaluate_versions(
        find_kafka(), federation, versions or (), data, is_all=is_all
    )
    show_measured(measured, as_json=as_json)
    if output_csv is not None:
        write_csv(measured, output_csv)
    if plot is not None:
        write_plot(measured, plot)
