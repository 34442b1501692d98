"""Which cell of an arm is chosen: by the mean of validation over the seeds, and by nothing else."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean

from benchmarks.study.plan import Arm, Cell, Experiment
from benchmarks.study.table import Row, text


def by_cell(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> dict[Cell, list[Row]]:
    """The runs of each cell of the grid, in the order of the plan."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if (row.experiment, row.digest, row.arm, row.phase) == (experiment.name, experiment.digest, arm.name, "choose"):
            found.setdefault((text(row.rate), text(row.threshold)), []).append(row)
    return {
        cell: sorted(
            found.get((text(cell.rate), "" if cell.threshold is None else text(cell.threshold)), []),
            key=lambda row: row.seed,
        )
        for cell in arm.cells
    }


def worth(experiment: Experiment, row: Row) -> float:
    """The measure on validation, more is better; a run that is not finite is worth less than any other."""
    value = experiment.better * row.validation
    return value if math.isfinite(value) else -math.inf


def chosen(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> Cell:
    """The cell with the best mean; of equals the one with the lowest rate."""
    means = {
        cell: fmean(worth(experiment, row) for row in found)
        for cell, found in by_cell(rows, experiment, arm).items()
        if found
    }
    return max(sorted(means), key=means.__getitem__)


def lowered(rows: Sequence[Row], experiment: Experiment, control: Arm) -> Cell:
    """The chosen rate of the arm that the control belongs to, times the mean cut of its tested runs."""
    found = [
        row for row in rows
        if (row.experiment, row.digest, row.arm, row.phase)
        == (experiment.name, experiment.digest, control.lowered, "test")
    ]  # fmt: skip
    return Cell(float(f"{found[0].rate * fmean(row.mean_factor for row in found):.4g}"))
