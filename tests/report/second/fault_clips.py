"""Clips that cut what they should not."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from report.planted.fit import Learner, adamw, sgd
from report.second import data, nets
from report.second.train import Outcome, fault, train
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from lightning_calib import GradientClip


def cnn(r: Any, **rest: Any) -> Outcome:
    return train(r, nets.cnn(nn.BatchNorm2d), data.pictures(), sgd(0.05), batch=64, steps=250, **rest)


def gru(r: Any, **rest: Any) -> Outcome:
    return train(r, nets.Recurrent(nn.GRU), data.tokens(), sgd(0.1), batch=32, steps=300, **rest)


def autoencoder(r: Any, **rest: Any) -> Outcome:
    x = data.curve(d=4, out=24)[1]
    return train(r, nets.mlp(24, 32, 4, 32, 24), (x, x), sgd(0.2), mse_loss, batch=64, steps=400, **rest)


def mlp(r: Any, optimizer: Any = None, **rest: Any) -> Outcome:
    return train(r, nets.mlp(16, 96, 96, 5), data.clusters(), optimizer or adamw(2e-3), batch=64, steps=250, **rest)


def former(r: Any, **rest: Any) -> Outcome:
    net = nets.Former(20, 20, every=True)
    return train(
        r, net, data.text(), lambda p: torch.optim.NAdam(p, 2e-3), data.token_loss, batch=32, steps=200, **rest
    )


class Own(Learner):
    """A copy of the clip of somebody's old code."""

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        torch.nn.utils.clip_grad_norm_(self.parameters(), 0.15)


def two_clips(r: Any, own: bool = False, **rest: Any) -> Outcome:
    net = nets.mlp(12, 48, 48, 1)
    module: LightningModule | None = Own(net, sgd(0.01, 0.0), mse_loss) if own else None
    return train(r, net, data.curve(), sgd(0.01, 0.0), mse_loss, module=module, batch=32, steps=400, **rest)


class Offsets(nn.Module):
    """Hidden layers and a table of offsets, one for each of few users, that are counted in hundreds."""

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.users, self.body = nn.Embedding(4, 8), nets.mlp(12, 48, 48, 1)
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        user = (x[:, 0] > 0).long() + 2 * (x[:, 1] > 0).long()
        return self.body(x) + self.scale * self.users(user).mean(1, keepdim=True)


def dominated(r: Any, net: Any, steps: int = 400, noise: float = 0.1, clip: float = 1.0) -> Outcome:
    return train(
        r, net(), data.curve(noise=noise), sgd(0.03, 0.0), mse_loss, batch=64, steps=steps, gradient_clip_val=clip
    )


FAULTS = (
    fault("clip-cnn-bn-sgd", cnn, "clip-cuts-rate", wrong={"gradient_clip_val": 1e-3}, rows=10),
    fault("clip-gru-sgd", gru, "clip-cuts-rate", wrong={"callbacks": [GradientClip(0.01)]}, rows=20),
    fault(
        "value-clip-autoencoder-sgd", autoencoder, "clip-cuts-rate", rows=10,
        wrong={"gradient_clip_val": 1e-5, "gradient_clip_algorithm": "value"},
    ),
    fault("clip-mlp-adamw", mlp, "clip-below-eps", wrong={"gradient_clip_val": 1e-7}, rows=10),
    fault("clip-transformer-nadam", former, "clip-below-eps", wrong={"callbacks": [GradientClip(1e-8)]}, rows=5),
    fault(
        "callback-and-trainer-mlp-sgd", two_clips, "clip-twice", rows=10,
        wrong={"callbacks": [GradientClip(0.5)], "gradient_clip_val": 0.15}, right={"callbacks": [GradientClip(0.5)]},
    ),
    fault(
        "callback-and-own-mlp-sgd", two_clips, "clip-twice", rows=20,
        wrong={"callbacks": [GradientClip(0.4)], "own": True}, right={"callbacks": [GradientClip(0.4)]},
    ),
    fault(
        "offsets-in-hundreds-regression-sgd", dominated, "dominated", "clip-cuts-rate", rows=10,
        wrong={"net": lambda: Offsets(100.0)}, right={"net": lambda: Offsets(1.0)},
        why="the clip cuts every step a hundredfold, and it does so because of one table",
    ),
    fault(
        "offsets-in-tens-regression-sgd", dominated, "dominated", rows=10,
        wrong={"net": lambda: Offsets(25.0), "steps": 250, "noise": 0.3, "clip": 0.5},
        right={"net": lambda: Offsets(1.0), "steps": 250, "noise": 0.3, "clip": 0.5},
    ),
)  # fmt: skip
