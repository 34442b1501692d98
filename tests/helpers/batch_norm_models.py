"""Small modules with BatchNorm, a loader with a short last batch, and the pooled statistics as an oracle."""

from __future__ import annotations

import copy
from typing import Any

import torch
from helpers.tiny_modules import make_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

EXACT = {"rtol": 1e-5, "atol": 1e-6}  # float32 forward passes in another grouping of the batches
X = torch.randn(30, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0]) + 2


def loader(x: Tensor = X, **kwargs: Any) -> DataLoader:
    return DataLoader(TensorDataset(x), **{"batch_size": 8, **kwargs})


def dense(**kwargs: Any) -> nn.Sequential:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(
            nn.BatchNorm1d(4, **kwargs), nn.Linear(4, 6), nn.BatchNorm1d(6, **kwargs), nn.Tanh(), nn.Linear(6, 1)
        )


class Net(LightningModule):
    def __init__(self, net: nn.Module | None = None) -> None:
        super().__init__()
        self.net = dense() if net is None else net
        self.validated: list[dict[str, Tensor]] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.validated.append(statistics(self))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05)


def fit(
    module: LightningModule,
    *callbacks: Callback,
    train: Any = None,
    val: Any = None,
    max_epochs: int = 1,
    ckpt_path: str | None = None,
    **kwargs: Any,
) -> Trainer:
    kwargs = {"max_steps": -1, "max_epochs": max_epochs, "num_sanity_val_steps": 0, **kwargs}
    trainer = make_trainer(callbacks, **kwargs)
    trainer.fit(module, loader() if train is None else train, val, ckpt_path=ckpt_path)
    return trainer


def statistics(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.named_buffers() if "running_" in name}


def population(module: Net, seen: Any = None) -> dict[str, Tensor]:
    """Every BatchNorm's pooled statistics in float64, by running each batch and keeping what reaches the layer."""
    net, inputs = copy.deepcopy(module.net).train(), {}
    for name, layer in net.named_modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            inputs[name] = []
            layer.register_forward_pre_hook(lambda _, args, name=name: inputs[name].append(args[0].double()))
    for (x,) in loader() if seen is None else seen:
        net(x)
    found = {}
    for name, parts in inputs.items():
        channels = torch.cat([x.detach().transpose(0, 1).flatten(1) for x in parts], dim=1)
        found[f"net.{name}.running_mean"] = channels.mean(1).float()
        found[f"net.{name}.running_var"] = channels.var(1, correction=0).float()
    return found


class Passes(Callback):
    """Counts what `forward` is handed, and where in the fit."""

    def __init__(self) -> None:
        self.at: list[tuple[int, int]] = []

    def __call__(self, module: LightningModule, batch: list[Tensor]) -> None:
        self.at.append((module.current_epoch, module.global_step))
        module.net(batch[0])
