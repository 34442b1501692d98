"""What the loss did in a run: where it began and ended, how noisy it is, and whether anything was learned."""

from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from lightning_calib.report.run import Floats, Scalars

_ROWS = 4  # fewer have no median of differences to speak of
_LEARNED_ONCE = 5.0  # the first loss is one number, and heavy tails reach 5 by chance
_LEARNED = 3.0  # standard deviations: one in 700 by chance, if noise is normal


class LossCourse(NamedTuple):
    """The course of the training loss.

    Attributes:
        first: Of the first step; nan if not known, inf if it was not finite.
        last: Median of the last quarter of the rows.
        highest: The largest of any step, inf if one was not finite; nan if not known.
        noise: Standard deviation of one step's loss around the trend in the last half, see `step_noise`.
        learned: Whether the loss fell by more than 3 ``noise``; None where it is not known.
        best: The row with the lowest loss before the one with the largest; -1 without one.
        learned_once: Whether that row is more than 5 deviations, of the noise up to it, below the first loss.
    """

    first: float
    last: float
    highest: float
    noise: float
    learned: bool | None
    best: int
    learned_once: bool


def deviation(values: Floats) -> float:
    """Standard deviation of values with outliers: the median absolute deviation, scaled to a normal distribution's."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def noise_of(values: Floats) -> float:
    """Standard deviation around a trend; nan of fewer than four values.

    The median absolute deviation of the first differences, scaled as in `deviation`, over the square root of 2.
    """
    values = values[np.isfinite(values)]
    return deviation(np.diff(values)) / 2**0.5 if len(values) >= _ROWS else float("nan")


def step_noise(rows: Floats, highest: Floats, steps_per_row: float) -> float:
    """Standard deviation of one step's loss, from rows of means and of maxima over n steps; nan if not known.

    The smaller of two estimates, each of which a trend within a row makes too large: the noise of the rows times the
    square root of n, and how far a row's largest is above its mean, over what is to be expected of the largest of n
    normal numbers (Blom, 1958).
    """
    n = max(1.0, steps_per_row)
    whole = np.isfinite(rows) & np.isfinite(highest)
    above = highest[whole] - rows[whole]
    from_maxima = float("nan")
    if n >= 2 and len(above) >= _ROWS:
        from_maxima = float(np.median(above)) / NormalDist().inv_cdf((n - 0.375) / (n + 0.25))
    return float(np.fmin(noise_of(rows) * n**0.5, from_maxima))


def loss_course(scalars: Scalars, steps_per_row: float) -> LossCourse:
    """The course of the loss, from rows that are the means over ``steps_per_row`` optimizer steps each."""
    loss, highest = scalars.loss, scalars.loss_max
    there = np.flatnonzero(~np.isnan(loss))
    known = loss[there]
    firsts = scalars.loss_first[~np.isnan(scalars.loss_first)]
    first = float(firsts[0]) if len(firsts) else float(known[0]) if len(known) else float("nan")
    tail = known[-max(1, len(known) // 4) :]
    last = float(np.median(tail)) if len(tail) else float("nan")
    highs = np.concatenate([known, highest[~np.isnan(highest)]])
    half = slice(there[len(there) // 2] if len(there) >= 2 * _ROWS else 0, None)
    noise = step_noise(loss[half], highest[half], steps_per_row)
    learned = None
    if np.isfinite([first, noise]).all() and not np.isnan(last):
        learned = bool(first - last > _LEARNED * noise) if np.isfinite(last) else False
    tops = np.fmax(loss, highest)
    top = int(np.argmax(np.where(np.isnan(tops), -np.inf, tops))) if len(tops) else 0
    finite = there[np.isfinite(known) & (there < top)]
    best = int(finite[np.argmin(loss[finite])]) if len(finite) else -1
    before = step_noise(loss[: best + 1], highest[: best + 1], steps_per_row)
    return LossCourse(
        first=first,
        last=last,
        highest=float(highs.max()) if len(highs) else float("nan"),
        noise=noise,
        learned=learned,
        best=best,
        learned_once=bool(best >= 0 and first - loss[best] > _LEARNED_ONCE * before),
    )
