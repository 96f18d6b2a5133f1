r"""The state root: one hash over everything that a log's leaves lead to.

Ledger nodes attest to it with each block, so that whoever holds a finality proof can
check a state (balances, agents, the current model) without folding the log, and so that
two nodes whose deciders differ cannot certify a block together, even before the first
fact shows it.

Encoding, one for each value:

    None n · False f · True t · int i<decimal>; · str s<length>:<UTF-8>
    bytes b<length>:<bytes> · tuple l<length>: items · frozenset x<length>: items
    mapping m<length>: key value … · dataclass d<length of name>:<name> fields in order

Items of sets and keys of mappings come in ascending order of their encodings. The root
is SHA-256 over ``folkmoot-state/v1\n`` and, for each part of the state in a fixed
order, SHA-256 of the part's encoding.

Left out: what only says how far the log was read (the chain is in the header), facts
still to come (they follow from the rest) and the ids of recent inputs (they follow from
the last leaves, and are many).
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from functools import cache
from operator import itemgetter
from typing import Any, Final, cast

from protocol.replay import ReplayState

STATE_DOMAIN: Final = b"folkmoot-state/v1\n"
PARTS: Final = ("admission", "rounds", "registry", "rewards")
LEFT_OUT: Final = frozenset({("admission", "recent_ids")})


class StateHasher:
    """Computes state roots, and remembers the hash of every part that did not change.

    States are immutable: a part that is the same object has the same hash.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], tuple[object, bytes]] = {}

    def compute_root(self, state: ReplayState) -> bytes:
        """Return the state root, 32 bytes.

        Raises:
            TypeError: the state holds a type that has no encoding. A bug.
        """
        digest = hashlib.sha256(STATE_DOMAIN)
        for part, name, value in _parts(state):
            known = self._known.get((part, name))
            if known is None or known[0] is not value:
                known = (value, hashlib.sha256(encode(value)).digest())
                self._known[part, name] = known
            digest.update(known[1])
        return digest.digest()


def _parts(state: ReplayState) -> Iterator[tuple[str, str, Any]]:
    for part in PARTS:
        value = getattr(state, part)
        for name in _field_names(value.__class__):
            if (part, name) not in LEFT_OUT:
                yield part, name, getattr(value, name)


@cache
def _field_names(cls: Hashable) -> tuple[str, ...]:
    return tuple(part.name for part in fields(cast("Any", cls)))


def encode(value: Any) -> bytes:
    """Return the one encoding of a value.

    Raises:
        TypeError: a type that states are not made of. A bug.
    """
    out = bytearray()
    _write(value, out)
    return bytes(out)


def _write(value: Any, out: bytearray) -> None:
    # The most frequent ones first, by their very class; `match` is slow to tell.
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
        # Of subclasses of those above, such as enumerations, what they are made of.
        case int():
            _write(int(value), out)
        case str():
            _write(str.__str__(value), out)
        case bytes():
            _write(bytes(value), out)
        case tuple():
            _write(tuple(value), out)
        case frozenset():
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
            cls = value.__class__
            name = cls.__name__.encode()
            out += b"d%d:" % len(name) + name
            for part in _field_names(cls):
                _write(getattr(value, part), out)
        case _:
            msg = f"no encoding of {type(value).__name__}"
            raise TypeError(msg)
