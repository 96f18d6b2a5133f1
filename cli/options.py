"""Options that several commands share, and how bad ones fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Final

import typer

from cli.show import say_error

EXIT_CANNOT: Final = 2
DEFAULT_ALLOWED: Final = ("producers.examples",)

Federation = Annotated[
    str, typer.Option("--federation", "-f", help="Name of the federation.")
]
OperatorKey = Annotated[
    str | None,
    typer.Option("--operator-key", help="Public key of the operator you trust, hex."),
]
GenesisHash = Annotated[
    str | None,
    typer.Option("--genesis", help="Hash of the genesis you trust, hex."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
Watch = Annotated[
    bool, typer.Option("--watch", help="Show it again every two seconds.")
]
StackDirectory = Annotated[
    Path | None,
    typer.Option(help="Directory of the stack; the user's state folder by default."),
]


def parse_principals(items: Sequence[str]) -> dict[str, str]:
    """Return keys in hex by role, from ``ROLE=HEX``."""
    from cli.operate import NOBODY

    principals = {}
    for item in items:
        role, equals, key = item.partition("=")
        if not equals:
            raise make_failure(f"not ROLE=HEX: {item!r:.80}")
        principals[role] = key if key == NOBODY else parse_key(key).hex()
    return principals


def parse_key(text: str) -> bytes:
    """Return the 32 bytes of a key or a hash, from hex."""
    try:
        key = bytes.fromhex(text)
    except ValueError:
        key = b""
    if len(key) != 32:  # noqa: PLR2004  # an Ed25519 public key, or SHA-256
        raise make_failure(f"not a key or hash: {text!r:.80}; expected 64 hex digits")
    return key


def make_failure(message: str) -> typer.Exit:
    """Print what is wrong with the arguments; return what to raise."""
    say_error(message)
    return typer.Exit(EXIT_CANNOT)
