"""A step that is over holds no gradient: `zero_grad` frees it before the next backward pass needs as much again."""

import weakref

import pytest
import torch
from helpers.tiny_modules import make_trainer
from lightning.pytorch import LightningModule
from torch import nn

from lightning_calib import AGC, GradientClip, GradientMonitor, NonFiniteGuard


class Watching(LightningModule):
    """Counts, when a backward pass begins, the gradients of earlier steps that are still alive."""

    def __init__(self, manual: bool = False) -> None:
        super().__init__()
        self.layer, self.automatic_optimization = nn.Linear(3, 2), not manual
        self.refs: list[weakref.ref] = []
        self.alive: list[int] = []

    def training_step(self, batch, batch_idx):
        if self.automatic_optimization:
            return self.layer(batch).square().sum()
        for _ in range(2):
            self.optimizers().zero_grad()
            self.manual_backward(self.layer(batch).square().sum())
            self.optimizers().step()
        return None

    def on_before_backward(self, loss):
        self.alive.append(sum(ref() is not None for ref in self.refs))

    def on_after_backward(self):
        self.refs += [weakref.ref(one.grad) for one in self.parameters()]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)

    def train_dataloader(self):
        return torch.ones(6, 3).unsqueeze(1)


@pytest.mark.parametrize("manual", [False, True])
@pytest.mark.parametrize("every", [1, 100])
@pytest.mark.parametrize("make", [lambda: [GradientClip(0.1)], lambda: [NonFiniteGuard("skip"), AGC()], list])
def test_no_gradient_outlives_its_step(make, every, manual):
    module = Watching(manual)
    make_trainer([*make(), GradientMonitor(every)], 6, log_every_n_steps=every).fit(module)
    assert len(module.alive) >= 6
    assert not any(module.alive)
