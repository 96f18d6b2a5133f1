"""Maps and sets that share unchanged parts with the ones they came from.

A decider's state is immutable, and moves with every leaf. Copying a map of ten thousand
agents for each of their updates would take quadratic time; each change of these takes
the same time, whatever their size.

They are rpds' hash tries (https://pypi.org/project/rpds-py/) with type arguments, equal
to every mapping or set with the same content. Their order means nothing and differs
between processes: sort before concluding anything from it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar, get_args

from rpds import HashTrieMap, HashTrieSet

Key = TypeVar("Key")
Value = TypeVar("Value")
Item = TypeVar("Item")


class PersistentMap(Mapping[Key, Value]):
    """An immutable map."""

    __slots__ = ("_trie",)

    def __init__(
        self, items: Mapping[Key, Value] | Iterable[tuple[Key, Value]] = ()
    ) -> None:
        self._trie: HashTrieMap[Key, Value] = HashTrieMap(items)

    def insert(self, key: Key, value: Value) -> PersistentMap[Key, Value]:
        """Return the map with this value at the key, in O(log n)."""
        return self._of(self._trie.insert(key, value))

    def discard(self, key: Key) -> PersistentMap[Key, Value]:
        """Return the map without the key, in O(log n)."""
        return self._of(self._trie.discard(key)) if key in self._trie else self

    @classmethod
    def _of(cls, trie: HashTrieMap[Key, Value]) -> PersistentMap[Key, Value]:
        made = cls.__new__(cls)
        made._trie = trie  # noqa: SLF001  # its own
        return made

    def __getitem__(self, key: Key) -> Value:
        return self._trie[key]

    def __contains__(self, key: object) -> bool:
        return key in self._trie

    def __iter__(self) -> Iterator[Key]:
        return iter(self._trie)

    def __len__(self) -> int:
        return len(self._trie)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, PersistentMap):
            return bool(self._trie == other._trie)
        return super().__eq__(other)

    __hash__ = None  # type: ignore[assignment]  # as a dict's

    def __repr__(self) -> str:
        return f"PersistentMap({dict(self)!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tell the processors' cache how it is stored: as a dict."""
        return _keep_as(cls, dict[get_args(source)], handler)  # type: ignore[misc]


class PersistentSet(AbstractSet[Item]):
    """An immutable set."""

    __slots__ = ("_trie",)

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._trie: HashTrieSet[Item] = HashTrieSet(items)

    def insert(self, item: Item) -> PersistentSet[Item]:
        """Return the set with this item, in O(log n)."""
        return self._of(self._trie.insert(item))

    def discard(self, item: Item) -> PersistentSet[Item]:
        """Return the set without this item, in O(log n)."""
        return self._of(self._trie.discard(item)) if item in self._trie else self

    @classmethod
    def _of(cls, trie: HashTrieSet[Item]) -> PersistentSet[Item]:
        made = cls.__new__(cls)
        made._trie = trie  # noqa: SLF001  # its own
        return made

    def __contains__(self, item: object) -> bool:
        return item in self._trie

    def __iter__(self) -> Iterator[Item]:
        return iter(self._trie)

    def __len__(self) -> int:
        return len(self._trie)

    def __repr__(self) -> str:
        return f"PersistentSet({set(self)!r})"

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Tell the processors' cache how it is stored: as a list."""
        return _keep_as(cls, list[get_args(source)], handler)  # type: ignore[misc]


def _keep_as(cls: type, kept: Any, handler: Any) -> Any:
    from pydantic_core import core_schema  # noqa: PLC0415  # only processors have a cache

    inner = handler.generate_schema(kept)
    make = dict if issubclass(cls, Mapping) else list
    return core_schema.no_info_after_validator_function(
        cls,
        inner,
        serialization=core_schema.wrap_serializer_function_ser_schema(
            lambda value, serialise: serialise(make(value)), schema=inner
        ),
    )
