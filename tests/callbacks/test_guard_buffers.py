"""BatchNorm's statistics after a forward pass that saw Inf; other buffers; weights."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, FUSED, MOMENTUM, Micro, MicroTwoNets, finite, incidents
from helpers.tiny_modules import data, fit, same_bits, scaled
from torch import nn

from lightning_calib import NonFiniteGuard

INF = math.inf
PRECISIONS = pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])


def normalised():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def _mode(precision):
    return {"plugins": scaled(2.0**8)} if precision == "16-mixed" else {"precision": precision}


class Inputs(Micro):
    """The input, not the loss, is poisoned: `gains` has the value of one input element."""

    def loss(self, net, step):
        x, y = data(step)
        if step in self.gains:
            x[3, 1] = self.gains[step]
        return nn.functional.mse_loss(net(x), y)


class InputsTwoNets(MicroTwoNets):
    loss = Inputs.loss


def evaluated(module):
    return module.net.eval()(data(99)[0])


@PRECISIONS
@pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM, FUSED], ids=["momentum", "adam", "fused"])
@pytest.mark.parametrize("second_of_four", [False, True])
def test_the_model_evaluates_to_finite_numbers_after_the_skip(precision, optimizer, second_of_four, said):
    size = 4 if second_of_four else 1
    module = Inputs(optimizer, range(3 * size), {size + size // 4: INF}, normalised)
    fit(module, [NonFiniteGuard("skip")], 2, accumulate_grad_batches=size, **_mode(precision))
    assert finite(module)
    assert evaluated(module).isfinite().all()
    (line,) = incidents(said())
    assert "BatchNorm statistics were not finite and are put back (net.1.running_mean, net.1.running_var)" in line


@pytest.mark.parametrize("size", [1, 4])
def test_they_are_what_they_were_before_the_window(size):
    module = Inputs(ADAM, range(2 * size), {2 * size - 2 * (size // 4) - 1: INF}, normalised)
    healthy = Inputs(ADAM, range(size), {}, normalised)
    fit(module, [NonFiniteGuard("skip")], 2, accumulate_grad_batches=size)
    fit(healthy, [], 1, accumulate_grad_batches=size)
    for name in ("running_mean", "running_var"):
        same_bits(getattr(module.net[1], name), getattr(healthy.net[1], name))
    assert module.net[1].num_batches_tracked == 2 * size, "a count is finite: nothing to mend"
    same_bits(evaluated(module), evaluated(healthy))


def test_finite_statistics_are_left_alone():
    """The loss is bad, the forward pass was not: what BatchNorm has seen may stay."""
    module, healthy = Micro(ADAM, range(1), {0: INF}, normalised), Micro(ADAM, range(1), {}, normalised)
    fit(module, [NonFiniteGuard("skip")], 1)
    fit(healthy, [], 1)
    same_bits(module.net[1].running_mean, healthy.net[1].running_mean)


@PRECISIONS
def test_a_window_of_a_manual_loop(precision):
    """Nobody tells the guard how many batches there are to a step: it sees the steps."""
    module = InputsTwoNets(ADAM, MOMENTUM, range(12), {5: INF}, 4)
    module.net = normalised()
    fit(module, [NonFiniteGuard("skip")], -1, max_epochs=1, **_mode(precision))
    assert evaluated(module).isfinite().all()


@pytest.mark.parametrize("action", ["warn", "skip"])
def test_other_buffers_are_reported_and_not_restored(action, said):
    module = Inputs(ADAM, range(3), {1: INF}, Remembering)
    fit(module, [NonFiniteGuard(action)], 2)
    assert not module.net.seen.isfinite().all()
    assert "other buffers are not finite and stay so (net.seen)" in incidents(said())[0]


class Remembering(nn.Sequential):
    def __init__(self):
        super().__init__(nn.Linear(4, 1))
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x):
        self.seen += x.detach().mean(0)
        return super().forward(x)


def test_warn_leaves_statistics_as_they_are(said):
    module = Inputs(partial(torch.optim.SGD, lr=0.0), range(2), {1: INF}, normalised)
    fit(module, [NonFiniteGuard("warn")], 2)
    assert not finite(module)
    assert "BatchNorm statistics are not finite (net.1.running_mean, net.1.running_var)" in incidents(said())[0]


def test_statistics_that_were_bad_before_the_window_are_told_as_such(said):
    module = Inputs(ADAM, range(3), {1: INF}, normalised)
    module.net[1].running_var[0] = INF
    fit(module, [NonFiniteGuard("skip")], 2)
    (line,) = incidents(said())
    assert "BatchNorm statistics are not finite (net.1.running_var) and were not before the window" in line
    assert "are put back (net.1.running_mean)" in line


def test_statistics_that_were_replaced_during_the_run_are_the_ones_kept():
    class Resets(Inputs):
        def on_train_batch_start(self, batch, batch_idx):
            if batch_idx == 1:
                self.net[1].running_mean = torch.full((8,), 0.25)

    module = Resets(ADAM, range(4), {3: INF}, normalised)
    fit(module, [NonFiniteGuard("skip")], 4)
    assert evaluated(module).isfinite().all()


@pytest.mark.parametrize("affine", [True, False])
def test_batch_norm_without_running_statistics(affine):
    """It has none to keep, and the model none to lose."""
    net = partial(
        lambda: nn.Sequential(
            nn.Linear(4, 8), nn.BatchNorm1d(8, affine=affine, track_running_stats=False), nn.Linear(8, 1)
        )
    )
    module = Inputs(ADAM, range(3), {1: INF}, net)
    fit(module, [NonFiniteGuard("skip")], 3)
    assert finite(module)


def test_the_message_counts_what_it_does_not_list(said):
    module = Inputs(ADAM, range(2), {1: INF}, lambda: nn.Sequential(*normalised()[:3], *normalised()[1:]))
    module.net[3] = nn.BatchNorm1d(8)
    fit(module, [NonFiniteGuard("skip")], 2)
    assert "(net.1.running_mean, net.1.running_var and 2 more)" in incidents(said())[0]
