"""The steps of a fit, seen by all callbacks: who measures, who looks again, what each phase leaves, who gives up."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.bare_runs import ELEMENTS, SGD, BareFit, Clip, Foreign, Tab, Watches, Written, give, network

from lightning_calib.fit.participant import Needs, Participant
from lightning_calib.steps.step_record import Overflow, Phase

NORM = math.sqrt(ELEMENTS)
FUSED = partial(torch.optim.SGD, lr=0.1, fused=True)
INF = math.inf


class Drops(Watches):
    """Drops each step whose norm is above 100, as a guard does."""

    def __init__(self, **needs):
        super().__init__(guards=True, **needs)

    def _inspect(self, view, record):
        if float(view.norm()) < 100:
            return record
        view.drop()
        return record._replace(live=False, overflow=Overflow(True, False))

    _inspect_again = _inspect


class Fails(Watches):
    def _act(self, view, record):
        raise MemoryError("no room")


class Twice(torch.optim.SGD):
    """Evaluates its closure twice per step."""

    def step(self, closure=None):
        closure()
        super().step(closure)


def norms(clip):
    return [float(one) for one in clip.saw]


def close(found, wanted):
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


# Readings


def test_each_callback_sees_what_the_ones_before_it_have_left():
    first, second = Clip(2.0), Clip(1.0, key="second")
    fit = BareFit([first, second, Watches()])
    fit.step(1.0)
    close(norms(first) + norms(second), [NORM, 2.0])
    record = fit.run().record
    close(float(record.norm_before), NORM)
    close(float(record.norm_left), 1.0)
    close(float(record.kept.norm), 1.0)


def test_behind_a_foreign_callback_the_gradients_are_read_again():
    first, second = Clip(10.0), Clip(10.0, key="second")
    fit = BareFit([first, Foreign(0.5), second])
    fit.step(1.0)
    close(norms(first) + norms(second), [NORM, NORM / 2])
    assert fit.session.facts.behind_foreign == {second}


def test_a_foreign_callback_that_takes_the_gradients_away_ends_the_step():
    first, second = Clip(10.0), Clip(10.0, key="second")
    fit = BareFit([first, Foreign(None), second])
    fit.step(1.0)
    assert (len(first.saw), len(second.saw)) == (1, 0)
    record = fit.run().record
    assert (record.phase, record.live, record.norm_left) == (Phase.NOT_TAKEN, False, None)
    fit.end_batch()
    memory = fit.run().memory
    assert (memory.steps.steps, memory.steps.skipped) == (1, 1)
    assert [int(one.fired) for one in memory.clips.values()] == [0, 0]


def test_a_guard_looks_first_wherever_it_stands_and_again_behind_foreign_code():
    clip, guard = Clip(1.0), Drops()
    fit = BareFit([clip, Foreign(1e6), guard])
    fit.step(1.0)
    assert fit.run().record.phase is Phase.NOT_TAKEN  # what the foreign callback made of it
    fit.end_batch()
    fit.step(1000.0)
    assert len(clip.saw) == 1  # dropped before anybody acts
    fit.end_batch()
    steps = fit.run().memory.steps
    assert (steps.steps, steps.skipped, int(steps.nonfinite)) == (2, 2, 2)


def test_the_norm_after_all_is_not_known_where_foreign_code_comes_last():
    fit = BareFit([Clip(2.0), Foreign(0.5)])
    fit.step(1.0)
    assert fit.run().record.kept is None
    assert not fit.session.facts.final_norm_computable


@pytest.mark.parametrize(("limit", "by_trainer"), [(0.5, True), (5.0, False)])
def test_what_the_trainer_leaves_is_computed(limit, by_trainer):
    fit = BareFit([Clip(2.0), Watches()], gradient_clip_val=limit)
    fit.step(1.0)
    kept = fit.run().record.kept
    close(float(kept.norm), min(limit, 2.0))
    assert bool(kept.by_trainer) is by_trainer
    fit.end_batch()
    assert int(fit.run().memory.steps.trainer_reduced) == by_trainer


@pytest.mark.parametrize(("passes", "scale"), [(4, 1.0), (2, 2.0), (1, 4.0)])
def test_a_short_window_counts_as_a_whole_one(passes, scale):
    clip = Clip(100.0)
    fit = BareFit([clip], accumulate_grad_batches=4)
    fit.step(1.0, passes=passes)
    close(norms(clip), [scale * NORM])
    assert fit.run().record.window_scale == scale


# Phases


def test_after_each_batch_every_optimizer_rests():
    fit = BareFit([Clip(2.0)])
    for gradient in (1.0, None, INF):
        fit.step(gradient)
        assert fit.run().record.turn
        fit.end_batch()
        assert fit.run().record.phase is Phase.RESTING


def test_a_step_that_was_not_taken_counts_once_however_many_batches_follow():
    fit = BareFit([Drops(), Clip(2.0)], [SGD, SGD], manual=True)
    fit.step(1000.0, 0)
    for _ in range(4):
        fit.step(1.0, 1)
        fit.end_batch()
    assert [fit.run(i).memory.steps.skipped for i in (0, 1)] == [1, 0]
    fit.step(1.0, 0)
    fit.end_batch()
    assert fit.run(0).memory.steps.skipped == 1


def test_of_two_steps_in_a_batch_each_counts():
    fit = BareFit([Drops(), Clip(2.0)], manual=True)
    for gradient in (1000.0, 1.0, 1000.0):
        fit.step(gradient)
    fit.end_batch()
    steps = fit.run().memory.steps
    assert (steps.steps, steps.skipped, int(steps.nonfinite)) == (3, 2, 2)


def test_gradients_of_an_earlier_step_pass_through_unseen():
    clip = Clip(2.0)
    fit = BareFit([clip])
    fit.batch(1.0)
    fit.step(5.0, passes=0)
    record = fit.run().record
    assert (record.phase, record.live, record.norm_before) == (Phase.RESTING, False, None)
    fit.end_batch()
    assert len(clip.saw) == 1
    assert (fit.run().memory.steps.steps, fit.run().memory.steps.skipped) == (1, 0)


def test_a_batch_without_any_gradient_is_a_step_that_was_skipped():
    fit = BareFit([Clip(2.0)])
    fit.step(None, passes=0)
    assert fit.run().record.phase is Phase.NOT_TAKEN
    fit.end_batch()
    assert (fit.run().memory.steps.steps, fit.run().memory.steps.skipped) == (0, 1)


@pytest.mark.parametrize(("make", "skipped", "in_kernel"), [(SGD, 1, 0), (FUSED, 0, 1)])
def test_an_overflow_under_a_grad_scaler_counts_once_as_skipped(make, skipped, in_kernel):
    fit = BareFit([Watches()], [make], scaler=torch.amp.GradScaler("cpu", init_scale=4.0))
    fit.batch(1.0)
    fit.batch(INF)
    fit.batch(1.0)
    steps = fit.run().memory.steps
    assert (steps.steps, steps.skipped, int(steps.kernel_skipped), int(steps.nonfinite)) == (3, skipped, in_kernel, 0)


# Rows


@pytest.mark.parametrize(
    ("options", "wanted"),
    [({}, [1, 3, 5]), ({"log_every_n_steps": 3}, [2, 5]), ({"fast_dev_run": True}, [*range(6)])],
)
def test_rows_are_written_when_they_are_due(options, wanted):
    written = Written()
    fit = BareFit([Watches()], loggers=[written], **options)
    for _ in range(6):
        fit.batch()
    assert [step for step, _ in written.rows] == wanted


def test_a_callback_may_want_rows_more_often_and_zero_is_never():
    often, never = Written(), Written()
    fit = BareFit([Watches(every_n_steps=3), Watches(every_n_steps=2)], loggers=[often], log_every_n_steps=50)
    silent = BareFit([Watches()], loggers=[never], log_every_n_steps=0)
    for _ in range(4):
        fit.batch()
        silent.batch()
    assert [step for step, _ in often.rows] == [1, 3]
    assert never.rows == []


def test_a_batch_in_which_no_optimizer_stepped_has_no_row():
    written = Written()
    fit = BareFit([Watches()], loggers=[written])
    fit.batch()
    fit.end_batch()
    assert written.rows == []


# Whose gradients cannot be judged


def test_an_observer_that_fails_falls_silent_and_the_run_goes_on():
    fails, watches = Fails(), Watches()
    fit = BareFit([fails, watches])
    fit.batch()
    fit.batch()
    assert fails.refused == watches.refused == ["The gradients of SGD could not be measured: MemoryError('no room')."]
    assert fit.run().record.phase is Phase.RESTING


def test_beside_a_callback_that_acts_a_failure_ends_the_run():
    fit = BareFit([Clip(1.0), Fails()])
    with pytest.raises(MemoryError, match="no room"):
        fit.step()


def test_on_several_processes_a_failure_beside_a_guard_ends_the_run():
    fit = BareFit([Drops(), Fails()], world_size=2)
    with pytest.raises(MemoryError, match="no room"):
        fit.step()


def test_an_optimizer_that_evaluates_its_closure_twice_is_refused():
    watches = Watches()
    fit = BareFit([watches], [partial(Twice, lr=0.1)])
    fit.batch()
    (reason,) = watches.refused
    assert "Twice is not supported: it evaluates the gradient several times per step" in reason


def test_an_optimizer_without_torchs_hooks_is_left_alone():
    fit = BareFit([Watches()], [torch.optim.LBFGS, SGD], manual=True)
    assert list(fit.session.runs) == [id(fit.trainer.optimizers[1])]


@pytest.mark.parametrize("here", [True, False])
def test_a_step_past_lightning_is_refused_where_our_callbacks_are_in_the_trainers_list(here):
    watches = Watches()
    fit = BareFit([watches])
    fit.trainer.callbacks = [watches] if here else []
    give(fit.nets[0], 1.0)
    fit.trainer.optimizers[0].step()
    assert len(watches.refused) == here
    assert all("gone past Lightning" in reason for reason in watches.refused)


def test_an_optimizer_that_takes_anothers_place_takes_over_its_memory():
    clip = Clip(2.0)
    fit = BareFit([clip, Tab()])
    fit.batch(1.0)
    old = fit.run()
    fit.trainer.optimizers[0] = SGD(fit.nets[0].parameters())
    fit.batch(1.0)
    new = fit.run()
    assert new is not old
    assert list(fit.session.runs.values()) == [new]
    assert (new.memory.steps.steps, old.memory.steps.steps) == (2, 1)
    assert int(new.memory.clips["Clip"].fired) == 2
    assert new.memory.norms.seen == 2


def test_an_optimizer_that_the_trainer_does_not_know_is_not_judged():
    clip = Clip(2.0)
    fit = BareFit([clip])
    net = network()
    give(net, 1.0)
    fit.session.turn(clip, SGD(net.parameters()))
    assert clip.saw == []


def test_detached_hooks_are_gone():
    class Scales(Watches):
        _needs = Needs(acts=False, scales_rates=True)

        def __init__(self):
            self.refused = []

    fit = BareFit([Scales()])
    optimizer = fit.trainer.optimizers[0]
    assert len(optimizer._optimizer_step_pre_hooks) == 2
    fit.session.detach()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks


def test_what_is_given_to_callbacks_at_the_start():
    callbacks = [Clip(1.0), Watches()]
    fit = BareFit(callbacks, [SGD, SGD], manual=True)
    start = fit.session.start()
    assert (start.participants, start.trainer, start.module) == (callbacks, fit.trainer, fit.module)
    assert [view.suffix for view in start.views] == ["/0", "/1"]


def test_a_kind_of_callback_must_say_how_it_refuses():
    one = Participant()
    assert (one._label, one.state_key, one._start(None)) == ("Participant", "Participant", None)
    with pytest.raises(NotImplementedError):
        one._refuse("because")
