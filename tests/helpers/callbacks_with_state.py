"""Everything that has a state, and every kind of it, for tests of what checkpoints hold."""

from __future__ import annotations

from typing import Any

from lightning_calib import (
    AdaGC,
    AutoClip,
    DistanceOverGradients,
    EMARelative,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    LearningRateControl,
    NonFiniteGuard,
    Percentile,
    Polyak,
    SpikeBackoff,
    SpikeGuard,
    ZClip,
)
from lightning_calib.policies.zscore import ZScore

SPIKES = Percentile(60, window=4, warmup_steps=2)


def every(rows: int, spikes: ZScore, shadow: Any = None) -> list[Any]:
    """One of each; a row every so many steps, and ``spikes`` is what SpikeGuard goes by."""
    return [
        NonFiniteGuard("skip"),
        SpikeGuard(spikes, snapshot_every_n_steps=2),
        LearningRateControl(SpikeBackoff(Percentile(50, window=None, warmup_steps=2)), name="spikes"),
        LearningRateControl(DistanceOverGradients(), name="distance"),
        LearningRateControl(Polyak(), name="polyak"),
        ZClip(2.0, warmup_steps=3),
        AutoClip(),
        GradientClip(SPIKES, scope="layer", rules={"*bias": EMARelative(warmup_steps=2)}),
        GradientClip(SPIKES, dry_run=True, name="dry"),
        AdaGC(warmup_steps=2),
        GradientNormalize(EMARelative(warmup_steps=2)),
        GradientValueClip(0.5),
        GradientCentralize(),
        GradientMonitor(rows, histograms=True, shadow=shadow),
    ]
