"""One share of clipped steps: the summary's, the tags' and the counts' are of the same optimizer steps."""

import math
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import Plant
from helpers.tiny_modules import SGD, Rows, Tiny, TwoNets, fit, scaled
from lightning.pytorch import Callback

from lightning_calib import (
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    NonFiniteGuard,
    ZClip,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint.*"),
    pytest.mark.filterwarnings("ignore:.*returned `None`.*"),
]
STEPS, BAD = 33, (4, 9, 20)
NAN = dict.fromkeys(BAD, math.nan)
CLIP = 0.9  # above some of the norms, below the others


def _shares(monitor):
    """The percentages of who reduces gradients, of every optimizer."""
    rates = [one.clip_rate for run in monitor.report().runs for one in run.clippers]
    return [float(f"{100 * rate:.3g}") for rate in rates]


def _counts(monitor):
    return monitor.report().runs[0].counts


def _run(callbacks, module=None, steps=STEPS, every=1, **kwargs):
    monitor, rows = GradientMonitor(every), Rows()
    fit(module or Tiny(gains=NAN), [*callbacks, monitor], steps, logger=rows, **kwargs)
    return monitor, rows


def _fired(rows, tag, every=1):
    """Steps on which it fired, and steps: each row speaks of as many as lie between two rows."""
    fractions = rows.values(tag)
    fired = [every * fraction for fraction in fractions]
    assert all(one == pytest.approx(round(one), abs=1e-5) for one in fired)
    return sum(map(round, fired)), every * len(fractions)


def _agree(monitor, rows, tag="calib/clip_fraction", every=1):
    fired, steps = _fired(rows, tag, every)
    assert 0 < fired < steps
    assert _shares(monitor) == [float(f"{100 * fired / steps:.3g}")]
    return fired, steps


@pytest.mark.parametrize("every", [1, 3, 11])
@pytest.mark.parametrize(
    "clip", [partial(GradientClip, CLIP), partial(GradientValueClip, 0.4)], ids=["norm", "elements"]
)
def test_steps_that_a_guard_skips_are_steps(clip, every):
    monitor, rows = _run([NonFiniteGuard("skip"), clip()], every=every)
    assert _agree(monitor, rows, every=every)[1] == STEPS
    assert _counts(monitor).skipped == 3


def test_a_guard_behind_the_clip_changes_nothing():
    monitor, rows = _run([GradientClip(CLIP), NonFiniteGuard("skip")])
    assert _agree(monitor, rows)[1] == STEPS


def test_the_trainers_clip_has_the_same_steps():
    monitor, rows = _run([NonFiniteGuard("skip")], gradient_clip_val=CLIP)
    assert _agree(monitor, rows)[1] == STEPS


@pytest.mark.parametrize("guards", [[], [partial(NonFiniteGuard, "skip")]], ids=["alone", "guarded"])
def test_overflows_of_a_grad_scaler_are_steps(guards):
    module = Tiny(gains=dict.fromkeys(BAD, 1e9))
    ours = [make() for make in guards]
    monitor, rows = _run([*ours, GradientClip(CLIP)], module, plugins=scaled(2.0**10))
    assert _agree(monitor, rows)[1] == STEPS
    assert _counts(monitor).skipped > 0


def test_an_overflow_is_not_a_clip():
    rows, inf = Rows(), {step: {"net.0.weight": [math.inf]} for step in (2, 5)}
    fit(Tiny(), [Plant(inf), GradientMonitor(1)], plugins=scaled(), gradient_clip_val=1e30, logger=rows)
    assert rows.values("calib/skipped_total")[-1] >= 2
    assert rows.values("calib/grad_norm_before")[2] == math.inf
    assert set(rows.values("calib/clip_fraction")) == {0.0}


def test_a_window_of_micro_batches_is_one_step():
    monitor, rows = _run([NonFiniteGuard("skip"), GradientClip(CLIP)], steps=12, accumulate_grad_batches=3)
    assert _agree(monitor, rows)[1] == 12
    assert _counts(monitor).steps == 12


def test_a_step_without_a_gradient_is_none():
    monitor, rows = _run([GradientClip(CLIP)], Tiny(gains=dict.fromkeys(BAD)), steps=20)
    _, steps = _agree(monitor, rows)
    assert _counts(monitor).steps == steps


@pytest.mark.parametrize("dry", [True, False], ids=["dry", "wet"])
def test_a_named_callback_has_them_too(dry):
    monitor, rows = _run([NonFiniteGuard("skip"), GradientClip(CLIP, dry_run=dry, name="mine")])
    tag = "calib/would_clip_fraction.mine" if dry else "calib/clip_fraction.mine"
    assert _agree(monitor, rows, tag)[1] == STEPS


def test_a_normalisation_has_them_too():
    monitor, rows = _run([NonFiniteGuard("skip"), GradientNormalize(CLIP, name="mine")])
    assert _agree(monitor, rows, "calib/clip_fraction.mine")[1] == STEPS
    assert monitor.report().runs[0].clippers[0].kind == "normalise"


def test_each_of_two_optimizers_counts_its_own():
    callbacks = [NonFiniteGuard("skip"), GradientClip(CLIP)]
    monitor, rows = _run(callbacks, TwoNets(SGD, SGD, gains=NAN), steps=2 * STEPS)
    counted = [_fired(rows, f"calib/clip_fraction/{index}") for index in range(2)]
    assert [steps for _, steps in counted] == [STEPS, STEPS]
    assert _shares(monitor) == [float(f"{100 * fired / steps:.3g}") for fired, steps in counted]


class Drops(Callback):
    """Foreign code between two of ours that takes the gradients away."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step in BAD:
            optimizer.zero_grad(set_to_none=True)


@pytest.mark.parametrize("first", [True, False], ids=["before", "behind"])
def test_a_gradient_that_foreign_code_takes_away_was_one(first):
    clip = GradientClip(CLIP)
    monitor, rows = _run([NonFiniteGuard(), Drops(), clip] if first else [clip, Drops()], Tiny())
    assert _agree(monitor, rows)[1] == STEPS


class Brings(Callback):
    """Foreign code that brings gradients where there were none."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in pl_module.parameters():
            p.grad = torch.ones_like(p) if p.grad is None else p.grad


def test_a_gradient_that_foreign_code_brings_was_none():
    callbacks = [NonFiniteGuard("warn"), Brings(), GradientClip(CLIP)]
    monitor, rows = _run(callbacks, Tiny(gains=dict.fromkeys(BAD)), steps=20)
    _, steps = _agree(monitor, rows)
    assert _counts(monitor).steps == steps


class Counts(Callback):
    """What ours would save after each batch: steps of the clip's own count, and of the shared one."""

    def __init__(self, clip):
        self.clip, self.seen = clip, []

    def on_train_batch_end(self, trainer, *_):
        state = self.clip.state_dict()
        mine, shared = state["optimizers"]["0"]["count"], state["tally"]["0"]
        self.seen.append((mine["steps"], shared["steps"], mine["window_steps"], shared["window_steps"]))


@pytest.mark.parametrize("clip", [ZClip, partial(GradientClip, CLIP), partial(GradientValueClip, 0.4)])
def test_a_callbacks_count_is_the_shared_one_at_every_step(clip):
    ours = clip()
    counts = Counts(ours)
    fit(Tiny(gains=NAN), [NonFiniteGuard("skip"), ours, GradientMonitor(4), counts], 20)
    assert [one[:2] for one in counts.seen] == [(n, n) for n in range(1, 21)]
    assert all(mine == shared for *_, mine, shared in counts.seen)


def test_a_resumed_run_goes_on_counting(tmp_path):
    class Saves(Callback):
        def on_train_batch_end(self, trainer, *_):
            if trainer.global_step == 10:  # in the middle of a window, behind a skipped step
                trainer.save_checkpoint(tmp_path / "a.ckpt")

    def ours():
        return [NonFiniteGuard("skip"), GradientClip(CLIP, name="mine")]

    whole, rows = _run([*ours(), Saves()], steps=24, every=4)
    resumed, more = _run(ours(), steps=24, every=4, ckpt_path=tmp_path / "a.ckpt")
    assert resumed.summary() == whole.summary()
    assert rows.values("calib/clip_fraction.mine")[2:] == more.values("calib/clip_fraction.mine")
    _agree(whole, rows, "calib/clip_fraction.mine", every=4)


class Behind(Callback):
    """Somebody's code behind ours: the Trainer's clip is seen on logged steps only."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        pass


def _trainers(monitor):
    (clipper,) = monitor.report().runs[0].clippers
    return clipper.clip_rate, clipper.seen


def test_a_clip_that_was_not_seen_to_fire_is_told_as_that():
    monitor = GradientMonitor(3)
    fit(Tiny(), [monitor, Behind()], 9, gradient_clip_val=1e6)
    assert _trainers(monitor) == (0.0, 3)
    fit(Tiny(), [monitor, Behind()], 3, gradient_clip_val=1e6)
    assert _trainers(monitor) == (0.0, 1)
    fit(Tiny(), [monitor, Behind()], 2, gradient_clip_val=1e6)
    assert _trainers(monitor) == (None, 0)


def test_a_share_of_the_logged_steps_alone_says_so():
    monitor, rows = GradientMonitor(3), Rows()
    fit(Tiny(), [monitor, Behind()], STEPS, logger=rows, gradient_clip_val=CLIP)
    fractions = rows.values("calib/clip_fraction")
    share = sum(fractions) / len(fractions)
    assert 0 < share < 1
    assert _trainers(monitor) == (pytest.approx(share), 11)


def test_a_clip_that_fires_wherever_it_can_is_told_as_such_beside_skipped_steps():
    adam = partial(torch.optim.AdamW, lr=1e-3)
    monitor, _ = _run([NonFiniteGuard("skip"), GradientClip(1e-3)], Tiny(adam, gains=NAN))
    (run,) = monitor.report().runs
    assert _shares(monitor) == [90.9]
    assert run.clippers[0].clip_rate * run.counts.steps == run.counts.usable
