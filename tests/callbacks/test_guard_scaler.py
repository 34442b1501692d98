"""With a GradScaler: an overflow is its work, a bad loss is an incident, and a sick scaler is told once."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from helpers.poisoned_batches import ADAM, FUSED, MOMENTUM, Micro, Plant, PlantInStep, Unmoved, every, finite, incidents
from helpers.tiny_modules import Grads, Rows, Tiny, TwoNets, fit, same_bits, scaled, weights
from lightning.pytorch.plugins import MixedPrecision

from lightning_calib import GradientClip, GradientMonitor, NonFiniteGradientError, NonFiniteGuard

NAN, INF = math.nan, math.inf
OPTIMIZERS = pytest.mark.parametrize("optimizer", [MOMENTUM, ADAM, FUSED], ids=["momentum", "adam", "fused"])


def sick(lines):
    return [line for line in lines if "the GradScaler does not find a scale that works" in line]


@OPTIMIZERS
@pytest.mark.parametrize("action", ["warn", "skip", "raise"])
def test_start_up_calibration_is_no_incident(optimizer, action, said):
    rows, watch, guard = Rows(), Unmoved(), NonFiniteGuard(action, max_consecutive=0, max_total=0)
    module = Tiny(optimizer)
    fit(module, [watch, guard, GradientMonitor(1)], 12, logger=rows, plugins=scaled(2.0**24))
    overflows = 24 - int(math.log2(watch.scales[-1]))
    assert overflows >= 4, "the first scale must not fit"
    assert incidents(said()) + sick(said()) == []
    assert rows.values("calib/nonfinite_total") == [0] * 12
    assert rows.values("calib/skipped_total")[-1] == overflows
    assert rows.values("calib/loss_scale")[:2] == [2.0**24, 2.0**23]
    assert finite(module)
    book = guard.state_dict()["optimizers"]["0"]
    assert book["total"] == 0
    assert book["overflows"][0] == 0, "counted from the first step that was finite"
    assert sum(book["overflows"]) + 12 - len(book["overflows"]) == overflows


@OPTIMIZERS
def test_the_scale_backs_off(optimizer):
    """For an overflow, which stays in place, and for a bad loss, whose step is dropped behind the scaler's eyes."""
    watch, seen, rows = Unmoved(), Grads(), Rows()
    module = Tiny(optimizer, {3: 1e9, 6: NAN})
    fit(module, [watch, NonFiniteGuard("skip"), seen, GradientMonitor(1)], logger=rows, plugins=scaled(2.0**9))
    assert [i for i, (moved,) in enumerate(watch.moved) if not moved] == [3, 6]
    assert [i for i, norm in enumerate(seen.norms) if not math.isfinite(norm)] == [3]
    assert seen.seen[6] == [None] * 6
    assert watch.scales == [2.0**9] * 3 + [2.0**8] * 3 + [2.0**7] * 6
    assert rows.values("calib/nonfinite_total")[-1] == 1
    assert rows.values("calib/skipped_total") == [0] * 3 + [1] * 3 + [2] * 6


@OPTIMIZERS
@pytest.mark.parametrize("company", [[], [GradientClip(1e6)]], ids=["alone", "behind ours"])
def test_a_gradient_spoilt_after_the_scaler_has_looked(optimizer, company, said):
    """The scaler would let it pass: the step is dropped, or skipped by the fused kernel, and the scale stays."""
    watch, rows = Unmoved(), Rows()
    module = Tiny(optimizer)
    plant = PlantInStep(every("net.2.bias", [4, 5, 9]))
    guards = [*company, plant, NonFiniteGuard("skip")]
    fit(module, [watch, *guards, GradientMonitor(1)], logger=rows, plugins=scaled(2.0**9))
    assert [i for i, (moved,) in enumerate(watch.moved) if not moved] == [4, 5, 9]
    assert finite(module)
    noticed = optimizer is FUSED and not company  # its gradients are still scaled, and the scaler looks last
    assert watch.scales[-1] == (2.0**6 if noticed else 2.0**9)
    assert len(incidents(said())) == (0 if noticed else 2), "of three, the first two are told"
    assert rows.values("calib/nonfinite_total")[-1] == (0 if noticed else 3)
    assert rows.values("calib/skipped_total")[-1] == 3


def test_bad_losses_for_ever_end_the_run():
    gains = dict.fromkeys(range(5, 40), NAN)
    with pytest.raises(NonFiniteGradientError) as caught:
        fit(Tiny(ADAM, gains), [NonFiniteGuard("skip", max_consecutive=3)], 30, plugins=scaled(2.0**9))
    assert "- step 8 (" in str(caught.value)
    assert "a value above 65504 in the forward pass, which fp16 cannot hold" in str(caught.value)


@OPTIMIZERS
def test_bad_gradients_of_finite_losses_end_the_run_when_the_scale_has_collapsed(optimizer, said):
    """A square root at 0: nothing tells it from an overflow until no scale fits."""
    guard = NonFiniteGuard("skip", max_consecutive=3)
    with pytest.raises(NonFiniteGradientError) as caught:
        fit(Tiny(optimizer), [Plant(every("net.0.bias", range(2, 40))), guard], 30, plugins=scaled(2.0**3))
    assert "4 gradients in a row were not finite" in str(caught.value)
    assert [line.split(" (")[0] for line in incidents(said())] == [f"[calib] step {step}" for step in (6, 7, 9)]
    assert len(sick(said())) == 1
    assert "its scale has fallen to 0.5. Use precision='bf16-mixed'" in sick(said())[0]


@pytest.mark.parametrize(("overflows", "told"), [(10, 0), (11, 1)])
def test_more_than_five_per_cent_of_200_steps_is_sick(overflows, told, said):
    """Told once; the calibration at the start (here ten steps) does not count."""
    gains = dict.fromkeys(range(10), 1e9) | {45 + 18 * i: 1e9 for i in range(overflows - 1)} | {240: 1e9}
    precision = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**16, growth_interval=16))
    fit(Tiny(partial(torch.optim.SGD, lr=0.01), gains), [NonFiniteGuard("skip")], 242, plugins=[precision])
    assert incidents(said()) == []
    assert len(sick(said())) == told
    assert "it skipped 5.5 % of the last 200 steps" in "".join(sick(said())) or not told


def test_an_overflow_neither_ends_nor_lengthens_a_streak():
    guard = NonFiniteGuard("skip", max_consecutive=2)
    fit(Tiny(ADAM, {3: NAN, 4: 1e9, 5: NAN, 7: NAN}), [guard], plugins=scaled(2.0**9))
    assert guard.state_dict()["optimizers"]["0"]["total"] == 3
    guard = NonFiniteGuard("skip", max_consecutive=2)
    with pytest.raises(NonFiniteGradientError, match="3 gradients in a row"):
        fit(Tiny(ADAM, {3: NAN, 4: 1e9, 5: NAN, 6: NAN}), [guard], plugins=scaled(2.0**9))


def test_an_overflow_of_one_of_two_optimizers(said):
    rows = Rows()
    module = TwoNets(FUSED, MOMENTUM, gains={5: 1e9, 505 + 3: NAN})
    fit(module, [NonFiniteGuard("skip"), GradientMonitor(1)], 24, logger=rows, plugins=scaled(2.0**8))
    assert rows.values("calib/skipped_total/0")[-1] == 1
    assert rows.values("calib/skipped_total/1")[-1] == 1
    assert rows.values("calib/nonfinite_total/0")[-1] == 0
    assert rows.values("calib/nonfinite_total/1")[-1] == 1
    (line,) = incidents(said())
    assert "deepest listed other.4.bias" in line
    assert finite(module)


@OPTIMIZERS
def test_skipping_under_a_scaler_is_what_the_scaler_does_alone(optimizer):
    """From the second step on: what a fused optimizer makes of a first one is torch's defect."""
    gains = {3: 1e9, 4: NAN, 8: INF}
    guarded, alone = (Micro(optimizer, range(12), gains) for _ in range(2))
    fit(guarded, [NonFiniteGuard("skip")], plugins=scaled(2.0**9))
    fit(alone, [], plugins=scaled(2.0**9))
    same_bits(weights(guarded), weights(alone))
