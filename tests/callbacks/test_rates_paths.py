"""The pure rates are back on every path out of a step."""

from __future__ import annotations

import pytest
import torch
from helpers.rate_probes import Always, Halves, Scheduled, Tells, Told, Watch, pure, run
from helpers.tiny_modules import make_trainer, scaled, weights
from lightning.pytorch import Callback

from lightning_calib import GradientMonitor, LearningRateControl, NonFiniteGuard

pytestmark = [
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:`training_step` returned `None`"),
]
PURE = [0.05 * 0.9**i for i in range(10)]


class Raises(Callback):
    """At some place in step 2."""

    def __init__(self, place, error):
        self.place, self.error, self.inside = place, error, None

    def _maybe(self, trainer, place):
        if place == self.place and trainer.global_step == 2:
            self.inside = trainer.optimizers[0].param_groups[0]["lr"]
            raise self.error

    def on_before_backward(self, trainer, *args):
        self._maybe(trainer, "before the backward pass")

    def on_after_backward(self, trainer, *args):
        self._maybe(trainer, "after the backward pass")

    def on_before_optimizer_step(self, trainer, *args):
        self._maybe(trainer, "while scaled")


PLACES = ["before the backward pass", "after the backward pass", "while scaled"]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=["error", "interrupt"])
@pytest.mark.parametrize("plugins", [None, 2.0**9])
def test_restored_after_an_exception(place, error, plugins):
    raises = Raises(place, error)
    trainer = make_trainer(
        [LearningRateControl(Always((0.5,))), raises], plugins=scaled(plugins) if plugins else [], limit_train_batches=3
    )
    with pytest.raises((RuntimeError, SystemExit, KeyboardInterrupt)):
        trainer.fit(Scheduled())
    optimizer = trainer.optimizers[0]
    rate = optimizer.param_groups[0]["lr"]
    assert rate == pytest.approx(PURE[2], rel=1e-12)
    scaled_now = place == "while scaled" and not plugins  # with a GradScaler the factor still waits
    assert raises.inside == (rate * 0.5 if scaled_now else rate)
    hooks = (optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks)
    assert not any(hooks)
    assert not optimizer._optimizer_state_dict_post_hooks


@pytest.mark.parametrize("plugins", [None, 2.0**9])
def test_a_checkpoint_saved_within_the_step(plugins):
    class Saves(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            trainer.save_checkpoint(f"{trainer.global_step}.ckpt")
            self.inside = optimizer.param_groups[0]["lr"]

    saves, kwargs = Saves(), {"plugins": scaled(plugins)} if plugins else {}
    found = run(Scheduled(), [LearningRateControl(Always((0.5,))), saves], 4, **kwargs)
    for step in range(4):
        checkpoint = torch.load(f"{step}.ckpt", weights_only=True)
        assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == pure(found)[step]
        assert checkpoint["lr_schedulers"][0]["_last_lr"] == [pure(found)[step]]
    assert saves.inside == pure(found)[3] * (1 if plugins else 0.5)


@pytest.mark.parametrize("fused", [False, True])
def test_factors_of_a_skipped_step_lapse(fused):
    """The rule halves at steps 3 to 5; step 4 overflows: neither step 5 nor 6 may take a quarter."""
    gains, kwargs = {4: torch.inf}, {"plugins": scaled(2.0**9)}

    def once(callbacks):
        def sgd(params):
            return Tells(params, fused=fused)

        return run(Scheduled(optimizer=sgd, gains=gains), callbacks, 10, **kwargs)

    plain, found = once([]), once([LearningRateControl(Halves())])
    assert found.seen == plain.seen
    steps = [i for i in range(10) if fused or i != 4]
    assert found.used == [[pure(plain)[i] * (0.5 if 3 <= i <= 5 else 1)] for i in steps]


@pytest.mark.parametrize("plugins", [None, 2.0**9])
@pytest.mark.parametrize("guard", ["before", "after"])
def test_a_step_dropped_by_the_guard(guard, plugins):
    told = Told((0.5,))
    controls = [LearningRateControl(told)]
    callbacks = [NonFiniteGuard("skip"), *controls] if guard == "before" else [*controls, NonFiniteGuard("skip")]
    kwargs = {"plugins": scaled(plugins)} if plugins else {}
    found = run(Scheduled(gains={2: torch.nan}), callbacks, 6, **kwargs)
    plain = run(Scheduled(gains={2: torch.nan}), [NonFiniteGuard("skip")], 6, **kwargs)
    assert found.seen == plain.seen
    assert all(weight.isfinite().all() for weight in weights(found.module))
    assert [rate for (rate,) in found.used if rate] == [
        rate * (1 if i == 2 and not plugins else 0.5) for i, (rate,) in enumerate(plain.used)
    ]
    assert len(told.heard) == 5
    assert all(one.observed.all() and one.loss.isfinite() for one in told.heard), "the lost loss is not in the next"


def test_steps_without_a_gradient():
    """A `training_step` that returns None: torch's step runs, at the pure rate, and the rule is not asked."""
    told = Told((0.5,))
    found = run(Scheduled(gains={2: None}), [LearningRateControl(told), GradientMonitor()], 5)
    assert found.seen == run(Scheduled(gains={2: None}), [], 5).seen
    assert [round(u / p, 6) for (u,), p in zip(found.used, pure(found), strict=True)] == [0.5, 0.5, 1.0, 0.5, 0.5]
    assert len(told.heard) == 4


def test_nothing_stays_behind_after_a_fit():
    trainer = make_trainer([LearningRateControl(Always((0.5,))), Watch()], 4)
    trainer.fit(Scheduled())
    optimizer = trainer.optimizers[0]
    assert not any((optimizer._optimizer_step_pre_hooks, optimizer._optimizer_step_post_hooks))
    assert not optimizer._optimizer_state_dict_post_hooks
    assert optimizer.param_groups[0]["lr"] == pytest.approx(PURE[4], rel=1e-12)
