"""What the monitor keeps for a report: the loss, rows of scalars and of layers, with and without a logger, resumed."""

from __future__ import annotations

import json
import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.event_files import Recorded
from helpers.tiny_modules import Tiny, TwoNets, batches_that_stepped, fit, scaled
from lightning.pytorch import Callback
from lightning.pytorch.loggers import TensorBoardLogger
from torch import nn
from torch.utils.data import DataLoader

from lightning_calib import GradientClip, GradientMonitor, GradientNormalize, NonFiniteGuard
from lightning_calib.report.run import Run

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
]
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
ADAMW = partial(torch.optim.AdamW, lr=1e-2)


class Losses(Callback):
    """The losses that Lightning tells of, each by itself."""

    def __init__(self) -> None:
        self.seen: list[float] = []

    def on_train_batch_end(self, trainer, module, outputs, *_):
        if outputs and outputs.get("loss") is not None:
            self.seen.append(float(outputs["loss"]))


def runs(module, *callbacks, steps=12, every=3, **kwargs) -> tuple[list[Run], list[float]]:
    monitor, losses = GradientMonitor(every_n_steps=every), Losses()
    fit(module, [*callbacks, monitor, losses], steps, **kwargs)
    return list(monitor.report().runs), losses.seen


def one(*args, **kwargs) -> tuple[Run, list[float]]:
    (found,), losses = runs(*args, **kwargs)
    return found, losses


def close(found, wanted):
    torch.testing.assert_close(
        torch.as_tensor(np.array(found, float)), torch.tensor(wanted).double(), rtol=1e-5, atol=1e-7
    )


# The loss


def test_a_row_has_mean_and_maximum_of_the_losses_since_the_last_one_and_the_first():
    run, losses = one(Tiny(SGD))
    windows = np.array(losses).reshape(4, 3)
    close(run.scalars.loss, windows.mean(1))
    close(run.scalars.loss_max, windows.max(1))
    close(run.scalars.loss_first, [losses[0]] * 4)
    assert run.scalars.step.tolist() == [2, 5, 8, 11]


def test_the_loss_of_a_step_is_the_mean_over_its_micro_batches_also_of_a_short_window():
    run, losses = one(Tiny(SGD), steps=6, every=1, accumulate_grad_batches=3)
    assert len(losses) == 14  # an epoch of 7: 3 + 3 + 1
    whole = [3 * value for value in losses]
    parts = [whole[:3], whole[3:6], whole[6:7], whole[7:10], whole[10:13], whole[13:14]]
    close(run.scalars.loss, [np.mean(part) for part in parts])


def test_under_a_grad_scaler_the_loss_is_without_its_scale():
    run, losses = one(Tiny(SGD), steps=6, plugins=scaled(2.0**10))
    close(run.scalars.loss, np.array(losses).reshape(2, 3).mean(1))
    assert run.scalars.loss_scale.tolist() == [1024.0, 1024.0]


def test_a_loss_that_is_not_finite_was_inf_or_nan_and_the_others_are_there():
    run, losses = one(Tiny(SGD, {4: math.nan}), NonFiniteGuard("skip"))
    assert run.scalars.loss[1] == run.scalars.loss_max[1] == math.inf
    close(run.scalars.loss[[0, 2, 3]], np.array(losses).reshape(4, 3)[[0, 2, 3]].mean(1))


def test_a_negative_loss_is_a_loss():
    run, losses = one(Tiny(SGD, dict.fromkeys(range(12), -1e-3)))
    assert max(losses) < 0
    close(run.scalars.loss_max, np.array(losses).reshape(4, 3).max(1))


@pytest.mark.filterwarnings("ignore:.*training_step. returned .None.*")
def test_a_step_without_a_loss_has_none():
    run, losses = one(Tiny(SGD, {3: None, 4: None, 5: None}))
    assert len(losses) == 9
    assert np.isnan(run.scalars.loss).tolist() == [False, True, False, False]


class Gan(TwoNets):
    """Returns a loss; the second optimizer steps with every second batch."""

    def training_step(self, batch, batch_idx):
        step = batches_that_stepped(self.trainer)
        total = torch.zeros(())
        for index, (optimizer, net) in enumerate(zip(self.optimizers(), (self.net, self.other), strict=True)):
            loss = self.loss(net, step + 500 * index)
            optimizer.zero_grad()
            self.manual_backward(loss)
            if index == 0 or step % 2:
                optimizer.step()
            total = total + loss.detach()
        return {"loss": total}


def test_under_manual_optimization_it_is_what_the_training_step_returns():
    found, losses = runs(Gan(SGD, ADAMW), steps=18, every=4)
    first, second = (run.scalars for run in found)
    assert len(losses) == 12
    close(first.loss, np.array(losses).reshape(3, 4).mean(1))
    pairs = np.array(losses).reshape(6, 2).mean(1)  # of the two batches of each of its steps
    close(second.loss, pairs.reshape(3, 2).mean(1))


def test_what_returns_no_loss_has_none():
    for run in runs(TwoNets(SGD, ADAMW), steps=8, every=2)[0]:
        assert np.isnan(run.scalars.loss).all()
        assert run.counts.steps == 4
        assert np.isfinite(run.scalars.grad_norm_before).all()


class Validates(Tiny):
    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.loss(self.net, 900) * 0 + self.trainer.global_step)

    def val_dataloader(self):
        return DataLoader(torch.arange(2))


@pytest.mark.filterwarnings("ignore:.*does not have many workers.*")
def test_the_validation_loss_is_the_last_one():
    run, _ = one(Validates(SGD), steps=21, limit_val_batches=1.0, num_sanity_val_steps=0)
    assert np.isnan(run.scalars.val_loss[:2]).all()
    assert run.scalars.val_loss[2:].tolist() == [7.0, 7.0, 14.0, 14.0, 14.0]


# What is left of the norm


def test_the_factor_is_the_mean_share_since_the_last_row():
    run, _ = one(Tiny(SGD), GradientNormalize(0.5), every=1, steps=4)
    close(run.scalars.factor, 0.5 / run.scalars.grad_norm_before)
    whole, _ = one(Tiny(SGD), GradientNormalize(0.5), every=4, steps=4)
    close(whole.scalars.factor, [run.scalars.factor.mean()])


# Layers


@pytest.mark.parametrize("logger", [False, True])
def test_the_rows_of_layers_are_the_same_with_and_without_a_logger(logger):
    kwargs = {"logger": TensorBoardLogger("logs", name=None)} if logger else {}
    run, _ = one(Tiny(SGD), GradientClip(0.1), **kwargs)
    layers = run.layers
    assert layers.names[0] == "net.0.weight"
    assert layers.sizes == (32, 8, 48, 6, 6, 1)
    assert layers.group_of == (0,) * 6
    assert layers.given.all()
    assert layers.trainable.all()
    assert layers.before.shape == (4, 6)
    close(np.sqrt((layers.before**2).sum(1)), run.scalars.grad_norm_before)
    close(np.sqrt((layers.after**2).sum(1)), [0.1] * 4)
    close(np.sqrt((layers.update**2).sum(1)), run.scalars.update_norm)
    assert (layers.peak >= layers.before).all()
    assert not (layers.peak == layers.before).all()
    if logger:
        found = Recorded("logs/version_0")
        close(found.column("before").numpy(), layers.before)
        close(found.total("loss"), run.scalars.loss)
        close(found.total("factor"), run.scalars.factor)


class Unused(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.spare = nn.Linear(2, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def test_a_tensor_without_a_gradient_is_not_known_and_was_never_given_one():
    run, _ = one(Unused(SGD))
    spare = [name.startswith(("spare", "frozen")) for name in run.layers.names]
    assert (~run.layers.given).tolist() == spare
    assert np.isnan(run.layers.before).all(0).tolist() == spare
    assert np.isnan(run.layers.peak).all(0).tolist() == spare
    assert run.layers.trainable.tolist() == [not name.startswith("frozen") for name in run.layers.names]


def test_a_skipped_step_has_no_after_and_a_bad_one_is_inf():
    run, _ = one(Tiny(SGD, {2: math.nan}), NonFiniteGuard("skip"))
    assert np.isinf(run.layers.before[0]).all()
    assert np.isnan(run.layers.after[0]).all()
    assert run.scalars.grad_norm_before[0] == math.inf
    assert (run.counts.nonfinite, run.counts.skipped, run.counts.usable) == (1, 1, 11)


# BatchNorm


class Norms(Tiny):
    def __init__(self, *args, **kwargs):
        torch.manual_seed(0)
        super().__init__(
            *args, net=lambda: nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8, **kwargs), nn.Linear(8, 1))
        )
        self.shifts: list[float] = []
        self.net[1].register_forward_pre_hook(self.see)

    def see(self, layer, args):
        if layer.running_mean is not None and layer.training:
            far = (args[0].detach().mean(0) - layer.running_mean).abs() / (layer.running_var + layer.eps).sqrt()
            self.shifts.append(float(far.median()))


def test_the_shift_is_that_of_the_logged_batch():
    module = Norms(SGD)
    run, _ = one(module)
    torch.testing.assert_close(run.scalars.norm_shift.tolist(), module.shifts[2::3], rtol=1e-4, atol=1e-5)
    assert run.facts.norm_layers == ("net.1",)


@pytest.mark.parametrize("kwargs", [{"momentum": None}, {"track_running_stats": False}])
def test_where_it_cannot_be_known_there_is_none(kwargs):
    assert np.isnan(one(Norms(SGD, **kwargs))[0].scalars.norm_shift).all()


class Twice(Norms):
    def loss(self, net, step):
        return super().loss(net, step) + super().loss(net, step + 100)


def test_of_two_passes_in_a_step_there_is_none():
    assert np.isnan(one(Twice(SGD))[0].scalars.norm_shift).all()


# Facts


@pytest.mark.filterwarnings("ignore:Two things clip the gradient")
def test_facts_are_those_of_the_start():
    run, _ = one(Tiny(SGD), GradientClip(0.1), NonFiniteGuard(), accumulate_grad_batches=2, gradient_clip_val=3.0)
    facts = run.facts
    assert (facts.optimizer, facts.position, facts.accumulation, facts.precision) == ("SGD", 0, 2, "32-true")
    (group,) = facts.groups
    assert (group.kind, group.lr, group.momentum, group.eps, group.weight_decay) == ("sgd", 0.05, 0.9, None, 0.0)
    assert (facts.steps_planned, facts.steps_per_epoch, facts.batch_size) == (12, 4, 1)
    assert facts.guarded
    assert not facts.manual
    assert [(one.name, one.kind, one.max_norm) for one in run.clippers] == [
        ("GradientClip", "fixed", 0.1),
        ("Trainer(gradient_clip_val=3)", "fixed", 3.0),
    ]
    assert (run.counts.stopped, run.counts.epochs) == ("finished", 3)


class Stops(Callback):
    def __init__(self, error=None):
        self.error = error

    def on_train_batch_start(self, trainer, *_):
        if trainer.global_step == 5:
            trainer.should_stop = True
            if self.error is not None:
                raise self.error


def test_how_the_fit_ended():
    assert one(Tiny(SGD), Stops())[0].counts.stopped == "early"
    monitor = GradientMonitor()
    with pytest.raises(ValueError, match="broken"):
        fit(Tiny(SGD), [monitor, Stops(ValueError("broken"))], 12)
    assert monitor.report().runs[0].counts.stopped == "broken"


def test_a_rate_that_a_schedule_lowers_is_that_of_the_start():
    class Falls(Tiny):
        def configure_optimizers(self):
            optimizer = self.optimizer(self.parameters())
            return [optimizer], [{"scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 1), "interval": "step"}]

    run, _ = one(Falls(SGD))
    assert (run.facts.groups[0].lr, run.facts.schedule, run.facts.interval) == (0.05, ("StepLR",), "step")
    assert run.scalars.lr[-1] < 1e-6


def test_the_event_file_has_the_facts_once_per_optimizer():
    found, _ = runs(
        TwoNets(SGD, ADAMW), GradientClip(0.1), steps=12, every=2, logger=TensorBoardLogger("logs", name=None)
    )
    recorded = Recorded("logs/version_0")
    assert [one.tag for one in recorded.facts] == ["calib/facts/0", "calib/facts/1"]
    for run, one in zip(found, recorded.facts, strict=True):
        text = one.value
        assert text["schema"] == 1
        assert text["facts"] == json.loads(
            json.dumps({**run.facts._asdict(), "groups": [group._asdict() for group in run.facts.groups]})
        )
        assert text["layers"]["names"] == list(run.layers.names)
        assert text["layers"]["sizes"] == list(run.layers.sizes)
        assert text["layers"]["trainable"] == [True] * 6
        assert text["clippers"] == [{"name": "GradientClip", "kind": "fixed", "max_norm": 0.1}]
    assert recorded.about["calib/facts/0"]["kind"] == "facts"


# Memory and resume


class Saves(Callback):
    """Before or after our callbacks have written the row."""

    def __init__(self, at):
        self.at = at

    def on_train_batch_end(self, trainer, *_):
        if batches_that_stepped(trainer) == self.at:
            trainer.save_checkpoint("saved.ckpt")


def same_numbers(found: Run, wanted: Run) -> None:
    for part in ("facts", "counts", "clippers"):
        assert getattr(found, part) == getattr(wanted, part)
    for part in ("scalars", "layers"):
        for name, value in getattr(wanted, part)._asdict().items():
            np.testing.assert_array_equal(getattr(getattr(found, part), name), value, err_msg=f"{part}.{name}")


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("at", [0, 4, 5, 6])
def test_a_run_that_resumes_reports_on_the_whole_of_it(at, first):
    module, steps = partial(Norms, SGD, {3: 30.0}), 14
    straight, _ = one(module(), GradientClip(0.3), steps=steps)
    monitor, saves = GradientMonitor(every_n_steps=3), Saves(at)
    ours = [GradientClip(0.3), monitor]
    fit(module(), [saves, *ours] if first else [*ours, saves], at + 1)
    resumed, _ = one(module(), GradientClip(0.3), steps=steps, ckpt_path="saved.ckpt")
    same_numbers(resumed, straight)


@pytest.mark.parametrize("at", [3, 4, 5])
def test_a_gan_that_resumes_reports_on_the_whole_of_it(at):
    straight, _ = runs(Gan(SGD, ADAMW), steps=18, every=4)
    monitor = GradientMonitor(every_n_steps=4)
    fit(Gan(SGD, ADAMW), [monitor, Saves(at)], 18)
    resumed, _ = runs(Gan(SGD, ADAMW), steps=18, every=4, ckpt_path="saved.ckpt")
    for found, wanted in zip(resumed, straight, strict=True):
        same_numbers(found, wanted)


def test_a_run_without_a_row_tells_what_it_counted():
    run, losses = one(Tiny(SGD), steps=5, every=50)
    close(run.scalars.loss, [np.mean(losses)])
    close(run.scalars.loss_max, [max(losses)])
    assert np.isfinite(run.scalars.grad_norm_before).all()
    assert run.scalars.grad_norm_max >= run.scalars.grad_norm_before


@pytest.mark.slow
def test_what_is_kept_is_bounded():
    run, _ = one(Tiny(SGD), steps=2500, every=1, max_epochs=-1)
    assert len(run.scalars.step) <= 1024
    assert len(run.layers.step) <= 512
    assert run.scalars.step[-1] == run.layers.step[-1] == 2499
    assert (np.diff(run.scalars.step) > 0).all()
