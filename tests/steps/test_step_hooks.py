"""torch's step hooks complete the record of a step: whether it was taken, what it used, how far it went."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.bare_runs import ELEMENTS, SGD, bare_run, give, judged
from helpers.tiny_modules import same_bits

from lightning_calib.steps.optimizer_facts import TrainerClip
from lightning_calib.steps.step_hooks import StepHooks
from lightning_calib.steps.step_record import Kept, Phase, StepRecord

NOBODY = TrainerClip(None, 0.0)
NORM = math.sqrt(ELEMENTS)


class Hooked:
    """One optimizer with our hooks."""

    def __init__(self, make=SGD, clip=NOBODY, computable=True, weights=True, **kwargs):
        self.run, self.told, self.seen = bare_run(make, **kwargs), [], []
        self.hooks = StepHooks(self.run, clip, final_norm_computable=computable, weights=weights, warn=self.told.append)
        self.hooks.see_used = lambda run: self.seen.append(run.record.norm_used)
        self.hooks.attach()

    def step(self, record):
        """Our callbacks judge within the closure, behind the first of torch's hooks."""
        self.run.view.optimizer.step(lambda: self._judge(record))
        return self.run.record

    def _judge(self, record):
        self.run.record = record
        if record.logged and record.live:
            self.hooks.prepare()


class Outer(torch.optim.SGD):
    """Its step calls that of its base class: torch runs the hooks of both."""

    def step(self, closure=None):
        return super().step(closure)


class Plain(torch.optim.Optimizer):
    """One step, and no other inside of it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        if closure is not None:
            closure()
        with torch.no_grad():
            for group in self.param_groups:
                for tensor in group["params"]:
                    tensor.sub_(group["lr"] * tensor.grad)
        self.leave()


class Frees(Plain):
    """Lets go of the gradients within its step."""

    def leave(self):
        self.zero_grad()


class Overwrites(Plain):
    """Leaves something else in the gradients' place."""

    def leave(self):
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.grad.mul_(100.0)


def test_a_judged_step_with_a_gradient_is_taken():
    hooked = Hooked()
    record = hooked.step(judged(hooked.run))
    assert record.phase is Phase.TAKEN
    assert not record.skipped
    torch.testing.assert_close(record.norm_used, torch.tensor(NORM))
    torch.testing.assert_close(record.update.update, torch.tensor(0.1 * NORM, dtype=torch.float64))
    same_bits(hooked.seen, [record.norm_used])


def test_a_judged_step_whose_gradient_was_dropped_is_not_taken():
    hooked = Hooked()
    record = judged(hooked.run)
    hooked.run.view.drop()
    record = hooked.step(record._replace(live=False))
    assert record.phase is Phase.NOT_TAKEN
    assert record.skipped
    assert (record.used, record.norm_used, record.update) == (None, None, None)
    assert hooked.seen == []


def test_a_step_without_a_gradient_is_not_taken():
    hooked = Hooked(gradient=None)
    assert hooked.step(judged(hooked.run, live=False, norm_left=None)).phase is Phase.NOT_TAKEN


@pytest.mark.parametrize("phase", [Phase.RESTING, Phase.TAKEN, Phase.NOT_TAKEN])
def test_a_step_that_was_not_judged_leaves_the_record_as_it_is(phase):
    hooked = Hooked()
    record = judged(hooked.run, phase=phase)
    assert hooked.step(record) is record
    assert hooked.seen == []


def test_of_nested_steps_the_inner_one_completes_the_record():
    hooked = Hooked(partial(Outer, lr=0.1))
    post = []
    hooked.run.view.optimizer.register_step_post_hook(lambda *_: post.append(hooked.run.record))
    record = hooked.step(judged(hooked.run))
    assert len(post) == 2
    assert post[0] is post[1] is record
    assert record.phase is Phase.TAKEN
    assert len(hooked.seen) == 1


@pytest.mark.parametrize(("computable", "phase"), [(True, Phase.TAKEN), (False, Phase.NOT_TAKEN)])
def test_who_may_take_gradients_away_behind_ours_decides_whether_they_are_looked_for(computable, phase):
    hooked = Hooked(computable=computable)
    record = judged(hooked.run, logged=False)
    give(hooked.run.view.module, None)
    assert hooked.step(record).phase is phase


def test_gradients_that_the_step_frees_were_there():
    hooked = Hooked(partial(Frees, lr=0.1), computable=False)
    record = hooked.step(judged(hooked.run))
    assert hooked.hooks.freed
    assert record.phase is Phase.TAKEN
    assert record.norm_used is None  # neither there any more, nor can it be computed


@pytest.mark.parametrize(
    ("clip", "left"), [(NOBODY, 1.0), (TrainerClip("norm", 0.5), 0.5 / NORM), (TrainerClip("norm", 50.0), 1.0)]
)
def test_where_the_step_overwrites_gradients_what_it_used_is_computed(clip, left):
    hooked = Hooked(partial(Overwrites, lr=0.1), clip)
    record = hooked.step(judged(hooked.run))
    torch.testing.assert_close(record.norm_used, torch.tensor(NORM * left), rtol=1e-5, atol=0)
    torch.testing.assert_close(record.used.tensors.square().sum().sqrt(), record.norm_used, rtol=1e-5, atol=0)


def test_a_step_that_is_not_logged_is_not_read():
    hooked = Hooked()
    record = hooked.step(judged(hooked.run, logged=False))
    assert record.phase is Phase.TAKEN
    assert (record.used, record.norm_used, record.update) == (None, None, None)
    assert hooked.hooks.sample is None


def test_weights_are_copied_for_logged_steps_only_and_where_somebody_wants_to_know():
    hooked = Hooked(weights=False)
    record = hooked.step(judged(hooked.run))
    assert record.update is None
    assert record.norm_used is not None


@pytest.mark.parametrize("missing", [False, True])
def test_the_median_ratio_is_of_the_weights_that_had_a_gradient(missing):
    hooked = Hooked()
    first, second = hooked.run.view.module
    if missing:
        first.weight.grad = None
        hooked.run.view.begin_step()
    record = hooked.step(judged(hooked.run))
    torch.testing.assert_close(float(record.update.ratio), 0.1)  # a step of 0.1 on weights of ones
    assert (second.weight != 1.0).all()


def test_the_weights_of_a_step_that_was_never_taken_are_not_compared_with_the_next_one():
    hooked = Hooked()
    hooked.hooks.prepare()  # torch never comes to this step
    with torch.no_grad():
        hooked.run.view.module[0].weight.add_(100.0)
    record = hooked.step(judged(hooked.run))
    torch.testing.assert_close(record.update.update, torch.tensor(0.1 * NORM, dtype=torch.float64), rtol=1e-4, atol=0)


@pytest.mark.parametrize(
    ("clip", "scale", "by_trainer"),
    [
        (TrainerClip("norm", 0.5), 0.5 / NORM, True),
        (TrainerClip("norm", 50.0), 1.0, False),
        (TrainerClip("value", 0.25), 0.25, True),
        (TrainerClip("value", 10.0), 1.0, False),
        (TrainerClip("module", 0.0), 0.5, True),
        (NOBODY, 0.5, False),
    ],
)
def test_a_clip_that_can_only_be_seen_is_counted_when_it_is_seen(clip, scale, by_trainer):
    hooked = Hooked(clip=clip, computable=False)
    record, before = judged(hooked.run), hooked.run.memory
    give(hooked.run.view.module, scale)
    record = hooked.step(record)
    torch.testing.assert_close(record.kept.norm, torch.tensor(NORM * scale), rtol=1e-5, atol=0)
    assert bool(record.kept.by_trainer) is by_trainer
    assert bool(record.reduced) is by_trainer
    steps = hooked.run.memory.steps
    assert (int(steps.known), int(steps.trainer_reduced)) == (1, int(by_trainer))
    assert int(before.steps.known) == 0


def test_what_can_be_computed_is_not_counted_a_second_time():
    hooked = Hooked(computable=True)
    kept = Kept(torch.tensor(NORM), torch.tensor(False))
    record = hooked.step(judged(hooked.run, kept=kept))
    assert record.kept is kept
    assert int(hooked.run.memory.steps.known) == 0  # `StepCounts.add` has done it


def test_a_failure_to_read_ends_its_tags_with_one_line_and_not_the_run():
    hooked = Hooked()

    def fails(run):
        raise MemoryError("no room")

    hooked.hooks.see_used = fails
    for _ in range(3):
        give(hooked.run.view.module, 1.0)
        record = hooked.step(judged(hooked.run))
        assert record.phase is Phase.TAKEN
        assert record.update is not None
    assert hooked.told == ["SGD has no `calib/grad_norm_after` from here on, training goes on: MemoryError('no room')"]


def test_under_a_grad_scaler_the_gradient_is_read_before_the_step():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    hooked = Hooked(partial(torch.optim.SGD, lr=0.1, fused=True), scaler=scaler, gradient=1.0)
    scaler.scale(torch.ones(()))
    give(hooked.run.view.module, 8.0)
    hooked.run.view.look_again()
    hooked.run.record = judged(hooked.run)
    hooked.hooks.prepare()
    scaler.step(hooked.run.view.optimizer)
    record = hooked.run.record
    assert record.phase is Phase.TAKEN
    torch.testing.assert_close(record.norm_used, torch.tensor(NORM))
    assert len(hooked.seen) == 1


def test_a_step_that_a_grad_scaler_skips_stays_judged():
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    hooked = Hooked(scaler=scaler)
    scaler.scale(torch.ones(()))
    give(hooked.run.view.module, math.inf)
    scaler.unscale_(hooked.run.view.optimizer)
    hooked.run.view.look_again()
    hooked.run.record = judged(hooked.run)
    scaler.step(hooked.run.view.optimizer)
    assert hooked.run.record.phase is Phase.JUDGED
    assert hooked.run.record.skipped


def test_without_hooks_nothing_is_noted():
    hooked = Hooked()
    hooked.hooks.detach()
    assert hooked.step(judged(hooked.run)).phase is Phase.JUDGED
    assert hooked.hooks.handles == []
    assert StepRecord().phase is Phase.RESTING
