"""What those who run parties do from the command line: keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from adapters.party_identity import create_party
from cli.processes import StackError, demand_name
from protocol.sealing import InvalidSealingKeyError, SealingKey
from schemas.events import Party

if TYPE_CHECKING:
    from adapters.settings import Settings


def make_party(settings: Settings, name: str) -> Party:
    """Return a party of this machine; its keys and memory are made if need be.

    Raises:
        StackError: the name cannot be a party's.
        KeyFileError: a key file cannot be used.
    """
    demand_name(name, "a party")
    identity = create_party(settings.state_directory / "parties" / name)
    return Party(
        name=name,
        public_key=identity.key.public_key,
        sealing_key=identity.sealing_key.public_key.public_key,
    )


def show_party(party: Party) -> str:
    """Return a party as `parse_parties` reads it."""
    return f"{party.name}={party.public_key.hex()}:{party.sealing_key.hex()}"


def parse_parties(texts: Iterable[str]) -> tuple[Party, ...]:
    """Return parties, each ``NAME=HEX:HEX``, in ascending order of name.

    Raises:
        StackError: one is not written like that.
    """
    return tuple(sorted(map(_parse_party, texts), key=lambda party: party.name))


def _parse_party(text: str) -> Party:
    name, _, keys = text.partition("=")
    signing, _, sealing = keys.partition(":")
    try:
        public_key, sealing_key = bytes.fromhex(signing), bytes.fromhex(sealing)
        SealingKey(sealing_key)
    except (ValueError, InvalidSealingKeyError):
        public_key = sealing_key = b""
    if not name or len(public_key) != 32:  # noqa: PLR2004  # Ed25519
        msg = f"{text!r:.200} is not NAME=HEX:HEX"
        raise StackError(msg, "`moot party init NAME` prints it like that.")
    return Party(name=name, public_key=public_key, sealing_key=sealing_key)
