"""Runs with a planted fault, of which the first sentence must name it, and healthy runs that must be left in peace."""

from __future__ import annotations

from collections import Counter
from functools import cache

import pytest
from helpers.contradictions import contradictions
from helpers.monitored import Monitored
from helpers.plain_recorder import PlainRecorder
from helpers.refused_advice import refused
from report.planted.example_runs import TwoProcesses
from report.planted.fit import Case
from report.planted.table import FAULTS, HEALTHY, Score, score

from lightning_calib.report import Report
from lightning_calib.report.run import Run

CODES = {
    *("nonfinite", "diverged", "clip-below-eps", "rate-too-high", "rate-cut", "clip-cuts-rate"),
    *("spike", "level-shift", "rate-too-low", "layer-rate", "clip-twice", "dominated", "dead-layer"),
    *("unused-parameter", "vanishing", "exploding", "skipped-steps", "batch-norm", "loss-summed", "no-steps-seen"),
}
LEAST = 22 / 24  # of the faults; every healthy run has to be left in peace


# Whose numbers come from the monitor, too: of each table those that differ most in what is looked at.
BY_MONITOR = {
    *("rate-x100-mlp-sgd", "clip-1e-7-mlp-adamw", "embedding-hogs-clip-bag-sgd", "sigmoids-mlp-sgd"),
    *("never-called-mlp-adamw", "momentum-cnn_norm-sgd", "root-of-zero-mlp-adamw"),
    *("one_cycle-cnn_norm-sgd", "clips_always-mlp-adamw", "usual-mlp-muon", "no_loss-gan-adamw"),
    *("accumulation-mlp-sgd", "lora-mlp-adamw"),
}


def part(cases: tuple[Case, ...]) -> list[Case]:
    return [case for case in cases if case.part]


@cache
def trained(case: Case, recorder_of: type) -> list[Run]:
    return case.run(recorder_of=recorder_of)


def runs_of(case: Case, recorder_of: type = PlainRecorder) -> list[Run]:
    """A case is trained once with each recorder: `cache` tells `f(case)` and `f(case, PlainRecorder)` apart."""
    return trained(case, recorder_of)


def scored(case: Case, recorder_of: type = PlainRecorder) -> Score:
    return score(case, runs_of(case, recorder_of))


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


def test_a_run_is_trained_once_however_it_is_asked_for():
    fits: list[int] = []

    class Counting(Case):
        def run(self, seed=0, recorder_of=PlainRecorder):
            fits.append(seed)
            return []

    case = Counting("counted", fits.append)
    assert runs_of(case) == runs_of(case, PlainRecorder) == runs_of(case, recorder_of=PlainRecorder) == []
    assert fits == [0]
    runs_of(case, Monitored)
    assert fits == [0, 0]


def test_where_two_codes_are_right_the_table_says_why():
    assert all(bool(case.why) == (len(case.codes) > 1) for case in FAULTS)
    assert not [case.name for case in HEALTHY if case.codes or case.why]


@pytest.mark.parametrize("case", part(FAULTS), ids=lambda case: case.name)
def test_the_first_sentence_names_the_fault(case):
    found = scored(case)
    assert found.right, told([found])


@pytest.mark.parametrize("case", part(HEALTHY), ids=lambda case: case.name)
def test_a_healthy_run_is_left_in_peace(case):
    found = scored(case)
    assert found.right, told([found])


@pytest.mark.parametrize("case", part((*FAULTS, *HEALTHY)), ids=lambda case: case.name)
def test_the_suggested_clip_value_does_not_contradict_the_findings(case):
    assert contradictions(Report(runs_of(case))) == []


def refused_under_deepspeed(case: Case) -> list[str]:
    if case.codes[:1] in (("clip-twice",), ("rate-cut",)):  # they name the callback that is there, and there is none
        return []
    return refused(Report([run._replace(facts=run.facts._replace(engine="DeepSpeed")) for run in runs_of(case)]))


@pytest.mark.parametrize("case", part((*FAULTS, *HEALTHY)), ids=lambda case: case.name)
def test_under_deepspeed_nothing_is_advised_that_is_refused_there(case):
    assert refused_under_deepspeed(case) == []


@pytest.mark.slow
def test_under_deepspeed_no_finding_advises_what_is_refused_there():
    found = {case.name: refused_under_deepspeed(case) for case in (*FAULTS, *HEALTHY)}
    assert {name: told for name, told in found.items() if told} == {}


@pytest.mark.slow
def test_no_suggested_clip_value_contradicts_the_findings():
    found = {case.name: contradictions(Report(runs_of(case))) for case in (*FAULTS, *HEALTHY)}
    assert {name: told for name, told in found.items() if told} == {}


@pytest.mark.slow
def test_nearly_all_faults_are_named_in_the_first_sentence():
    found = [scored(case) for case in FAULTS]
    assert sum(one.right for one in found) >= LEAST * len(found), told(found)


@pytest.mark.slow
def test_all_healthy_runs_are_left_in_peace():
    found = [scored(case) for case in HEALTHY]
    assert all(one.right for one in found), told(found)


def differing(cases: tuple[Case, ...]) -> list[str]:
    """Of which the monitor's numbers make another verdict than the plain recorder's."""
    pairs = [
        (scored(case), scored(case, Monitored)) for case in cases if not isinstance(case, TwoProcesses)
    ]  # whose other process hands back what a recorder measured
    return [f"{plain.case.name}: {plain.said}; {own.said}" for plain, own in pairs if plain.right != own.right]


@pytest.mark.slow
@pytest.mark.parametrize(
    "case", [case for case in (*FAULTS, *HEALTHY) if case.name in BY_MONITOR], ids=lambda case: case.name
)
def test_the_monitor_s_own_numbers_tell_the_same(case):
    assert case.part
    assert scored(case, Monitored).right
    assert differing((case,)) == []


@pytest.mark.slow
@pytest.mark.parametrize("cases", [FAULTS, HEALTHY], ids=["faults", "healthy"])
def test_the_monitor_s_own_numbers_tell_the_same_of_all(cases):
    assert differing(cases) == []
