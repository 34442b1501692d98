"""What is compared: one number per arm and seed, from the rows alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.study.choose import by_cell, chosen, worth
from benchmarks.study.fit import LEARNT
from benchmarks.study.plan import SETS, Arm, Cell, Experiment
from benchmarks.study.table import Row

NEAR = 0.05  # a rate works if it is within this share of the best mean without a clip
MULTIPLES = (1, 3, 10, 30)
TEN_CLASSES = ("images", "images-norm-free", "perceptron", "speech")  # tasks with as many examples of each


def is_lost(row: Row, experiment: Experiment) -> bool:
    """The row's own word, or a training loss that ends at the level of guessing.

    A network may begin far above that level, and end there without being called lost by the row.
    """
    guess = math.log(10) if experiment.task in TEN_CLASSES else math.inf
    return row.lost or row.train_loss > LEARNT * guess


class Quantity(NamedTuple):
    """A name, the smallest difference that counts, whether more is better, and the values by seed."""

    name: str
    margin: float
    better: int
    of: Callable[[Sequence[Row], Experiment, Arm], dict[int, float]]


def tested(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> list[Row]:
    """The runs of the chosen cell, or of the control, by seed."""
    phase = "control" if arm.lowered else "test"
    wanted = (experiment.name, experiment.digest, arm.name, phase)
    return sorted(
        (row for row in rows if (row.experiment, row.digest, row.arm, row.phase) == wanted), key=lambda row: row.seed
    )


def from_tests(value: Callable[[Row], float]) -> Callable[[Sequence[Row], Experiment, Arm], dict[int, float]]:
    return lambda rows, experiment, arm: {row.seed: value(row) for row in tested(rows, experiment, arm)}


def by_rate_alone(arm: Arm) -> bool:
    return len({cell.threshold for cell in arm.cells}) == 1


def whole(grid: Mapping[Cell, Sequence[Row]]) -> bool:
    """Whether every cell has run with every seed of a set."""
    return all(len(found) == len(SETS["A"]) for found in grid.values())


def width(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> dict[int, float]:
    """Decades of rates, half a decade each, that are near the best mean of the first arm."""
    if not by_rate_alone(arm):
        return {}
    first = experiment.arms[0]
    grid = by_cell(rows, experiment, first)
    mine = by_cell(rows, experiment, arm)
    if not whole(grid) or not whole(mine):
        return {}
    best = max(fmean(worth(experiment, row) for row in found) for found in grid.values())
    limit = best - NEAR * abs(best)
    counts: dict[int, float] = {}
    for found in mine.values():
        for row in found:
            counts[row.seed] = counts.get(row.seed, 0.0) + 0.5 * (
                worth(experiment, row) >= limit and not is_lost(row, experiment)
            )
    return counts


def lost(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> dict[int, float]:
    """The share of runs that are lost at 1, 3, 10 and 30 times the best rate without a clip (AdamW: its own best)."""
    own = arm if arm.optimizer else experiment.arms[0]
    mine = by_cell(rows, experiment, arm)
    if not by_rate_alone(arm) or not whole(mine) or not whole(by_cell(rows, experiment, own)):
        return {}
    best = chosen(rows, experiment, own).rate
    shares: dict[int, list[bool]] = {}
    for cell, found in mine.items():
        if any(math.isclose(cell.rate / best, one, rel_tol=0.2) for one in MULTIPLES):
            for row in found:
                shares.setdefault(row.seed, []).append(is_lost(row, experiment))
    return {seed: fmean(found) for seed, found in shares.items()}


def steps_to_target(rows: Sequence[Row], experiment: Experiment, arm: Arm) -> dict[int, float]:
    """Steps until validation is where the first arm ends on the mean; one measurement more than all if never."""
    ends = [row.curve[-1] for row in tested(rows, experiment, experiment.arms[0]) if row.curve]
    if not ends:
        return {}
    target, sign = fmean(ends), experiment.better
    found = {}
    for row in tested(rows, experiment, arm):
        every = experiment.steps / len(row.curve) if row.curve else math.nan
        reached = [i for i, value in enumerate(row.curve) if sign * value >= sign * target]
        found[row.seed] = every * (reached[0] + 1 if reached else len(row.curve) + 1)
    return found


def quantities(experiment: Experiment) -> list[Quantity]:
    """The measure on the test set, and what the questions ask for beside it."""
    sign = experiment.better
    found = [Quantity(f"test {experiment.measure}", experiment.margin, sign, from_tests(lambda row: row.test))]
    if "a" in experiment.questions:
        found.append(Quantity("decades of rates that work", 0.25, 1, width))
    if "b" in experiment.questions:
        found.append(Quantity("share of runs lost at 1 to 30 times the best rate", 0.05, -1, lost))
    if "c" in experiment.questions:
        found.append(Quantity("test recall of the rare classes", 0.01, 1, from_tests(lambda row: row.rare)))
    if "e" in experiment.questions:
        found.append(Quantity("train less test", 0.005, -1, from_tests(lambda row: row.train - row.test)))
        found.append(
            Quantity("best less last validation", 0.005, -1, from_tests(lambda row: row.best - row.validation))
        )
    if "f" in experiment.questions:
        found.append(Quantity("steps to where none ends", 0.1 * experiment.steps, -1, steps_to_target))
    return found
