"""Where people stumble: a class for an instance, two callbacks of one class, another package's names of arguments."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.tiny_modules import Tiny, fit, make_trainer
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback

import lightning_calib
from lightning_calib import (
    AutoClip,
    GradientClip,
    GradientMonitor,
    GradientValueClip,
    LearningRateControl,
    NonFiniteGuard,
    Polyak,
    PreciseBatchNorm,
    ZClip,
)

PUBLIC = {name: getattr(lightning_calib, name) for name in lightning_calib.__all__}
KINDS = [name for name, found in PUBLIC.items() if isinstance(found, type) and issubclass(found, Callback)]
CALL = {"GradientValueClip": "GradientValueClip(max_value=...)", "LearningRateControl": "LearningRateControl(rule=...)"}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("place", ["alone", "last", "first"])
def test_a_class_in_place_of_an_instance_is_refused_before_the_first_batch(name, place):
    kind: Any = PUBLIC[name]
    others: list[Any] = [GradientMonitor()] if name != "GradientMonitor" else [ZClip()]
    callbacks = {"alone": [kind], "last": [*others, kind], "first": [kind, *others]}[place]
    module = Tiny()
    with pytest.raises(TypeError) as refused:
        fit(module, callbacks, 1)
    call = CALL.get(name, f"{name}()")
    wanted = f"`callbacks` must be a list of instances, got the class {name}. Use callbacks=[{call}]."
    assert str(refused.value) == wanted
    assert not {"log", "log_dict"} & vars(kind).keys(), "methods of the module, which the class would keep alive"
    assert module.trainer.global_step == 0


def test_two_classes_are_refused_by_the_first_of_them():
    with pytest.raises(TypeError, match=r"got the class ZClip\. Use callbacks=\[ZClip\(\)\]"):
        fit(Tiny(), [ZClip, GradientClip], 1)


def test_an_instance_is_set_up_and_told_of_exceptions_as_before():
    class Fails(Tiny):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            raise RuntimeError("on purpose")

    for one in (ZClip(), PreciseBatchNorm()):
        with pytest.raises(RuntimeError, match="on purpose"):
            fit(Fails(), [one], 1)


TWICE: list[tuple[list[Callback], str]] = [
    ([ZClip(), ZClip()], "two of them are ZClip. Give one of them another name, such as ZClip(..., name='zclip_2')."),
    (
        [AutoClip(name="a"), ZClip(), AutoClip(name="a")],
        "two of them are AutoClip(a). Give one of them another name, such as AutoClip(..., name='a_2').",
    ),
    ([GradientMonitor(), GradientMonitor()], "two of them are GradientMonitor. Keep one of them."),
    ([NonFiniteGuard(), NonFiniteGuard("skip")], "two of them are NonFiniteGuard. Keep one of them."),
    ([GradientValueClip(1.0), GradientValueClip(2.0)], "two of them are GradientValueClip. Keep one of them."),
    (
        [LearningRateControl(Polyak()), LearningRateControl(Polyak())],
        "two of them are LearningRateControl. Give one of them another name, such as "
        "LearningRateControl(..., name='learningratecontrol_2').",
    ),
]


@pytest.mark.parametrize(("callbacks", "told"), TWICE, ids=[told.split(".")[0] for _, told in TWICE])
def test_two_of_one_class_without_names_are_refused_with_the_way_out(callbacks, told):
    module = Tiny()
    with pytest.raises(MisconfigurationException) as refused:
        fit(module, callbacks, 1)
    assert str(refused.value) == f"`name` must tell callbacks apart: {told}"
    assert module.trainer.global_step == 0


def test_two_names_are_enough():
    trainer = make_trainer([GradientClip(1.0), GradientClip(2.0, name="second"), GradientMonitor()], 1)
    trainer.fit(Tiny())
    assert trainer.global_step == 1


OTHERS = {
    "z_thresh": (3.0, "Use z_max=3.0."),
    "alpha": (0.9, "Use decay=0.9."),
    "max_grad_norm": (
        1.0,
        "Use warmup_max_norm=1.0 for the warm-up; for a cap on every step add GradientClip(1.0).",
    ),
    "eps": (1e-6, "It has no counterpart."),
    "mode": ("percentile", 'It is "zscore" here; for a fixed distance above the mean there is no counterpart.'),
    "clip_option": ("mean", 'It is "adaptive_scaling" here, its default there.'),
    "clip_factor": (0.5, "It is 1 here, its default there."),
    "skip_update_on_spike": (True, "It is False here: a spike enters the statistics as far as it was not cut."),
}


@pytest.mark.parametrize("name", OTHERS)
def test_an_argument_of_the_package_zclip_is_refused_with_ours(name):
    value, remedy = OTHERS[name]
    with pytest.raises(TypeError) as refused:
        ZClip(warmup_steps=25, **{name: value})
    assert str(refused.value) == (
        f"`{name}` must be left out of ZClip: it is an argument of the package zclip, got {name}={value!r}. {remedy}"
    )


def test_a_misspelt_argument_is_pythons_own_error():
    with pytest.raises(TypeError, match="unexpected keyword argument 'polcy'"):
        GradientClip(polcy=1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'zmax'"):
        ZClip(zmax=1.0)
