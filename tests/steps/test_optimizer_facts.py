"""What kind of optimizer this is: what its step leaves in `grad`, and what else happens to its gradients."""

from __future__ import annotations

import random
from functools import partial

import pytest
import torch
from helpers.bare_runs import SGD, give, network
from torch import nn

from lightning_calib.steps.optimizer_facts import LeftInGrad, TrainerClip, left_in_grad, pending_scale, scale_within


class Frees(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        self.zero_grad()


class Overwrites(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.grad.add_(random.random() + torch.rand(()))


class Replaces(torch.optim.SGD):
    def step(self, closure=None):
        super().step(closure)
        for group in self.param_groups:
            for tensor in group["params"]:
                tensor.grad = tensor.grad.clone()


class Fails(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("matrices only")


@pytest.mark.parametrize(
    ("make", "wanted"),
    [
        (SGD, LeftInGrad.USED),
        (partial(torch.optim.SGD, lr=0.1, momentum=0.9, nesterov=True, foreach=True), LeftInGrad.OTHER),
        (torch.optim.AdamW, LeftInGrad.USED),
        (partial(Frees, lr=0.1), LeftInGrad.NOTHING),
        (partial(Overwrites, lr=torch.tensor(0.1)), LeftInGrad.OTHER),
        (partial(Replaces, lr=0.1), LeftInGrad.OTHER),
        (partial(Fails, lr=0.1), LeftInGrad.UNKNOWN),
    ],
)
def test_what_a_step_leaves_in_grad_is_tried_on_a_copy(make, wanted):
    net = network()
    give(net, 1.0)
    before, states = [one.detach().clone() for one in net.parameters()], (random.getstate(), torch.get_rng_state())
    assert left_in_grad(make(net.parameters())) is wanted
    torch.testing.assert_close([*net.parameters()], before, rtol=0, atol=0)
    assert random.getstate() == states[0]
    torch.testing.assert_close(torch.get_rng_state(), states[1], rtol=0, atol=0)


@pytest.mark.parametrize(
    ("clip", "text"),
    [
        (TrainerClip("norm", 0.5), "Trainer(gradient_clip_val=0.5)"),
        (TrainerClip("value", 2.0), "Trainer(gradient_clip_val=2, gradient_clip_algorithm='value')"),
        (TrainerClip("module", 0.0), "`configure_gradient_clipping`"),
    ],
)
def test_a_clip_is_called_as_the_user_wrote_it(clip, text):
    assert str(clip) == text


@pytest.mark.parametrize("window_scale", [1.0, 4.0])
@pytest.mark.parametrize("limit", [0.5, 50.0])
def test_the_share_is_what_torchs_clip_leaves(window_scale, limit):
    net = network()
    give(net, 1.0)
    before = nn.utils.clip_grad_norm_(net.parameters(), limit)
    share = TrainerClip("norm", limit).share(before * window_scale, window_scale)
    torch.testing.assert_close(float(share), float(net[0].weight.grad[0, 0]), rtol=0, atol=0)


def test_the_scale_is_in_the_gradients_until_the_scaler_takes_it_out():
    net, scaler = network(), torch.amp.GradScaler("cpu", init_scale=8.0)
    plain, fused = SGD(net.parameters()), torch.optim.SGD(net.parameters(), lr=0.1, fused=True)
    give(net, 8.0)
    scaler.scale(torch.ones(()))
    assert pending_scale(None, fused) is None
    assert pending_scale(scaler, plain) is None
    assert float(pending_scale(scaler, fused)) == float(scale_within(scaler, plain)) == 8.0
    scaler.unscale_(fused)
    assert pending_scale(scaler, fused) is None
