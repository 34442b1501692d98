"""Which clip value: by kind of optimizer, from the recent window, never against the findings."""

import json

import numpy as np
import pytest
from helpers.made_runs import clipped, healthy

from lightning_calib import Report, ShadowResult
from lightning_calib.report.rules import rules_line
from lightning_calib.report.run import Clipper, Facts
from lightning_calib.report.wording import decimal


def with_outliers(kind="sgd", **changes):
    """Every tenth row has 12 times its norm."""
    run = healthy(kind)
    for table in (run.scalars.grad_norm_before, run.scalars.grad_norm_max, run.scalars.grad_norm_after):
        table[5::10] *= 12
    return run._replace(facts=run.facts._replace(**changes))


def answer(run):
    (found,) = Report([run]).suggestion
    return found


# ---------------------------------------------------------------- the norms decide


@pytest.mark.parametrize("kind", ["sgd", "adam", "sign", "muon"])
def test_without_outliers_none_is_needed(kind):
    found = answer(healthy(kind))
    assert (found.answer, found.value, found.trainer, found.callback) == ("none", None, "", "")
    assert str(found).startswith("You need none. In the last 150 steps the norm that stood out most, ")
    assert ("lower the learning rate" in found.reason) == (kind == "sgd")
    assert ("divides a factor that all steps share out again" in found.reason) == (kind != "sgd")


@pytest.mark.parametrize("kind", ["sgd", "adam", "sign", "muon"])
def test_outliers_are_clipped_at_the_95th_percentile_of_the_recent_window(kind):
    run = with_outliers(kind)
    run.scalars.grad_norm_before[:30] *= 100  # of the first half nothing counts
    found, recent = answer(run), run.scalars.grad_norm_before[30:]
    text = decimal(np.percentile(recent, 95))
    assert (found.answer, found.value, found.window) == ("clip", float(text), 150)
    assert (found.trainer, found.callback) == (f"gradient_clip_val={text}", f"GradientClip({text})")
    assert found.clip_rate == np.mean(recent > float(text))
    assert str(found).startswith(f"gradient_clip_val={text}, or callbacks=[GradientClip({text})]. ")


def test_an_outlier_between_two_rows_counts():
    run = healthy("sgd")
    run.scalars.grad_norm_max[40] = 50.0
    assert answer(run).answer == "clip"
    run = healthy("sgd")
    run.scalars.grad_norm_max[10] = 50.0  # not in the recent window
    assert answer(run).answer == "none"


def test_norms_that_move_get_a_threshold_that_follows():
    run = with_outliers()
    run.scalars.grad_norm_before[45:] /= 5
    found = answer(run)
    assert (found.callback, found.policy) == ("ZClip()", "ZScore()")
    assert "The norm moved from " in found.reason
    assert "judged on every step" not in found.reason
    shadows = [ShadowResult("MaxNorm(1.0)", "", 0.3), ShadowResult("ZScore()", "", 0.08, optimizer=1)]
    assert Report([run], tuple(shadows)).suggestion == (found,)
    (told,) = Report([run], (*shadows, ShadowResult("ZScore()", "", 0.04, steps=300))).suggestion
    assert told.reason == f"{found.reason} ZScore(), judged on every step, would have reduced 4 % of 300 steps."


def test_a_warm_up_that_goes_on_is_told():
    run = with_outliers()
    assert "still rising" not in answer(run).reason
    run.scalars.lr[:] = np.linspace(0.001, 0.1, 60)
    assert "ask again behind the warm-up" in answer(run).reason


def test_under_manual_optimization_the_trainer_cannot_do_it():
    assert answer(with_outliers(manual=True)).trainer == ""


def test_where_eps_shows_already_no_clip_is_suggested():
    run = with_outliers("adam")
    run.scalars.grad_norm_before[:] *= 1e-8
    run.scalars.grad_norm_max[:] *= 1e-8
    run.layers.before[:] *= 1e-8
    found = answer(run)
    assert found.answer == "none"
    assert "the eps of AdamW shows" in found.reason


def test_behind_a_normaliser_nothing_is_left_to_clip():
    run = with_outliers()._replace(clippers=(Clipper("GradientNormalize", "normalise", 1.0),))
    assert answer(run).answer == "none"


def test_a_clip_that_may_stay_is_named():
    assert "GradientClip, which is there, may stay" in answer(clipped(healthy("adam"), 1.2)).reason


@pytest.mark.parametrize(("rows", "known"), [(0, False), (3, False), (6, False), (8, True)])
def test_of_fewer_than_20_steps_or_4_rows_nothing_is_said(rows, known):
    found = answer(healthy("sgd", rows=rows))
    assert (found.answer != "unknown") == known
    assert known or " are needed" in found.reason
    assert known or str(found).startswith("No value can be told from this run. ")


def test_of_no_run_nothing_is_said():
    assert Report([]).suggestion == ()


# ---------------------------------------------------------------- the findings come first


def first(run):
    report = Report([run])
    return report.findings[0], report.suggestion[0]


def test_a_cut_of_sgds_rate_gets_the_findings_value():
    finding, found = first(clipped(healthy("sgd"), 0.01))
    assert finding.code == "clip-cuts-rate"
    assert found.answer == "clip"
    assert found.callback in finding.advice


def test_a_clip_below_eps_gets_the_findings_value():
    finding, found = first(clipped(healthy("adam"), 1e-9))
    assert finding.code == "clip-below-eps"
    assert found.callback in finding.advice
    assert found.value > finding.evidence["alike_low"]


def test_adams_clip_that_always_fires_is_kept():
    run = clipped(healthy("adam"), 0.1)
    finding, found = first(run)
    assert finding.code == "clip-always"
    assert (found.answer, found.value, found.trainer) == ("keep", 0.1, "gradient_clip_val=0.1")
    assert str(found).startswith("Keep gradient_clip_val=0.1")


def test_adams_clip_at_the_edge_of_eps_is_raised():
    run = healthy("adam")
    run = clipped(run._replace(facts=run.facts._replace(groups=(run.facts.groups[0]._replace(eps=1e-5),))), 0.02)
    finding, found = first(run)
    assert finding.code == "clip-always"
    assert finding.advice.startswith("Raise it to ")
    assert (found.answer, found.value > finding.evidence["alike_low"]) == ("clip", True)


def test_of_two_clips_the_lower_is_kept():
    run = clipped(clipped(healthy("adam"), 0.9, "ZClip(1)"), 0.8, "Trainer(gradient_clip_val=0.8)")
    finding, found = first(run)
    assert finding.code == "clip-twice"
    assert (found.answer, found.value) == ("keep", 0.8)


@pytest.mark.parametrize("other", [Clipper("ZClip", "adaptive", 0.6), Clipper("GradientClip", "fixed", 0.9, 0.2)])
def test_which_of_two_clips_is_lower_is_not_known_of_an_adaptive_one(other):
    run = healthy("adam")
    finding, found = first(run._replace(clippers=(other, Clipper("AutoClip", "adaptive", 0.6))))
    assert (finding.code, finding.advice) == ("clip-twice", "Remove one of them: one is enough.")
    assert (found.answer, found.reason) == ("unknown", f"{finding.sentence} {finding.advice}")


def test_a_rate_that_is_too_high_is_mended_by_no_clip_value():
    run = healthy("sgd")
    run.scalars.loss[:] = run.scalars.loss_max[:] = 2.4
    run.scalars.loss_max[5:8] = 400.0
    run.scalars.update_norm[:] *= 300
    run.layers.update[:] *= 300
    finding, found = first(run)
    assert finding.code == "rate-too-high"
    assert (found.answer, found.callback, found.reason) == ("unknown", "", f"{finding.sentence} {finding.advice}")


def test_norms_that_fall_by_themselves_are_no_outliers():
    run = healthy("sgd")
    run.scalars.grad_norm_before[:] *= np.geomspace(100, 1, 60)
    run.scalars.grad_norm_max[:] = run.scalars.grad_norm_before
    assert answer(run).answer == "none"


# ---------------------------------------------------------------- several optimizers


def two(names_of_second=("critic.weight", "critic.bias")):
    """Of the first the names begin with "net"."""
    runs = []
    for place, names in enumerate([("net.0.weight", "net.0.bias"), names_of_second]):
        run = with_outliers("adam", position=place, optimizers=2, manual=True)
        runs.append(run._replace(layers=run.layers._replace(names=names)))
    return runs


def test_several_optimizers_share_one_line_with_a_rule_for_each():
    first, second = Report(two()).suggestion
    assert (first.optimizer, second.optimizer) == (0, 1)
    assert first.callback == second.callback
    assert first.callback == f'GradientClip(None, rules={{"net.0.*": {first.value:g}, "critic.*": {second.value:g}}})'


def test_where_no_pattern_tells_them_apart_there_is_no_line():
    assert [one.callback for one in Report(two(("net.0.extra", "net.0.more"))).suggestion] == ["", ""]
    assert [one.value is None for one in Report(two(("net.0.extra",))).suggestion] == [False, False]


def test_a_line_with_rules_has_what_each_needs():
    names = [["a.x"], ["b.x"]]
    assert rules_line(names, ["", "ZClip()"]) == 'GradientClip(None, rules={"b.*": ZScore()})'
    assert rules_line(names, ["", ""]) == ""
    assert rules_line(names, ["ZClip(rules={})", ""]) == ""
    assert rules_line([["weight"], ["b.x"]], ["GradientClip(1)", ""]) == ""


def test_the_answers_survive_json():
    found = json.loads(json.dumps(Report([healthy(), *two()]).as_dict(), allow_nan=False))["suggestion"]
    assert [one["answer"] for one in found] == ["none", "clip", "clip"]
    assert found[0]["value"] is None


def test_facts_alone_are_enough():
    run = healthy("sgd")._replace(layers=None, facts=Facts("SGD"))
    assert answer(run).answer == "none"
