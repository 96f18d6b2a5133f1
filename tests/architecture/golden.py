"""Golden messages: one per released fingerprint, for ever.

``python -m tests.architecture.golden`` adds what is missing to ``lock.json`` and to
``tests/vectors/schemas``. It never changes or removes anything: both only grow.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any, Final, get_args, get_type_hints

from schemas import codec

ROOT: Final = Path(__file__).parents[2]
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
            event = make_example(name)
            messages[fingerprint] = {
                "hex": codec.encode(event).hex(),
                "fields": to_json(asdict(event)),
            }
            _write(VECTORS / f"{name}.json", messages)
    _write(LOCK, dict(sorted(locked.items())))


def _write(path: Path, content: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(content, indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
