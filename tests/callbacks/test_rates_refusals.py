"""What LearningRateControl refuses: arguments, optimizers, models that are too large; with the reason and a way out."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.rate_probes import Always
from helpers.tiny_modules import Tiny, TwoNets, fit
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_calib import DistanceOverGradients, InverseNorm, LearningRateControl, MaxNorm, Polyak, SpikeBackoff

ALL = [SpikeBackoff, Polyak, DistanceOverGradients, InverseNorm]
Control = partial(LearningRateControl, InverseNorm())
BAD = [
    (LearningRateControl, {"rule": 0.5}, TypeError, ["rule", "0.5", "SpikeBackoff()"]),
    (LearningRateControl, {"rule": None}, TypeError, ["rule", "None"]),
    (LearningRateControl, {"rule": InverseNorm}, TypeError, ["rule", "InverseNorm"]),
    (LearningRateControl, {"rule": MaxNorm(1.0)}, TypeError, ["rule", "MaxNorm"]),
    (LearningRateControl, {"rule": "polyak"}, TypeError, ["rule", "'polyak'"]),
    (Control, {"max_factor": 0}, ValueError, ["max_factor", "(0, inf]", "0", "math.inf"]),
    (Control, {"max_factor": -1.0}, ValueError, ["max_factor", "-1.0"]),
    (Control, {"max_factor": math.nan}, ValueError, ["max_factor", "nan"]),
    (Control, {"max_factor": None}, TypeError, ["max_factor", "None"]),
    (Control, {"max_factor": True}, TypeError, ["max_factor", "True"]),
    (Control, {"min_factor": -0.1}, ValueError, ["min_factor", "[0, 1]", "-0.1"]),
    (Control, {"min_factor": 1.5}, ValueError, ["min_factor", "[0, 1]", "1.5"]),
    (Control, {"min_factor": 0.5, "max_factor": 0.25}, ValueError, ["min_factor", "[0, 0.25]", "0.5"]),
    (Control, {"min_factor": math.nan}, ValueError, ["min_factor", "nan"]),
    (Control, {"min_factor": "0"}, TypeError, ["min_factor", "'0'"]),
    (Control, {"name": ""}, ValueError, ["name", "''"]),
    (Control, {"name": "a/b"}, ValueError, ["name", "'a/b'"]),
    (Control, {"name": 3}, TypeError, ["name", "3"]),
]


@pytest.mark.parametrize(("make", "arguments", "error", "parts"), BAD, ids=[f"{case[1]}" for case in BAD])
def test_message_has_name_rule_value_and_remedy(make, arguments, error, parts):
    with pytest.raises(error) as caught:
        make(**arguments)
    text = str(caught.value)
    assert all(part in text for part in [*parts, "must be", ", got "])
    assert text.endswith(".")


@pytest.mark.parametrize("make", ALL)
def test_every_rule_works_without_arguments(make):
    """And is told in the start line."""
    optimizer = partial(torch.optim.SGD, lr=0.05)
    fit(Tiny(optimizer), [LearningRateControl(make())], 3)


def test_the_start_line_names_the_rule(said):
    fit(Tiny(), [LearningRateControl(InverseNorm(2.0), name="one")], 1)
    assert "LearningRateControl(one): InverseNorm(target=2.0)" in said()[0]


class ZeroRedundancyOptimizer(torch.optim.SGD):
    """Known by its name: the real one needs several processes."""


class Mine(torch.optim.Rprop):
    """A subclass reads the rate as early."""


@pytest.mark.parametrize(
    ("optimizer", "parts"),
    [
        (torch.optim.LBFGS, ["LBFGS", "several times per step", "another optimizer"]),
        (torch.optim.Rprop, ["Rprop", "before the gradients are known", "another optimizer"]),
        (Mine, ["Mine", "Rprop", "before the gradients are known", "another optimizer"]),
        (partial(ZeroRedundancyOptimizer, lr=0.1), ["ZeroRedundancyOptimizer", "copies", "another optimizer"]),
    ],
)
def test_optimizers_that_read_their_rate_too_early(optimizer, parts):
    with pytest.raises(MisconfigurationException) as caught:
        fit(Tiny(optimizer), [LearningRateControl(Always())], 1)
    assert all(part in str(caught.value) for part in [*parts, "LearningRateControl"])


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, torch.optim.AdamW, torch.optim.RMSprop, torch.optim.Adagrad])
def test_dog_refuses_optimizers_that_rescale(optimizer):
    with pytest.raises(MisconfigurationException) as caught:
        fit(Tiny(partial(optimizer, lr=0.1)), [LearningRateControl(DistanceOverGradients())], 1)
    text = str(caught.value)
    assert all(part in text for part in [optimizer.__name__, "plain SGD", "torch.optim.SGD(lr=1.0)", "SpikeBackoff()"])
    assert text.endswith(".")
    assert not text.endswith("..")


def test_one_of_two_optimizers_is_enough():
    sgd, adam = partial(torch.optim.SGD, lr=0.1), partial(torch.optim.Adam, lr=0.1)
    with pytest.raises(MisconfigurationException, match="Adam"):
        fit(TwoNets(sgd, adam), [LearningRateControl(DistanceOverGradients())], 2)


def test_a_copy_of_the_weights_above_64_megabytes_is_refused():
    def wide():
        return nn.Sequential(nn.Linear(4, 2**12), nn.Linear(2**12, 2**12), nn.Linear(2**12, 1))

    with pytest.raises(ValueError, match="DistanceOverGradients") as caught:
        fit(Tiny(net=wide), [LearningRateControl(DistanceOverGradients())], 1)
    assert all(part in str(caught.value) for part in ["64 MB", "InverseNorm()"])


class NoLoss(TwoNets):
    """Both backward passes first: whose loss is whose cannot be known."""

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        for optimizer, net in ((first, self.net), (second, self.other)):
            optimizer.zero_grad()
            self.manual_backward(self.loss(net, 0))
        first.step()
        second.step()


def test_a_step_without_its_own_loss():
    sgd = partial(torch.optim.SGD, lr=0.1)
    with pytest.raises(MisconfigurationException, match="needs the loss of every step") as caught:
        fit(NoLoss(sgd, sgd), [LearningRateControl(Polyak())], 2)
    assert "self.manual_backward(loss)" in str(caught.value)
    fit(NoLoss(sgd, sgd), [LearningRateControl(InverseNorm())], 2)
