"""The guard among others: whose memory it protects, what it does not mistake for an incident, and the long run."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, FUSED, Micro, Plant, PlantInStep, every, finite, incidents
from helpers.tiny_modules import Grads, Rows, Tiny, fit, norm, same_bits, scaled, weights
from lightning.pytorch import Callback
from torch import nn
from torch.utils.data import DataLoader

from lightning_calib import (
    AdaGC,
    AutoClip,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    NonFiniteGuard,
    Percentile,
    ZClip,
)

NAN, INF = math.nan, math.inf
ADAPTIVE = {
    "zclip": lambda: ZClip(1.5, warmup_steps=3),
    "paper": lambda: ZClip(1.5, warmup_steps=3, robust=False),
    "adagc": lambda: AdaGC(warmup_steps=4),
    "autoclip": lambda: AutoClip(50, window=None),
    "percentile": lambda: GradientClip(Percentile(50, 5, warmup_steps=2)),
}


@pytest.mark.parametrize("place", ["first", "last"])
@pytest.mark.parametrize("precision", ["32-true", "16-mixed", "fused"])
@pytest.mark.parametrize("adaptive", ADAPTIVE.values(), ids=ADAPTIVE)
def test_what_others_remember_is_as_if_the_step_had_not_been(adaptive, precision, place):
    plugins = {} if precision == "32-true" else {"plugins": scaled(2.0**8)}
    optimizer = FUSED if precision == "fused" else ADAM
    states, ends = [], []
    for order in (range(14), [i for i in range(14) if i not in (2, 7, 8)]):
        callback, guard = adaptive(), NonFiniteGuard("skip")
        company = [guard, callback] if place == "first" else [callback, guard]
        module = Micro(optimizer, order, {2: NAN, 7: INF, 8: NAN})
        fit(module, company, len(order), **plugins)
        states.append(callback.state_dict()["optimizers"]["0"]["parts"])
        ends.append(weights(module))
    same_bits(*states)
    same_bits(*ends)


def test_the_guard_looks_before_ours_can_hide_the_evidence(said):
    plant = Plant(every("net.2.weight", [5], [INF, NAN, NAN]))
    fit(Tiny(ADAM), [plant, GradientClip(0.1), GradientCentralize(), NonFiniteGuard("skip")])
    assert "1 of 6 tensors, deepest listed net.2.weight (2 NaN and 1 Inf of 48 elements)" in incidents(said())[0]


@pytest.mark.parametrize("first", ["clip", "guard"])
@pytest.mark.parametrize("action", ["warn", "skip"])
def test_a_foreign_callback_that_plants_between_two_of_ours(action, first, said):
    module, rows = Tiny(ADAM), Rows()
    plant = PlantInStep(every("net.2.weight", [4, 9], [NAN]))
    ours = [ZClip(1.5, warmup_steps=3), NonFiniteGuard(action, max_consecutive=100)]
    before, behind = ours if first == "clip" else ours[::-1]
    fit(module, [before, plant, behind, GradientMonitor(1)], logger=rows)
    lines = incidents(said())
    assert "step 4 (epoch 0, batch 4): the gradient is not finite in 1 of 6 tensors" in lines[0]
    assert finite(module) == (action == "skip")
    if action == "skip":
        assert len(lines) == 2
        assert rows.values("calib/nonfinite_total") == [0] * 4 + [1] * 5 + [2] * 3
        assert rows.values("calib/skipped_total") == [0] * 4 + [1] * 5 + [2] * 3


def test_the_guard_looks_again_for_whoever_stands_behind_a_foreign_callback():
    class Plants(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if trainer.global_step == 4:
                pl_module.net[0].weight.grad[0, 0] = math.nan

    module = Tiny()
    fit(module, [ZClip(), Plants(), ZClip(name="b"), NonFiniteGuard("skip", max_consecutive=1)])
    assert all(bool(parameter.isfinite().all()) for parameter in module.parameters())


def test_a_step_is_one_incident_though_the_guard_looks_twice(said):
    """At the start of the step, and again behind the foreign callback."""
    guard = NonFiniteGuard("warn")
    module = Tiny(partial(torch.optim.SGD, lr=0.0), {3: NAN})
    fit(module, [GradientMonitor(), PlantInStep({}), guard], 4)
    assert guard.state_dict()["optimizers"]["0"]["total"] == 1
    assert len(incidents(said())) == 1


@pytest.mark.parametrize("others", [[], [GradientMonitor()]], ids=["alone", "with the monitor"])
def test_counters_are_logged(others):
    rows = Rows()
    fit(Tiny(ADAM, {1: NAN, 6: INF, 7: NAN}), [NonFiniteGuard("skip"), *others], logger=rows)
    assert rows.steps == [3, 7, 11]
    assert rows.values("calib/nonfinite_total") == [1, 3, 3]
    assert rows.values("calib/skipped_total") == [1, 3, 3]
    assert "calib/loss_scale" not in rows.tags


def test_the_loss_scale_is_logged_without_the_monitor():
    rows = Rows()
    fit(Tiny(ADAM, {2: NAN}), [NonFiniteGuard("skip")], logger=rows, plugins=scaled(2.0**6))
    assert rows.values("calib/loss_scale") == [2.0**5] * 3


class Huge(Tiny):
    """Finite gradients whose squares overflow in float32."""

    def loss(self, net, step):
        return super().loss(net, step) * (1e21 if step in (2, 3) else 1.0)


@pytest.mark.parametrize("company", [[], [GradientClip(0.5)]], ids=["alone", "with a clip"])
@pytest.mark.parametrize("action", ["warn", "skip", "raise"])
def test_a_norm_that_overflows_is_no_incident_and_read_again(action, company, said):
    rows, grads, after = Rows(), Grads(), Grads()
    guard = NonFiniteGuard(action, max_consecutive=0)
    module = Huge(partial(torch.optim.SGD, lr=1e-24 if not company else 0.05))
    fit(module, [grads, *company, guard, after], log_every_n_steps=1, logger=rows)
    assert min(grads.norms[2:4]) > 1.9e19
    assert rows.values("calib/grad_norm_before") == pytest.approx(grads.norms, rel=1e-5)
    assert incidents(said()) == []
    assert rows.values("calib/nonfinite_total")[-1] == 0
    assert guard.state_dict()["optimizers"]["0"]["total"] == 0
    if company:
        assert after.norms[2] == pytest.approx(0.5, rel=1e-5)
        assert norm(weights(module)) < 100


@pytest.mark.filterwarnings("ignore:.*returned `None`.*")
def test_steps_without_a_gradient_are_no_incident(said):
    fit(Tiny(ADAM, {2: None, 3: None}), [NonFiniteGuard("skip", max_consecutive=0)])
    assert incidents(said()) == []


class Thousands(Tiny):
    """One small layer, ten thousand batches, of which every thousandth or so is bad."""

    bad = {17, 1234, 1235, 2500, 4000, 5001, 6502, 7777, 8888, 9999}

    def __init__(self):
        super().__init__(ADAM, net=lambda: nn.Linear(2, 1))
        self.x = torch.randn(16, 2, generator=torch.Generator().manual_seed(1))

    def training_step(self, batch, batch_idx):
        loss = self.net(self.x).square().mean()
        return loss * NAN if batch_idx in self.bad else loss

    def train_dataloader(self):
        return DataLoader(range(10_000), batch_size=None)


@pytest.mark.slow
def test_ten_thousand_steps_with_one_bad_one_in_a_thousand():
    module, guard, rows = Thousands(), NonFiniteGuard("skip"), Rows()
    fit(module, [guard], 10_000, logger=rows, log_every_n_steps=1000)
    assert finite(module)
    assert guard.state_dict()["optimizers"]["0"]["total"] == 10
    assert rows.values("calib/nonfinite_total") == [1, 3, 4, 4, 5, 6, 7, 8, 9, 10]
    assert rows.values("calib/skipped_total")[-1] == 10
