"""A party's identity: its keys, and the memory without which they may not be used; and
a dealer's, which is a key.

Three files in a directory of its own: ``said.jsonl``, what it has said (see
`adapters.modes.mpc.memory`); ``party.key``, Ed25519, which signs what it says;
``sealing.key``, HPKE, which opens what is sealed to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from adapters.keys import load_key, load_or_create_key, load_or_create_seed, load_seed
from adapters.modes.mpc.memory import create_party_log
from adapters.settings import Settings
from ledger.signing import SigningKey
from protocol.modes.mpc.sealing import SealingSecretKey

SIGNING_FILE: Final = "party.key"
SEALING_FILE: Final = "sealing.key"


def party_directory(settings: Settings, name: str) -> Path:
    """Return where a party of this machine keeps its keys and its memory."""
    return settings.state_directory / "parties" / name


def dealer_key_path(settings: Settings, name: str) -> Path:
    """Return where a dealer of this machine keeps its key, Ed25519."""
    return settings.state_directory / "dealers" / name / "dealer.key"


@dataclass(frozen=True, slots=True)
class PartyIdentity:
    """A party's keys.

    Attributes:
        key: Signs what it says.
        sealing_key: Opens shares sealed to it.
    """

    key: SigningKey = field(repr=False)
    sealing_key: SealingSecretKey


def create_party(directory: Path) -> PartyIdentity:
    """Make a party's memory and keys, if missing.

    Raises:
        KeyFileError: an existing key file cannot be used.
    """
    # The memory first: a crash in between leaves an empty memory and no key, never a
    # key whose memory could have been lost.
    if not any((directory / name).exists() for name in (SIGNING_FILE, SEALING_FILE)):
        create_party_log(directory)
    return PartyIdentity(
        load_or_create_key(directory / SIGNING_FILE),
        SealingSecretKey(load_or_create_seed(directory / SEALING_FILE)),
    )


def load_party(directory: Path) -> PartyIdentity:
    """Return a party's keys.

    Raises:
        KeyFileError: one is missing or cannot be used.
    """
    return PartyIdentity(
        load_key(directory / SIGNING_FILE),
        SealingSecretKey(load_seed(directory / SEALING_FILE)),
    )
