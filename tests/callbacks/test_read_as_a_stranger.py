"""Small things that a stranger's reading found."""

import gc
import logging
import math
import weakref

import pytest
import torch
from helpers.poisoned_batches import Plant
from helpers.tiny_modules import Rows, Tiny, TwoNets, fit, scaled
from lightning.pytorch import Callback
from torch import nn

from lightning_calib import (
    AdaGC,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    NonFiniteGuard,
    ZClip,
)
from lightning_calib.fit.messages import say
from lightning_calib.functional.judge import Observation
from lightning_calib.steps.weight_update import WeightSample


def test_the_guard_looks_again_for_whoever_stands_behind_a_foreign_callback():
    class Plants(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 4:
                pl_module.net[0].weight.grad[0, 0] = math.nan

    module = Tiny()
    fit(module, [ZClip(), Plants(), ZClip(name="b"), NonFiniteGuard("skip", max_consecutive=1)])
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_an_overflow_is_not_a_clip():
    rows, inf = Rows(), {step: {"net.0.weight": [math.inf]} for step in (2, 5)}
    fit(Tiny(), [Plant(inf), GradientMonitor(1)], plugins=scaled(), gradient_clip_val=1e30, logger=rows)
    assert rows.values("calib/skipped_total")[-1] >= 2
    assert rows.values("calib/grad_norm_before")[2] == math.inf
    assert set(rows.values("calib/clip_fraction")) == {0.0}


def test_a_checkpoint_before_the_row_is_written_does_not_hold_its_window(tmp_path):
    class SavesFirst(Callback):
        def on_train_batch_end(self, trainer, *_):
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    fit(Tiny(), [SavesFirst(), ZClip(name="a"), GradientMonitor(4)])
    for step, window in ((7, 3), (8, 0), (9, 1)):
        saved = torch.load(tmp_path / f"{step}.ckpt", weights_only=True)["callbacks"]["ZClip.a"]
        assert saved["optimizers"]["0"]["count"]["window_steps"] == window
        assert saved["tally"]["0"]["window_steps"] == window


@pytest.mark.parametrize("shape", [(65536, 4), (1024, 1024), (512, 64, 3, 3)])
def test_the_sample_of_the_weights_sees_every_column(shape):
    for column in range(0, shape[-1], max(1, shape[-1] // 4)):
        weight = nn.Parameter(torch.ones(shape))
        sample = WeightSample((weight,))
        weight.data[..., column] += 1.0
        wanted = (weight.numel() / shape[-1]) ** 0.5
        assert float(sample.moved()[0]) == pytest.approx(wanted, rel=0.1)  # of 2^16 elements, one in shape[-1] moved


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


def test_the_threshold_is_a_norm_and_never_a_bound_on_elements():
    rows = Rows()
    fit(Tiny(), [GradientMonitor(1)], gradient_clip_val=0.5, gradient_clip_algorithm="value", logger=rows)
    assert rows.rows
    assert rows.values("calib/clip_threshold") == []


def test_a_run_without_a_finite_norm_is_summarised_as_that():
    monitor = GradientMonitor()
    fit(Tiny(gains=dict.fromkeys(range(20), math.nan)), [monitor])
    assert "no gradient was finite" in monitor.summary()
    assert "to 0" not in monitor.summary()
    assert "12 steps had a gradient that was inf or nan" in monitor.summary()


def test_a_weight_with_a_fan_in_of_one_still_learns():
    def net():
        return nn.Sequential(nn.Linear(4, 1), nn.Linear(1, 8), nn.Linear(8, 1))

    module = Tiny(net=net)
    before = module.net[1].weight.detach().clone()
    fit(module, [GradientCentralize()])
    assert not torch.equal(module.net[1].weight, before)


def test_steps_without_any_norm_do_not_use_up_the_warm_up():
    policy = AdaGC(warmup_steps=2).policy
    state = policy.init(torch.zeros(2))
    for _ in range(5):
        bad = torch.tensor([math.inf, math.nan])
        _, state = policy(Observation(bad, bad.isfinite()), state)
    targets, _ = policy(Observation(torch.tensor([30.0, 40.0]), torch.tensor([True, True])), state)
    torch.testing.assert_close(targets, torch.tensor([0.6, 0.8]))  # clipped together to the norm 1


def test_nothing_of_the_model_stays_behind_after_the_fit():
    callbacks = [GradientCentralize(), GradientValueClip(0.5), ZClip(), NonFiniteGuard("skip"), GradientMonitor()]
    module = Tiny()
    trainer = fit(module, callbacks)
    gone = weakref.ref(module.net[0].weight)
    for callback in callbacks:  # the Trainer's own presents
        vars(callback).pop("log", None), vars(callback).pop("log_dict", None)
    del module, trainer
    gc.collect()
    assert gone() is None


def test_a_handler_of_the_users_own_is_enough(capsys):
    logger, handler = logging.getLogger("lightning_calib"), logging.StreamHandler()
    root = logging.getLogger()
    kept, root.handlers = root.handlers, []
    logger.addHandler(handler)
    try:
        say("once")
    finally:
        logger.removeHandler(handler)
        root.handlers = kept
    assert capsys.readouterr().err.count("once") == 1


@pytest.mark.parametrize("target", [0.0, math.inf, -1.0])
def test_a_norm_to_aim_at_is_finite_and_above_zero(target):
    with pytest.raises(ValueError, match=r"`target` must be in \(0, inf\)"):
        GradientNormalize(target)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_the_counts_outlive_the_callback_that_was_first():
    gains = {3: math.nan}
    first = fit(Tiny(gains=gains), [NonFiniteGuard("skip"), ZClip(), GradientMonitor()])
    first.save_checkpoint("first.ckpt")
    monitor = GradientMonitor()
    with pytest.warns(UserWarning, match="NonFiniteGuard"):  # Lightning's, on the state that nobody asks for
        fit(Tiny(gains=gains), [ZClip(), monitor], 20, ckpt_path="first.ckpt")
    assert "In 20 optimizer steps" in monitor.summary()
    assert "1 step had a gradient that was inf or nan, and 1 step was skipped: NonFiniteGuard" in monitor.summary()


def test_a_dry_run_is_told_in_words(caplog):
    monitor = GradientMonitor()
    with caplog.at_level(logging.INFO, "lightning_calib"):
        fit(Tiny(), [GradientClip(1e-6, dry_run=True), monitor])
    assert "clipping: GradientClip (dry run)" in caplog.text
    assert "Nothing clipped it, but GradientClip, a dry run, would have reduced 100 % of the steps" in monitor.summary()


def test_an_average_over_the_logged_steps_says_so():
    monitor = GradientMonitor(4)
    fit(Tiny(), [monitor], gradient_clip_val=0.01, gradient_clip_algorithm="value")
    assert "on the 3 steps that were seen" in monitor.summary()


def test_a_misspelt_glob_is_the_only_thing_told(caplog):
    with caplog.at_level(logging.INFO, "lightning_calib"), pytest.raises(ValueError, match="nearest names"):
        fit(Tiny(), [GradientClip(1.0, rules={"nett.*": 0.1}), GradientMonitor()])
    assert "could not keep" not in caplog.text


def test_a_monitor_that_stays_silent_does_not_speak_after_an_epoch(caplog):
    with caplog.at_level(logging.INFO, "lightning_calib"):
        fit(Tiny(torch.optim.LBFGS), [GradientMonitor()])
    assert "stays silent" in caplog.text
    assert "No optimizer step" not in caplog.text
