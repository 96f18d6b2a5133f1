"""A torch module's state as numpy arrays by name, and back.

Agents that train a model, the exporter and whoever else loads one all use these
functions, so that each has the same function of a model's bytes. They work on any
`torch.nn.Module` through the module's own methods: this file doesn't import torch.

- The state is every parameter and every buffer, those that the module itself would not
  save too, in their own types. The model says what of it is exchanged
  (`protocol.exchanged_state`).
- An entry with several names, a tied one, is read and written once, under the first.
- What no array can hold, what shares only a part of its memory, and what only the
  module itself could read are refused, each with what to do.
- After writing, everything is read again: a module that doesn't hold what it was given
  is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from protocol.exchanged_state import (
    Kind,
    Model,
    RefusedStateError,
    StateClass,
    classify,
)

#: What torch raises for tensors that don't exist yet or are no plain arrays, and
#: Python for anything that is no tensor.
_ERRORS: Final = (
    AttributeError,
    NotImplementedError,
    RuntimeError,
    TypeError,
    ValueError,
)
_PLAIN_TYPES: Final = frozenset({"Tensor", "Parameter", "Buffer"})
#: Batch norm's, and by its example other modules', for what is never below zero.
_VARIANCE: Final = "running_var"
_CURES: Final = {
    "bfloat16": "make it float32; training may be in mixed precision",
    "UninitializedParameter": "make it in the constructor, not at the first batch",
    "UninitializedBuffer": "make it in the constructor, not at the first batch",
    "sparse": "make it dense",
    "quantised": "exchange it before it is quantised",
}


class StateMismatchError(ValueError):
    """The tensors aren't this module's: other names, shapes or types."""


class _Entry(NamedTuple):
    """An entry of a module's state.

    Attributes:
        tensor: Shares the module's memory; detached from autograd.
        kind: What it is in the module.
    """

    tensor: Any
    kind: Kind


@dataclass(frozen=True, slots=True)
class _State:
    """A module's state.

    Attributes:
        entries: By name; of several names the first.
        tied: Names of entries by their other names.
    """

    entries: dict[str, _Entry] = field(default_factory=dict)
    tied: dict[str, str] = field(default_factory=dict)


def make_model(module: Any, rules: Sequence[tuple[str, StateClass]] = ()) -> Model:
    """Return a module's state as a model, each entry with its class.

    Args:
        module: A `torch.nn.Module`.
        rules: Classes by pattern of names, before those by kind.

    Raises:
        RefusedStateError: The state, or a part of it, can't be exchanged.
    """
    state = _list_state(module)
    tensors = _read(state)
    kinds = {name: entry.kind for name, entry in state.entries.items()}
    classes = classify(tensors, kinds, rules, state.tied)
    return Model(tensors, classes, state.tied)


def read_state(module: Any) -> dict[str, NDArray[Any]]:
    """Copy a module's state.

    Args:
        module: A `torch.nn.Module`, on any device.

    Returns:
        Copies as arrays by name, sorted by name, of the module's own types; of several
        names of an entry the first.

    Raises:
        RefusedStateError: No array can hold an entry, or it can't be told from others.
    """
    return _read(_list_state(module))


def write_state(
    module: Any,
    tensors: Mapping[str, NDArray[Any]],
) -> None:
    """Set a module's state in place.

    Args:
        module: A `torch.nn.Module`.
        tensors: Exactly its entries by name, of its types.

    Raises:
        StateMismatchError: A tensor is missing, unexpected, of another shape or of
            another type, and the module is unchanged; or it doesn't hold what was
            written.
        RefusedStateError: No array can hold an entry of the module.
    """
    state = _list_state(module)
    arrays = {name: _view(name, entry.tensor) for name, entry in state.entries.items()}
    expected = {name: (a.shape, str(a.dtype)) for name, a in arrays.items()}
    found = {name: (a.shape, str(a.dtype)) for name, a in tensors.items()}
    if expected != found:
        differing = sorted({*expected.items()} ^ {*found.items()})
        raise StateMismatchError(f"not this module's state: {differing}")
    for name, entry in state.entries.items():
        entry.tensor.copy_(entry.tensor.new_tensor(tensors[name]))
    for name, array in read_state(module).items():
        if array.tobytes() != tensors[name].tobytes():
            msg = f"the module doesn't hold what was written to {name!r:.100}"
            raise StateMismatchError(msg)


def demand_determined(first: Any, second: Any) -> None:
    """Check that nothing of a module but its state depends on chance.

    A tensor, an array or a number that the constructor draws, or computes from weights,
    and keeps as a plain attribute is in no file: every copy would have its own.

    Args:
        first: A module.
        second: The same, made after another seed.

    Raises:
        RefusedStateError: An attribute differs between them.
    """
    one, other = dict(_list_loose(first)), dict(_list_loose(second))
    for name in sorted({*one} | {*other}):
        if one.get(name) != other.get(name):
            raise RefusedStateError(
                f"attribute {name!r:.100} of the module is another in each copy and no "
                "part of its state: make it a buffer or a parameter"
            )


def _list_state(module: Any) -> _State:
    try:
        parameters = dict(module.named_parameters(remove_duplicate=False))
        buffers = dict(module.named_buffers(remove_duplicate=False))
        saved = {*module.state_dict()}
    except _ERRORS as error:
        msg = f"the module gives no state: {type(error).__name__}: {error}"
        raise RefusedStateError(msg) from None
    others = sorted(saved - {*parameters} - {*buffers})
    if others:
        raise RefusedStateError(
            f"entry {others[0]!r:.100} of the module's state_dict is neither a "
            "parameter nor a buffer: only the module itself can read it; hold it in "
            "buffers"
        )
    found: dict[str, _Entry] = {}
    for name, tensor in parameters.items():
        kind = Kind.LEARNED if tensor.requires_grad else Kind.FROZEN
        found[name] = _Entry(_demand_plain(name, tensor), kind)
    for name, tensor in buffers.items():
        kind = _find_buffer_kind(name, is_saved=name in saved)
        found[name] = _Entry(_demand_plain(name, tensor), kind)
    return _tie(found)


def _find_buffer_kind(name: str, *, is_saved: bool) -> Kind:
    if not is_saved:
        return Kind.SCRATCH
    return Kind.VARIANCE if name.rpartition(".")[2] == _VARIANCE else Kind.BUFFER


def _tie(found: Mapping[str, _Entry]) -> _State:
    """Find what has several names, and refuse what shares memory in any other way."""
    state = _State()
    firsts: dict[Any, str] = {}
    spans: dict[Any, list[tuple[int, int, str]]] = {}
    # A parameter's name before a buffer's.
    order = sorted(found, key=lambda n: (_is_buffer(found[n].kind), n))
    for name in order:
        tensor = found[name].tensor
        place = _find_place(tensor)
        if place is None:
            state.entries[name] = found[name]
            continue
        storage, begin, end = place
        if tensor.numel() * tensor.element_size() > end - begin:
            raise RefusedStateError(
                f"entry {name!r:.100} of the module's state holds a value in several "
                "places: clone it"
            )
        layout = (storage, begin, tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if layout in firsts:
            first = firsts[layout]
            state.tied[name] = first
            kinds = (state.entries[first].kind, found[name].kind)
            # One who learns it is enough.
            state.entries[first] = _Entry(tensor, min(kinds, key=[*Kind].index))
            continue
        firsts[layout] = name
        state.entries[name] = found[name]
        spans.setdefault(storage, []).append((begin, end, name))
    for used in spans.values():
        for (_, end, one), (begin, _, other) in pairwise(sorted(used)):
            if begin < end:
                raise RefusedStateError(
                    f"entries {one!r:.100} and {other!r:.100} of the module's state "
                    "share a part of their memory: make one of them in forward"
                )
    return state


def _is_buffer(kind: Kind) -> bool:
    return kind not in {Kind.LEARNED, Kind.FROZEN}


def _find_place(tensor: Any) -> tuple[Any, int, int] | None:
    """Return a tensor's storage and the bytes that it spans; None if it has none."""
    try:
        size, item = tensor.numel(), tensor.element_size()
        storage = tensor.untyped_storage().data_ptr()
        begin = tensor.storage_offset() * item
    except _ERRORS:
        return None  # `_view` says what it is
    if not size or not storage:
        return None
    steps = zip(tensor.shape, tensor.stride(), strict=True)
    length = sum((count - 1) * step for count, step in steps) + 1
    return storage, begin, begin + length * item


def _demand_plain(name: str, tensor: Any) -> Any:
    """Return a tensor, detached."""
    kind = type(tensor)
    if kind.__name__ not in _PLAIN_TYPES or not kind.__module__.startswith("torch"):
        raise _refuse(name, kind.__name__)
    return tensor.detach()


def _refuse(name: str, what: str) -> RefusedStateError:
    cure = next((cure for key, cure in _CURES.items() if key in what), "")
    return RefusedStateError(
        f"entry {name!r:.100} of the module's state is {what}: no array holds it"
        + (f"; {cure}" if cure else "")
    )


def _read(state: _State) -> dict[str, NDArray[Any]]:
    return {
        name: np.array(_view(name, entry.tensor))
        for name, entry in sorted(state.entries.items())
    }


def _view(name: str, tensor: Any) -> NDArray[Any]:
    """Return an entry as an array, which may share its memory."""
    try:
        array: NDArray[Any] = tensor.cpu().numpy()
    except _ERRORS:  # bfloat16, sparse, quantised, not made yet
        raise _refuse(name, _name_type(tensor)) from None
    return array


def _name_type(tensor: Any) -> str:
    if getattr(tensor, "is_quantized", False):
        return "quantised"
    layout = str(getattr(tensor, "layout", ""))
    return (
        "sparse" if "sparse" in layout else str(getattr(tensor, "dtype", "no tensor"))
    )


def _list_loose(module: Any) -> Iterator[tuple[str, Any]]:
    """Yield what a module holds in plain attributes, by path: tensors, arrays and
    numbers, in containers and unregistered modules too.
    """
    registered = {
        id(tensor)
        for tensors in (
            module.named_parameters(remove_duplicate=False),
            module.named_buffers(remove_duplicate=False),
        )
        for _, tensor in tensors
    }
    seen: set[int] = set()
    waiting: list[tuple[str, Any]] = [("", module)]
    while waiting:
        path, value = waiting.pop()
        if isinstance(value, bool | int | float | complex):
            yield path, repr(value)
            continue
        if id(value) in registered or id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, np.ndarray):
            yield path, (str(value.dtype), value.shape, value.tobytes())
        elif hasattr(value, "untyped_storage"):
            yield path, _describe_loose(value)
        elif isinstance(value, Mapping):
            waiting += [(f"{path}[{key!r:.50}]", item) for key, item in value.items()]
        elif isinstance(value, list | tuple):
            waiting += [(f"{path}[{index}]", item) for index, item in enumerate(value)]
        elif hasattr(value, "named_parameters"):
            waiting += [
                (f"{path}.{name}".removeprefix("."), item)
                for name, item in _list_attributes(value)
            ]


def _list_attributes(module: Any) -> Iterator[tuple[str, Any]]:
    own = {name for name, _ in module.named_parameters(recurse=False)}
    for name, value in vars(module).items():
        if name in {"_parameters", "_buffers", "_modules"}:
            yield from value.items()
        # Weight norm, spectral norm and pruning compute it anew before each use; hooks
        # have numbers of torch's.
        elif not {f"{name}_orig", f"{name}_g"} & own and "_hooks" not in name:
            yield name, value


def _describe_loose(tensor: Any) -> Any:
    tensor = tensor.detach().cpu()
    for convert in (tensor.numpy, lambda: tensor.double().numpy()):  # bfloat16
        with suppress(*_ERRORS):
            array = convert()
            return _name_type(tensor), array.shape, array.tobytes()
    return _name_type(tensor)
