"""What each public callback must do to a gradient, in float64 and without looking at the package."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from lightning.pytorch import Callback
from modes.watching import Step
from oracles import (
    AdaGCOracle,
    Array,
    ClipOracle,
    MaxNormOracle,
    PercentileOracle,
    RobustZScoreOracle,
    WeightRelativeOracle,
    segment_norms,
    unit_count,
    unit_labels,
)
from torch import nn

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    InverseNorm,
    LearningRateControl,
    MaxNorm,
    NonFiniteGuard,
    Percentile,
    PreciseBatchNorm,
    SpikeGuard,
    ZClip,
    ZScore,
)

Gradients = list[Array | None]
Law = Callable[[Gradients, list[Array]], Gradients]
TARGET, SPIKE = 0.7, 3.0


def leave_alone(*_: Any) -> Law:
    return lambda grads, weights: grads


def clip(make: Callable[[], Any]) -> Callable[..., Law]:
    """One segment, judged by an oracle that remembers."""

    def law(tensors: Sequence[torch.Tensor], *_: Any) -> Law:
        return ClipOracle([np.zeros(tuple(p.shape), dtype=int) for p in tensors], [make()]).step

    return law


def normalize(tensors: Sequence[torch.Tensor], *_: Any) -> Law:
    """Every tensor to the same norm; a zero gradient has no direction."""
    labels = [np.full(tuple(p.shape), i) for i, p in enumerate(tensors)]

    def law(grads: Gradients, weights: list[Array]) -> Gradients:
        norms = segment_norms(grads, labels, len(labels))
        return [g if g is None or not 0 < n < math.inf else g * TARGET / n for g, n in zip(grads, norms, strict=True)]

    return law


def clamp(*_: Any) -> Law:
    return lambda grads, weights: [None if g is None else np.clip(g, -0.1, 0.1) for g in grads]


def centralize(tensors: Sequence[torch.Tensor], module: nn.Module) -> Law:
    tables = [one.weight for one in module.modules() if isinstance(one, nn.Embedding)]
    kept = [any(p is table for table in tables) or p[:1].numel() < 2 for p in tensors]

    def law(grads: Gradients, weights: list[Array]) -> Gradients:
        return [
            g if g is None or g.ndim < 2 or keep else g - g.mean(axis=tuple(range(1, g.ndim)), keepdims=True)
            for g, keep in zip(grads, kept, strict=True)
        ]

    return law


def agc(tensors: Sequence[torch.Tensor], module: nn.Module) -> Law:
    """Rows of every matrix but the last linear layer's."""
    head = [one for one in module.modules() if isinstance(one, nn.Linear)][-1].weight
    labels, first = [], 0
    for p in tensors:
        labels.append(np.asarray(first + unit_labels(p, None)))
        first += unit_count(p, None)
    out = [k for p, label in zip(tensors, labels, strict=True) for k in label.ravel() if p.ndim < 2 or p is head]
    policies = [MaxNormOracle(math.inf) if k in set(out) else WeightRelativeOracle(0.05, 1e-3) for k in range(first)]
    return ClipOracle(labels, policies).step


def adagc(tensors: Sequence[torch.Tensor], *_: Any) -> Law:
    oracle = AdaGCOracle(len(tensors), 1.05, 0.9, 3, 0.8)

    def law(grads: Gradients, weights: list[Array]) -> Gradients:
        filled = oracle.step([np.zeros(1) if g is None else g for g in grads])
        return [None if g is None else new for g, new in zip(grads, filled, strict=True)]

    return law


def drop(*_: Any) -> Law:
    """A window with a NaN in it leaves no gradient at all."""
    return lambda grads, weights: grads if finite(grads) else [None] * len(grads)


def drop_spikes(*_: Any) -> Law:
    """Above 3, and above three times the level, which is an average of logarithms without the spikes."""
    level, seen = 0.0, 0

    def law(grads: Gradients, weights: list[Array]) -> Gradients:
        nonlocal level, seen
        norm = whole_norm(grads)
        if norm > SPIKE and seen and norm > 3 * math.exp(level):
            return [None] * len(grads)
        if norm > 0:
            seen += 1
            level += max(0.03, 1 / seen) * (math.log(norm) - level)
        return grads

    return law


def finite(grads: Gradients) -> bool:
    return all(bool(np.isfinite(g).all()) for g in grads if g is not None)


SHADOWED = "GradientMonitor(shadow=[...])"
_SPIKES = ZScore(1.0, decay=0.9, warmup_steps=3)


def shadows() -> list[Any]:
    return [
        MaxNorm(0.6),
        Percentile(60.0, window=5, warmup_steps=1),
        _SPIKES,
        AGC(0.05),
        GradientClip(_SPIKES, scope="layer"),
    ]


def dry_runs() -> list[Callback]:
    """Of the same, in a run of their own. What acts behind them leaves all alone: so each reads what it would alone."""
    whole = [GradientClip(one, dry_run=True, name=f"dry{i}") for i, one in enumerate(shadows()[:3])]
    layers = GradientClip(_SPIKES, scope="layer", dry_run=True, name="dry4")
    return [*whole, AGC(0.05, dry_run=True, name="dry3"), layers, GradientClip(None)]


class Case(NamedTuple):
    """A column of the matrix."""

    make: Callable[[], Callback]
    law: Callable[..., Law] = leave_alone
    observes: bool = False  # the run must keep its bits
    guards: bool = False  # it is given NaN
    writes: bool = True  # it has a row


CASES = {
    "GradientMonitor": Case(partial(GradientMonitor, 1), observes=True),
    SHADOWED: Case(lambda: GradientMonitor(1, shadow=shadows()), observes=True),
    "GradientClip": Case(partial(GradientClip, 0.6), clip(partial(MaxNormOracle, 0.6))),
    "GradientNormalize": Case(partial(GradientNormalize, TARGET, scope="parameter"), normalize),
    "GradientValueClip": Case(partial(GradientValueClip, 0.1), clamp),
    "GradientCentralize": Case(GradientCentralize, centralize),
    "AutoClip": Case(partial(AutoClip, 50.0), clip(partial(PercentileOracle, 50.0, None, 0))),
    "ZClip": Case(partial(ZClip, 1.0, decay=0.9, warmup_steps=3), clip(partial(RobustZScoreOracle, 1.0, 0.9, 3))),
    "AGC": Case(partial(AGC, 0.05), agc),
    "AdaGC": Case(partial(AdaGC, 1.05, decay=0.9, warmup_steps=3, warmup_max_norm=0.8), adagc),
    'NonFiniteGuard("warn")': Case(NonFiniteGuard, observes=True, guards=True),
    'NonFiniteGuard("skip")': Case(partial(NonFiniteGuard, "skip"), drop, guards=True),
    "LearningRateControl": Case(partial(LearningRateControl, InverseNorm(TARGET), max_factor=2.0)),
    "PreciseBatchNorm": Case(PreciseBatchNorm, observes=True, writes=False),
    'SpikeGuard(ladder=("skip", "stop"))': Case(
        partial(SpikeGuard, MaxNorm(SPIKE), ladder=("skip", "stop")), drop_spikes
    ),
    "SpikeGuard": Case(partial(SpikeGuard, snapshot_every_n_steps=3)),
}


ALWAYS = ("GradientNormalize", "GradientValueClip", "GradientCentralize", "AGC", "AdaGC")  # may act on every step


def whole_norm(grads: Gradients) -> float:
    return math.sqrt(sum(float((np.abs(g) ** 2).sum()) for g in grads if g is not None))


def rate_factors(step: Step) -> list[float]:
    """InverseNorm, at most twice the rate; 1 for a group without a gradient."""
    norms = [whole_norm([step.before[i] for i in group]) for group in step.groups]
    return [min(2.0, TARGET / n) if 0 < n < math.inf else 1.0 for n in norms]


class Laws:
    """One law for each optimizer, with a memory of its own, which starts afresh when parameters are added."""

    def __init__(self, case: Case, module: nn.Module) -> None:
        self.case, self.module, self.found = case, module, dict[tuple[int, int], Law]()

    def __call__(self, step: Step) -> Gradients:
        key = (step.index, len(step.tensors))
        if key not in self.found:
            self.found[key] = self.case.law(step.tensors, self.module)
        return self.found[key](step.before, step.weights)
