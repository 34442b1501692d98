"""Learning rates that are scaled while torch is inside one step, and put back by value on every path out of it."""

import sys
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_calib.steps.step_record import StepRates


def rate_of(group: dict[str, Any]) -> float | Tensor | None:
    """A copy of the learning rate of a param group; None where the optimizer finds its step by itself."""
    rate = group.get("lr")
    return rate.detach().clone() if isinstance(rate, Tensor) else None if rate is None else float(rate)


def with_inner(optimizer: Optimizer) -> list[Optimizer]:
    """An optimizer, and those that it wraps."""
    found = [optimizer]
    for one in found:  # grows on the way
        inner = [value for value in vars(one).values() if isinstance(value, Optimizer)]
        found += [value for value in inner if all(value is not known for known in found)]
    return found


def rates_in_use(optimizer: Optimizer, scaler: Any | None) -> StepRates:
    """The rates that this step uses, before schedulers and the GradScaler change them at the end of the batch."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    rate = rate_of(group)
    effective = None if rate is None else rate * group.get("d", 1.0)
    return StepRates(rate, effective, float(scaler.get_scale()) if scaler is not None else None)


class Scaled:
    """The learning rate of one param group while a scaled one is in its place.

    Attributes:
        group: The param group itself.
        rate: What stood there: a number, or the tensor that is scaled in place.
        pure: Its value before.
        given: Its value as the optimizer gets it.
    """

    group: dict[str, Any]
    rate: Any
    pure: Any
    given: Any

    def __init__(self, group: dict[str, Any]) -> None:
        self.group, self.rate = group, group["lr"]
        self.pure, self.given = _copy(self.rate), _copy(self.rate)

    def kept(self, now: Any) -> Any:
        """The pure value again; where the optimizer has made another of the given one, in the same proportion."""
        parts = (now, self.given, self.pure)
        like = next((part for part in parts if isinstance(part, Tensor)), None)
        if like is None:
            return _kept(*parts)
        tensors = (part if isinstance(part, Tensor) else torch.full_like(like, part) for part in parts)
        found = _kept_tensor(*tensors)
        return found.to(now) if isinstance(now, Tensor) else float(found)

    @property
    def settled(self) -> Any:
        """What its group will hold when the step is over."""
        return self.kept(self.group["lr"])


class ScaledRates:
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
        self.scaled: dict[int, Scaled] = {}  # by the group's identity, while scaled rates are in place
        self.handles: list[Any] = []

    def attach(self) -> None:
        """Register torch's hooks."""
        optimizer = self.optimizer
        self.handles = [
            optimizer.register_step_pre_hook(lambda *_: self._enter()),
            optimizer.register_step_post_hook(lambda *_: self._leave()),
            *(one.register_state_dict_post_hook(self._purify) for one in self.saving()),
        ]

    def saving(self) -> list[Optimizer]:
        """Where what is saved can be seen: a wrapper that skips ``Optimizer.__init__`` saves the optimizer inside."""
        return [one for one in with_inner(self.optimizer) if hasattr(one, "_optimizer_state_dict_post_hooks")]

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
        if self.scaled:
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
        groups, shared = self.optimizer.param_groups, set[int]()
        self.scaled = {id(group): Scaled(group) for group in groups if id(group) not in self.scaled} | self.scaled
        for group, factor in zip(groups, factors, strict=True):
            one, rate = self.scaled[id(group)], group["lr"]
            one.given = _multiplied(one.given, factor)
            if not isinstance(rate, Tensor) or id(rate) not in shared:
                group["lr"] = _multiplied(rate, factor)
                shared.add(id(rate))

    @torch.no_grad()
    def _restore(self) -> None:
        found = [(one, one.settled, one.kept(one.rate)) for one in self.scaled.values()]
        for one, settled, rate in found:
            if not (isinstance(one.rate, Tensor) and one.group["lr"] is one.rate):
                one.group["lr"] = settled
            if isinstance(one.rate, Tensor):
                one.rate.copy_(rate)  # in place: the tensor's identity matters to compiled and captured steps
        self.scaled = {}

    @torch.no_grad()
    def _purify(self, optimizer: Optimizer, saved: dict[str, Any]) -> None:
        for group, packed in zip(optimizer.param_groups, saved["param_groups"], strict=False):
            if id(group) in self.scaled:
                packed["lr"] = self.scaled[id(group)].settled


def _depth() -> int:
    frame, depth = sys._getframe(), 0
    while frame.f_back is not None:
        frame, depth = frame.f_back, depth + 1
    return depth


def _copy(rate: Any) -> Any:
    return rate.detach().clone() if isinstance(rate, Tensor) else rate


def _multiplied(rate: Any, factor: float | Tensor) -> Any:
    return rate.mul_(factor) if isinstance(rate, Tensor) else rate * float(factor)


def _kept(now: Any, given: Any, pure: Any) -> Any:
    """A factor of zero leaves no proportion to keep: what was written then stays as it is."""
    if now == given or (now != now and given != given):
        return pure
    return now if given in (0, pure) else now / given * pure


def _kept_tensor(now: Tensor, given: Tensor, pure: Tensor) -> Tensor:
    """The same without a wait for the device."""
    alike = (now == given) | (now.isnan() & given.isnan())
    changed = torch.where((given == 0) | (given == pure), now, now / given * pure)
    return torch.where(alike, pure, changed)


def _least(one: float | Tensor, other: float | Tensor) -> float | Tensor:
    return torch.minimum(torch.as_tensor(one), torch.as_tensor(other))
