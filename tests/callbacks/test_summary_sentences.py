"""Numbers of the report that must be true: which steps, one step, who clips."""

import math
from functools import partial

import numpy as np
import pytest
import torch
from helpers.tiny_modules import Tiny, fit, make_trainer
from lightning.pytorch import Callback

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard, ZClip

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
]
ADAMW = partial(torch.optim.AdamW, lr=1e-3)


def _run(module, *callbacks, steps=8, **kwargs):
    monitor = GradientMonitor()
    fit(module, [*callbacks, monitor], steps, **kwargs)
    (run,) = monitor.report().runs
    return run


@pytest.mark.parametrize("who", ["ours", "trainer"])
def test_adam_is_told_what_a_clip_that_always_fires_means(who):
    ours = [GradientClip(1e-3)] if who == "ours" else []
    (clipper,) = _run(Tiny(ADAMW), *ours, gradient_clip_val=None if who == "ours" else 1e-3).clippers
    assert (clipper.clip_rate, clipper.kind, clipper.max_norm) == (1.0, "fixed", 1e-3)


@pytest.mark.parametrize(("clip", "kind"), [(partial(GradientClip, 1e6), "fixed"), (ZClip, "adaptive")])
def test_a_threshold_that_never_fired_never_fired(clip, kind):
    (clipper,) = _run(Tiny(), clip()).clippers
    assert (clipper.clip_rate, clipper.kind, clipper.seen) == (0.0, kind, None)


# ---------------------------------------------------------------- one norm


def test_one_step_has_one_norm():
    run = _run(Tiny(), steps=1)
    assert (run.counts.steps, run.counts.usable) == (1, 1)
    assert run.scalars.grad_norm_before[-1] == run.scalars.grad_norm_max[-1]


def test_one_finite_step_among_others_has_one_norm():
    gains = {step: math.nan for step in range(8) if step != 3}
    run = _run(Tiny(gains=gains), NonFiniteGuard("skip", max_consecutive=20))
    assert (run.counts.steps, run.counts.usable, run.counts.nonfinite, run.counts.skipped) == (8, 1, 7, 7)
    assert np.isfinite(run.scalars.grad_norm_max).sum() == 1


class Constant(Tiny):
    """Its gradient is the same at every step."""

    def loss(self, net, step):
        return sum(p.sum() for p in net.parameters()) * self.gains.get(step, 1.0)


def test_a_norm_that_never_changes_is_the_largest():
    for gains in ({}, {2: math.nan}):
        run = _run(Constant(gains=gains), NonFiniteGuard("skip"), log_every_n_steps=1)
        norms = run.scalars.grad_norm_max[~np.isnan(run.scalars.grad_norm_max)]
        assert len(set(norms.tolist())) == 1
        assert run.counts.usable == 8 - len(gains)


def test_a_run_without_a_finite_norm_is_reported_as_that():
    run = _run(Tiny(gains=dict.fromkeys(range(20), math.nan)), steps=12)
    assert (run.counts.usable, run.counts.nonfinite) == (0, 12)
    assert math.isnan(run.scalars.grad_norm_max[-1])
    assert run.scalars.grad_norm_before[-1] == math.inf


# ---------------------------------------------------------------- which steps


def _counted(monitor):
    counts = monitor.report().runs[0].counts
    return counts.steps, counts.earlier


def test_a_first_fit_knows_all_its_steps():
    counts = _run(Tiny()).counts
    assert (counts.steps, counts.earlier) == (8, False)


@pytest.mark.parametrize(("end", "own"), [(20, 12), (9, 1)])
def test_a_second_fit_says_that_the_steps_are_its_own(end, own):
    monitor, module = GradientMonitor(), Tiny()
    trainer = make_trainer([monitor], 8)
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = end
    trainer.fit(module)
    assert trainer.global_step == end
    assert _counted(monitor) == (own, True)
    assert f"In the {own} optimizer step" in monitor.summary().replace("in the", "In the")


class Saves(Callback):
    def __init__(self, path, step):
        self.path, self.step = path, step

    def on_train_batch_end(self, trainer, *_):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def test_a_resumed_run_counts_on(tmp_path):
    fit(Tiny(), [GradientMonitor(), Saves(tmp_path / "a.ckpt", 6)], 8)
    counts = _run(Tiny(), steps=20, ckpt_path=tmp_path / "a.ckpt").counts
    assert (counts.steps, counts.earlier) == (20, False)


def test_a_run_resumed_without_our_state_says_which(tmp_path):
    fit(Tiny(), [Saves(tmp_path / "a.ckpt", 6)], 8)
    counts = _run(Tiny(), steps=20, ckpt_path=tmp_path / "a.ckpt").counts
    assert (counts.steps, counts.earlier) == (14, True)


def test_a_monitor_that_joins_a_counted_run_counts_on(tmp_path):
    """Each of ours saves the shared counts."""
    fit(Tiny(), [ZClip(), Saves(tmp_path / "a.ckpt", 6)], 8)
    counts = _run(Tiny(), ZClip(), steps=20, ckpt_path=tmp_path / "a.ckpt").counts
    assert (counts.steps, counts.earlier) == (20, False)


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
def test_the_counts_outlive_the_callback_that_was_first():
    gains = {3: math.nan}
    first = fit(Tiny(gains=gains), [NonFiniteGuard("skip"), ZClip(), GradientMonitor()])
    first.save_checkpoint("first.ckpt")
    monitor = GradientMonitor()
    with pytest.warns(UserWarning, match="NonFiniteGuard"):  # Lightning's, on the state that nobody asks for
        fit(Tiny(gains=gains), [ZClip(), monitor], 20, ckpt_path="first.ckpt")
    counts = monitor.report().runs[0].counts
    assert (counts.steps, counts.nonfinite, counts.skipped) == (20, 1, 1)


def test_a_second_fit_that_is_resumed_still_says_which(tmp_path):
    module = Tiny()
    trainer = make_trainer([GradientMonitor(), Saves(tmp_path / "a.ckpt", 12)], 8)
    trainer.fit(module)
    trainer.fit_loop.epoch_loop.max_steps = 14
    trainer.fit(module)
    counts = _run(Tiny(), steps=20, ckpt_path=tmp_path / "a.ckpt").counts
    assert (counts.steps, counts.earlier) == (12, True)


def test_an_average_over_the_logged_steps_says_so():
    monitor = GradientMonitor(4)
    fit(Tiny(), [monitor], gradient_clip_val=0.01, gradient_clip_algorithm="value")
    (run,) = monitor.report().runs
    assert (run.counts.known, run.clippers[0].seen) == (3, 3)
