"""Options that several commands share, and how bad ones fail."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Final

import typer

from cli.show import say_error
from cli.stack.processes import StackError, demand_name

EXIT_CANNOT: Final = 2
DEFAULT_ALLOWED: Final = ("producers.examples",)


def _make_checker(whose: str) -> Callable[[str | None], str | None]:
    def check(name: str | None) -> str | None:
        if name is not None:
            demand_name(name, whose)
        return name

    return check


_FEDERATION: Final = typer.Option(
    "--federation",
    "-f",
    help="Name of the federation.",
    callback=_make_checker("a federation"),
)
Federation = Annotated[str, _FEDERATION]
OptionalFederation = Annotated[str | None, _FEDERATION]
AgentId = Annotated[
    str,
    typer.Argument(help="Name of the agent.", callback=_make_checker("an agent")),
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
    from protocol.validation import ROLES

    principals = {}
    for item in items:
        role, equals, key = item.partition("=")
        if not equals:
            raise make_failure(f"not ROLE=HEX: {item!r:.80}")
        if role == "OPERATOR":
            raise make_failure(
                "the operator's key must be this machine's, which signs the genesis: "
                "leave --principal OPERATOR out"
            )
        if role not in ROLES:
            raise make_failure(
                f"no such principal: {role!r:.80}; the roles are {', '.join(ROLES)}"
            )
        principals[role] = key if key == NOBODY else parse_key(key).hex()
    return principals


def parse_config(name: str, text: str) -> dict[str, Any]:
    """Return arguments from JSON.

    Raises:
        StackError: it is not a JSON object.
    """
    try:
        found = json.loads(text)
    except ValueError as error:
        msg = f"{name} is not JSON: {error}"
        raise StackError(msg, f"For example: {name} '{{}}'") from None
    if not isinstance(found, dict):
        msg = f"{name} must be a JSON object, arguments by name, not {text!r:.80}"
        raise StackError(msg, f"For example: {name} '{{\"batch_size\": 32}}'")
    return found


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
