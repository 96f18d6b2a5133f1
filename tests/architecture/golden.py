"""Golden messages: one per released fingerprint, for ever.

``python -m tests.architecture.golden`` adds what is missing to ``lock.json`` and to
``tests/vectors/schemas``. It never changes or removes anything: both only grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, fields, is_dataclass, replace
from functools import cache
from itertools import count
from pathlib import Path
from types import UnionType
from typing import Any, Final, get_args, get_type_hints

from schemas import codec
from tests.paths import ROOT

VECTORS: Final = ROOT / "tests" / "vectors" / "schemas"
LOCK: Final = ROOT / "schemas" / "lock.json"


@cache
def current_fingerprint(name: str) -> str:
    """Return the fingerprint of an event's present schema, in hex."""
    return codec.compute_fingerprint(codec.schema_text(name)).hex()


def make_example(name: str) -> Any:
    """Return an event with a different value in every field, always the same."""
    cls = codec.CLASSES[name]
    return _example(json.loads(codec.schema_text(name)), cls, name, count(1), {})


def _example(
    schema: Any,
    annotation: Any,
    field: str,
    numbers: Iterator[int],
    known: dict[str, Any],
) -> Any:
    if isinstance(schema, str) and schema in known:
        schema = known[schema]
    if isinstance(schema, list):
        inner = get_args(annotation)[0]
        return _example(schema[1], inner, field, numbers, known)
    kind = schema if isinstance(schema, str) else schema["type"]
    number = next(numbers)
    match kind:
        case "string":
            return f"{field} {number} \u00e4\u20ac"
        case "int":
            return 2**31 - number
        case "long":
            return number - 2**63
        case "bytes":
            return bytes([number, 0, 255])
        case "fixed":
            known[schema["name"]] = schema
            return bytes([number]) * int(schema["size"])
        case "array":
            inner = get_args(annotation)[0]
            return tuple(
                _example(schema["items"], inner, field, numbers, known)
                for _ in range(2)
            )
        case "record":
            known[schema["name"]] = schema
            hints = get_type_hints(annotation)
            values = {
                part["name"]: _example(
                    part["type"], hints[part["name"]], part["name"], numbers, known
                )
                for part in schema["fields"]
            }
            return annotation(**values)
        case _:
            msg = f"no example of {kind}"
            raise NotImplementedError(msg)


def leave_out(value: Any) -> Any:
    """Return an event with nothing in every place that may hold null."""
    if isinstance(value, tuple):
        return tuple(map(leave_out, value))
    if not is_dataclass(value) or isinstance(value, type):
        return value
    hints = get_type_hints(type(value))
    left: Any = {
        part.name: None
        if isinstance(hints[part.name], UnionType)
        else leave_out(getattr(value, part.name))
        for part in fields(value)
    }
    return replace(value, **left)


def read_defaults(schema: Any) -> dict[str, Any]:
    """Return the defaults in a schema as in its file, by record and field."""
    found: dict[str, Any] = {}
    if isinstance(schema, list):
        for item in schema:
            found |= read_defaults(item)
    if isinstance(schema, dict):
        found |= read_defaults(schema.get("items"))
        for part in schema.get("fields", ()):
            if "default" in part:
                found[f"{schema['name']}.{part['name']}"] = part["default"]
            found |= read_defaults(part["type"])
    return found


def make_messages(name: str) -> dict[str, Any]:
    """Return what is kept of an event's present schema."""
    event = make_example(name)
    kept = {"hex": codec.encode(event).hex(), "fields": to_json(asdict(event))}
    without = leave_out(event)
    if without != event:
        data = codec.encode(without)
        kept["without"] = {"hex": data.hex(), "fields": to_json(asdict(without))}
    defaults = read_defaults(json.loads(codec.schema_text(name)))
    return kept | ({"defaults": defaults} if defaults else {})


def forms(message: dict[str, Any]) -> list[dict[str, Any]]:
    """Return an event with everything in it and, if that is another, with nothing."""
    return [message, *filter(None, [message.get("without")])]


def pick(found: Any, like: Any) -> Any:
    """Return of a value's fields only those that another one has."""
    if isinstance(like, dict) and isinstance(found, dict):
        return {name: pick(found.get(name), value) for name, value in like.items()}
    if isinstance(like, list) and isinstance(found, list):
        return [pick(*pair) for pair in zip(found, like, strict=True)]
    return found


def to_json(value: Any) -> Any:
    """Return an event's fields as JSON: bytes in hex, arrays as lists."""
    match value:
        case bytes():
            return value.hex()
        case dict():
            return {name: to_json(item) for name, item in value.items()}
        case list() | tuple():
            return [to_json(item) for item in value]
        case _:
            return value


def load(name: str) -> dict[str, dict[str, Any]]:
    """Return an event's golden messages by fingerprint, in hex."""
    path = VECTORS / f"{name}.json"
    messages: dict[str, dict[str, Any]] = {}
    if path.exists():
        messages = json.loads(path.read_text(encoding="utf-8"))
    return messages


def main() -> None:
    """Add what is missing."""
    locked = json.loads(LOCK.read_text(encoding="utf-8"))
    for name in sorted(codec.CLASSES):
        fingerprint = current_fingerprint(name)
        if fingerprint not in locked.setdefault(name, []):
            locked[name].append(fingerprint)
        messages = load(name)
        if fingerprint not in messages:
            messages[fingerprint] = make_messages(name)
            _write(VECTORS / f"{name}.json", messages)
    _write(LOCK, dict(sorted(locked.items())))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
