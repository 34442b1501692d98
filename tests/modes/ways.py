"""What may happen to a callback before the fit that is judged."""

from __future__ import annotations

import copy
import pickle
from functools import partial
from typing import Any

import pytest
import pytorch_lightning
import torch
from helpers.tiny_modules import Rows, make_trainer
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.tuner import Tuner
from modes.models import BATCHES, EPOCHS, Body
from modes.watching import First, Last


def ours(trainer: Trainer) -> list[Callback]:
    return [one for one in trainer.callbacks if not isinstance(one, (First, Last))]


def fit_another(trainer: Trainer, module: LightningModule, **kwargs: Any) -> tuple[Trainer, LightningModule]:
    """A fit of the same callbacks with a copy of the module; nobody watches."""
    before = make_trainer(ours(trainer), -1, max_epochs=EPOCHS, **kwargs)
    twin = copy.deepcopy(module)
    before.fit(twin)
    return before, twin


def twice(trainer: Trainer, module: LightningModule) -> Trainer:
    fit_another(trainer, module)
    trainer.fit(module)
    return trainer


def after_a_test(trainer: Trainer, module: LightningModule) -> Trainer:
    """`Trainer.test(ckpt_path=...)` hands the callbacks the checkpoint's state."""
    before, twin = fit_another(trainer, module)
    before.save_checkpoint("before.ckpt")
    make_trainer(ours(trainer)).test(twin, ckpt_path="before.ckpt", verbose=False)
    trainer.fit(module)
    return trainer


def resumed(trainer: Trainer, module: LightningModule) -> Trainer:
    """Stopped inside the second epoch; copies of the callbacks start it, the watching ones are the same."""
    watching = [one if isinstance(one, (First, Last)) else copy.deepcopy(one) for one in trainer.callbacks]
    steps = BATCHES + 3
    before = make_trainer(
        [*watching, Saves(steps)], steps, max_epochs=EPOCHS, logger=trainer.logger or False, log_every_n_steps=1
    )
    before.fit(module)
    trainer.fit(module, ckpt_path="middle.ckpt")
    assert trainer.global_step == EPOCHS * BATCHES
    return trainer


class Saves(Callback):
    """Inside the epoch: when a Trainer has stopped, the epoch counts as over."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.steps:
            trainer.save_checkpoint("middle.ckpt")


class Breaks(Callback):
    def __init__(self, error: type[BaseException]) -> None:
        self.error = error

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 3:
            raise self.error


def broken(error: type[BaseException], trainer: Trainer, module: LightningModule) -> Trainer:
    """The first fit breaks off; the callbacks are used again."""
    before = make_trainer([*ours(trainer), Breaks(error)], -1, max_epochs=EPOCHS, logger=Rows())
    with pytest.raises((RuntimeError, KeyboardInterrupt, SystemExit)):
        before.fit(copy.deepcopy(module))
    pickle.dumps(ours(trainer))
    trainer.fit(module)
    return trainer


def copied(copier: Any, trainer: Trainer, module: LightningModule) -> Trainer:
    """What trains is a copy of a callback that has been through a fit."""
    fit_another(trainer, module)
    trainer.callbacks = [one if isinstance(one, (First, Last)) else copier(one) for one in trainer.callbacks]
    trainer.fit(module)
    return trainer


def through_pickle(value: Any) -> Any:
    return pickle.loads(pickle.dumps(value))


def searched(kind: str, trainer: Trainer, module: LightningModule) -> Trainer:
    """The Tuner's own fits leave no trace."""
    module.poison, poison = (), module.poison  # a range test ends at the first loss that is not finite
    if kind == "lr_find":
        Tuner(trainer).lr_find(module, num_training=6, update_attr=False)
    else:
        Tuner(trainer).scale_batch_size(module, max_trials=1, steps_per_trial=2)
        module.batch_size = 8
    module.poison = poison
    trainer.fit(module)
    return trainer


def compiled(trainer: Trainer, module: LightningModule) -> Trainer:
    trainer.fit(torch.compile(module, backend="eager"))
    return trainer


class Foreign(Body, pytorch_lightning.LightningModule):
    """The same module on the base class of the other package."""


def in_the_other_package(trainer: Trainer, module: Any) -> Any:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    other = pytorch_lightning.Trainer(
        callbacks=list(trainer.callbacks), max_epochs=EPOCHS, accelerator="cpu", devices=1,
        logger=trainer.logger or False, log_every_n_steps=1, **quiet,
    )  # fmt: skip
    other.fit(module)
    return other


by_exception = partial(broken, RuntimeError)
by_interrupt = partial(broken, KeyboardInterrupt)
