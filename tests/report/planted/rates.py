"""Faults of the learning rate, of a rule on it and of single groups."""

from __future__ import annotations

from report.planted.data import bags, digits, images, rows_of_images, surface, text
from report.planted.fit import Case, Learner, adamw, fit, muon, sgd
from report.planted.models import Bag, Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn

from lightning_calib import LearningRateControl
from lightning_calib.schedules import InverseNorm

GROWS = "the loss grows because of the rate: whether it overflows before the end is a matter of steps"
FASTER = "the fast layer spoils the run: its rate is too high, too"

CASES = [
    Case(
        "rate-x100-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(10.0)), digits()),
        codes=("rate-too-high", "diverged"),
        why=GROWS,
        part=True,
    ),
    Case(
        "rate-x300-cnn-adamw",
        lambda recorder: fit(recorder, Learner(cnn(norm=False), adamw(0.3)), images(), 200),
        codes=("rate-too-high", "diverged"),
        why=GROWS,
    ),
    Case(
        "rate-x300-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Transformer(), adamw(0.6)), text(), 300, 32),
        50,
        codes=("rate-too-high", "diverged"),
        why=GROWS,
    ),
    Case(
        "rate-x250-mlp-muon",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10, bias=False), muon(5.0)), digits()),
        codes=("rate-too-high", "diverged"),
        why=GROWS,
    ),
    Case(
        "rate-x300-cnn_norm-sgd",
        lambda recorder: fit(recorder, Learner(cnn(), sgd(30.0)), images(), 300),
        50,
        codes=("rate-too-high", "diverged"),
        why=GROWS,
    ),
    Case(
        "diverges-mlp-sgd",
        lambda recorder: fit(
            recorder, Learner(mlp(16, 64, 64, 1, act=nn.ReLU), sgd(3.0), nn.functional.mse_loss), surface(), 200
        ),
        codes=("diverged", "rate-too-high"),
        why="a loss that grows beyond all bounds at once: the rate is the cause, not finite the end",
        part=True,
    ),
    Case(
        "diverges-rnn-sgd",
        lambda recorder: fit(
            recorder, Learner(Recurrent(ReluRNN, outputs=1), sgd(0.5), to_number), rows_of_images(), 300
        ),
        50,
        codes=("diverged", "rate-too-high"),
        why="as above",
    ),
    Case(
        "rate-x300-bag-adamw",
        lambda recorder: fit(recorder, Learner(Bag(), adamw(1.0)), bags(), 300),
        codes=("rate-too-high", "diverged"),
        why=GROWS,
    ),
    Case(
        "rate-x0.001-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(1e-4, 0.0)), digits()),
        codes=("rate-too-low",),
        part=True,
    ),
    Case(
        "rate-x0.001-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Transformer(), adamw(1e-6)), text(), 300, 32),
        50,
        codes=("rate-too-low",),
    ),
    Case(
        "rate-x0.001-cnn_norm-sgd",
        lambda recorder: fit(recorder, Learner(cnn(), sgd(1e-5)), images(), 300),
        50,
        codes=("rate-too-low",),
    ),
    Case(
        "rate-x0.001-mlp-muon",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10, bias=False), muon(2e-6)), digits()),
        codes=("rate-too-low",),
    ),
    Case(
        "rule-cuts-rate-mlp-sgd",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 64, 64, 10), sgd(0.1)),
            digits(),
            callbacks=[LearningRateControl(InverseNorm(target=1e-3))],
        ),
        codes=("rate-cut",),
        part=True,
    ),
    Case(
        "rule-cuts-rate-gru-adamw",
        lambda recorder: fit(
            recorder,
            Learner(Recurrent(), adamw(1e-3)),
            rows_of_images(),
            callbacks=[LearningRateControl(InverseNorm(target=1e-3))],
        ),
        50,
        codes=("rate-cut",),
    ),
    Case(
        "one-layer-fast-mlp-adamw",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 64, 64, 10), adamw(1e-5), groups=lambda net: groups_of(net, "4.", 1e-2)),
            digits(),
        ),
        codes=("layer-rate",),
    ),
    Case(
        "embeddings-fast-transformer-adamw",
        lambda recorder: fit(
            recorder,
            Learner(Transformer(), adamw(1e-3), groups=lambda net: groups_of(net, "symbol", 1.0)),
            text(),
            300,
            32,
        ),
        50,
        codes=("layer-rate", "rate-too-high"),
        why=FASTER,
    ),
]


def to_number(found: Tensor, digit: Tensor) -> Tensor:
    """Regression on the digit itself."""
    return nn.functional.mse_loss(found.squeeze(1), digit.float())


def ReluRNN(*args: int, **rest: bool) -> nn.RNN:  # noqa: N802 - stands for a class
    return nn.RNN(*args, nonlinearity="relu", **rest)


def groups_of(net: nn.Module, start: str, lr: float) -> list[dict]:
    """Two groups: those whose names begin so have a rate of their own."""
    named = list(net.named_parameters())
    return [
        {"params": [p for name, p in named if not name.startswith(start)]},
        {"params": [p for name, p in named if name.startswith(start)], "lr": lr},
    ]
