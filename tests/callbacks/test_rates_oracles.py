"""DoG, Polyak and InverseNorm, end to end, against loops in float64 that know nothing of ours."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.rate_probes import Scheduled, Told, run
from helpers.tiny_modules import Grads, Tiny, data, fit, network, same_bits, scaled, weights
from torch import nn

from lightning_calib import DistanceOverGradients, GradientClip, InverseNorm, LearningRateControl, Polyak

STEPS = 60
UNIT = partial(torch.optim.SGD, lr=1.0)


def _double():
    return network().double()


def _loop(step_length):
    """Gradient descent by hand; `step_length(t, loss, gradients, weights)` is the learning rate."""
    net, lengths = _double(), []
    for t in range(STEPS):
        x, y = data(t, torch.float64)
        loss = nn.functional.mse_loss(net(x), y)
        grads = torch.autograd.grad(loss, list(net.parameters()))
        lengths.append(step_length(loss.item(), grads, list(net.parameters())))
        with torch.no_grad():
            for p, g in zip(net.parameters(), grads, strict=True):
                p -= lengths[-1] * g
    return weights(net), lengths


def _square(tensors):
    return sum(t.detach().square().sum().item() for t in tensors)


def _dog(initial):
    memory = {"start": None, "farthest": 0.0, "squares": 0.0}

    def length(loss, grads, now):
        if memory["start"] is None:
            memory["start"] = [p.detach().clone() for p in now]
            memory["farthest"] = initial * (1 + math.sqrt(_square(now)))
        moved = math.sqrt(_square([p.detach() - s for p, s in zip(now, memory["start"], strict=True)]))
        memory["farthest"] = max(memory["farthest"], moved)
        memory["squares"] += _square(grads)
        return memory["farthest"] / math.sqrt(memory["squares"] + 1e-8)

    return length


def _polyak(damping, growth, per_epoch):
    memory = {"last": 1.0}

    def length(loss, grads, now):
        smooth = growth ** (1 / per_epoch) * memory["last"]
        memory["last"] = min(loss / (damping * _square(grads) + 1e-8), smooth)
        return memory["last"]

    return length


def _inverse(loss, grads, now):
    return 0.3 / math.sqrt(_square(grads))


CASES = {
    "DoG": (DistanceOverGradients(1e-3), partial(_dog, 1e-3)),
    "DoG of the paper": (DistanceOverGradients(), partial(_dog, 1e-6)),
    "Polyak": (Polyak(growth_steps=7), partial(_polyak, 0.5, 2.0, 7)),
    "Polyak, free": (Polyak(damping=8.0, growth=math.inf), partial(_polyak, 8.0, math.inf, 7)),
    "InverseNorm": (InverseNorm(0.3), lambda: _inverse),
}


@pytest.mark.parametrize("name", CASES)
def test_sixty_steps_by_hand(name):
    rule, reference = CASES[name]
    wanted, lengths = _loop(reference())
    module = Tiny(UNIT, net=_double)
    found = run(module, [LearningRateControl(rule, max_factor=math.inf)], STEPS, limit_train_batches=7)
    # sums in another order: rounding of float64, grown over 60 steps
    assert found.rows.values("calib/lr_effective") == pytest.approx(lengths, rel=1e-9)
    for now, then in zip(weights(module), wanted, strict=True):
        torch.testing.assert_close(now, then, rtol=1e-9, atol=1e-12)
    assert len(set(lengths)) > STEPS // 2


def test_updates_of_one_length():
    module = Tiny(partial(torch.optim.SGD, lr=0.1), net=_double)
    found = run(module, [LearningRateControl(InverseNorm(), max_factor=math.inf)], 8)
    before = found.rows.values("calib/grad_norm_before")
    used = found.rows.values("calib/lr_effective")
    assert [n * rate for n, rate in zip(before, used, strict=True)] == pytest.approx([0.1] * 8, rel=1e-6)


class Losses(Scheduled):
    """Keeps the losses as the user wrote them."""

    def training_step(self, batch, batch_idx):
        loss = self.loss(self.net, 100 * self.current_epoch + batch_idx)
        self.__dict__.setdefault("losses", []).append((self.current_epoch, loss.item()))
        return loss


@pytest.mark.parametrize("plugins", [None, 2.0**9])
@pytest.mark.parametrize("parts", [1, 3])
def test_the_loss_is_the_undivided_mean_over_the_window(parts, plugins):
    """Seven batches in threes: the last window of an epoch holds one."""
    told, module = Told(), Losses()
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    run(module, [LearningRateControl(told)], 28, limit_train_batches=7, accumulate_grad_batches=parts,
        max_epochs=2, **kwargs)  # fmt: skip
    wanted = []
    for epoch in (0, 1):
        losses = [loss for e, loss in module.losses if e == epoch]
        wanted += [sum(losses[i : i + parts]) / len(losses[i : i + parts]) for i in range(0, 7, parts)]
    rel = 1e-6  # float32; the scale is a power of two
    assert [one.loss.item() for one in told.heard] == pytest.approx(wanted, rel=rel)


def test_polyak_in_a_short_window_is_that_of_its_batch():
    """Lightning divides its one gradient by three; the rule sees loss and norm of one and the same function."""
    told, module = Told(), Losses(optimizer=partial(torch.optim.SGD, lr=0.0))
    run(module, [LearningRateControl(told)], 3, limit_train_batches=7, accumulate_grad_batches=3)
    net = network()
    loss = module.loss(net, 6)
    wanted = math.sqrt(_square(torch.autograd.grad(loss, list(net.parameters()))))
    torch.testing.assert_close(told.heard[2].loss, loss.detach(), rtol=1e-6, atol=0)
    assert told.heard[2].norms.item() == pytest.approx(wanted, rel=1e-6)


@pytest.mark.parametrize("plugins", [None, 2.0**9])
@pytest.mark.parametrize("place", [0, 1, 2])
def test_the_rule_sees_the_norms_before_clipping(place, plugins):
    """Wherever the control stands, and with a foreign callback between ours."""
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    plain, told = Told(), Told()
    run(Scheduled(optimizer=partial(torch.optim.SGD, lr=0.0)), [LearningRateControl(plain)], 4, **kwargs)
    callbacks = [GradientClip(0.01), Grads()]
    callbacks.insert(place, LearningRateControl(told))
    run(Scheduled(optimizer=partial(torch.optim.SGD, lr=0.0)), callbacks, 4, **kwargs)
    same_bits([one.norms for one in told.heard], [one.norms for one in plain.heard])
    assert min(one.norms.item() for one in told.heard) > 0.1


def test_the_user_s_loss_is_not_written():
    """With several backward passes for one step."""

    class Manual(Scheduled):
        def __init__(self):
            super().__init__()
            self.automatic_optimization, self.kept = False, []

        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            for part in (0, 1):
                loss = self.loss(self.net, part)
                self.manual_backward(loss)
                self.kept.append((loss, loss.item()))
            self.optimizers().step()

    told, module = Told(), Manual()
    fit(module, [LearningRateControl(told)], 2)
    assert all(loss.item() == value for loss, value in module.kept)
    pairs = [module.kept[0][1] + module.kept[1][1], module.kept[2][1] + module.kept[3][1]]
    assert [one.loss.item() for one in told.heard] == pytest.approx(pairs, rel=1e-6)


def test_a_nan_does_not_enter_the_state():
    control = LearningRateControl(DistanceOverGradients(1e-3), max_factor=math.inf)
    polyak = LearningRateControl(Polyak(), max_factor=math.inf)
    for callback in (control, polyak):
        kwargs = {"plugins": scaled(2.0**9)}
        trainer = run(Tiny(UNIT, gains={2: math.nan, 4: math.inf}), [callback], 7, **kwargs).trainer
        saved = callback.state_dict()["optimizers"]["0"]["state"]
        assert all(value.isfinite().all() for value in saved.values())
        assert all(w.isfinite().all() for w in weights(trainer.lightning_module))
