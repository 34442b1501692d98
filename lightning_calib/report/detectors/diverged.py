"""Training blew up: the loss or the gradient norm grew until it was not finite, or until all that was learned was lost.

Looks at: what came before the first inf or nan; the loss at its best, at its end and at its start. Speaks in two cases.

- A gradient or the loss was not finite, and before that the loss had risen by more than 10 standard deviations of its
  noise above its start (training losses have heavy tails: 5 occur by chance), or the norm had risen tenfold above its
  first values in one of the last three rows, and half as many decades in another (the norm of a healthy run wanders by
  several times), or a norm was more than 2^24 times the first loss (the last bit of a weight near 1 then moves the loss
  by all of it), or a step had changed the weights by more than their own norm. Not where every such step was skipped
  and the loss is finite at the end: that was survived.
- The loss had fallen by more than 5 deviations below its start, ends by more than 10 above it, and does not come back
  (it is not below half of what it reached).

Not to be confused with a bad batch, whose gradient is nan out of a healthy run (`nonfinite`), with other data, from
which a run learns again (`level-shift`), nor with a run that never learned (`rate-too-high`).
"""

import numpy as np

from lightning_calib.report.detectors.nonfinite import first_bad_row
from lightning_calib.report.finding import Finding
from lightning_calib.report.loss_course import noise_of, step_noise
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Floats
from lightning_calib.report.wording import decimal

CODES = ("diverged",)
_DEVIATIONS = 10.0
_TIMES = 10.0
_BITS = 2.0**24  # of a float32
_ENOUGH = 4  # norms of healthy steps that a threshold can be taken from


def detect(seen: Measured) -> list[Finding]:
    """A finding where training blew up."""
    row = first_bad_row(seen)
    counts = seen.run.counts
    survived = counts.all_bad_skipped and bool(np.isfinite(seen.loss.last))  # a guard dropped every one
    found = _grew(seen, row) if row is not None and not survived else None
    found = found or _lost(seen)
    if found is None:
        return []
    sentence, first = found
    scalars = seen.run.scalars
    evidence = {
        "loss_first": seen.loss.first,
        "loss_highest": seen.loss.highest,
        "loss_last": seen.loss.last,
        "nonfinite": float(seen.run.counts.nonfinite),
        "lr": seen.lr,
    }
    advice = "Lower the learning rate tenfold"
    if np.isfinite(seen.lr):
        evidence["suggested_lr"] = seen.lr / 10
        advice += f" (`lr={decimal(seen.lr / 10)}`)"
    healthy = scalars.grad_norm_before[: max(first, 1)]
    healthy = healthy[np.isfinite(healthy) & (healthy > 0)][: max(1, first // 2)]
    advice += ", or warm it up"
    if len(healthy) >= _ENOUGH and not seen.scale_free:
        evidence["suggested_max_norm"] = float(np.percentile(healthy, 95))
        advice += (
            f", or clip what is far above the norm of the healthy steps: {seen.clip(evidence['suggested_max_norm'])}"
        )
    return [Finding("diverged", "act", sentence, advice + ".", evidence, steps=seen.steps_of(first, -1))]


def _grew(seen: Measured, row: int) -> tuple[str, int] | None:
    """What grew before the first row that was not finite, and the row."""
    scalars, loss = seen.run.scalars, seen.loss
    end = "then the gradient was inf or nan" if seen.run.counts.nonfinite else "then it was inf or nan"
    highs = _largest(scalars.loss_max, scalars.loss)[: row + 1]
    highs = highs[np.isfinite(highs)]
    before = scalars.loss[:row]
    noise = noise_of(before[np.isfinite(before)][: max(4, row // 2)]) * seen.steps_per_row**0.5
    noise = noise if np.isfinite(noise) else abs(loss.first) / _DEVIATIONS  # too early to know: then doubling counts
    step = int(scalars.step[row])
    if len(highs) and np.isfinite(loss.first) and highs.max() > loss.first + _DEVIATIONS * noise:
        rose = f"rose from {loss.first:.3g} to {highs.max():.3g} by step {step:,}"
        return f"Training diverged: the loss {rose}, {end}.", row
    norms = _largest(scalars.grad_norm_max, scalars.grad_norm_before)[: row + 1]
    norms = norms[np.isfinite(norms) & (norms > 0)]
    usual = float(np.median(norms[: max(1, len(norms) // 2)])) if len(norms) else float("nan")
    *_, second, highest = sorted(norms[-3:]) if len(norms) >= 4 else (0.0, 0.0)  # one can be one bad batch
    if highest > _TIMES * usual and second > _TIMES**0.5 * usual:
        rose = f"rose from {usual:.3g} to {highest:.3g} by step {step:,}"
        return f"Training diverged: the gradient norm {rose}, {end}.", row
    if len(norms) and np.isfinite(loss.first) and norms.max() > _BITS * abs(loss.first) > 0:
        return f"Training diverged: the gradient norm reached {norms.max():.3g} by step {step:,}, {end}.", row
    ratios = scalars.update_ratio[: row + 1]
    thrown = np.flatnonzero(np.isfinite(ratios) & (ratios > 1))  # inf: the weights were inf or nan already
    if len(thrown):
        at = f"at step {int(scalars.step[thrown[0]]):,} a step was {ratios[thrown[0]]:.3g} times as long as the weights"
        return f"Training diverged: {at}, {end}.", row
    return None


def _largest(one: Floats, other: Floats) -> Floats:
    """The larger finite number of each row."""
    return np.fmax(np.where(np.isfinite(one), one, np.nan), np.where(np.isfinite(other), other, np.nan))


def _lost(seen: Measured) -> tuple[str, int] | None:
    """Whether what was learned was lost, and the row at which the loss was best."""
    loss, rows = seen.loss, seen.run.scalars.loss
    if not loss.learned_once or not np.isfinite([loss.first, loss.last]).all():
        return None
    best = loss.best
    noise = step_noise(rows[: best + 1], seen.run.scalars.loss_max[: best + 1], seen.steps_per_row)
    highest = float(rows[best:][np.isfinite(rows[best:])].max())
    if loss.last < highest / 2 or loss.last - loss.first < _DEVIATIONS * noise:
        return None
    when = f"was down from {loss.first:.3g} to {rows[best]:.3g} at step {int(seen.run.scalars.step[best]):,}"
    return f"Training diverged: the loss {when}, and is at {loss.last:.3g} now, above its start.", best
