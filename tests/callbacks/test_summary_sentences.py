"""Sentences of the summary that must be true: which steps, one step, what a clip means to Adam."""

import math
import re
from functools import partial

import pytest
import torch
from helpers.tiny_modules import SGD, Tiny, fit, make_trainer
from lightning.pytorch import Callback

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard, ZClip

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def _summary(module, *callbacks, steps=8, **kwargs):
    monitor = GradientMonitor()
    fit(module, [*callbacks, monitor], steps, **kwargs)
    return monitor.summary()


# ---------------------------------------------------------------- Adam and a clip that always fires


@pytest.mark.parametrize("who", ["ours", "trainer"])
def test_adam_is_told_of_the_floor_and_of_no_value(who):
    ours = [GradientClip(1e-3)] if who == "ours" else []
    text = _summary(Tiny(ADAMW), *ours, gradient_clip_val=None if who == "ours" else 1e-3)
    assert "AdamW divides" in text
    assert "eps" in text
    assert "hardly matters" in text
    for false in ("alike", "does not matter", "any value", "outliers", "use "):
        assert false not in text


@pytest.mark.parametrize("optimizer", [ADAMW, SGD])
def test_a_threshold_that_never_fired_is_told_as_that(optimizer):
    text = _summary(Tiny(optimizer), GradientClip(1e6))
    assert "GradientClip never fired and has changed nothing so far." in text


def test_an_adaptive_threshold_that_never_fired_only_never_fired():
    assert "ZClip never fired." in _summary(Tiny(), ZClip())


# ---------------------------------------------------------------- one norm


def test_one_step_has_one_norm():
    text = _summary(Tiny(), steps=1)
    assert re.match(r"In 1 optimizer step the gradient norm was [\d.]+\. Nothing", text), text


def test_one_finite_step_among_others_has_one_norm():
    gains = {step: math.nan for step in range(8) if step != 3}
    text = _summary(Tiny(gains=gains), NonFiniteGuard("skip", max_consecutive=20))
    one = r"In 8 optimizer steps the gradient norm was [\d.]+ on the one step where it was finite and above zero\. "
    assert re.match(one, text), text


class Constant(Tiny):
    """Its gradient is the same at every step."""

    def loss(self, net, step):
        return sum(p.sum() for p in net.parameters()) * self.gains.get(step, 1.0)


def test_a_norm_that_never_changes_has_no_range():
    assert re.match(r"In 8 optimizer steps the gradient norm was [\d.]+\. ", _summary(Constant()))
    text = _summary(Constant(gains={2: math.nan}), NonFiniteGuard("skip"))
    assert re.match(r"In 8 optimizer steps the gradient norm was [\d.]+ where it was finite and above zero\. ", text)


def test_two_norms_are_a_range():
    assert re.match(r"In 2 optimizer steps the gradient norm ran from [\d.]+ to [\d.]+ \(", _summary(Tiny(), steps=2))


def test_a_run_without_a_finite_norm_is_summarised_as_that():
    monitor = GradientMonitor()
    fit(Tiny(gains=dict.fromkeys(range(20), math.nan)), [monitor])
    assert "no gradient was finite" in monitor.summary()
    assert "to 0" not in monitor.summary()
    assert "12 steps had a gradient that was inf or nan" in monitor.summary()


# ---------------------------------------------------------------- which steps


def test_a_first_fit_does_not_say_which():
    assert _summary(Tiny()).startswith("In 8 optimizer steps the gradient norm")


def test_a_second_fit_says_that_the_steps_are_its_own():
    monitor, module = GradientMonitor(), Tiny()
    trainer = make_trainer([monitor], 8)
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = 20
    trainer.fit(module)
    assert trainer.global_step == 20
    assert monitor.summary().startswith("In the 12 optimizer steps of this fit the gradient norm ran")


def test_a_second_fit_of_one_step_says_so():
    monitor, module = GradientMonitor(), Tiny()
    trainer = make_trainer([monitor], 8)
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = 9
    trainer.fit(module)
    assert monitor.summary().startswith("In the 1 optimizer step of this fit the gradient norm was")


class Saves(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_counts_on(tmp_path):
    fit(Tiny(), [GradientMonitor(), Saves(tmp_path / "a.ckpt", 6)], 8)
    assert _summary(Tiny(), steps=20, ckpt_path=tmp_path / "a.ckpt").startswith("In 20 optimizer steps the")


def test_a_run_resumed_without_our_state_says_which(tmp_path):
    fit(Tiny(), [Saves(tmp_path / "a.ckpt", 6)], 8)
    text = _summary(Tiny(), steps=20, ckpt_path=tmp_path / "a.ckpt")
    assert text.startswith("In the 14 optimizer steps of this fit the")


def test_a_monitor_that_joins_a_counted_run_counts_on(tmp_path):
    """Each of ours saves the shared counts."""
    fit(Tiny(), [ZClip(), Saves(tmp_path / "a.ckpt", 6)], 8)
    text = _summary(Tiny(), ZClip(), steps=20, ckpt_path=tmp_path / "a.ckpt")
    assert text.startswith("In 20 optimizer steps the")


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


def test_a_second_fit_that_is_resumed_still_says_which(tmp_path):
    module = Tiny()
    trainer = make_trainer([GradientMonitor(), Saves(tmp_path / "a.ckpt", 12)], 8)
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = 14
    trainer.fit(module)
    text = _summary(Tiny(), steps=20, ckpt_path=tmp_path / "a.ckpt")
    assert text.startswith("In the 12 optimizer steps of this fit the")


def test_an_average_over_the_logged_steps_says_so():
    monitor = GradientMonitor(4)
    fit(Tiny(), [monitor], gradient_clip_val=0.01, gradient_clip_algorithm="value")
    assert "on the 3 steps that were seen" in monitor.summary()
