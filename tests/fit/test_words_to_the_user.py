"""Names, doubts and refusals that need no Trainer, and the logger that says them."""

from __future__ import annotations

import logging
import math
import subprocess
import sys
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers.bare_runs import SGD, network
from torch import nn

from lightning_calib import DistanceOverGradients, InverseNorm, Polyak
from lightning_calib.fit.base_rate import base_rate, doubt_of_rate
from lightning_calib.fit.messages import say, warn
from lightning_calib.fit.parameter_names import check_globs, check_name, first_match
from lightning_calib.fit.unsupported import unseen_step, unsupported_optimizer, unsupported_strategy


class DeepSpeedStrategy:
    pass


class Mine(DeepSpeedStrategy):
    pass


class Skips(torch.optim.Optimizer):
    """Its constructor skips that of its base class."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params), "lr": 0.1}]

    def step(self, closure=None):
        pass


class Wraps(Skips):
    """Hands hooks on to the optimizer inside."""

    def register_step_pre_hook(self, hook):
        raise NotImplementedError


class Bare:
    """Registers nothing at all."""

    def __init__(self, params):
        self.param_groups = [{"params": list(params)}]


def test_strategies_by_their_name_or_a_base_class():
    for strategy in (DeepSpeedStrategy(), Mine()):
        reason = unsupported_strategy(SimpleNamespace(strategy=strategy))
        assert reason.startswith("DeepSpeedStrategy is not supported: DeepSpeed keeps the gradients to itself")
    assert unsupported_strategy(SimpleNamespace(strategy=object())) is None


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (SGD, None),
        (Wraps, None),
        (torch.optim.LBFGS, "it evaluates the gradient several times per step"),
        (Skips, "its constructor skips that of `torch.optim.Optimizer`"),
        (Bare, "`step` runs none of torch's hooks"),
    ],
)
def test_optimizers(make, text):
    reason = unsupported_optimizer(make(network().parameters()))
    assert reason is None if text is None else text in reason


def test_where_a_step_need_not_be_seen_hooks_are_not_needed():
    assert unsupported_optimizer(Skips(network().parameters()), hooks=False) is None


def test_an_unseen_step_is_told_by_who_took_it():
    one, other = SGD(network().parameters()), torch.optim.AdamW(network().parameters())
    assert "use_pl_optimizer=False" in unseen_step(one, one)
    assert unseen_step(other, one).startswith("AdamW has stepped the parameters of SGD by itself")


@pytest.mark.parametrize(
    ("group", "wanted"),
    [
        ({"lr": 0.1}, 0.1),
        ({"lr": 0.01, "initial_lr": 0.1}, 0.1),
        ({"lr": 0.01, "initial_lr": 0.04, "max_lr": 1.0}, 1.0),
        ({"lr": torch.tensor(0.5)}, 0.5),
        ({"lr": None}, None),
        ({}, None),
    ],
)
def test_the_rate_that_a_schedule_varies(group, wanted):
    assert base_rate(group) == wanted


def test_a_rule_for_one_rate_is_doubted_at_another():
    at = partial(torch.optim.SGD, list(network().parameters()))
    assert doubt_of_rate(Polyak(), at(lr=1.0), math.inf) is None
    assert doubt_of_rate(InverseNorm(), at(lr=0.1), 1.0) is None
    doubt = doubt_of_rate(DistanceOverGradients(), at(lr=0.1), 2.0)
    assert "SGD has lr=0.1, by which every step is multiplied. Use plain SGD with lr=1.0 and max_factor=" in doubt
    groups = [{"params": [nn.Parameter(torch.ones(1))], "lr": rate} for rate in (0.1, 0.2)]
    assert "lr=0.1 and lr=0.2" in doubt_of_rate(Polyak(), torch.optim.SGD([*groups, {"params": [], "lr": 3.0}]), 1.0)


def test_globs_and_names():
    names = ["encoder.weight", "head.bias"]
    assert first_match("head.bias", ["*.weight", "head.*", "*"]) == "head.*"
    assert first_match("head.bias", []) is None
    check_globs("rules", ["*.bias", "encoder.*"], names)
    with pytest.raises(ValueError, match=r"got 'headd.\*', which matches none. The nearest names are: head.bias"):
        check_globs("rules", ["headd.*"], names)
    with pytest.raises(ValueError, match="the model has no parameters"):
        check_globs("rules", ["*"], [])
    for name in (None, "encoder"):
        check_name(name)
    for name in ("", "a/b"):
        with pytest.raises(ValueError, match="a non-empty text without a slash"):
            check_name(name)
    with pytest.raises(TypeError, match="a non-empty text without a slash"):
        check_name(3)


def test_a_line_and_a_line_that_asks_for_attention(caplog):
    caplog.set_level(logging.INFO, logger="lightning_calib")
    say("one")
    warn("two")
    assert [(one.levelname, one.getMessage()) for one in caplog.records] == [
        ("INFO", "[calib] one"),
        ("WARNING", "[calib] two"),
    ]


@pytest.mark.parametrize("setup", ["", "import logging; logging.basicConfig()"])
def test_each_line_comes_once_with_and_without_logging_of_the_programs_own(setup):
    code = f"{setup}\nfrom lightning_calib.fit.messages import warn\nwarn('look')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.count("[calib] look") == 1
