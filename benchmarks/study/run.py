"""Runs what is not in the table yet, on two processes: first the grid, then the chosen cells, then the controls."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch

from benchmarks.study import table
from benchmarks.study.choose import chosen, lowered
from benchmarks.study.fit import fit
from benchmarks.study.plan import SETS, Arm, Cell, Experiment
from benchmarks.study.table import Row


class Job(NamedTuple):
    """One run that is due."""

    experiment: Experiment
    arm: Arm
    cell: Cell
    set: str
    seed: int
    phase: str
    folder: Path | None

    @property
    def key(self) -> tuple[object, ...]:
        one = self.experiment
        threshold = math.nan if self.cell.threshold is None else self.cell.threshold
        numbers = (self.cell.rate, threshold, self.seed)
        return (one.name, one.digest, self.set, self.phase, self.arm.name, *map(table.text, numbers))


def one_run(job: Job) -> Row:
    """Trains; only a chosen cell and a control see the test set."""
    torch.set_num_threads(1)
    experiment, test = job.experiment, job.phase != "choose"
    found = fit(experiment, job.arm, job.cell, job.seed, job.folder, test=test)
    name, curve = experiment.measure, found.curve if test else []
    finite = [experiment.better * value for value in found.curve if math.isfinite(value)]
    return Row(
        experiment.name, experiment.digest, found.checksum, job.set, job.phase, job.arm.name, job.cell.rate,
        math.nan if job.cell.threshold is None else job.cell.threshold, job.seed,
        found.validation[name], experiment.better * max(finite, default=math.nan),
        found.train[name], found.validation["loss"], found.train["loss"],
        found.test.get(name, math.nan), found.test.get("loss", math.nan), found.test.get("rare_recall", math.nan),
        found.lost, found.mean_factor if test else math.nan, found.seconds, tuple(curve),
    )  # fmt: skip


def jobs_of(experiment: Experiment, rows: Sequence[Row], which: str, phase: str, folder: Path | None) -> list[Job]:
    """The runs of a phase; those of the later ones follow from the rows of the earlier ones."""
    mine = [row for row in rows if row.set == which]
    cells: Iterable[tuple[Arm, Cell]]
    if phase == "choose":
        cells = [(arm, cell) for arm in experiment.arms for cell in arm.cells]
    elif phase == "test":
        cells = [(arm, chosen(mine, experiment, arm)) for arm in experiment.arms if not arm.lowered]
    else:
        cells = [(arm, lowered(mine, experiment, arm)) for arm in experiment.arms if arm.lowered]
    return [Job(experiment, arm, cell, which, seed, phase, folder) for arm, cell in cells for seed in SETS[which]]


def expected(experiment: Experiment, which: str) -> int:
    arms = [arm for arm in experiment.arms if not arm.lowered]
    return len(SETS[which]) * (sum(len(arm.cells) for arm in arms) + len(experiment.arms))


@contextmanager
def pool_of(processes: int) -> Iterator[Callable[..., Iterable[Row]]]:
    """How jobs become rows: one process is this one; several start afresh: a fork of threads can hang."""
    if processes == 1:
        yield map
        return
    with get_context("spawn").Pool(processes) as pool:
        yield pool.imap_unordered
        pool.close()  # what has ended its work need not be killed
        pool.join()


def run(
    experiments: Sequence[Experiment],
    which: str,
    folder: Path | None,
    path: Path = table.RESULTS,
    processes: int = 2,
    runner: Callable[[Job], Row] = one_run,
) -> int:
    """Runs what is missing; returns how many runs that were."""
    rows, began, done = table.read(path), time.time(), 0
    known = {row.key for row in rows}
    total = sum(expected(one, which) for one in experiments)
    left = total - sum(
        key[2] == which and (key[0], key[1]) in {(e.name, e.digest) for e in experiments} for key in known
    )
    with pool_of(processes) as mapped:
        for experiment in experiments:
            for phase in ("choose", "test", "control"):
                due = [job for job in jobs_of(experiment, rows, which, phase, folder) if job.key not in known]
                for row in mapped(runner, due):
                    check_data(row, rows)
                    table.append([row], path)
                    rows.append(row)
                    known.add(row.key)
                    done += 1
                    minutes = (time.time() - began) / done * (left - done) / 60
                    told = f"{total - left + done:5} of {total}, {minutes:5.1f} minutes left"
                    print(f"\r{experiment.name:30} {phase:8} {told}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    return done


def check_data(row: Row, rows: Sequence[Row]) -> None:
    """Refuses rows from other data beside those that are there."""
    other = {one.data for one in rows if (one.experiment, one.digest) == (row.experiment, row.digest)} - {row.data}
    if other:
        raise ValueError(
            f"{row.experiment}: all rows must be of the same data, got {row.data} beside {sorted(other)}. "
            "The texts come with Python: take the same version, or write to another file with --output."
        )
