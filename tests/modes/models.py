"""Small modules for the matrix: one network, trained in every way that a LightningModule can be."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

BATCHES, EPOCHS = 7, 2  # neither is a multiple of a window
# By number of the run's batches, what the loss is multiplied by: whole windows are small, spikes come after warm-ups.
GAINS = {1: 0.1, 2: 0.1, 3: 0.1, 6: 0.1, 8: 12.0, 11: 25.0}
POISON = (4, 8)
SGD = partial(torch.optim.SGD, lr=0.05)
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(8 * BATCHES, 4, generator=generator) * torch.tensor([1.0, 2.0, 0.5, 1.5]) + 0.5
    return TensorDataset(x, torch.randn(8 * BATCHES, 1, generator=generator))


def network(seed: int = 0) -> nn.Sequential:
    """BatchNorm first, so that its exact statistics are those of the data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.BatchNorm1d(4), nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 1))


class Body:
    """Regression; ``poison`` are the batches of the run whose loss is NaN, ``silent`` those without a loss."""

    gains = GAINS

    def __init__(
        self, optimizer: Callable[..., Any] = SGD, poison: Iterable[int] = (), silent: Iterable[int] = ()
    ) -> None:
        super().__init__()
        self.net, self.optimizer = network(), optimizer
        self.poison, self.silent = tuple(poison), tuple(silent)

    def gain(self, batch_idx: int) -> float:
        number = BATCHES * self.current_epoch + batch_idx
        return math.nan if number in self.poison else self.gains.get(number, 1.0)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        loss = self.loss(self.net, batch) * self.gain(batch_idx)
        return None if BATCHES * self.current_epoch + batch_idx in self.silent else loss

    def loss(self, net: nn.Module, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.mse_loss(net(x), y)

    def train_dataloader(self) -> DataLoader:
        return DataLoader(data(), batch_size=8)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.parameters())


class Net(Body, LightningModule):
    """Automatic optimization."""


class Manual(Net):
    """The same by hand, two micro-batches to a step."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        if batch_idx % 2 == 0:
            optimizer.zero_grad()
        self.manual_backward(self.loss(self.net, batch) * self.gain(batch_idx) / 2)
        if batch_idx % 2 == 1:
            optimizer.step()


class Adversaries(Net):
    """Two networks, two optimizers, toggled; the second one's loss goes through the first."""

    def __init__(self, first: Callable[..., Any] = SGD, second: Callable[..., Any] = ADAMW, **kwargs: Any) -> None:
        super().__init__(first, **kwargs)
        self.other, self.second = network(1), second
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        first, second = self.optimizers()
        for optimizer, net in ((first, self.net), (second, lambda x: self.net(x) + self.other(x))):
            self.toggle_optimizer(optimizer)
            optimizer.zero_grad()
            self.manual_backward(self.loss(net, batch) * self.gain(batch_idx))
            optimizer.step()
            self.untoggle_optimizer(optimizer)

    def configure_optimizers(self) -> Any:
        return self.optimizer(self.net.parameters()), self.second(self.other.parameters())


class Scheduled(Net):
    """A recursive scheduler per step."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Headless(Net):
    """No optimizer at all."""

    def configure_optimizers(self) -> None:
        return None


class Bypassing(Net):
    """Steps torch's own optimizer, past Lightning."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.automatic_optimization = False

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(self.net, batch) * self.gain(batch_idx))
        optimizer.step()


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation: an inner optimizer, and a step in two halves that Lightning does not know of."""

    def __init__(self, params: Any, **options: Any) -> None:
        super().__init__(params, options)
        self.inner = torch.optim.SGD(self.param_groups, **options)

    @torch.no_grad()
    def first_step(self) -> None:
        self.offsets = [(p, 0.05 * p.grad) for group in self.param_groups for p in group["params"]]
        for p, offset in self.offsets:
            p.add_(offset)

    @torch.no_grad()
    def second_step(self) -> None:
        for p, offset in self.offsets:
            p.sub_(offset)
        self.inner.step()


class Halves(Bypassing):
    """Calls them."""

    def training_step(self, batch: Any, batch_idx: int) -> None:
        optimizer = self.optimizers()
        for half in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            self.manual_backward(self.loss(self.net, batch) * self.gain(batch_idx))
            half()


class Validated(Net):
    """With data and steps for validation and test."""

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_loss", self.loss(self.net, batch))

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.log("test_loss", self.loss(self.net, batch))

    def val_dataloader(self) -> DataLoader:
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader:
        return self.train_dataloader()


class Configured(Net):
    """What a configuration file can build."""

    def __init__(self, lr: float = 0.05) -> None:
        super().__init__(partial(torch.optim.SGD, lr=lr))


class Searchable(Net):
    """What the Tuner wants to find."""

    def __init__(self, poison: Iterable[int] = ()) -> None:
        super().__init__(poison=poison)
        self.lr, self.batch_size = 0.05, 8

    def train_dataloader(self) -> DataLoader:
        return DataLoader(data(), batch_size=self.batch_size)

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Thawing(Net):
    """The optimizer gets what is not frozen; a `BaseFinetuning` adds the rest later."""

    def configure_optimizers(self) -> Any:
        return self.optimizer([p for p in self.parameters() if p.requires_grad])
