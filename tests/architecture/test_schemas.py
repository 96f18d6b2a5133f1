"""The contract: every ``.avsc``, its dataclass, its topic, its fingerprint."""

from __future__ import annotations

import io
import json
import textwrap
from collections.abc import Iterator
from dataclasses import (
    MISSING,
    asdict,
    astuple,
    dataclass,
    fields,
    is_dataclass,
    replace,
)
from itertools import count, pairwise
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, get_args, get_origin, get_type_hints

import fastavro
import pytest

from schemas import codec, topics
from schemas import events as e
from tests.architecture import golden

AVRO = golden.ROOT / "schemas" / "avro"
RELEASED = AVRO / "released"
NAMES = sorted(codec.CLASSES)


def load(name: str) -> dict[str, Any]:
    schema: dict[str, Any] = json.loads(codec.schema_text(name))
    return schema


def find_disagreements(
    schema: Any, annotation: Any, where: str, known: dict[str, Any]
) -> list[str]:
    """Return in which places a schema and a type differ."""
    if isinstance(schema, str) and schema in known:
        schema = known[schema]
    if isinstance(schema, list):
        # One form for "nothing", and only one type for something.
        if len(schema) != 2 or schema[0] != "null" or isinstance(schema[1], list):
            return [f"{where}: a union is null and one type"]
        if not isinstance(annotation, UnionType):
            return [f"{where}: null is not {annotation}"]
        kinds = [kind for kind in get_args(annotation) if kind is not NoneType]
        if len(kinds) != 1:
            return [f"{where}: several types are {annotation}"]
        return find_disagreements(schema[1], kinds[0], where, known)
    kind = schema if isinstance(schema, str) else schema["type"]
    if kind == "fixed":
        known[schema["name"]] = schema
    plain = {"string": str, "int": int, "long": int, "bytes": bytes, "fixed": bytes}
    if kind in plain:
        same = annotation is plain[kind]
        return [] if same else [f"{where}: {kind} is not {annotation}"]
    if kind == "array":
        arguments = get_args(annotation)
        if get_origin(annotation) is not tuple or arguments[1:] != (...,):
            return [f"{where}: an array is not {annotation}"]
        return find_disagreements(schema["items"], arguments[0], f"{where}[]", known)
    if kind != "record" or not is_dataclass(annotation):
        return [f"{where}: {kind} is not {annotation}"]
    assert isinstance(annotation, type)
    known[schema["name"]] = schema
    problems = []
    if schema["name"] != annotation.__name__:
        problems.append(f"{where}: {schema['name']} is not {annotation.__name__}")
    theirs = [field["name"] for field in schema["fields"]]
    ours = [field.name for field in fields(annotation)]
    if theirs != ours:
        problems.append(f"{where}: fields {theirs} are not {ours}")
    doc = " ".join(textwrap.dedent(annotation.__doc__ or "").split())
    if doc != schema.get("doc"):
        problems.append(f"{where}: {schema.get('doc')!r} is not {doc!r}")
    hints = get_type_hints(annotation)
    # `protocol.state_root` skips what is at its default, for which it asks the class.
    meant = {
        field["name"]: read_default(field["default"], hints[field["name"]])
        for field in schema["fields"]
        if "default" in field
    }
    defaults = find_defaults(annotation)
    if defaults != meant:
        problems.append(f"{where}: defaults {meant} are not {defaults}")
    for field in schema["fields"]:
        name = field["name"]
        problems += find_disagreements(
            field["type"], hints.get(name), f"{where}.{name}", known
        )
    return problems


def find_defaults(cls: type) -> dict[str, Any]:
    """Return the defaults of a dataclass, by field."""
    found = {}
    for field in fields(cls):  # type: ignore[arg-type]  # every schema's class is one
        if field.default is not MISSING:
            found[field.name] = field.default
        elif field.default_factory is not MISSING:
            found[field.name] = field.default_factory()
    return found


def read_default(default: Any, annotation: Any) -> Any:
    """Return a default of a schema's file as a field's value."""
    if annotation is bytes:
        return default.encode("latin-1")
    if get_origin(annotation) is tuple:
        inner = get_args(annotation)[0]
        return tuple(read_default(item, inner) for item in default)
    if is_dataclass(annotation):
        assert isinstance(annotation, type)
        hints = get_type_hints(annotation)
        return annotation(
            **{name: read_default(item, hints[name]) for name, item in default.items()}
        )
    return default


def find_changes(old: Any, new: Any, where: str) -> list[str]:
    """Return what a schema, its named types written out, has of another one no more.

    A field may be added at the end of a record, with a default. Nothing else may
    change, or an older log is read otherwise than it was written.
    """
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        return [
            change
            for one, other in zip(old, new, strict=True)
            for change in find_changes(one, other, where)
        ]
    if not isinstance(old, dict) or not isinstance(new, dict):
        return [] if old == new else [f"{where}: {old} became {new}"]
    kept = {"type", "name", "size"}
    if any(old.get(key) != new.get(key) for key in kept):
        return [f"{where}: {old} became {new}"]
    if old["type"] == "array":
        return find_changes(old["items"], new["items"], f"{where}[]")
    changes = []
    before, after = old.get("fields", []), new.get("fields", [])
    if [f["name"] for f in before] != [f["name"] for f in after[: len(before)]]:
        return [f"{where}: a field is gone or has moved"]
    for one, other in zip(before, after, strict=False):
        place = f"{where}.{one['name']}"
        changes += find_changes(one["type"], other["type"], place)
        missing = object()
        if one.get("default", missing) != other.get("default", missing):
            changes.append(f"{place}: another default")
    changes += [
        f"{where}.{field['name']}: added without a default"
        for field in after[len(before) :]
        if "default" not in field
    ]
    return changes


def find_undocumented(schema: Any, where: str) -> list[str]:
    """Return which records and fields do not say what they mean."""
    if isinstance(schema, list):
        return [place for item in schema for place in find_undocumented(item, where)]
    if not isinstance(schema, dict):
        return []
    if schema["type"] == "array":
        return find_undocumented(schema["items"], where)
    if schema["type"] != "record":
        return []
    missing = [] if schema.get("doc", "").strip() else [where]
    for field in schema["fields"]:
        place = f"{where}.{field['name']}"
        if not field.get("doc", "").strip():
            missing.append(place)
        missing += find_undocumented(field["type"], place)
    return missing


def find_named(schema: Any) -> dict[str, Any]:
    """Return the definitions of all named types in a schema."""
    if isinstance(schema, list):
        return {k: v for item in schema for k, v in find_named(item).items()}
    if not isinstance(schema, dict):
        return {}
    found = {schema["name"]: schema} if schema["type"] in {"record", "fixed"} else {}
    for field in schema.get("fields", []):
        found |= find_named(field["type"])
    return found | find_named(schema.get("items"))


def test_every_schema_has_a_dataclass_and_every_dataclass_a_schema() -> None:
    files = sorted(path.stem for path in AVRO.glob("*.avsc"))
    assert files == NAMES
    events = {cls.__name__ for cls in get_args(e.Event)}
    blobs = {cls.__name__ for cls in get_args(e.BlobRecord)}
    assert {*events, *blobs, "Leaf"} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_and_its_dataclass_agree(name: str) -> None:
    schema = load(name)
    assert find_disagreements(schema, codec.CLASSES[name], name, {}) == []
    assert schema["namespace"] == topics.NAMESPACE


@pytest.mark.parametrize("name", NAMES)
def test_every_record_and_field_says_what_it_means(name: str) -> None:
    assert find_undocumented(load(name), name) == []


def test_types_that_events_share_are_the_same_everywhere() -> None:
    meanings: dict[str, set[str]] = {}
    for name in NAMES:
        known = find_named(load(name))
        for inner, schema in known.items():
            whole = json.dumps(_inline(schema, known), sort_keys=True)
            meanings.setdefault(inner, set()).add(whole)
    assert {name for name, found in meanings.items() if len(found) > 1} == set()


def _inline(schema: Any, known: dict[str, Any]) -> Any:
    """Return a schema with its named types written out."""
    if isinstance(schema, str):
        return _inline(known[schema], known) if schema in known else schema
    if isinstance(schema, list):
        return [_inline(item, known) for item in schema]
    whole = {k: v for k, v in schema.items() if k != "namespace"}
    if "items" in whole:
        whole["items"] = _inline(whole["items"], known)
    if "fields" in whole:
        whole["fields"] = [
            {**field, "type": _inline(field["type"], known)}
            for field in whole["fields"]
        ]
    return whole


def test_events_hold_no_floats() -> None:
    """Everything here is hashed."""
    for name in NAMES:
        assert '"float"' not in codec.schema_text(name)
        assert '"double"' not in codec.schema_text(name)


@pytest.mark.parametrize("name", NAMES)
def test_events_are_immutable_and_by_name(name: str) -> None:
    cls: Any = codec.CLASSES[name]
    parameters = cls.__dataclass_params__
    assert parameters.frozen
    assert parameters.eq
    assert "__slots__" in cls.__dict__
    assert all(field.kw_only for field in fields(cls))


def test_every_event_travels_on_one_topic() -> None:
    travelling = [event for events in topics.EVENTS.values() for event in events]
    assert len(travelling) == len(set(travelling))
    assert set(travelling) == set(get_args(e.Event))


def test_topics_carry_what_their_kind_promises() -> None:
    inputs = {event for topic in topics.INPUT_TOPICS for event in topics.EVENTS[topic]}
    facts = {event for topic in topics.FACT_TOPICS for event in topics.EVENTS[topic]}
    assert inputs == set(get_args(e.Input))
    assert facts == set(get_args(e.Fact))


# Released fingerprints


@pytest.mark.parametrize("name", NAMES)
def test_the_present_schema_is_the_last_in_the_lock(name: str) -> None:
    """If this fails, read tests/vectors/schemas/README.md."""
    assert codec.lock()[name][-1] == golden.current_fingerprint(name)


def test_the_lock_names_no_fingerprint_twice() -> None:
    known = [f for fingerprints in codec.lock().values() for f in fingerprints]
    assert len(known) == len(set(known))
    assert set(codec.lock()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_every_released_schema_can_still_be_read(name: str) -> None:
    for fingerprint in codec.lock()[name]:
        text = codec.released_schema_text(name, fingerprint)
        assert codec.compute_fingerprint(text).hex() == fingerprint


def inline(text: str) -> Any:
    schema = json.loads(text)
    return _inline(schema, find_named(schema))


@pytest.mark.parametrize("name", NAMES)
def test_a_schema_only_grows(name: str) -> None:
    schemas = [
        inline(codec.released_schema_text(name, fingerprint))
        for fingerprint in codec.lock()[name]
    ]
    for old, new in pairwise(schemas):
        assert find_changes(old, new, name) == []


@pytest.mark.parametrize("name", ["Leaf", "BlockSequenced"])
def test_what_everything_is_in_never_changes(name: str) -> None:
    """Receipts, chain ids and block hashes are over a leaf or block written again."""
    assert len(codec.lock()[name]) == 1


def test_what_a_schema_may_not_do_is_found() -> None:
    old = inline(codec.schema_text("FederationConfigured"))

    def change(edit: Any) -> list[str]:
        new = json.loads(json.dumps(old))
        edit(new["fields"])
        return find_changes(old, new, "F")

    field = {"name": "more", "type": ["null", "int"]}
    last = old["fields"][-1]["name"]
    assert change(lambda f: f.append(field | {"default": None})) == []
    assert change(lambda f: f.append(field)) == ["F.more: added without a default"]
    assert change(list.pop) == ["F: a field is gone or has moved"]
    assert change(lambda f: f.insert(0, field)) == ["F: a field is gone or has moved"]
    assert change(lambda f: f[-1].update(type=["null", "int"])) != []
    assert change(lambda f: f[-1].update(default="x")) == [f"F.{last}: another default"]
    place = next(i for i, f in enumerate(old["fields"]) if f["name"] == "principals")
    nested = change(lambda f: f[place]["type"]["items"]["fields"].append(field))
    assert nested == ["F.principals[].more: added without a default"]


@pytest.mark.parametrize("name", NAMES)
def test_a_default_that_was_released_never_changes(name: str) -> None:
    """A fingerprint does not cover it."""
    now = golden.read_defaults(json.loads(codec.schema_text(name)))
    for fingerprint, message in golden.load(name).items():
        schema = json.loads(codec.released_schema_text(name, fingerprint))
        had = {
            f"{record}.{field['name']}"
            for record, definition in find_named(schema).items()
            for field in definition.get("fields", ())
        }
        then = message.get("defaults", {})
        assert {key: value for key, value in now.items() if key in had} == then


def test_no_schema_is_kept_that_was_never_released() -> None:
    for path in RELEASED.glob("*"):
        name, _, fingerprint = path.stem.rpartition("-")
        assert fingerprint in codec.lock()[name], path.name
        assert fingerprint != golden.current_fingerprint(name), path.name


@pytest.mark.parametrize("name", NAMES)
def test_every_released_fingerprint_has_a_golden_message_and_none_vanished(
    name: str,
) -> None:
    assert list(golden.load(name)) == list(codec.lock()[name])


def test_there_are_no_golden_messages_of_something_else() -> None:
    files = {path.stem for path in golden.VECTORS.glob("*.json")}
    assert files == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_golden_messages_are_read_as_they_were_meant(name: str) -> None:
    for fingerprint, message in golden.load(name).items():
        for form in golden.forms(message):
            data = bytes.fromhex(form["hex"])
            assert data[2 : codec.HEADER_SIZE].hex() == fingerprint
            event = codec.decode(data)
            assert type(event) is codec.CLASSES[name]
            found = golden.to_json(asdict(event))
            assert golden.pick(found, form["fields"]) == form["fields"]
            # It can be said again, whichever schema it was written with.
            again = codec.encode(event)
            assert codec.decode(again) == event
            if fingerprint == golden.current_fingerprint(name):
                assert found == form["fields"]
                assert again == data


# Bad messages: what is made of golden ones as tests/vectors/schemas/README.md says


def write_long(number: int) -> bytes:
    """Return a number as Avro writes it: zigzag, then 7 bits a byte."""
    zigzag = (number << 1) ^ (number >> 63)
    data = bytearray()
    while zigzag > 0x7F:
        data.append(zigzag & 0x7F | 0x80)
        zigzag >>= 7
    return bytes([*data, zigzag])


def read_long(data: bytes, place: int) -> tuple[int, int]:
    """Return the number that is written at a place, and where it ends."""
    zigzag, shift = 0, 0
    while data[place] & 0x80:
        zigzag |= (data[place] & 0x7F) << shift
        place, shift = place + 1, shift + 7
    zigzag |= data[place] << shift
    return (zigzag >> 1) ^ -(zigzag & 1), place + 1


class Places:
    """Where in a message numbers and arrays are; read without fastavro."""

    def __init__(self, schema: Any, data: bytes) -> None:
        self._data = data
        self._known = find_named(schema)
        self.numbers: list[tuple[int, int]] = []
        """From where to where a number is written: lengths and counts, too."""
        self.blocks: list[tuple[int, int, list[int]]] = []
        """Of an array that is not empty: its count, and where each item ends."""
        self.branches: list[int] = []
        """Where it says which type of a union follows."""
        assert self._read(schema, codec.HEADER_SIZE) == len(data)

    def _number(self, place: int) -> tuple[int, int]:
        number, end = read_long(self._data, place)
        self.numbers.append((place, end))
        return number, end

    def _read(self, schema: Any, place: int) -> int:
        """Take what a schema says at a place; returns where it ends."""
        if isinstance(schema, str) and schema in self._known:
            schema = self._known[schema]
        if isinstance(schema, list):
            branch, place = self._number(place)
            self.branches.append(place - 1)
            return self._read(schema[branch], place)
        kind = schema if isinstance(schema, str) else schema["type"]
        match kind:
            case "int" | "long":
                return self._number(place)[1]
            case "string" | "bytes":
                size, begin = self._number(place)
                return begin + size
            case "fixed":
                return place + int(schema["size"])
            case "null":
                return place
            case "array":
                return self._read_array(schema, place)
            case _:
                assert kind == "record"
                for field in schema["fields"]:
                    place = self._read(field["type"], place)
                return place

    def _read_array(self, schema: Any, begin: int) -> int:
        count, place = self._number(begin)
        if not count:
            return place
        ends = [place]
        for _ in range(count):
            ends.append(self._read(schema["items"], ends[-1]))
        self.blocks.append((begin, place, ends[1:]))
        none, place = self._number(ends[-1])
        assert none == 0
        return place


def make_bad(name: str, fingerprint: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """Yield what is no message, though nearly a golden one, and why."""
    for size in range(len(data)):
        yield f"cut to {size} bytes", data[:size]
    for more in (b"\0", b"\2", data):
        yield f"{len(more)} bytes more", data + more
    yield "no marker", data[2:]
    yield "another marker", b"\xc3\x02" + data[2:]
    header, body = data[: codec.HEADER_SIZE], data[codec.HEADER_SIZE :]
    for place in range(2, codec.HEADER_SIZE):
        wrong = bytearray(header)
        wrong[place] ^= 1
        yield f"byte {place} of the fingerprint", bytes(wrong) + body
    turned = header[:2] + header[:1:-1]
    yield "a big-endian fingerprint", turned + body
    places = Places(json.loads(codec.released_schema_text(name, fingerprint)), data)
    for begin, end in places.numbers:
        longer = bytes([data[end - 1] | 0x80, 0])
        changed = data[: end - 1] + longer + data[end:]
        yield f"a longer number at {begin}", changed
    for place in places.branches:
        for branch in (2, -1, -2):  # -2 is the first one, counted from the end
            number = write_long(branch)
            yield (
                f"branch {branch} at {place}",
                (data[:place] + number + data[place + 1 :]),
            )
    for begin, first, ends in places.blocks:
        size = write_long(ends[-1] - first)
        sized = write_long(-len(ends)) + size
        yield f"a sized block at {begin}", data[:begin] + sized + data[first:]
        one, others = write_long(1), write_long(len(ends) - 1)
        split = one + data[first : ends[0]] + others + data[ends[0] :]
        yield f"two blocks at {begin}", data[:begin] + split


GOLDEN = [
    pytest.param(name, fingerprint, id=f"{name}-{fingerprint}")
    for name in NAMES
    for fingerprint in golden.load(name)
]


@pytest.mark.parametrize(("name", "fingerprint"), GOLDEN)
def test_what_is_nearly_a_golden_message_is_refused(
    name: str, fingerprint: str
) -> None:
    for form in golden.forms(golden.load(name)[fingerprint]):
        data = bytes.fromhex(form["hex"])
        bad = list(make_bad(name, fingerprint, data))
        assert len(bad) > len(data) + 14
        for why, message in bad:
            with pytest.raises(codec.CodecError):
                pytest.fail(f"{why}: {codec.decode(message)}")


@pytest.mark.parametrize(("name", "fingerprint"), GOLDEN)
def test_a_golden_message_belongs_to_one_event(name: str, fingerprint: str) -> None:
    data = bytes.fromhex(golden.load(name)[fingerprint]["hex"])
    for other, fingerprints in codec.lock().items():
        for another in fingerprints if other != name else ():
            header = codec.MARKER + bytes.fromhex(another)
            # Where fields are alike it is that other event, and signed as such.
            with pytest.raises(codec.CodecError):
                codec.decode_as(codec.CLASSES[name], header + data[codec.HEADER_SIZE :])


# A schema evolves


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """A record that events may have."""

    name: str
    key: bytes
    digest: bytes = bytes(2)


@dataclass(frozen=True, slots=True, kw_only=True)
class RoundRequested:
    """The event of that name, evolved in every way that an event may."""

    federation_id: str
    round: int
    requested_at_ms: int
    priority: int = 7
    key: bytes = b"\0\xff"
    note: str | None = None
    limit: Limit | None = None
    limits: tuple[Limit, ...] | None = None
    named: tuple[str, ...] = ()
    first: Limit = Limit(name="a", key=b"\xe4")  # it is frozen


LIMIT = {
    "type": "record",
    "name": "Limit",
    "doc": Limit.__doc__,
    "fields": [
        {"name": "name", "type": "string"},
        {"name": "key", "type": "bytes"},
        {
            "name": "digest",
            "type": {"type": "fixed", "name": "Two", "size": 2},
            "default": "\0\0",
        },
    ],
}
MORE: list[dict[str, Any]] = [
    {"name": "priority", "type": "int", "default": 7},
    {"name": "key", "type": "bytes", "default": "\0\u00ff"},
    {"name": "note", "type": ["null", "string"], "default": None},
    {"name": "limit", "type": ["null", LIMIT], "default": None},
    {
        "name": "limits",
        "type": ["null", {"type": "array", "items": "Limit"}],
        "default": None,
    },
    {"name": "named", "type": {"type": "array", "items": "string"}, "default": []},
    {"name": "first", "type": "Limit", "default": {"name": "a", "key": "\u00e4"}},
]


@pytest.fixture
def evolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A released `RoundRequested` that has more fields than ours."""
    name = "RoundRequested"
    (tmp_path / "avro" / "released").mkdir(parents=True)
    schema = load(name) | {"doc": RoundRequested.__doc__}
    known = []
    # Once all at once, and once with a `Limit` that has no digest yet.
    without = json.loads(json.dumps(MORE))
    without[3]["type"][1]["fields"].pop()
    for more in ([], without, MORE):
        text = json.dumps(schema | {"fields": [*schema["fields"], *more]})
        known.append(codec.compute_fingerprint(text).hex())
        kept = tmp_path / "avro" / "released" / f"{name}-{known[-1]}.avsc"
        kept.write_text(text)
    (tmp_path / "avro" / f"{name}.avsc").write_text(text)
    (tmp_path / "lock.json").write_text(json.dumps({name: known}))
    monkeypatch.setattr(codec, "_ROOT", tmp_path)
    monkeypatch.setitem(codec.CLASSES, name, RoundRequested)
    _forget()
    yield known
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for cached in vars(codec).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


OLD = e.RoundRequested(federation_id="f", round=3, requested_at_ms=5)
OLD_DATA = codec.encode(OLD)
EVOLVED = RoundRequested(federation_id="f", round=3, requested_at_ms=5)
FULL = RoundRequested(
    **asdict(OLD),
    note="",
    limit=Limit(name="b", key=b""),
    limits=(Limit(name="c", key=b"k", digest=b"dd"), Limit(name="", key=b"")),
    named=("", "n"),
)


@pytest.mark.usefixtures("evolved")
def test_a_class_with_parts_that_may_be_null_fits_its_schema() -> None:
    schema = load("RoundRequested")
    assert find_disagreements(schema, RoundRequested, "", {}) == []
    for annotation in (str, str | int, str | int | None, bytes | None):
        assert find_disagreements(["null", "string"], annotation, "", {}) != []
    for union in (["string", "null"], ["null", "string", "int"], ["null"]):
        assert find_disagreements(union, str | None, "", {}) != []


@pytest.mark.usefixtures("evolved")
def test_what_was_written_before_a_schema_evolved_can_be_read_after() -> None:
    assert codec.decode(OLD_DATA) == EVOLVED
    # Twice: a default is nobody's to change.
    assert codec.decode(OLD_DATA) == EVOLVED
    assert codec.decode(codec.encode(codec.decode(OLD_DATA))) == EVOLVED


def test_a_record_in_an_event_evolves_too(evolved: list[str]) -> None:
    """Wherever it is: by itself, in an array, and where null may be."""
    schema = json.loads(codec.released_schema_text("RoundRequested", evolved[1]))
    limit = {"name": "b", "key": b"k"}
    plain = asdict(OLD) | {"priority": 1, "key": b"", "note": None, "named": []}
    plain |= {"limit": limit, "limits": [limit], "first": limit}
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), plain)
    data = codec.MARKER + bytes.fromhex(evolved[1]) + out.getvalue()
    now = Limit(name="b", key=b"k", digest=bytes(2))
    assert codec.decode(data) == RoundRequested(
        **asdict(OLD), priority=1, key=b"", limit=now, limits=(now,), first=now
    )


@pytest.mark.usefixtures("evolved")
@pytest.mark.parametrize("event", [EVOLVED, FULL, replace(FULL, limits=())])
def test_what_is_written_after_a_schema_evolved_has_its_new_fingerprint(
    event: Any,
) -> None:
    data = codec.encode(event)
    assert data[: codec.HEADER_SIZE] != OLD_DATA[: codec.HEADER_SIZE]
    assert codec.decode(data) == event
    for why, bad in make_bad("RoundRequested", data[2:10].hex(), data):
        with pytest.raises(codec.CodecError):
            pytest.fail(f"{why}: {codec.decode(bad)}")


@pytest.mark.usefixtures("evolved")
@pytest.mark.parametrize(
    "changes",
    [
        {"note": 1},
        {"note": b""},
        {"limit": "none"},
        {"limit": OLD},
        {"limit": (Limit(name="", key=b""),)},
        {"limits": Limit(name="", key=b"")},
        {"limits": (None,)},
        {"first": None},
        {"key": None},
        {"named": None},
    ],
)
def test_what_is_neither_null_nor_its_type_is_not_written(changes: Any) -> None:
    with pytest.raises(codec.CodecError):
        codec.encode(replace(EVOLVED, **changes))


@pytest.mark.usefixtures("evolved")
def test_old_messages_have_one_form_too() -> None:
    for bad in (OLD_DATA + b"\x02", OLD_DATA[:-1], OLD_DATA[:-1] + b"\x8a\x00"):
        with pytest.raises(codec.CodecError):
            codec.decode(bad)


def test_a_schema_that_lost_a_field_reads_nothing_older(evolved: list[str]) -> None:
    """Rather than to read other bytes as the same event."""
    data = codec.encode(FULL)
    gone = codec._ROOT / "avro" / "RoundRequested.avsc"
    schema = json.loads(gone.read_text())
    schema["fields"] = schema["fields"][:-1]
    text = json.dumps(schema)
    gone.write_text(text)  # type: ignore[attr-defined]  # a path
    known = [*evolved, codec.compute_fingerprint(text).hex()]
    lock = codec._ROOT / "lock.json"
    lock.write_text(json.dumps({"RoundRequested": known}))  # type: ignore[attr-defined]
    _forget()
    with pytest.raises(codec.CodecError, match="removed"):
        codec.decode(data)


def test_every_way_of_a_golden_example_is_made() -> None:
    """Of schemas with null in them, too."""
    schema = load("RoundRequested")
    schema["fields"] += MORE
    full = golden._example(schema, RoundRequested, "RoundRequested", count(1), {})
    assert None not in astuple(full)
    assert type(full.limit) is type(full.limits[0]) is Limit
    empty = golden.leave_out(full)
    assert (empty.note, empty.limit, empty.limits) == (None, None, None)
    assert replace(empty, note=full.note, limit=full.limit, limits=full.limits) == full
    assert golden.read_defaults(schema)["Limit.digest"] == "\0\0"
