"""A dry run observes only: what acts beside it keeps every bit, and the dry run sees what it would see."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from helpers.tiny_modules import SGD, Grads, Tiny, different, fit, same_bits, weights

from lightning_calib import (
    AGC,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    InverseNorm,
    LearningRateControl,
    NonFiniteGuard,
    SpikeGuard,
    WeightRelative,
    ZClip,
    ZScore,
)

STEPS, SPIKES = 24, {5: 20.0, 9: 0.05, 15: 30.0, 16: 8.0}
DRY_RUNS: dict[str, Callable[..., Any]] = {
    "by units": partial(AGC, 0.4, name="dry"),
    "by units, a policy with a memory": partial(GradientClip, ZScore(1.0, warmup_steps=3), scope="unit", name="dry"),
    "a norm of another type": partial(GradientClip, 2.4, norm_type=1.0, name="dry"),
    "the largest magnitude": partial(GradientClip, 0.2, norm_type=math.inf, name="dry"),
}
ACTING: dict[str, Callable[[], list[Any]]] = {
    "a clip": lambda: [GradientClip(0.4)],
    "a clip that remembers": lambda: [ZClip(1.0, warmup_steps=3)],
    "by units": lambda: [AGC(0.05, name="real")],
    "a norm of another type, second": lambda: [GradientClip(0.4), GradientClip(1.2, norm_type=1.0, name="second")],
    "by value, second": lambda: [GradientClip(0.4), GradientValueClip(0.05)],
    "rates": lambda: [LearningRateControl(InverseNorm(0.5))],
    "guards": lambda: [NonFiniteGuard("skip"), SpikeGuard(ladder=("skip",))],
    "by layers": lambda: [GradientNormalize(0.3, scope="layer")],
}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
@pytest.mark.parametrize("acting", ACTING.values(), ids=ACTING)
@pytest.mark.parametrize("dry_run", DRY_RUNS.values(), ids=DRY_RUNS)
def test_a_dry_run_moves_no_bit(dry_run, acting, first):
    gains = {**SPIKES, 11: math.nan} if acting is ACTING["guards"] else SPIKES
    ends = []
    for beside in ([], [dry_run(dry_run=True)]):
        module, callbacks = Tiny(partial(torch.optim.AdamW, lr=0.02), gains), acting()
        order = [*beside, *callbacks] if first else [*callbacks, *beside]
        trained = fit(module, [*order, GradientMonitor(2)], STEPS)
        learnt = [one.state_dict()["optimizers"] for one in callbacks]
        ends.append([weights(module), [one.state_dict() for one in trained.optimizers], learnt])
    same_bits(*ends)


@pytest.mark.parametrize("dry_run", DRY_RUNS.values(), ids=DRY_RUNS)
def test_behind_a_clip_it_judges_what_the_clip_has_left(dry_run):
    """As the same callback judges that acts in its place; one in front sees the gradient whole."""
    still = partial(torch.optim.SGD, lr=0.0)  # so that acting changes no later norm
    behind, real, front = dry_run(dry_run=True), dry_run(), dry_run(dry_run=True)
    for callbacks in ([GradientClip(0.4), behind], [GradientClip(0.4), real], [front, GradientClip(0.4)]):
        fit(Tiny(still, SPIKES), [*callbacks, GradientMonitor()], STEPS)
    fired = [one.state_dict()["optimizers"]["0"]["count"]["fired"].item() for one in (behind, real, front)]
    assert fired[0] == fired[1]
    assert 0 < fired[0] < STEPS
    assert fired[0] != fired[2]


def test_the_start_line_says_that_a_dry_run_by_units_reads_once_more(said):
    once_more = "gradients are read once more for the norms of units, which only a dry run needs"
    fit(Tiny(), [AGC(0.05, dry_run=True), GradientClip(0.4)], 2)
    assert [line for line in said() if once_more in line]


@pytest.mark.parametrize("beside", [[], [AGC(0.05, name="real")], [GradientMonitor()]], ids=["alone", "AGC", "monitor"])
def test_it_reads_nothing_more_where_the_norms_of_units_are_read_anyway(beside, said):
    fit(Tiny(), [AGC(0.05, dry_run=True), *beside], 2)
    assert not [line for line in said() if "once more" in line]


def test_the_comparison_can_fail():
    """Norms of units, folded, have other last bits than norms of tensors; a clip by them leaves others."""
    left = []
    for clip in (GradientClip(0.4), GradientClip(WeightRelative(0.05), scope="unit", rules={"*": 0.4})):
        grads = Grads()
        fit(Tiny(SGD, SPIKES), [clip, grads], STEPS)
        left.append(grads.seen)
    with different("the pass by units folds other numbers"):
        same_bits(*left)
