"""What kind of run this is: who clips, who may change gradients between ours, and what the start line says of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from helpers.bare_runs import SGD, BareFit, Clip, Foreign, Watches
from lightning.pytorch import Callback, LightningModule

from lightning_calib.fit.start_line import start_line, warn_of_two_clippers
from lightning_calib.fit.trainer_facts import foreign_between, grad_scaler, overrides, trainer_clip, window_scale
from lightning_calib.steps.optimizer_facts import TrainerClip


class Clips(LightningModule):
    def configure_gradient_clipping(self, *args, **kwargs):
        pass


@pytest.mark.parametrize(
    ("value", "algorithm", "module", "wanted"),
    [
        (None, None, LightningModule, (None, 0.0)),
        (0.0, "norm", LightningModule, (None, 0.0)),
        (0.5, None, LightningModule, ("norm", 0.5)),
        (0.5, "norm", LightningModule, ("norm", 0.5)),
        (0.5, "value", LightningModule, ("value", 0.5)),
        (0.5, SimpleNamespace(value="value"), LightningModule, ("value", 0.5)),
        (0.5, "norm", Clips, ("module", 0.5)),
        (None, None, Clips, ("module", 0.0)),
    ],
)
def test_who_clips_after_ours(value, algorithm, module, wanted):
    trainer = SimpleNamespace(gradient_clip_val=value, gradient_clip_algorithm=algorithm)
    assert trainer_clip(trainer, module()) == TrainerClip(*wanted)


@pytest.mark.parametrize("enabled", [True, False])
def test_only_a_scaler_that_is_enabled_counts(enabled):
    scaler = torch.amp.GradScaler("cpu", enabled=enabled)
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler))
    assert grad_scaler(trainer) is (scaler if enabled else None)
    assert grad_scaler(SimpleNamespace(precision_plugin=object())) is None


class Own(Callback):
    def on_before_optimizer_step(self, *args):
        pass


class Answers:
    def __getattr__(self, name):
        return lambda *args: None


def test_a_hook_counts_where_somebody_has_code_of_his_own_for_it():
    hook, patched = "on_before_optimizer_step", Callback()
    patched.on_before_optimizer_step = lambda *args: None
    assert [overrides(hook, one) for one in (Own(), Callback(), Answers(), object(), patched)] == [
        True,
        False,
        True,
        False,
        True,
    ]
    assert not overrides(hook, Own(), packages=(__name__.split(".")[0],))


def test_where_foreign_code_stands_between_ours():
    a, b, c = Watches(), Watches(), Watches()
    other, plain = Foreign(1.0), Callback()
    for callbacks, behind, last in [
        ([a, b, c], set(), False),
        ([other, a, b, c], set(), False),
        ([a, other, b, c], {b}, False),
        ([a, plain, b, c], set(), False),
        ([a, other, b, other, c, other], {b, c}, True),
        ([a, b, c, other, plain], set(), True),
    ]:
        assert foreign_between(callbacks, [a, b, c]) == (behind, last)


@pytest.mark.parametrize(("passes", "wanted"), [(0, 1.0), (1, 4.0), (2, 2.0), (4, 1.0), (8, 1.0)])
def test_a_short_window_is_scaled_up(passes, wanted):
    assert window_scale(SimpleNamespace(accumulate_grad_batches=4), passes) == wanted


# The start line


def line(fit, participants, notes=()):
    trainer, rest = fit.trainer, {"precision": "32-true", "lr_scheduler_configs": []}
    for key, value in rest.items():
        vars(trainer).setdefault(key, value)
    return start_line(trainer, fit.session.facts, participants, notes)


def test_the_start_line_of_a_plain_run():
    callbacks = [Watches()]
    assert line(BareFit(callbacks), callbacks) == (
        "precision 32-true; accumulate_grad_batches 1; optimizer SGD; no scheduler; clipping: nobody."
    )


def test_the_start_line_names_everything_that_it_is_about():
    callbacks = [
        Clip(1.0, norm_types=(2.0, 1.0)),
        Foreign(1.0),
        Clip(2.0, acts=False, key="dry"),
        Watches(rereads="gradients are read again, too"),
    ]
    fit = BareFit(callbacks, [SGD, torch.optim.AdamW], manual=True, gradient_clip_val=1.0)
    scheduler = torch.optim.lr_scheduler.ConstantLR(fit.trainer.optimizers[0])
    fit.trainer.lr_scheduler_configs = [SimpleNamespace(scheduler=scheduler, interval="epoch")]
    assert line(fit, fit.session.participants, ["Clip: a note"]) == (
        "precision 32-true; accumulate_grad_batches 1; optimizer SGD + AdamW; ConstantLR per epoch; "
        "clipping: Clip then Clip then Trainer(gradient_clip_val=1); "
        "Clip reads the gradients again behind a callback that may change them; "
        "gradients are read once more for norm_type 1; gradients are read again, too; Clip: a note."
    )
    fit.trainer.optimizers = []
    assert "; no optimizer; " in line(fit, fit.session.participants)


def test_two_things_that_clip_are_told():
    callbacks = [Clip(1.0), Clip(1.0, acts=False, key="dry")]
    fit = BareFit(callbacks, gradient_clip_val=0.5)
    with pytest.warns(UserWarning, match=r"first Clip, and last Trainer\(gradient_clip_val=0.5\)"):
        warn_of_two_clippers(fit.session.facts, callbacks)
    warn_of_two_clippers(fit.session.facts, callbacks[1:])
    warn_of_two_clippers(BareFit(callbacks).session.facts, callbacks)
