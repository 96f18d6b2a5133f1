r"""The state root: one hash over everything that a log's leaves lead to.

Ledger nodes attest it with each block, so that anyone with a finality proof can check a
state (balances, agents, the current model) without folding the log, and so that two
nodes whose deciders differ cannot certify a block together, even before the first fact
shows it.

Encoding, one per value:

    None n · False f · True t · int i<decimal>; · str s<length>:<UTF-8>
    bytes b<length>:<bytes> · tuple l<length>: items · set x<length>: items
    mapping m<length>: key value … · dataclass d<length>: name value …

Items of sets, keys of mappings and names of fields (as str) come in ascending order of
their encodings. A field at its default is left out. So a class may gain a field, and so
may an event's schema, and no encoding changes until the field is used; names of classes
and modules do not matter. The items of a mapping marked as spread are fields of the
class that holds it: what a mode keeps of a round is named as if the round had fields
for it.

The root is SHA-256 over ``folkmoot/state/v2\n`` and, for each field of each part of the
state, in ascending order, the encoding of its name, ``part.field``, and SHA-256 of that
of its value. The parts are ``admission`` and the deciders by name.

Left out: how far the log was read (the chain is in the header), facts still to come
(they follow from the rest) and the ids of recent inputs (they follow from the last
leaves, and are many).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Final, cast

from protocol.persistent import PersistentSet
from protocol.replay import ReplayState

STATE_DOMAIN: Final = b"folkmoot/state/v2\n"
ADMISSION: Final = "admission"
LEFT_OUT: Final = frozenset({(ADMISSION, "recent_ids")})


class StateHasher:
    """Computes state roots, remembering the hash of every unchanged part.

    States are immutable: the same object has the same hash.
    """

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[object, bytes]] = {}

    def compute_root(self, state: ReplayState) -> bytes:
        """Return the state root, 32 bytes.

        Raises:
            TypeError: the state holds a type without an encoding. A bug.
        """
        digests: list[tuple[bytes, bytes]] = []
        for name, value in _find_parts(state):
            known = self._known.get(name)
            if known is None or known[0] is not value:
                known = (value, hashlib.sha256(encode(value)).digest())
                self._known[name] = known
            digests.append((name, known[1]))
        # Names, as it must not matter where a class or the list of deciders has one.
        parts = b"".join(name + digest for name, digest in sorted(digests))
        return hashlib.sha256(STATE_DOMAIN + parts).digest()


def _find_parts(state: ReplayState) -> Iterator[tuple[bytes, Any]]:
    """Yield the fields that are not at their default, with their encoded names."""
    for part, content in ((ADMISSION, state.admission), *state.states.items()):
        for name, key, default in _fields_of(part, content.__class__):
            value = getattr(content, name)
            if value != default:
                yield key, value


@cache
def _fields_of(part: str, cls: Hashable) -> tuple[tuple[str, bytes, Any], ...]:
    """Return a part's fields: name, encoded name, default."""
    return tuple(
        (name, encode(f"{part}.{name}"), default)
        for name, _, default in _encoded_fields(cls)
        if (part, name) not in LEFT_OUT
    )


@cache
def _encoded_fields(cls: Hashable) -> tuple[tuple[str, bytes, Any], ...]:
    """Return a class's fields in order: name, its encoding, default if any."""
    found = [
        (
            part.name,
            encode(part.name),
            part.default if part.default_factory is MISSING else part.default_factory(),
        )
        for part in fields(cast("Any", cls))
    ]
    return tuple(sorted(found, key=itemgetter(1)))


@cache
def _find_spread(cls: Hashable) -> frozenset[str]:
    """Return the fields of a class whose items are fields of their own."""
    found = fields(cast("Any", cls))
    return frozenset(part.name for part in found if part.metadata.get("is_spread"))


def _list_fields(value: Any) -> list[tuple[bytes, Any]]:
    """Return the fields that are not at their default, in order."""
    cls = value.__class__
    known = [
        (name, key, item)
        for name, key, default in _encoded_fields(cls)
        if (item := getattr(value, name)) != default
    ]
    spread = _find_spread(cls)
    if not spread:
        return [(key, item) for _, key, item in known]
    listed: list[tuple[bytes, Any]] = []
    for name, key, item in known:
        if name in spread:
            listed += [(encode(inner), said) for inner, said in item.items()]
        else:
            listed.append((key, item))
    return sorted(listed, key=itemgetter(0))


def encode(value: Any) -> bytes:
    """Return the one encoding of a value.

    Raises:
        TypeError: a type that states do not contain. A bug.
    """
    out = bytearray()
    _write(value, out)
    return bytes(out)


def _write(value: Any, out: bytearray) -> None:
    # The most frequent first, by exact class; `match` is slow.
    kind = value.__class__
    if kind is bytes:
        out += b"b%d:" % len(value) + value
    elif kind is int:
        out += b"i%d;" % value
    elif kind is str:
        data = value.encode()
        out += b"s%d:" % len(data) + data
    elif kind is tuple:
        out += b"l%d:" % len(value)
        for item in value:
            _write(item, out)
    else:
        _write_other(value, out)


def _write_other(value: Any, out: bytearray) -> None:
    match value:
        case None:
            out += b"n"
        case bool():
            out += b"t" if value else b"f"
        # Subclasses of those above, such as enumerations, by what they are made of.
        case int():
            _write(int(value), out)
        case str():
            _write(str.__str__(value), out)
        case bytes():
            _write(bytes(value), out)
        case tuple():
            _write(tuple(value), out)
        case frozenset() | PersistentSet():
            out += b"x%d:" % len(value)
            out += b"".join(sorted(map(encode, value)))
        case Mapping():
            out += b"m%d:" % len(value)
            pairs = sorted(
                ((encode(key), item) for key, item in value.items()), key=itemgetter(0)
            )
            for key, item in pairs:
                out += key
                _write(item, out)
        case _ if is_dataclass(value):
            known = _list_fields(value)
            out += b"d%d:" % len(known)
            for key, item in known:
                out += key
                _write(item, out)
        case _:
            raise TypeError(f"no encoding of {type(value).__name__}")
