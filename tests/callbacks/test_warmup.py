"""A warm-up in a fit: what the start line says of it, what its bound prevents, and what a checkpoint keeps."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Grads, Rows, Tiny, fit
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    EMARelative,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    MaxNorm,
    Percentile,
    WeightRelative,
    ZClip,
    ZScore,
)

BOUND = "(set warmup_max_norm to bound them)"
SAYING = {
    "ZClip": (ZClip, f"ZClip clips nothing in its first 25 steps {BOUND}"),
    "its own length": (lambda: ZClip(warmup_steps=7), f"ZClip clips nothing in its first 7 steps {BOUND}"),
    "a name": (lambda: ZClip(name="mine"), f"ZClip(mine) clips nothing in its first 25 steps {BOUND}"),
    "by default": (GradientClip, f"GradientClip clips nothing in its first 100 steps {BOUND}"),
    "every policy that has one": (
        lambda: GradientClip(EMARelative(warmup_steps=3)),
        f"GradientClip clips nothing in its first 3 steps {BOUND}",
    ),
    "normalise": (
        lambda: GradientNormalize(ZScore()),
        f"GradientNormalize rescales nothing in its first 25 steps {BOUND}",
    ),
    "rules": (
        lambda: GradientClip(Percentile(95), rules={"net.0.*": ZScore(), "*.bias": None, "net.2.*": 1.0}),
        f"GradientClip clips nothing in the first 25 steps of 'net.0.*' and the first 100 steps of what no rule names "
        f"{BOUND}",
    ),
    "rules of one length": (
        lambda: GradientClip(None, rules={"net.0.*": ZScore(), "net.2.*": ZScore(3.0)}),
        f"GradientClip clips nothing in the first 25 steps of 'net.0.*', 'net.2.*' {BOUND}",
    ),
    "a rule of a bounded one": (
        lambda: ZClip(rules={"net.0.*": Percentile(95)}, warmup_max_norm=1.0),
        f"ZClip clips nothing in the first 100 steps of 'net.0.*' {BOUND}",
    ),
    "a rule of one with a warm-up of its own": (
        lambda: AdaGC(rules={"net.0.*": ZScore()}),
        f"AdaGC clips nothing in the first 25 steps of 'net.0.*' {BOUND}",
    ),
    "what is left out, too": (
        lambda: AGC(exclude=["net.0.*"], rules={"net.2.*": ZScore()}),
        "AGC leaves out net.0.bias, net.0.weight, and clips nothing in the first 25 steps of 'net.2.*' " + BOUND,
    ),
}
SILENT = {
    "a fixed norm": lambda: GradientClip(1.0),
    "nothing": lambda: GradientClip(None),
    "normalise": GradientNormalize,
    "weights": lambda: GradientClip(WeightRelative(), scope="unit"),
    "no warm-up": lambda: GradientClip(Percentile(95, warmup_steps=0)),
    "a bound": lambda: ZClip(warmup_max_norm=1.0),
    "a bound, every policy": lambda: GradientClip(
        Percentile(warmup_max_norm=1.0), rules={"*": EMARelative(1, 0, 9, 2)}
    ),
    "no bound, and knowingly": lambda: ZClip(warmup_max_norm=math.inf),
    "a dry run": lambda: ZClip(dry_run=True),
    "AutoClip": AutoClip,
    "AdaGC": AdaGC,
    "rules": lambda: GradientClip(MaxNorm(1.0), rules={"net.0.*": 2.0, "*.bias": None}),
    "a rule that leaves nothing to the policy": lambda: GradientClip(rules={"*": 1.0}),
    "a rule that comes too late": lambda: GradientClip(None, rules={"net.*": 1.0, "*.bias": ZScore()}),
    "only a monitor": GradientMonitor,
}


@pytest.mark.parametrize(("make", "words"), SAYING.values(), ids=SAYING.keys())
def test_the_start_line_says_what_a_warm_up_leaves_unbounded(said, make, words):
    fit(Tiny(), [make()])
    assert f"; {words}." in said()[0]
    assert sum("set warmup_max_norm" in line for line in said()) == 1
    assert said()[0].count(BOUND) == 1


@pytest.mark.parametrize("make", SILENT.values(), ids=SILENT.keys())
def test_the_start_line_is_silent_where_nothing_is_unbounded(said, make):
    fit(Tiny(), [make()])
    assert not [line for line in said() if "set warmup_max_norm" in line or "nothing in" in line]


def test_a_bounded_warm_up_clips_its_steps_and_no_others():
    before, after, rows = Grads(), Grads(), Rows()
    gains = {step: 10.0 if step % 3 else 0.01 for step in range(20)}
    callbacks = [before, ZClip(warmup_steps=8, warmup_max_norm=0.5), after]
    fit(Tiny(partial(torch.optim.SGD, lr=1e-3), gains), callbacks, 12, logger=rows, log_every_n_steps=1)
    for step in range(8):
        assert after.norms[step] == pytest.approx(min(before.norms[step], 0.5), rel=1e-6)
    assert any(norm < 0.5 for norm in before.norms[:8])
    assert max(after.norms[8:]) > 0.5
    assert rows.values("calib/clip_threshold")[:8] == [0.5] * 8


def test_a_checkpoint_from_before_the_bound_is_taken_up(said, tmp_path):
    """The bound ends where the warm-up that was saved would have ended."""
    fit(Tiny(), [ZClip(warmup_steps=10)], 7).save_checkpoint(tmp_path / "old.ckpt")
    before, after = Grads(), Grads()
    clip = ZClip(warmup_steps=10, warmup_max_norm=0.01)
    fit(Tiny(), [before, clip, after], 14, ckpt_path=tmp_path / "old.ckpt")
    assert not [line for line in said() if "afresh" in line]
    assert after.norms[:3] == pytest.approx([0.01] * 3, rel=1e-6)
    assert min(after.norms[3:]) > 0.01


class Adding(LightningModule):
    """The adding problem over 150 steps: a ReLU-RNN whose first gradient is far too long for plain SGD."""

    def __init__(self):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            self.rnn, self.head = nn.RNN(2, 32, nonlinearity="relu", batch_first=True), nn.Linear(32, 1)
        self.rnn.weight_hh_l0.data.copy_(0.9 * torch.eye(32))
        self.losses: list[float] = []

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.trainer.global_step)
        values, marks = torch.rand(16, 150, generator=generator), torch.zeros(16, 150)
        for row in marks:
            row[torch.randperm(150, generator=generator)[:2]] = 1.0
        found = self.head(self.rnn(torch.stack([values, marks], 2))[0][:, -1]).squeeze(1)
        loss = nn.functional.mse_loss(found, (values * marks).sum(1))
        self.losses.append(float(loss.detach()))
        return loss

    def train_dataloader(self):
        return DataLoader(torch.arange(150))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.parametrize(
    ("make", "trains"),
    [
        (ZClip, False),
        (lambda: ZClip(warmup_max_norm=1.0), True),
        (lambda: ZClip(warmup_max_norm=1.0, robust=False), True),
        (lambda: GradientClip(Percentile(95, warmup_max_norm=1.0)), True),
        (lambda: GradientClip(1.0), True),
    ],
    ids=["ZClip()", "ZClip, bounded", "of the paper, bounded", "a percentile, bounded", "a fixed norm"],
)
def test_a_relu_rnn_explodes_in_a_warm_up_without_a_bound_and_trains_under_one(make, trains):
    module, before = Adding(), Grads()
    fit(module, [before, make()], 150)
    assert before.norms[0] > 50
    assert (max(module.losses[:25]) < 10) == trains
    assert (sum(module.losses[-20:]) / 20 < 0.25) == trains
