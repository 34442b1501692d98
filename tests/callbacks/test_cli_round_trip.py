"""LightningCLI: the config.yaml that a run has saved makes the same callbacks again."""

from __future__ import annotations

import math
import sys
from typing import Any

import pytest
import yaml
from helpers.tiny_modules import Tiny
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.cli import LightningCLI

import lightning_calib

pytestmark = pytest.mark.filterwarnings("ignore")  # between Lightning, torch and jsonargparse


class Plain(Tiny):
    """Without arguments."""

    def __init__(self) -> None:
        super().__init__()


def run_network(module: Any, batch: Any) -> None:
    """For `PreciseBatchNorm`, found by its import path."""


def made(kind: str, /, **arguments: Any) -> dict[str, Any]:
    return {"class_path": f"lightning_calib.{kind}", "init_args": arguments}


RULES = {"net.0.*": 0.5, "*.bias": None, "net.*": made("ZScore", z_max=3.0, warmup_max_norm=2.0)}
USUAL = {"dry_run": True, "name": "mine", "rules": RULES}
GRID = {"norm_type": 3.0, **USUAL}
# Every argument another than by default, and what its `repr` must show.
SET: dict[str, tuple[dict[str, Any], str]] = {
    "GradientMonitor": (made("GradientMonitor", every_n_steps=7, layers=False, histograms=True), "layers=False"),
    "shadows": (
        made("GradientMonitor", shadow=[0.5, made("ZScore", z_max=3.0, warmup_max_norm=2.0), made("AGC", factor=0.1)]),
        "shadow=[0.5, ZScore(z_max=3.0,",
    ),
    "the sensible shadows": (made("GradientMonitor", shadow=True), "shadow=True"),
    "GradientClip": (
        made("GradientClip", policy=made("EMARelative", factor=1.2, decay=0.9), scope="layer", **GRID),
        "policy=EMARelative(factor=1.2, decay=0.9,",
    ),
    "a number": (made("GradientClip", policy=0.25, norm_type=math.inf), "policy=MaxNorm(max_norm=0.25), norm_type=inf"),
    "None": (made("GradientClip", policy=None), "policy=None"),
    "weights": (made("GradientClip", policy=made("WeightRelative", factor=0.1)), "WeightRelative(factor=0.1"),
    "GradientNormalize": (
        made("GradientNormalize", target=made("Percentile", percentile=90.0), scope="unit", **GRID),
        "target=Percentile(percentile=90.0,",
    ),
    "GradientValueClip": (made("GradientValueClip", max_value=0.5), "max_value=0.5"),
    "GradientCentralize": (made("GradientCentralize"), "GradientCentralize()"),
    "AutoClip": (made("AutoClip", percentile=20.0, window=30, **USUAL), "percentile=20.0, window=30"),
    "ZClip": (
        made("ZClip", z_max=3.0, decay=0.9, warmup_steps=3, robust=False, warmup_max_norm=2.0, **USUAL),
        "z_max=3.0, decay=0.9, warmup_steps=3, robust=False, warmup_max_norm=2.0",
    ),
    "AGC": (made("AGC", factor=0.1, min_weight_norm=0.01, exclude=["net.0.*"], **USUAL), "exclude=('net.0.*',)"),
    "AdaGC": (
        made("AdaGC", factor=1.1, decay=0.9, warmup_steps=4, warmup_max_norm=2.0, **USUAL),
        "factor=1.1, decay=0.9, warmup_steps=4, warmup_max_norm=2.0",
    ),
    "NonFiniteGuard": (
        made("NonFiniteGuard", action="skip", max_consecutive=2, max_total=9, save_batch_to="bad", trace=True),
        "action='skip', max_consecutive=2, max_total=9, save_batch_to='bad'",
    ),
    **{
        f"LearningRateControl {rule['class_path'].rpartition('.')[2]}": (
            made("LearningRateControl", rule=rule, min_factor=0.1, max_factor=2.0, name="a"),
            shown,
        )
        for rule, shown in (
            (
                made("SpikeBackoff", policy=made("MaxNorm", max_norm=2.0), backoff=0.7),
                "MaxNorm(max_norm=2.0), backoff=0.7",
            ),
            (made("Polyak", loss_min=-1.0, growth=math.inf), "loss_min=-1.0, damping=0.5, growth=inf"),
            (made("DistanceOverGradients", initial_distance=1e-4), "initial_distance=0.0001"),
            (made("InverseNorm", target=3.0), "target=3.0"),
        )
    },
    "PreciseBatchNorm": (made("PreciseBatchNorm", num_batches=3), "num_batches=3"),
    "SpikeGuard": (
        made("SpikeGuard", policy=made("ZScore", z_max=5.0), ladder=["skip", "stop"], max_skips=3, lr_factor=0.5),
        "ladder=('skip', 'stop'), max_skips=3, max_rewinds=2",
    ),
}
QUIET = {"logger": True, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}


def of_ours(cli: LightningCLI) -> Callback:
    (found,) = [one for one in cli.trainer.callbacks if type(one).__module__.startswith("lightning_calib")]
    return found


@pytest.mark.parametrize("name", SET)
def test_a_saved_configuration_makes_the_same_callback(name, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli"])
    monkeypatch.chdir(tmp_path)
    given, shown = SET[name]
    options = {**QUIET, "max_steps": 1, "enable_model_summary": False, "callbacks": [given]}
    first = LightningCLI(Plain, args={"fit": {"trainer": options}})
    assert first.trainer.global_step == 1
    (saved,) = tmp_path.rglob("config.yaml")
    (written,) = yaml.safe_load(saved.read_text())["trainer"]["callbacks"]
    assert written["class_path"] == given["class_path"]
    again = LightningCLI(Plain, args=["fit", "--config", str(saved)])
    assert again.trainer.global_step == 1
    assert shown in repr(of_ours(first))
    assert repr(of_ours(again)) == repr(of_ours(first))


def test_every_public_callback_policy_and_rule_is_here():
    text = str(SET)
    public = [getattr(lightning_calib, name) for name in lightning_calib.__all__]
    callbacks = [one.__name__ for one in public if isinstance(one, type) and issubclass(one, Callback)]
    for name in [*callbacks, *["MaxNorm", "Percentile", "ZScore", "EMARelative", "WeightRelative"]]:
        assert f"'lightning_calib.{name}'" in text, name


def refusal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, given: dict[str, Any]) -> str:
    monkeypatch.setattr(sys, "argv", ["cli"])
    with pytest.raises(SystemExit) as stopped:
        LightningCLI(Plain, run=False, args={"trainer": {**QUIET, "callbacks": [given]}})
    assert stopped.value.code == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("given", "cause"),
    [
        (made("GradientClip", scope="globl"), "typing.Literal['global', 'group', 'layer', 'parameter', 'unit']"),
        (made("NonFiniteGuard", action="skipp"), "typing.Literal['warn', 'skip', 'raise']. Got value: skipp"),
        (made("GradientClip", polcy=1.0), "Option 'polcy' is not accepted"),
        (made("ZClip", z_thresh=3.0), "Option 'z_thresh' is not accepted"),
    ],
    ids=["scope", "action", "misspelt", "zclip's"],
)
def test_a_wrong_argument_is_named_with_its_callback(capsys, monkeypatch, given, cause):
    text = refusal(capsys, monkeypatch, given)
    errors = text.split("Errors:\n")[1].splitlines()
    assert given["class_path"] in errors[0]
    assert cause in "".join(errors[1:3])


def test_a_value_out_of_range_is_the_first_of_the_errors(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["cli"])
    given = made("ZClip", decay=1.5)
    with pytest.raises(ValueError, match="decay") as refused:
        LightningCLI(Plain, run=False, args={"trainer": {**QUIET, "callbacks": [given]}})
    first = str(refused.value).split("Errors:\n")[1].splitlines()[0]
    assert first == "  - `decay` must be in [0, 1), got 1.5. Use values near 0.97 to remember about 33 steps."
