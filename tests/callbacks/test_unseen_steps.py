"""Optimizer steps that Lightning's hook does not announce are refused by who acts and told once by who observes."""

from functools import partial

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, fit, same_bits, weights
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGuard, ZClip


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation as it is mostly written: an inner optimizer, and two halves of a step."""

    def __init__(self, params, base, rho=0.05, **options):
        super().__init__(params, {"rho": rho, **options})
        self.inner = base(self.param_groups, **options)
        self.param_groups = self.inner.param_groups

    @torch.no_grad()
    def first_step(self):
        self.old = [p.clone() for group in self.param_groups for p in group["params"]]
        for group in self.param_groups:
            for p in group["params"]:
                p.add_(p.grad, alpha=group["rho"])

    @torch.no_grad()
    def second_step(self):
        for p, old in zip([p for group in self.param_groups for p in group["params"]], self.old, strict=True):
            p.copy_(old)
        self.inner.step()

    def step(self, closure=None):
        raise AssertionError("in two halves only")


class Manual(Tiny):
    def __init__(self, *args):
        super().__init__(*args)
        self.automatic_optimization = False


class TwoHalves(Manual):
    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        for half in (optimizer.first_step, optimizer.second_step):
            optimizer.zero_grad()
            self.manual_backward(self.loss(self.net, batch_idx))
            half()


class Inner(Manual):
    """Steps the optimizer inside of the one that Lightning knows; `given` calls it with a closure."""

    def __init__(self, optimizer, given=False):
        super().__init__(optimizer)
        self.given = given

    def training_step(self, batch, batch_idx):
        inner = self.optimizers(use_pl_optimizer=False).inner
        inner.zero_grad()

        def closure():
            self.manual_backward(self.loss(self.net, batch_idx))

        if self.given:
            inner.step(closure)
        else:
            closure()
            inner.step()


class Raw(Tiny):
    """Automatic optimization, but `optimizer_step` goes past Lightning."""

    def optimizer_step(self, epoch, batch_idx, optimizer, optimizer_closure):
        optimizer_closure()
        optimizer.optimizer.step()


SGD = partial(torch.optim.SGD, lr=0.05)
SHARP = partial(SAM, base=torch.optim.SGD, lr=0.05)
UNSEEN = {
    "SAM by two calls": (partial(TwoHalves, SHARP), "SGD has stepped the parameters of SAM by itself"),
    "fused inside": (partial(TwoHalves, partial(SAM, base=torch.optim.Adam, lr=0.01, fused=True)), "Adam has stepped"),
    "inner": (partial(Inner, SHARP), "SGD has stepped the parameters of SAM"),
    "inner with a closure": (partial(Inner, SHARP, given=True), "SGD has stepped the parameters of SAM"),
    "raw in optimizer_step": (partial(Raw, SGD), "has gone past Lightning"),
}
ACTING = {
    "GradientClip": partial(GradientClip, 1e-6),
    "ZClip": ZClip,
    "guard": partial(NonFiniteGuard, "skip"),
}


def process_wide():
    return [*_global_optimizer_pre_hooks.values(), *_global_optimizer_post_hooks.values()]


@pytest.mark.parametrize(("make", "words"), UNSEEN.values(), ids=UNSEEN)
@pytest.mark.parametrize("callback", ACTING.values(), ids=ACTING)
def test_who_acts_refuses_at_the_first_step(make, words, callback):
    module = make()
    before, hooks = weights(module), process_wide()
    with pytest.raises(MisconfigurationException, match=rf"cannot act here\. .*{words}.*Use "):
        fit(module, [callback()], max_epochs=1)
    if make.func is not Inner or not module.given:
        same_bits(weights(module), before)
    assert process_wide() == hooks


@pytest.mark.parametrize(("make", "words"), UNSEEN.values(), ids=UNSEEN)
def test_who_observes_says_so_once_and_the_run_keeps_its_bits(make, words, said):
    watched, bare, rows = make(), make(), Rows()
    fit(watched, [GradientMonitor(1), NonFiniteGuard()], -1, max_epochs=2, logger=rows)
    fit(bare, [], -1, max_epochs=2)
    same_bits(weights(watched), weights(bare))
    assert len([line for line in said() if words in line and "GradientMonitor stays silent" in line]) == 1
    assert len([line for line in said() if words in line and "NonFiniteGuard stays silent" in line]) == 1
    assert not [tag for tag in rows.tags if "norm" in tag]


class Lookahead(torch.optim.Optimizer):
    """A wrapper with hooks: its step contains those of two inner optimizers."""

    def __init__(self, params, closed):
        params = list(params)
        super().__init__(params, {"lr": 0.05})
        self.inner, self.closed = [SGD(params[:2]), SGD(params[2:])], closed

    def step(self, closure=None):
        first, second = self.inner
        if self.closed:
            first.step(closure)
        else:
            with torch.enable_grad():
                closure()
            first.step()
        second.step()


class Twice(torch.optim.SGD):
    """Its step is its base's, whose hooks run inside of its own."""

    def step(self, closure=None):
        return super().step(closure)


class Aside(Tiny):
    """Trains something of its own in `training_step`, which is none of our business."""

    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.aside = torch.nn.Parameter(torch.ones(2))
        self.other = SGD([self.aside])

    def training_step(self, batch, batch_idx):
        self.aside.grad = torch.ones(2)
        self.other.step()
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        return self.optimizer(self.net.parameters())


class Retries(Manual):
    """An exception out of the middle of a step, which the module catches."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(self.loss(self.net, batch_idx))
        try:
            optimizer.step(self.fail)
        except ZeroDivisionError:
            optimizer.step()

    def fail(self):
        raise ZeroDivisionError


SEEN = {
    "inner steps inside of a step": partial(Tiny, partial(Lookahead, closed=False)),
    "the same with the closure": partial(Tiny, partial(Lookahead, closed=True)),
    "a step inside of itself": partial(Tiny, partial(Twice, lr=0.05)),
    "another optimizer": partial(Aside, SGD),
    "a step again after an exception": partial(Retries, SGD),
}


@pytest.mark.parametrize("make", SEEN.values(), ids=SEEN)
def test_steps_that_are_announced_are_judged(make):
    rows, module, free = Rows(), make(), make()
    fit(module, [GradientClip(0.05), GradientMonitor(1)], 12, logger=rows)
    assert len(rows.values("calib/grad_norm_before")) == 12
    fit(free, [], 12)
    assert any(not torch.equal(a, b) for a, b in zip(weights(module), weights(free), strict=True))


class Lets(Callback):
    """Steps the optimizer by itself, when ours have gone."""

    def on_fit_end(self, trainer, pl_module):
        self.stepped = trainer.optimizers[0].step()


def test_after_the_fit_anybody_may_step():
    lets, hooks = Lets(), process_wide()
    fit(Tiny(), [GradientClip(1.0), lets], 3)
    assert hasattr(lets, "stepped")
    assert process_wide() == hooks
