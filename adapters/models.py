"""A torch module's state as numpy arrays by name, and back.

Both the agents that train a model and the consumers that export it need this, and
neither may import the other. It works on any `torch.nn.Module` through the module's own
methods, so this file doesn't import torch.

Only floating-point entries are exchanged: parameters and buffers such as a batch norm's
running mean, but not its integer counter.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray


class StateMismatchError(ValueError):
    """The tensors aren't those of this module: other names or other shapes."""


def read_state(module: Any) -> dict[str, NDArray[np.float32]]:
    """Copy a module's floating-point state.

    Args:
        module: A `torch.nn.Module`, on any device and of any precision.

    Returns:
        float32 arrays by name, sorted by name; copies.
    """
    return {
        name: np.array(entry.float().cpu().numpy(), dtype=np.float32)
        for name, entry in sorted(module.state_dict().items())
        if entry.is_floating_point()
    }


def write_state(
    module: Any,
    tensors: Mapping[str, NDArray[np.float32]],
) -> None:
    """Set a module's floating-point state in place.

    Args:
        module: A `torch.nn.Module`.
        tensors: Exactly its floating-point entries by name, float32.

    Raises:
        StateMismatchError: A tensor is missing, unexpected or of another shape; the
            module is unchanged.
    """
    entries = {
        name: entry
        for name, entry in module.state_dict().items()
        if entry.is_floating_point()
    }
    shapes = {name: tuple(entry.shape) for name, entry in entries.items()}
    found = {name: tuple(array.shape) for name, array in tensors.items()}
    if shapes != found:
        differing = sorted({*shapes.items()} ^ {*found.items()})
        msg = f"not this module's state: {differing}"
        raise StateMismatchError(msg)
    for name, entry in entries.items():
        # state_dict's entries share the module's memory, detached from autograd.
        entry.copy_(entry.new_tensor(tensors[name]))
