"""C2SP signed notes: text with the signatures of those who vouch for it.

    text, ends in a newline
                                            an empty line
    - <name> <base64(key ID || signature)>  one or more; the dash is U+2014

Rules (c2sp.org/signed-note):

- The signature covers the text with its final newline, without the empty line.
- The text ends at the *last* empty line, so a text may contain some itself.
- A signature by an unknown key is ignored, so that signers can join and leave; a bad
  one by a known key invalidates the whole note.
- A note without any signature by a known key is refused.
- UTF-8, and no ASCII control character but the newline.

Two signature types: Ed25519 over the text (0x01), and cosignature/v1 (0x04,
c2sp.org/tlog-cosignature), which also signs a time.

Stricter than some readers in one point: base64 must be canonical, so that a signature
has one spelling.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Final

from ledger.signing import (
    PUBLIC_KEY_SIZE,
    InvalidSignatureError,
    SigningKey,
    verify_signature,
)

KEY_ID_SIZE: Final = 4  # c2sp.org/signed-note, "Signatures"
MAX_NOTE_SIZE_BYTES: Final = 1_000_000
"""Go's sumdb/note reads no more; a note that others cannot read is useless."""
MAX_SIGNATURES: Final = 100
"""As Go's sumdb/note; c2sp.org/signed-note demands at least 16."""
MAX_TIMESTAMP_S: Final = 2**63 - 1  # = 9,223,372,036,854,775,807
"""c2sp.org/tlog-cosignature."""

_MAX_REMEMBERED_SIZE_BYTES: Final = 16_384
_DASH: Final = "\N{EM DASH} "
_TIMESTAMP_SIZE: Final = 8  # c2sp.org/tlog-cosignature: u64, big-endian
_KEY_ID_HEX: Final = re.compile(r"[0-9a-f]{8}")
_CONTROL: Final = re.compile(r"[\x00-\x1f]")
_CONTROL_NOT_NEWLINE: Final = re.compile(r"[\x00-\x09\x0b-\x1f]")


class InvalidNoteError(ValueError):
    """The bytes are not a note, or no known key vouches for it. Always bad input."""


class InvalidKeyError(ValueError):
    """The name or key cannot sign notes; the message shows no secret."""


class KeyType(IntEnum):
    """Signature types that we read and write (c2sp.org/signed-note)."""

    ED25519 = 0x01
    COSIGNATURE_V1 = 0x04


def parse_base64(text: str) -> bytes:
    """Return the bytes of canonical standard base64 with padding.

    Raises:
        ValueError: it is not base64, or not canonical.
    """
    data = base64.b64decode(text, validate=True)
    if encode_base64(data) != text:
        raise ValueError("base64 has stray bits after its end")
    return data


def encode_base64(data: bytes) -> str:
    """Return standard base64 with padding (RFC 4648 section 4)."""
    return base64.b64encode(data).decode("ascii")


@lru_cache(maxsize=256)
def compute_key_id(name: str, key_type: KeyType, public_key: bytes) -> bytes:
    """Return the key ID, 4 bytes (c2sp.org/signed-note, "Signatures").

    Short on purpose: it tells keys apart, and authenticates none.
    """
    data = name.encode() + b"\n" + bytes([key_type]) + public_key
    return hashlib.sha256(data).digest()[:KEY_ID_SIZE]


def _is_valid_name(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return bool(name) and not (
        "+" in name or any(map(str.isspace, name)) or _CONTROL.search(name)
    )


def _check_name(name: str) -> None:
    if not _is_valid_name(name):
        msg = f"a key name is not empty, without spaces or plus signs: {name!r}"
        raise InvalidKeyError(msg)


@dataclass(frozen=True, slots=True)
class VerifierKey:
    """A public key with the name that signature lines use for it.

    Attributes:
        name: Not empty; no Unicode space, no plus sign.
        key_type: The kind of its signatures.
        public_key: Ed25519 public key, 32 bytes.

    Raises:
        InvalidKeyError: the name or the key's length is invalid.
    """

    name: str
    key_type: KeyType
    public_key: bytes

    def __post_init__(self) -> None:
        _check_name(self.name)
        if len(self.public_key) != PUBLIC_KEY_SIZE:
            msg = f"a public key is {PUBLIC_KEY_SIZE} bytes, not {len(self.public_key)}"
            raise InvalidKeyError(msg)

    @property
    def key_id(self) -> bytes:
        """The key ID, 4 bytes."""
        return compute_key_id(self.name, self.key_type, self.public_key)

    def to_vkey(self) -> str:
        """Return the verifier key as one line of text: name, key ID, type and key."""
        key = encode_base64(bytes([self.key_type]) + self.public_key)
        return f"{self.name}+{self.key_id.hex()}+{key}"


def parse_vkey(text: str) -> VerifierKey:
    """Return the key of a verifier key line.

    Raises:
        InvalidKeyError: it is malformed, its type is unsupported, or the key ID does
            not match.
    """
    # The first two plus signs separate; base64 may contain more.
    parts = text.split("+", maxsplit=2)
    if len(parts) != 3:  # noqa: PLR2004  # name, key ID, key
        raise InvalidKeyError("a vkey is name+keyid+base64")
    name, key_id, encoded = parts
    if not _KEY_ID_HEX.fullmatch(key_id):
        raise InvalidKeyError("the key ID of a vkey is 8 lowercase hex digits")
    try:
        material = parse_base64(encoded)
    except ValueError:
        raise InvalidKeyError("the key of a vkey is not canonical base64") from None
    try:
        key_type = KeyType(material[0])
    except (IndexError, ValueError):
        msg = f"a vkey of unsupported type {material[:1].hex() or '(none)'}"
        raise InvalidKeyError(msg) from None
    key = VerifierKey(name, key_type, material[1:])
    if key.key_id.hex() != key_id:
        msg = f"key ID {key_id} is not that of the key, {key.key_id.hex()}"
        raise InvalidKeyError(msg)
    return key


@dataclass(frozen=True, slots=True)
class NoteSignature:
    """A signature line.

    Attributes:
        name: The signer by the line's own word; proves nothing.
        key_id: The key's ID, 4 bytes; proves nothing either.
        signature: The rest; its form depends on the key's type. At least 1 byte.
    """

    name: str
    key_id: bytes
    signature: bytes

    def to_line(self) -> str:
        """Return the line, with its newline."""
        return f"{_DASH}{self.name} {encode_base64(self.key_id + self.signature)}\n"


@dataclass(frozen=True, slots=True)
class Note:
    """A parsed note: nothing is verified.

    Attributes:
        text: What is signed; ends in a newline.
        signatures: All lines, in order; at least one.
    """

    text: str
    signatures: tuple[NoteSignature, ...]

    def to_bytes(self) -> bytes:
        """Return the note's bytes."""
        lines = "".join(line.to_line() for line in self.signatures)
        return f"{self.text}\n{lines}".encode()


@dataclass(frozen=True, slots=True)
class VerifiedSignature:
    """A good signature by a known key.

    Attributes:
        key: The key.
        timestamp_s: When the cosigner signed, by its own clock, seconds since
            1970-01-01 UTC; None for a plain signature.
    """

    key: VerifierKey
    timestamp_s: int | None


@dataclass(frozen=True, slots=True)
class OpenedNote:
    """A note with a known signer.

    Attributes:
        text: What was signed.
        signatures: The good ones by known keys, in order, one per key; at least one.
    """

    text: str
    signatures: tuple[VerifiedSignature, ...]


def _check_text(text: str) -> None:
    if not text.endswith("\n"):
        raise InvalidNoteError("a note's text ends in a newline")
    if _CONTROL_NOT_NEWLINE.search(text):
        raise InvalidNoteError("a note has no control character but the newline")


def _parse_line(line: str) -> NoteSignature:
    if not line.startswith(_DASH):
        msg = f"a signature line starts with U+2014 and a space: {line[:80]!r}"
        raise InvalidNoteError(msg)
    name, _, encoded = line.removeprefix(_DASH).partition(" ")
    if not _is_valid_name(name):
        raise InvalidNoteError(f"not a signer's name: {name[:80]!r}")
    try:
        data = parse_base64(encoded)
    except ValueError:
        msg = f"the signature of {name} is not canonical base64"
        raise InvalidNoteError(msg) from None
    if len(data) <= KEY_ID_SIZE:
        raise InvalidNoteError(f"the signature of {name} is empty")
    return NoteSignature(name, data[:KEY_ID_SIZE], data[KEY_ID_SIZE:])


def parse_note(signed_note: bytes) -> Note:
    """Return a note's text and signature lines, *without verifying anything*.

    Raises:
        InvalidNoteError: the bytes are not a note; says why.
    """
    if len(signed_note) > MAX_NOTE_SIZE_BYTES:
        msg = f"a note of {len(signed_note)} bytes; at most {MAX_NOTE_SIZE_BYTES}"
        raise InvalidNoteError(msg)
    # Several callers parse one note in turn. Large ones are not worth the memory.
    is_small = len(signed_note) <= _MAX_REMEMBERED_SIZE_BYTES
    return _parse_again(signed_note) if is_small else _parse_note(signed_note)


def _parse_note(signed_note: bytes) -> Note:
    try:
        decoded = signed_note.decode()
    except UnicodeDecodeError as error:
        raise InvalidNoteError(f"a note is UTF-8; byte {error.start} is not") from None
    # The last empty line: an earlier one belongs to the text.
    text, separator, block = decoded.rpartition("\n\n")
    if not (separator and block):
        raise InvalidNoteError("a note has an empty line and signatures after its text")
    if not block.endswith("\n"):
        raise InvalidNoteError("a note ends in a newline")
    text += "\n"
    _check_text(text)
    _check_text(block)
    num_lines = block.count("\n")
    if num_lines > MAX_SIGNATURES:
        raise InvalidNoteError(f"{num_lines} signatures; at most {MAX_SIGNATURES}")
    # Not splitlines: it also splits at characters that are ordinary here.
    lines = block.removesuffix("\n").split("\n")
    return Note(text, tuple(map(_parse_line, lines)))


_parse_again: Final = lru_cache(maxsize=64)(_parse_note)


def sign_note(text: str, name: str, key: SigningKey) -> bytes:
    """Return a note with one Ed25519 signature (type 0x01).

    Args:
        text: What to sign; ends in a newline.
        name: The signer's name, as in its verifier key.
        key: The signer's key.

    Raises:
        InvalidNoteError: the text cannot be in a note.
        InvalidKeyError: the name is invalid.
    """
    _check_text(text)
    key_id = VerifierKey(name, KeyType.ED25519, key.public_key).key_id
    signature = key.sign(text.encode())
    return Note(text, (NoteSignature(name, key_id, signature),)).to_bytes()


def add_signature(signed_note: bytes, signature: NoteSignature) -> bytes:
    """Return a note with one more signature at its end.

    Raises:
        InvalidNoteError: the bytes are not a note, or it already has the most
            signatures.
    """
    note = parse_note(signed_note)
    if len(note.signatures) >= MAX_SIGNATURES:
        raise InvalidNoteError(f"the note has {MAX_SIGNATURES} signatures already")
    return signed_note + signature.to_line().encode()


def compute_cosignature_message(text: str, timestamp_s: int) -> bytes:
    """Return what a cosigner signs (c2sp.org/tlog-cosignature, cosignature/v1).

    Args:
        text: The whole checkpoint text, final newline included.
        timestamp_s: When, seconds since 1970-01-01 UTC, 0 to 2^63-1.
    """
    return f"cosignature/v1\ntime {timestamp_s}\n{text}".encode()


def sign_cosignature(
    text: str, name: str, key: SigningKey, timestamp_s: int
) -> NoteSignature:
    """Return a cosignature/v1 line (type 0x04): time || Ed25519 signature.

    A cosigner states that it has seen no other history of this log. This function
    cannot know that: the caller verifies consistency and persists first.

    Args:
        text: The whole checkpoint text.
        name: The cosigner's name, as in its verifier key. It is *not* signed, so a
            key belongs to one cosigner only.
        key: The cosigner's key.
        timestamp_s: Now, seconds since 1970-01-01 UTC, 0 to 2^63-1.

    Raises:
        InvalidNoteError: the text cannot be in a note, or the time is out of range.
        InvalidKeyError: the name is invalid.
    """
    _check_text(text)
    if not 0 <= timestamp_s <= MAX_TIMESTAMP_S:
        msg = f"a cosignature's time is 0 to {MAX_TIMESTAMP_S}, not {timestamp_s}"
        raise InvalidNoteError(msg)
    signature = key.sign(compute_cosignature_message(text, timestamp_s))
    return NoteSignature(
        name,
        VerifierKey(name, KeyType.COSIGNATURE_V1, key.public_key).key_id,
        timestamp_s.to_bytes(_TIMESTAMP_SIZE, "big") + signature,
    )


def _verify_cosignature(key: VerifierKey, text: str, signature: bytes) -> int:
    """Return the time of a good cosignature."""
    timestamp_s = int.from_bytes(signature[:_TIMESTAMP_SIZE], "big")
    if timestamp_s > MAX_TIMESTAMP_S:
        msg = f"a cosignature's time is at most {MAX_TIMESTAMP_S}"
        raise InvalidSignatureError(msg)
    verify_signature(
        key.public_key,
        compute_cosignature_message(text, timestamp_s),
        signature[_TIMESTAMP_SIZE:],
    )
    return timestamp_s


def _verify_line(key: VerifierKey, text: str, line: NoteSignature) -> VerifiedSignature:
    try:
        if key.key_type is KeyType.COSIGNATURE_V1:
            timestamp_s = _verify_cosignature(key, text, line.signature)
            return VerifiedSignature(key, timestamp_s)
        verify_signature(key.public_key, text.encode(), line.signature)
    except InvalidSignatureError as error:
        msg = f"the signature of {key.to_vkey()} is not good: {error}"
        raise InvalidNoteError(msg) from error
    return VerifiedSignature(key, None)


def open_note(signed_note: bytes, keys: Iterable[VerifierKey]) -> OpenedNote:
    """Return a note's text and which known keys signed it.

    Args:
        signed_note: The note as received.
        keys: The keys that the reader knows.

    Raises:
        InvalidNoteError: the bytes are not a note, a known key's signature is bad, or
            no known key signed. Always bad input.
        InvalidKeyError: two of the keys share name and key ID, so that a signature line
            would be ambiguous. A bug of the caller.
    """
    known: dict[tuple[str, bytes], VerifierKey] = {}
    for key in keys:
        if known.setdefault((key.name, key.key_id), key) != key:
            raise InvalidKeyError(f"two keys are called {key.name}+{key.key_id.hex()}")
    note = parse_note(signed_note)
    good: dict[VerifierKey, VerifiedSignature] = {}
    for line in note.signatures:
        signer = known.get((line.name, line.key_id))
        if signer is not None:
            # A second signature by one key counts for nothing, but must be good.
            good.setdefault(signer, _verify_line(signer, note.text, line))
    if not good:
        raise InvalidNoteError("no known key signed the note")
    return OpenedNote(note.text, tuple(good.values()))
