"""Where an audit ended, for the next one to continue from.

The next audit trusts this file: whoever can change it decides what that audit believes
about the past. Keep it on the auditor's own disk. Only a sound audit has a state worth
saving.

JSON, with a version: a damaged state, or one of another version, is refused; the remedy
is to audit from the beginning. Only our own dataclasses can come out of it.

Deliberately not here: files, and whether the log still is what it was (the audit checks
that first).
"""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from types import ModuleType
from typing import Any, Final

from adapters.kafka import Record
from consumers.audit import finality as audit_finality
from consumers.audit import report as audit_report
from consumers.audit.finality import FinalityState
from consumers.audit.modes import STATE_MODULES, Watch, make_watches
from consumers.audit.report import Report
from ledger import attestations, blocks, equivocation, merkle
from protocol import (
    admission,
    contributions,
    log,
    registry,
    replay,
    rewards,
    round_state,
    round_view,
)
from protocol.persistent import PersistentMap, PersistentSet
from protocol.replay import ReplayState
from protocol.round_view import RoundView
from schemas import events as e
from schemas import reasons


class StateError(ValueError):
    """The bytes are no saved state of this version; the message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """The last record of a topic that was audited.

    Attributes:
        offset: Where it is.
        digest: Its `hash_record`, 32 bytes.
    """

    offset: int
    digest: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ExpectedCheckpoint:
    """A block's checkpoint, to be found on its topic.

    Attributes:
        height: The block's.
        offset: Where the block is.
        size: Number of leaves after the block.
        root: Root over them, 32 bytes.
        traceparent: The block's trace context.
    """

    height: int
    offset: int
    size: int
    root: bytes
    traceparent: str


@dataclass(slots=True, kw_only=True)
class AuditState:
    """Everything that an audit continues from.

    Attributes:
        positions: The last record of each topic, by topic.
        first_offsets: Offset of the federation's first record on each topic.
        replay: What the leaves lead to.
        view: The round in progress.
        watches: The watches of particular modes.
        checkpoints: Those of the last blocks, which have none yet.
        finality: What ledger nodes said.
        report: What was counted.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    first_offsets: dict[str, int] = field(default_factory=dict)
    replay: ReplayState = field(default_factory=ReplayState)
    view: RoundView | None = None
    watches: tuple[Watch, ...] = field(default_factory=make_watches)
    checkpoints: list[ExpectedCheckpoint] = field(default_factory=list)
    finality: FinalityState = field(default_factory=FinalityState)
    report: Report


def hash_record(record: Record) -> bytes:
    """Return a digest of a whole record, 32 bytes."""
    digest = hashlib.sha256()
    parts: Iterable[bytes | None] = (
        record.key,
        record.value,
        *(
            part
            for name, value in record.headers
            for part in (name.encode("utf-8", "surrogateescape"), value)
        ),
    )
    for part in parts:
        size = -1 if part is None else len(part)
        digest.update(size.to_bytes(8, "big", signed=True) + (part or b""))
    return digest.digest()


def save_state(state: AuditState) -> bytes:
    """Return a state as bytes."""
    content = {"format": FORMAT, "state": _to_json(state)}
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def load_state(data: bytes) -> AuditState:
    """Return what `save_state` was called on.

    Raises:
        StateError: the bytes are anything else.
    """
    try:
        content = json.loads(data)
        if content["format"] != FORMAT:
            msg = f"its format is {content['format']!r}, not {FORMAT!r}"
            raise StateError(msg)  # noqa: TRY301  # one handler says what to do
        state = _from_json(content["state"])
        if not isinstance(state, AuditState):
            msg = f"it holds a {type(state).__name__}"
            raise StateError(msg)  # noqa: TRY301  # as above
    except Exception as error:
        # Whatever a constructor raises: this is not what was saved.
        raise StateError(
            f"not the saved state of an audit ({type(error).__name__}: {error}); "
            "audit from the beginning again"
        ) from error
    return state


# One JSON form for each type; whatever is not JSON by itself is an object with one key.


def _to_json(value: Any) -> Any:
    match value:
        case Enum():
            return {"enum": [type(value).__name__, value.value]}
        case None | bool() | int() | str():
            return value
        case bytearray():
            return {"array": b64encode(value).decode()}
        case bytes():
            return {"bytes": b64encode(value).decode()}
        case list():
            return list(map(_to_json, value))
        case tuple():
            return {"tuple": list(map(_to_json, value))}
        case PersistentMap():
            return {
                "persistent map": [[_to_json(k), _to_json(v)] for k, v in value.items()]
            }
        case PersistentSet():
            return {"persistent set": list(map(_to_json, value))}
        case frozenset():
            return {"set": list(map(_to_json, value))}
        case Counter():
            return {"counter": [[_to_json(k), n] for k, n in value.items()]}
        case Mapping():
            return {"map": [[_to_json(k), _to_json(v)] for k, v in value.items()]}
        case _ if is_dataclass(value):
            content = {
                part.name: _to_json(getattr(value, part.name))
                for part in fields(value)
                if part.init
            }
            return {"object": [type(value).__name__, content]}
    raise TypeError(f"no form for {type(value).__name__}")


def _from_json(parsed: Any) -> Any:
    if isinstance(parsed, list):
        return list(map(_from_json, parsed))
    if not isinstance(parsed, dict):
        return parsed
    ((kind, content),) = parsed.items()
    match kind:
        case "enum":
            name, value = content
            return _ENUMS[name](value)
        case "array":
            return bytearray(b64decode(content, validate=True))
        case "bytes":
            return b64decode(content, validate=True)
        case "tuple":
            return tuple(map(_from_json, content))
        case "set":
            return frozenset(map(_from_json, content))
        case "persistent map":
            return PersistentMap((_from_json(k), _from_json(v)) for k, v in content)
        case "persistent set":
            return PersistentSet(map(_from_json, content))
        case "counter":
            return Counter({_from_json(k): n for k, n in content})
        case "map":
            return {_from_json(k): _from_json(v) for k, v in content}
        case "object":
            name, values = content
            return _CLASSES[name](**{k: _from_json(v) for k, v in values.items()})
    raise ValueError(f"no such form: {kind!r}")


def _types(*modules: ModuleType) -> dict[str, type]:
    """Return the classes of modules by name."""
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__
    }


_ENUMS: Final = {
    name: cls
    for name, cls in _types(rewards, equivocation, reasons, audit_report).items()
    if issubclass(cls, Enum)
}
_CLASSES: Final = {
    name: cls
    for name, cls in (
        *_types(
            e, admission, contributions, log, registry, replay, rewards, round_state,
            round_view,
            attestations, blocks, equivocation, merkle, audit_finality, audit_report,
            *STATE_MODULES,
        ).items(),
        *((cls.__name__, cls) for cls in (
            AuditState, ExpectedCheckpoint, Position,
        )),
    )
    if is_dataclass(cls)
}  # fmt: skip
FORMAT: Final = (
    "folkmoot-audit-state/v3-"
    + hashlib.sha256(
        "\n".join(
            f"{name} {part.name} {part.type}"
            for name, cls in sorted(_CLASSES.items())
            for part in fields(cls)
        ).encode()
    ).hexdigest()[:16]
)
"""Names these very classes: a state of another shape lacks what it should have learned,
and a default would be wrong."""
