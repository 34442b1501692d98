"""What the loss did in a run: where it began and ended, how noisy it is, and whether anything was learned."""

from typing import NamedTuple

import numpy as np

from lightning_calib.report.run import Floats, Scalars

_ROWS = 4  # fewer have no median of differences to speak of
_LEARNED = 3.0  # standard deviations: one in 700 by chance, if noise is normal


class LossCourse(NamedTuple):
    """The course of the training loss.

    Attributes:
        first: Of the first step; nan if not known, inf if it was not finite.
        last: Median of the last quarter of the rows.
        highest: The largest of any step, inf if one was not finite; nan if not known.
        row_noise: Standard deviation of a row's mean around the trend: the median absolute deviation of the first
            differences of the last half, scaled to a normal distribution's, over the square root of 2. A trend is no
            noise.
        noise: The same of one step, ``row_noise`` times the square root of the steps in a row.
        learned: Whether the loss fell by more than 3 ``noise``; None where it is not known.
    """

    first: float
    last: float
    highest: float
    row_noise: float
    noise: float
    learned: bool | None


def deviation(values: Floats) -> float:
    """Standard deviation of values with outliers: the median absolute deviation, scaled to a normal distribution's."""
    return 1.4826 * float(np.median(np.abs(values - np.median(values)))) if len(values) else float("nan")


def noise_of(values: Floats) -> float:
    """Standard deviation around a trend, from the first differences; nan of fewer than four values."""
    values = values[np.isfinite(values)]
    return deviation(np.diff(values)) / 2**0.5 if len(values) >= _ROWS else float("nan")


def loss_course(scalars: Scalars, steps_per_row: float) -> LossCourse:
    """The course of the loss, from rows that are the means over ``steps_per_row`` optimizer steps each."""
    loss = scalars.loss
    known = loss[~np.isnan(loss)]
    firsts = scalars.loss_first[~np.isnan(scalars.loss_first)]
    first = float(firsts[0]) if len(firsts) else float(known[0]) if len(known) else float("nan")
    tail = known[-max(1, len(known) // 4) :]
    last = float(np.median(tail)) if len(tail) else float("nan")
    highs = np.concatenate([known, scalars.loss_max[~np.isnan(scalars.loss_max)]])
    highest = float(highs.max()) if len(highs) else float("nan")
    row_noise = noise_of(known[len(known) // 2 :] if len(known) >= 2 * _ROWS else known)
    noise = row_noise * max(1.0, steps_per_row) ** 0.5
    learned = None
    if np.isfinite([first, noise]).all() and not np.isnan(last):
        learned = bool(first - last > _LEARNED * noise) if np.isfinite(last) else False
    return LossCourse(first, last, highest, row_noise, noise, learned)
