"""One row of the CSV per run, in order, and no run twice."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

WORDS = ("experiment", "digest", "data", "set", "phase", "arm")  # columns that are no numbers
RESULTS = Path(__file__).parents[1] / "results/study.csv"


class Row(NamedTuple):
    """One run.

    The phase is "choose" (a cell of the grid, test not looked at), "test" (the chosen cell of an arm) or "control"
    (the rate lowered by the cut that the report states). Validation, train and test are the experiment's measure after
    the last step; rare is the recall of the rare classes in the test set. What was not measured is nan.
    """

    experiment: str
    digest: str
    data: str
    set: str
    phase: str
    arm: str
    rate: float
    threshold: float
    seed: int
    validation: float
    best: float
    train: float
    validation_loss: float
    train_loss: float
    test: float
    test_loss: float
    rare: float
    lost: bool
    mean_factor: float
    seconds: float
    curve: tuple[float, ...]

    @property
    def key(self) -> tuple[object, ...]:
        """What makes it the same run; a number is as the file has it."""
        return (*self[:2], *self[3:6], *map(text, self[6:9]))


def text(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(text, value))
    if isinstance(value, float):
        return "" if math.isnan(value) else f"{value:.5g}"
    return str(int(value)) if isinstance(value, bool) else str(value)


def read(path: Path = RESULTS) -> list[Row]:
    """All rows, in the order of the file."""
    if not path.exists():
        return []
    with path.open(newline="") as lines:
        return [row_of(line) for line in csv.DictReader(lines)]


def row_of(line: dict[str, str]) -> Row:
    def value(name: str) -> object:
        cell = line[name]
        if name == "curve":
            return tuple(map(float, cell.split()))
        if name == "lost":
            return cell == "1"
        if name == "seed":
            return int(cell)
        return cell if name in WORDS else float(cell or "nan")

    return Row(**{name: value(name) for name in Row._fields})  # type: ignore[arg-type]


def append(rows: Iterable[Row], path: Path = RESULTS) -> None:
    """Adds rows at the end; a run that breaks off loses nothing."""
    new = not path.exists()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="") as lines:
        writer = csv.writer(lines, lineterminator="\n")
        if new:
            writer.writerow(Row._fields)
        writer.writerows([text(cell) for cell in row] for row in rows)
