"""Optimizers that are out of the ordinary."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

Closure = Callable[[], Any] | None


class Unrated(Optimizer):
    """Normalised descent with a step of its own: no learning rate, or ``lr=None``."""

    def __init__(self, params: Any, **defaults: Any) -> None:
        super().__init__(params, defaults)

    def step(self, closure: Closure = None) -> Any:
        loss = None if closure is None else evaluated(closure)
        for p in tensors(self):
            if p.grad is not None:
                p.data.sub_(0.02 * p.grad / p.grad.norm().clamp(min=1e-6))
        return loss


class Frees(torch.optim.SGD):
    """Gives the memory of its gradients back within the step."""

    def step(self, closure: Closure = None) -> Any:
        loss = super().step(closure)
        for p in tensors(self):
            p.grad = None
        return loss


class Grows(torch.optim.SGD):
    """Its rate grows by a fiftieth with every step that it takes; tells which one it ``used``."""

    used: list[float]

    def step(self, closure: Closure = None) -> Any:
        loss = super().step(closure)
        self.used = [float(group["lr"]) for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] *= 1.02
        return loss


class Around(Optimizer):
    """Wraps an optimizer, skips ``Optimizer.__init__``, and has nothing of torch's hooks."""

    def __init__(self, inner: Optimizer) -> None:
        self.inner = inner
        self.param_groups, self.state, self.defaults = inner.param_groups, inner.state, inner.defaults

    def step(self, closure: Closure = None) -> Any:
        return self.inner.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.inner.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return self.inner.state_dict()


class AroundWithHooks(Around):
    """The same with the hooks of the step, as those of `pytorch_optimizer` have them."""

    def __init__(self, inner: Optimizer) -> None:
        super().__init__(inner)
        self._optimizer_step_pre_hooks: dict[int, Any] = OrderedDict()
        self._optimizer_step_post_hooks: dict[int, Any] = OrderedDict()
        self._patch_step_function()


def evaluated(closure: Callable[[], Any]) -> Any:
    with torch.enable_grad():
        return closure()


def tensors(optimizer: Optimizer) -> list[torch.Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]
