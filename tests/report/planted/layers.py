"""Faults of layers: dead, unused, gradients that vanish or explode over depth."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from report.planted.data import bags, digits, images, rows_of_images, text
from report.planted.fit import Case, Learner, adamw, fit, muon, sgd
from report.planted.models import Bag, Recurrent, Transformer, cnn, deep, mlp
from torch import Tensor, nn


def killed(net: nn.Module, *names: str) -> nn.Module:
    """ReLUs behind these layers never open."""
    with torch.no_grad():
        for name in names:
            net.get_parameter(f"{name}.bias").fill_(-100.0)
    return net


class TwoPaths(nn.Module):
    """The sum of two small CNNs."""

    def __init__(self) -> None:
        super().__init__()
        self.near, self.far = cnn(norm=False, width=8), cnn(norm=False, width=8)

    def forward(self, x: Tensor) -> Tensor:
        return self.near(x) + self.far(x)


class Forgets(nn.Module):
    """`extra` was made and is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.extra, self.head = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


class Detaches(nn.Module):
    """The embeddings are detached on their way into the network."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = Bag()

    def forward(self, x: Tensor) -> Tensor:
        return self.bag.head(self.bag.hidden(self.bag.embed(x).mean(1).detach()).relu())


class NoTaskToken(nn.Module):
    """A second head that only another task would use, in a network without biases."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = mlp(64, 64, 64, bias=False), *(nn.Linear(64, 10, bias=False) for _ in "12")

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x).relu())


class GAN(LightningModule):
    """Digits by two perceptrons, in manual optimization; `detached` cuts the generator off its own loss."""

    def __init__(
        self, optimizers: Any, detached: bool = False, behind: bool = False, logs: bool = False, log_p: bool = False
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.generator, self.discriminator = mlp(16, 64, 64), mlp(64, 64, 1)
        self.optimizers_of, self.detached, self.behind, self.logs, self.log_p = (
            optimizers,
            detached,
            behind,
            logs,
            log_p,
        )

    def loss(self, images: Tensor, real: bool) -> Tensor:
        score = self.discriminator(images)
        if self.log_p:  # as the paper writes it, and not as anybody should
            p = score.sigmoid()
            return -(p.log() if real else (1 - p).log()).mean()
        return nn.functional.binary_cross_entropy_with_logits(score, torch.full_like(score, float(real)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        first, second = self.optimizers(use_pl_optimizer=not self.behind)
        drawn = self.generator(torch.randn(len(batch[0]), 16))
        drawn = drawn.detach() if self.detached else drawn
        loss = self.loss(drawn, real=True)
        first.zero_grad()
        self.manual_backward(loss)
        first.step()
        judged = self.loss(batch[0], real=True) + self.loss(drawn.detach(), real=False)
        second.zero_grad()
        self.manual_backward(judged)
        second.step()
        return judged.detach() if self.logs else None

    def configure_optimizers(self) -> Any:
        return [
            make(net.parameters())
            for make, net in zip(self.optimizers_of, (self.generator, self.discriminator), strict=True)
        ]


class NeverSteps(Learner):
    """Its condition for a loss is never met."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor | None:
        loss = super().training_step(batch, batch_idx)
        return loss if self.current_epoch > 1000 else None


CASES = [
    Case(
        "dead-relu-mlp-sgd",
        lambda recorder: fit(recorder, Learner(killed(mlp(64, 64, 64, 10), "2"), sgd(0.05)), digits()),
        codes=("dead-layer",),
        part=True,
    ),
    Case(
        "dead-path-cnn-adamw",
        lambda recorder: fit(recorder, Learner(killed(TwoPaths(), "far.3"), adamw(1e-3)), images()),
        50,
        codes=("dead-layer",),
        layers="far",
    ),
    Case(
        "dead-hidden-bag-adamw",
        lambda recorder: fit(recorder, Learner(killed(Bag(), "hidden"), adamw(1e-3)), bags()),
        codes=("dead-layer",),
    ),
    Case(
        "never-called-mlp-adamw",
        lambda recorder: fit(recorder, Learner(Forgets(), adamw(1e-3)), digits()),
        codes=("unused-parameter",),
        layers="extra",
        part=True,
    ),
    Case(
        "detached-bag-sgd",
        lambda recorder: fit(recorder, Learner(Detaches(), sgd(0.1)), bags()),
        50,
        codes=("unused-parameter",),
        layers="embed",
    ),
    Case(
        "second-head-mlp-muon",
        lambda recorder: fit(recorder, Learner(NoTaskToken(), muon(2e-3)), digits()),
        50,
        codes=("unused-parameter",),
        layers="other",
    ),
    Case(
        "generator-detached-gan-adam",
        lambda recorder: fit(recorder, GAN([adamw(1e-3), adamw(1e-3)], detached=True), digits()),
        codes=("unused-parameter", "no-steps-seen"),
        why="the generator's only optimizer gets no gradient at all: both sentences say so",
    ),
    Case(
        "sigmoids-mlp-sgd",
        lambda recorder: fit(recorder, Learner(deep(10, nn.Sigmoid), sgd(0.1)), digits()),
        codes=("vanishing",),
        part=True,
    ),
    Case(
        "sigmoids-mlp-adamw",
        lambda recorder: fit(recorder, Learner(deep(12, nn.Sigmoid), adamw(1e-3)), digits()),
        50,
        codes=("vanishing",),
    ),
    Case(
        "chaotic-tanh-mlp-adamw",
        lambda recorder: fit(recorder, Learner(deep(24, nn.Tanh, gain=3.0), adamw(1e-4)), digits()),
        codes=("exploding",),
        part=True,
    ),
    Case(
        "chaotic-rnn-sgd",
        lambda recorder: fit(
            recorder,
            Learner(Recurrent(nn.RNN, gain=2.5), sgd(1e-4)),
            (rows_of_images()[0].repeat(1, 4, 1), digits()[1]),
        ),
        50,
        codes=("exploding", "rate-too-high"),
        why="with SGD gradients that explode over time are steps that are too long",
    ),
    Case(
        "none-returned-transformer-adamw",
        lambda recorder: fit(recorder, NeverSteps(Transformer(), adamw(1e-3)), text(), 60, 32),
        codes=("no-steps-seen",),
        part=True,
    ),
    Case(
        "stepped-behind-gan-adam",
        lambda recorder: fit(recorder, GAN([adamw(1e-3), adamw(1e-3)], behind=True), digits(), 100),
        50,
        codes=("no-steps-seen",),
    ),
]
