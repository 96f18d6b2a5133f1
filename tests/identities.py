"""What a ledger node of the builders has on its disk at first."""

from __future__ import annotations

from pathlib import Path

from adapters.vote_log import _UNBOUND, KEY_FILE, VOTES_FILE
from adapters.vote_log import _write as write_votes
from tests.builders import make_key


def make_identity(directory: Path, name: str) -> None:
    """Make the identity of a builder's node."""
    directory.mkdir(parents=True)
    key = make_key(name)
    write_votes(directory / VOTES_FILE, key.public_key, _UNBOUND, None)
    path = directory / KEY_FILE
    path.write_text(key.seed.hex() + "\n")
    path.chmod(0o600)
