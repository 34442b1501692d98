"""Trainer(gradient_clip_val=...) beside a callback that clips: one warning that says who is last."""

from __future__ import annotations

import warnings

import pytest
from helpers.tiny_modules import Grads, Rows, Tiny, fit

from lightning_calib import AGC, AutoClip, GradientClip, GradientMonitor, GradientNormalize, GradientValueClip, ZClip

ACTING = [
    lambda: GradientClip(0.5),
    lambda: ZClip(),
    lambda: AGC(),
    lambda: AutoClip(),
    lambda: GradientNormalize(2.0),
    lambda: GradientValueClip(0.5),
]


def _ours(caught):
    return [str(w.message) for w in caught if "gradient_clip_val" in str(w.message)]


@pytest.mark.parametrize("make", ACTING)
def test_one_warning_says_who_runs_last(make):
    with pytest.warns(UserWarning, match="gradient_clip_val") as caught:
        fit(Tiny(), [make(), GradientMonitor()], gradient_clip_val=0.25)
    [message] = _ours(caught)
    assert type(make()).__name__ in message
    assert "0.25" in message
    assert "last" in message


def test_one_warning_for_several_callbacks():
    with pytest.warns(UserWarning, match="gradient_clip_val") as caught:
        fit(Tiny(), [ZClip(), GradientClip(1.0), GradientMonitor()], gradient_clip_val=0.25)
    assert len(_ours(caught)) == 1


@pytest.mark.parametrize(
    ("callbacks", "clip"),
    [
        (lambda: [GradientMonitor()], 0.25),
        (lambda: [GradientClip(1.0), GradientMonitor()], None),
        (lambda: [GradientClip(1.0), GradientMonitor()], 0),
        (lambda: [GradientClip(1.0, dry_run=True)], 0.25),
        (lambda: [], 0.25),
    ],
)
def test_no_warning_otherwise(callbacks, clip):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*workers.*")
        warnings.filterwarnings("ignore", message=".*number of training batches.*")
        fit(Tiny(), callbacks(), gradient_clip_val=clip)


@pytest.mark.filterwarnings("ignore:.*gradient_clip_val.*:UserWarning")
def test_ours_acts_first_and_the_trainer_last():
    rows, between = Rows(), Grads()
    gains = dict.fromkeys(range(20), 100.0)
    fit(Tiny(gains=gains), [GradientClip(0.5), between, GradientMonitor(1)], gradient_clip_val=0.1, logger=rows)
    assert between.norms == pytest.approx([0.5] * 12, rel=1e-6)
    assert rows.values("calib/grad_norm_after") == pytest.approx([0.1] * 12, rel=1e-4)
