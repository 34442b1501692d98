"""What the monitor keeps for a report, column by column beside what the plain recorder measured in the same fit."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.plain_recorder import PlainRecorder
from helpers.tiny_modules import Tiny, TwoNets, batches_that_stepped, fit
from report.planted.fit import quiet
from torch import nn
from torch.utils.data import DataLoader

from lightning_calib import GradientClip, GradientMonitor, GradientNormalize, LearningRateControl, NonFiniteGuard
from lightning_calib.report.run import Run
from lightning_calib.schedules import InverseNorm

SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-2)
CLOSE = 2e-5  # float32 norms beside float64 ones
FACTS_NOT_OURS = {"version"}  # the recorder does not tell
SEVERAL = ("clip_threshold",)  # of several clips, or of rules, the two tell another one's
ROUNDING = 1e-7  # of an update whose weights are float32


class Normalised(Tiny):
    """BatchNorm, validated after every epoch. Of two middle ratios a row has the lower one, so that there are three."""

    def __init__(self, *args):
        torch.manual_seed(0)
        super().__init__(
            *args, net=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 6), nn.Linear(6, 1))
        )

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(self.net, 900))

    def val_dataloader(self):
        return DataLoader(torch.arange(2))


class Gan(TwoNets):
    """Returns a loss; the second optimizer steps with every second batch."""

    def training_step(self, batch, batch_idx):
        step, total = batches_that_stepped(self.trainer), torch.zeros(())
        for index, (optimizer, net) in enumerate(zip(self.optimizers(), (self.net, self.other), strict=True)):
            if index == 0 or step % 2:
                loss = self.loss(net, step + 500 * index)
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
                total = total + loss.detach()
        return {"loss": total}


def both(module, *callbacks, steps, every, **kwargs) -> list[tuple[Run, Run]]:
    """Of each optimizer what the monitor kept, and what the recorder measured."""
    recorder, monitor = PlainRecorder(every), GradientMonitor(every)
    with quiet():
        fit(module, [*recorder.around(callbacks), monitor], steps, num_sanity_val_steps=0, **kwargs)
    return list(zip(monitor.report().runs, recorder.runs(), strict=True))


def same(found: Run, wanted: Run, without: tuple[str, ...] = ()) -> None:
    for name, value in wanted.scalars._asdict().items():
        if name not in without:
            np.testing.assert_allclose(getattr(found.scalars, name), value, rtol=CLOSE, atol=ROUNDING, err_msg=name)
    assert found.layers is not None
    assert wanted.layers is not None
    for name, value in wanted.layers._asdict().items():
        here = getattr(found.layers, name)
        if isinstance(value, tuple):
            assert here == value, name
        else:
            np.testing.assert_allclose(here, value, rtol=CLOSE, atol=ROUNDING, err_msg=name)
    for name, value in wanted.counts._asdict().items():
        here = getattr(found.counts, name)
        assert here == (pytest.approx(value, rel=CLOSE) if isinstance(value, float) else value), name
    for name, value in wanted.facts._asdict().items():
        if name not in FACTS_NOT_OURS:
            assert getattr(found.facts, name) == value, name
    assert len(found.clippers) == len(wanted.clippers)
    for here, there in zip(found.clippers, wanted.clippers, strict=True):
        assert here._replace(clip_rate=None, seen=None) == there._replace(clip_rate=None)
        assert here.clip_rate == pytest.approx(there.clip_rate, rel=CLOSE)


def test_two_clips_a_dry_run_accumulation_and_a_step_that_is_not_finite():
    callbacks = [NonFiniteGuard("skip"), GradientClip(0.8, dry_run=True, name="dry"), GradientClip(0.9)]
    ((found, wanted),) = both(
        Tiny(SGD, {4: math.nan, 8: 30.0}),
        *callbacks,
        steps=21,
        every=3,
        gradient_clip_val=0.7,
        accumulate_grad_batches=2,
        limit_train_batches=6,  # three steps: what is left of a window Lightning would divide by two all the same
    )
    assert wanted.counts.nonfinite == 1
    assert 0 < wanted.clippers[1].clip_rate < wanted.clippers[2].clip_rate <= 1
    same(found, wanted, SEVERAL)


def test_batch_norm_a_rule_and_validation_with_a_row_of_every_step():
    ((found, wanted),) = both(
        Normalised(ADAMW),
        GradientNormalize(0.5),
        LearningRateControl(InverseNorm(target=0.3)),
        steps=12,
        every=1,
        limit_val_batches=1.0,
    )
    assert np.isfinite(wanted.scalars.val_loss).any()
    same(found, wanted)


def test_two_optimizers_of_which_one_rests():
    # A row of every step: where a module steps by itself, what was left is known of logged steps only.
    pairs = both(Gan(SGD, ADAMW), GradientClip(None, rules={"net.*": 0.1}), steps=18, every=1)
    assert [wanted.counts.steps for _, wanted in pairs] == [12, 6]
    for found, wanted in pairs:
        same(found, wanted, SEVERAL)
