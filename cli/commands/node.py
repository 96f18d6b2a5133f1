"""`moot node`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import find_kafka, find_settings
from cli.options import AsJson, Federation
from cli.show import say

app = typer.Typer(help="Set up, list and replace ledger nodes.", no_args_is_help=True)


@app.command("init")
def init(
    name: Annotated[str, typer.Argument(help="Its name among the nodes.")],
    url: Annotated[
        str, typer.Option(help="Where others reach it, http://host:port.")
    ] = "",
) -> None:
    """Make a ledger node's key and vote log; print the node for `federation create`."""
    from cli.node import make_node, show_node
    from cli.stack.processes import demand_name

    demand_name(name, "a ledger node")
    say(show_node(make_node(find_settings(), name, url)))


@app.command("list")
def list_(federation: Federation, as_json: AsJson = False) -> None:
    """List a federation's ledger nodes, era by era."""
    from cli.node import list_nodes

    list_nodes(find_kafka(), federation, as_json=as_json)


@app.command("policy")
def policy(
    federation: Federation,
    era: Annotated[
        int | None,
        typer.Option(help="Era of the node set, from 0; by default the present one."),
    ] = None,
) -> None:
    """Print whose cosignatures make a checkpoint final, as a C2SP policy file."""
    from cli.receipts import show_policy

    say(*show_policy(find_kafka(), federation, era).splitlines())


@app.command("propose")
def propose(
    federation: Federation,
    node: Annotated[
        list[str], typer.Option(help="NAME=HEX@URL, one for each node of the new set.")
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="File to write.")],
) -> None:
    """Write a proposal for a new node set, for the present nodes to approve."""
    from cli.node import parse_ledger_nodes, propose

    nodes = parse_ledger_nodes(node)
    propose(find_kafka(), federation, nodes, output)


@app.command("approve")
def approve(
    proposal: Annotated[Path, typer.Argument(help="The proposal file.")],
    name: Annotated[
        str, typer.Option(help="Name of the node on this machine that signs.")
    ],
) -> None:
    """Sign a proposal with the key of a present ledger node."""
    from cli.node import approve, load_proposal

    load_proposal(proposal)
    approve(find_kafka(), proposal, name)


@app.command("change")
def change(
    proposal: Annotated[Path, typer.Argument(help="The approved proposal file.")],
) -> None:
    """Publish an approved proposal as the operator."""
    from cli.node import change, load_proposal

    load_proposal(proposal)
    change(find_kafka(), proposal)
