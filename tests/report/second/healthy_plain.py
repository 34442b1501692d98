"""Healthy runs as most people train."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from report.planted.fit import Case, adamw, muon, sgd
from report.second import data, nets
from report.second.train import Outcome, train
from torch import nn
from torch.nn.functional import huber_loss, mse_loss
from torch.optim import lr_scheduler

from lightning_calib import AGC, AutoClip, GradientClip, ZClip

Fit = Callable[[Any], Outcome]


def by(kind: Any, lr: float) -> Any:
    return lambda parameters: kind(parameters, lr)


def cosine(optimizer: Any, steps: int) -> Any:
    return lr_scheduler.CosineAnnealingLR(optimizer, steps)


def one_cycle(peak: float) -> Any:
    return lambda optimizer, steps: lr_scheduler.OneCycleLR(optimizer, peak, steps + 1)


def warm_up(optimizer: Any, steps: int) -> Any:
    ramp = lr_scheduler.LinearLR(optimizer, 0.01, 1.0, 30)
    return lr_scheduler.SequentialLR(optimizer, [ramp, cosine(optimizer, steps - 30)], [30])


def classes(net: Callable[[], nn.Module], make: Any, **rest: Any) -> Fit:
    return lambda r: train(r, net(), data.clusters(), make, **{"batch": 64, "steps": 300, **rest})


def curve(net: Callable[[], nn.Module], make: Any, loss: Any = mse_loss, **rest: Any) -> Fit:
    return lambda r: train(r, net(), data.curve(), make, loss, **{"batch": 64, "steps": 300, **rest})


def images(net: Callable[[], nn.Module], make: Any, **rest: Any) -> Fit:
    return lambda r: train(r, net(), data.pictures(), make, **{"batch": 64, "steps": 250, **rest})


def words(net: Callable[[], nn.Module], make: Any, **rest: Any) -> Fit:
    return lambda r: train(r, net(), data.tokens(), make, **{"batch": 32, "steps": 250, **rest})


def language(net: Callable[[], nn.Module], make: Any, **rest: Any) -> Fit:
    return lambda r: train(r, net(), data.text(), make, data.token_loss, **{"batch": 32, "steps": 200, **rest})


def autoencoder(r: Any) -> Outcome:
    x = data.curve(d=4, out=24)[1]
    return train(r, nets.mlp(24, 48, 6, 48, 24), (x, x), adamw(3e-3), mse_loss, batch=64, steps=300)


def waves(r: Any) -> Outcome:
    net, make = nets.Recurrent(nn.LSTM, None, 1), lambda p: torch.optim.Adam(p, 5e-3)
    return train(r, net, data.waves(), make, mse_loss, batch=32, steps=300, gradient_clip_val=5.0)


def likes(r: Any) -> Outcome:
    make = lambda p: torch.optim.Adagrad(p, 0.5)  # noqa: E731
    return train(r, nets.Factors(), data.ratings(), make, mse_loss, batch=128, steps=400)


def least_squares(r: Any) -> Outcome:
    return train(r, nn.Linear(20, 1), data.line(), sgd(0.03, 0.0), mse_loss, batch=32, steps=300)


def conv_waves(r: Any) -> Outcome:
    x, y = data.waves(length=32)
    net = nn.Sequential(
        nn.Conv1d(1, 16, 5, 2), nn.GroupNorm(4, 16), nn.SiLU(), nn.Conv1d(16, 16, 5, 2), nn.GroupNorm(4, 16), nn.SiLU(),
        nn.Flatten(), nn.Linear(80, 1),
    )  # fmt: skip
    make = lambda p: torch.optim.RAdam(p, 5e-3)  # noqa: E731
    return train(r, net, (x.transpose(1, 2).contiguous(), y), make, mse_loss, batch=64, steps=250)


def square(*widths: int) -> nn.Module:
    net = nets.mlp(*widths)
    for layer in net:
        if isinstance(layer, nn.Linear):
            layer.register_parameter("bias", None)
    return net


def batch_norm_mlp() -> nn.Module:
    return nn.Sequential(nets.mlp(16, 64, 64, 64, norm=nn.BatchNorm1d), nn.Dropout(0.3), nn.ReLU(), nn.Linear(64, 5))


CASES = (
    Case("cosine-mlp-sgd", classes(lambda: nets.mlp(16, 64, 64, 5), sgd(0.05), schedule=cosine), 10),
    Case("mlp-adam", classes(lambda: nets.mlp(16, 128, 64, 5), by(torch.optim.Adam, 1e-3), batch=32), 20),
    Case("one-cycle-cnn-bn-sgd", images(lambda: nets.cnn(nn.BatchNorm2d), sgd(0.1), schedule=one_cycle(0.2)), 5),
    Case("cnn-adam", images(nets.cnn, by(torch.optim.Adam, 3e-3)), 10),
    Case("bn-dropout-mlp-sgd", classes(batch_norm_mlp, sgd(0.05, weight_decay=5e-4)), 10),
    Case(
        "warm-up-transformer-adamw",
        words(nets.Former, adamw(3e-3, weight_decay=0.1), schedule=warm_up, gradient_clip_val=1.0),
        10,
    ),
    Case("post-norm-transformer-adamw", words(lambda: nets.Former(first=False), adamw(1e-3)), 20),
    Case("language-transformer-adamw", language(lambda: nets.Former(20, 20, every=True), adamw(3e-3)), 10),
    Case(
        "language-gru-nadam",
        language(lambda: nets.Recurrent(nn.GRU, 20, 20, every=True), by(torch.optim.NAdam, 3e-3)),
        10,
    ),
    Case(
        "gru-rmsprop-clip",
        words(lambda: nets.Recurrent(nn.GRU), by(torch.optim.RMSprop, 2e-3), callbacks=[GradientClip(1.0)]),
        10,
    ),
    Case("waves-lstm-adam", waves, 20),
    Case("rnn-sgd-clip", words(lambda: nets.Recurrent(nn.RNN), sgd(0.03), gradient_clip_val=1.0), 10),
    Case("lstm-adamw-zclip", words(lambda: nets.Recurrent(nn.LSTM), adamw(5e-3), callbacks=[ZClip()]), 10),
    Case("autoencoder-adamw", autoencoder, 10),
    Case("likes-factors-adagrad", likes, 20),
    Case("least-squares-sgd", least_squares, 5),
    Case("conv1d-radam", conv_waves, 10),
    Case("curve-mlp-muon", curve(lambda: square(12, 64, 64, 1), muon(0.01)), 10),
    Case("curve-mlp-sgd-plain", curve(lambda: nets.mlp(12, 64, 64, 1), sgd(0.05, 0.0), huber_loss), 20),
    Case("resnet-nadam", images(nets.ResNet, by(torch.optim.NAdam, 2e-3)), 10),
    Case("resnet-sgd-nesterov", images(nets.ResNet, sgd(0.05, nesterov=True, weight_decay=1e-4)), 20),
    Case("residual-mlp-adamw", classes(nets.Residual, adamw(1e-3, weight_decay=0.05)), 10),
    Case("cnn-bn-sgd-agc", images(lambda: nets.cnn(nn.BatchNorm2d), sgd(0.1), callbacks=[AGC()]), 10),
    Case(
        "mlp-adam-autoclip",
        classes(lambda: nets.mlp(16, 64, 5), by(torch.optim.Adam, 3e-3), callbacks=[AutoClip()]),
        10,
    ),
    Case("tanh-mlp-adadelta", curve(lambda: nets.mlp(12, 64, 64, 1, act=nn.Tanh), by(torch.optim.Adadelta, 1.0)), 10),
    Case("gelu-mlp-adamax", classes(lambda: nets.mlp(16, 64, 64, 5, act=nn.GELU), by(torch.optim.Adamax, 4e-3)), 50),
)
