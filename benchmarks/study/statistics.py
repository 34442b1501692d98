"""Paired differences: intervals by bootstrap over the seeds, and when a difference counts."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

ALL = 5  # seeds up to which every resample is taken; beyond, 10,000 of them
BETTER, WORSE, SMALL, NONE, UNKNOWN = "better", "worse", "too small to count", "not shown", "not run"


class Effect(NamedTuple):
    """A mean paired difference (above 0 is better), its 95 % interval, and the verdict."""

    mean: float
    low: float
    high: float
    verdict: str


def interval(differences: Sequence[float]) -> tuple[float, float]:
    """The middle 95 % of the means of resamples with replacement."""
    number = len(differences)
    if number <= ALL:
        means = sorted(sum(one) / number for one in itertools.product(differences, repeat=number))
    else:
        draw = random.Random(0)
        means = sorted(fmean(draw.choices(differences, k=number)) for _ in range(10_000))
    cut = math.floor(0.025 * len(means))
    return means[cut], means[-1 - cut]


def judge(differences: Sequence[float], margin: float) -> Effect:
    """Better or worse only if the interval leaves 0 out, every seed agrees, and the mean is no less than the margin."""
    if not differences or not all(map(math.isfinite, differences)):
        return Effect(math.nan, math.nan, math.nan, UNKNOWN if not differences else NONE)
    mean, (low, high) = fmean(differences), interval(differences)
    agree = all(one > 0 for one in differences) or all(one < 0 for one in differences)
    if not agree or low <= 0 <= high:
        return Effect(mean, low, high, NONE)
    if abs(mean) < margin:
        return Effect(mean, low, high, SMALL)
    return Effect(mean, low, high, BETTER if mean > 0 else WORSE)
