"""Short fits of many variants in turn, in one process, by process time."""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger

from benchmarks.models import Given
from benchmarks.variants import Variant

FIRST = 3  # the steps before it lay plans and begin histories


class Clock(Callback):
    """Process time from the beginning of one step to that of another."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last = first, last
        self.begin = self.end = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx == self.last:
            self.end = process_time()
        elif batch_idx == self.first:
            self.begin = process_time()

    @property
    def seconds(self) -> float:
        return (self.end - self.begin) / (self.last - self.first)


class Look(Callback):
    """The steps on which the gradient is not what it was, from step `FIRST` on."""

    changed = 0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        module: Any = pl_module
        expected = torch._foreach_mul(module.source, module.level**batch_idx)
        pairs = zip(module.flat, expected, strict=True)
        if batch_idx >= FIRST:
            self.changed += any(p.grad is None or not torch.equal(p.grad, one) for p, one in pairs)


class Spent(NamedTuple):
    """Seconds per step beyond a plain fit: the median over rounds and the middle half of them."""

    extra: float
    low: float
    high: float


def trainer(variant: Variant, steps: int, folder: str, every: int, first: Callback) -> Trainer:
    """As quiet as a Trainer can be; `first` stands before the variant's callbacks."""
    return Trainer(
        callbacks=[first, *variant.make()],
        max_steps=steps,
        max_epochs=-1,
        logger=TensorBoardLogger(folder) if variant.tab else False,
        log_every_n_steps=every,
        accelerator="cpu",
        devices=1,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **variant.trainer,
    )


def fit(model: Given, variant: Variant, steps: int, every: int) -> float:
    """Process time of one step; the fit's beginning and end are not counted."""
    clock = Clock(FIRST, steps)
    with _ready(model, variant, steps + 1) as folder:
        trainer(variant, steps + 1, folder, every, clock).fit(model)
    return clock.seconds


def fired(model: Given, variant: Variant, steps: int) -> float:
    """Share of the steps on which the variant changed the gradient."""
    look = Look()
    with _ready(model, variant, steps) as folder:
        trainer(variant, steps, folder, 10**9, look).fit(model)
    return look.changed / (steps - FIRST)


def compare(
    model: Given, variants: Sequence[Variant], steps: int, seconds: float, every: int = 10**9, rounds: int = 1000
) -> tuple[int, dict[str, Spent], float]:
    """Rounds of one fit of each variant until `seconds` are over, at least three, unless `rounds` says less.

    The first variant is the plain one. It and the second, which the others are divided by, run three times a round.

    Returns:
        The number of rounds, what each variant takes beyond the plain one, and the seconds of a plain step.
    """
    plain, base = variants[:2]
    fit(model, base, FIRST + 1, every)  # what is loaded and compiled at first use
    third = len(variants) // 3
    order = [plain, base, *variants[2:third], plain, base, *variants[max(2, third) : 2 * third]]
    order += [plain, base, *variants[max(2, 2 * third) :]]
    extras: dict[str, list[float]] = {one.title: [] for one in variants[1:]}
    plains: list[float] = []
    start, done = perf_counter(), 0
    while done < rounds and (done < 3 or (perf_counter() - start) * (done + 1) / done < seconds):
        times: dict[str, list[float]] = {}
        for variant in order[done % len(order) :] + order[: done % len(order)]:
            times.setdefault(variant.title, []).append(fit(model, variant, steps, every))
        plains.append(median(times[plain.title]))
        for title, found in extras.items():
            found.append(median(times[title]) - plains[-1])
        done += 1
    return done, {title: _spent(found) for title, found in extras.items()}, median(plains)


def _spent(found: list[float]) -> Spent:
    if len(found) == 1:
        return Spent(found[0], found[0], found[0])
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return Spent(middle, low, high)


@contextmanager
def _ready(model: Given, variant: Variant, steps: int) -> Iterator[str]:
    model.level, model.steps = variant.level, steps
    gc.collect()
    with TemporaryDirectory() as folder:
        yield folder
    for tensor in model.flat:
        tensor.grad = None
