"""A lasting shift: from some step on the loss is worse and the gradient norm is at another level.

Looks at: the row that splits the run's log norms best, eight rows or more on either side. Speaks where

- the medians of the log norm differ by more than 3 times (three times the running level is where a spike guard may
  begin) and by more than 5 standard deviations of either side, and
- the loss *rose* there, by more than 5 deviations of a row and by a tenth, and stays so.

The loss decides, because a healthy run that leaves a plateau shifts its norm 11 times while its loss falls. Several
optimizers that work against each other shift for reasons of their own: silent there. Not to be confused with a spike (it
comes back), or with a run that ends above its start (`diverged`).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.loss_course import deviation, noise_of
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Floats

CODES = ("level-shift",)
_ROWS = 8
_TIMES = 3.0
_DEVIATIONS = 5.0
_TENTH = 0.1


def detect(seen: Measured) -> list[Finding]:
    """A finding where the level changed for the worse and stayed."""
    scalars = seen.run.scalars
    good = np.flatnonzero(np.isfinite(scalars.grad_norm_before) & (scalars.grad_norm_before > 0) & np.isfinite(scalars.loss))
    if len(good) < 2 * _ROWS or seen.run.facts.optimizers > 1:
        return []
    logs, loss = np.log(scalars.grad_norm_before[good]), scalars.loss[good]
    split = _split(logs)
    before, after = slice(max(0, split - 50), split), slice(split, None)
    change = float(np.median(logs[after]) - np.median(logs[before]))
    spread = max(deviation(logs[before]), deviation(logs[after]))
    noise = max(noise_of(loss[before]), noise_of(loss[after]))
    was, now = float(np.median(loss[before])), float(np.median(loss[after]))
    lasting = abs(change) > np.log(_TIMES) and abs(change) > _DEVIATIONS * spread
    if not lasting or not now - was > max(_DEVIATIONS * noise, _TENTH * abs(was)):
        return []
    if not float(np.median(loss[-_ROWS // 2 :])) - was > max(_DEVIATIONS * noise, _TENTH * abs(was)):
        return []
    step, times = int(scalars.step[good[split]]), float(np.exp(change))
    sentence = (
        f"From step {step:,} on the gradient norm is at {np.exp(np.median(logs[after])):.3g}, {times:.3g} times its level before, "
        f"and the loss rose from {was:.3g} to {now:.3g} and stays there."
    )
    advice = (
        f"Look what changed at step {step:,}: the data, the learning rate (`calib/lr_effective`), what is frozen; if it was one "
        "bad update, start again from a checkpoint before it, with a lower rate or a clip."
    )
    evidence = {"change": times, "loss_first": was, "loss_last": now, "norm": float(np.exp(np.median(logs[after])))}
    return [Finding("level-shift", "look", sentence, advice, evidence, steps=(step, int(scalars.step[-1])))]


def _split(values: Floats) -> int:
    """Where the means of the two sides differ most, in standard errors of equal variance."""
    total, n = np.cumsum(values), len(values)
    k = np.arange(_ROWS, n - _ROWS + 1)
    left, right = total[k - 1] / k, (total[-1] - total[k - 1]) / (n - k)
    return int(k[np.argmax(np.abs(left - right) * np.sqrt(k * (n - k)))])
