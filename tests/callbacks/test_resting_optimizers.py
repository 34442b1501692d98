"""Optimizers that do not step on every batch: nothing old is told of them, and nothing is lost."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.tiny_modules import Grads, Rows, TwoNets, batches_that_stepped, fit, norm
from lightning.pytorch import Callback

from lightning_calib import GradientClip, GradientMonitor


def test_toggled_optimizers():
    """A network whose gradients are switched off must not be read through stale ones."""

    class Toggling(TwoNets):
        def training_step(self, batch, batch_idx):
            step = self.trainer.fit_loop.epoch_loop._batches_that_stepped
            for optimizer, net in zip(self.optimizers(), (self.net, self.other), strict=True):
                self.toggle_optimizer(optimizer)
                optimizer.zero_grad()
                self.manual_backward(self.loss(net, step))
                optimizer.step()
                self.untoggle_optimizer(optimizer)

    rows, grads, sgd = Rows(), Grads(), partial(torch.optim.SGD, lr=0.05)
    fit(Toggling(sgd, sgd), [grads, GradientClip(0.3), GradientMonitor(1)], 12, logger=rows)
    for index in (0, 1):
        assert rows.values(f"calib/grad_norm_before/{index}") == pytest.approx(grads.norms[index::2], rel=1e-6)


class Rhythm(TwoNets):
    """The second optimizer steps on every third batch only, the first one twice on every batch."""

    def training_step(self, batch, batch_idx):
        step = batches_that_stepped(self.trainer)
        first, second = self.optimizers()
        for half in (0, 1):
            first.zero_grad()
            self.manual_backward(self.loss(self.net, 2 * step + half))
            first.step()
        if step % 3 == 0:
            second.zero_grad()
            self.manual_backward(self.loss(self.other, step + 50))
            second.step()


def test_an_optimizer_that_rests_tells_nothing_old():
    rows, grads, monitor, sgd = Rows(), PerOptimizer(), GradientMonitor(1), partial(torch.optim.SGD, lr=0.05)
    fit(Rhythm(sgd, sgd), [grads, GradientClip(0.3), monitor], 28, logger=rows)
    for step, row in rows.rows:
        assert row["calib/grad_norm_before/0"] == pytest.approx(grads.norms[0][step][-1], rel=1e-6)
        assert row["calib/grad_norm_max/0"] == pytest.approx(max(grads.norms[0][step]), rel=1e-6)
        for tag in ("grad_norm_before", "grad_norm_max", "grad_norm_after", "update_norm", "update_ratio"):
            assert (f"calib/{tag}/1" in row) == (step % 3 == 0), (tag, step)
        assert row.get("calib/skipped_total/1", 0) == 0
    assert rows.values("calib/grad_norm_before/1") == pytest.approx([n[0] for n in grads.norms[1].values()], rel=1e-6)
    assert "24 optimizer steps" in monitor.summary()
    assert "4 optimizer steps" in monitor.summary()


class PerOptimizer(Callback):
    """Norms by optimizer and batch."""

    def __init__(self):
        self.norms = {0: {}, 1: {}}

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        steps = self.norms[trainer.optimizers.index(optimizer)].setdefault(batches_that_stepped(trainer), [])
        steps.append(norm([p.grad for p in optimizer.param_groups[0]["params"]]))


def test_rows_between_the_steps_of_a_resting_optimizer_lose_nothing():
    """Logged on every fourth batch, stepped on every third: each norm is in exactly one window."""
    rows, grads, sgd = Rows(), PerOptimizer(), partial(torch.optim.SGD, lr=0.05)
    fit(Rhythm(sgd, sgd), [grads, GradientMonitor(4)], 56, logger=rows)
    for step, row in rows.rows:
        window = [n[0] for batch, n in grads.norms[1].items() if step - 4 < batch <= step]
        found = row.get("calib/grad_norm_max/1")
        assert found == (pytest.approx(max(window), rel=1e-6) if window else None)
