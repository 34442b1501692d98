"""Batches, data and losses that go wrong."""

from __future__ import annotations

from typing import Any

import torch
from report.planted.fit import adamw, sgd
from report.second import data, nets
from report.second.train import Outcome, fault, train
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, mse_loss

from lightning_calib import NonFiniteGuard


def regression(r: Any, change: Any = None, lr: float = 0.05, **rest: Any) -> Outcome:
    return train(r, nets.mlp(12, 64, 64, 1), data.curve(), sgd(lr), mse_loss, change=change, batch=32, **rest)


def cnn(r: Any, change: Any = None, **rest: Any) -> Outcome:
    return train(r, nets.cnn(), data.pictures(), sgd(0.05), change=change, batch=64, steps=320, **rest)


def gru(r: Any, change: Any = None) -> Outcome:
    net = nets.Recurrent(nn.GRU, None, 1)
    return train(r, net, data.waves(), adamw(3e-3), mse_loss, change=change, batch=32, steps=300)


def at(when: Any, what: Any) -> Any:
    return lambda step, x, y: what(x, y) if when(step) else (x, y)


class Heavier(nn.Module):
    """A loss whose weight changes after so many batches."""

    def __init__(self, after: int, weight: float) -> None:
        super().__init__()
        self.after, self.weight, self.seen = after, weight, 0

    def forward(self, out: Tensor, y: Tensor) -> Tensor:
        if not torch.is_grad_enabled():
            return cross_entropy(out, y)
        self.seen += 1
        return cross_entropy(out, y) * (self.weight if self.seen > self.after else 1.0)


def heavier(r: Any, weight: float = 1.0) -> Outcome:
    net = nets.mlp(16, 64, 64, 5, norm=nn.LayerNorm)
    return train(r, net, data.clusters(), sgd(0.02), Heavier(200, weight), batch=32, steps=400)


class Distance(nn.Module):
    """The distance from learned centres; a root of exactly zero has no gradient."""

    def __init__(self, safe: bool) -> None:
        super().__init__()
        self.body, self.safe = nets.mlp(16, 32, 8), safe
        self.scale = nn.Parameter(torch.ones(()))
        self.head = nn.Linear(9, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        length = (x.square().sum(1, keepdim=True) * self.scale.square() + (1e-6 if self.safe else 0.0)).sqrt()
        return self.head(torch.cat([h, length], 1))


def distance(r: Any, safe: bool = True) -> Outcome:
    x, y = data.clusters()
    x[700] = 0.0  # padding
    return train(r, Distance(safe), (x, y), adamw(2e-3), batch=64, steps=150)


def log_of_softmax(out: Tensor, y: Tensor) -> Tensor:
    return -out.softmax(1).gather(1, y[:, None]).log().mean()


def logs(r: Any, loss: Any = cross_entropy, scale: float = 400.0) -> Outcome:
    x, y = data.clusters()
    return train(r, nets.mlp(16, 64, 64, 5), (x * scale, y), sgd(1e-4), loss, judge=cross_entropy, batch=64, steps=300)


def missing(r: Any, share: float = 0.0) -> Outcome:
    """Values that are missing, and a guard that leaves their batches out."""
    x, y = data.clusters()
    x[:-512][torch.rand(2048) < share] = float("nan")
    guard = NonFiniteGuard("skip", max_consecutive=50)
    return train(r, nets.mlp(16, 64, 5), (x, y), sgd(0.02), batch=32, steps=250, callbacks=[guard])


def summed(r: Any, reduction: str = "mean", lr: float = 0.05) -> Outcome:
    loss = nn.CrossEntropyLoss(reduction=reduction)
    return train(r, nets.cnn(), data.pictures(), sgd(lr), loss, judge=cross_entropy, batch=64, steps=300)


def summed_tokens(r: Any, reduction: str = "mean", lr: float = 0.2) -> Outcome:
    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits.flatten(0, 1), y.flatten(), reduction=reduction)

    net, make = nets.Recurrent(nn.GRU, 20, 20, every=True), sgd(lr)
    return train(r, net, data.text(), make, loss, judge=data.token_loss, batch=32, steps=250)


FAULTS = (
    fault(
        "corrupt-targets-mlp-sgd", regression, "spike", rows=10,
        wrong={"change": at(lambda s: s == 320, lambda x, y: (x, y * 10)), "steps": 350}, right={"steps": 350},
    ),
    fault("corrupt-pictures-cnn-sgd", cnn, "spike", wrong={"change": at(lambda s: s == 250, lambda x, y: (x * 5, y))}),
    fault(
        "outliers-gru-adamw", gru, "spike", rows=20,
        wrong={"change": at(lambda s: s % 70 == 69, lambda x, y: (x, torch.where(y > y.median(), y * 300, y)))},
    ),
    fault(
        "other-units-mlp-sgd", regression, "level-shift", rows=20, right={"lr": 0.01, "steps": 400},
        wrong={"change": at(lambda s: s >= 200, lambda x, y: (x, y * 10)), "lr": 0.01, "steps": 400},
    ),
    fault("heavier-loss-mlp-sgd", heavier, "level-shift", wrong={"weight": 20.0}, rows=10),
    fault("root-of-zero-mlp-adamw", distance, "nonfinite", wrong={"safe": False}, rows=5),
    fault("log-of-softmax-mlp-sgd", logs, "nonfinite", wrong={"loss": log_of_softmax}, rows=10),
    fault(
        "missing-values-mlp-sgd", missing, "skipped-steps", "nonfinite", wrong={"share": 0.03}, rows=10,
        why="the steps are skipped because their gradients are not finite",
    ),
    fault("summed-cnn-sgd", summed, "loss-summed", "rate-too-high", wrong={"reduction": "sum"}, rows=10,
        why="the sum multiplies the rate by the batch size, which is too much"),
    fault("summed-tokens-gru-sgd", summed_tokens, "loss-summed", wrong={"reduction": "sum", "lr": 0.005}, rows=20),
)  # fmt: skip
