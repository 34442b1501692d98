"""Learning rates that are wrong for the network."""

from __future__ import annotations

from typing import Any

import torch
from report.planted.fit import adamw, muon, sgd
from report.second import data, nets
from report.second.train import Outcome, fault, train
from torch import nn
from torch.nn.functional import mse_loss

from lightning_calib import InverseNorm, LearningRateControl


def mlp(r: Any, optimizer: Any = None, **rest: Any) -> Outcome:
    net = nets.mlp(16, 64, 64, 64, 5)
    return train(r, net, data.clusters(), optimizer or sgd(0.05), batch=32, steps=300, **rest)


def bare_mlp(r: Any, optimizer: Any) -> Outcome:
    net = nets.mlp(16, 64, 64, 5)
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.register_parameter("bias", None)
    return train(r, net, data.clusters(), optimizer, batch=64, steps=250)


def cnn(r: Any, optimizer: Any = None, **rest: Any) -> Outcome:
    return train(r, nets.cnn(), data.pictures(), optimizer or sgd(0.05), batch=64, steps=300, **rest)


def former(r: Any, lr: float = 2e-3) -> Outcome:
    return train(r, nets.Former(), data.tokens(), lambda p: torch.optim.Adam(p, lr), batch=32, steps=200)


def gru(r: Any, lr: float = 2e-3) -> Outcome:
    net = nets.Recurrent(nn.GRU)
    return train(r, net, data.tokens(), lambda p: torch.optim.RMSprop(p, lr), batch=48, steps=250)


def line(r: Any, lr: float = 0.05, scale: float = 1.0) -> Outcome:
    x, y = data.line()
    return train(r, nn.Linear(20, 1), (x * scale, y), sgd(lr, 0.0), mse_loss, batch=64, steps=200)


def regression(r: Any, lr: float = 0.02, offset: float = 0.0) -> Outcome:
    x, y = data.curve()
    return train(r, nets.mlp(12, 64, 64, 1), (x, y + offset), sgd(lr), mse_loss, batch=64, steps=200)


def bag(r: Any, make: Any) -> Outcome:
    net = nn.Sequential(nn.EmbeddingBag(12, 24), nn.Linear(24, 6))
    return train(r, net, data.tokens(), make, batch=64, steps=400)


def factors(r: Any, lr: float = 0.5) -> Outcome:
    return train(r, nets.Factors(), data.ratings(), lambda p: torch.optim.Adagrad(p, lr), mse_loss, steps=350)


def two_rates(r: Any, body: float = 2e-3, head: float = 2e-3) -> Outcome:
    def groups(net: Any) -> list[dict[str, Any]]:
        return [{"params": net[0].parameters(), "lr": body}, {"params": net[1].parameters(), "lr": head}]

    return train(r, nets.cnn(), data.pictures(), adamw(), batch=64, steps=300, groups=groups)


def embedding_rate(r: Any, embed: float = 0.3) -> Outcome:
    def groups(net: Any) -> list[dict[str, Any]]:
        rest = [*net.encoder.parameters(), *net.head.parameters()]
        return [{"params": rest, "lr": 0.3}, {"params": net.embed.parameters(), "lr": embed}]

    return train(r, nets.Recurrent(nn.LSTM), data.tokens(), sgd(), batch=32, steps=300, groups=groups)


def decay(steps: int, gamma: float) -> Any:
    return lambda optimizer, _: torch.optim.lr_scheduler.StepLR(optimizer, steps, gamma)


FAULTS = (
    fault("rate-mlp-sgd", mlp, "rate-too-high", wrong={"optimizer": sgd(0.5)}, rows=10),
    fault("rate-transformer-adam", former, "rate-too-high", wrong={"lr": 0.1}, rows=5),
    fault("rate-gru-rmsprop", gru, "rate-too-high", wrong={"lr": 0.2}, rows=10),
    fault(
        "rate-mlp-muon", bare_mlp, "rate-too-high", "diverged", rows=10,
        wrong={"optimizer": muon(0.6)}, right={"optimizer": muon()},
        why="the loss stays at several times what it was at the start, because of the rate",
    ),
    fault(
        "raw-features-linear-sgd", line, "diverged", "rate-too-high", wrong={"scale": 4.0}, right={"scale": 1.0},
        why="the loss grows without end because the rate is beyond what the raw features allow", rows=10,
    ),
    fault(
        "rate-regression-sgd", regression, "diverged", "nonfinite", "rate-too-high", wrong={"lr": 2.0}, rows=5,
        why="the rate makes the loss grow until it overflows: that it diverged, that it is not finite and why",
    ),
    fault("rate-cnn-sgd", cnn, "rate-too-low", wrong={"optimizer": sgd(1e-5)}, rows=20),
    fault("rate-bag-adamw", bag, "rate-too-low", wrong={"make": adamw(1e-7)}, right={"make": adamw(1e-2)}, rows=20),
    fault("rate-factors-adagrad", factors, "rate-too-low", wrong={"lr": 1e-6}, rows=10),
    fault("decay-every-step-mlp-sgd", mlp, "rate-too-low", wrong={"schedule": decay(3, 0.1)}, rows=10),
    fault(
        "rule-cnn-sgd", cnn, "rate-cut", wrong={"callbacks": [LearningRateControl(InverseNorm(target=1e-3))]}, rows=10
    ),
    fault("body-rate-cnn-adamw", two_rates, "layer-rate", wrong={"body": 2e-6}, rows=10),
    fault(
        "embedding-rate-lstm-sgd", embedding_rate, "layer-rate", "rate-too-high", wrong={"embed": 300.0}, rows=10,
        why="the rate that is a thousand times too high is of one group",
    ),
)  # fmt: skip
