"""The range of thresholds that a report calls alike, on real runs: both ends and the middle train alike.

Far below it a run ends worse. Far above it that can only be so where a clip in the range held outliers down: Adam
divides the scale of ordinary gradients out, clipped or not.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
from helpers.monitored import Monitored
from lightning.pytorch import LightningModule
from report.planted.data import digits
from report.planted.fit import Learner, adamw, fit, muon, quiet
from report.planted.models import mlp
from torch import nn

from lightning_calib import Report

SEEDS = range(4)
STEPS = 300
BEYOND = 30.0


class Outliers(Learner):
    """Every tenth batch is labelled wrongly, and its loss is a thousand times as large."""

    def training_step(self, batch, batch_idx):
        x, y = batch
        bad = self.trainer.global_step % 10 == 5
        return self.loss(self.net(x), (y + 1) % 10) * 1000 if bad else self.loss(self.net(x), y)


class Grows(Learner):
    """The loss is in units that grow from 0.01 to 100, and the norm with it."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * 10 ** min(2.0, -2 + 4 * self.trainer.global_step / 200)


MODULES: dict[str, Callable[[], LightningModule]] = {
    "adamw": lambda: Learner(mlp(64, 64, 64, 10), adamw(1e-3)),
    "muon": lambda: Learner(mlp(64, 64, 64, 10, bias=False), muon(2e-3)),
    "outliers": lambda: Outliers(mlp(64, 64, 64, 10), adamw(1e-3)),
    "grows": lambda: Grows(mlp(64, 64, 64, 10), adamw(1e-3)),
}


@cache
def trained(name: str, clip: float, seed: int) -> tuple[Report, float]:
    """The report, and the loss of all data at the end."""
    torch.manual_seed(1000 + seed)
    module, recorder = MODULES[name](), Monitored()
    with quiet():
        fit(recorder, module, digits(), STEPS, gradient_clip_val=clip)
    x, y = digits()
    with torch.no_grad():
        return recorder.report(), nn.functional.cross_entropy(module.net(x), y).item()


def losses(name: str, clip: float) -> np.ndarray:
    return np.array([trained(name, clip, seed)[1] for seed in SEEDS])


def told(name: str, clip: float) -> tuple[float, float]:
    """What the report of one run, whose clip always fires, calls alike."""
    (found,) = [one for one in trained(name, clip, 0)[0].findings if one.code == "clip-always"]
    return found.evidence["alike_low"], found.evidence["alike_high"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon", "outliers", "grows"])
def test_both_ends_and_the_middle_end_within_the_noise_of_seeds(name):
    low, high = told(name, 1e-3)
    assert high > low
    middle = losses(name, (low * high) ** 0.5)
    assert middle.max() < 1.5  # it learns: 2.3 at the start
    for end in (low, high):
        assert np.abs(losses(name, end) - middle).max() < middle.std(ddof=1)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["adamw", "muon", "outliers"])
def test_far_below_it_a_run_ends_worse(name):
    low, high = told(name, 1e-3)
    middle = losses(name, (low * high) ** 0.5)
    assert (losses(name, low / BEYOND) - middle).min() > 2 * middle.std(ddof=1)


@pytest.mark.slow
def test_far_above_it_a_run_with_outliers_ends_worse():
    low, high = told("outliers", 1e-3)
    middle = losses("outliers", (low * high) ** 0.5)
    assert (losses("outliers", high * BEYOND) - middle).min() > 10 * middle.std(ddof=1)
