"""Optimizers that overwrite their gradients, or get them changed behind ours: what they used is right or left out."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.tiny_modules import Grads, Rows, Tiny, fit
from lightning.pytorch import Callback

from lightning_calib import GradientMonitor


class Consumes(torch.optim.SGD):
    """Leaves zeros behind, as optimizers do that work in place."""

    def step(self, closure=None):
        loss = super().step(closure)
        for p in self.param_groups[0]["params"]:
            p.grad.zero_()
        return loss


class Fussy(Consumes):
    """Cannot be made without its friends."""

    def __init__(self, params, lr, friend):
        super().__init__(params, lr)
        self.friend = friend


FRIEND = object()


@pytest.mark.parametrize("optimizer", [partial(Consumes, lr=0.05), partial(Fussy, lr=0.05, friend=FRIEND)])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_optimizer_of_others_that_overwrites_its_gradients(optimizer, clip):
    rows, after = Rows(), Grads()
    fit(Tiny(optimizer), [after, GradientMonitor(1)], logger=rows, gradient_clip_val=clip)
    wanted = [min(n, clip or n) for n in after.norms]
    found = rows.values("calib/grad_norm_after")
    assert found == [] or found == pytest.approx(wanted, rel=1e-4), "computed or absent, never what was left behind"


class Louder(Tiny):
    """Multiplies the gradients after all callbacks."""

    def on_before_optimizer_step(self, optimizer):
        for p in self.parameters():
            p.grad.mul_(1000.0)


class LouderCallback(Callback):
    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for p in pl_module.parameters():
            p.grad.mul_(1000.0)


QUIET = dict.fromkeys(range(20), 0.01)


SGD = partial(torch.optim.SGD, lr=1e-5)


NESTEROV = partial(torch.optim.SGD, lr=1e-5, momentum=0.9, nesterov=True, foreach=True)


@pytest.mark.parametrize("optimizer", [SGD, NESTEROV])
@pytest.mark.parametrize("where", ["module", "callback"])
def test_what_others_do_after_ours_is_seen_or_left_out(where, optimizer):
    rows, module = Rows(), (Louder if where == "module" else Tiny)(optimizer, QUIET)
    last = [LouderCallback()] if where == "callback" else []
    fit(module, [GradientMonitor(1), *last], logger=rows)
    before, after = rows.values("calib/grad_norm_before"), rows.values("calib/grad_norm_after")
    assert after == pytest.approx([1000 * n for n in before] if optimizer is SGD else [], rel=1e-5)


@pytest.mark.parametrize("optimizer", [SGD, NESTEROV])
@pytest.mark.parametrize("where", ["module", "callback"])
def test_trainers_clip_is_not_judged_by_norms_that_it_does_not_see(where, optimizer):
    """Ours see 0.01, others make it 10, the Trainer clips at 0.25: on all steps, and never on none of them."""
    rows, module, monitor = Rows(), (Louder if where == "module" else Tiny)(optimizer, QUIET), GradientMonitor(1)
    last = [LouderCallback()] if where == "callback" else []
    fit(module, [monitor, *last], logger=rows, gradient_clip_val=0.25)
    assert max(rows.values("calib/grad_norm_before")) < 0.25
    assert set(rows.values("calib/clip_fraction")) <= {1.0}
    assert "never" not in monitor.summary()
