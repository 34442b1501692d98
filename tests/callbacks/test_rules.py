"""Rules by name, dry runs and named tags."""

from __future__ import annotations

import logging
from functools import partial

import pytest
import torch
from helpers.tiny_modules import Grads, Rows, Tiny, TwoNets, fit, norm, same_bits, scaled, weights

from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    MaxNorm,
    Percentile,
    ZClip,
)

NAMES = ["net.0.weight", "net.0.bias", "net.2.weight", "net.2.bias", "net.4.weight", "net.4.bias"]


def _before_and_after(*callbacks, gains=None, **kwargs):
    before, after = Grads(), Grads()
    gains = gains or dict.fromkeys(range(20), 5.0)
    fit(Tiny(gains=gains), [before, *callbacks, after], **kwargs)
    return [dict(zip(NAMES, grads, strict=True)) for grads in before.seen], [
        dict(zip(NAMES, grads, strict=True)) for grads in after.seen
    ]


def test_each_rule_is_its_own_segment_and_the_rest_follow_the_policy():
    rules = {"net.0.*": 0.5, "*.bias": MaxNorm(0.01), "net.2.*": None}
    before, after = _before_and_after(GradientClip(0.2, rules=rules))
    for old, new in zip(before, after, strict=True):
        assert norm([new["net.0.weight"], new["net.0.bias"]]) == pytest.approx(0.5, rel=1e-6), "first match wins"
        assert norm([new["net.2.bias"], new["net.4.bias"]]) == pytest.approx(0.01, rel=1e-6)
        assert norm([new["net.4.weight"]]) == pytest.approx(0.2, rel=1e-6)
        same_bits(new["net.2.weight"], old["net.2.weight"])


def test_order_of_rules_decides():
    before, after = _before_and_after(GradientClip(None, rules={"*.bias": 0.01, "net.0.*": None}))
    for old, new in zip(before, after, strict=True):
        assert norm([new[n] for n in NAMES if n.endswith("bias")]) == pytest.approx(0.01, rel=1e-6)
        for name in ("net.0.weight", "net.2.weight", "net.4.weight"):
            same_bits(new[name], old[name])


def test_policy_none_with_a_rule_clips_only_what_the_rule_names():
    before, after = _before_and_after(GradientClip(None, rules={"net.4.*": 0.1}))
    for old, new in zip(before, after, strict=True):
        assert norm([new["net.4.weight"], new["net.4.bias"]]) == pytest.approx(0.1, rel=1e-6)
        same_bits({n: new[n] for n in NAMES[:4]}, {n: old[n] for n in NAMES[:4]})


@pytest.mark.parametrize("scope", ["layer", "parameter", "unit"])
def test_a_rule_follows_the_scope_of_the_callback(scope):
    _, after = _before_and_after(GradientClip(None, scope=scope, rules={"net.0.*": 0.1}))
    for new in after:
        if scope == "layer":
            assert norm([new["net.0.weight"], new["net.0.bias"]]) == pytest.approx(0.1, rel=1e-6)
        elif scope == "parameter":
            assert norm([new["net.0.weight"]]) == pytest.approx(0.1, rel=1e-6)
        else:
            assert new["net.0.weight"].norm(dim=1).max() <= 0.1 * (1 + 1e-6)


def test_rules_with_an_adaptive_policy_keep_their_own_history():
    rules = {"net.0.*": Percentile(50, window=4, warmup_steps=0)}
    gains = {step: 1.0 + step % 3 for step in range(20)}
    before, after = _before_and_after(GradientClip(None, rules=rules), gains=gains)
    history = []
    for old, new in zip(before, after, strict=True):
        current = norm([old["net.0.weight"], old["net.0.bias"]])
        history = [*history, current][-4:]
        wanted = min(current, float(torch.tensor(history, dtype=torch.float64).quantile(0.5)))
        assert norm([new["net.0.weight"], new["net.0.bias"]]) == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize("recipe", [AutoClip, ZClip, AGC, AdaGC])
def test_recipes_take_rules(recipe):
    before, after = _before_and_after(recipe(rules={"*": None}))
    same_bits(after, before)


@pytest.mark.parametrize(
    ("glob", "near"), [("net.0.wieght", "net.0.weight"), ("nett.4*", "net.4."), ("encoder.*", "net.")]
)
def test_glob_without_a_match_names_the_nearest(glob, near):
    with pytest.raises(ValueError, match="matches none") as error:
        fit(Tiny(), [GradientClip(1.0, rules={glob: 0.5})])
    assert glob in str(error.value)
    assert near in str(error.value)


def test_a_misspelt_glob_is_the_only_thing_told(caplog):
    with caplog.at_level(logging.INFO, "lightning_calib"), pytest.raises(ValueError, match="nearest names"):
        fit(Tiny(), [GradientClip(1.0, rules={"nett.*": 0.1}), GradientMonitor()])
    assert "could not keep" not in caplog.text


def test_a_rule_may_match_in_one_of_two_optimizers_only():
    after = Grads()
    module = TwoNets(partial(torch.optim.SGD, lr=0.1), partial(torch.optim.SGD, lr=0.1))
    fit(module, [GradientClip(None, rules={"net.*": 0.01}), after], 12)
    assert after.norms[0::2] == pytest.approx([0.01] * 6, rel=1e-6)
    assert min(after.norms[1::2]) > 0.01


DRY = {
    "clip": lambda **k: GradientClip(0.2, **k),
    "units": lambda **k: GradientClip(Percentile(50, warmup_steps=2), scope="unit", **k),
    "rules": lambda **k: GradientClip(0.2, rules={"*bias": 0.01}, **k),
    "autoclip": AutoClip,
    "zclip": lambda **k: ZClip(1.0, warmup_steps=2, **k),
    "agc": lambda **k: AGC(1e-3, **k),
    "adagc": lambda **k: AdaGC(warmup_steps=2, warmup_max_norm=0.1, **k),
}


@pytest.mark.parametrize("make", DRY.values(), ids=DRY)
def test_dry_run_changes_nothing_and_says_what_it_would_do(make):
    plain, dry, rows = Tiny(gains={5: 50.0}), Tiny(gains={5: 50.0}), Rows()
    fit(plain)
    fit(dry, [make(dry_run=True)], logger=rows)
    same_bits(weights(dry), weights(plain))
    assert {"calib/would_clip_fraction", "calib/would_clip_threshold"} <= rows.tags
    assert "calib/clip_threshold" not in rows.tags
    assert set(rows.values("calib/clip_fraction")) <= {0.0}
    assert max(rows.values("calib/would_clip_fraction")) > 0


@pytest.mark.parametrize("make", DRY.values(), ids=DRY)
def test_dry_run_keeps_the_bits_of_a_fused_optimizer_under_a_scaler(make):
    """Unscaling by another factor than a power of two would change them."""
    adamw = partial(torch.optim.AdamW, lr=1e-2, fused=True)
    plain, dry = Tiny(adamw, {5: 50.0}), Tiny(adamw, {5: 50.0})
    fit(plain, plugins=scaled(1000.0))
    fit(dry, [make(dry_run=True), GradientMonitor()], plugins=scaled(1000.0))
    same_bits(weights(dry), weights(plain))


def test_dry_run_under_the_monitor_reports_no_clipping():
    rows = Rows()
    fit(Tiny(), [GradientClip(0.01, dry_run=True), GradientMonitor(1)], logger=rows)
    assert rows.values("calib/would_clip_fraction") == [1.0] * 12
    assert rows.values("calib/clip_fraction") == [0.0] * 12
    assert rows.values("calib/grad_norm_after") == pytest.approx(rows.values("calib/grad_norm_before"), rel=1e-6)


def test_a_dry_run_is_told_in_words(caplog):
    monitor = GradientMonitor()
    with caplog.at_level(logging.INFO, "lightning_calib"):
        fit(Tiny(), [GradientClip(1e-6, dry_run=True), monitor])
    assert "clipping: GradientClip(policy=MaxNorm(max_norm=1e-06), dry_run=True)" in caplog.text
    (clipper,) = monitor.report().runs[0].clippers
    assert (clipper.kind, clipper.clip_rate) == ("dry", 1.0)


def test_first_dry_step_agrees_with_the_first_real_one():
    rows = {}
    for dry_run in (True, False):
        log = Rows()
        fit(Tiny(), [GradientClip(0.3, scope="layer", dry_run=dry_run)], 1, logger=log, log_every_n_steps=1)
        rows[dry_run] = log.rows[0][1]
    assert rows[True]["calib/would_clip_fraction"] == rows[False]["calib/clip_fraction"]
    assert rows[True]["calib/would_clip_threshold"] == rows[False]["calib/clip_threshold"]


def test_dry_run_sees_what_its_neighbour_left():
    rows = Rows()
    callbacks = [GradientClip(0.5, name="real"), GradientClip(0.6, name="dry", dry_run=True)]
    fit(Tiny(gains=dict.fromkeys(range(20), 100.0)), callbacks, logger=rows)
    assert rows.values("calib/clip_fraction.real") == [1.0] * 3
    assert rows.values("calib/would_clip_fraction.dry") == [0.0] * 3


def test_named_callbacks_log_under_their_names():
    rows, grads = Rows(), Grads()
    callbacks = [
        grads,
        GradientClip(0.9, name="loose"),
        GradientClip(0.3, scope="parameter", name="tight"),
        GradientNormalize(2.0, name="unit"),
    ]
    fit(Tiny(), callbacks, logger=rows, log_every_n_steps=1)
    assert rows.values("calib/clip_threshold.loose") == pytest.approx([0.9] * 12)
    assert rows.values("calib/clip_threshold.tight") == pytest.approx([0.3] * 12)
    assert rows.values("calib/clip_fraction.loose") == [float(n > 0.9) for n in grads.norms]
    assert 0 < sum(rows.values("calib/clip_fraction.loose")) < 12
    assert "calib/clip_threshold" not in rows.tags


def test_unnamed_callbacks_of_two_classes_do_not_hide_each_other():
    """Both act; the row must show the share of steps on which either reduced the gradient."""
    rows, gains = Rows(), dict.fromkeys(range(20), 30.0)
    fit(Tiny(gains=gains), [ZClip(warmup_steps=100), GradientClip(0.1), GradientMonitor()], logger=rows)
    assert rows.values("calib/clip_fraction") == [1.0] * 3
