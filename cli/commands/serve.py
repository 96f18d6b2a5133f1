"""`moot serve`."""

from __future__ import annotations

from typing import Annotated

import typer

from cli.environment import load_environment
from cli.options import (
    DEFAULT_ALLOWED,
    GenesisHash,
    OperatorKey,
    OptionalFederation,
    parse_key,
)


def serve(
    service: Annotated[
        str,
        typer.Argument(
            help="sequencer, rounds, aggregator, registry, rewards, party or dealer; "
            "timer, exporter, ledger-node or log, which serve one federation; all: "
            "the operator's services, restarted when they end."
        ),
    ],
    federation: OptionalFederation = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Module prefix that the exporter may load."),
    ] = None,
    name: Annotated[
        str | None, typer.Option(help="Name of the ledger node, party or dealer.")
    ] = None,
    min_cohort: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="Fewest contributions that a party sums; default MOOT_MIN_COHORT, "
            "or 2.",
        ),
    ] = None,
    host: Annotated[
        str | None,
        typer.Option(
            help="Address to listen on; default 127.0.0.1, for a party its own address."
        ),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port to listen on; default 7400 for a ledger node, 7480 for the "
            "log; 0: any."
        ),
    ] = None,
    operator_key: OperatorKey = None,
    genesis: GenesisHash = None,
    peer: Annotated[
        list[str] | None,
        typer.Option(help="URL of a ledger node that the log does not name."),
    ] = None,
) -> None:
    """Run one service until it is told to stop."""
    from adapters.descriptors import raise_limit
    from cli.stack.services import ServiceOptions, run_service

    load_environment()
    raise_limit()
    options = ServiceOptions(
        federation=federation,
        name=name,
        allowed_prefixes=tuple(allow or ()) or DEFAULT_ALLOWED,
        min_cohort=min_cohort,
        host=host,
        port=port,
        operator_key=None if operator_key is None else parse_key(operator_key),
        genesis=None if genesis is None else parse_key(genesis),
        peers=tuple(peer or ()),
    )
    run_service(service, options)
