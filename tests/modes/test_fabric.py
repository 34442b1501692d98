"""Callbacks in a Fabric loop, called by name: the same weights as in a Trainer, and their own state."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
import torch
from helpers.tiny_modules import make_trainer, same_bits, scaled
from lightning.fabric import Fabric
from lightning.fabric.plugins import MixedPrecision
from lightning.fabric.utilities.exceptions import MisconfigurationException
from modes.hosts import Held, fabric_loop
from modes.models import Net, data

from lightning_calib import AGC, AutoClip, GradientClip, GradientNormalize, GradientValueClip, MaxNorm, ZClip

SGD = partial(torch.optim.SGD, lr=0.05)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("dry_run", [False, True])
def test_a_loss_scale_is_taken_out_by_the_first_that_acts(fused: bool, dry_run: bool) -> None:
    make = partial(SGD, fused=fused)
    scale = torch.amp.GradScaler("cpu", init_scale=2.0**8)
    both = [GradientClip(1.5, dry_run=dry_run, name="wide"), GradientClip(0.7, dry_run=dry_run)]
    held = fabric_loop(both, make, plugins=[MixedPrecision("16-mixed", "cpu", scale)])
    module = Net(make)
    module.gains = {}
    theirs = [] if dry_run else [GradientClip(0.7)]
    make_trainer(theirs, -1, max_epochs=1, plugins=scaled(2.0**8)).fit(module)
    # Fabric casts the output to float32 before the loss, the Trainer does not
    torch.testing.assert_close([*held.parameters()], [*module.net.parameters()], rtol=1e-3, atol=1e-4)
    counts = [one.state_dict()["optimizers"]["0"]["count"] for one in both]
    fired = [float(one["fired"]) for one in counts]
    assert fired[0] < counts[0]["steps"], "in scaled units it would fire at every step"
    assert fired[1] > 0


def test_a_dry_run_leaves_the_bits_of_the_weights() -> None:
    same_bits([*fabric_loop([GradientClip(0.1, dry_run=True)], SGD).parameters()], [*fabric_loop([], SGD).parameters()])


@pytest.mark.parametrize("make", [partial(AutoClip, 50.0), partial(ZClip, 1.0, warmup_steps=2)])
def test_a_resumed_loop_ends_like_one_that_never_stopped(make: Any) -> None:
    whole, straight = make(), fabric_loop([callback := make()], SGD)
    half = fabric_loop([whole], SGD, slice(0, 3))
    resumed = make()
    resumed.load_state_dict(whole.state_dict())
    same_bits([*fabric_loop([resumed], SGD, slice(3, None), half).parameters()], [*straight.parameters()])
    same_bits(resumed.state_dict(), callback.state_dict())
    forgetful = fabric_loop([make()], SGD, slice(3, None), fabric_loop([make()], SGD, slice(0, 3)))
    assert any(not torch.equal(a, b) for a, b in zip(forgetful.parameters(), straight.parameters(), strict=True))


def test_a_fit_after_the_loop_starts_afresh() -> None:
    callback, other = AutoClip(50.0), AutoClip(50.0)
    fabric_loop([callback], SGD)
    modules = [Net(SGD), Net(SGD)]
    for one, module in zip((callback, other), modules, strict=True):
        make_trainer([one], -1, max_epochs=1).fit(module)
    same_bits(*[[*module.parameters()] for module in modules])
    same_bits(callback.state_dict(), other.state_dict())


def test_several_optimizers_have_a_state_each() -> None:
    fabric, callback = Fabric(accelerator="cpu", devices=1), AutoClip(50.0)
    held = Held()
    halves = [*held.parameters()][:2], [*held.parameters()][2:]
    net, *optimizers = fabric.setup(held, *map(SGD, halves))
    fabric.backward(net(torch.stack([data()[i][0] for i in range(8)])).sum())
    for optimizer in optimizers:
        callback.on_before_optimizer_step(fabric, net, optimizer)
    assert list(callback.state_dict()["optimizers"]) == ["0", "1"]


def test_names_are_those_of_the_module_without_fabrics_wrapper() -> None:
    held = fabric_loop([GradientClip(None, rules={"net.*": 1e-9})], SGD)
    torch.testing.assert_close([*held.parameters()], [*Held().parameters()], rtol=0, atol=1e-8)
    with pytest.raises(ValueError, match=r"encoder"):
        fabric_loop([GradientClip(rules={"encoder.*": 1.0})], SGD)


def test_it_says_what_agc_leaves_out(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "lightning_calib"):
        fabric_loop([AGC()], SGD)
    assert len([one for one in caplog.messages if "leaves out" in one]) == 1


@pytest.mark.parametrize("callback", [GradientClip(MaxNorm(1.0)), GradientNormalize(1.0), GradientValueClip(1.0)])
def test_without_a_fabric_the_precision_is_not_known(callback: Any) -> None:
    held = Held()
    with pytest.raises(MisconfigurationException, match=r"without a Fabric.*Pass `trainer=fabric`"):
        callback.on_before_optimizer_step(None, held, SGD(held.parameters()))


def test_an_optimizer_that_evaluates_twice_is_refused() -> None:
    fabric, held = Fabric(accelerator="cpu", devices=1), Held()
    with pytest.raises(MisconfigurationException, match="LBFGS is not supported"):
        GradientClip(1.0).on_before_optimizer_step(fabric, held, torch.optim.LBFGS(held.parameters()))
