"""What those who run parties and dealers do from the command line: keys."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from adapters.keys import load_or_create_key
from adapters.modes.mpc.identity import (
    create_party,
    dealer_key_path,
    party_directory,
)
from cli.stack.processes import StackError, demand_name
from protocol.fields import ADDRESS
from protocol.modes.mpc.sealing import InvalidSealingKeyError, SealingKey
from schemas.events import Party

if TYPE_CHECKING:
    from adapters.settings import Settings


def make_party(settings: Settings, name: str, address: str = "") -> Party:
    """Return a party of this machine; its keys and memory are made if need be.

    Args:
        settings: Where its directory is.
        name: Its name.
        address: Where the other parties and a dealer reach it, host:port; empty if it
            compares no updates.

    Raises:
        StackError: the name cannot be a party's, or that is no address.
        KeyFileError: a key file cannot be used.
    """
    demand_name(name, "a party")
    _demand_address(address)
    identity = create_party(party_directory(settings, name))
    return Party(
        name=name,
        public_key=identity.key.public_key,
        sealing_key=identity.sealing_key.public_key.public_key,
        address=address,
    )


def make_dealer_key(settings: Settings, name: str) -> bytes:
    """Return the public key of a dealer of this machine, made if need be; 32 bytes.

    Raises:
        StackError: the name cannot be a dealer's.
        KeyFileError: its key file cannot be used.
    """
    demand_name(name, "a dealer")
    return load_or_create_key(dealer_key_path(settings, name)).public_key


def _demand_address(address: str) -> None:
    if address and ADDRESS.fullmatch(address) is None:
        msg = f"{address!r:.200} is not HOST:PORT"
        raise StackError(msg, "For example: --address party.example.org:7500.")


def show_party(party: Party) -> str:
    """Return a party as `parse_parties` reads it."""
    keys = f"{party.name}={party.public_key.hex()}:{party.sealing_key.hex()}"
    return f"{keys}@{party.address}" if party.address else keys


def parse_parties(texts: Iterable[str]) -> tuple[Party, ...]:
    """Return parties, each ``NAME=HEX:HEX[@HOST:PORT]``, in ascending order of name.

    Raises:
        StackError: one is not written like that.
    """
    return tuple(sorted(map(_parse_party, texts), key=lambda party: party.name))


def _parse_party(text: str) -> Party:
    name, _, rest = text.partition("=")
    keys, _, address = rest.partition("@")
    _demand_address(address)
    signing, _, sealing = keys.partition(":")
    try:
        public_key, sealing_key = bytes.fromhex(signing), bytes.fromhex(sealing)
        SealingKey(sealing_key)
    except (ValueError, InvalidSealingKeyError):
        public_key = sealing_key = b""
    if not name or len(public_key) != 32:  # noqa: PLR2004  # Ed25519
        msg = f"{text!r:.200} is not NAME=HEX:HEX, or NAME=HEX:HEX@HOST:PORT"
        raise StackError(msg, "`moot party init NAME` prints it like that.")
    return Party(
        name=name, public_key=public_key, sealing_key=sealing_key, address=address
    )
