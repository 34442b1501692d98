"""Learning rates that are scaled while torch is inside one step, and put back by value on every path out of it."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Rates:
    """The learning rates of one optimizer; schedulers, loggers and checkpoints only ever see the pure ones.

    torch's step hooks frame the time in which the scaled rates are in place. Without a GradScaler our own hook runs
    inside of that frame and the factors are applied at once. With one it runs before, and they wait for the frame; if
    the GradScaler skips the step, there is no frame and they lapse.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.inside = False
        self.pending: list[float | Tensor] | None = None
        self.pure: list[Any] = []  # by group, while scaled rates are in place
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Register torch's hooks."""
        optimizer = self.optimizer
        self.handles = [
            optimizer.register_step_pre_hook(lambda *_: self._enter()),
            optimizer.register_step_post_hook(lambda *_: self._leave()),
            optimizer.register_state_dict_post_hook(lambda _, saved: self._purify(saved)),
        ]

    def detach(self) -> None:
        """Put the rates back and remove the hooks."""
        self._leave()
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def lapse(self) -> None:
        """Forget factors whose step never came."""
        self.pending = None

    def scale(self, factors: list[float | Tensor]) -> None:
        """Multiply each group's rate for this step; further calls in the same step multiply again."""
        if self.inside:
            self._apply(factors)
        elif self.pending is None:
            self.pending = factors
        else:
            self.pending = [a * b for a, b in zip(self.pending, factors, strict=True)]

    def _enter(self) -> None:
        self._restore()  # what an exception inside the last step may have left
        self.inside = True
        if self.pending is not None:
            self._apply(self.pending)
            self.pending = None

    def _leave(self) -> None:
        self._restore()
        self.inside, self.pending = False, None

    @torch.no_grad()
    def _apply(self, factors: list[float | Tensor]) -> None:
        groups = self.optimizer.param_groups
        if not self.pure:
            self.pure = [_copy(group["lr"]) for group in groups]
        smallest: dict[int, float | Tensor] = {}  # a tensor that several groups share is scaled once
        for group, factor in zip(groups, factors, strict=True):
            rate = group["lr"]
            if not isinstance(rate, Tensor):
                group["lr"] = rate * float(factor)
                continue
            known = smallest.get(id(rate))
            smallest[id(rate)] = factor if known is None else _least(known, factor)
        for rate in {id(group["lr"]): group["lr"] for group in groups if isinstance(group["lr"], Tensor)}.values():
            rate.mul_(smallest[id(rate)])

    @torch.no_grad()
    def _restore(self) -> None:
        for group, rate in zip(self.optimizer.param_groups, self.pure, strict=False):
            if isinstance(group["lr"], Tensor):
                group["lr"].copy_(rate)  # in place: the tensor's identity matters to compiled and captured steps
            else:
                group["lr"] = rate
        self.pure = []

    def _purify(self, saved: dict[str, Any]) -> None:
        for group, rate in zip(saved["param_groups"], self.pure, strict=False):
            group["lr"] = _copy(rate)


def _copy(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _least(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    return torch.minimum(torch.as_tensor(one), torch.as_tensor(other))
