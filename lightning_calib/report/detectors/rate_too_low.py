"""The learning rate is too low: the weights have hardly moved, and the loss cannot have fallen.

Looks at: reach, the sum of |g| |dw| over all steps and tensors, over the first loss. By Cauchy and Schwarz the loss
cannot, to first order, have fallen by more. Speaks where reach is below 2 % *and* the weights' path is below 1 % of
their norm, after 100 steps at least, and where the loss has indeed not fallen by more: then neither the loss nor the
weights can be told from those of the start (an evaluation is rarely repeatable to better than 2 %). A milder case is
not named: a rate a hundred times too low can reach 13 %, and a healthy fine-tuning as little.

Silent in a warm-up (the rate is still rising), in a second fit on trained weights (`earlier`), where the first loss is
not above zero (a log-likelihood has no scale), and where a clip, a rule or a dead layer explains it. Not to be confused
with a run that has converged and stays (its path is long), or with fine-tuning (it removes more of its loss).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.wording import count, decimal, percent

CODES = ("rate-too-low",)
_REACH = 0.02
_MOVED = 0.01
_STEPS = 100
_NOISE = 3.0


def detect(seen: Measured) -> list[Finding]:
    """A finding where the steps were too small for anything to happen."""
    steps, loss, moved = seen.run.counts.steps, seen.loss, seen.moved
    if steps < _STEPS or seen.run.counts.earlier or not loss.first > 0 or _warming_up(seen):
        return []
    reach = seen.work / loss.first
    fell = loss.first - loss.last > _REACH * loss.first + _NOISE * loss.noise
    if not (reach < _REACH and moved < _MOVED) or fell:
        return []
    evidence = {"reach": reach, "moved": moved, "loss_first": loss.first, "loss_last": loss.last, "lr": seen.lr}
    times = 10 ** round(np.log10(1 / max(reach, 1e-3)))
    advice = f"Raise it {times:,} times"
    if np.isfinite(seen.lr):
        evidence["suggested_lr"] = seen.lr * times
        advice += f" (`lr={decimal(seen.lr * times)}`)"
    advice += ", then by factors of 3 until the loss falls"
    if seen.run.facts.optimizers == 1:  # more of them it refuses
        advice += ", or let Lightning's `Tuner(trainer).lr_find(model)` look"
    rate = f" (lr {seen.lr:.3g})" if np.isfinite(seen.lr) else ""
    sentence = (
        f"The learning rate{rate} is too low: in {count(steps, 'step')} the weights moved by {percent(moved)} of their "
        f"norm, which cannot have lowered the loss of {loss.first:.3g} by more than {percent(reach)}."
    )
    return [Finding("rate-too-low", "look", sentence, f"{advice}.", evidence)]


def _warming_up(seen: Measured) -> bool:
    """Whether a schedule was still raising the rate at the last rows."""
    rates = finite(seen.run.scalars.lr)
    return bool(seen.run.facts.schedule) and len(rates) > 1 and rates[-1] > rates[0] and rates[-1] >= rates.max()
