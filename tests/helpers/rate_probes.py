"""Rules that do the same on every run, an optimizer that tells which rate it used, and who saw which rate when."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from helpers.tiny_modules import Rows, Tiny, fit
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import Tensor

from lightning_calib.schedules.rule import LearningRateRule, Measurement


class Counted(NamedTuple):
    steps: Tensor


@dataclass(frozen=True)
class Halves(LearningRateRule):
    """Half the rate on some steps, counted by calls."""

    first: int = 3
    last: int = 5

    def init(self, norms: Tensor) -> Counted:
        return Counted(torch.zeros((), dtype=torch.long, device=norms.device))

    def __call__(self, measurement: Measurement, state: Counted) -> tuple[Tensor, Counted]:
        now = (state.steps >= self.first) & (state.steps <= self.last)
        return torch.where(now, 0.5, torch.ones_like(measurement.norms)), Counted(state.steps + 1)


@dataclass(frozen=True)
class Always(LearningRateRule):
    """The same factors on every step: one for all groups, or one each."""

    factors: tuple[float, ...] = (1.0,)

    def init(self, norms: Tensor) -> Counted:
        return Counted(torch.zeros((), dtype=torch.long, device=norms.device))

    def __call__(self, measurement: Measurement, state: Counted) -> tuple[Tensor, Counted]:
        factors = torch.tensor(self.factors, dtype=measurement.norms.dtype)
        return factors.expand_as(measurement.norms).clone(), Counted(state.steps + 1)


@dataclass(frozen=True)
class Told(Always):
    """Writes down what it is told in steps; when it is laid, it is tried with numbers that are all 1."""

    needs_loss = True
    needs_distance = True

    def __post_init__(self) -> None:
        _HEARD[id(self)] = []

    @property
    def heard(self) -> list[Measurement]:
        return _HEARD[id(self)]

    def __call__(self, measurement: Measurement, state: Counted) -> tuple[Tensor, Counted]:
        if not all(bool((value == 1).all()) for value in measurement):
            self.heard.append(Measurement(*(value.clone() for value in measurement)))
        return super().__call__(measurement, state)


_HEARD: dict[int, list[Measurement]] = {}  # beside the rules, which are frozen


class Tells(torch.optim.Optimizer):
    """Plain gradient descent that writes down each group's rate at the moment when it uses it."""

    def __init__(self, params: Any, lr: float | Tensor = 0.05, fused: bool = False, fails: int = -1) -> None:
        self.used: list[list[float]] = []
        self.fails = fails
        super().__init__(params, {"lr": lr, "momentum": 0.0})
        if fused:  # only the flag by which Lightning and GradScaler know such optimizers
            self._step_supports_amp_scaling = True

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.used.append([float(group["lr"]) for group in self.param_groups])
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    if p.grad is not None:
                        p.sub_(p.grad * group["lr"])
        if len(self.used) == self.fails:
            raise RuntimeError("out of memory")
        return loss


class Watch(Callback):
    """Every learning rate that anybody outside of torch's step can see."""

    def __init__(self) -> None:
        self.seen: list[tuple[Any, ...]] = []

    def _look(self, trainer: Any) -> None:
        last = [config.scheduler.get_last_lr() for config in trainer.lr_scheduler_configs]
        now = [[float(group["lr"]) for group in one.param_groups] for one in trainer.optimizers]
        saved = [[float(group["lr"]) for group in one.state_dict()["param_groups"]] for one in trainer.optimizers]
        self.seen.append((trainer.global_step, [[float(rate) for rate in rates] for rates in last], now, saved))

    def on_train_batch_start(self, trainer: Any, *args: Any) -> None:
        self._look(trainer)

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        self._look(trainer)

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        rates = [float(group["lr"]) for group in optimizer.state_dict()["param_groups"]]
        self.seen.append((trainer.global_step, rates))

    def on_exception(self, trainer: Any, *args: Any) -> None:
        self._look(trainer)


class Scheduled(Tiny):
    """Tiny with a scheduler; `breaks` raises in the module's own hook, when all callbacks have acted."""

    def __init__(
        self, scheduler: Any = None, config: dict[str, Any] | None = None, breaks: int = -1, **kwargs: Any
    ) -> None:
        super().__init__(kwargs.pop("optimizer", Tells), **kwargs)
        self.scheduler, self.config, self.breaks = scheduler or slowing, config or {}, breaks

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor | None:
        # not the loss: the weights of the two runs differ
        self.log("plateau", torch.tensor([3.0, 2.0, 2.5, 2.6, 2.7][self.trainer.global_step % 5]))
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.trainer.global_step == self.breaks:
            raise RuntimeError("broken in the step")

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        config = {"scheduler": self.scheduler(optimizer), "interval": "step", **self.config}
        return {"optimizer": optimizer, "lr_scheduler": config}


slowing = partial(torch.optim.lr_scheduler.ExponentialLR, gamma=0.9)


class Run(NamedTuple):
    """One fit: what everybody saw, what the optimizer used, what was logged."""

    seen: list[tuple[Any, ...]]
    monitored: list[float]
    used: list[list[float]]
    rows: Rows
    module: Tiny
    trainer: Any


def run(module: Tiny, callbacks: Any = (), steps: int = 10, **kwargs: Any) -> Run:
    watch, monitor, rows = Watch(), LearningRateMonitor("step"), Rows()
    kwargs = {"limit_train_batches": 3, "log_every_n_steps": 1, "logger": rows} | kwargs
    trainer = fit(module, [*callbacks, watch, monitor], steps, **kwargs)
    monitored = [rate for name in sorted(monitor.lrs) for rate in monitor.lrs[name]]
    return Run(watch.seen, monitored, getattr(trainer.optimizers[0], "used", []), rows, module, trainer)


def pure(found: Run) -> list[float]:
    """The first group's rate at the start of each batch."""
    whole = [entry for entry in found.seen if len(entry) == 4]
    return [entry[2][0][0] for entry in whole[::2]]
