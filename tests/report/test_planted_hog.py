"""A tensor that makes the norm for which a clip scales all others down: found, and the pasted rule undoes it."""

from __future__ import annotations

import ast
import re
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from helpers.monitored import Monitored
from lightning.pytorch import Callback
from report.planted.clips import TwoBranches
from report.planted.data import bags, digits, images, rows_of_images, text
from report.planted.fit import Learner, adamw, fit, muon, quiet, sgd
from report.planted.models import Bag, Recurrent, Transformer, cnn, mlp

import lightning_calib
from lightning_calib import Report
from lightning_calib.report.run import Layers

STEPS = 200
NAMES = {name: getattr(lightning_calib, name) for name in ("GradientClip", "ZClip")}


class Hog(Learner):
    """The gradient of one tensor is so many times as large, on every so many steps."""

    def __init__(self, net: Any, make: Any, name: str, every: int, times: float = 100.0) -> None:
        super().__init__(net, make)
        self.name, self.every, self.times = name, every, times

    def on_fit_start(self) -> None:
        self.net.get_parameter(self.name).register_hook(self.scale)

    def scale(self, gradient: torch.Tensor) -> torch.Tensor:
        return gradient * self.times if self.trainer.global_step % self.every == 0 else gradient


class Planted(NamedTuple):
    """One of ten: a network, an optimizer, data, a clip, and which tensor is the hog how often.

    With Adam and Muon it has to come now and then: they divide a share that is always the same out again.
    """

    net: Any
    make: Any
    data: Any
    clip: float
    hog: str
    every: int = 1
    times: float = 100.0

    def module(self, hog: bool) -> Learner:
        return Hog(self.net(), self.make, self.hog, self.every, self.times if hog else 1.0)


class Given(NamedTuple):
    """The same, where the network itself makes the hog; a healthy twin has it scaled like the others."""

    net: Any
    healthy: Any
    make: Any
    data: Any
    clip: float
    hog: str

    def module(self, hog: bool) -> Learner:
        return Learner((self.net if hog else self.healthy)(), self.make)


RUNS: dict[str, Planted | Given] = {
    "words_in_thousandths-bag-sgd": Given(lambda: Bag(scale=1000.0), Bag, sgd(0.1, 0.0), bags, 0.02, "embed.weight"),
    "raw_inputs-mlp-sgd": Given(TwoBranches, lambda: mlp(64, 64, 64, 10), sgd(0.02, 0.0), digits, 0.3, "raw.weight"),
    "always-mlp-sgd": Planted(lambda: mlp(64, 64, 64, 10), sgd(0.05, 0.0), digits, 1.0, "2.weight"),
    "every_second-cnn-sgd": Planted(lambda: cnn(norm=False), sgd(0.05, 0.0), images, 1.0, "3.weight", 2),
    "always-gru-sgd": Planted(Recurrent, sgd(0.1, 0.0), rows_of_images, 0.3, "rnn.weight_hh_l0"),
    "every_second-transformer-sgd": Planted(Transformer, sgd(0.1, 0.0), text, 1.0, "symbol.weight", 2),
    "every_fourth-mlp-adamw": Planted(lambda: mlp(64, 64, 64, 10), adamw(1e-3), digits, 1.0, "0.weight", 4),
    "every_third-cnn_norm-adamw": Planted(cnn, adamw(1e-3), images, 2.0, "4.weight", 3),
    "every_seventh-transformer-adamw": Planted(Transformer, adamw(1e-3), text, 1.0, "head.weight", 7),
    "every_fourth-mlp-muon": Planted(lambda: mlp(64, 64, 64, 10, bias=False), muon(2e-3), digits, 1.0, "2.weight", 4),
}


@cache
def trained(name: str, hog: bool, rule: str = "") -> Report:
    """Behind the Trainer's clip, or behind the callbacks that a rule names."""
    planted, recorder = RUNS[name], Monitored()
    torch.manual_seed(2000 + list(RUNS).index(name))
    clip: dict[str, Any] = {"callbacks": pasted(rule)} if rule else {"gradient_clip_val": planted.clip}
    with quiet():
        fit(recorder, planted.module(hog), planted.data(), STEPS, **clip)
    return recorder.report()


def line(report: Report) -> str:
    """What the advice of the first finding says to paste, as it stands."""
    (found,) = re.findall(r"`(callbacks=\[.*\])`", report.findings[0].advice)
    return found


def pasted(text: str) -> list[Callback]:
    """The value of `callbacks=[...]`, with the package's names and nothing else."""
    ast.parse(f"Trainer({text})")
    found: list[Callback] = eval(f"dict({text})", {"__builtins__": {}, "dict": dict}, NAMES)["callbacks"]
    return found


def others(name: str, layers: Layers | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of the other tensors the norm before and the share of it that was left, and which rows the hog made."""
    assert layers is not None
    (hog,) = (i for i, one in enumerate(layers.names) if one.endswith(RUNS[name].hog))
    square, used = np.square(layers.before), np.square(layers.after)
    before = np.sqrt(np.delete(square, hog, 1).sum(1))
    after = np.sqrt(np.delete(used, hog, 1).sum(1))
    return before, after / before, square[:, hog] > 0.9 * square.sum(1)


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_hog_is_named_first(name):
    (found, *_) = trained(name, hog=True).findings
    assert found.code == "dominated"
    assert [one.endswith(RUNS[name].hog) for one in found.layers] == [True]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_a_run_without_one_has_none(name):
    report = trained(name, hog=False)
    assert sum(run.counts.left is not None and run.counts.left < 1 for run in report.runs) == 1  # the clip acts
    assert "dominated" not in [one.code for one in report.findings]


@pytest.mark.slow
@pytest.mark.parametrize("name", RUNS)
def test_the_pasted_rule_restores_the_step_of_the_others(name):
    report = trained(name, hog=True)
    mended = trained(name, hog=True, rule=line(report))
    for run, restored in ((report.runs[0], False), (mended.runs[0], True)):
        before, left, rows = others(name, run.layers)
        assert rows.sum() >= 3
        alone = np.minimum(1.0, RUNS[name].clip / before)  # as if there were no hog
        lost = np.abs(left / alone - 1)
        assert (lost[rows].max() < 0.02) == restored
        assert restored or np.median(lost[rows]) > 2 / 3
    assert "dominated" not in [one.code for one in mended.findings]
