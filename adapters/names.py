"""Names of people and organisations, which are kept off the log.

A log is kept for ever and nothing can be removed from it, so it knows agents only by
pseudonym. The operator keeps a file that says who they are, encrypted under a key of
its own. Once the key is destroyed nobody can read the file, or any copy of it; the log
stays as it is.

- One file and one key for each federation: AES-256-GCM, a new nonce for each writing.
- Written whole or not at all. Of two concurrent writers only one wins.

Deliberately not here: copies of the key. A backup of it reads every copy of the file.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from adapters.durable import PRIVATE, destroy_file, write_file
from adapters.keys import load_or_create_seed, load_seed

NAMES_DOMAIN: Final = b"folkmoot/names/v1\n"
NONCE_SIZE: Final = 12
MAX_NAME_LENGTH: Final = 100


class NamesError(Exception):
    """The names cannot be read; the message says why and what to do."""


def list_books(directory: Path) -> list[str]:
    """Return the federations of which a directory has names, sorted."""
    return sorted(path.stem for path in directory.glob("*.names"))


class NameBook:
    """The names of a federation's agents.

    Args:
        directory: Where its files are; made on the first write.
        federation_id: The federation; a file is useless under another one's name.
    """

    def __init__(self, directory: Path, federation_id: str) -> None:
        self._domain = NAMES_DOMAIN + federation_id.encode()
        self._file = directory / f"{federation_id}.names"
        self._key = directory / f"{federation_id}.key"

    def read(self) -> Mapping[str, str]:
        """Return names by agent_id; none if none were written, or the key is gone.

        Raises:
            NamesError: the file was not written with this key.
            KeyFileError: others may read the key file, or it holds no key.
        """
        if not (self._file.exists() and self._key.exists()):
            return {}
        data = self._file.read_bytes()
        try:
            text = AESGCM(load_seed(self._key)).decrypt(
                data[:NONCE_SIZE], data[NONCE_SIZE:], self._domain
            )
        except (InvalidTag, ValueError) as error:
            msg = f"{self._file} was not written with {self._key}"
            raise NamesError(msg) from error
        names: dict[str, str] = json.loads(text)
        return names

    def write(self, agent_id: str, name: str) -> None:
        """Remember a name, durably; an empty one removes it.

        Raises:
            NamesError: it is too long, or the file cannot be read any more.
            KeyFileError: others may read the key file, or it holds no key.
        """
        if len(name) > MAX_NAME_LENGTH:
            raise NamesError(f"a name has at most {MAX_NAME_LENGTH} characters")
        if self._file.exists() and not self._key.exists():
            msg = f"the key of {self._file} was destroyed: remove it to begin again"
            raise NamesError(msg)
        names = {k: v for k, v in self.read().items() if k != agent_id}
        if name:
            names[agent_id] = name
        key, nonce = load_or_create_seed(self._key), secrets.token_bytes(NONCE_SIZE)
        text = json.dumps(names, sort_keys=True).encode()
        data = nonce + AESGCM(key).encrypt(nonce, text, self._domain)
        write_file(self._file, data, mode=PRIVATE)

    def destroy(self) -> bool:
        """Destroy the key; return whether there was one.

        The key is overwritten on the disk before it is removed. A disk that keeps old
        blocks, a snapshot or a backup still has it: see the how-to.
        """
        if not self._key.exists():
            return False
        destroy_file(self._key)
        return True
