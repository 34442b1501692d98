"""What clipping does to each kind of optimizer: each finding where it must be, and where it must not."""

import re

import numpy as np
import pytest
from helpers.made_runs import clipped, column, grads, healthy

from lightning_calib.report import Report
from lightning_calib.report.run import Clipper, Group, Norms


def codes(*runs):
    return [one.code for one in Report(runs).findings]


def first(*runs):
    return Report(runs).findings[0]


@pytest.mark.parametrize("kind", ["adam", "muon", "sign", "sgd"])
def test_a_healthy_run_has_no_finding(kind):
    assert codes(healthy(kind)) == []


# ---------------------------------------------------------------- Adam and its kin


@pytest.mark.parametrize("kind", ["adam", "muon", "sign"])
def test_a_clip_that_always_fires_is_a_note(kind):
    found = first(clipped(healthy(kind), 0.1))
    assert (found.code, found.severity) == ("clip-always", "note")
    assert "divides the scale of the gradient out again" in found.sentence
    assert "hardly matters" in found.sentence
    assert found.evidence["clip_rate"] == 1.0


def test_the_range_of_thresholds_that_are_alike_is_between_eps_and_the_lowest_norm():
    run = clipped(healthy(), 0.1)
    run.scalars.grad_norm_before[:30] *= 100  # before the recent window
    found = first(run)
    lowest = run.scalars.grad_norm_before[30:].min()
    elements = sum(run.layers.sizes)
    assert found.evidence["alike_high"] == lowest
    assert found.evidence["alike_low"] == pytest.approx(100 * 1e-8 * elements**0.5, rel=0.2)
    assert "the lowest norm of the run" in found.sentence
    assert "the last 150 steps" in found.advice
    assert f"GradientClip({np.percentile(run.scalars.grad_norm_before[30:], 95):.1f}" in found.advice


def test_a_norm_that_grew_ends_the_range_where_it_began():
    run = clipped(healthy(), 1e-3)
    run.scalars.grad_norm_before[:30] /= 100
    assert first(run).evidence["alike_high"] == run.scalars.grad_norm_before[:30].min()
    every_step = run._replace(norms=Norms(2e-3, 1.0, 1.5, 2.0))
    assert first(every_step).evidence["alike_high"] == 2e-3


@pytest.mark.parametrize("kind", ["adam", "muon"])
def test_below_eps_a_clip_starves_the_optimizer(kind):
    found = first(clipped(healthy(kind), 1e-9))
    assert (found.code, found.severity) == ("clip-below-eps", "act")
    assert found.evidence["update_share"] < 0.1
    assert "drowns" in found.sentence
    assert "GradientClip(" in found.advice


def test_at_eps_a_clip_is_no_alarm():
    run = clipped(healthy(), 1e-8 * sum(healthy().layers.sizes) ** 0.5)
    assert codes(run) == ["clip-always"]


def test_a_sign_optimizer_has_no_eps_to_starve_on():
    assert codes(clipped(healthy("sign"), 1e-9)) == ["clip-always"]


def test_a_clip_on_its_way_to_eps_is_told_to_rise():
    run = clipped(healthy(), 2e-6)
    found = first(run)
    assert found.code == "clip-always"
    assert found.advice.startswith(f"Raise it to {found.evidence['alike_low']:.2g}"[:15])


def test_only_who_has_an_eps_is_told_of_it():
    assert "the eps of" not in first(clipped(healthy("sign"), 0.1)).sentence
    assert "the eps of" in first(clipped(healthy(), 0.1)._replace(layers=None)).sentence


def test_small_gradients_without_a_clip_are_no_clip_below_eps():
    run = healthy()
    for name in run.layers.names:
        grads(run, name, 1e-9)
    assert "clip-below-eps" not in codes(run)


# ---------------------------------------------------------------- SGD


@pytest.mark.parametrize(("max_norm", "severity"), [(0.3, "look"), (0.01, "act")])
def test_with_sgd_a_clip_is_a_cut_of_the_rate(max_norm, severity):
    run = clipped(healthy("sgd"), max_norm)
    found = first(run)
    assert (found.code, found.severity) == ("clip-cuts-rate", severity)
    assert found.evidence["mean_factor"] == pytest.approx(run.scalars.factor.mean())
    assert f"{found.evidence['mean_factor']:.3g} of the configured rate" in found.sentence
    assert found.evidence["suggested_lr"] == pytest.approx(0.1 * found.evidence["mean_factor"])
    assert found.evidence["suggested_max_norm"] == pytest.approx(np.percentile(run.scalars.grad_norm_before[30:], 95))


def test_a_small_cut_is_a_note_and_adam_has_none():
    assert codes(clipped(healthy("sgd"), 0.5)) == ["clip-always"]
    assert codes(clipped(healthy("adam"), 0.01)) == ["clip-always"]


def test_a_clip_that_no_longer_cuts_is_no_cut():
    run = healthy("sgd")
    run.scalars.grad_norm_before[:30] *= 1000
    assert codes(clipped(run, 2.0)) == []


def test_an_adaptive_clip_and_a_normaliser_cut_by_design():
    run = clipped(healthy("sgd"), 0.3)
    adaptive = run._replace(clippers=(Clipper("AutoClip", "adaptive", 0.9),))
    normaliser = run._replace(clippers=(Clipper("GradientNormalize", "normalise", 0.9),))
    assert codes(adaptive) == codes(normaliser) == []
    cut = clipped(healthy("sgd"), 0.01)._replace(clippers=(Clipper("AutoClip", "adaptive", 0.9),))
    assert codes(cut) == ["clip-cuts-rate"]


def test_two_kinds_in_one_optimizer_are_told_apart():
    run = healthy("muon")
    groups = (Group("muon", 0.02, 1e-7), Group("sgd", 0.1))
    run = run._replace(facts=run.facts._replace(groups=groups))
    (found,) = Report([clipped(run, 0.1)]).findings
    assert found.code == "clip-always"
    assert "a part of the parameters" in found.sentence


# ---------------------------------------------------------------- two clips, none


def test_two_clips_that_fire_are_told_first():
    run = clipped(clipped(healthy("sgd"), 0.3), 0.1, "Trainer(gradient_clip_val=0.1)")
    assert codes(run)[:2] == ["clip-twice", "clip-cuts-rate"]
    assert "GradientClip reduced it on 100 % of the steps, and Trainer" in first(run).sentence
    assert "gradient_clip_val" in first(run).advice


def test_a_net_for_outliers_beside_a_clip_is_no_second_clip():
    run = clipped(healthy(), 0.3)
    for other in (Clipper("ZClip", "adaptive", 0.02), Clipper("ZClip", "dry", 0.9)):
        assert "clip-twice" not in codes(run._replace(clippers=(*run.clippers, other)))


def test_a_clip_that_never_fired_is_a_note_after_enough_steps():
    run = clipped(healthy(), 1e6)
    assert (first(run).code, first(run).severity) == ("clip-never", "note")
    assert "never fired in 300 steps" in first(run).sentence
    young = healthy(rows=4)
    young = young._replace(counts=young.counts._replace(stopped="running"))
    assert codes(clipped(young, 1e6)) == []


def test_whether_it_clips_may_not_be_known():
    run = healthy("sgd")._replace(clippers=(Clipper("configure_gradient_clipping", "adaptive", None),))
    assert codes(run) == []


# ---------------------------------------------------------------- who makes it clip


def hog(kind, rows, times=30.0):
    """The embedding's gradient is larger on some rows; behind a clip at 1."""
    run = healthy(kind)
    factor = np.ones(60)
    factor[rows] = times
    grads(run, "embed.weight", factor)
    return clipped(run, 1.0)


def test_a_hog_is_named_with_its_share_and_the_rule_to_paste():
    run = hog("sgd", slice(None, None, 2))
    found = first(run)
    assert found.code == "dominated"
    assert found.layers == ("embed.weight",)
    assert found.evidence["share"] > 0.99
    assert found.evidence["share_usual"] == pytest.approx(0.57, abs=0.03)
    assert "the other 6 tensors were scaled by" in found.sentence
    assert 'GradientClip(1, rules={"embed.weight": ' in found.advice


def test_the_rule_restores_the_step_of_the_others():
    run = hog("sgd", slice(None))
    found = first(run)
    others = np.square(run.layers.before[30:, 1:]).sum(axis=1) ** 0.5
    assert found.evidence["factor_without"] == pytest.approx(np.minimum(1, 1 / others).mean(), rel=0.02)
    assert found.evidence["suggested_max_norm"] == pytest.approx(1.0, rel=0.01)


def test_adam_divides_a_constant_share_out_and_misses_the_steps_of_a_rare_one():
    assert "dominated" not in codes(hog("adam", slice(None)))
    assert codes(hog("adam", slice(None, None, 4)))[0] == "dominated"


def test_an_honest_large_tensor_is_no_hog():
    run = healthy("sgd")
    large = run.layers._replace(sizes=(1_000_000, *run.layers.sizes[1:]))
    grads(run, "embed.weight", 18.0)
    assert "dominated" not in codes(clipped(run._replace(layers=large), 1.0))


def test_most_of_a_small_net_is_not_a_few():
    run = healthy("sgd")
    for name in ("net.0.weight", "net.0.bias", "net.2.bias", "head.bias"):
        column(run, "before", name)[:] = column(run, "after", name)[:] = 0.0  # a dead path has no step to lose
    assert "dominated" not in codes(clipped(run, 0.01))


def test_nobody_is_scaled_down_by_a_clip_of_layers():
    run = hog("sgd", slice(None))
    column(run, "after", "embed.weight")[:] = 1.0
    run.layers.after[:, 1:] = run.layers.before[:, 1:]
    assert "dominated" not in codes(run)


def test_a_hog_without_a_clip_is_none():
    run = healthy("sgd")
    grads(run, "embed.weight", 30.0)
    assert "dominated" not in codes(run)


def test_other_clippers_get_their_own_line():
    run = hog("sgd", slice(None))
    rate = run.clippers[0].clip_rate
    found = first(run._replace(clippers=(Clipper("ZClip", "adaptive", rate),)))
    assert re.search(r'add `rules={"embed.weight": [0-9.]+}` to your ZClip\.$', found.advice), found.advice
    (suggested,) = Report([run._replace(clippers=(Clipper("ZClip", "adaptive", rate),))]).suggestion
    assert str(suggested) == suggested.reason == f"{found.sentence} {found.advice}"
    behind = (
        Clipper("GradientValueClip", "adaptive", 0.01),
        Clipper("Trainer(gradient_clip_val=1)", "fixed", rate, 1.0),
    )
    found = first(run._replace(clippers=behind))
    assert "`callbacks=[GradientClip(1, rules=" in found.advice
    assert "instead of `gradient_clip_val`" in found.advice
    trainer = first(run._replace(clippers=(Clipper("Trainer(gradient_clip_val=1)", "fixed", rate, 1.0),)))
    assert "instead of `gradient_clip_val`" in trainer.advice


@pytest.mark.parametrize(("kind", "max_norm"), [("adam", 0.1), ("adam", 1e-9), ("sgd", 0.01)])
def test_where_no_recent_norm_is_finite_no_threshold_is_advised(kind, max_norm):
    run = clipped(healthy(kind), max_norm)
    assert all(np.isfinite(one.evidence["suggested_max_norm"]) for one in Report([run]).findings)
    for table in (run.scalars.grad_norm_before, run.scalars.grad_norm_after, run.scalars.factor):
        table[10:] = np.inf
    counts = run.counts._replace(nonfinite=250, usable=50)
    findings = Report([run._replace(counts=counts)]).findings
    assert [one.code for one in findings] == ["nonfinite"]
    assert not any("nan" in one.advice for one in findings)
