"""What a user types and sees of a callback: arguments, in one order; attributes, `repr`, `dir` and `help`."""

from __future__ import annotations

import copy
import inspect
import math
import pickle
from inspect import Parameter
from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest
from helpers.tiny_modules import Tiny, fit, make_trainer
from lightning.pytorch.callbacks import Callback, ModelCheckpoint

import lightning_calib
from lightning_calib import (
    AGC,
    AdaGC,
    AutoClip,
    DistanceOverGradients,
    EMARelative,
    GradientCentralize,
    GradientClip,
    GradientMonitor,
    GradientNormalize,
    GradientValueClip,
    InverseNorm,
    LearningRateControl,
    MaxNorm,
    NonFiniteGuard,
    Percentile,
    Polyak,
    PreciseBatchNorm,
    SpikeBackoff,
    WeightRelative,
    ZClip,
    ZScore,
)

# Each public signature. `*`: what follows must be named. The shared arguments come last, in one order.
RULES = "rules=None, dry_run=False, name=None"
GRID = f'scope="global", norm_type=2.0, {RULES}'
WARMUP = "warmup_max_norm=None"
SIGNATURES = {
    "GradientMonitor": "every_n_steps=None, *, layers=True, histograms=False, shadow=None",
    "GradientClip": f"policy=Percentile(95), *, {GRID}",
    "GradientNormalize": f"target=1.0, *, {GRID}",
    "GradientValueClip": "max_value",
    "GradientCentralize": "",
    "AutoClip": f"percentile=10.0, *, window=None, {RULES}",
    "ZClip": f"z_max=2.5, *, decay=0.97, warmup_steps=25, robust=True, {WARMUP}, {RULES}",
    "AGC": f'factor=0.01, *, min_weight_norm=0.001, exclude="auto", {RULES}',
    "AdaGC": f"factor=1.05, *, decay=0.98, warmup_steps=100, warmup_max_norm=1.0, {RULES}",
    "NonFiniteGuard": 'action="warn", *, max_consecutive=5, max_total=None, save_batch_to=None, trace=False',
    "LearningRateControl": "rule, *, min_factor=0.0, max_factor=1.0, name=None",
    "PreciseBatchNorm": "num_batches=200, *, forward=None",
    "SpikeGuard": 'policy=ZScore(4), *, min_ratio=3.0, ladder=("skip", "rewind", "stop"), max_skips=20, max_rewinds=2, '
    "snapshot_every_n_steps=50, max_snapshot_gb=16.0, lr_factor=1.0, lr_steps=100",
    "MaxNorm": "max_norm",
    "Percentile": f"percentile=95.0, window=1000, warmup_steps=100, {WARMUP}",
    "ZScore": f"z_max=2.5, decay=0.97, warmup_steps=25, robust=True, {WARMUP}",
    "EMARelative": f"factor=1.05, decay=0.98, warmup_steps=100, {WARMUP}",
    "WeightRelative": "factor=0.01, min_weight_norm=0.001",
    "SpikeBackoff": "policy=ZScore(), backoff=0.5, recovery=1.05",
    "Polyak": "loss_min=0.0, damping=0.5, growth=2.0, growth_steps=500",
    "DistanceOverGradients": "initial_distance=1e-06",
    "InverseNorm": "target=1.0",
    "GradientStabilizer": "decay_short=0.7, decay_long=0.9, eps=1e-08",
    "refine_schedule": 'norms, optimizer="sgd", *, smoothing=0.1',
    "read_events": "logdir",
    "functional.clip_grad_": 'parameters, policy, state=None, *, scope="global", norm_type=2.0',
    "Report": "runs, shadow=()",
    "ClipSuggestion": "report",
    "clip_find": "trainer, model, train_dataloaders=None, *, datamodule=None, num_steps=200, policies=None",
    "ShadowResult": "name, policy, clip_rate, mean_factor=None, lowest_factor=None, threshold=None, optimizer=0, "
    'scope="global", kept=None, agreement=None, steps=0, course=None',
    "Finding": 'code, severity, sentence, advice="", evidence={}, optimizer=None, layers=(), steps=None',
}
MADE_FOR_USERS = {
    "Policy",
    "LearningRateRule",
    "Observation",
    "Measurement",
    "SegmentReport",
}  # to subclass, or handed out
ERRORS = {"NonFiniteGradientError", "SpikeError"}
PUBLIC = {name: attrgetter(name)(lightning_calib) for name in SIGNATURES}
KINDS = [name for name, found in PUBLIC.items() if isinstance(found, type) and issubclass(found, Callback)]
OWN = {"GradientMonitor": {"summary", "report"}}
SHARED = ["scope", "norm_type", "rules", "dry_run", "name"]


def forward(module: Any, batch: Any) -> None:
    """For `PreciseBatchNorm`."""


# Every argument another than by default.
USUAL = {"dry_run": True, "name": "mine", "rules": {"net.0.*": 0.5, "*.bias": None, "net.*": ZScore(3.0)}}
SET: dict[str, dict[str, Any]] = {
    "GradientMonitor": {"every_n_steps": 7, "layers": False, "histograms": True, "shadow": [MaxNorm(1.0), AGC(0.1)]},
    "GradientClip": {"policy": EMARelative(1.2), "scope": "layer", "norm_type": math.inf, **USUAL},
    "GradientNormalize": {"target": Percentile(90), "scope": "unit", "norm_type": 3.0, **USUAL},
    "GradientValueClip": {"max_value": 0.5},
    "GradientCentralize": {},
    "AutoClip": {"percentile": 20.0, "window": 30, **USUAL},
    "ZClip": {"z_max": 3.0, "decay": 0.9, "warmup_steps": 3, "robust": False, "warmup_max_norm": 2.0, **USUAL},
    "AGC": {"factor": 0.1, "min_weight_norm": 0.01, "exclude": ("net.0.*",), **USUAL},
    "AdaGC": {"factor": 1.1, "decay": 0.9, "warmup_steps": 4, "warmup_max_norm": 2.0, **USUAL},
    "NonFiniteGuard": {"action": "skip", "max_consecutive": 2, "max_total": 9, "save_batch_to": "bad", "trace": True},
    "LearningRateControl": {"rule": SpikeBackoff(MaxNorm(2.0), 0.7), "min_factor": 0.1, "max_factor": 2.0, "name": "a"},
    "PreciseBatchNorm": {"num_batches": 3, "forward": forward},
    "SpikeGuard": {
        "policy": Percentile(90),
        "min_ratio": 4.0,
        "ladder": ("rewind", "stop"),
        "max_skips": 3,
        "max_rewinds": 4,
        "snapshot_every_n_steps": 7,
        "max_snapshot_gb": math.inf,
        "lr_factor": 0.5,
        "lr_steps": 9,
    },
}
NEEDED: dict[str, dict[str, Any]] = {"GradientValueClip": {"max_value": 1.0}, "LearningRateControl": {"rule": Polyak()}}


def written(make: Any) -> str:
    """A signature as the table has it."""
    found, star = [], False
    for one in inspect.signature(make).parameters.values():
        if one.kind is Parameter.KEYWORD_ONLY and not star:
            found, star = [*found, "*"], True
        default = repr(one.default).replace("'", '"').replace("<factory>", "ZScore()")
        found.append(one.name if one.default is Parameter.empty else f"{one.name}={default}")
    text = ", ".join(found)
    text = text.replace(repr(ZScore(4.0)), "ZScore(4)")
    return text.replace(repr(Percentile(95)), "Percentile(95)").replace(repr(ZScore()), "ZScore()")


def test_no_public_name_lacks_its_signature():
    assert {*SIGNATURES, *MADE_FOR_USERS, *ERRORS} - {"functional.clip_grad_"} == {*lightning_calib.__all__} - {
        "functional"
    }


@pytest.mark.parametrize("name", SIGNATURES)
def test_a_public_signature_is_as_in_the_table(name):
    assert written(PUBLIC[name]) == SIGNATURES[name]


def test_every_public_callback_is_in_the_tables():
    public = {name for name in lightning_calib.__all__ if isinstance(getattr(lightning_calib, name), type)}
    assert {one for one in public if issubclass(getattr(lightning_calib, one), Callback)} == set(KINDS) == set(SET)


@pytest.mark.parametrize("name", KINDS)
def test_the_shared_arguments_come_last_and_in_one_order(name):
    found = list(inspect.signature(PUBLIC[name]).parameters)
    shared = [one for one in SHARED if one in found]
    assert found[len(found) - len(shared) :] == shared


@pytest.mark.parametrize("name", [name for name in KINDS if len(SET[name]) > 1])
def test_only_the_first_argument_may_go_without_its_name(name):
    first, second = list(SET[name].values())[:2]
    PUBLIC[name](first)
    with pytest.raises(TypeError, match="positional argument"):
        PUBLIC[name](first, second)


# What is shown


@pytest.mark.parametrize("name", KINDS)
def test_arguments_are_attributes(name):
    made = PUBLIC[name](**SET[name])
    for argument, given in SET[name].items():
        found = getattr(made, argument)
        if argument == "rules":
            assert found == {"net.0.*": MaxNorm(0.5), "*.bias": None, "net.*": ZScore(3.0)}
        else:
            assert found == given
            assert type(found) is type(given)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("some", ["default", "all"])
def test_repr_is_a_call_that_makes_the_same(name, some):
    made = PUBLIC[name](**(SET[name] if some == "all" else NEEDED.get(name, {})))
    shown = repr(made)
    assert shown.startswith(f"{name}(")
    for argument in SET[name] if some == "all" else ():
        assert f"{argument}=" in shown
    if "forward=<" not in shown:
        again = eval(shown, {**PUBLIC, "inf": math.inf})
        assert type(again) is type(made)
        assert repr(again) == shown


def test_repr_shows_a_methods_own_arguments_and_of_the_shared_ones_what_is_not_the_default():
    assert repr(ZClip(3)) == "ZClip(z_max=3, decay=0.97, warmup_steps=25, robust=True, warmup_max_norm=None)"
    assert repr(GradientClip(1.0)) == "GradientClip(policy=MaxNorm(max_norm=1.0))"
    assert repr(GradientClip(None, name="x")) == "GradientClip(policy=None, name='x')"
    unit = GradientNormalize(2.0, scope="unit", dry_run=True)
    assert repr(unit) == "GradientNormalize(target=MaxNorm(max_norm=2.0), scope='unit', dry_run=True)"
    assert repr(AGC(exclude=[])) == "AGC(factor=0.01, min_weight_norm=0.001, exclude=())"
    assert repr(GradientCentralize()) == "GradientCentralize()"


def test_repr_of_a_subclass_leaves_out_what_it_does_not_keep():
    class Mine(ZClip):
        def __init__(self, level: float, *more: int, **others: Any) -> None:
            super().__init__(z_max=level, **others)

    class Kept(Mine):
        def __init__(self, z_max: float) -> None:
            super().__init__(z_max)

    assert repr(Mine(3.0)).endswith(".Mine()") or repr(Mine(3.0)) == "Mine()"
    assert repr(Kept(3.0)) == "Kept(z_max=3.0)"


def test_an_argument_that_the_policy_uses_cannot_be_set_in_vain():
    clip = ZClip()
    with pytest.raises(AttributeError, match=r"`z_max` of ZClip must stay as it was made, got 3\.0\. Make another"):
        clip.z_max = 3.0
    with pytest.raises(AttributeError):
        GradientNormalize().target = 2.0
    assert clip.z_max == 2.5


def test_policies_and_rules_are_equal_and_hashed_by_their_arguments():
    made = (MaxNorm(1.0), Percentile(), ZScore(), EMARelative(), WeightRelative())
    made += (SpikeBackoff(), Polyak(), DistanceOverGradients(), InverseNorm())
    for one in made:
        again = copy.deepcopy(one)
        assert one == again
        assert hash(one) == hash(again)
        assert one in {again}
        assert repr(one) == repr(again)
    assert len({*made, ZScore(3.0)}) == len(made) + 1


@pytest.mark.parametrize("name", KINDS)
def test_only_what_a_user_can_use_is_public(name):
    made = PUBLIC[name](**NEEDED.get(name, {}))
    public = {one for one in dir(made) if not one.startswith("_")} - set(dir(Callback))
    extra = {"policy"} | set(SHARED) | {"exclude"} if hasattr(made, "policy") else set()
    arguments = set(inspect.signature(PUBLIC[name]).parameters)
    assert arguments <= public
    assert public - arguments - extra == OWN.get(name, set())


@pytest.mark.parametrize("name", KINDS)
def test_help_tells_what_each_hook_of_ours_does(name):
    for one, found in inspect.getmembers(PUBLIC[name]):
        if not one.startswith("_") and inspect.isfunction(found):
            text = inspect.getdoc(found) or ""
            assert text, one
            assert not found.__module__.startswith("lightning_calib") or len(text.splitlines()) == 1, one


# Through copies, hyper-parameters and checkpoints


@pytest.mark.parametrize("name", KINDS)
def test_a_copy_has_the_same_arguments(name):
    made = PUBLIC[name](**SET[name])
    assert repr(copy.deepcopy(made)) == repr(pickle.loads(pickle.dumps(made))) == repr(made)


class Configured(Tiny):
    """Brings a callback that it has been given."""

    def __init__(self, callback: Callback) -> None:
        super().__init__()
        self.save_hyperparameters()

    def configure_callbacks(self) -> list[Callback]:
        return [self.hparams.callback]


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.filterwarnings("ignore:.*checkpoint directory:UserWarning")
def test_save_hyperparameters_keeps_a_callback(name, tmp_path):
    given = {**SET[name], **({"forward": None} if name == "PreciseBatchNorm" else {})}
    module = Configured(PUBLIC[name](**given))
    saver = ModelCheckpoint(tmp_path, filename="a")
    make_trainer([saver], 2, enable_checkpointing=True, default_root_dir=tmp_path).fit(module)
    again = Configured.load_from_checkpoint(Path(tmp_path / "a.ckpt"), weights_only=False)
    assert repr(again.hparams.callback) == repr(PUBLIC[name](**given))
    fit(again, [], 2)


def test_the_start_line_says_with_what_is_clipped(caplog):
    with caplog.at_level("INFO", "lightning_calib"):
        fit(Tiny(), [ZClip(3.0, warmup_steps=2), GradientClip(1.0, dry_run=True, name="fixed"), GradientMonitor()], 1)
    text = "clipping: ZClip(z_max=3.0, decay=0.97, warmup_steps=2, robust=True, warmup_max_norm=None) then "
    assert text + "GradientClip(policy=MaxNorm(max_norm=1.0), dry_run=True, name='fixed');" in caplog.text


def test_a_long_rule_book_does_not_fill_the_start_line(caplog):
    rules: dict[str, Any] = {f"net.{i}.*": ZScore(3.0) for i in (0, 2, 4)}
    with caplog.at_level("INFO", "lightning_calib"):
        fit(Tiny(), [GradientClip(1.0, rules=rules, dry_run=True)], 1)
    (line,) = [one for one in caplog.messages if "clipping: " in one]
    shown = line.partition("clipping: ")[2].partition(";")[0]
    assert shown.startswith("GradientClip(policy=MaxNorm(max_norm=1.0), rules={")
    assert shown.endswith("dry_run=True).")
    assert len(shown) < 160


def test_normalise_takes_rules_a_norm_type_and_a_dry_run_as_clip_does():
    with pytest.raises(ValueError, match=r"`rules\['net.0.\*'\]` must be in \(0, inf\), got inf"):
        GradientNormalize(rules={"net.0.*": math.inf})
    with pytest.raises(TypeError, match=r"`rules\['a'\]` must be"):
        GradientNormalize(rules={"a": True})
    assert AutoClip(rules={"a": 1}).rules == AdaGC(rules={"a": 1}).rules == GradientNormalize(rules={"a": 1}).rules
    assert not GradientNormalize(dry_run=True)._needs.acts
    assert NonFiniteGuard().action == "warn"
    assert LearningRateControl(Polyak()).rule == Polyak()
    assert GradientValueClip(1).max_value == 1.0
    assert PreciseBatchNorm().num_batches == 200
