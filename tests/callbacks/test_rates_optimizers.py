"""The factor acts on every optimizer that reads its rate after the closure, and a factor of 1 leaves no trace."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.newer import newer
from helpers.rate_probes import Always
from helpers.tiny_modules import Tiny, different, fit, same_bits, scaled, weights
from torch import nn, optim

from lightning_calib import LearningRateControl, MaxNorm, SpikeBackoff

OPTIMIZERS = {
    "SGD": partial(optim.SGD, momentum=0.9, weight_decay=0.01),
    "SGD fused": partial(optim.SGD, momentum=0.9, fused=True),
    "Adam": optim.Adam,
    "Adam fused": partial(optim.Adam, fused=True),
    "AdamW": partial(optim.AdamW, weight_decay=0.1),
    "NAdam": optim.NAdam,
    "RAdam": optim.RAdam,
    "Adamax": optim.Adamax,
    "RMSprop": optim.RMSprop,
    "Adagrad": optim.Adagrad,
    "Adadelta": optim.Adadelta,
    "ASGD": partial(optim.ASGD, lambd=0.0, alpha=0.0),
    "Adafactor": newer("torch.optim", "Adafactor", "torch 2.5"),
    "Muon": newer("torch.optim", "Muon", "torch 2.9"),
}
TENSORS = ["SGD", "SGD fused", "Adam", "Adam fused", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta"]


def _matrices():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8, bias=False), nn.Tanh(), nn.Linear(8, 1, bias=False))


def _trained(name, lr, callbacks, steps=8, **kwargs):
    module = Tiny(partial(OPTIMIZERS[name], lr=lr), net=_matrices)
    fit(module, callbacks, steps, **kwargs)
    return weights(module)


@pytest.mark.parametrize("plugins", [None, 2.0**9])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_half_the_factor_is_half_the_rate(name, plugins):
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    controlled = _trained(name, 0.02, [LearningRateControl(Always((0.5,)))], **kwargs)
    same_bits(controlled, _trained(name, 0.01, [], **kwargs))
    with different("the rate is halved"):
        same_bits(controlled, _trained(name, 0.02, [], **kwargs))


@pytest.mark.parametrize("name", TENSORS)
def test_half_the_factor_is_half_the_rate_of_a_tensor(name):
    rate = torch.tensor(0.02)
    controlled = _trained(name, rate, [LearningRateControl(Always((0.5,)))])
    same_bits(controlled, _trained(name, torch.tensor(0.01), []))
    assert float(rate) == float(torch.tensor(0.02))


@pytest.mark.parametrize("plugins", [None, 2.0**9])
@pytest.mark.parametrize("rule", [Always(), SpikeBackoff(MaxNorm(1e9))])
def test_a_factor_of_one_leaves_no_trace(rule, plugins):
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    for name in ("SGD", "AdamW", "Adam fused"):
        same_bits(_trained(name, 0.02, [LearningRateControl(rule)], **kwargs), _trained(name, 0.02, [], **kwargs))
