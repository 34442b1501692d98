"""Faults of clipping: below eps, a cut of SGD's rate, twice, and for the sake of one tensor."""

from __future__ import annotations

import torch
from report.planted.data import bags, digits, images, rows_of_images, text
from report.planted.fit import Case, Learner, adamw, fit, muon, sgd
from report.planted.layers import GAN
from report.planted.models import Bag, Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn

from lightning_calib import GradientClip

CUTS = "with SGD the second clip is a cut of the rate, too, and both sentences ask for one clip with a higher threshold"


class TwoBranches(nn.Module):
    """Pixels through one branch, and three quantities as they come, of a thousand, through another."""

    def __init__(self) -> None:
        super().__init__()
        self.pixels, self.raw, self.head = nn.Linear(64, 64), nn.Linear(3, 4), nn.Linear(68, 10)
        with torch.no_grad():
            self.raw.weight /= 1000

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.cat([self.pixels(x).relu(), self.raw(1000 * x[:, 20:23])], 1))


CASES = [
    Case(
        "clip-1e-7-mlp-adamw",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), adamw(1e-3)), digits(), gradient_clip_val=1e-7),
        codes=("clip-below-eps",),
        part=True,
    ),
    Case(
        "clip-1e-7-transformer-adamw",
        lambda recorder: fit(
            recorder, Learner(Transformer(), adamw(1e-3)), text(), 300, 32, callbacks=[GradientClip(1e-7)]
        ),
        50,
        codes=("clip-below-eps",),
    ),
    Case(
        "clip-1e-8-cnn_norm-adamw",
        lambda recorder: fit(recorder, Learner(cnn(), adamw(1e-3)), images(), callbacks=[GradientClip(1e-8)]),
        50,
        codes=("clip-below-eps",),
    ),
    Case(
        "clip-1e-9-mlp-muon",
        lambda recorder: fit(
            recorder, Learner(mlp(64, 64, 64, 10, bias=False), muon(2e-3)), digits(), gradient_clip_val=1e-9
        ),
        codes=("clip-below-eps",),
    ),
    Case(
        "clip-1e-9-gan-adamw",
        lambda recorder: fit(
            recorder,
            GAN([adamw(1e-3), adamw(1e-3)]),
            digits(),
            callbacks=[GradientClip(None, rules={"generator.*": 1e-9})],
        ),
        codes=("clip-below-eps",),
        layers="generator",
    ),
    Case(
        "clip-1e-3-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(0.1)), digits(), gradient_clip_val=1e-3),
        codes=("clip-cuts-rate",),
        part=True,
    ),
    Case(
        "clip-1e-2-gru-sgd",
        lambda recorder: fit(
            recorder, Learner(Recurrent(), sgd(0.1)), rows_of_images(), callbacks=[GradientClip(0.01)]
        ),
        50,
        codes=("clip-cuts-rate",),
    ),
    Case(
        "two-clips-cnn-adamw",
        lambda recorder: fit(
            recorder,
            Learner(cnn(norm=False), adamw(1e-3)),
            images(),
            callbacks=[GradientClip(0.3)],
            gradient_clip_val=0.1,
        ),
        codes=("clip-twice",),
        part=True,
    ),
    Case(
        "two-clips-mlp-sgd",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 64, 64, 10), sgd(0.05, 0.0)),
            digits(),
            callbacks=[GradientClip(0.4)],
            gradient_clip_val=0.2,
        ),
        50,
        codes=("clip-twice", "clip-cuts-rate"),
        why=CUTS,
    ),
    Case(
        "embedding-hogs-clip-bag-sgd",
        lambda recorder: fit(recorder, Learner(Bag(scale=1000.0), sgd(0.1, 0.0)), bags(), gradient_clip_val=0.02),
        codes=("dominated",),
        layers="embed",
        part=True,
    ),
    Case(
        "raw-inputs-hog-clip-mlp-sgd",
        lambda recorder: fit(recorder, Learner(TwoBranches(), sgd(0.02, 0.0)), digits(), gradient_clip_val=0.01),
        50,
        codes=("dominated", "clip-cuts-rate"),
        why="the clip is low for the other layers as well",
        layers="raw",
    ),
]
