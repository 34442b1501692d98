"""Ways of stepping under which nothing can be judged right: refused by who acts, told by who observes."""

import logging

import pytest
import torch
from helpers.tiny_modules import Rows, Tiny, fit
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import BaseFinetuning, Callback

from lightning_calib import (
    DistanceOverGradients,
    GradientClip,
    GradientMonitor,
    LearningRateControl,
    NonFiniteGuard,
    ZClip,
)


class Sharp(torch.optim.SGD):
    """Evaluates its closure twice per step, as sharpness-aware minimisation does."""

    def step(self, closure=None):
        with torch.enable_grad():
            closure()
        return super().step(closure)


class Bypasses(Tiny):
    """Manual optimization with torch's own optimizer."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers(use_pl_optimizer=False)
        optimizer.zero_grad()
        self.manual_backward(self.loss(self.net, batch_idx))
        optimizer.step()


CASES = [
    pytest.param(lambda: Tiny(lambda parameters: Sharp(parameters, lr=0.01)), ["Sharp", "several times"], id="twice"),
    pytest.param(Bypasses, ["use_pl_optimizer=False", "`self.optimizers()`"], id="bypass"),
]


@pytest.mark.parametrize(("module", "words"), CASES)
@pytest.mark.parametrize("make", [ZClip, lambda: NonFiniteGuard("skip")])
def test_refused_by_who_acts(module, words, make):
    with pytest.raises(MisconfigurationException) as error:
        fit(module(), [make()], max_epochs=2)
    assert all(word in str(error.value) for word in words)


@pytest.mark.parametrize(("module", "words"), CASES)
def test_told_once_by_who_observes(module, words, caplog):
    rows = Rows()
    with caplog.at_level(logging.WARNING, "lightning_calib"):
        fit(module(), [GradientMonitor(1)], logger=rows, max_epochs=2)
    told = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert len(told) == 1
    assert all(word in told[0] for word in words)
    assert not [tag for _, row in rows.rows for tag in row if tag == "calib/grad_norm_after"]


class Unfreezes(BaseFinetuning):
    """Holds the first layer back, and lets it in after the first epoch."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.net[0])

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.unfreeze_and_add_param_group(pl_module.net[0], optimizer)


class Last(Callback):
    """Sees what is left of the first layer's gradient."""

    def __init__(self):
        super().__init__()
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradient = pl_module.net[0].weight.grad
        self.norms += [] if gradient is None else [float(gradient.norm())]


def test_parameters_that_join_later_are_clipped_by_a_rule_of_their_own():
    last, module = Last(), Tiny(lambda parameters: torch.optim.SGD([p for p in parameters if p.requires_grad], lr=0.01))
    fit(module, [Unfreezes(), GradientClip(None, rules={"net.0.*": 1e-3}), last], 12)
    assert len(last.norms) == 5
    assert max(last.norms) <= 1e-3 * (1 + 1e-5)


def test_distance_over_gradients_refuses_momentum():
    with pytest.raises(MisconfigurationException, match=r"momentum 0\.9 lengthens every step.*momentum=0\.0"):
        fit(
            Tiny(lambda parameters: torch.optim.SGD(parameters, lr=1.0, momentum=0.9)),
            [LearningRateControl(DistanceOverGradients())],
        )
