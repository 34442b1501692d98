"""A spike: one step whose gradient and whose loss stand far out.

Looks at: the largest norm and the largest loss since the last row, beside those of the 50 rows before; where there are
fewer than 8 of those, beside those behind it, too. The norm alone does not tell: a healthy SGD run reaches 17 times its
median when it leaves a plateau, while its loss falls. Speaks where

- the norm is more than 10 times the median of those rows (Megatron's rule for what is unexpectedly large), and
- its logarithm stands more than 5 standard deviations out (one in three million, if normal), and
- the loss is more than 10 deviations above its median (heavy tails reach 5) *and* more than twice the largest of the
  50.

Six other rows at least, because the median and the deviation of six withstand two that are spoilt, and three before it,
because the start of a run is no spike. Where no loss is known, or several optimizers work against each other, so that a
loss means little, the norm has to be 100 times the usual. Not to be confused with the first row of a norm that stays up
(`level-shift`; a norm that comes back is a spike, though the loss may stay up: then both are told), or with a run that
never came back (`diverged`).
"""

import numpy as np

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.detectors.level_shift import norm_rises
from lightning_calib.report.finding import Finding
from lightning_calib.report.loss_course import deviation
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Floats
from lightning_calib.report.wording import count, listed
from lightning_calib.report.wording import times as times_of

CODES = ("spike",)
_BEFORE = 50
_ENOUGH = 8
_ROWS = 6
_START = 3
_TIMES = 10.0
_ALONE = 100.0
_Z = 5.0
_DEVIATIONS = 10.0
_LOSS_TIMES = 2.0


def detect(seen: Measured) -> list[Finding]:
    """A finding for all spikes, about the worst."""
    scalars = seen.run.scalars
    if len(scalars.step) <= _START:
        return []
    norms = np.fmax(scalars.grad_norm_max, scalars.grad_norm_before)
    norms = np.where(np.isfinite(norms) & (norms > 0), norms, np.nan)
    highs = np.fmax(scalars.loss_max, scalars.loss)
    trusted = seen.run.facts.optimizers == 1 and np.isfinite(highs).sum() >= _ROWS
    logs = np.log(norms)
    shifted = norm_rises(seen)
    found, lowest = [], _lowest(logs)
    for row in range(_START, len(logs)):
        if row in shifted or not logs[row] > lowest[row] + np.log(_TIMES):
            continue
        others = np.arange(max(0, row - _BEFORE), row)
        if row < _ENOUGH:
            others = np.delete(np.arange(min(len(logs), _BEFORE)), row)
        past = logs[others]
        past = past[np.isfinite(past)]
        if len(past) < _ROWS:
            continue
        usual = float(np.median(past))
        times = float(np.exp(min(logs[row] - usual, 700.0)))
        far = logs[row] - usual > _Z * deviation(past)
        if not far or times < (_TIMES if trusted else _ALONE):
            continue
        if trusted and not _loss_jumped(highs[others], float(highs[row])):
            continue
        found.append((times, row, usual))
    if not found:
        return []
    times, row, usual = max(found)
    return [_finding(seen, times, row, float(np.exp(usual)), float(norms[row]), len(found))]


def _lowest(logs: Floats) -> Floats:
    """The lowest of the rows that each is compared with, or of more: what is not far above that is no spike."""
    known = np.where(np.isfinite(logs), logs, np.inf)
    padded = np.concatenate([np.full(_BEFORE, np.inf), known])
    lowest: Floats = np.lib.stride_tricks.sliding_window_view(padded, _BEFORE + 1).min(axis=1)
    lowest[:_ENOUGH] = known[:_BEFORE].min(initial=np.inf)
    return lowest


def _loss_jumped(past: Floats, now: float) -> bool:
    past = past[np.isfinite(past)]
    if len(past) < _ROWS or np.isnan(now):
        return False
    return bool(
        now > float(np.median(past)) + _DEVIATIONS * deviation(past)
        and (now > _LOSS_TIMES * past.max() if past.max() > 0 else True)
    )


def _finding(seen: Measured, times: float, row: int, usual: float, norm: float, number: int) -> Finding:
    scalars = seen.run.scalars
    since = int(scalars.step[row - 1]) if row else 0
    step = int(scalars.step[row])
    when = f"at step {step:,}" if step - since <= 1 else f"between steps {since:,} and {step:,}"
    layers = _risen(seen, step)
    named = f", most in {listed(layers[:1])}" if layers else ""
    high = float(np.fmax(scalars.loss_max[row], scalars.loss[row]))
    followed = ""
    if np.isfinite(high):
        before = scalars.loss[max(0, row - _ENOUGH) : row]
        later = scalars.loss[row + 1 : row + 1 + _ENOUGH]
        before, later = before[np.isfinite(before)], later[np.isfinite(later)]
        was, now = (float(np.median(one)) if len(one) else float("nan") for one in (before, later))
        back = now < was + (_LOSS_TIMES - 1) * abs(was)
        followed = f"; the loss reached {high:.3g} and " + (
            "came back" if back else f"was at {now:.3g} afterwards, {was:.3g} before" if len(later) else "is the last"
        )
    more = f"; {number - 1:,} more like it" if number > 1 else ""
    sentence = f"The gradient norm reached {norm:.3g} {when}, {times_of(times)} times the usual{named}{followed}{more}."
    counts = seen.run.counts
    if counts.spikes:
        sentence = f"{sentence[:-1]}; SpikeGuard dropped {count(counts.spikes, 'step')} of the run as spikes."
    clip = seen.clip(float(seen.high) if np.isfinite(seen.high) else usual * 3)
    clip = clip if seen.run.facts.engine else f"`ZClip()` or {clip}"
    there = [one.name for one in acting(seen) if one.clip_rate]
    taken = f"{there[0]} clips what it judges too large" if there else f"{clip} takes it"
    advice = (
        f"One such batch is noise, and {taken}; look at the batch, and if the "
        "loss does not come back, lower the learning rate."
    )
    if counts.spikes:
        advice = "Look at the batches that SpikeGuard dropped; if the loss does not come back, lower the learning rate."
    evidence = {"times": times, "norm": norm, "loss_highest": high, "suggested_max_norm": seen.high}
    return Finding("spike", "look", sentence, advice, evidence, layers=layers, steps=(since, step))


def _risen(seen: Measured, step: int) -> tuple[str, ...]:
    """The tensors that rose most, by their largest norm since the last row, against their own median."""
    layers, tensors = seen.run.layers, seen.tensors
    if layers is None or tensors is None or step not in layers.step:
        return ()
    row = int(np.searchsorted(layers.step, step))
    rise = np.fmax(layers.peak[row], layers.before[row]) / np.where(tensors.grad > 0, tensors.grad, np.nan)
    order = np.argsort(np.where(np.isfinite(rise), -rise, np.inf))[:3]
    return tuple(layers.names[i] for i in order if np.isfinite(rise[i]))
