"""A clip that fires on practically every step, and does not matter.

Looks at: the share of the steps on which a fixed clip fired, and the kind of the optimizer. Speaks from 99 % of the
steps that it could judge on. Adam and its kin, Lion and Muon divide the scale of the gradient out again, so that any
threshold between a floor (where eps shows, see `clip-below-eps`) and the lowest norm of the run trains alike: it fires
on every step, and all gradients are the same but for one factor. The lowest of the whole run, and not of the recent
window: where the norm has grown, a threshold between the two leaves the first steps alone, and the growth itself is
what Adam then sees (digits MLP whose loss grows 10,000 times: 0.039 at the recent lowest norm, 0.072 with a clip that
always fires, seeds within 0.004). Above the range nothing is said: without outliers a run there may end the same.

A note: every language model at 1.0 is such a run. With SGD the note is for a cut that is too small for
`clip-cuts-rate`.

Not to be confused with `clip-cuts-rate` and `clip-below-eps`, which replace it.
"""

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting, alike_low
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import SCALE_FREE, Measured
from lightning_calib.report.run import Clipper
from lightning_calib.report.wording import decimal, percent

CODES = ("clip-always",)
_ALWAYS = 0.99


def always(one: Clipper, seen: Measured) -> bool:
    """Whether it fires on practically every step on which it can: none does where the norm is zero or not finite."""
    counts = seen.run.counts
    able = 1.0 if one.seen is not None else counts.usable / max(counts.steps, 1)
    return bool(one.clip_rate) and (one.clip_rate or 0.0) >= _ALWAYS * able


def detect(seen: Measured) -> list[Finding]:
    """A note for each fixed clip that always fires; without a finite norm in the recent window nothing can be said."""
    if not len(seen.norms):
        return []
    return [_note(one, seen) for one in acting(seen) if one.kind == "fixed" and always(one, seen)]


def _note(one: Clipper, seen: Measured) -> Finding:
    optimizer, rate = seen.run.facts.optimizer, one.clip_rate or 0.0
    low, lowest = alike_low(seen), _lowest(seen)
    evidence = {"clip_rate": rate, "suggested_max_norm": seen.high, "window": float(seen.window)}
    evidence |= {"max_norm": one.max_norm} if one.max_norm is not None else {}
    sentence = f"{one.name} reduced the gradient on {percent(rate)} of the steps"
    only = (
        f"to clip outliers only, use {seen.clip(seen.high)}, the 95th percentile of the norms of the "
        f"last {seen.window:,} steps."
    )
    if not seen.scale_free:
        mixed = bool(seen.kinds & set(SCALE_FREE))
        which = "for a part of the parameters " if mixed else ""
        return Finding("clip-always", "note", f"{sentence}, which {which}lowers the rate.", _capital(only), evidence)
    sentence += (
        f", and {optimizer} divides the scale of the gradient out again: the value of the threshold hardly matters"
    )
    if np.isfinite(lowest):
        evidence["alike_high"] = lowest
    advice = f"Nothing has to be done; {only}"
    if np.isfinite(lowest) and low < lowest:
        evidence["alike_low"] = low
        sentence += (
            f" between {decimal(low)}, below which the eps of {optimizer} shows, and {decimal(lowest)}, the lowest "
            "norm of the run."
        )
        if one.max_norm is not None and one.max_norm < low:
            advice = f"Raise it to {decimal(low)} or more, where eps does not show; {only}"
    elif "sign" in seen.kinds:
        sentence += "."
    else:
        sentence += f", unless it is so low that the eps of {optimizer} drowns the gradient."
    return Finding("clip-always", "note", sentence, advice, evidence)


def _lowest(seen: Measured) -> float:
    """The lowest norm of all steps; of all rows where only those are known, nan without any."""
    if seen.run.norms is not None:
        return seen.run.norms.lowest
    rows = seen.run.scalars.grad_norm_before
    return float(min(rows[np.isfinite(rows) & (rows > 0)], default=np.nan))


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
