"""What is measured of this package: every callback as a user types it, quiet and firing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback

from benchmarks.models import FALLING, RISING
from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    DistanceOverGradients,
    EMARelative,
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
    Policy,
    Polyak,
    SpikeBackoff,
    SpikeGuard,
    ZClip,
    ZScore,
)

Make = Callable[[], Callback]
LOW, HIGH = 1e-6, 1e9  # below and above every norm here; far from the denormal numbers, whose arithmetic is slow
EAGER = 1e-3  # a z-score at which every rise fires


class Variant(NamedTuple):
    """One row of a table.

    Attributes:
        name: As it is typed.
        side: "quiet" (acts on no step), "firing" (on every one), or "" where there are not two.
        make: The callbacks of one fit.
        trainer: More arguments of the Trainer.
        tab: Whether the fit has a TensorBoardLogger.
        whose: "ours", "peer" or "plain".
    """

    name: str
    side: str
    make: Callable[[], list[Callback]]
    trainer: dict[str, Any] = {}
    tab: bool = False
    whose: str = "ours"

    @property
    def large(self) -> bool:
        """Whether it is also measured on the large models, where a fit takes seconds."""
        return self.whose != "ours" or self.name in LARGE

    @property
    def level(self) -> float:
        """From one step's norm to the next."""
        return RISING if self.side == "firing" else FALLING

    @property
    def title(self) -> str:
        return f"{self.name}, {self.side}" if self.side else self.name


def pair(
    name: str, quiet: Callable[[], Callback], firing: Callable[[], Callback], whose: str = "ours"
) -> list[Variant]:
    """Both sides of one callback."""
    sides = (("quiet", quiet), ("firing", firing))
    return [Variant(name, side, lambda make=make: [make()], whose=whose) for side, make in sides]  # type: ignore[misc]


def alone(name: str, make: Make, side: str = "", tab: bool = False) -> Variant:
    return Variant(name, side, lambda: [make()], tab=tab)


def three(every: int | None = None) -> list[Callback]:
    """What the README starts with."""
    return [NonFiniteGuard("skip"), ZClip(), GradientMonitor(every)]


def plain(tab: bool = False) -> Variant:
    return Variant("no callback", "", list, tab=tab, whose="plain")


def trainers_clip(tab: bool = False) -> Variant:
    """What everything is compared with; it multiplies on every step, whether it fires or not."""
    return Variant(TRAINERS_CLIP, "", list, {"gradient_clip_val": 1.0}, tab=tab, whose="peer")


THREE = "NonFiniteGuard + ZClip + GradientMonitor"
LARGE = (
    "GradientClip(max_norm)",
    'GradientClip(max_norm, scope="unit")',
    "ZClip()",
    "AGC()",
    "AdaGC()",
    'NonFiniteGuard("skip")',
    "GradientMonitor()",
    THREE,
)
TRAINERS_CLIP = "Trainer(gradient_clip_val=1.0)"


def unlogged() -> list[Variant]:
    """Every callback on steps of which nothing is logged; `PreciseBatchNorm` has nothing to do in a step."""
    short: dict[str, Any] = {"warmup_steps": 2}
    usual = Percentile(95, **short)
    return [
        *pair("GradientClip(max_norm)", lambda: GradientClip(HIGH), lambda: GradientClip(LOW)),
        *pair("GradientClip()", lambda: GradientClip(usual), lambda: GradientClip(usual)),
        *pair(
            'GradientClip(max_norm, scope="parameter")',
            lambda: GradientClip(HIGH, scope="parameter"),
            lambda: GradientClip(LOW, scope="parameter"),
        ),
        *pair(
            'GradientClip(max_norm, scope="unit")',
            lambda: GradientClip(HIGH, scope="unit"),
            lambda: GradientClip(LOW, scope="unit"),
        ),
        *pair("ZClip()", lambda: ZClip(**short), lambda: ZClip(z_max=EAGER, **short)),
        *pair("AutoClip()", AutoClip, AutoClip),
        *pair("AGC()", lambda: AGC(factor=HIGH), lambda: AGC(factor=LOW)),
        *pair("AdaGC()", lambda: AdaGC(warmup_max_norm=HIGH, **short), lambda: AdaGC(factor=1.0, **short)),
        *pair("GradientValueClip()", lambda: GradientValueClip(HIGH), lambda: GradientValueClip(LOW)),
        alone("GradientNormalize()", GradientNormalize, "firing"),
        alone("GradientCentralize()", GradientCentralize, "firing"),
        alone('NonFiniteGuard("skip")', lambda: NonFiniteGuard("skip"), "quiet"),
        alone("SpikeGuard()", lambda: SpikeGuard(ZScore(4.0, **short)), "quiet"),
        alone("LearningRateControl(SpikeBackoff())", lambda: LearningRateControl(SpikeBackoff())),
        alone("LearningRateControl(InverseNorm())", lambda: LearningRateControl(InverseNorm())),
        alone("LearningRateControl(Polyak())", lambda: LearningRateControl(Polyak())),
        alone("LearningRateControl(DistanceOverGradients())", lambda: LearningRateControl(DistanceOverGradients())),
        alone("GradientMonitor()", GradientMonitor, "quiet", tab=True),
        Variant(THREE, "quiet", three, tab=True),
    ]


def judged(count: int, **warmup: Any) -> list[Policy]:
    """Three policies or eight, for shadows of the whole gradient."""
    three: list[Policy] = [MaxNorm(1.0), Percentile(95, **warmup), ZScore(**warmup)]
    more: list[Policy] = [MaxNorm(0.3), MaxNorm(3.0), Percentile(90, **warmup), ZScore(3.0, **warmup)]
    return [*three, *more, EMARelative(**warmup)][:count]


def shadowed() -> list[Variant]:
    """Shadows, beside a monitor with one dry run; and a dry run beside a clip whose norms it must not touch."""
    short: dict[str, Any] = {"warmup_steps": 2}
    dry = ZScore(**short)
    return [
        Variant("one dry run + GradientMonitor", "quiet", lambda: [GradientClip(dry, dry_run=True), GradientMonitor()]),
        *(
            alone(f"GradientMonitor(shadow=...), {count} at scope global", lambda n=count: _shadows(n, short), "quiet")
            for count in (3, 8)
        ),
        alone("GradientMonitor(shadow=[AGC()])", lambda: GradientMonitor(shadow=[AGC(HIGH)]), "quiet"),
        Variant(
            "GradientClip(max_norm) + AGC(dry_run=True)", "quiet", lambda: [GradientClip(HIGH), AGC(HIGH, dry_run=True)]
        ),
    ]


def _shadows(count: int, warmup: dict[str, int]) -> GradientMonitor:
    return GradientMonitor(shadow=judged(count, **warmup))


def logged() -> list[Variant]:
    """Steps that are logged, with a TensorBoardLogger."""
    return [
        alone("ZClip()", ZClip, tab=True),
        alone("GradientMonitor(layers=False)", lambda: GradientMonitor(layers=False), tab=True),
        alone("GradientMonitor()", GradientMonitor, tab=True),
        alone("GradientMonitor(histograms=True)", lambda: GradientMonitor(histograms=True), tab=True),
        Variant(THREE, "", three, tab=True),
    ]


def few() -> list[Variant]:
    """For the growth curves."""
    wanted = ("GradientClip(max_norm)", "AGC()", THREE)
    return [one for one in unlogged() if one.name in wanted]
