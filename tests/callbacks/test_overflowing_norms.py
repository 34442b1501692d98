"""Fits whose finite gradients have squares that overflow in float32: clipped, counted and controlled as any other."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import Plant, PlantInStep, incidents
from helpers.tiny_modules import SGD, Grads, Rows, Tiny, fit, same_bits, weights

from lightning_calib import (
    GradientClip,
    GradientMonitor,
    InverseNorm,
    LearningRateControl,
    MaxNorm,
    NonFiniteGuard,
    ZClip,
)
from lightning_calib.functional.norms import Reading
from lightning_calib.steps.gradient_view import GradientView

HUGE = [1e20, -2e20, 2e20]  # their norm is 3e20


@pytest.mark.parametrize("plant", [Plant, PlantInStep], ids=["after backward", "between ours"])
@pytest.mark.parametrize("scope", ["global", "parameter", "unit"])
def test_without_a_guard_it_is_clipped_and_no_incident(plant, scope):
    rows, after = Rows(), Grads()
    callbacks = [GradientMonitor(1), plant({3: {"net.2.weight": HUGE}}), GradientClip(0.5, scope=scope), after]
    fit(Tiny(), callbacks, logger=rows)
    assert rows.values("calib/nonfinite_total") == [0] * 12
    segments = {"global": 1, "parameter": 6, "unit": 18}[scope]
    assert 0 < after.norms[3] <= 0.5 * math.sqrt(segments) * (1 + 1e-6)
    assert rows.values("calib/grad_norm_after")[3] == pytest.approx(after.norms[3], rel=1e-6)
    if plant is Plant:
        assert rows.values("calib/grad_norm_before")[3] == pytest.approx(3e20, rel=1e-6)
        assert rows.values("calib/grad_norm_max")[3] == pytest.approx(3e20, rel=1e-6)


@pytest.mark.parametrize("action", ["warn", "skip", "raise"])
@pytest.mark.parametrize("names", [("control", "guard"), ("guard", "control"), ("control", "clip", "guard")])
def test_the_factor_of_the_rate_does_not_depend_on_the_order_of_the_list(names, action, said):
    make = {
        "control": lambda: LearningRateControl(InverseNorm(1.0), max_factor=math.inf),
        "guard": lambda: NonFiniteGuard(action),
        "clip": lambda: ZClip(warmup_steps=2),
    }
    rows, alone = Rows(), Rows()
    module, plain = Tiny(), Tiny()
    plant = {3: {"net.2.weight": HUGE}}
    fit(module, [Plant(plant), *(make[name]() for name in names), GradientMonitor(1)], 6, logger=rows)
    fit(
        plain,
        [Plant(plant), *(make[name]() for name in names if name != "guard")],
        6,
        logger=alone,
        log_every_n_steps=1,
    )
    effective = rows.values("calib/lr_effective")
    assert effective[3] == pytest.approx(0.05 / 3e20, rel=1e-5)
    assert effective == alone.values("calib/lr_effective")
    same_bits(weights(module), weights(plain))
    assert incidents(said()) == []


def test_a_norm_that_no_float32_holds_is_counted_and_left_alone(said):
    """Twelve elements of 3e38: each is finite, so that it is no incident either."""
    rows, before, after = Rows(), Grads(), Grads()
    plant = Plant({3: {"net.2.weight": [3e38] * 12}})
    module = Tiny(partial(SGD, lr=0.0))
    fit(module, [plant, before, GradientClip(0.5), NonFiniteGuard("skip"), after, GradientMonitor(1)], 6, logger=rows)
    same_bits(before.seen[3], after.seen[3])
    assert rows.values("calib/nonfinite_total") == [0] * 3 + [1] * 3
    assert rows.values("calib/skipped_total") == [0] * 6
    assert incidents(said()) == []


def test_one_pass_more_is_made_on_that_step_alone(monkeypatch):
    counts, real = [], torch._foreach_norm

    class Counting(Grads):
        def on_train_batch_start(self, *_):
            counts.append(0)

    def counted(*args, **kwargs):
        if counts:
            counts[-1] += 1
        return real(*args, **kwargs)

    monkeypatch.setattr(torch, "_foreach_norm", counted)
    fit(Tiny(), [Counting(), Plant({3: {"net.2.weight": HUGE}}), GradientClip(MaxNorm(0.5))], 6, log_every_n_steps=100)
    assert counts == [1, 1, 1, 3, 1, 1]  # the norms, the largest magnitudes, the norms of what they scale


def test_where_the_first_reading_cannot_look_the_guards_boolean_reads_again():
    """As it is on a GPU: the reading is infinite, nobody has waited for the device, and the guard is the first to."""
    module = Tiny()
    optimizer = module.configure_optimizers()
    for one in module.parameters():
        one.grad = torch.full_like(one, 1e20)
    count = sum(one.numel() for one in module.parameters())
    view = GradientView(0, optimizer, module, suffix="", units=False, scaler=None)
    view.begin_step()
    view.readings[2.0] = Reading(view.plan, 2.0, torch.full((len(view.plan.tensors),), math.inf))
    assert not view.norm().isfinite()
    assert view.is_finite()
    torch.testing.assert_close(view.norm(), torch.tensor(1e20 * math.sqrt(count)))
    view.look_again()
    assert view.reading(3.0).scaled, "further readings of this step are scaled, too"
    view.begin_step()
    module.net[0].weight.grad[0, 0] = math.nan
    assert not view.is_finite()


@pytest.mark.parametrize("names", [("control", "guard"), ("guard", "control"), ("control", "monitor", "guard")])
def test_guards_look_first(names):
    looked = []

    class Control(LearningRateControl):
        def _inspect(self, view, record):
            looked.append("control")
            return super()._inspect(view, record)

    class Guard(NonFiniteGuard):
        def _inspect(self, view, record):
            looked.append("guard")
            return super()._inspect(view, record)

    make = {"control": lambda: Control(InverseNorm()), "guard": Guard, "monitor": GradientMonitor}
    fit(Tiny(), [make[name]() for name in names], 2)
    assert looked == ["guard", "control"] * 2
