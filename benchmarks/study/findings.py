"""Effects by set of seeds: each arm against none; each of ours against the Trainer's clip and the lowered rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import NamedTuple

from benchmarks.study.arms import OURS
from benchmarks.study.plan import SETS, Arm, Experiment
from benchmarks.study.quantities import Quantity, quantities
from benchmarks.study.statistics import NONE, UNKNOWN, Effect, judge
from benchmarks.study.table import Row


class Finding(NamedTuple):
    """One comparison: the means of both arms, and the effect, in each set of seeds."""

    experiment: Experiment
    arm: Arm
    against: Arm
    quantity: Quantity
    means: dict[str, tuple[float, float]]
    effects: dict[str, Effect]

    @property
    def verdict(self) -> str:
        """What all sets that ran say; "not shown" where they differ."""
        said = {effect.verdict for effect in self.effects.values()} - {UNKNOWN}
        return said.pop() if len(said) == 1 else NONE if said else UNKNOWN


def findings(rows: Sequence[Row], experiment: Experiment) -> list[Finding]:
    """All comparisons of an experiment, in the order of the plan."""
    first, found = experiment.arms[0], []
    for quantity in quantities(experiment):
        for arm in experiment.arms[1:]:
            found.append(compare(rows, experiment, arm, first, quantity))
        clip = experiment.arms[1]
        if clip.way == "clip":
            found += [compare(rows, experiment, arm, clip, quantity) for arm in experiment.arms if arm.way in OURS]
        if quantity.name.startswith("test "):
            for arm in experiment.arms:
                if arm.lowered:
                    found.append(compare(rows, experiment, experiment.arm(arm.lowered), arm, quantity))
    return [one for one in found if any(not math.isnan(mean[0]) for mean in one.means.values())]


def compare(rows: Sequence[Row], experiment: Experiment, arm: Arm, against: Arm, quantity: Quantity) -> Finding:
    means, effects = {}, {}
    for which in list(SETS)[:2]:
        mine = [row for row in rows if row.set == which]
        values, others = (quantity.of(mine, experiment, one) for one in (arm, against))
        complete = set(values) == set(others) == set(SETS[which])
        differences = [quantity.better * (values[seed] - others[seed]) for seed in SETS[which]] if complete else []
        means[which] = (fmean(values.values()), fmean(others.values())) if complete else (math.nan, math.nan)
        effects[which] = judge(differences, quantity.margin)
    return Finding(experiment, arm, against, quantity, means, effects)
