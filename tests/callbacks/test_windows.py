"""What a row says of its window, where the window or the optimizer is an odd one."""

import math

import torch
from helpers.tiny_modules import SGD, Cleans, Rows, Tiny, TwoNets, batches_that_stepped, fit
from lightning.pytorch import Callback

from lightning_calib import GradientClip, GradientMonitor, ZClip


def test_a_window_without_a_finite_norm_has_no_largest_one():
    rows = Rows()
    fit(Cleans(gains={3: math.nan}), [GradientMonitor(1)], 8, logger=rows)
    largest = rows.values("calib/grad_norm_max")
    assert [math.isnan(one) for one in largest] == [step == 3 for step in range(8)]


def test_a_window_of_zero_gradients_has_zero_as_its_largest_norm():
    rows = Rows()
    fit(Tiny(gains={3: 0.0}), [GradientMonitor(1)], 6, logger=rows)
    assert rows.values("calib/grad_norm_max")[3] == 0.0


def test_the_summary_does_not_speak_of_a_clip_that_leaves_an_optimizer_alone():
    monitor = GradientMonitor()
    fit(TwoNets(SGD, SGD), [GradientClip(None, rules={"net.*": 0.01}), monitor], 12)
    clippers = [[(one.name, one.clip_rate) for one in run.clippers] for run in monitor.report().runs]
    assert clippers == [[("GradientClip", 1.0)], []]


class Resting(TwoNets):
    """The second optimizer steps on even batches only."""

    def training_step(self, batch, batch_idx):
        step = batches_that_stepped(self.trainer)
        for optimizer, net in zip(self.optimizers(), (self.net, self.other), strict=True):
            if net is self.net or step % 2 == 0:
                optimizer.zero_grad()
                self.manual_backward(self.loss(net, step))
                optimizer.step()


class Saves(Callback):
    """Listed before ours: it saves when the row is due and not yet written."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 3:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_before_a_row_counts_the_window_of_a_resting_optimizer_once(tmp_path):
    fit(Resting(SGD, SGD), [Saves(tmp_path / "a.ckpt"), GradientMonitor(4)], 7)
    saved = torch.load(tmp_path / "a.ckpt", weights_only=True)["callbacks"]["GradientMonitor"]["tally"]
    assert [saved[index]["window_steps"] for index in ("0", "1")] == [0, 0]


def test_a_checkpoint_before_the_row_is_written_does_not_hold_its_window(tmp_path):
    class SavesFirst(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(Tiny(), [SavesFirst(), ZClip(name="a"), GradientMonitor(4)])
    for step, window in ((7, 3), (8, 0), (9, 1)):
        saved = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)["callbacks"]["ZClip.a"]
        assert saved["optimizers"]["0"]["count"]["window_steps"] == window
        assert saved["tally"]["0"]["window_steps"] == window


def test_a_checkpoint_between_two_steps_does_not_tear_the_row(tmp_path):
    class Saves(TwoNets):
        def optimizer_step(self, *args, **kwargs):
            super().optimizer_step(*args, **kwargs)

        def on_before_zero_grad(self, optimizer):
            self.trainer.save_checkpoint(tmp_path / "mid.ckpt")

    sgd = [lambda parameters: torch.optim.SGD(parameters, lr=0.01)] * 2
    rows = Rows()
    fit(Saves(*sgd), [ZClip(), GradientMonitor(2)], logger=rows)
    assert [step for step, _ in rows.rows] == [1, 3, 5]
    assert all({"calib/grad_norm_before/0", "calib/grad_norm_before/1"} <= row.keys() for _, row in rows.rows)
