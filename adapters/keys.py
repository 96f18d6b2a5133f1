"""Keys in files: made on first use, readable by their owner alone."""

from __future__ import annotations

import secrets
import stat
from pathlib import Path

from adapters.durable import create_file
from ledger.signing import SEED_SIZE, SigningKey


class KeyFileError(Exception):
    """A key file cannot be used; the message says why and what to do."""


def key_path(keys: Path, role: str) -> Path:
    """Return a principal's key file in a directory of keys."""
    return keys / f"{role.lower()}.key"


def load_or_create_key(path: Path) -> SigningKey:
    """Return the key in this file, made first if missing.

    The file holds the 32-byte seed in hex. It is created with mode 0600, whole or not
    at all, so a crash leaves no half-written key behind.

    Raises:
        KeyFileError: others may read the file, or it does not hold a seed.
    """
    return SigningKey(load_or_create_seed(path))


def load_key(path: Path) -> SigningKey:
    """Return the key in this file.

    Raises:
        KeyFileError: it does not exist, others may read it, or it holds no seed.
    """
    return SigningKey(load_seed(path))


def load_or_create_seed(path: Path) -> bytes:
    """Return the seed in this file, made first if missing; as `load_or_create_key`.

    For keys of other kinds. **Secret:** the result.
    """
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        create_file(path, secrets.token_hex(SEED_SIZE).encode() + b"\n")
    return load_seed(path)


def load_seed(path: Path) -> bytes:
    """Return the seed in this file; as `load_key`. **Secret:** the result."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        text = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        msg = f"cannot read the key file {path}: {error.__class__.__name__}"
        raise KeyFileError(msg) from None
    if mode & 0o077:
        raise KeyFileError(
            f"{path} may be read by others (mode {mode:04o}): "
            "chmod 600 it, or make a new key"
        )
    try:
        seed = bytes.fromhex(text)
    except ValueError:
        seed = b""
    if len(seed) != SEED_SIZE:
        msg = f"{path} does not hold a key: expected {SEED_SIZE} bytes in hex"
        raise KeyFileError(msg)
    return seed
