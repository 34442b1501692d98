"""Learning rates that are scaled while torch is inside one step, and put back by value on every path out of it."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Rates:
    """The learning rates of one optimizer; schedulers, loggers and checkpoints only ever see the pure ones.

    torch's step hooks frame the time in which the scaled rates are in place. Without a GradScaler our own hook runs
    inside of that frame and the factors are applied at once. With one it runs before, and they wait for the frame; if
    the GradScaler skips the step, there is no frame and they lapse. Frames may be nested: an optimizer whose ``step``
    calls that of its base class runs the hooks of both.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.frames: list[int] = []  # how deep in the stack each step that is under way was called
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
        self.reset()
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def reset(self) -> None:
        """Outside of every step: put back what an exception in one may have left, if the user's code caught it."""
        self.lapse()
        self.frames = []

    def lapse(self) -> None:
        """A step begins, of which no factor is known yet: whatever is there is of one that never came to its end."""
        self._restore()
        self.pending = None

    def scale(self, factors: list[float | Tensor]) -> list[float | Tensor]:
        """Multiply each group's rate for this step; further calls in the same step multiply again.

        Returns:
            The factors as they are used: a tensor that several groups share takes the least of theirs, once.
        """
        factors = self._agreed(factors)
        if self.frames:
            self._apply(factors)
        elif self.pending is None:
            self.pending = factors
        else:
            self.pending = [a * b for a, b in zip(self.pending, factors, strict=True)]
        return factors

    def _agreed(self, factors: list[float | Tensor]) -> list[float | Tensor]:
        groups, least = self.optimizer.param_groups, dict[int, float | Tensor]()
        for group, factor in zip(groups, factors, strict=True):
            rate = id(group["lr"])
            if isinstance(group["lr"], Tensor) and group["params"]:
                least[rate] = _least(least[rate], factor) if rate in least else factor
        return [least.get(id(group["lr"]), factor) for group, factor in zip(groups, factors, strict=True)]

    def _enter(self) -> None:
        self.frames.append(_depth())
        if self.pending is not None:
            self._apply(self.pending)
            self.pending = None

    def _leave(self) -> None:
        depth = _depth()
        self.frames = [frame for frame in self.frames if frame < depth]  # without those that an exception has left
        if not self.frames:
            self.lapse()

    @torch.no_grad()
    def _apply(self, factors: list[float | Tensor]) -> None:
        groups = self.optimizer.param_groups
        if not self.pure:
            self.pure = [_copy(group["lr"]) for group in groups]
        scaled: set[int] = set()
        for group, factor in zip(groups, factors, strict=True):
            rate = group["lr"]
            if not isinstance(rate, Tensor):
                group["lr"] = rate * float(factor)
            elif id(rate) not in scaled:
                scaled.add(id(rate))
                rate.mul_(factor)

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


def _depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def _copy(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _least(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    return torch.minimum(torch.as_tensor(one), torch.as_tensor(other))
