"""Rates, divergence and what is not finite: each finding where it must be, and where it must not."""

import numpy as np
import pytest
from helpers.made_runs import column, healthy

from lightning_calib.report import Report
from lightning_calib.report.bad_step import BadStep
from lightning_calib.report.run import Group


def codes(*runs):
    return [one.code for one in Report(runs).findings]


def first(*runs):
    return Report(runs).findings[0]


def flat(run, level=2.35, noise=0.02):
    """A loss that stays where it is."""
    rows = len(run.scalars.loss)
    run.scalars.loss[:] = level + noise * np.random.default_rng(1).standard_normal(rows)
    run.scalars.loss_max[:] = run.scalars.loss + 2 * noise
    return run


# ---------------------------------------------------------------- rate-too-high


def thrown():
    run = flat(healthy("sgd"))
    run.scalars.loss_max[0] = 500.0
    return run


def test_a_run_that_was_thrown_at_its_first_steps_has_too_high_a_rate():
    found = first(thrown())
    assert (found.code, found.severity) == ("rate-too-high", "act")
    assert "(lr 0.1) is too high: the loss rose from 2.4 to 500" in found.sentence
    assert found.evidence["suggested_lr"] == pytest.approx(0.01)
    assert "`lr=0.01`" in found.advice


def test_what_a_rate_has_killed_is_left_out():
    run = thrown()
    for table in ("before", "peak", "after", "update"):
        column(run, table, "net.0.weight")[10:] = 0.0
    assert codes(run) == ["rate-too-high"]


def test_a_rate_that_forgets_is_too_high_without_a_peak_of_the_loss():
    run = flat(healthy("sgd"))
    run.layers.update[:] = 0.3 * run.layers.weight
    assert codes(run) == ["rate-too-high"]
    assert "each step changes the weights by 30 %" in first(run).sentence


def away(rows, level):
    """A run of few rows, or of a noise as large as itself, that left at once; a step changed its weights by 0.8."""
    run = healthy("sgd", rows=rows, every=32)
    run.scalars.loss[:] = level * np.random.default_rng(2).lognormal(0, 1, rows)
    run.scalars.loss_max[:] = 3 * run.scalars.loss
    run.scalars.update_ratio[0] = 0.8
    run.layers.update[:] = 0.05 * run.layers.weight
    return run


@pytest.mark.parametrize("rows", [2, 6])
def test_a_run_that_left_its_start_for_good_has_too_high_a_rate_though_its_noise_is_not_known(rows):
    found = first(away(rows, 1e4))
    assert found.code == "rate-too-high"
    assert "the loss rose from 2.4 to " in found.sentence


def test_a_loss_that_grows_while_the_weights_keep_is_no_rate():
    run = away(2, 1e4)
    run.scalars.update_ratio[:] = 0.05
    report = Report([run])
    assert not report.findings
    assert report.verdict.startswith("Nothing is wrong that gradients show, but the loss has not fallen: the loss went")


def test_a_loss_that_is_less_than_tenfold_its_start_may_be_of_few_rows():
    run = away(2, 1e4)
    run.scalars.loss[1] = 20.0
    assert codes(run) == []


def test_losses_that_a_guard_has_dropped_do_not_throw():
    run = with_nan(flat(healthy("sgd")), row=50, skipped=True)
    run.scalars.loss[50] = run.scalars.loss_max[50] = np.inf  # of a batch whose step was skipped
    assert codes(run) == ["nonfinite"]
    run.scalars.loss_max[2] = 500.0
    assert codes(run) == ["nonfinite", "rate-too-high"]
    assert "the loss rose from 2.4 to 500 and ends" in Report([run]).findings[1].sentence
    assert first(with_nan(flat(healthy("sgd")), row=50)).code == "nonfinite", "no guard"


def test_labels_that_carry_nothing_are_no_rate():
    report = Report([flat(healthy("sgd"))])
    assert report.findings == ()
    assert report.verdict.startswith("Nothing is wrong that gradients show, but the loss has not fallen")


def test_a_peak_in_a_run_that_learned_or_hardly_moved_is_no_rate():
    learned = healthy("sgd")
    learned.scalars.loss_max[0] = 500.0
    still = thrown()
    still.layers.update[:] *= 1e-4
    assert "rate-too-high" not in codes(learned) + codes(still)


def test_a_little_better_than_the_start_after_two_rows_above_it_is_no_learning():
    run = flat(healthy("sgd"), level=2.25, noise=0.001)
    run.scalars.loss[:2] = run.scalars.loss_max[:2] = 30.0
    assert codes(run) == ["rate-too-high"]
    assert "hardly better than its start" in first(run).sentence


def test_the_loss_of_an_adversary_is_no_measure():
    run = thrown()
    assert codes(run._replace(facts=run.facts._replace(optimizers=2)), healthy()) == []


# ---------------------------------------------------------------- rate-too-low


def slow(kind="sgd", **facts):
    run = flat(healthy(kind))
    run.layers.update[:] *= 1e-3
    run.scalars.update_ratio[:] *= 1e-3
    run.scalars.update_norm[:] *= 1e-3
    return run._replace(facts=run.facts._replace(**facts))


@pytest.mark.parametrize("kind", ["sgd", "adam"])
def test_weights_that_hardly_move_have_too_low_a_rate(kind):
    found = first(slow(kind))
    assert (found.code, found.severity) == ("rate-too-low", "look")
    assert found.evidence["reach"] < 0.02
    assert found.evidence["moved"] < 0.01
    assert f"`lr={found.evidence['suggested_lr']:g}`" in found.advice
    assert found.advice.endswith(", or let Lightning's `Tuner(trainer).lr_find(model)` look.")
    assert first(slow(kind, optimizers=2)).advice.endswith("until the loss falls.")
    assert "cannot have lowered the loss of 2.4 by more than" in found.sentence


def test_a_loss_that_fell_by_more_than_can_be_was_not_slow():
    run = slow()
    run.scalars.loss[:] -= 0.3
    assert "rate-too-low" not in codes(run)


def test_it_is_seen_without_rows_of_layers():
    assert codes(slow()._replace(layers=None)) == ["rate-too-low"]


def test_a_short_run_a_warm_up_and_a_second_fit_may_be_slow():
    young = slow()._replace(counts=slow().counts._replace(steps=99))
    second = slow()._replace(counts=slow().counts._replace(earlier=True))
    warm = slow(schedule=("LinearLR",))
    warm.scalars.lr[:] = np.linspace(1e-6, 1e-3, 60)
    assert codes(young) == codes(second) == codes(warm) == []


def test_a_loss_without_a_scale_says_nothing_about_reach():
    run = slow()
    run.scalars.loss_first[:] = -1.0
    run.scalars.loss[:] -= 3.4
    assert codes(run) == []


# ---------------------------------------------------------------- rate-cut


@pytest.mark.parametrize("rule", ["SpikeBackoff", "InverseNorm", "DistanceOverGradients"])
def test_a_rule_that_stops_training_is_named(rule):
    run = flat(healthy("sgd"))
    run = run._replace(facts=run.facts._replace(rules=(rule,)))
    run.scalars.lr_effective[:] *= 0.01
    found = first(run)
    assert (found.code, found.severity) == ("rate-cut", "act")
    assert f"{rule} holds the learning rate at 1 % of what was set (100 times lower)" in found.sentence
    assert found.evidence["mean_factor"] == pytest.approx(0.01)
    assert {"SpikeBackoff": "min_factor", "InverseNorm": "InverseNorm(target=", "DistanceOverGradients": "`lr=1`"}[
        rule
    ] in found.advice


def test_a_rule_that_chooses_the_step_may_make_it_small_if_the_run_learns():
    run = healthy("sgd")
    run.scalars.lr_effective[:] *= 0.01
    assert codes(run._replace(facts=run.facts._replace(rules=("DistanceOverGradients",)))) == []
    assert codes(run._replace(facts=run.facts._replace(rules=("SpikeBackoff",)))) == ["rate-cut"]
    assert codes(run) == []  # the `d` of Prodigy: no rule


# ---------------------------------------------------------------- layer-rate


@pytest.mark.parametrize("times", [300.0, 50.0])
def test_one_layer_that_is_far_faster_by_both_measures_is_named(times):
    run = healthy("sgd")
    column(run, "update", "head.weight")[:] *= times
    found = Report([run]).findings
    assert [one.code for one in found] == (["layer-rate"] if times > 100 else [])
    if found:
        assert found[0].layers == ("head.weight",)
        assert "`head.weight` moves" in found[0].sentence
        assert found[0].evidence["suggested_lr"] == pytest.approx(0.1 / found[0].evidence["ratio"])


@pytest.mark.parametrize(
    ("owner", "line"),
    [
        ("vit.head", 'self.vit.head.parameters(), "lr": '),
        ("net.4", 'self.get_submodule("net.4").parameters(), "lr": '),
        ("(root)", '[self.get_parameter("head.weight")], "lr": '),
    ],
)
def test_the_group_to_paste_is_python_whatever_the_module_is_called(owner, line):
    run = healthy("sgd")
    column(run, "update", "head.weight")[:] *= 300.0
    owners = tuple(
        owner if name.startswith("head") else one for one, name in zip(run.layers.owners, run.layers.names, strict=True)
    )
    found = first(run._replace(layers=run.layers._replace(owners=owners)))
    assert f'`{{"params": {line}' in found.advice
    compile(found.advice.split("`")[1], "", "eval")


def test_a_weight_that_began_at_zero_is_not_fast():
    run = healthy("sgd")
    column(run, "weight", "head.weight")[:] *= 1e-4
    assert codes(run) == []


def test_layers_that_are_each_a_little_faster_do_not_stand_out():
    run = healthy("sgd")
    for times, name in ((12, "net.0.weight"), (144, "net.2.weight"), (1000, "head.weight")):
        column(run, "update", name)[:] *= times * 0.001
    assert codes(run) == []


@pytest.mark.parametrize(("lr", "moves", "word"), [(0.1, 100.0, "100 times higher"), (1e-5, 0.01, "100 times lower")])
def test_a_group_that_is_set_apart_is_named(lr, moves, word):
    run = healthy()
    groups = (Group("adam", 1e-3, 1e-8), Group("adam", lr, 1e-8))
    layers = run.layers._replace(group_of=(0, 0, 0, 0, 0, 1, 1))
    column(run, "update", "head.weight")[:] *= moves
    column(run, "weight", "head.weight")[:] *= moves**0.75  # it has grown: the ratio alone says little
    found = first(run._replace(layers=layers, facts=run.facts._replace(groups=groups)))
    assert found.code == "layer-rate"
    assert "Parameter group 1 (`head.weight`)" in found.sentence
    assert word in found.sentence


# ---------------------------------------------------------------- nonfinite, diverged


def with_nan(run, row=40, skipped=False):
    for table in (run.scalars.grad_norm_before, run.scalars.grad_norm_after):
        table[row:] = np.inf
    run.scalars.nonfinite_total[row:] = np.arange(1, 61 - row)
    bad = 60 - row
    run.layers.before[row:, -2:] = np.inf
    if not skipped:
        run.scalars.loss[row:] = run.scalars.loss_max[row:] = np.inf
    counts = run.counts._replace(nonfinite=bad, usable=300 - bad, skipped=bad if skipped else 0)
    return run._replace(counts=counts)


def test_a_nan_is_named_with_its_tensors_and_step():
    found = first(with_nan(healthy()))
    assert (found.code, found.severity) == ("nonfinite", "act")
    assert found.sentence == (
        "20 steps of 300 had a gradient that was inf or nan, the first between steps 199 and 204, in 2 of 7 tensors, "
        "deepest listed `head.bias`."
    )
    assert found.layers == ("head.bias", "head.weight")
    assert 'NonFiniteGuard("skip"' in found.advice


def test_where_every_one_was_skipped_it_is_a_look():
    found = Report([with_nan(healthy(), skipped=True)]).findings
    assert [(one.code, one.severity) for one in found] == [("nonfinite", "look")]
    assert "every one was skipped" in found[0].sentence


@pytest.mark.parametrize(("told", "steps"), [((), (204, 219)), ((204,), (204, 219)), ((201, 217), (201, 217))])
def test_its_steps_end_with_the_last_bad_one(told, steps):
    run = healthy()
    run.scalars.nonfinite_total[40:43], run.scalars.nonfinite_total[43:] = 1, 2
    counts = run.counts._replace(nonfinite=2, usable=298, skipped=2)
    bad = tuple(BadStep(step, "nonfinite", "head.bias") for step in told)
    (found,) = [one for one in Report([run._replace(counts=counts, bad_steps=bad)]).findings if one.code == "nonfinite"]
    assert found.steps == steps


def test_a_loss_that_grew_before_the_nan_has_diverged():
    run = healthy("sgd")
    run.scalars.loss[35:] = run.scalars.loss_max[35:] = [1e3 * 10**i for i in range(25)]
    report = Report([with_nan(run)])
    assert [one.code for one in report.findings] == ["diverged"]
    assert (
        report.verdict
        == "Training diverged: the loss rose from 2.4 to 1e+07 by step 204, then the gradient was inf or nan."
    )
    assert "`lr=0.01`" in report.next


@pytest.mark.parametrize(("norm", "code"), [(1e12, "diverged"), (1e4, "nonfinite")])
def test_where_the_first_row_is_bad_the_largest_finite_norm_tells(norm, code):
    run = with_nan(healthy("sgd"), 0)
    run.layers.before[:] = run.layers.after[:] = run.layers.update[:] = np.inf
    run.scalars.grad_norm_max[0] = norm
    run.scalars.grad_norm_max[1:] = np.nan
    assert codes(run) == [code]


def test_growth_that_a_guard_survived_is_no_divergence():
    run = healthy("sgd")
    run.scalars.loss[38] = run.scalars.loss_max[38] = 900.0
    assert [one.code for one in Report([with_nan(run, skipped=True)]).findings] == ["nonfinite"]


def test_a_norm_that_grew_before_the_nan_has_diverged():
    run = healthy("sgd")
    run.scalars.grad_norm_max[37:40] = [20.0, 200.0, 2000.0]
    found = first(with_nan(run))
    assert found.code == "diverged"
    assert "the gradient norm rose from" in found.sentence


def test_a_step_longer_than_the_weights_before_the_nan_has_diverged():
    run = healthy("sgd")
    run.scalars.update_ratio[1] = 40.0
    found = first(with_nan(run, 2))
    assert found.code == "diverged"
    assert "40 times as long as the weights" in found.sentence


def test_what_was_learned_and_lost_has_diverged_and_a_run_that_comes_back_has_not():
    run = healthy("sgd")
    run.scalars.loss[40:] = run.scalars.loss_max[40:] = 9.0
    assert first(run).code == "diverged"
    assert "was down from 2.4 to" in first(run).sentence
    run.scalars.loss[40:] = run.scalars.loss_max[40:] = np.linspace(20.0, 3.5, 20)
    assert "diverged" not in codes(run)


def test_the_overflows_of_a_scaler_are_no_nan():
    run = healthy()
    run.scalars.loss_scale[:] = 1024.0
    run.scalars.grad_norm_before[:5] = np.inf
    run.scalars.skipped_total[5:] = 6
    run = run._replace(counts=run.counts._replace(skipped=6))
    assert [(one.code, one.severity) for one in Report([run]).findings] == [("loss-scale", "note")]
    assert "GradScaler skipped 6 steps" in first(run).sentence
