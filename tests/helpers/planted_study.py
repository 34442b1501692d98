"""A study whose runs are not trained: best at rate 1, with a planted effect of ZClip, and its own luck of each run."""

from __future__ import annotations

import math
import random
from typing import NamedTuple

from benchmarks.study.plan import Arm, Cell, Experiment
from benchmarks.study.run import Job
from benchmarks.study.table import Row

RATES = (0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
CELLS = tuple(Cell(one) for one in RATES)
ARMS = (Arm("none", cells=CELLS), Arm("ZClip", "ZClip", CELLS), Arm("none-lowered-as-ZClip", lowered="ZClip"))
PLANNED = Experiment("made-up", "perceptron", "a", "accuracy", "sgd", 20, 8, ARMS)


class Planted(NamedTuple):
    """A runner; other processes find it by its name."""

    gain: float
    control: float = 0.0

    def __call__(self, job: Job) -> Row:
        luck = random.Random(repr(job.key))
        value = 0.8 - 0.1 * abs(math.log10(job.cell.rate)) + luck.gauss(0, 0.003)
        value += self.gain * (job.arm.name == "ZClip") + self.control * bool(job.arm.lowered)
        test = value if job.phase != "choose" else math.nan
        numbers = (job.cell.rate, math.nan, job.seed, value, value, value, 1.0, 1.0, test, test, test)
        factor = 0.5 if job.phase == "test" else math.nan
        one = job.experiment
        return Row(
            one.name, one.digest, "data", job.set, job.phase, job.arm.name, *numbers, job.cell.rate > 5, factor, 1.0,
            (value,),
        )  # fmt: skip
