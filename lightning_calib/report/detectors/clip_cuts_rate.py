"""With SGD a clip that fires often is a cut of the learning rate.

Looks at: the mean share of the norm that clipping left, and on how many steps. SGD's update is proportional to the
gradient, so that share multiplies the rate. Speaks where clipping reduces half of the steps or more (it is no exception
any more) and less than half of the norm is left, over the run and in the recent window: halving a rate is what a search
by factors of two would notice. Act from a tenfold cut on. An adaptive clip follows the norms by design and its cut is
its method, and is named from the tenfold on only; a normaliser sets the norm, and is not named.

Not to be confused with Adam and its kin, Lion or Muon, which divide the scale out again (`clip-always`).
"""

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.wording import decimal, times

CODES = ("clip-cuts-rate",)
_OFTEN = 0.5
_CUT = 0.5
_TENFOLD = 0.1


def recent_factor(seen: Measured) -> float:
    """Mean share of the norm that was left in the recent window; nan if not known."""
    known = finite(seen.run.scalars.factor[seen.recent])
    if len(known):
        return float(known.mean())
    before, after = seen.run.scalars.grad_norm_before[seen.recent], seen.run.scalars.grad_norm_after[seen.recent]
    whole = np.isfinite(before) & np.isfinite(after) & (before > 0)
    known = after[whole] / before[whole]
    return float(known.mean()) if len(known) else float("nan")


def recent_clip_rate(seen: Measured) -> float:
    """Share of the steps of the recent window on which anybody reduced the gradient; else the clippers' largest."""
    known = finite(seen.run.scalars.clip_fraction[seen.recent])
    rates = [one.clip_rate for one in acting(seen) if one.clip_rate is not None]
    return float(known.mean()) if len(known) else max(rates, default=float("nan"))


def detect(seen: Measured) -> list[Finding]:
    """A finding where clipping lowers SGD's rate."""
    clippers, recent = [one for one in acting(seen) if one.clip_rate != 0], recent_factor(seen)
    left = seen.run.counts.left if seen.run.counts.left is not None else recent
    if seen.kinds != {"sgd"} or not clippers or not len(seen.norms) or any(one.kind == "normalise" for one in clippers):
        return []
    cut = _CUT if any(one.kind == "fixed" for one in clippers) else _TENFOLD
    if not (recent_clip_rate(seen) >= _OFTEN and max(left, recent if np.isfinite(recent) else left) < cut):
        return []
    who = " and ".join(one.name for one in clippers)
    rate = f"{left:.3g} of the configured rate ({times(1 / left)} times lower)"
    sentence = (
        f"{who} {'clip' if len(clippers) > 1 else 'clips'} so often that with {seen.run.facts.optimizer} the learning "
        f"rate is cut to {rate} on average."
    )
    advice = (
        f"Clip outliers only: {seen.clip(seen.high)}, the 95th percentile of the norms of the last "
        f"{seen.window:,} steps"
    )
    evidence = {
        "mean_factor": left,
        "recent_factor": recent,
        "cut": 1 / left,
        "clip_rate": recent_clip_rate(seen),
        "suggested_max_norm": seen.high,
        "window": float(seen.window),
    }
    if np.isfinite(seen.lr):
        evidence |= {"lr": seen.lr, "suggested_lr": seen.lr * left}
        advice += (
            f"; if the loss falls well as it is, `lr={decimal(seen.lr * left)}` without a clip is the same step on "
            "average"
        )
    severity = "act" if left < _TENFOLD else "look"
    return [Finding("clip-cuts-rate", severity, sentence, advice + ".", evidence)]  # type: ignore[arg-type]
