"""What the guard says about an incident: exactly what is bad, where, and what is done about it."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, FUSED, MOMENTUM, Micro, Plant, every, finite, incidents
from helpers.tiny_modules import Tiny, fit, make_trainer, network, same_bits, scaled, weights
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from lightning_calib import GradientMonitor, NonFiniteGradientError, NonFiniteGuard

NAN, INF = math.nan, math.inf


@pytest.mark.parametrize("name", ["net.0.weight", "net.2.bias", "net.4.weight"])
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM], ids=["momentum", "adam"])
def test_the_exact_tensor_is_named_though_the_trainer_clips(name, optimizer, said):
    """After `clip_grad_norm_` every tensor is NaN."""
    module = Tiny(optimizer)
    plant = Plant(every(name, [7], [NAN, INF, INF]))
    fit(module, [plant, NonFiniteGuard("skip")], gradient_clip_val=0.5)
    (line,) = incidents(said())
    size = dict(module.named_parameters())[name].numel()
    wanted = f"1 of 6 tensors, deepest listed {name} (1 NaN and 2 Inf of {size} elements)"
    assert wanted in line
    assert line.startswith("[calib] step 7 (epoch 1, batch 0): ")
    assert finite(module)


def test_the_deepest_listed_is_the_last_in_module_order(said):
    """Whatever the order of the optimizer's groups."""
    backwards = partial(lambda parameters: torch.optim.SGD(list(parameters)[::-1], lr=0.1))
    bad = {"net.0.bias": [NAN], "net.4.weight": [INF, -INF], "net.2.weight": [NAN]}
    fit(Tiny(backwards), [Plant({2: bad}), NonFiniteGuard("skip")])
    (line,) = incidents(said())
    assert "in 3 of 6 tensors, deepest listed net.4.weight (0 NaN and 2 Inf of 6 elements)" in line


@pytest.mark.parametrize("precision", ["32-true", "16-mixed"])
def test_loss_is_unscaled_and_undivided(precision, said):
    kwargs = {"plugins": scaled(2.0**6)} if precision == "16-mixed" else {"precision": precision}
    module, losses = Micro(partial(torch.optim.SGD, lr=0.25), range(4)), []
    module.loss = lambda net, step: losses.append(Micro.loss(module, net, step)) or losses[-1]
    if precision == "16-mixed":  # a finite loss with a bad gradient would be an overflow
        module.gains = {1: INF}
    plant = Plant({0: {"net.0.weight": [NAN]}})
    fit(module, [plant, NonFiniteGuard("skip")], 1, accumulate_grad_batches=4, **kwargs)
    (line,) = incidents(said())
    assert f"; loss {losses[-1].item():.6g}, learning rate 0.25" in line
    assert (", loss scale 64;" in line) == (precision == "16-mixed")


def test_a_window_is_dropped_as_a_whole_and_its_bad_micro_batch_named(said):
    fit(Micro(ADAM, range(12), {5: NAN}), [NonFiniteGuard("skip")], -1, max_epochs=1, accumulate_grad_batches=4)
    (line,) = incidents(said())
    assert "step 1 (epoch 0, batch 7)" in line
    assert "the loss was not finite in micro-batch 5 of batches 4 to 7" in line
    assert "the step (a window of 4 micro-batches) is skipped, 1 in a row, 1 in all" in line


def test_a_window_whose_losses_are_finite_is_told_as_such(said):
    plant = Plant(every("net.2.bias", [1]))
    fit(Micro(ADAM, range(12)), [plant, NonFiniteGuard("skip")], -1, max_epochs=1, accumulate_grad_batches=4)
    assert "the loss of every micro-batch was finite" in incidents(said())[0]


def test_the_short_window_at_the_end_of_an_epoch_is_one(said):
    fit(Micro(ADAM, range(6), {4: NAN}), [NonFiniteGuard("skip")], -1, max_epochs=1, accumulate_grad_batches=4)
    assert "micro-batch 4 of batches 4 to 5" in incidents(said())[0]


class GraphlessTwice(Tiny):
    """By hand, two losses per step: the second one is bad."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        optimizer.zero_grad()
        for gain in (1.0, NAN if batch_idx == 3 else 1.0):
            self.manual_backward(self.loss(self.net, batch_idx) * gain)
        optimizer.step()


def test_manual_optimization_with_two_losses(said):
    module = GraphlessTwice(ADAM)
    module.automatic_optimization = False
    fit(module, [NonFiniteGuard("skip")])
    lines = incidents(said())
    assert [line.split(":")[0] for line in lines] == [
        "[calib] step 3 (epoch 0, batch 3)",
        "[calib] step 10 (epoch 1, batch 3)",
    ]
    assert "loss nan" in lines[0]
    assert "1 in a row, 2 in all" in lines[1]


def test_weights_that_are_not_finite_already_are_told(said):
    module = Tiny(ADAM)
    with torch.no_grad():
        module.net[4].bias.fill_(INF)
        module.net[0].weight[0, 0] = NAN
    with pytest.raises(NonFiniteGradientError):
        fit(module, [NonFiniteGuard("skip")])
    assert "weights are not finite either (net.0.weight, net.4.bias), which no skipped step can mend" in said()[1]


def test_healthy_weights_are_told(said):
    fit(Tiny(ADAM, {2: NAN}), [NonFiniteGuard("skip")])
    assert "; weights and buffers are finite; the step is skipped, 1 in a row, 1 in all." in incidents(said())[0]


def test_one_line_per_incident_with_any_company(said):
    guard, plant = NonFiniteGuard("skip", max_consecutive=20), Plant(every("net.0.bias", [1, 2, 6, 7]))
    fit(Tiny(ADAM), [plant, guard, GradientMonitor()])
    lines = incidents(said())
    assert [re.search(r"step (\d+)", line)[1] for line in lines] == ["1", "2", "7"]
    assert [re.search(r"(\d+) in a row, (\d+) in all", line).groups() for line in lines] == [
        ("1", "1"),
        ("2", "2"),
        ("2", "4"),
    ]
    assert not any("\n" in line for line in lines)


def test_a_flood_is_thinned_out(said):
    fit(Tiny(ADAM), [Plant(every("net.0.bias", range(40))), NonFiniteGuard("skip", max_consecutive=100)], 40)
    counts = [int(re.search(r"(\d+) in all", line)[1]) for line in incidents(said())]
    assert counts == [1, 2, 4, 8, 16, 32]


def test_nothing_is_said_on_other_ranks(said, monkeypatch):
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    fit(Tiny(ADAM, {2: NAN}), [NonFiniteGuard("skip")])
    assert said() == []


def test_the_start_line_says_what_it_does(said):
    fit(Tiny(), [NonFiniteGuard("skip")], 1)
    assert "NonFiniteGuard: skip" in said()[0]


def test_a_sparse_gradient_is_looked_into(said):
    module = SparseRows()
    before = weights(module)
    fit(module, [NonFiniteGuard("skip")], 1)
    (line,) = incidents(said())
    assert "deepest listed net.weight (2 NaN and 0 Inf of 8 elements)" in line
    same_bits(weights(module), before)


class SparseRows(Tiny):
    """Rows 1, 1 and 3 are looked up; row 3 gets a bad gradient in two of its four elements."""

    def __init__(self):
        super().__init__(partial(torch.optim.SGD, lr=0.1), net=lambda: nn.Embedding(6, 4, sparse=True))

    def training_step(self, batch, batch_idx):
        rows = self.net(torch.tensor([1, 1, 3]))
        return (rows * torch.tensor([[1.0] * 4, [1.0] * 4, [NAN, NAN, 1.0, 1.0]])).sum()


def test_before_the_fit_it_is_just_arguments():
    guard = NonFiniteGuard("skip", max_consecutive=3, max_total=7, save_batch_to="bad")
    assert (guard.action, guard.max_consecutive, guard.max_total, guard.save_batch_to) == ("skip", 3, 7, "bad")
    assert make_trainer([guard]).callbacks[-1] is not None
    assert network()[0].weight.isfinite().all()


@pytest.mark.parametrize("optimizer", [ADAM, FUSED], ids=["adam", "fused"])
def test_counts_are_of_elements_under_a_scaler_too(optimizer, said):
    module = Tiny(optimizer, {2: NAN})
    fit(module, [NonFiniteGuard("skip")], plugins=scaled(2.0**8))
    (line,) = incidents(said())
    assert "in 6 of 6 tensors, deepest listed net.4.bias (1 NaN and 0 Inf of 1 elements)" in line
    assert ", loss scale 256;" in line
