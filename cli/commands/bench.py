"""`moot bench`."""

from __future__ import annotations

from typing import Annotated

import typer


def bench(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            help="Any of sequencer, hops, rounds, finality, audit, aggregation, "
            "privacy, differences; all by default."
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option(help="Small sizes, just to check that it runs.")
    ] = False,
    write: Annotated[
        bool, typer.Option(help="Write the figures into docs/benchmarks.md instead.")
    ] = False,
) -> None:
    """Run benchmarks on a separate stack, and compare the figures with their limits."""
    from cli.bench import run_bench

    run_bench(tuple(names or ()), quick=quick, write=write)
