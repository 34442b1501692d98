"""The second suite of planted faults is what it says it is; its runs are made and scored by hand, not here."""

from __future__ import annotations

from collections import Counter

import pytest
from report.second.check import trained
from report.second.table import FAULTS, HEALTHY

ACT = {"nonfinite", "diverged", "clip-below-eps", "rate-too-high", "rate-cut", "clip-cuts-rate"}
LOOK = {
    *("spike", "level-shift", "rate-too-low", "layer-rate", "clip-twice", "dominated", "dead-layer", "exploding"),
    *("unused-parameter", "vanishing", "skipped-steps", "batch-norm", "loss-summed", "no-steps-seen"),
}


def test_every_code_above_a_note_is_planted():
    assert {one.case.codes[0] for one in FAULTS} == ACT | LOOK


def test_there_are_as_many_faults_and_healthy_runs_as_promised():
    assert len(FAULTS) >= 26
    assert len(HEALTHY) >= 26
    assert not any(case.codes for case in HEALTHY)


def test_names_are_told_apart():
    names = Counter([*(one.case.name for one in FAULTS), *(case.name for case in HEALTHY)])
    assert max(names.values()) == 1


@pytest.mark.parametrize("case", [one.case for one in FAULTS], ids=lambda case: case.name)
def test_a_second_code_has_its_reason(case):
    assert set(case.codes) <= ACT | LOOK
    assert bool(case.why) == (len(case.codes) > 1)


def test_a_planted_fault_does_harm():
    (one,) = (one for one in FAULTS if one.case.name == "rate-factors-adagrad")
    wrong, right = (trained(fit, 50, seed=0)[0] for fit in (one.case.fit, one.twin))
    assert wrong.after > 2 * right.after
