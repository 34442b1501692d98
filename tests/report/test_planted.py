"""Runs with a planted fault, of which the first sentence must name it, and healthy runs that must be left in peace."""

from __future__ import annotations

from collections import Counter

import pytest
from report.planted.fit import Case
from report.planted.table import FAULTS, HEALTHY, Score, score

CODES = {
    *("nonfinite", "diverged", "clip-below-eps", "rate-too-high", "rate-cut", "clip-cuts-rate"),
    *("spike", "level-shift", "rate-too-low", "layer-rate", "clip-twice", "dominated", "dead-layer"),
    *("unused-parameter", "vanishing", "exploding", "skipped-steps", "batch-norm", "loss-summed", "no-steps-seen"),
}
LEAST = 22 / 24  # of the faults; every healthy run has to be left in peace


def part(cases: tuple[Case, ...]) -> list[Case]:
    return [case for case in cases if case.part]


def told(found: list[Score]) -> str:
    wrong = [
        f"{one.case.name}: wanted {one.case.codes or 'no finding'}, got {one.said}" for one in found if not one.right
    ]
    return "\n".join([f"{len(found) - len(wrong)} of {len(found)}", *wrong])


def test_the_table_has_every_code_and_kind_of_run():
    assert len(FAULTS) >= 24
    assert len(HEALTHY) >= 24
    assert {case.codes[0] for case in FAULTS} == CODES
    kinds = Counter(part for case in FAULTS for part in case.name.split("-"))
    models = ("mlp", "cnn", "cnn_norm", "gru", "rnn", "transformer", "bag", "gan")
    assert all(kinds[kind] >= 2 for kind in (*models, "sgd", "adamw", "muon"))
    assert {case.rows for case in FAULTS} == {5, 50}
    assert min(sum(case.rows == rows for case in FAULTS) for rows in (5, 50)) >= 12
    names = [case.name for case in (*FAULTS, *HEALTHY)]
    assert len(set(names)) == len(names)


def test_where_two_codes_are_right_the_table_says_why():
    assert all(bool(case.why) == (len(case.codes) > 1) for case in FAULTS)
    assert not [case.name for case in HEALTHY if case.codes or case.why]


@pytest.mark.parametrize("case", part(FAULTS), ids=lambda case: case.name)
def test_the_first_sentence_names_the_fault(case):
    found = score(case, case.run())
    assert found.right, told([found])


@pytest.mark.parametrize("case", part(HEALTHY), ids=lambda case: case.name)
def test_a_healthy_run_is_left_in_peace(case):
    found = score(case, case.run())
    assert found.right, told([found])


@pytest.mark.slow
def test_nearly_all_faults_are_named_in_the_first_sentence():
    found = [score(case, case.run()) for case in FAULTS]
    assert sum(one.right for one in found) >= LEAST * len(found), told(found)


@pytest.mark.slow
def test_all_healthy_runs_are_left_in_peace():
    found = [score(case, case.run()) for case in HEALTHY]
    assert all(one.right for one in found), told(found)
