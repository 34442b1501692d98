"""Bad arguments: the exception, the name, the rule, the value and the remedy."""

from __future__ import annotations

import inspect
import math
from functools import partial

import pytest

import lightning_calib
from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    Percentile,
    ZClip,
)

Clip = partial(GradientClip, 1.0)
BAD = [
    (GradientMonitor, {"every_n_steps": 0}, ValueError, ["every_n_steps", "1", "0"]),
    (GradientMonitor, {"every_n_steps": -5}, ValueError, ["every_n_steps", "-5"]),
    (GradientMonitor, {"every_n_steps": 2.5}, TypeError, ["every_n_steps", "2.5"]),
    (GradientMonitor, {"every_n_steps": True}, TypeError, ["every_n_steps", "True"]),
    (GradientMonitor, {"every_n_steps": "ten"}, TypeError, ["every_n_steps", "'ten'"]),
    (GradientMonitor, {"layers": "all"}, TypeError, ["layers", "True or False", "'all'"]),
    (GradientMonitor, {"histograms": 1}, TypeError, ["histograms", "True or False", "1"]),
    (GradientClip, {"policy": -1.0}, ValueError, ["max_norm", "-1.0"]),
    (GradientClip, {"policy": math.nan}, ValueError, ["max_norm", "nan"]),
    (GradientClip, {"policy": "median"}, TypeError, ["policy", "'median'"]),
    (GradientClip, {"policy": True}, TypeError, ["policy", "True"]),
    (GradientClip, {"policy": Percentile}, TypeError, ["policy", "Percentile"]),
    (Clip, {"scope": "globl"}, ValueError, ["scope", "'global'", "'unit'", "'globl'"]),
    (Clip, {"scope": 3}, ValueError, ["scope", "3"]),
    (Clip, {"norm_type": 0}, ValueError, ["norm_type", "0"]),
    (Clip, {"norm_type": -2.0}, ValueError, ["norm_type", "-2.0"]),
    (Clip, {"norm_type": "inf"}, TypeError, ["norm_type", "'inf'", "math.inf"]),
    (Clip, {"rules": {"net.*": "off"}}, TypeError, ["rules", "'off'"]),
    (Clip, {"rules": {"net.*": -2.0}}, ValueError, ["max_norm", "-2.0"]),
    (Clip, {"rules": {3: 1.0}}, TypeError, ["rules", "3"]),
    (Clip, {"rules": ["net.*"]}, TypeError, ["rules", "net.*"]),
    (Clip, {"dry_run": "yes"}, TypeError, ["dry_run", "True or False", "'yes'"]),
    (Clip, {"dry_run": 1}, TypeError, ["dry_run", "True or False", "1"]),
    (Clip, {"name": 3}, TypeError, ["name", "3"]),
    (Clip, {"name": ""}, ValueError, ["name", "''"]),
    (Clip, {"name": "a/b"}, ValueError, ["name", "'a/b'"]),
    (GradientNormalize, {"target": 0.0}, ValueError, ["0"]),
    (GradientNormalize, {"target": -1}, ValueError, ["-1"]),
    (GradientNormalize, {"target": None}, TypeError, ["target", "None"]),
    (GradientNormalize, {"scope": "all"}, ValueError, ["scope", "'all'"]),
    (GradientNormalize, {"name": 1}, TypeError, ["name", "1"]),
    (GradientValueClip, {"max_value": 0.0}, ValueError, ["max_value", "0"]),
    (GradientValueClip, {"max_value": -0.5}, ValueError, ["max_value", "-0.5"]),
    (GradientValueClip, {"max_value": math.nan}, ValueError, ["max_value", "nan"]),
    (GradientValueClip, {"max_value": "1"}, TypeError, ["max_value", "'1'"]),
    (AutoClip, {"percentile": 101}, ValueError, ["percentile", "[0, 100]", "101"]),
    (AutoClip, {"percentile": -0.1}, ValueError, ["percentile", "-0.1"]),
    (AutoClip, {"percentile": 0.1}, ValueError, ["percentile", "0 or in [1, 100]", "0.1", "Use 10.0"]),
    (AutoClip, {"percentile": "10"}, TypeError, ["percentile", "'10'"]),
    (AutoClip, {"window": 0}, ValueError, ["window", "0"]),
    (AutoClip, {"window": 10.0}, TypeError, ["window", "10.0"]),
    (ZClip, {"z_max": 0}, ValueError, ["z_max", "0"]),
    (ZClip, {"decay": 1.5}, ValueError, ["decay", "[0, 1)", "1.5", "0.97", "33 steps"]),
    (ZClip, {"decay": 1}, ValueError, ["decay", "[0, 1)"]),
    (ZClip, {"warmup_steps": 1}, ValueError, ["warmup_steps", "1"]),
    (ZClip, {"warmup_steps": 5.0}, TypeError, ["warmup_steps", "5.0"]),
    (ZClip, {"warmup_max_norm": 0.0}, ValueError, ["warmup_max_norm", "(0, inf]", "0.0"]),
    (ZClip, {"warmup_max_norm": "1"}, TypeError, ["warmup_max_norm", "'1'", "None"]),
    (ZClip, {"robust": "yes"}, TypeError, ["robust", "True or False"]),
    (AGC, {"factor": 0}, ValueError, ["factor", "0"]),
    (AGC, {"factor": -0.01}, ValueError, ["factor", "-0.01"]),
    (AGC, {"min_weight_norm": -1e-3}, ValueError, ["min_weight_norm", "-0.001"]),
    (AGC, {"exclude": "head"}, (TypeError, ValueError), ["exclude", "'head'"]),
    (AGC, {"exclude": [3]}, TypeError, ["exclude", "3"]),
    (AGC, {"exclude": None}, TypeError, ["exclude", "None"]),
    (AdaGC, {"factor": 0.5}, ValueError, ["factor", "0.5"]),
    (AdaGC, {"decay": 1.0}, ValueError, ["decay", "1.0"]),
    (AdaGC, {"warmup_steps": -1}, ValueError, ["warmup_steps", "-1"]),
    (AdaGC, {"warmup_max_norm": 0}, ValueError, ["warmup_max_norm", "0"]),
    (AdaGC, {"warmup_max_norm": math.nan}, ValueError, ["warmup_max_norm", "nan"]),
    *(
        (recipe, arguments, error, parts)
        for recipe in (AutoClip, ZClip, AGC, AdaGC)
        for arguments, error, parts in [
            ({"rules": {"net.*": "off"}}, TypeError, ["rules", "'off'"]),
            ({"dry_run": None}, TypeError, ["dry_run", "True or False", "None"]),
            ({"name": 7}, TypeError, ["name", "7"]),
        ]
    ),
]


def _label(case):
    make = getattr(case[0], "func", case[0])
    return f"{make.__name__} {case[1]}"


@pytest.mark.parametrize(("make", "arguments", "error", "parts"), BAD, ids=[_label(case) for case in BAD])
def test_message_has_name_rule_value_and_remedy(make, arguments, error, parts):
    with pytest.raises(error) as caught:
        make(**arguments)
    text = str(caught.value)
    for part in [*parts, "must be"]:
        assert part in text
    rule, _, rest = text.partition(", got ")
    assert rule.startswith("`")
    sentences = [s for s in rest.replace("\n", " ").split(". ") if s.strip()]
    assert len(sentences) >= 2, f"a remedy after the value: {text}"
    assert text.endswith((".", ".`"))


@pytest.mark.parametrize("target", [0.0, math.inf, -1.0])
def test_a_norm_to_aim_at_is_finite_and_above_zero(target):
    with pytest.raises(ValueError, match=r"`target` must be in \(0, inf\)"):
        GradientNormalize(target)


def test_the_sentence_of_the_design():
    with pytest.raises(ValueError, match="decay") as error:
        ZClip(decay=1.5)
    wanted = "`decay` must be in [0, 1), got 1.5. Use values near 0.97 to remember about 33 steps."
    assert str(error.value) == wanted


COMMON = {"name": None, "rules": None, "dry_run": False}
DEFAULTS = {
    GradientMonitor: {"every_n_steps": None, "layers": True, "histograms": False},
    GradientClip: {"policy": Percentile(95), "scope": "global", "norm_type": 2.0, **COMMON},
    GradientNormalize: {"target": 1.0, "scope": "global", "name": None},
    GradientValueClip: {"max_value": inspect.Parameter.empty},
    GradientCentralize: {},
    AutoClip: {"percentile": 10.0, "window": None, **COMMON},
    ZClip: {"z_max": 2.5, "decay": 0.97, "warmup_steps": 25, "robust": True, **COMMON, "warmup_max_norm": None},
    AGC: {"factor": 0.01, "min_weight_norm": 1e-3, "exclude": "auto", **COMMON},
    AdaGC: {"factor": 1.05, "decay": 0.98, "warmup_steps": 100, "warmup_max_norm": 1.0, **COMMON},
}


@pytest.mark.parametrize(("make", "defaults"), DEFAULTS.items(), ids=[c.__name__ for c in DEFAULTS])
def test_names_and_defaults_are_the_published_ones(make, defaults):
    found = {name: p.default for name, p in inspect.signature(make).parameters.items()}
    assert {name: found.get(name, "missing") for name in defaults} == defaults


@pytest.mark.parametrize("make", DEFAULTS, ids=[c.__name__ for c in DEFAULTS])
def test_every_argument_has_a_type_so_that_the_command_line_can_build_it(make):
    for name, parameter in inspect.signature(make).parameters.items():
        assert parameter.annotation is not inspect.Parameter.empty, name


@pytest.mark.parametrize("make", DEFAULTS, ids=[c.__name__ for c in DEFAULTS])
def test_no_attribute_that_the_trainer_overwrites(make):
    callback = make(**({"max_value": 1.0} if make is GradientValueClip else {}))
    assert "log" not in vars(callback)
    assert "log_dict" not in vars(callback)
    assert make.__name__ in lightning_calib.__all__


@pytest.mark.parametrize(
    "callback",
    [
        {"class_path": "lightning_calib.ZClip", "init_args": {"z_max": 3.0, "rules": {"net.*": 0.5, "*bias": None}}},
        {
            "class_path": "lightning_calib.GradientClip",
            "init_args": {
                "policy": {"class_path": "lightning_calib.Percentile", "init_args": {"percentile": 90}},
                "scope": "layer",
                "norm_type": math.inf,
            },
        },
        {"class_path": "lightning_calib.GradientClip", "init_args": {"policy": 1.0, "dry_run": True}},
        {"class_path": "lightning_calib.GradientMonitor", "init_args": {"every_n_steps": 5}},
        {"class_path": "lightning_calib.AGC", "init_args": {"exclude": ["net.4.*"]}},
        {"class_path": "lightning_calib.AdaGC"},
        {"class_path": "lightning_calib.AutoClip", "init_args": {"window": 100}},
        {"class_path": "lightning_calib.GradientNormalize", "init_args": {"target": 2.0, "scope": "unit"}},
    ],
    ids=lambda c: f"{c['class_path']} {c.get('init_args', '')}",
)
@pytest.mark.filterwarnings("ignore")
def test_built_from_the_configuration_of_lightning_cli(callback):
    from helpers.tiny_modules import Tiny
    from lightning.pytorch.cli import LightningCLI

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    quiet |= {"max_steps": 2, "enable_model_summary": False}
    args = {"fit": {"trainer": {**quiet, "callbacks": [callback]}}}
    cli = LightningCLI(Tiny, save_config_callback=None, args=args)
    name = callback["class_path"].rsplit(".", 1)[1]
    assert name in [type(c).__name__ for c in cli.trainer.callbacks]
    assert cli.trainer.global_step == 2
