"""Which genesis of a federation a directory takes part in: the first one it saw.

    <directory>/genesis/<SHA-256 of federation_id, hex>      genesis hash, hex

If a federation is founded anew, or another log is shown under its name, a directory
that knows the earlier one gives nothing more: what it keeps and says belongs to that
one alone. The file is durable before anything is said.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Final

from adapters.durable import sync_directory, write_file

GENESIS_DIRECTORY: Final = "genesis"
_SIZE_BYTES: Final = 65


class OtherGenesisError(Exception):
    """A federation was founded anew, or another log is shown under its name."""


def remember_genesis(directory: Path, federation_id: str, genesis: bytes) -> None:
    """Remember a federation's genesis, durably, or check it against the known one.

    Args:
        directory: Of one agent, party or service.
        federation_id: The federation.
        genesis: Hash of its genesis, 32 bytes.

    Raises:
        OtherGenesisError: the directory knows another one, or its file is damaged.
    """
    folder = directory / GENESIS_DIRECTORY
    path = folder / hashlib.sha256(federation_id.encode()).hexdigest()
    text = f"{genesis.hex()}\n".encode()
    try:
        with path.open("rb") as file:
            known = file.read(_SIZE_BYTES + 1)
    except FileNotFoundError:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_file(path, text)
        sync_directory(directory)
        return
    if known != text:
        raise OtherGenesisError(
            f"federation {federation_id} was founded anew: its log has genesis "
            f"{genesis.hex()}, but {directory} belongs to "
            f"{known.decode('ascii', 'backslashreplace').strip()} ({path}). Use "
            "another directory for another genesis."
        )
