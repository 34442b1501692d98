"""Validation against the rate, one line per arm that has the first arm's rates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from benchmarks.chart import Line, chart
from benchmarks.study.choose import by_cell
from benchmarks.study.plan import Experiment
from benchmarks.study.quantities import is_lost
from benchmarks.study.table import Row

PLOTTED = (
    "images", "images-norm-free", "bad-batches", "language-sgd", "language-adamw", "text-long-tail-clinc",
    "text-wrong-labels", "recommendation", "speech",
)  # fmt: skip


def plot(rows: Sequence[Row], experiment: Experiment, which: str = "A") -> str:
    """An SVG; empty before all cells of the grid have run. A mean is lost where most of its runs are."""
    rates = [cell.rate for cell in experiment.arms[0].cells]
    mine, lines, values = [row for row in rows if row.set == which], [], []
    for arm in experiment.arms:
        if [cell.rate for cell in arm.cells] != rates:
            continue
        means = []
        for found in by_cell(mine, experiment, arm).values():
            if not found:
                return ""
            gone = sum(is_lost(row, experiment) or not math.isfinite(row.validation) for row in found) > len(found) / 2
            means.append(math.inf if gone else fmean(row.validation for row in found if math.isfinite(row.validation)))
        lines.append(Line(arm.name, means, len(lines) % 7))
        values += [one for one in means if math.isfinite(one)]
    if not values:
        return ""
    ticks = ticks_of(max(min(values), 1e-3), max(values))
    lines = [
        line._replace(values=[one if not math.isfinite(one) else max(one, 1e-3) for one in line.values])
        for line in lines
    ]
    title = f"{experiment.name}: {experiment.measure} on validation"
    return chart(
        title, "learning rate", f"{experiment.measure}, mean of the seeds of set {which}", "lost", rates, ticks, lines
    )


def ticks_of(low: float, high: float) -> list[float]:
    """About five round numbers within, or the ends."""
    found = [float(f"{low * (high / low) ** (i / 4):.2g}") for i in range(5)]
    return sorted({one for one in found if one > 0})
