"""Which entries of a model's state are exchanged: the model states their classes.

A model's file holds the whole state of its module, with a class for each entry. So
every copy of a model, at agents, exporter and auditor, is the same function of the
file's bytes.

| class | in a round | values |
|---|---|---|
| ``trained`` | updates say how it moved; the sum moves it | float32, finite |
| ``averaged-apart`` | averaged, in an encoding of its own | floating, finite |
| ``averaged-apart-unsigned`` | the same; never below zero | floating, finite, ≥ 0 |
| ``kept`` | training may change it; each round begins with the same | no NaN |
| ``fixed`` | training may not change a bit of it | no NaN |
| ``refused`` | cannot be exchanged: no federation begins with such a model | - |

- An update holds the trained entries' values, then those averaged apart
  (`protocol.averaged_apart`). Everything else in a base model is in the next model,
  byte for byte.
- An entry that has several names in its module is in the file once, under the first of
  them; the others are in the metadata.
- An entry without a class in the file is trained, so in a file without metadata
  everything is.
- Nothing is silent: an unknown class or key, and a value that its class may not take,
  are refused with a reason (`RefusedStateError`): at the founding, by every reader of
  the model, after training and after averaging.

It deliberately knows no torch: `adapters.models` reads modules.

Sources: docs/adr/0031-an-entry-of-a-models-state-has-a-class.md,
docs/adr/0046-running-statistics-are-averaged-in-digits.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum, auto
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.averaged_apart import NUM_DIGITS, flatten_values
from protocol.tensors import (
    MalformedBlobError,
    Manifest,
    ManifestMismatchError,
    can_hold,
    flatten,
    manifest_of,
    num_parameters,
    tensors_and_metadata_from_blob,
    tensors_to_blob,
    unflatten,
)
from schemas.reasons import Reason

_OURS: Final = "folkmoot/"  # unknown keys here may change what a model is
#: With the entry's name, the key of its class in a model's metadata.
STATE_PREFIX: Final = "folkmoot/state/"
#: With another name of an entry, the key of the entry's name in a model's metadata.
TIED_PREFIX: Final = "folkmoot/tied/"


class StateClass(StrEnum):
    """What happens to an entry; the names are those in the file."""

    TRAINED = "trained"
    AVERAGED_APART = "averaged-apart"
    AVERAGED_UNSIGNED = "averaged-apart-unsigned"
    KEPT = "kept"
    FIXED = "fixed"
    REFUSED = "refused"


class Kind(StrEnum):
    """What an entry is in its module; its default class follows from it."""

    LEARNED = auto()  # a parameter with a gradient
    FROZEN = auto()  # a parameter without
    BUFFER = auto()
    VARIANCE = auto()  # a buffer that is never below zero
    SCRATCH = auto()  # a buffer that the module itself wouldn't save


AVERAGED: Final = frozenset({StateClass.AVERAGED_APART, StateClass.AVERAGED_UNSIGNED})
"""The classes of what is averaged apart."""


class RefusedStateError(MalformedBlobError):
    """A model's state can't be exchanged; bad input, never a bug of ours.

    Attributes:
        reason: For the ledger.
    """

    reason: Final = Reason.STATE_REFUSED


def _make_empty() -> NDArray[np.float64]:
    return np.empty(0)


@dataclass(frozen=True, slots=True, eq=False)
class Update:
    """What training did to a model. **Secret** in some modes.

    Attributes:
        trained: How far it moved the trained entries, shape (d,), floating-point.
        base: The values averaged apart before it, shape (n,) float64.
        after: The same after it.
        num_steps: Optimiser steps that `trained` was divided by; None if it was not.
    """

    trained: NDArray[np.floating[Any]] = field(repr=False)
    base: NDArray[np.float64] = field(repr=False, default_factory=_make_empty)
    after: NDArray[np.float64] = field(repr=False, default_factory=_make_empty)
    num_steps: int | None = None


@dataclass(frozen=True, slots=True)
class Model:
    """A model: all entries of its state, each with a class and permitted values.

    Attributes:
        tensors: Arrays by name.
        classes: By name; missing ones are trained.
        tied: Names of entries by their other names.

    Raises:
        RefusedStateError: An entry is not permitted, or nothing is trained.
    """

    tensors: Mapping[str, NDArray[Any]]
    classes: Mapping[str, StateClass]
    tied: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.classes:
            if name not in self.tensors:
                msg = f"a class for {name!r:.100}, which the model doesn't have"
                raise RefusedStateError(msg)
        for other, name in self.tied.items():
            if other in self.tensors or name not in self.tensors:
                msg = f"{other!r:.100} can't be another name of {name!r:.100}"
                raise RefusedStateError(msg)
        for name, array in sorted(self.tensors.items()):
            problem = _find_problem(self.get_class(name), array)
            if problem is not None:
                msg = f"entry {name!r:.100} of the model's state {problem}"
                raise RefusedStateError(msg)
        if not num_parameters(self.manifest):
            raise RefusedStateError("nothing of the model is trained")

    @property
    def manifest(self) -> Manifest:
        """The layout of the flat vector: the trained entries."""
        return manifest_of(self.trained)

    @property
    def trained(self) -> dict[str, NDArray[np.float32]]:
        """The trained entries by name."""
        return {
            name: array
            for name, array in self.tensors.items()
            if self.get_class(name) is StateClass.TRAINED
        }

    @property
    def averaged(self) -> list[str]:
        """The names of the entries averaged apart, sorted."""
        return sorted(n for n in self.tensors if self.get_class(n) in AVERAGED)

    @property
    def num_integers(self) -> int:
        """Length of an update: a federation's ``num_parameters``."""
        num_averaged = sum(self.tensors[name].size for name in self.averaged)
        return num_parameters(self.manifest) + NUM_DIGITS * num_averaged

    def get_class(self, name: str) -> StateClass:
        """Return the class of an entry."""
        return self.classes.get(name, StateClass.TRAINED)

    def to_vector(self) -> NDArray[np.float32]:
        """Lay the trained entries end to end; shape (d,) float32, finite."""
        return flatten(self.trained, self.manifest)

    def to_averaged(self) -> NDArray[np.float64]:
        """Lay the entries averaged apart end to end; shape (n,) float64, finite."""
        return flatten_values([self.tensors[name] for name in self.averaged])

    def replace_moved(
        self, trained: NDArray[np.float32], averaged: NDArray[np.float64] | None = None
    ) -> "Model":
        """Return the model with these values, and all other entries unchanged.

        Args:
            trained: shape (d,) float32.
            averaged: shape (n,) float64; each is brought into the range of its class
                and type. None: as before.

        Raises:
            RefusedStateError: A trained value is a NaN or an infinity.
            ManifestMismatchError: A vector is of another shape.
        """
        moved: dict[str, NDArray[Any]] = {**unflatten(trained, self.manifest)}
        if averaged is not None:
            moved |= self._unflatten_averaged(averaged)
        return Model({**self.tensors, **moved}, self.classes, self.tied)

    def _unflatten_averaged(
        self, values: NDArray[np.float64]
    ) -> dict[str, NDArray[Any]]:
        size = sum(self.tensors[name].size for name in self.averaged)
        if values.shape != (size,):
            msg = f"{values.shape} values averaged apart, not ({size},)"
            raise ManifestMismatchError(msg)
        arrays = {}
        begin = 0
        for name in self.averaged:
            old = self.tensors[name]
            limit = float(np.finfo(old.dtype).max)
            is_unsigned = self.get_class(name) is StateClass.AVERAGED_UNSIGNED
            part = values[begin : begin + old.size]
            within = np.clip(part, 0.0 if is_unsigned else -limit, limit)
            arrays[name] = within.astype(old.dtype).reshape(old.shape)
            begin += old.size
        return arrays

    def compute_update(self, after: Mapping[str, NDArray[Any]]) -> Update:
        """Return what training did.

        Args:
            after: All entries by name, as training left them. Those that are sent may
                have any values: encoding an update refuses non-finite ones.

        Raises:
            RefusedStateError: Entries, shapes or types differ from before, a fixed
                entry has changed, or one that is unsigned is below zero.
        """
        for name in sorted({*self.tensors} | {*after}):
            if name not in self.tensors or name not in after:
                msg = f"entry {name!r:.100} was there only before or only after"
                raise RefusedStateError(msg)
            old, new = self.tensors[name], after[name]
            if (old.shape, old.dtype) != (new.shape, new.dtype):
                raise RefusedStateError(
                    f"entry {name!r:.100} was {old.dtype}{old.shape}, and is "
                    f"{new.dtype}{new.shape} after training"
                )
            state_class = self.get_class(name)
            if state_class is StateClass.FIXED and old.tobytes() != new.tobytes():
                raise RefusedStateError(
                    f"training changed {name!r:.100}, which is fixed: make it "
                    "averaged-apart if all shall have what it becomes, or kept"
                )
            if state_class is StateClass.AVERAGED_UNSIGNED and (new < 0).any():
                msg = f"training left {name!r:.100} below zero: make it averaged-apart"
                raise RefusedStateError(msg)
        trained = {name: after[name] for name in self.trained}
        return Update(
            flatten(trained, self.manifest) - self.to_vector(),
            self.to_averaged(),
            flatten_values([after[name] for name in self.averaged]),
        )


def model_to_blob(model: Model) -> bytes:
    """Write a model as a canonical safetensors file.

    Returns:
        A file whose metadata has a key for each entry that isn't trained and for each
        other name, and no metadata if there are none: equal models give equal bytes.
    """
    classes = {
        STATE_PREFIX + name: str(state_class)
        for name, state_class in model.classes.items()
        if state_class is not StateClass.TRAINED
    }
    tied = {TIED_PREFIX + other: name for other, name in model.tied.items()}
    return tensors_to_blob(model.tensors, metadata=classes | tied)


def model_from_blob(blob: bytes) -> Model:
    """Read a model, trusting nothing in it.

    Args:
        blob: The file, canonical or not. Its size is the caller's to limit.

    Returns:
        The model; arrays are read-only views into `blob`.

    Raises:
        MalformedBlobError: The bytes aren't a valid safetensors file.
        RefusedStateError: It states a class that is unknown or isn't exchanged, or an
            entry has values that its class may not take.
    """
    tensors, metadata = tensors_and_metadata_from_blob(blob)
    classes, tied = {}, {}
    for key, value in sorted(metadata.items()):
        if not key.startswith(_OURS):
            continue  # other programs' keys
        if key.startswith(TIED_PREFIX):
            tied[key.removeprefix(TIED_PREFIX)] = value
        elif key.startswith(STATE_PREFIX) and value in {*StateClass}:
            classes[key.removeprefix(STATE_PREFIX)] = StateClass(value)
        else:
            msg = f"the model says {key!r:.100}: {value!r:.100}, which isn't known here"
            raise RefusedStateError(msg)
    return Model(tensors, classes, tied)


def classify(
    tensors: Mapping[str, NDArray[Any]],
    kinds: Mapping[str, Kind],
    rules: Sequence[tuple[str, StateClass]] = (),
    tied: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, StateClass]:
    """Give each entry of a module's state its class.

    Args:
        tensors: The entries by name.
        kinds: What each is in its module.
        rules: Pairs of a pattern of names (``*``, ``?``, ``[…]``) and a class; the
            first that matches one of an entry's names wins. Unmatched entries get their
            kind's class: learned parameters are trained, frozen ones fixed, buffers
            that the module would not save kept, other floating-point buffers averaged
            apart (fixed, if they hold an infinity), and other buffers kept.
        tied: Names of entries by their other names.

    Raises:
        RefusedStateError: A pattern matches nothing; it was misspelt.
    """
    names = {name: [name] for name in tensors}
    for other, name in tied.items():
        names[name].append(other)
    for pattern, _ in rules:
        if not any(_matches(pattern, each) for each in names.values()):
            msg = f"no entry of the model's state is called {pattern!r:.100}"
            raise RefusedStateError(msg)
    classes = {}
    for name, array in tensors.items():
        stated = (c for pattern, c in rules if _matches(pattern, names[name]))
        classes[name] = next(stated, _find_default(kinds[name], array))
    return classes


def _matches(pattern: str, names: Iterable[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names)


def _find_default(kind: Kind, array: NDArray[Any]) -> StateClass:
    if kind is Kind.LEARNED:
        return StateClass.TRAINED
    if kind is Kind.FROZEN:
        return StateClass.FIXED
    if kind is Kind.SCRATCH or not np.issubdtype(array.dtype, np.inexact):
        return StateClass.KEPT
    if np.isinf(array).any():
        return StateClass.FIXED  # a mask: no mean is infinite
    if kind is Kind.VARIANCE:
        return StateClass.AVERAGED_UNSIGNED
    return StateClass.AVERAGED_APART


def _find_problem(state_class: StateClass, array: NDArray[Any]) -> str | None:
    """Return why an entry of this class may not have these values; None if it may."""
    if np.issubdtype(array.dtype, np.complexfloating):
        return (
            f"is {array.dtype}, which a model's file can't hold: make two float32 "
            "entries of its real and imaginary parts"
        )
    if not can_hold(array.dtype):
        return f"is {array.dtype}, which a model's file can't hold"
    if state_class is StateClass.REFUSED:
        return "is refused"
    is_floating = np.issubdtype(array.dtype, np.floating)
    if state_class in {StateClass.KEPT, StateClass.FIXED}:
        # Masks are made of infinities.
        if is_floating and np.isnan(array).any():
            return f"is {state_class} and holds a NaN"
        return None
    if state_class in AVERAGED and not is_floating:
        return f"is {state_class} and {array.dtype}; it must be floating-point or kept"
    if state_class is StateClass.TRAINED and array.dtype != np.float32:
        return f"is trained and {array.dtype}; it must be float32{_find_cure(array)}"
    if not np.isfinite(array).all():
        return f"is {state_class} and holds a NaN or an infinity"
    if state_class is StateClass.AVERAGED_UNSIGNED and (array < 0).any():
        return f"is {state_class} and holds a value below zero"
    return None


def _find_cure(array: NDArray[Any]) -> str:
    if array.dtype == np.float16:
        return ", and may train in mixed precision"
    if array.dtype == np.float64:
        return ": call .float() in the module's constructor"
    return ", or the entry kept or fixed"
