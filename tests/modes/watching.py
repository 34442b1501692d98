"""Two foreign callbacks around ours: they copy what ours saw, what it left, and the rate that torch then used."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback
from oracles import Array, to_numpy


@dataclass
class Step:
    """One optimizer step; gradients are unscaled, and of a whole window of micro-batches."""

    index: int
    batch: int
    fresh: bool
    tensors: list[torch.Tensor]
    before: list[Array | None]
    weights: list[Array]
    groups: list[list[int]]
    rates: list[float]
    after: list[Array | None] = field(default_factory=list)
    used: list[float] = field(default_factory=list)
    moved: bool = False


class First(Callback):
    """Stands before ours."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.backwards, self.left_over, self.batch_idx = 0, 0, 0

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        for optimizer in trainer.optimizers:  # before ours registers its own, which puts the rates back
            if hasattr(optimizer, "_optimizer_step_post_hooks"):
                optimizer.register_step_post_hook(self._stepped)

    def _stepped(self, optimizer: Any, *_: Any) -> None:
        if self.steps:
            self.steps[-1].used = getattr(optimizer, "used", rates(optimizer))

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.batch_idx = batch_idx

    def on_after_backward(self, trainer: Any, pl_module: Any) -> None:
        self.backwards += 1

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        tensors = parameters(optimizer)
        groups = [[at(tensors, p) for p in group["params"]] for group in optimizer.param_groups]
        step = Step(
            next((i for i, one in enumerate(trainer.optimizers) if one is optimizer), 0),
            trainer.fit_loop.epoch_loop._batches_that_stepped,
            self.backwards > self.left_over or not pl_module.automatic_optimization,
            tensors,
            gradients(trainer, optimizer, self.window(trainer, pl_module)),
            [to_numpy(p) for p in tensors],
            groups,
            rates(optimizer),
        )
        self.left_over = self.backwards
        self.steps.append(step)

    def window(self, trainer: Any, pl_module: Any) -> float:
        """By the batch's number: the last window of an epoch may be short."""
        size = trainer.accumulate_grad_batches
        return size / (self.batch_idx % size + 1) if pl_module.automatic_optimization else 1.0

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        for step in self.steps:
            if step.batch == trainer.fit_loop.epoch_loop._batches_that_stepped:
                now = [to_numpy(p) for p in parameters(trainer.optimizers[step.index])]
                step.moved = any(bool((a != b).any()) for a, b in zip(step.weights, now, strict=True))


class Last(Callback):
    """Stands after ours."""

    def __init__(self, first: First) -> None:
        self.first = first

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        self.first.steps[-1].after = gradients(trainer, optimizer, self.first.window(trainer, pl_module))


def parameters(optimizer: Any) -> list[torch.Tensor]:
    """Each once, in the optimizer's order."""
    return list({id(p): p for group in optimizer.param_groups for p in group["params"]}.values())


def rates(optimizer: Any) -> list[float]:
    return [float("nan") if group.get("lr") is None else float(group["lr"]) for group in optimizer.param_groups]


def at(tensors: list[torch.Tensor], wanted: torch.Tensor) -> int:
    return next(i for i, one in enumerate(tensors) if one is wanted)


def gradients(trainer: Any, optimizer: Any, window: float) -> list[Array | None]:
    """In float64, divided by a scale that is still in them."""
    scaler, scale = getattr(trainer.precision_plugin, "scaler", None), 1.0
    if scaler is not None and scaler._per_optimizer_states[id(optimizer)]["stage"].name == "READY":
        scale = scaler.get_scale()
    copies = [None if p.grad is None else to_numpy(p.grad.coalesce() if p.grad.is_sparse else p.grad)
              for p in parameters(optimizer)]  # fmt: skip
    return [None if one is None else one * window / scale for one in copies]
