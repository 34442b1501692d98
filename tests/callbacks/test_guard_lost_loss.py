"""A loss that is not finite while the gradient is: told once, nothing is dropped; and no word where both are bad."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, FUSED, Micro
from helpers.tiny_modules import Tiny, fit, same_bits, scaled, weights

from lightning_calib import LearningRateControl, NonFiniteGuard, Polyak, SpikeGuard, ZClip

NAN, INF = math.nan, math.inf


class Detached(Tiny):
    """Of some steps the loss has a term that is not finite, and has no gradient."""

    bad = {3: NAN, 5: -INF, 6: NAN}

    def loss(self, net, step):
        return super().loss(net, step) + self.bad.get(step, 0.0)


def lost(lines: list[str]) -> list[str]:
    return [line for line in lines if "the gradient is finite" in line]


@pytest.mark.parametrize("action", ["warn", "skip", "raise"])
@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
def test_it_is_told_once_with_what_it_means_and_every_step_is_taken(action, optimizer, said):
    module, guard = Detached(optimizer), NonFiniteGuard(action)
    fit(module, [guard, ZClip()])
    (line,) = lost(said())
    assert line.startswith("[calib] step 3 (epoch 0, batch 3): the loss is nan, and the gradient is finite")
    assert "The step is taken, because its update is finite, too. Mend that term" in line
    assert line.endswith("This is told once in a fit. See docs/my-loss-is-nan.md.")
    plain = Tiny(optimizer)
    fit(plain, [ZClip()])
    same_bits(weights(module), weights(plain))
    state = guard.state_dict()
    assert (state["optimizers"]["0"]["total"], state["tally"]["0"]["skipped"]) == (0, 0)


def test_a_second_fit_is_told_again(said):
    guard = NonFiniteGuard()
    for _ in range(2):
        fit(Detached(ADAM), [guard])
    assert len(lost(said())) == 2


def test_a_finite_loss_is_not_told(said):
    fit(Tiny(ADAM), [NonFiniteGuard("skip")])
    assert lost(said()) == []


def test_where_the_gradient_is_bad_too_it_is_an_incident_and_the_other_is_told_when_it_comes(said):
    class Both(Detached):
        bad = {8: INF}

    guard = NonFiniteGuard("skip")
    fit(Both(ADAM, {2: NAN}), [guard])
    assert guard.state_dict()["optimizers"]["0"]["total"] == 1
    (line,) = lost(said())
    assert "step 8 " in line
    assert "the loss is inf," in line
    assert "it is too large for its type, as in a training that explodes, or what is not finite in it has no" in line


@pytest.mark.parametrize("bad", [4, 7], ids=["first", "last"])
def test_any_micro_batch_of_a_window_counts(bad, said):
    class Window(Micro):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + (NAN if batch_idx == bad else 0.0)

    fit(Window(ADAM, range(12)), [NonFiniteGuard("skip")], -1, max_epochs=1, accumulate_grad_batches=4)
    (line,) = lost(said())
    assert "step 1 (epoch 0, batch 7)" in line


def test_under_a_scaler(said):
    fit(Detached(ADAM), [NonFiniteGuard("skip")], plugins=scaled(2.0**6))
    assert len(lost(said())) == 1


class Vectors(Tiny):
    """By hand, with losses of several elements and of other shapes in one window."""

    def __init__(self, bad: float) -> None:
        super().__init__(partial(torch.optim.SGD, lr=0.1))
        self.automatic_optimization, self.bad = False, bad

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for size in (3, 2):
            loss = self.net(torch.ones(size, 4)).square().flatten()
            loss = loss + (self.bad if batch_idx == 1 and size == 2 else 0.0)
            self.manual_backward(loss, gradient=torch.ones_like(loss))
        optimizer.step()


@pytest.mark.parametrize("bad", [0.0, NAN])
def test_a_loss_of_several_elements(bad, said):
    fit(Vectors(bad), [NonFiniteGuard("skip")], 4)
    assert len(lost(said())) == (bad != 0.0)


@pytest.mark.parametrize("order", [1, -1])
def test_beside_a_guard_that_reads_the_loss_as_well(order, said):
    module = Detached(partial(torch.optim.SGD, lr=0.01))
    fit(module, [NonFiniteGuard(), SpikeGuard()][::order])
    assert len(lost(said())) == 1


def test_a_rule_and_both_guards_read_the_same_loss():
    def run(*guards):
        module = Micro(partial(torch.optim.SGD, lr=1.0), range(12))
        fit(module, [LearningRateControl(Polyak()), *guards], 3, accumulate_grad_batches=4)
        return weights(module)

    same_bits(run(NonFiniteGuard(), SpikeGuard()), run())
