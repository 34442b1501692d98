"""DeepSpeed refuses callbacks that act: there the report advises the Trainer's own clip, and none of ours."""

import numpy as np
import pytest
from helpers.made_runs import clipped, healthy
from helpers.refused_advice import refused

from lightning_calib import Report
from lightning_calib.report.run import Run


def under_deepspeed(run: Run) -> Run:
    return run._replace(facts=run.facts._replace(engine="DeepSpeed"))


def spiked() -> Run:
    run = healthy("sgd")
    run.scalars.grad_norm_before[40] *= 300
    run.scalars.grad_norm_max[40] *= 300
    run.scalars.loss_max[40] *= 100
    return run


def drifting() -> Run:
    run = healthy("sgd")
    for table in (run.scalars.grad_norm_before, run.scalars.grad_norm_max, run.scalars.grad_norm_after):
        table[5::10] *= 12
    run.scalars.grad_norm_before[45:] /= 5
    return run


def bad() -> Run:
    run = healthy("sgd")
    run.scalars.grad_norm_before[30] = np.inf
    run.scalars.nonfinite_total[30:] = 1
    return run._replace(counts=run.counts._replace(nonfinite=1))


RUNS = {
    "spike": spiked,
    "clip-cuts-rate": lambda: clipped(healthy("sgd"), 0.01, "Trainer(gradient_clip_val=0.01)"),
    "clip-always": lambda: clipped(healthy("adam"), 0.5, "Trainer(gradient_clip_val=0.5)"),
    "nonfinite": bad,
}


@pytest.mark.parametrize("code", RUNS)
def test_a_finding_advises_what_is_not_refused(code: str) -> None:
    run = RUNS[code]()
    without, under = Report([run]), Report([under_deepspeed(run)])
    assert code in {one.code for one in without.findings}
    assert [one.code for one in under.findings] == [one.code for one in without.findings]
    assert refused(without)
    assert refused(under) == []


def test_the_value_is_that_which_a_callback_would_get() -> None:
    run = RUNS["clip-cuts-rate"]()
    (without,), (under,) = ([one.advice for one in Report([each]).findings] for each in (run, under_deepspeed(run)))
    line = without.split("`")[1]
    assert line.startswith("GradientClip(")
    value = line.removeprefix("GradientClip(").removesuffix(")")
    assert under == without.replace(line, f"Trainer(gradient_clip_val={value})")


def test_a_suggestion_has_the_trainers_line_alone() -> None:
    for run in (drifting(), spiked()):
        (without,), (under,) = (Report([each]).suggestion for each in (run, under_deepspeed(run)))
        assert without.callback
        assert (under.answer, under.value, under.trainer) == (without.answer, without.value, without.trainer)
        assert under.callback == under.policy == ""
        assert str(under).startswith(f"{under.trainer}. ")


def test_what_has_no_number_is_the_95th_percentile_there() -> None:
    run = drifting()
    assert run.layers is not None
    for table in (run.layers.before, run.layers.after, run.layers.peak):  # a depth that explodes
        table *= np.array([1e6, 1e5, 1e5, 1e3, 1e3, 1.0, 1.0])
    (without,), (under,) = (Report([each]).suggestion for each in (run, under_deepspeed(run)))
    assert (without.value, without.callback) == (None, 'GradientClip(Percentile(95), scope="layer")')
    assert under.value == pytest.approx(np.percentile(run.scalars.grad_norm_before[30:], 95), rel=0.05)
    assert under.trainer == f"gradient_clip_val={under.value:g}"
