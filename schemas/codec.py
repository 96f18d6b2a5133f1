"""Events to bytes and back: Avro single-object encoding.

``C3 01``, the CRC-64-AVRO fingerprint of the schema (little-endian), the Avro body:
Avro 1.12, "Single object encoding". These bytes are what is hashed and signed; they
do not depend on any schema registry's ids.

Rules:

- Only schemas in ``lock.json`` exist: a fingerprint that was never released is unknown.
- Events are written with the schema in ``avro/``. When one evolves, its last version
  moves to ``avro/released/<event>-<fingerprint>.avsc``: what was written with it is
  read with it, and resolved to the present one (Avro 1.12, "Schema Resolution").
- A field that the writer did not know is at its default. Nothing is dropped: a schema
  only grows. So two encodings with one fingerprint are the same bytes if and only if
  the events that they are read as are equal, whatever has been added since.
- Only the canonical body is accepted, the one that ``encode`` would write: nothing
  after the last field, minimal varints, one block per array. So an event has one byte
  string, and nobody can send the same event twice under two hashes.
- Types: int, long, string, bytes, fixed, array, record, and any of these or null, as
  ``["null", type]``.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from functools import cache, lru_cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from types import NoneType, UnionType
from typing import (
    Any,
    Final,
    TypeAlias,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import fastavro
from fastavro.schema import fingerprint, to_parsing_canonical_form
from fastavro.validation import ValidationError, validate

from schemas import events as e
from schemas.topics import TOPIC_OF

MARKER: Final = b"\xc3\x01"
HEADER_SIZE: Final = 10  # marker and 8-byte fingerprint
MAX_EVENT_SIZE_BYTES: Final = 65_000
"""Largest single-object encoding of an event that fits a leaf: entries of a C2SP tiled
log are at most 65,535 bytes, and a leaf adds a signature and a source position."""
FRAMING_SIZE: Final = 5
"""What Confluent's framing has in place of the header: a zero byte, a 4-byte id."""
MAX_VALUE_SIZE_BYTES: Final = MAX_EVENT_SIZE_BYTES - HEADER_SIZE + FRAMING_SIZE
"""Largest value of a record, 64,995 bytes, whose event fits a leaf."""
MAX_LEAF_SIZE_BYTES: Final = 2**16 - 1  # = 65,535
"""C2SP tlog-tiles: entry bundles write an entry's length in 16 bits."""
MAX_ITEMS: Final = 4_096
"""For an array in an event: a block has at most 1,000 leaves, nothing else as many. An
item can be a single byte, of which 100 compress to one."""

T = TypeVar("T")
Record: TypeAlias = e.Event | e.Leaf | e.BlobRecord

_ROOT: Traversable = files("schemas")


class CodecError(ValueError):
    """The bytes are not an event of ours; the message says why."""


class UnknownSchemaError(CodecError):
    """The fingerprint is not of any schema ever released."""


CLASSES: Final[dict[str, type]] = {
    cls.__name__: cls for cls in (*TOPIC_OF, e.Leaf, *get_args(e.BlobRecord))
}
_LARGE: Final = frozenset(
    cls.__name__ for cls in (e.BlockSequenced, *get_args(e.BlobRecord))
)
"""Events that may be larger than a leaf: their readers know how large."""


@cache
def schema_text(name: str) -> str:
    """Return the ``.avsc`` of an event as written, docs included."""
    return (_ROOT / "avro" / f"{name}.avsc").read_text(encoding="utf-8")


@cache
def released_schema_text(name: str, fingerprint_hex: str) -> str:
    """Return the ``.avsc`` of an event as it was when it had this fingerprint."""
    text = schema_text(name)
    if compute_fingerprint(text).hex() == fingerprint_hex:
        return text
    file = _ROOT / "avro" / "released" / f"{name}-{fingerprint_hex}.avsc"
    return file.read_text(encoding="utf-8")


@lru_cache(maxsize=256)  # of others' schemas too
def compute_fingerprint(schema: str) -> bytes:
    """Return the CRC-64-AVRO fingerprint of a schema, 8 bytes as they are written.

    Docs, aliases and defaults do not count: it is taken over the Parsing Canonical
    Form (Avro 1.12).
    """
    canonical = to_parsing_canonical_form(json.loads(schema))
    # fastavro prints the 64-bit number as little-endian hex, the order of the wire.
    return bytes.fromhex(fingerprint(canonical, "CRC-64-AVRO"))


Convert: TypeAlias = Callable[[Any], Any]


def _to_plain(annotation: Any) -> Convert | None:
    """Return a function from a field's value to what fastavro writes; None: as is."""
    return _convert(annotation, list, _dataclass_to_plain)


def _from_plain(annotation: Any) -> Convert | None:
    """Return the inverse of `_to_plain`; None: as is."""
    return _convert(annotation, tuple, _dataclass_from_plain)


def _convert(
    annotation: Any, array: type, of_dataclass: Callable[[type], Convert]
) -> Convert | None:
    if is_dataclass(annotation):
        assert isinstance(annotation, type)
        return of_dataclass(annotation)
    if get_origin(annotation) is tuple:
        item = _convert(get_args(annotation)[0], array, of_dataclass)
        return array if item is None else lambda value: array(map(item, value))
    if isinstance(annotation, UnionType):
        (kind,) = (kind for kind in get_args(annotation) if kind is not NoneType)
        some = _convert(kind, array, of_dataclass)
        return some and (lambda value: None if value is None else some(value))
    return None


@cache
def _dataclass_to_plain(cls: type) -> Convert:
    hints = get_type_hints(cls)
    plain = [(f.name, _to_plain(hints[f.name])) for f in fields(cls)]

    def convert(value: Any) -> dict[str, Any]:
        return {
            name: getattr(value, name) if to is None else to(getattr(value, name))
            for name, to in plain
        }

    return convert


@cache
def _dataclass_from_plain(cls: type) -> Convert:
    hints = get_type_hints(cls)
    special = [
        (f.name, to)
        for f in fields(cls)
        if (to := _from_plain(hints[f.name])) is not None
    ]

    def convert(value: dict[str, Any]) -> Any:
        for name, to in special:
            value[name] = to(value[name])
        return cls(**value)

    return convert


def _named_types(schema: Any) -> dict[str, Any]:
    match schema:
        case list():
            return {k: v for item in schema for k, v in _named_types(item).items()}
        case {"name": name, "type": "record", "fields": parts}:
            return {name: schema} | _named_types([part["type"] for part in parts])
        case {"name": name, "type": "fixed"}:
            return {name: schema}
        case {"items": items}:
            return _named_types(items)
        case _:
            return {}


def _int_check(schema: Any, named: Mapping[str, Any]) -> Callable[[Any], bool] | None:
    """Return a check that all ints read with a schema have 32 bits.

    The reader checks everything else, so wrong types cannot occur. None: the schema has
    no int. fastavro's own validation raises and catches an error, text included, for
    each nullable field that is not null.
    """
    match named.get(schema, schema) if isinstance(schema, str) else schema:
        case "int":
            return lambda value: -(2**31) <= value < 2**31
        case [_, inner]:
            some = _int_check(inner, named)
            return some and (lambda value: value is None or some(value))
        case {"type": "array", "items": items}:
            item = _int_check(items, named)
            return item and (lambda value: all(map(item, value)))
        case {"type": "record", "fields": parts}:
            checks = [
                (part["name"], check)
                for part in parts
                if (check := _int_check(part["type"], named)) is not None
            ]
            if not checks:
                return None
            return lambda value: all(check(value[name]) for name, check in checks)
        case _:
            return None


class _Completion:
    """Completes what an older schema wrote to all fields of the present one."""

    def __init__(self, schema: Any) -> None:
        self._schema = schema
        self._named = _named_types(schema)

    def complete(self, plain: Any) -> Any:
        """Return a record, with fields unknown to its writer at their defaults.

        Raises:
            LookupError: a field has no default, or is unknown to us: no release changes
                a schema like that.
        """
        return self._complete(plain, self._schema)

    def _complete(self, plain: Any, schema: Any) -> Any:
        match self._named.get(schema, schema) if isinstance(schema, str) else schema:
            case [_, inner]:
                return None if plain is None else self._complete(plain, inner)
            case {"type": "array", "items": items}:
                return [self._complete(item, items) for item in plain]
            case {"type": "record", "fields": parts}:
                if not plain.keys() <= {part["name"] for part in parts}:
                    raise LookupError(f"a field was removed: {sorted(plain)}")
                return {
                    part["name"]: self._complete(plain[part["name"]], part["type"])
                    if part["name"] in plain
                    else self._read(part["default"], part["type"])
                    for part in parts
                }
            case _:
                return plain

    def _read(self, default: Any, schema: Any) -> Any:
        """Return a default as a value; JSON has no bytes (Avro 1.12, "default")."""
        match self._named.get(schema, schema) if isinstance(schema, str) else schema:
            case list():
                return None
            case {"type": "array", "items": items}:
                return [self._read(item, items) for item in default]
            case {"type": "record", "fields": parts}:
                return {
                    part["name"]: self._read(
                        default[part["name"]]
                        if part["name"] in default
                        else part["default"],
                        part["type"],
                    )
                    for part in parts
                }
            case "bytes" | {"type": "fixed"}:
                return default.encode("latin-1")
            case _:
                return default


class _Codec:
    """Everything about one schema, computed once."""

    __slots__ = (
        "completion",
        "from_plain",
        "header",
        "is_blob",
        "name",
        "schema",
        "to_plain",
    )

    def __init__(self, name: str) -> None:
        cls = CLASSES[name]
        self.name = name
        self.is_blob = cls in get_args(e.BlobRecord)
        schema = json.loads(schema_text(name))
        self.completion = _Completion(schema)
        self.schema: Any = fastavro.parse_schema(schema)
        self.header = MARKER + compute_fingerprint(schema_text(name))
        self.to_plain = _dataclass_to_plain(cls)
        self.from_plain = _dataclass_from_plain(cls)


@cache
def _codec(name: str) -> _Codec:
    return _Codec(name)


@cache
def _writer_schema(fingerprint_bytes: bytes) -> Any:
    """Return the schema that events with this fingerprint were written with."""
    return fastavro.parse_schema(_released_schema(fingerprint_bytes))


@cache
def _ints_fit(fingerprint_bytes: bytes) -> Callable[[Any], bool]:
    """Return `_int_check` of the schema with this fingerprint."""
    schema = _released_schema(fingerprint_bytes)
    return _int_check(schema, _named_types(schema)) or (lambda _: True)


def _released_schema(fingerprint_bytes: bytes) -> Any:
    text = released_schema_text(event_name(fingerprint_bytes), fingerprint_bytes.hex())
    return json.loads(text)


@cache
def lock() -> Mapping[str, tuple[str, ...]]:
    """Return every fingerprint ever released, in hex, oldest first, by event name."""
    text = (_ROOT / "lock.json").read_text(encoding="utf-8")
    return {name: tuple(known) for name, known in json.loads(text).items()}


@cache
def _names_by_fingerprint() -> Mapping[bytes, str]:
    return {bytes.fromhex(f): name for name, known in lock().items() for f in known}


def event_name(fingerprint_bytes: bytes) -> str:
    """Return which event a schema fingerprint belongs to.

    Raises:
        UnknownSchemaError: no schema with that fingerprint was ever released.
    """
    try:
        return _names_by_fingerprint()[fingerprint_bytes]
    except KeyError:
        msg = f"no released schema has fingerprint {fingerprint_bytes.hex()}"
        raise UnknownSchemaError(msg) from None


def is_present(event: Record, data: bytes) -> bool:
    """Return whether encoding an event gives these bytes again, in no older schema."""
    return data.startswith(_codec(type(event).__name__).header)


def encode(event: Record) -> bytes:
    """Return the single-object encoding of an event.

    Raises:
        CodecError: a field does not fit its schema.
    """
    codec = _codec(type(event).__name__)
    out = io.BytesIO()
    out.write(codec.header)
    try:
        plain = codec.to_plain(event)
        # The writer alone accepts floats as integers, and ints of any size.
        validate(plain, codec.schema)
        fastavro.schemaless_writer(out, codec.schema, plain)
    except (
        ValidationError,
        ValueError,
        TypeError,
        OverflowError,
        AttributeError,
    ) as error:
        raise CodecError(f"{codec.name} does not fit its schema: {error}") from error
    return out.getvalue()


def _has_long_array(plain: Any) -> bool:
    if isinstance(plain, dict):
        return any(map(_has_long_array, plain.values()))
    if isinstance(plain, list):
        return len(plain) > MAX_ITEMS or any(map(_has_long_array, plain))
    return False


def decode(data: bytes) -> Record:
    """Return the event that these bytes encode.

    Raises:
        UnknownSchemaError: the fingerprint was never released.
        CodecError: anything else is wrong with the bytes.
    """
    codec = _codec(kind_of(data).__name__)
    if len(data) > MAX_LEAF_SIZE_BYTES and codec.name not in _LARGE:
        # Nothing larger fits a leaf, and a decoded event takes many times its bytes.
        msg = f"a {codec.name} of {len(data)} bytes; at most {MAX_LEAF_SIZE_BYTES}"
        raise CodecError(msg)
    writer_schema = _writer_schema(data[2:HEADER_SIZE])
    body = io.BytesIO(data)
    body.seek(HEADER_SIZE)
    try:
        plain: Any = fastavro.schemaless_reader(body, writer_schema, None)
        if not codec.is_blob and _has_long_array(plain):
            # Everything below takes several times as long as reading did.
            msg = f"a {codec.name} with an array of more than {MAX_ITEMS} items"
            raise CodecError(msg)  # noqa: TRY301  # one handler names the event
        # The reader accepts 64 bits as an int.
        if not _ints_fit(data[2:HEADER_SIZE])(plain):
            msg = f"a {codec.name} with an int of more than 32 bits"
            raise CodecError(msg)  # noqa: TRY301  # one handler names the event
        canonical = io.BytesIO()
        fastavro.schemaless_writer(canonical, writer_schema, plain)
        if canonical.getvalue() != data[HEADER_SIZE:]:
            msg = f"not the canonical encoding of {codec.name}"
            raise CodecError(msg)  # noqa: TRY301  # one handler names the event
        if data[:HEADER_SIZE] != codec.header:
            plain = codec.completion.complete(plain)
        return codec.from_plain(plain)  # type: ignore[no-any-return]  # by construction
    except CodecError:
        raise
    except Exception as error:
        # fastavro raises whatever its C code met: EOFError, IndexError, ValueError,
        # UnicodeDecodeError, MemoryError, ... All of them mean: bad input.
        raise CodecError(f"not a well-formed {codec.name}: {error!r}") from error


def kind_of(data: bytes) -> type[Record]:
    """Return what these bytes say they are, without decoding them.

    Raises:
        CodecError: they are no event ever released.
    """
    if data[:2] != MARKER or len(data) < HEADER_SIZE:
        msg = "not an Avro single-object encoding (C3 01 and 8 bytes of fingerprint)"
        raise CodecError(msg)
    return CLASSES[event_name(data[2:HEADER_SIZE])]


def decode_as(kind: type[T], data: bytes) -> T:
    """Return `decode(data)` if it is of this kind; of another it is not decoded.

    Raises:
        CodecError: it is not, or not an event at all.
    """
    found = kind_of(data)
    if not issubclass(found, kind):
        # A union of events has no name.
        expected = getattr(kind, "__name__", kind)
        raise CodecError(f"expected {expected}, found {found.__name__}")
    return decode(data)  # type: ignore[return-value]  # just looked at
