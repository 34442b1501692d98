"""Every scheduler of torch sees, and shows, exactly what it would without a control."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from helpers.rate_probes import Always, Halves, Scheduled, Watch, pure, run
from helpers.tiny_modules import Rows, different, make_trainer, scaled
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LearningRateMonitor, OnExceptionCheckpoint
from torch.optim import lr_scheduler as schedulers
from torch.optim.swa_utils import SWALR

from lightning_calib import LearningRateControl

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch"),
    pytest.mark.filterwarnings("ignore:.*exists and is not empty.*"),
    pytest.mark.filterwarnings("ignore:A `OneCycleLR` scheduler is using"),
    pytest.mark.filterwarnings("ignore:.*no last checkpoint available"),
    pytest.mark.filterwarnings("ignore:.*was called without a model"),
    # torch counts the steps of the optimizer, of which a GradScaler skips some
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]


def _sequential(optimizer):
    warm = schedulers.LinearLR(optimizer, 0.2, total_iters=3)
    return schedulers.SequentialLR(optimizer, [warm, schedulers.CosineAnnealingLR(optimizer, 9)], [4])


def _chained(optimizer):
    warm = schedulers.ConstantLR(optimizer, 0.3, total_iters=4)
    return schedulers.ChainedScheduler([warm, schedulers.ExponentialLR(optimizer, 0.9)], optimizer)


SCHEDULERS = {
    "StepLR": partial(schedulers.StepLR, step_size=2, gamma=0.7),
    "MultiStepLR": partial(schedulers.MultiStepLR, milestones=[1, 4, 7], gamma=0.7),
    "ConstantLR": partial(schedulers.ConstantLR, factor=0.3, total_iters=4),
    "LinearLR": partial(schedulers.LinearLR, start_factor=0.2, total_iters=7),
    "ExponentialLR": partial(schedulers.ExponentialLR, gamma=0.9),
    "PolynomialLR": partial(schedulers.PolynomialLR, total_iters=12, power=2.0),
    "CosineAnnealingLR": partial(schedulers.CosineAnnealingLR, T_max=9),
    "CosineAnnealingWarmRestarts": partial(schedulers.CosineAnnealingWarmRestarts, T_0=5),
    "OneCycleLR": partial(schedulers.OneCycleLR, max_lr=0.1, total_steps=20),
    "CyclicLR": partial(schedulers.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=4),
    "LambdaLR": partial(schedulers.LambdaLR, lr_lambda=lambda step: 1 / (1 + step)),
    "MultiplicativeLR": partial(schedulers.MultiplicativeLR, lr_lambda=lambda step: 0.9 + 0.01 * step),
    "SequentialLR": _sequential,
    "ChainedScheduler": _chained,
    "ReduceLROnPlateau": partial(schedulers.ReduceLROnPlateau, factor=0.6, patience=0),
    "SWALR": partial(SWALR, swa_lr=0.01, anneal_epochs=5),
}
BREAKS, END = 5, 13  # the exception comes while the rate is halved
SKIPPED = 4


class SavesEarly(Callback):
    """Saves in the middle of the exception, before the control has heard of it."""

    def __init__(self, path):
        self.path = path

    def on_exception(self, trainer, pl_module, exception):
        trainer.save_checkpoint(self.path)


def _broken(where, scheduler, config, controls, plugins):
    """What was seen until an exception inside the step, and after resuming from it."""
    module = Scheduled(scheduler, config, breaks=BREAKS, gains={SKIPPED: torch.inf} if plugins else None)
    watch, monitor, save = Watch(), LearningRateMonitor("step"), OnExceptionCheckpoint(where, "late")
    callbacks = [SavesEarly(f"{where}/early.ckpt"), *controls(), watch, monitor, save]
    trainer = make_trainer(
        callbacks, END, plugins=plugins(), limit_train_batches=3, logger=Rows(), enable_checkpointing=True
    )
    with pytest.raises(RuntimeError, match="broken in the step"):
        trainer.fit(module)
    saved = [torch.load(f"{where}/{name}.ckpt", weights_only=True) for name in ("early", "late")]
    rates = [[one["optimizer_states"][0]["param_groups"][0]["lr"], one["lr_schedulers"]] for one in saved]
    rest = run(Scheduled(scheduler, config), controls(), END, ckpt_path=f"{where}/late.ckpt", plugins=plugins())
    return [watch.seen, monitor.lrs, rates, rest.seen, rest.monitored], trainer.optimizers[0].used, rest


def _control():
    return [LearningRateControl(Halves())]


def _halved(plain):
    return [[rate * (0.5 if 3 <= i <= 5 else 1) for rate in rates] for i, rates in enumerate(plain)]


def _nothing():
    return []


def _scaler():
    return scaled(2.0**9)


@pytest.mark.parametrize("plugins", [_nothing, _scaler])
@pytest.mark.parametrize("interval", ["step", "epoch"])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_pure_trajectory_is_that_of_the_plain_run(name, interval, plugins):
    config = {"interval": interval, "monitor": "plateau"}
    wanted, plain_used, plain = _broken("plain", SCHEDULERS[name], config, list, plugins)
    seen, used, rest = _broken("ours", SCHEDULERS[name], config, _control, plugins)
    assert seen == wanted
    assert used == _halved(plain_used)
    assert len(used) == (BREAKS - 1 if plugins is _scaler else BREAKS), "one step was skipped, and one broken off"
    # the broken step had been judged; the run that takes it again counts on from there
    assert rest.used == plain.used
    assert len({rate for rates in plain_used + plain.used for rate in rates}) > 1, (
        "a schedule that does not move shows nothing"
    )


@pytest.mark.parametrize("name", SCHEDULERS)
def test_only_the_step_itself_uses_half_the_rate(name):
    plain, found = (run(Scheduled(SCHEDULERS[name], {"monitor": "plateau"}), one) for one in ([], _control()))
    assert found.seen == plain.seen
    assert found.monitored == plain.monitored
    wanted = _halved(plain.used)
    assert found.used == wanted
    assert [[rate] for rate in found.rows.values("calib/lr_effective")] == wanted
    assert found.rows.values("calib/lr") == pure(plain) == found.monitored
    assert found.rows.steps == list(range(10))


@pytest.mark.parametrize("factor", [0.3, 1 / 3, 0.0])
@pytest.mark.parametrize("name", ["ExponentialLR", "CosineAnnealingLR"])
def test_put_back_by_value(name, factor):
    """Dividing by the factor again would lose the last bit, or everything."""
    plain, found = (run(Scheduled(SCHEDULERS[name]), one) for one in ([], [LearningRateControl(Always((factor,)))]))
    assert found.seen == plain.seen
    assert found.monitored == plain.monitored


def test_a_persistent_change_would_show():
    class Persists(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if 3 <= trainer.global_step <= 5:
                optimizer.param_groups[0]["lr"] *= 0.5

    with different("the rate was changed for good"):
        assert run(Scheduled(), [Persists()]).seen == run(Scheduled()).seen


def test_without_a_scheduler():
    class Unscheduled(Scheduled):
        def configure_optimizers(self):
            return self.optimizer(self.parameters())

    trainer = make_trainer([LearningRateControl(Always((0.25,)))], 6)
    trainer.fit(Unscheduled())
    assert trainer.optimizers[0].used == [[0.05 * 0.25]] * 6
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.05
