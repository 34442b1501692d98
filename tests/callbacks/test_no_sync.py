"""No host sync on a step that logs nothing: shown on the meta device, whose tensors have no value to look at."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.tiny_modules import BATCHES, make_trainer
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    EMARelative,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientStabilizer,
    GradientValueClip,
    MaxNorm,
    Percentile,
    WeightRelative,
    ZClip,
    ZScore,
)
from lightning_calib.functional import clip_grad_

SCOPES = ["global", "group", "layer", "parameter", "unit"]
POLICIES = {
    "fixed": MaxNorm(0.35),
    "percentile": Percentile(60, window=6, warmup_steps=2),
    "zscore": ZScore(warmup_steps=3),
    "zscore of the paper": ZScore(warmup_steps=3, robust=False),
    "ema": EMARelative(warmup_steps=2),
    "stabilizer": GradientStabilizer(),
    "weights": WeightRelative(0.3),
}


class Shapeless(LightningModule):
    """All weights on the meta device: `item`, `tolist`, `cpu` and `bool` raise."""

    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)).to("meta")

    def training_step(self, batch, batch_idx):
        return self.net(torch.randn(5, 4, device="meta")).square().mean()

    def train_dataloader(self):
        return DataLoader(torch.arange(BATCHES))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.1)


class Stay(SingleDeviceStrategy):
    """Leaves the weights where they are."""

    def model_to_device(self):
        return


class HaltError(Exception):
    pass


class HaltAfter(Callback):
    """Ends the fit before anything that may look: a row, a summary, the state."""

    reached = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == 5:
            self.reached = True
            raise HaltError


def _fit_on_meta(*callbacks, **kwargs):
    halt, strategy = HaltAfter(), Stay(torch.device("cpu"))
    trainer = make_trainer([*callbacks, halt], 20, strategy=strategy, log_every_n_steps=1000, **kwargs)
    try:
        trainer.fit(Shapeless())
    except (HaltError, NotImplementedError, RuntimeError):
        if not halt.reached:
            raise
    assert halt.reached


@pytest.mark.parametrize("act", ["item", "tolist", "cpu", "__bool__", "__float__"])
def test_meta_tensors_cannot_be_looked_at(act):
    with pytest.raises((RuntimeError, NotImplementedError)):
        getattr(torch.ones((), device="meta"), act)()


SHADOWS = [GradientClip(one, scope=scope) for one in POLICIES.values() for scope in SCOPES]
CALLBACKS = {
    "monitor": GradientMonitor,
    "shadows": partial(GradientMonitor, shadow=[AGC(exclude=()), *SHADOWS]),
    **{
        f"clip {name} {scope}": partial(GradientClip, policy, scope=scope)
        for name, policy in POLICIES.items()
        for scope in SCOPES
    },
    "normalize": GradientNormalize,
    "value": partial(GradientValueClip, 0.1),
    "centralize": GradientCentralize,
    "autoclip": partial(AutoClip, window=50),  # without a window a step counter lives on the host, or here on meta
    "zclip": ZClip,
    "agc": partial(AGC, exclude=()),
    "adagc": AdaGC,
    "dry run": partial(GradientClip, 0.1, dry_run=True),
    "rules": partial(GradientClip, ZScore(), rules={"*bias": 0.1}),
}


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_unlogged_steps_never_look(make):
    one = make()
    _fit_on_meta(one, GradientClip(1.0) if isinstance(one, GradientMonitor) else GradientMonitor())


@pytest.mark.parametrize("make", CALLBACKS.values(), ids=CALLBACKS)
def test_unlogged_steps_never_look_alone(make):
    _fit_on_meta(make())


def test_trainer_clipping_is_counted_without_looking():
    _fit_on_meta(GradientMonitor(), gradient_clip_val=0.5)


@pytest.mark.parametrize("kwargs", [{}, {"gradient_clip_val": 0.5}], ids=["plain", "clipped"])
def test_the_dashboard_never_looks_between_rows(kwargs):
    _fit_on_meta(GradientMonitor(histograms=True), GradientClip(1.0, scope="unit"), logger=TensorBoardLogger("logs"))
    _fit_on_meta(GradientMonitor(histograms=True), logger=TensorBoardLogger("logs"), **kwargs)


@pytest.mark.parametrize("scope", SCOPES)
@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
def test_functional_door_never_looks(policy, scope):
    module, state = Shapeless(), None
    optimizer = module.configure_optimizers()
    for _ in range(3):
        optimizer.zero_grad()
        module.training_step(None, 0).backward()
        _, state = clip_grad_(module if scope == "layer" else optimizer, policy, state, scope=scope)
