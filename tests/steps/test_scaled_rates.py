"""Learning rates are scaled within torch's step, and pure on every path out of it."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.bare_runs import SGD, give, network
from helpers.tiny_modules import same_bits

from lightning_calib.steps.scaled_rates import ScaledRates, rate_of, rates_in_use, with_inner
from lightning_calib.steps.step_record import StepRates


class Grows(torch.optim.SGD):
    """Makes its rate 1.5 times as large, within the step."""

    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            group["lr"] = group["lr"] * 1.5


class Breaks(torch.optim.SGD):
    """Fails in the middle of a step."""

    def step(self, closure=None):
        super().step(closure)
        raise RuntimeError("out of memory")


class Looks(torch.optim.SGD):
    """Keeps the rate that it used, and what a checkpoint within the step would save of it."""

    def step(self, closure=None):
        if closure is not None:
            closure()
        self.used = [rate_of(group) for group in self.param_groups]
        self.saved = [rate_of(group) for group in self.state_dict()["param_groups"]]


LOOKS = partial(Looks, lr=0.5)


class Held:
    def __init__(self, make=LOOKS, groups=1):
        self.net = network()
        layers = [{"params": list(layer.parameters())} for layer in self.net]
        self.optimizer = make(layers if groups == 2 else self.net.parameters())
        self.rates = ScaledRates(self.optimizer)
        self.rates.attach()

    def step(self, *factors):
        """Each one of the factors, for all groups, within the step, as without a GradScaler."""
        give(self.net, 1.0)
        groups = len(self.optimizer.param_groups)
        self.optimizer.step(lambda: [self.rates.scale([factor] * groups) for factor in factors] and None)
        return [rate_of(group) for group in self.optimizer.param_groups]


@pytest.mark.parametrize("rate", [0.5, torch.tensor(0.5)])
def test_a_factor_holds_for_one_step_and_is_seen_by_nobody_else(rate):
    held = Held(partial(Looks, lr=rate))
    same_bits(held.step(0.25), [rate])
    same_bits([held.optimizer.used, held.optimizer.saved], [[0.125 * rate / 0.5], [rate]])
    held.step()
    same_bits(held.optimizer.used, [rate])


def test_several_factors_multiply():
    held = Held()
    assert held.step(0.5, 0.25) == [0.5]
    assert held.optimizer.used == [0.0625]


def test_a_tensor_rate_keeps_its_identity():
    rate = torch.tensor(0.5)
    held = Held(partial(Looks, lr=rate))
    held.step(0.25)
    assert held.optimizer.param_groups[0]["lr"] is rate
    assert float(rate) == 0.5


def test_factors_that_come_before_the_step_wait_for_it():
    held = Held()
    assert held.rates.scale([0.5]) == [0.5]
    held.rates.scale([0.5])
    assert held.optimizer.param_groups[0]["lr"] == 0.5
    assert held.step() == [0.5]
    assert held.optimizer.used == [0.125]
    held.step()
    assert held.optimizer.used == [0.5]


def test_factors_of_a_step_that_never_came_lapse():
    held = Held()
    held.rates.scale([0.5])
    held.rates.lapse()
    held.step()
    assert held.optimizer.used == [0.5]


@pytest.mark.parametrize("factor", [0.5, 2.0, 1.0])
def test_a_rate_that_the_optimizer_changes_keeps_the_change(factor):
    assert Held(partial(Grows, lr=0.5)).step(factor) == [0.75]


def test_after_a_factor_of_zero_there_is_no_proportion():
    assert Held().step(0.0) == [0.5]
    held = Held(partial(Grows, lr=0.5))
    assert held.step(0.0) == [0.5]  # 1.5 times zero is what it was given


def test_after_a_step_that_broke_the_next_one_begins_with_the_pure_rate():
    held = Held(partial(Breaks, lr=0.5))
    with pytest.raises(RuntimeError, match="out of memory"):
        held.step(0.25)
    assert held.optimizer.param_groups[0]["lr"] == 0.125
    held.rates.reset()
    assert held.optimizer.param_groups[0]["lr"] == 0.5
    assert held.rates.frames == []


def test_a_frame_that_an_exception_has_left_does_not_keep_the_scaled_rate():
    held = Held(partial(Breaks, lr=0.5))
    with pytest.raises(RuntimeError, match="out of memory"):
        held.step(0.25)
    held.rates.lapse()
    held.optimizer.__class__ = Looks
    assert held.step(0.25) == [0.5]
    assert held.optimizer.used == [0.125]


def test_groups_that_share_a_tensor_take_the_least_of_their_factors_once():
    rate = torch.tensor(0.5)
    held = Held(partial(Looks, lr=rate), groups=2)
    used = []
    give(held.net, 1.0)
    held.optimizer.step(lambda: used.append(held.rates.scale([0.5, 0.25])))
    same_bits(used, [[torch.tensor(0.25)] * 2])
    same_bits(held.optimizer.used, [torch.tensor(0.125)] * 2)
    assert float(rate) == 0.5


def test_groups_with_numbers_have_factors_of_their_own():
    held = Held(groups=2)
    give(held.net, 1.0)
    held.optimizer.step(lambda: held.rates.scale([0.5, 0.25]))
    assert held.optimizer.used == [0.25, 0.125]
    assert [group["lr"] for group in held.optimizer.param_groups] == [0.5, 0.5]


def test_detached_the_rates_are_pure_and_stay_so():
    held = Held()
    held.rates.scale([0.5])
    held.rates.detach()
    held.step()
    assert held.optimizer.used == [0.5]
    assert held.rates.handles == []


# What a step uses


@pytest.mark.parametrize(
    ("group", "wanted"),
    [({"lr": 0.5}, StepRates(0.5, 0.5)), ({"d": 2.0, "lr": 0.5}, StepRates(0.5, 1.0)), ({}, StepRates(None, None))],
)
def test_rates_in_use(group, wanted):
    optimizer = SGD(network().parameters())
    del optimizer.param_groups[0]["lr"]
    optimizer.param_groups[0].update(group)
    assert rates_in_use(optimizer, None) == wanted


def test_the_scale_in_use_and_an_optimizer_without_groups():
    optimizer, scaler = SGD(network().parameters()), torch.amp.GradScaler("cpu", init_scale=8.0)
    assert rates_in_use(optimizer, scaler) == StepRates(0.1, 0.1, 8.0)
    optimizer.param_groups.clear()
    assert rates_in_use(optimizer, None) == StepRates(None, None)


def test_an_optimizer_and_those_that_it_wraps():
    inner, outer = SGD(network().parameters()), SGD(network().parameters())
    outer.base, inner.back = inner, outer
    assert with_inner(outer) == [outer, inner]
    assert ScaledRates(outer).saving() == [outer, inner]
