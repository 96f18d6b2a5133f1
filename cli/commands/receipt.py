"""`moot receipt` and `moot verify-receipt`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cli.environment import find_kafka
from cli.options import AsJson, Federation
from cli.show import say


def receipt(
    event: Annotated[str, typer.Argument(help="Event id in hex, or a leaf index.")],
    federation: Federation,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.")
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option(help="A log server to ask instead of the ledger nodes."),
    ] = None,
) -> None:
    """Write a receipt: leaf, inclusion proof, cosigned checkpoint (C2SP tlog-proof)."""
    from adapters.durable import write_output
    from cli.receipts import get_receipt
    from ledger.proof_file import FILE_EXTENSION

    leaf_index, data = get_receipt(find_kafka(), federation, event, tuple(url or ()))
    path = output or Path(f"{federation}-leaf-{leaf_index}{FILE_EXTENSION}")
    write_output(path, data)
    say(f"wrote {path}: leaf {leaf_index}, {len(data)} bytes")


def verify_receipt(
    file: Annotated[Path, typer.Argument(help="The receipt.")],
    policy: Annotated[
        Path, typer.Option(help="C2SP policy file; `moot node policy` prints it.")
    ],
    as_json: AsJson = False,
) -> None:
    """Verify a receipt, offline."""
    from cli.receipts import check_receipt

    raise typer.Exit(check_receipt(file, policy, as_json=as_json))
