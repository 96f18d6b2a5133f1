"""Which entries of a model's state are exchanged: the model states their classes.

A model's file holds the whole state of its module, with a class for each entry. So
every copy of a model, at agents, exporter and auditor, is the same function of the
file's bytes.

| class | in a round | values |
|---|---|---|
| ``trained`` | updates say how it moved; the sum moves it | float32, finite |
| ``averaged-apart`` | averaged outside the norm bound | float32, finite |
| ``kept`` | training may change it; each round begins with the same | no NaN |
| ``fixed`` | training may not change a bit of it | no NaN |
| ``refused`` | cannot be exchanged: no federation begins with such a model | - |

- The flat vector holds only the trained entries. Everything else in a base model is in
  the next model, byte for byte.
- An entry without a class in the file is trained, so in a file without metadata
  everything is.
- Nothing is silent: an unknown class, one that this version doesn't exchange yet
  (``averaged-apart``), and a value that its class may not take are refused with a
  reason (`RefusedStateError`), at the founding and by every reader of the model.

It deliberately knows no torch: `adapters.models` reads modules.

Source: docs/adr/0031-an-entry-of-a-models-state-has-a-class.md.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from fnmatch import fnmatchcase
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from protocol.tensors import (
    MalformedBlobError,
    Manifest,
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


class StateClass(StrEnum):
    """What happens to an entry; the names are those in the file."""

    TRAINED = "trained"
    AVERAGED_APART = "averaged-apart"
    KEPT = "kept"
    FIXED = "fixed"
    REFUSED = "refused"


class Kind(StrEnum):
    """What an entry is in its module; its default class follows from it."""

    LEARNED = auto()  # a parameter with a gradient
    FROZEN = auto()  # a parameter without
    BUFFER = auto()


class RefusedStateError(MalformedBlobError):
    """A model's state can't be exchanged; bad input, never a bug of ours.

    Attributes:
        reason: For the ledger.
    """

    reason: Final = Reason.STATE_REFUSED


@dataclass(frozen=True, slots=True)
class Model:
    """A model: all entries of its state, each with a class and permitted values.

    Attributes:
        tensors: Arrays by name.
        classes: By name; missing ones are trained.

    Raises:
        RefusedStateError: An entry is not permitted, or nothing is trained.
    """

    tensors: Mapping[str, NDArray[Any]]
    classes: Mapping[str, StateClass]

    def __post_init__(self) -> None:
        for name in self.classes:
            if name not in self.tensors:
                msg = f"a class for {name!r:.100}, which the model doesn't have"
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

    def get_class(self, name: str) -> StateClass:
        """Return the class of an entry."""
        return self.classes.get(name, StateClass.TRAINED)

    def to_vector(self) -> NDArray[np.float32]:
        """Lay the trained entries end to end; shape (d,) float32, finite."""
        return flatten(self.trained, self.manifest)

    def replace_trained(self, vector: NDArray[np.float32]) -> "Model":
        """Return the model with these trained entries, and all others unchanged.

        Args:
            vector: shape (d,) float32.

        Raises:
            RefusedStateError: It contains a NaN or an infinity.
            ManifestMismatchError: It isn't of shape (d,).
        """
        moved = unflatten(vector, self.manifest)
        return Model({**self.tensors, **moved}, self.classes)

    def compute_update(self, after: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return how far training moved the trained entries.

        Args:
            after: All entries by name, as training left them. Trained ones may have any
                values: encoding an update refuses non-finite ones.

        Returns:
            shape (d,) float32.

        Raises:
            RefusedStateError: Entries, shapes or types differ from before, or a fixed
                entry has changed.
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
            is_fixed = self.get_class(name) is StateClass.FIXED
            if is_fixed and old.tobytes() != new.tobytes():
                msg = f"training changed {name!r:.100}, which is fixed"
                raise RefusedStateError(msg)
        trained = {name: after[name] for name in self.trained}
        return flatten(trained, self.manifest) - self.to_vector()


def model_to_blob(model: Model) -> bytes:
    """Write a model as a canonical safetensors file.

    Returns:
        A file whose metadata has a key for each entry that isn't trained, and no
        metadata if all are: equal models give equal bytes.
    """
    metadata = {
        STATE_PREFIX + name: str(state_class)
        for name, state_class in model.classes.items()
        if state_class is not StateClass.TRAINED
    }
    return tensors_to_blob(model.tensors, metadata=metadata)


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
    classes = {}
    for key, value in sorted(metadata.items()):
        if not key.startswith(_OURS):
            continue  # other programs' keys
        if not key.startswith(STATE_PREFIX) or value not in {*StateClass}:
            msg = f"the model says {key!r:.100}: {value!r:.100}, which isn't known here"
            raise RefusedStateError(msg)
        classes[key.removeprefix(STATE_PREFIX)] = StateClass(value)
    return Model(tensors, classes)


def classify(
    tensors: Mapping[str, NDArray[Any]],
    kinds: Mapping[str, Kind],
    rules: Sequence[tuple[str, StateClass]] = (),
) -> dict[str, StateClass]:
    """Give each entry of a module's state its class.

    Args:
        tensors: The entries by name.
        kinds: What each is in its module.
        rules: Pairs of a pattern of names (``*``, ``?``, ``[…]``) and a class; the
            first that matches wins. Unmatched entries get their kind's class: learned
            parameters are trained, frozen ones fixed, floating-point buffers averaged
            apart, other buffers kept.

    Raises:
        RefusedStateError: A pattern matches nothing; it was misspelt.
    """
    for pattern, _ in rules:
        if not any(fnmatchcase(name, pattern) for name in tensors):
            msg = f"no entry of the model's state is called {pattern!r:.100}"
            raise RefusedStateError(msg)
    classes = {}
    for name, array in tensors.items():
        stated = (c for pattern, c in rules if fnmatchcase(name, pattern))
        classes[name] = next(stated, _find_default(kinds[name], array))
    return classes


def _find_default(kind: Kind, array: NDArray[Any]) -> StateClass:
    if kind is Kind.LEARNED:
        return StateClass.TRAINED
    if kind is Kind.FROZEN:
        return StateClass.FIXED
    if np.issubdtype(array.dtype, np.inexact):
        return StateClass.AVERAGED_APART
    return StateClass.KEPT


def _find_problem(state_class: StateClass, array: NDArray[Any]) -> str | None:
    """Return why an entry of this class may not have these values; None if it may."""
    if not can_hold(array.dtype):
        return f"is {array.dtype}, which a model's file can't hold"
    if state_class is StateClass.REFUSED:
        return "is refused"
    if state_class in {StateClass.KEPT, StateClass.FIXED}:
        # Masks are made of infinities.
        if np.issubdtype(array.dtype, np.floating) and np.isnan(array).any():
            return f"is {state_class} and holds a NaN"
        return None
    if array.dtype != np.float32:
        return f"is {state_class} and {array.dtype}; it must be float32"
    if not np.isfinite(array).all():
        return f"is {state_class} and holds a NaN or an infinity"
    if state_class is StateClass.AVERAGED_APART:
        return (
            "would be averaged apart, which isn't done yet: make it fixed if training "
            "leaves it alone, kept if each round may begin with the value it has now, "
            "trained if it may use up the norm bound and have the same precision"
        )
    return None
