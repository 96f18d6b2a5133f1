"""A torch module's state as numpy arrays by name, and back.

Both agents that train a model and consumers that export it need this, and neither may
import the other. It works on any `torch.nn.Module` through the module's own methods, so
this file doesn't import torch.

The whole state is read and written, in its own types; the model says what of it is
exchanged (`protocol.exchanged_state`). What no array can hold is refused.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

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


class StateMismatchError(ValueError):
    """The tensors aren't this module's: other names, shapes or types."""


def make_model(module: Any, rules: Sequence[tuple[str, StateClass]] = ()) -> Model:
    """Return a module's state as a model, each entry with its class.

    Args:
        module: A `torch.nn.Module`.
        rules: Classes by pattern of names, before those by kind.

    Raises:
        RefusedStateError: The state, or a part of it, can't be exchanged.
    """
    tensors = read_state(module)
    has_gradient = {
        name: parameter.requires_grad
        for name, parameter in module.named_parameters(remove_duplicate=False)
    }
    of_parameter = {True: Kind.LEARNED, False: Kind.FROZEN, None: Kind.BUFFER}
    kinds = {name: of_parameter[has_gradient.get(name)] for name in tensors}
    return Model(tensors, classify(tensors, kinds, rules))


def read_state(module: Any) -> dict[str, NDArray[Any]]:
    """Copy a module's state.

    Args:
        module: A `torch.nn.Module`, on any device.

    Returns:
        Copies as arrays by name, sorted by name, of the module's own types.

    Raises:
        RefusedStateError: No array can hold an entry.
    """
    return {
        name: np.array(_view(name, entry))
        for name, entry in sorted(_list_entries(module).items())
    }


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
            another type; the module is unchanged.
        RefusedStateError: No array can hold an entry of the module.
    """
    entries = _list_entries(module)
    arrays = {name: _view(name, entry) for name, entry in entries.items()}
    expected = {name: (a.shape, str(a.dtype)) for name, a in arrays.items()}
    found = {name: (a.shape, str(a.dtype)) for name, a in tensors.items()}
    if expected != found:
        differing = sorted({*expected.items()} ^ {*found.items()})
        raise StateMismatchError(f"not this module's state: {differing}")
    for name, entry in entries.items():
        # state_dict's entries share the module's memory, detached from autograd.
        entry.copy_(entry.new_tensor(tensors[name]))


def _list_entries(module: Any) -> Mapping[str, Any]:
    try:
        entries: Mapping[str, Any] = module.state_dict()
    except _ERRORS as error:
        msg = f"the module gives no state: {type(error).__name__}: {error}"
        raise RefusedStateError(msg) from None
    return entries


def _view(name: str, entry: Any) -> NDArray[Any]:
    """Return an entry as an array, which may share its memory."""
    try:
        array: NDArray[Any] = entry.detach().cpu().numpy()
    except _ERRORS:  # bfloat16, sparse, quantised, not made yet, or no tensor at all
        what = getattr(entry, "dtype", type(entry).__name__)
        msg = f"entry {name!r:.100} of the module's state is {what}: no array holds it"
        raise RefusedStateError(msg) from None
    return array
