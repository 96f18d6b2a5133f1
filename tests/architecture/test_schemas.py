"""The contract: every ``.avsc``, its dataclass, its topic, its fingerprint."""

from __future__ import annotations

import json
import textwrap
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

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
    for field in schema["fields"]:
        name = field["name"]
        problems += find_disagreements(
            field["type"], hints.get(name), f"{where}.{name}", known
        )
    return problems


def find_undocumented(schema: Any, where: str) -> list[str]:
    """Return which records and fields do not say what they mean."""
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
        data = bytes.fromhex(message["hex"])
        assert data[2 : codec.HEADER_SIZE].hex() == fingerprint
        event = codec.decode(data)
        assert type(event) is codec.CLASSES[name]
        found = golden.to_json(asdict(event))
        assert {key: found[key] for key in message["fields"]} == message["fields"]
        if fingerprint == golden.current_fingerprint(name):
            assert found == message["fields"]
            assert codec.encode(event) == data


# A schema evolves


@pytest.fixture
def evolved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A released `RoundRequested` that has one more field than ours."""
    from dataclasses import dataclass

    name = "RoundRequested"
    old = golden.current_fingerprint(name)
    (tmp_path / "avro" / "released").mkdir(parents=True)
    kept = tmp_path / "avro" / "released" / f"{name}-{old}.avsc"
    kept.write_text(codec.schema_text(name))
    schema = load(name)
    schema["fields"].append(
        {"name": "priority", "type": "int", "default": 7, "doc": "How much it matters."}
    )
    text = json.dumps(schema)
    (tmp_path / "avro" / f"{name}.avsc").write_text(text)
    new = codec.compute_fingerprint(text).hex()
    (tmp_path / "lock.json").write_text(json.dumps({name: [old, new]}))

    @dataclass(frozen=True, slots=True, kw_only=True)
    class RoundRequested:
        federation_id: str
        round: int
        requested_at_ms: int
        priority: int

    monkeypatch.setattr(codec, "_ROOT", tmp_path)
    monkeypatch.setitem(codec.CLASSES, name, RoundRequested)
    _forget()
    yield RoundRequested
    monkeypatch.undo()
    _forget()


def _forget() -> None:
    for cached in vars(codec).values():
        if hasattr(cached, "cache_clear"):
            cached.cache_clear()


OLD = e.RoundRequested(federation_id="f", round=3, requested_at_ms=5)
OLD_DATA = codec.encode(OLD)


def test_what_was_written_before_a_schema_evolved_can_be_read_after(
    evolved: Any,
) -> None:
    assert codec.decode(OLD_DATA) == evolved(
        federation_id="f", round=3, requested_at_ms=5, priority=7
    )


def test_what_is_written_after_a_schema_evolved_has_its_new_fingerprint(
    evolved: Any,
) -> None:
    event = evolved(federation_id="f", round=3, requested_at_ms=5, priority=1)
    data = codec.encode(event)
    assert data[: codec.HEADER_SIZE] != OLD_DATA[: codec.HEADER_SIZE]
    assert codec.decode(data) == event


@pytest.mark.usefixtures("evolved")
def test_old_messages_have_one_form_too() -> None:
    for bad in (OLD_DATA + b"\x02", OLD_DATA[:-1], OLD_DATA[:-1] + b"\x8a\x00"):
        with pytest.raises(codec.CodecError):
            codec.decode(bad)
