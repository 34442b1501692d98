"""Layers that do not learn, and normalisation that misleads."""

from __future__ import annotations

from typing import Any

import torch
from report.planted.fit import Learner, adamw, sgd
from report.second import data, nets
from report.second.train import Outcome, fault, train
from torch import nn
from torch.nn.functional import mse_loss


def towers(r: Any, use: str = "both") -> Outcome:
    return train(r, nets.Towers(use=use), data.curve(), adamw(2e-3), mse_loss, batch=64, steps=300)


def gru(r: Any, detach: bool = False) -> Outcome:
    net = nets.Recurrent(nn.GRU, detach=detach)
    return train(r, net, data.tokens(), lambda p: torch.optim.Adam(p, 3e-3), batch=32, steps=250)


class Stem(nn.Module):
    """A stem under `no_grad`, left from the fine-tuning of another network."""

    def __init__(self, without: bool) -> None:
        super().__init__()
        self.stem, self.rest = nn.Conv2d(1, 8, 3, 1, 1), nn.Sequential(nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head, self.without = nn.Linear(8, 4), without

    def forward(self, x: Any) -> Any:
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.without):
            h = torch.relu(self.stem(x))
        return self.head(self.rest(h).mean((2, 3)))


def stem(r: Any, without: bool = False) -> Outcome:
    return train(r, Stem(without), data.pictures(classes=4), sgd(0.1), batch=64, steps=400)


def initialised(net: nn.Module, how: Any) -> nn.Module:
    for layer in net.modules():
        if isinstance(layer, (nn.Linear, nn.Conv2d)):
            how(layer)
    return net


def zeros(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def all_zero(r: Any, zero: bool = False) -> Outcome:
    net = nets.mlp(16, 64, 64, 5)
    return train(r, initialised(net, zeros) if zero else net, data.clusters(), adamw(2e-3), batch=64, steps=250)


def negative_bias(r: Any, bias: float = 0.0) -> Outcome:
    net = nets.mlp(12, 48, 48, 48, 1)
    nn.init.constant_(net[2].bias, bias)
    return train(r, net, data.curve(), sgd(0.05), mse_loss, batch=64, steps=300)


def logarithms(r: Any, relu: bool = False) -> Outcome:
    """Of small prices: all are negative, and the last layer has a ReLU."""
    x, y = data.curve()
    net = nets.mlp(12, 64, 64, 1)
    net = nn.Sequential(net, nn.ReLU()) if relu else net
    return train(r, net, (x, y - 4), lambda p: torch.optim.Adam(p, 2e-3), mse_loss, batch=64, steps=300)


def deep(r: Any, act: Any = nn.ReLU, depth: int = 7, lr: float = 0.05) -> Outcome:
    net = nets.mlp(16, *[48] * depth, 5, act=act)
    return train(r, net, data.clusters(), sgd(lr), batch=64, steps=400)


def deep_cnn(r: Any, act: Any = nn.ReLU) -> Outcome:
    return train(r, nets.cnn(act=act, depth=6), data.pictures(), sgd(0.05), batch=64, steps=300)


def long_rnn(r: Any, gain: float = 1.0) -> Outcome:
    net = nets.Recurrent(nn.RNN, None, 1, 32, nonlinearity="relu")
    nn.init.orthogonal_(net.encoder.weight_hh_l0, gain)
    make = lambda p: torch.optim.Adam(p, 1e-3)  # noqa: E731
    return train(r, net, data.waves(length=60), make, mse_loss, batch=32, steps=200)


def unit_init(r: Any, wrong: bool = False) -> Outcome:
    def normal(layer: Any) -> None:
        nn.init.normal_(layer.weight)

    net = nets.mlp(12, *[96] * 6, 1)
    net = initialised(net, normal) if wrong else net
    return train(r, net, data.curve(), lambda p: torch.optim.Adam(p, 1e-3), mse_loss, batch=64, steps=300)


def normalised(r: Any, momentum: float = 0.1, batch: int = 64, shift: float = 0.0, **rest: Any) -> Outcome:
    net = nets.cnn(lambda width: nn.BatchNorm2d(width, momentum=momentum))
    x, y = data.pictures()
    return train(r, net, (x + shift, y), sgd(rest.pop("lr", 0.02)), batch=batch, steps=300, **rest)


class Frozen(Learner):
    """The filter of `requires_grad` the wrong way round, or the optimizer of a copy."""

    def __init__(self, *args: Any, how: str) -> None:
        super().__init__(*args)
        self.how = how
        for p in self.net[0].parameters():
            p.requires_grad_(False)

    def configure_optimizers(self) -> Any:
        trained = self.how == "right"
        return self.make([p for p in self.parameters() if p.requires_grad == trained])


def frozen(r: Any, how: str = "right") -> Outcome:
    net = nets.cnn(width=16)
    return train(r, net, data.pictures(), module=Frozen(net, adamw(2e-2), how=how), batch=64, steps=200)


class Replaced(Learner):
    """The optimizer belongs to the network as it was before it was replaced."""

    def configure_optimizers(self) -> Any:
        old = [nn.Parameter(p.detach().clone()) for p in self.net.parameters()]
        return self.make(old)


def replaced(r: Any, wrong: bool = False) -> Outcome:
    net = nets.mlp(12, 48, 48, 1)
    module = (Replaced if wrong else Learner)(net, sgd(0.05), mse_loss)
    return train(r, net, data.curve(), loss=mse_loss, module=module, batch=64, steps=200)


class Manual(Learner):
    """Manual optimization, with or without the step."""

    def __init__(self, *args: Any, steps: bool) -> None:
        super().__init__(*args)
        self.automatic_optimization, self.steps = False, steps

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        optimizer = self.optimizers()
        optimizer.zero_grad()
        self.manual_backward(loss)
        if self.steps:
            optimizer.step()
        return loss


def manual(r: Any, steps: bool = True) -> Outcome:
    net = nets.Recurrent(nn.GRU)
    make = lambda p: torch.optim.Adam(p, 3e-3)  # noqa: E731
    return train(r, net, data.tokens(), module=Manual(net, make, steps=steps), batch=32, steps=200)


class Forgetful(Learner):
    """Without `return loss`."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        super().training_step(batch, batch_idx)


def no_return(r: Any, wrong: bool = False) -> Outcome:
    net = nets.mlp(16, 64, 5)
    module = (Forgetful if wrong else Learner)(net, sgd(0.05))
    return train(r, net, data.clusters(), module=module, batch=64, steps=150)


NOTHING = "the optimizer is called, but no tensor of its own ever has a gradient: it takes no step that counts"
FAULTS = (
    fault("left-tower-twice-adamw", towers, "unused-parameter", wrong={"use": "left twice"}, layers="right"),
    fault("detached-gru-adam", gru, "unused-parameter", wrong={"detach": True}, layers="encoder", rows=20),
    fault("stem-no-grad-cnn-sgd", stem, "unused-parameter", wrong={"without": True}, layers="stem", rows=20),
    fault("all-zero-mlp-adamw", all_zero, "dead-layer", wrong={"zero": True}, rows=10),
    fault("negative-bias-mlp-sgd", negative_bias, "dead-layer", wrong={"bias": -20.0}, rows=10),
    fault("relu-at-the-end-mlp-adam", logarithms, "dead-layer", wrong={"relu": True}, rows=5),
    fault("sigmoid-mlp-sgd", deep, "vanishing", wrong={"act": nn.Sigmoid}, rows=10),
    fault("sigmoid-cnn-sgd", deep_cnn, "vanishing", wrong={"act": nn.Sigmoid}, rows=20),
    fault("large-recurrence-rnn-adam", long_rnn, "exploding", wrong={"gain": 1.4}, rows=5),
    fault("unit-init-mlp-adam", unit_init, "exploding", wrong={"wrong": True}, rows=10),
    fault("tiny-batch-bn-cnn-sgd", normalised, "batch-norm", wrong={"batch": 2}, right={"batch": 32}, rows=20),
    fault("slow-momentum-bn-cnn-sgd", normalised, "batch-norm", rows=10, wrong={"momentum": 1e-4}),
    fault(
        "keras-momentum-bn-cnn-sgd", normalised, "batch-norm", rows=10, wrong={"momentum": 0.99, "batch": 4},
        right={"momentum": 0.01, "batch": 4},
    ),
    fault("frozen-only-cnn-adamw", frozen, "no-steps-seen", "unused-parameter", wrong={"how": "wrong"}, why=NOTHING),
    fault("replaced-net-mlp-sgd", replaced, "no-steps-seen", "unused-parameter", wrong={"wrong": True}, why=NOTHING),
    fault("manual-without-step-gru-adam", manual, "no-steps-seen", wrong={"steps": False}, rows=20),
    fault("no-return-mlp-sgd", no_return, "no-steps-seen", wrong={"wrong": True}, rows=5),
)  # fmt: skip
