"""Steps that fail inside of torch's arithmetic, or that are nested."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.rate_probes import Always, Scheduled, Tells, pure, run
from helpers.tiny_modules import make_trainer, same_bits, scaled, weights

from lightning_calib import LearningRateControl

Breaks = partial(Tells, fails=3)


def test_restored_after_an_exception_in_the_arithmetic():
    trainer = make_trainer([LearningRateControl(Always((0.5,)))], limit_train_batches=3)
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(Scheduled(optimizer=Breaks))
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**2, rel=1e-12)


class Survives(Scheduled):
    """Manual optimization that catches a failure of step 2, and tries again or goes on."""

    def __init__(self, where, again, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.where, self.again, self.caught = where, again, 0

    def _closure(self):
        self.optimizers().zero_grad()
        if self.where == "closure" and self.trainer.global_step == 2 and not self.caught:
            raise RuntimeError("out of memory")
        loss = self.loss(self.net, self.trainer.global_step)
        self.manual_backward(loss)
        return loss

    def training_step(self, batch, batch_idx):
        try:
            self.optimizers().step(closure=self._closure)
        except RuntimeError:
            self.caught += 1
            if not self.again:
                return
            self.optimizers().step(closure=self._closure)
        self.lr_schedulers().step()


@pytest.mark.parametrize("again", [False, True])
@pytest.mark.parametrize("where", ["closure", "arithmetic"])
def test_failures_that_the_module_survives(where, again):
    plain, found = (
        run(Survives(where, again, optimizer=Breaks if where == "arithmetic" else Tells), one, 6)
        for one in ([], [LearningRateControl(Always((0.5,)))])
    )
    assert found.module.caught == plain.module.caught == 1
    assert pure(found) == pure(plain)
    assert found.monitored == plain.monitored
    assert found.used == [[rate * 0.5 for rate in rates] for rates in plain.used]


class Decays(torch.optim.SGD):
    """A step around that of the base class: torch's hooks run for both."""

    def __init__(self, params):
        super().__init__(params, lr=0.05)
        self.used = []

    def step(self, closure=None):
        self.used.append([self.param_groups[0]["lr"]])
        loss = super().step(closure)
        self.used[-1].append(self.param_groups[0]["lr"])
        return loss


@pytest.mark.parametrize("plugins", [None, 2.0**9])
def test_an_optimizer_that_calls_the_step_of_its_base_class(plugins):
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters())  # the first instance hooks the class
    found, half = (
        run(Scheduled(optimizer=one), controls, 5, **kwargs)
        for one, controls in [
            (Decays, [LearningRateControl(Always((0.5,)))]),
            (lambda params: torch.optim.SGD(params, lr=0.025), []),
        ]
    )
    same_bits(weights(found.module), weights(half.module))
    before = 0.5 if plugins else 1.0  # without a GradScaler nothing is known before the closure
    assert found.used == [[rate * before, rate * 0.5] for rate in pure(found)]


def test_the_same_in_manual_optimization():
    torch.optim.SGD(torch.nn.Linear(1, 1).parameters())
    found = run(Survives("nowhere", False, optimizer=Decays), [LearningRateControl(Always((0.5,)))], 4)
    assert found.used == [[rate, rate * 0.5] for rate in pure(found)]
