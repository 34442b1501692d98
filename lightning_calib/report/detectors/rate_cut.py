"""A learning-rate rule holds the rate far below what was set.

Looks at: the effective rate over the scheduler's, in the recent window. Speaks where less than a tenth is left, in the
median, *and* either the rule is one that should rest at 1 (SpikeBackoff), or nothing has come of it: the loss has not
fallen, or the path of the weights in 100 steps or more is shorter than a tenth of their norm. A tenth, because it is
what a rate search calls another rate; a rule may well halve it. Rules that *choose* the step (DistanceOverGradients,
Polyak, InverseNorm) have small factors by design: there the outcome decides.

Not to be confused with a schedule that decays (the factor is beside it), or with the `d` of Prodigy and its kin (no
rule, no finding).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import decimal, percent, times

CODES = ("rate-cut",)
_LEFT = 0.1
_MOVED = 0.1
_STEPS = 100
_CHOOSES = {"DistanceOverGradients", "Polyak", "InverseNorm"}


def rate_factor(seen: Measured) -> float:
    """Median of the recent window of the effective rate over the scheduler's; nan if not known."""
    scalars = seen.run.scalars
    lr, effective = scalars.lr[seen.recent], scalars.lr_effective[seen.recent]
    whole = np.isfinite(lr) & np.isfinite(effective) & (lr > 0)
    known = effective[whole] / lr[whole]
    return float(np.median(known)) if len(known) else float("nan")


def detect(seen: Measured) -> list[Finding]:
    """A finding where a rule has all but stopped training."""
    rules, factor = seen.run.facts.rules, rate_factor(seen)
    if not rules or not factor < _LEFT:
        return []
    stuck = seen.moved < _MOVED and seen.run.counts.steps >= _STEPS
    if set(rules) <= _CHOOSES and seen.loss.learned is not False and not stuck:
        return []
    who = " and ".join(rules)
    sentence = (
        f"{who} holds the learning rate at {percent(factor)} of what was set ({times(1 / max(factor, 1e-300))} times "
        f"lower), in the last {seen.window:,} steps."
    )
    advice = (
        f"Look why it fires (`calib/lr_effective`); give it a floor: `LearningRateControl({rules[0]}(), "
        "min_factor=0.1)`"
    )
    evidence = {"mean_factor": factor, "lr": seen.lr, "window": float(seen.window)}
    if set(rules) == {"InverseNorm"} and len(seen.norms):
        target = float(np.median(seen.norms))
        evidence["suggested_target"] = target
        advice = (
            f"Its target is far below the norms: `InverseNorm(target={decimal(target)})` leaves the usual step as it "
            "was set"
        )
    elif set(rules) <= _CHOOSES:
        evidence["suggested_lr"] = 1.0
        advice = "The published step needs `lr=1` in the optimizer and `max_factor=math.inf`"
    return [Finding("rate-cut", "act", sentence, advice + ".", evidence)]
