"""The proximal term in local training: it pulls trained entries back to the base model.

Adds mu/2 times the squared distance from the base model to the loss, as its gradient,
mu times the distance, right before an optimiser's step. So it holds whatever the module
does: automatic or manual optimisation, several optimisers, gradients of several batches
added up, optimisers that compute the loss again themselves.

Source: Li et al. 2020 (arXiv:1812.06127), equation 2. Importing this module loads
torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any

import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from torch.optim.optimizer import (
    Optimizer,
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from adapters.lightning import TaskError


class ProximalTerm(Callback):
    """Adds the term in one training.

    Args:
        weight: mu, above 0.
        names: Names of the entries that are held back: those that are trained.
    """

    def __init__(self, weight: float, names: Collection[str]) -> None:
        self._weight = weight
        self._names = names
        self._anchors: dict[int, torch.Tensor] = {}
        self._depth = 0  # optimisers wrap others: the outermost step counts
        self._hooks: list[Any] = []

    def on_train_start(self, _: Trainer, pl_module: LightningModule) -> None:
        """Remember where the trained entries are, which is the base model."""
        parameters = pl_module.named_parameters(remove_duplicate=False)
        self._anchors = {
            id(parameter): parameter.detach().clone()
            for name, parameter in parameters
            if name in self._names
        }
        # Not Lightning's hook: a module may step torch's optimiser itself.
        self._hooks = [
            register_optimizer_step_pre_hook(self._before_step),
            register_optimizer_step_post_hook(self._after_step),
        ]

    def on_train_batch_start(self, *_: Any) -> None:
        """Begin anew: the last batch may have caught what a step raised."""
        self._depth = 0

    def on_train_end(self, *_: Any) -> None:
        """Let other optimisers of this process be."""
        self._let_go()

    def on_exception(self, *_: Any) -> None:
        """Do the same if training fails."""
        self._let_go()

    def _let_go(self) -> None:
        while self._hooks:
            self._hooks.pop().remove()

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if not self._is_ours(optimizer):
            return None
        self._depth += 1
        if self._depth > 1:
            return None
        # The optimiser is the first argument; a closure makes the gradients in the
        # step.
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._add_gradient(optimizer)
            return None
        wrapped = self._wrap(optimizer, closure)
        if len(args) > 1:
            return (args[0], wrapped, *args[2:]), kwargs
        return args, {**kwargs, "closure": wrapped}

    def _after_step(self, optimizer: Optimizer, *_: Any) -> None:
        if self._is_ours(optimizer):
            self._depth -= 1

    def _wrap(
        self, optimizer: Optimizer, closure: Callable[[], Any]
    ) -> Callable[[], Any]:
        def compute() -> Any:
            loss = closure()
            self._add_gradient(optimizer)
            return loss

        return compute

    def _is_ours(self, optimizer: Optimizer) -> bool:
        return any(id(p) in self._anchors for p in _list_parameters(optimizer))

    @torch.no_grad()
    def _add_gradient(self, optimizer: Optimizer) -> None:
        for parameter in _list_parameters(optimizer):
            anchor = self._anchors.get(id(parameter))
            if anchor is None or not parameter.requires_grad:
                continue
            distance = parameter - anchor
            if parameter.grad is None:
                parameter.grad = distance.mul_(self._weight)
            elif parameter.grad.is_sparse:
                raise TaskError(
                    "a proximal term has a gradient for every value: a layer with "
                    "sparse gradients cannot have one, such as Embedding(sparse=True)"
                )
            else:
                parameter.grad.add_(distance, alpha=self._weight)


def _list_parameters(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
