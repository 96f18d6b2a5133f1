"""A log in one file: everything an audit needs, without a network.

A bundle is a plain tar, in this order:

    README.txt                     for whoever unpacks it
    manifest.json                  federation, schema ids, whether blobs are in it
    policy.txt                     the ledger nodes' C2SP policy, if there are any
    report.json                    what its author found
    ledger.records                 the topics' records, as they were read
    checkpoints.records
    attestations.records
    blobs/<sha256 in hex>          in ascending order

    records:  u32 length, then u64 offset, key, value, u16 number of headers, headers
    header:   name, value
    bytes:    u32 length (2^32-1: null), then as many bytes; numbers are big-endian

The same records give the same bytes. Nothing in a bundle is believed: records and blobs
are audited like a broker's, report and policy are not even read. Blocks without a
checkpoint are left out, so every block in it must have one. What is read is bounded by
the file's size, since nothing in it is compressed, and by what a record may be. Only
the names above are accepted, so nothing is ever written anywhere.

Deliberately not here: the audit itself.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import stat
import struct
import tarfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from io import BufferedWriter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import IO, Any, Final, Self

from adapters.blobs import BlobError
from adapters.durable import move_file
from adapters.kafka import Record
from adapters.schema_registry import FramingError
from adapters.wording import counted
from consumers.audit.blobs import FetchBlob
from consumers.audit.records import Unframe
from schemas import codec, topics
from schemas.events import BlobRef
from schemas.reasons import Reason

FORMAT: Final = "folkmoot-bundle/v1"
TOPICS: Final = (topics.LEDGER, topics.CHECKPOINTS, topics.ATTESTATIONS)
MAX_RECORD_SIZE_BYTES: Final = 8 * 2**20
"""Twice what a broker takes, for key and headers."""
MAX_HEADERS: Final = 100
MAX_TEXT_SIZE_BYTES: Final = 2**20
"""Of the manifest."""

_BLOCK_SIZE: Final = 512  # POSIX ustar
_NULL: Final = 2**32 - 1
_U16: Final = struct.Struct(">H")
_U32: Final = struct.Struct(">I")
_U64: Final = struct.Struct(">Q")
_MEMBER: Final = re.compile(
    r"README\.txt|manifest\.json|policy\.txt|report\.json|"
    r"(?:ledger|checkpoints|attestations)\.records|blobs/[0-9a-f]{64}"
)
_OCTAL: Final = re.compile(rb"[0-7]+[ \0]?")
_BASE_256: Final = 0x80
_MAX_PADDING: Final = tarfile.RECORDSIZE + 2 * tarfile.BLOCKSIZE
"""A tar ends with two empty blocks, then padding to a full record."""

README: Final = """\
An audit bundle of the federated learning log {federation_id!r} (Folkmoot).

It holds the log's records as they were read, and what they refer to. Verify it with

    moot audit <this file> --operator-key <the operator's public key>

which needs no network. Believe nothing in here before that, this page and report.json
included; get the operator's key, and the policy if you demand one (--policy), from
somebody you trust. Compare the tree root that the audit prints with what others saw.
"""


class BundleError(Exception):
    """The file is no bundle, or a damaged one; the message says where."""


def encode_record(record: Record) -> bytes:
    """Return a record, preceded by its length.

    Raises:
        BundleError: no broker could have had such a record.
    """
    body = b"".join(
        (
            _U64.pack(record.offset),
            _pack(record.key),
            _pack(record.value),
            _U16.pack(len(record.headers)),
            *(
                part
                for name, value in record.headers
                for part in (_pack(name.encode()), _pack(value))
            ),
        )
    )
    if len(body) > MAX_RECORD_SIZE_BYTES or len(record.headers) > MAX_HEADERS:
        msg = f"the record at offset {record.offset} is too large for a bundle"
        raise BundleError(msg)
    return _U32.pack(len(body)) + body


def _pack(data: bytes | None) -> bytes:
    return _U32.pack(_NULL) if data is None else _U32.pack(len(data)) + data


class _Fields:
    """Takes a record's body apart."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    def take(self, size: int) -> bytes:
        end = self._position + size
        if end > len(self._data):
            raise BundleError("it is shorter than it says")
        part = self._data[self._position : end]
        self._position = end
        return part

    def number(self, form: struct.Struct) -> int:
        return int(form.unpack(self.take(form.size))[0])

    def data(self) -> bytes | None:
        size = self.number(_U32)
        return None if size == _NULL else self.take(size)

    def header(self) -> tuple[str, bytes]:
        name, value = self.data(), self.data()
        if name is None or value is None:
            raise BundleError("a header is null")
        try:
            return name.decode(), value
        except UnicodeDecodeError:
            raise BundleError("a header's name is not UTF-8") from None

    def finish(self) -> None:
        if self._position != len(self._data):
            raise BundleError("it is longer than it says")


def decode_record(topic: str, body: bytes) -> Record:
    """Return the record that `encode_record` encoded, from what follows the length.

    Raises:
        BundleError: the bytes are anything else.
    """
    fields = _Fields(body)
    offset, key, value = fields.number(_U64), fields.data(), fields.data()
    count = fields.number(_U16)
    if count > MAX_HEADERS:
        raise BundleError(f"it has {counted(count, 'header')}; at most {MAX_HEADERS}")
    headers = tuple(fields.header() for _ in range(count))
    fields.finish()
    return Record(
        topic=topic, partition=0, offset=offset, key=key, value=value, headers=headers
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a bundle says about itself.

    Its author's word: no verdict may rest on it.

    Attributes:
        federation_id: Whose log; every block says so too.
        schemas: Single-object header by framing prefix, as the schema registry knew it.
            Signatures cover the header, so a wrong one lets nothing pass.
        has_blobs: Whether blobs were fetched. See `Bundle.has_blobs`.
        settled_offset: From this offset, blocks might have been too new for a
            checkpoint when they were read; those that were are left out.
    """

    federation_id: str
    schemas: Mapping[bytes, bytes]
    has_blobs: bool
    settled_offset: int | None

    def to_bytes(self) -> bytes:
        """Return its bytes in the bundle."""
        content = {
            "format": FORMAT,
            "federation_id": self.federation_id,
            "has_blobs": self.has_blobs,
            "settled_offset": self.settled_offset,
            "schemas": {p.hex(): h.hex() for p, h in sorted(self.schemas.items())},
        }
        return json.dumps(content, indent=1).encode() + b"\n"

    @classmethod
    def from_bytes(cls, data: bytes) -> Manifest:
        """Return what `to_bytes` wrote.

        Raises:
            BundleError: the bytes are anything else.
        """
        try:
            content = json.loads(data)
            manifest = cls(
                federation_id=_typed(content, "federation_id", str),
                schemas={
                    bytes.fromhex(prefix): bytes.fromhex(header)
                    for prefix, header in _typed(content, "schemas", dict).items()
                },
                has_blobs=_typed(content, "has_blobs", bool),
                settled_offset=_typed(content, "settled_offset", int, type(None)),
            )
            if manifest.to_bytes() != data:
                msg = f"it is not of format {FORMAT}"
                raise BundleError(msg)  # noqa: TRY301  # one handler names the member
            manifest.check()
        except BundleError as error:
            raise BundleError(f"manifest.json: {error}") from error
        except Exception as error:
            msg = f"manifest.json: {type(error).__name__}: {error}"
            raise BundleError(msg) from error
        return manifest

    def check(self) -> None:
        """Check what the types leave open.

        Raises:
            BundleError: no writer wrote it.
        """
        self.federation_id.encode()  # a lone surrogate has no bytes
        if self.settled_offset is not None and not 0 <= self.settled_offset < 2**63:
            raise BundleError("settled_offset is no offset")
        for prefix, header in self.schemas.items():
            if len(prefix) != codec.FRAMING_SIZE or prefix[:1] != b"\0":
                raise BundleError(f"{prefix.hex()!r} is no framing")
            if header[:2] != codec.MARKER:
                raise BundleError("a schema is not known by a fingerprint")
            codec.event_name(header[2:])


def _typed(content: Any, name: str, *types: type) -> Any:
    """Return a member of a JSON object if it has one of these types."""
    if type(content) is not dict or name not in content:
        raise BundleError(f"{name} is missing")
    if type(content[name]) not in types:
        raise BundleError(f"{name} is a {type(content[name]).__name__}")
    return content[name]


class BundleWriter:
    """Keeps what an audit reads, and writes it as a bundle.

    Pass the wrapped iterators and functions to the audit, then call `write`. Needs
    about twice the bundle's disk space, and hardly any memory.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._spool = TemporaryDirectory(prefix=".bundle-", dir=path.parent)
        except OSError as error:
            msg = f"cannot write beside {path}: {error.strerror}"
            raise BundleError(msg) from error
        self._schemas: dict[bytes, bytes] = {}
        self._blobs: set[str] = set()
        self._has_blobs = False
        self._streams: list[_KeptRecords] = []
        self._files: dict[str, BufferedWriter] = {}
        self._sizes: list[tuple[int, int]] = []
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._end()
        self._spool.cleanup()

    def _end(self) -> None:
        for file in self._files.values():
            file.close()

    def _kept(self, name: str) -> Path:
        return Path(self._spool.name) / name

    def records(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield a topic's records, and keep them."""
        stream = _KeptRecords(records, self.keep)
        self._streams.append(stream)
        return stream

    def keep(self, record: Record) -> None:
        """Keep one record, after its topic's earlier ones."""
        file = self._files.get(record.topic)
        if file is None:
            file = self._kept(_member_of(record.topic)).open("wb")
            self._files[record.topic] = file
        try:
            data = encode_record(record)
        except (BundleError, UnicodeError):
            # Anyone may have written it, but nobody must be able to prevent a bundle.
            data = encode_record(_stand_in(record))
        file.write(data)
        if record.topic == topics.LEDGER:
            self._sizes.append((record.offset, file.tell()))

    def unframe(self, unframe: Unframe) -> Unframe:
        """Return the same function, keeping what it knows of schemas."""

        def keeping(value: bytes) -> bytes:
            data = unframe(value)
            prefix = value[: codec.FRAMING_SIZE]
            if prefix not in self._schemas:
                self._schemas[prefix] = data[: codec.HEADER_SIZE]
            return data

        return keeping

    def fetch(self, fetch: FetchBlob) -> FetchBlob:
        """Return the same function, keeping the blobs."""
        self._has_blobs = True

        def keeping(ref: BlobRef, *, max_size_bytes: int) -> bytes:
            data = fetch(ref, max_size_bytes=max_size_bytes)
            name = ref.sha256.hex()
            with self._lock:
                is_new = name not in self._blobs
                self._blobs.add(name)
            if is_new:
                self._kept(name).write_bytes(data)
            return data

        return keeping

    def write(
        self,
        federation_id: str,
        report: bytes,
        *,
        policy: bytes | None,
        settled_offset: int | None,
        end_offset: int | None = None,
    ) -> None:
        """Write the bundle; an existing file is replaced at the end, or not at all.

        Whatever the audit did not read, because it ended early, is read now.

        Args:
            federation_id: Whose log it is.
            report: What the audit found, JSON.
            policy: The ledger nodes' policy; None if there are none.
            settled_offset: From this offset, blocks may lack their checkpoint.
            end_offset: From this offset, blocks do lack it: they are left out, so that
                the reader can demand one of every block.

        Raises:
            BundleError: it cannot be written.
        """
        manifest = Manifest(
            federation_id=federation_id,
            schemas=self._schemas,
            has_blobs=self._has_blobs,
            settled_offset=settled_offset,
        )
        texts = {
            "README.txt": README.format(federation_id=federation_id).encode(),
            "manifest.json": manifest.to_bytes(),
            **({} if policy is None else {"policy.txt": policy}),
            "report.json": report,
        }
        for stream in self._streams:
            for _ in stream:
                pass
        self._end()
        if end_offset is not None:
            # Blocks after the end stand at the end of the file.
            kept = [size for offset, size in self._sizes if offset < end_offset]
            os.truncate(self._kept(_member_of(topics.LEDGER)), max(kept, default=0))
        partial = self._kept("bundle")
        try:
            with tarfile.open(partial, "w", format=tarfile.GNU_FORMAT) as tar:
                for name, data in texts.items():
                    _add(tar, name, len(data), io.BytesIO(data))
                for name in map(_member_of, TOPICS):
                    self._kept(name).touch()
                    self._add_kept(tar, name, name)
                for name in sorted(self._blobs):
                    self._add_kept(tar, f"blobs/{name}", name)
            move_file(partial, self._path)
        except OSError as error:
            raise BundleError(f"cannot write {self._path}: {error.strerror}") from error

    def _add_kept(self, tar: tarfile.TarFile, name: str, kept: str) -> None:
        path = self._kept(kept)
        with path.open("rb") as file:
            _add(tar, name, path.stat().st_size, file)
        path.unlink()  # so that the space is needed only once


class _KeptRecords:
    """An iterator that keeps what it yields.

    Not a generator: ending early would close it.
    """

    def __init__(
        self, records: Iterable[Record], keep: Callable[[Record], None]
    ) -> None:
        self._records = iter(records)
        self._keep = keep

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Record:
        record = next(self._records)
        self._keep(record)
        return record


def _stand_in(record: Record) -> Record:
    """Return what a bundle holds for a record that does not fit."""
    key = record.key
    if key is not None and len(key) > MAX_TEXT_SIZE_BYTES:
        key = None
    return replace(record, key=key, value=None, headers=())


def _member_of(topic: str) -> str:
    return topic.removeprefix("moot.") + ".records"


def _add(tar: tarfile.TarFile, name: str, size: int, file: IO[bytes]) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    # No time, no owner: the same log gives the same file.
    tar.addfile(member, file)


class Bundle:
    """A bundle, opened for an audit. Safe across threads.

    Raises:
        BundleError: it is not a bundle.
    """

    def __init__(self, path: Path) -> None:
        try:
            # Do not wait for the writer of a pipe.
            self._file = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        except OSError as error:
            raise BundleError(f"cannot read {path}: {error.strerror}") from error
        try:
            found = os.fstat(self._file)
            if not stat.S_ISREG(found.st_mode):
                raise BundleError("it is not a regular file")  # noqa: TRY301  # named below
            self._size = found.st_size
            self._members = self._index()
            self.manifest = Manifest.from_bytes(self._read_text("manifest.json"))
        except BundleError as error:
            self.close()
            raise BundleError(f"{path} is not a bundle: {error}") from error

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def has_blobs(self) -> bool:
        """Whether the bundle holds blobs, or should."""
        return self.manifest.has_blobs or any(
            name.startswith("blobs/") for name in self._members
        )

    def records(self, topic: str) -> Iterator[Record]:
        """Yield a topic's records in order.

        Raises:
            BundleError: they are damaged; says where.
        """
        name = _member_of(topic)
        start, size = self._find(name)
        position, last = 0, -1
        while position < size:
            try:
                length = int(_U32.unpack(self._read(start + position, _U32.size))[0])
                position += _U32.size
                if length > min(MAX_RECORD_SIZE_BYTES, size - position):
                    msg = f"a record of {length} bytes does not fit"
                    raise BundleError(msg)  # noqa: TRY301  # one handler says where
                record = decode_record(topic, self._read(start + position, length))
                if record.offset <= last:
                    msg = f"offset {record.offset} comes after {last}"
                    raise BundleError(msg)  # noqa: TRY301  # as above
            except (BundleError, struct.error) as error:
                raise BundleError(f"{name}, byte {position}: {error}") from error
            position += length
            last = record.offset
            yield record

    def unframe(self, value: bytes) -> bytes:
        """Do as `adapters.schema_registry.SchemaRegistry.unframe_trusted`."""
        prefix = value[: codec.FRAMING_SIZE]
        if len(prefix) < codec.FRAMING_SIZE or prefix[:1] != b"\x00":
            detail = "not Confluent framing: a zero byte and a 4-byte schema id"
            raise FramingError(Reason.NOT_FRAMED, detail)
        header = self.manifest.schemas.get(prefix)
        if header is None:
            detail = f"schema id {int.from_bytes(prefix[1:], 'big')} is none of ours"
            raise FramingError(Reason.UNKNOWN_SCHEMA, detail)
        return header + value[codec.FRAMING_SIZE :]

    def fetch(self, ref: BlobRef, *, max_size_bytes: int) -> bytes:
        """Do as `adapters.blobs.BlobStore.fetch`."""
        found = self._members.get(f"blobs/{ref.sha256.hex()}")
        if found is None:
            detail = f"no blob {ref.sha256.hex()} in the bundle"
            raise BlobError(Reason.MISSING_BLOB, detail)
        start, size = found
        if size > ref.size_bytes or ref.size_bytes > max_size_bytes:
            detail = f"{max(size, ref.size_bytes)} bytes are more than allowed"
            raise BlobError(Reason.OVERSIZED_BLOB, detail)
        data = self._read(start, size)
        digest = hashlib.sha256(data).digest()
        if digest != ref.sha256:
            detail = f"expected SHA-256 {ref.sha256.hex()}, found {digest.hex()}"
            raise BlobError(Reason.CORRUPT_BLOB, detail)
        return data

    # The tar

    def _read(self, start: int, size: int) -> bytes:
        parts = []
        while size:
            try:
                part = os.pread(self._file, min(size, 2**24), start)
            except OSError as error:
                raise BundleError(f"it cannot be read: {error.strerror}") from error
            if not part:
                raise BundleError("the file is shorter than it was")
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)

    def _find(self, name: str) -> tuple[int, int]:
        try:
            return self._members[name]
        except KeyError:
            raise BundleError(f"{name} is missing") from None

    def _read_text(self, name: str) -> bytes:
        start, size = self._find(name)
        if size > MAX_TEXT_SIZE_BYTES:
            raise BundleError(f"{name} has {size} bytes; at most {MAX_TEXT_SIZE_BYTES}")
        return self._read(start, size)

    def _index(self) -> dict[str, tuple[int, int]]:
        """Return each member's position and size."""
        members: dict[str, tuple[int, int]] = {}
        position = 0
        while True:
            if position + _BLOCK_SIZE > self._size:
                raise BundleError(f"the tar ends early, at byte {self._size}")
            header = self._read(position, _BLOCK_SIZE)
            if header == bytes(_BLOCK_SIZE):
                break
            try:
                name, size = _parse_member(header)
            except BundleError as error:
                raise BundleError(f"byte {position}: {error}") from None
            start = position + _BLOCK_SIZE
            position = start + size + -size % _BLOCK_SIZE
            if position > self._size:
                raise BundleError(f"{name} has {size} bytes, the file is shorter")
            if name in members:
                raise BundleError(f"{name} appears twice")
            if any(self._read(start + size, -size % _BLOCK_SIZE)):
                raise BundleError(f"something is hidden behind {name}")
            members[name] = (start, size)
        # Zeros, and few: a file with a hole would take for ever to scan.
        padding = self._size - position
        if padding > _MAX_PADDING or any(self._read(position, padding)):
            raise BundleError("something is hidden behind the end")
        return members


def _parse_member(header: bytes) -> tuple[str, int]:
    """Return name and size from a plain file's ustar header; nothing else passes."""
    checksum = _parse_number(header[148:156])
    if sum(header[:148]) + 8 * ord(" ") + sum(header[156:]) != checksum:
        raise BundleError("not the header of a tar member, or a damaged one")
    if header[156:157] not in {b"0", b"\0"}:
        raise BundleError("a bundle has plain files only, no links and no folders")
    name = header[:100].rstrip(b"\0").decode("ascii", "replace")
    if _MEMBER.fullmatch(name) is None or any(header[345:500]):
        raise BundleError(f"no member of a bundle is called {name!r}")
    return name, _parse_number(header[124:136])


def _parse_number(field: bytes) -> int:
    if field[0] == _BASE_256:  # GNU's form of numbers that octal digits cannot hold
        return int.from_bytes(field[1:], "big")
    digits = field.rstrip(b" \0")
    if _OCTAL.fullmatch(digits) is None:
        raise BundleError("a number in a tar header is not octal")
    return int(digits, 8)
