"""Modules and observers for the guard: numbered micro-batches, some of them poisoned, copies of what must not move."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from helpers.tiny_modules import SGD, Tiny, TwoNets, network
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

MOMENTUM = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=0.01)
ADAM = partial(torch.optim.Adam, lr=1e-2)
FUSED = partial(torch.optim.AdamW, lr=1e-2, fused=True)


class Micro(Tiny):
    """Automatic optimization; the i-th micro-batch of the run has the data (and the gain) number ``order[i]``."""

    def __init__(
        self,
        optimizer: Callable[..., torch.optim.Optimizer] = SGD,
        order: Iterable[int] = range(12),
        gains: dict[int, float | None] | None = None,
        net: Callable[[], nn.Module] = network,
    ) -> None:
        super().__init__(optimizer, gains, net)
        self.order = list(order)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.loss(self.net, self.order[batch_idx])

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(len(self.order)))


class MicroTwoNets(TwoNets):
    """The same by hand, for two networks; a gain of None leaves the first alone; the second is never poisoned."""

    def __init__(self, first: Callable, second: Callable, order: Iterable[int], gains: dict, window: int) -> None:
        super().__init__(first, second, gains)
        self.order, self.window = list(order), window

    def training_step(self, batch: Tensor, batch_idx: int) -> None:
        step = self.order[batch_idx]
        for optimizer, net, number in zip(self.optimizers(), (self.net, self.other), (step, step + 500), strict=True):
            if self.gains.get(number, 1.0) is None:
                continue
            if batch_idx % self.window == 0:
                optimizer.zero_grad()
            self.manual_backward(self.loss(net, number) / self.window)
            if (batch_idx + 1) % self.window == 0:
                optimizer.step()

    def train_dataloader(self) -> DataLoader:
        return DataLoader(torch.arange(len(self.order)))


class Unmoved(Callback):
    """Copies weights and optimizer state around every batch; ``moved[i]`` says which optimizers changed theirs."""

    def __init__(self) -> None:
        self.moved: list[list[bool]] = []
        self.scales: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        self.before = everything(trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        after = everything(trainer)
        self.moved.append([not equal(old, new) for old, new in zip(self.before, after, strict=True)])
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scales.append(scaler.get_scale() if scaler is not None else 1.0)


def everything(trainer: Trainer) -> list[Any]:
    """Per optimizer: its weights and its state."""
    return [
        (copy.deepcopy([p.detach() for g in one.param_groups for p in g["params"]]), copy.deepcopy(one.state_dict()))
        for one in trainer.optimizers
    ]


def equal(old: Any, new: Any) -> bool:
    """Whether two nested values have the same bits."""
    if isinstance(old, Tensor):
        return bool(torch.equal(old, new))
    if isinstance(old, dict):
        return list(old) == list(new) and all(equal(old[key], new[key]) for key in old)
    if isinstance(old, (list, tuple)):
        return len(old) == len(new) and all(map(equal, old, new))
    return bool(old == new)


class Plant(Callback):
    """Writes values into the gradient of named tensors after the backward pass of given steps."""

    def __init__(self, at: dict[int, dict[str, list[float]]]) -> None:
        self.at = at

    def plant(self, trainer: Trainer, pl_module: LightningModule) -> None:
        named = dict(pl_module.named_parameters())
        for name, values in self.at.get(trainer.global_step, {}).items():
            named[name].grad.view(-1)[: len(values)] = torch.tensor(values)

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.plant(trainer, pl_module)


class PlantInStep(Plant):
    """The same where a foreign callback would do it: at its turn before the step."""

    def on_after_backward(self, *_: Any) -> None:
        return

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.plant(trainer, pl_module)


def every(name: str, steps: Iterable[int], values: Iterable[float] = (math.nan,)) -> dict[int, dict[str, list[float]]]:
    """For ``Plant``: the same values into one tensor at several steps."""
    return {step: {name: list(values)} for step in steps}


def finite(module: nn.Module) -> bool:
    """Whether all weights and buffers are."""
    return all(bool(value.isfinite().all()) for value in module.state_dict().values())


def incidents(lines: Iterable[str]) -> list[str]:
    """The guard's lines."""
    return [line for line in lines if "the gradient is not finite" in line]
