"""A lasting shift: from some step on the loss is worse, and stays so.

Looks at: the row at which the loss rises most, from the eight rows before it to the eight from it on, and the one at
which the log norm changes most; four rows where the run has fewer than 32. Speaks where the loss *rose* there and
stays: nine tenths of all rows behind it are above nine tenths of those before it, and above their median by more than
10 standard deviations of their noise (heavy tails reach 5 by chance), and

- the level of the norm changed, too, by more than 3 times (three times the running level is where a spike guard may
  begin) and 5 deviations; with fewer than 8 rows on a side, which do not know their spread, by 10 times; or
- the loss is at more than twice its level.

The loss decides, because a healthy run that leaves a plateau shifts its norm 11 times while its loss falls. Several
optimizers that work against each other shift for reasons of their own: silent there. Not to be confused with a spike
(it comes back), or with a run that ends above its start and stays there (`diverged`).
"""

import numpy as np
from numpy.typing import NDArray

from lightning_calib.report.finding import Finding
from lightning_calib.report.loss_course import deviation, noise_of
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Floats
from lightning_calib.report.wording import times as times_of

CODES = ("level-shift",)
_ROWS = 4
_KNOWN = 8
_TIMES = 3.0
_TENFOLD = 10.0
_DEVIATIONS = 5.0
_LOSS_DEVIATIONS = 10.0
_TWICE = 2.0


def shift(seen: Measured) -> tuple[NDArray[np.intp], int] | None:
    """The rows whose norm and loss are known, and which of them is the first after a shift; None without one."""
    scalars = seen.run.scalars
    whole = np.isfinite(scalars.grad_norm_before) & (scalars.grad_norm_before > 0) & np.isfinite(scalars.loss)
    good = np.flatnonzero(whole)
    if len(good) < 2 * _ROWS or seen.run.facts.optimizers > 1:
        return None
    logs, loss = np.log(scalars.grad_norm_before[good]), scalars.loss[good]
    splits = (_rise(loss), _rise(logs), _rise(-logs))
    split = next((one for one in splits if _worse(loss, one) and _shifted(logs, loss, one)), None)
    return (good, split) if split is not None else None


def norm_rises(seen: Measured) -> set[int]:
    """The row of a shift with which the norm rose, too, and the row before: a norm there is no spike, it stays up."""
    found = shift(seen)
    if found is None:
        return set()
    good, split = found
    logs = np.log(seen.run.scalars.grad_norm_before[good])
    rose = np.median(logs[split:]) - np.median(logs[max(0, split - _KNOWN) : split]) > np.log(_TIMES)
    return {int(good[split]), int(good[split - 1])} if rose else set()


def detect(seen: Measured) -> list[Finding]:
    """A finding where the level changed for the worse and stayed."""
    found, scalars = shift(seen), seen.run.scalars
    if found is None:
        return []
    good, split = found
    logs, loss = np.log(scalars.grad_norm_before[good]), scalars.loss[good]
    before, after = slice(max(0, split - _KNOWN), split), slice(split, None)
    step, level = int(scalars.step[good[split]]), float(np.exp(np.median(logs[after])))
    times = level / float(np.exp(np.median(logs[before])))
    was, now = float(np.median(loss[before])), float(np.median(loss[after]))
    since = int(scalars.step[good[split - 1]])
    when = f"From step {step:,} on" if step - since <= 1 else f"From between steps {since:,} and {step:,} on"
    sentence = (
        f"{when} the loss is higher and stays so ({was:.3g} before, {now:.3g} since), and the gradient norm is at "
        f"{level:.3g}, {times_of(times)} times its level before."
    )
    advice = (
        "Look what changed there: the data, the learning rate (`calib/lr_effective`), what is frozen. If it was one "
        "bad update, start again from a checkpoint before it, "
        '`trainer.fit(model, ckpt_path="...")`, with a lower rate or a clip.'
    )
    evidence = {"change": times, "loss_before": was, "loss_last": now, "norm": level}
    return [Finding("level-shift", "look", sentence, advice, evidence, steps=(step, int(scalars.step[-1])))]


def _worse(loss: Floats, split: int) -> bool:
    """Whether the loss rose at the split, clear of its noise, and is still up at the end."""
    before, after = loss[max(0, split - _KNOWN) : split], loss[split:]
    rise = _LOSS_DEVIATIONS * noise_of(before)
    floor = max(float(np.percentile(before, 90)), float(np.median(before)) + rise)
    return float(np.percentile(after, 10)) > floor and float(np.median(after[-_ROWS:])) > floor


def _shifted(logs: Floats, loss: Floats, split: int) -> bool:
    """Whether the norm's level changed, or the loss at least doubled."""
    before, after = slice(max(0, split - _KNOWN), split), slice(split, None)
    change = abs(float(np.median(logs[after]) - np.median(logs[before])))
    spread = max(deviation(logs[before]), deviation(logs[after]))
    times = _TIMES if min(split, len(logs) - split) >= _KNOWN else _TENFOLD
    was, now = float(np.median(loss[before])), float(np.median(loss[after]))
    return (change > np.log(times) and change > _DEVIATIONS * spread) or (was > 0 and now > _TWICE * was)


def _rise(values: Floats) -> int:
    """The row from which on the mean of some rows is furthest above that of as many before."""
    rows = _KNOWN if len(values) >= 4 * _KNOWN else _ROWS
    sums = np.convolve(values, np.ones(rows), "valid")
    return int(np.argmax(sums[rows:] - sums[:-rows])) + rows
