"""The learning rate is too high: the weights moved much, the loss rose far above its start, nothing was learned.

Looks at: outcome times movement. |dw| / |w| alone does not tell: a healthy run peaks at 0.04 where one at 40 times its
best rate shows 0.08, and one at 300 times 0.003 once it is flat. Speaks where all three hold:

- not learned: the loss ends less than 3 standard deviations of its noise below its start, and was never more than 5
  below it before it was largest (what was learned and lost is `diverged`); or it ends less than a tenth below its start
  after two rows or more stood 10 deviations above it (a classifier that knows the frequencies alone is a little better
  than an untrained one; two rows, because one can be one bad batch);
- moved: the path of the weights is longer than a tenth of their norm. A run that moved less cannot have been ruined by
  its own steps, whatever the loss does;
- thrown: the loss of a step was more than 10 deviations above its start (heavy tails reach 5 by chance), *or* a step
  changes the matrices by more than a tenth of themselves, at which rate a random walk has forgotten them in 100 steps.

The noise is that of the last half, where a run that was thrown is flat. Of few rows it is not known, and some runs are
thrown so far that it is larger than all that was to be learned. There a run was thrown where every loss of the last
half is above ten times its start, and a step changed the matrices by more than a tenth of themselves. Losses that were
not finite do not count where a guard dropped every such step: the weights have not seen them. Not to be confused with
labels that carry nothing (the loss stays at its start), tiny batches (the noise is large, and is measured), a dead
layer that is the result (left out for this one), or the loss of an adversary: with several optimizers the loss is no
measure of progress.
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.run import Floats
from lightning_calib.report.wording import decimal, percent

CODES = ("rate-too-high",)
_MOVED = 0.1
_THROWN = 10.0
_FORGETS = 0.1
_TENTH = 0.1
_ROWS = 2


def detect(seen: Measured) -> list[Finding]:
    """A finding where the steps were too large."""
    loss, moved, ratio = seen.loss, seen.moved, seen.update_ratio
    rows, highest = _seen_by_weights(seen)
    far = loss.first + _THROWN * max(loss.noise, 1e-6 * abs(loss.first))
    stood = int((rows > far).sum()) >= _ROWS and loss.first - loss.last < _TENTH * abs(loss.first)
    away = _away(rows, seen)
    not_learned = loss.learned is False or stood or away
    if not not_learned or loss.learned_once or not moved > _MOVED or seen.run.facts.optimizers > 1:
        return []
    thrown = highest > far or away
    if not (thrown or ratio > _FORGETS):
        return []
    high = "inf or nan" if np.isinf(highest) else f"{highest:.3g}"
    better = "no better than" if loss.last >= loss.first else "hardly better than"
    if thrown:
        what = f"the loss rose from {loss.first:.3g} to {high} and ends at {loss.last:.3g}, {better} its start"
    else:
        what = (
            f"each step changes the weights by {percent(ratio)}, and the loss went from {loss.first:.3g} to "
            f"{loss.last:.3g}"
        )
    rate = f" (lr {seen.lr:.3g})" if np.isfinite(seen.lr) else ""
    advice = "Lower it tenfold until the loss falls"
    evidence = {
        "loss_first": loss.first,
        "loss_highest": highest,
        "loss_last": loss.last,
        "loss_noise": loss.noise,
        "moved": moved,
        "update_ratio": ratio,
        "lr": seen.lr,
    }
    if np.isfinite(seen.lr):
        evidence["suggested_lr"] = seen.lr / 10
        advice += f", beginning with `lr={decimal(seen.lr / 10)}`"
    sentence = f"The learning rate{rate} is too high: {what}."
    return [Finding("rate-too-high", "act", sentence, advice + ".", evidence)]


def _seen_by_weights(seen: Measured) -> tuple[Floats, float]:
    """The loss of each row and the largest of all, without those of steps that were dropped for not being finite."""
    scalars, highest = seen.run.scalars, seen.loss.highest
    if not (seen.run.counts.all_bad_skipped and np.isfinite(seen.loss.last)):
        return scalars.loss, highest
    known = finite(np.concatenate([scalars.loss, scalars.loss_max]))
    return np.where(np.isfinite(scalars.loss), scalars.loss, np.nan), float(known.max(initial=seen.loss.first))


def _away(rows: Floats, seen: Measured) -> bool:
    """Whether every loss of the last half is far above its start, after steps that forget the weights."""
    half, ratios = rows[len(rows) // 2 :], finite(seen.run.scalars.update_ratio)
    half = half[~np.isnan(half)]
    lowest = half.min() if len(half) else np.nan
    return bool(lowest > _THROWN * abs(seen.loss.first) > 0 and ratios.max(initial=0.0) > _FORGETS)
