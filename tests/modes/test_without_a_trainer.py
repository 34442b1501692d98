"""Loops that are not Lightning's: the function does there what the callback does under a Trainer."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import pytest
import torch
from helpers.tiny_modules import make_trainer, scaled
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from modes.models import Net, Searchable, data, network
from torch import nn
from torch.utils.data import DataLoader

from lightning_calib import GradientClip, MaxNorm, ZScore
from lightning_calib.functional import clip_grad_

POLICY = MaxNorm(1.5)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("scaler", [False, True])
def test_a_fabric_loop_ends_with_the_weights_of_the_trainers(fused: bool, scaler: bool) -> None:
    make = partial(torch.optim.SGD, lr=0.05, fused=fused)
    scale = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    fabric = Fabric(
        accelerator="cpu", devices=1, plugins=[MixedPrecision("16-mixed", "cpu", scale)] if scaler else None
    )
    net, state, clipped = network(), None, []
    net, optimizer = fabric.setup(net, make(net.parameters()))
    for x, y in DataLoader(data(), batch_size=8):
        optimizer.zero_grad()
        with fabric.autocast():
            loss = nn.functional.mse_loss(net(x), y)
        fabric.backward(loss)
        if scaler:
            fabric.strategy.precision.scaler.unscale_(optimizer.optimizer)
        report, state = clip_grad_(net, POLICY, state)
        clipped.append(bool(report.clipped))
        optimizer.step()
    assert any(clipped)
    assert not all(clipped)
    module = Net(make)
    module.gains = {}
    make_trainer([GradientClip(POLICY)], -1, max_epochs=1, plugins=scaled(2.0**8) if scaler else None).fit(module)
    tolerance = 1e-3 if scaler else 0  # Fabric casts the output to float32 before the loss, the Trainer does not
    torch.testing.assert_close([*net.parameters()], [*module.net.parameters()], rtol=tolerance, atol=tolerance / 10)


class Searched(Searchable):
    """As docs/how-to/lr-find.md has it."""

    policy, clip_state = ZScore(2.0, warmup_steps=3), None

    def __init__(self) -> None:
        super().__init__()
        self.reports: list[Any] = []

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        report, self.clip_state = clip_grad_(optimizer, self.policy, self.clip_state)
        self.reports.append(report)


def test_the_range_test_clips_where_the_module_does() -> None:
    """Its callbacks are gone, the module's own hook is not."""
    module, callback = Searched(), GradientClip(POLICY)
    trainer = make_trainer([callback], -1, max_epochs=1)
    Tuner(trainer).lr_find(module, num_training=12, max_lr=0.5, update_attr=False, early_stop_threshold=None)
    clipped = [bool(report.clipped.any()) for report in module.reports]
    assert any(clipped)
    assert not all(clipped)
    assert all(math.isfinite(float(report.norms)) for report in module.reports)
    assert callback.state_dict().keys() == {"version"}, "ours has seen nothing of it"
