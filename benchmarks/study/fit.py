"""One run: train in a Trainer, as users do, and measure."""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks.study.arms import OPTIMIZERS, OURS, WAYS
from benchmarks.study.plan import Arm, Cell, Experiment
from benchmarks.study.tasks import SOME, Measures, Task, task_of
from lightning_calib import GradientMonitor

POINTS = 10  # measurements of validation in a run
LEARNT = 0.95  # of the training loss before the first step: a run that ends above it is lost


class Outcome(NamedTuple):
    """What one run gave; the test figures and the cut are empty unless they were asked for."""

    validation: Measures
    train: Measures
    test: Measures
    curve: list[float]  # of the experiment's measure on validation
    lost: bool
    mean_factor: float
    seconds: float
    checksum: str


class Learner(LightningModule):
    """Trains on batches drawn by the seed, the same for every arm, while the rate falls linearly to zero."""

    def __init__(self, experiment: Experiment, arm: Arm, cell: Cell, seed: int, task: Task) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.experiment, self.arm, self.cell, self.task = experiment, arm, cell, task
        self.net = task.net()
        random = torch.Generator().manual_seed(10_000 + seed)
        size = (experiment.steps, experiment.batch)
        self.order = torch.randint(len(task.data.train[0]), size, generator=random)
        self.bad = torch.rand(experiment.steps, generator=random) < dict(experiment.options).get("bad", 0.0)
        self.curve: list[float] = []
        self.broken = False

    def train_dataloader(self) -> Any:
        return DataLoader(range(self.experiment.steps), batch_size=None)  # type: ignore[arg-type]

    def training_step(self, step: Any, batch_idx: int) -> Tensor:
        chosen = self.order[batch_idx]
        x, y = (part[chosen] for part in self.task.data.train)
        if self.bad[batch_idx]:  # in turn inputs that are 30 times as large, and labels of one class
            x, y = (30 * x, y) if batch_idx % 2 else (x, torch.zeros_like(y))
        loss = self.task.loss(self.net, x, y, self.arm.weighted)
        self.broken = not math.isfinite(float(loss))
        return loss

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self.broken:
            self.trainer.should_stop = True
        elif (batch_idx + 1) % (self.experiment.steps // POINTS) == 0:
            self.curve.append(self.measure(self.task.data.validation)[self.experiment.measure])

    def measure(self, part: Any) -> Measures:
        self.net.eval()
        with torch.no_grad():
            found = self.task.measure(self.net, part)
        self.net.train()
        return found

    def configure_optimizers(self) -> Any:
        one = self.experiment
        optimizer = OPTIMIZERS[self.arm.optimizer or one.optimizer](self.parameters(), self.cell.rate)

        def share(step: int) -> float:
            return min((step + 1) / (one.warmup + 1), (one.steps - step) / (one.steps - one.warmup))

        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@contextmanager
def silence() -> Iterator[None]:
    """Errors only, of Lightning and of ours; the levels come back."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning_calib")]
    levels = [one.level for one in loggers]
    for one in loggers:
        one.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for one, level in zip(loggers, levels, strict=True):
            one.setLevel(level)


def fit(experiment: Experiment, arm: Arm, cell: Cell, seed: int, folder: Path | None, *, test: bool) -> Outcome:
    """Trains once; with `test` the test set is measured, too, and a monitor states the mean cut."""
    began = time.process_time()
    task = task_of(experiment.task, dict(experiment.options), folder if experiment.real else None)
    learner = Learner(experiment, arm, cell, seed, task)
    some = tuple(one[torch.linspace(0, len(one) - 1, min(SOME, len(one))).long()] for one in task.data.train)
    before = learner.measure(some)["loss"]
    monitor = GradientMonitor() if test and arm.way in OURS else None  # an observer: the run keeps its bits
    callbacks: list[Callback] = WAYS[arm.way](cell.threshold) + ([monitor] if monitor else [])
    with silence():
        Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            callbacks=callbacks,
            gradient_clip_val=cell.threshold if arm.way == "clip" else None,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
        ).fit(learner)
    train, validation = learner.measure(some), learner.measure(task.data.validation)
    learner.broken = learner.broken or not math.isfinite(train["loss"])
    return Outcome(
        validation,
        train,
        learner.measure(task.data.test) if test else {},
        learner.curve,
        learner.broken or train["loss"] > LEARNT * before,
        cut_of(monitor) if monitor else 1.0,
        time.process_time() - began,
        task.data.checksum,
    )


def cut_of(monitor: GradientMonitor) -> float:
    """The mean share of the norm that was left, as the report states it."""
    stated = monitor.report().as_dict()["optimizers"][0]["mean_factor"]
    return 1.0 if stated is None else float(stated)
