"""Faults of single steps and of the data: not finite, skipped, spikes, shifts, batch normalisation, a summed loss."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch.plugins import MixedPrecision
from report.planted.data import digits, images, rows_of_images, surface, text
from report.planted.fit import Case, Learner, adamw, fit, sgd
from report.planted.layers import GAN
from report.planted.models import Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn

from lightning_calib import NonFiniteGuard

MEAN_100, DEVIATION_5 = 100.0, 5.0


class UnitLength(nn.Module):
    """Divides features by their length, a root of a sum of squares, whose gradient at 0 is not a number."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = mlp(64, 64, bias=False), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        features = self.body(x).tanh()
        return self.head(8 * features / (features.square().sum(1, keepdim=True).sqrt() + 1e-6))


def blank(at: int) -> Any:
    """One image of the batch of this step is empty."""

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (torch.cat([torch.zeros_like(x[:1]), x[1:]]), y) if step == at else (x, y)

    return change


def log_of_softmax(scores: Tensor, y: Tensor) -> Tensor:
    """The logarithm of a probability that underflows to 0 is -inf, and its gradient is not a number."""
    return -scores.softmax(1).gather(1, y[:, None]).log().mean()


def every_tenth(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    return (x * float("nan"), y) if step % 10 == 7 else (x, y)


def loud(at: int, gain: float = 30.0, shuffle: bool = True) -> Any:
    """The batch of this step was not normalised, and has the labels of others."""

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x * gain, y.roll(1, 0) if shuffle else y) if step == at else (x, y)

    return change


def targets_from(start: int, gain: float) -> Any:
    """From this step on the targets are in another unit."""

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x, y * gain) if step >= start else (x, y)

    return change


def number(found: Tensor, digit: Tensor) -> Tensor:
    """Regression on the digit, of mean 0 and deviation about 1."""
    return nn.functional.mse_loss(found.squeeze(1), digit)


def standardised() -> tuple[Tensor, Tensor]:
    x, y = rows_of_images()
    return x, (y.float() - 4.5) / 2.9


def far_from_zero() -> tuple[Tensor, Tensor]:
    """Images as they might come from a sensor: mean 100, deviation 5."""
    x, y = images()
    return MEAN_100 + DEVIATION_5 * x, y


def summed(scores: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(scores, y, reduction="sum")


CASES = [
    Case(
        "root-of-zero-mlp-adamw",
        lambda recorder: fit(recorder, Learner(UnitLength(), adamw(1e-3), change=blank(160)), digits()),
        codes=("nonfinite",),
        part=True,
    ),
    Case(
        "log-of-zero-cnn-sgd",
        lambda recorder: fit(recorder, Learner(cnn(norm=False), sgd(0.02), log_of_softmax, loud(170, 300.0)), images()),
        50,
        codes=("nonfinite",),
    ),
    Case(
        "log-of-zero-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Masked(), adamw(1e-3), log_of_softmax), text(), 200, 32),
        codes=("nonfinite",),
    ),
    Case(
        "log-of-zero-gan-adamw",
        lambda recorder: fit(recorder, GAN([adamw(1e-3), adamw(0.1)], log_p=True), digits(), 400),
        50,
        codes=("nonfinite", "diverged", "rate-too-high"),
        why="at a rate of 0.1 the scores grow until their sigmoid is 0 or 1, and its logarithm is not finite",
    ),
    Case(
        "nan-batches-skipped-mlp-adamw",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 64, 64, 10), adamw(1e-3), change=every_tenth),
            digits(),
            callbacks=[NonFiniteGuard("skip")],
        ),
        codes=("nonfinite", "skipped-steps"),
        why="one tenth of the steps is not finite and is skipped for it: one fact, two names",
    ),
    Case(
        "scaler-skips-mlp-sgd",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 64, 64, 10), sgd(0.05)),
            digits(),
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 2.0**24, growth_interval=2))],
        ),
        codes=("skipped-steps",),
    ),
    Case(
        "bad-batch-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(0.01), change=loud(200)), digits()),
        codes=("spike",),
        part=True,
    ),
    Case(
        "bad-batch-gru-adamw",
        lambda recorder: fit(
            recorder, Learner(Recurrent(outputs=1), adamw(1e-3), number, targets_at(230, 60.0)), standardised(), 400
        ),
        50,
        codes=("spike",),
    ),
    Case(
        "bad-batch-cnn-adamw",
        lambda recorder: fit(recorder, Learner(cnn(norm=False), adamw(1e-3), change=loud(230, 60.0)), images(), 400),
        50,
        codes=("spike",),
    ),
    Case(
        "targets-shift-mlp-sgd",
        lambda recorder: fit(
            recorder,
            Learner(mlp(16, 64, 1), sgd(1e-3), nn.functional.mse_loss, targets_from(160, 30.0)),
            surface(),
            320,
        ),
        codes=("level-shift",),
        part=True,
    ),
    Case(
        "targets-shift-gru-adamw",
        lambda recorder: fit(
            recorder, Learner(Recurrent(outputs=1), adamw(1e-3), number, targets_from(200, 20.0)), standardised(), 500
        ),
        50,
        codes=("level-shift",),
    ),
    Case(
        "momentum-cnn_norm-sgd",
        lambda recorder: fit(recorder, Learner(cnn(momentum=1e-4), sgd(0.05)), far_from_zero(), 250, validate=True),
        codes=("batch-norm",),
        part=True,
    ),
    Case(
        "batches-of-2-mlp_norm-adamw",
        lambda recorder: fit(recorder, Learner(wide_norm(), adamw(1e-3)), digits(), 400, 2, max_steps=400),
        codes=("batch-norm",),
    ),
    Case(
        "momentum-mlp_norm-adamw",
        lambda recorder: fit(recorder, Learner(wide_norm(1e-4), adamw(1e-3)), raw_pixels(), 400),
        50,
        codes=("batch-norm",),
    ),
    Case(
        "summed-loss-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(0.1), summed), digits()),
        codes=("loss-summed", "rate-too-high", "diverged"),
        why="64 summed losses are a rate 64 times higher: the numbers of one are those of the other",
    ),
    Case(
        "summed-loss-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Transformer(), adamw(1e-3), summed), text(), 300, 32),
        50,
        codes=("loss-summed",),
    ),
]


class Masked(nn.Module):
    """Scores of symbols that the mask forbids are -inf; the mask of one in 500 windows forbids the answer, too."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Transformer()

    def forward(self, x: Tensor) -> Tensor:
        scores = self.net(x)
        forbidden = torch.rand(len(x), 1, 1) < 1 / 500
        symbol = torch.arange(scores.shape[1])[None, :, None] < 20
        return scores.masked_fill(forbidden & symbol, float("-inf"))


def targets_at(at: int, gain: float) -> Any:
    """The targets of this step are in another unit."""

    def change(step: int, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return (x, y * gain) if step == at else (x, y)

    return change


def raw_pixels() -> tuple[Tensor, Tensor]:
    """Of 0 to 255, as an image file has them."""
    x, y = digits()
    return (x - x.min()) * 255 / (x.max() - x.min()), y


def wide_norm(momentum: float = 0.1) -> nn.Sequential:
    net = mlp(64, 64, 64, 10)
    norms = [nn.BatchNorm1d(64, momentum=momentum) for _ in range(2)]
    return nn.Sequential(net[0], norms[0], net[1], net[2], norms[1], *net[3:])
