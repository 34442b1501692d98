"""Modules with parameters, groups and optimizers that are out of the ordinary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from modes.models import ADAMW, Net
from torch import Tensor, nn


class Split(Net):
    """One loss, two optimizers: what ``belongs`` names goes to the first."""

    def __init__(self, first: Callable[..., Any], second: Callable[..., Any] = ADAMW, **kwargs: Any) -> None:
        super().__init__(first, **kwargs)
        self.second = second
        self.automatic_optimization = False

    def belongs(self, name: str, parameter: Tensor) -> bool:
        return parameter.ndim > 1

    def training_step(self, batch: Any, batch_idx: int) -> None:
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(self.loss(self.net, batch) * self.gain(batch_idx))
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self) -> Any:
        named = list(self.named_parameters())
        mine = [p for n, p in named if self.belongs(n, p)]
        return self.optimizer(mine), self.second([p for n, p in named if not self.belongs(n, p)])


class Words(Split):
    """An embedding with sparse gradients beside the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(2)
            self.table = nn.Embedding(9, 1, sparse=True)

    def belongs(self, name: str, parameter: Tensor) -> bool:
        return name.startswith("table")

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        rows = (x[:, 0].abs() * 2).long().clamp(max=8)
        return nn.functional.mse_loss(net(x) + self.table(rows) + self.table(rows.flip(0)), y)


class Odd(Net):
    """Unused, frozen, tied, empty and sometimes missing parameters."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(3)
            self.unused, self.frozen, self.sometimes = nn.Linear(2, 2), nn.Linear(4, 1), nn.Linear(4, 1)
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.frozen.requires_grad_(False)
        self.two.weight = self.one.weight
        self.empty = nn.Parameter(torch.empty(0, 3))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        out = self.net(x) + self.frozen(x) + self.two(torch.tanh(self.one(x))).mean(1, keepdim=True)
        out = out + self.sometimes(x) if batch_idx % 2 else out
        return (nn.functional.mse_loss(out, y) + self.empty.sum()) * self.gain(batch_idx)


class Complex(Net):
    """A complex weight beside the network."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        generator = torch.Generator().manual_seed(4)
        self.spectrum = nn.Parameter(0.1 * torch.randn(4, 3, dtype=torch.complex64, generator=generator))

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(net(x) + (x.to(torch.complex64) @ self.spectrum).abs().mean(1, True), y)


class Grouped(Net):
    """Three groups with options of their own, one of them without parameters."""

    def configure_optimizers(self) -> Any:
        matrices = [p for p in self.parameters() if p.ndim > 1]
        vectors = [p for p in self.parameters() if p.ndim < 2]
        groups = [{"params": vectors, "lr": 0.02}, {"params": matrices, "weight_decay": 0.1}, {"params": []}]
        return self.optimizer(groups)
