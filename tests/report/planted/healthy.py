"""Runs with nothing wrong, of kinds that look wrong to a rule of thumb."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch.callbacks import EarlyStopping
from lightning.pytorch.plugins import MixedPrecision
from report.planted.data import bags, digits, images, rows_of_images, surface, text
from report.planted.fit import Case, Learner, adamw, fit, muon, sgd
from report.planted.incidents import number, standardised, wide_norm
from report.planted.layers import GAN
from report.planted.models import Bag, Recurrent, Transformer, cnn, mlp
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, OneCycleLR, StepLR

from lightning_calib import GradientClip, ZClip


def warm_cosine(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A tenth of the steps up, the others down."""
    warm = max(1, steps // 10)
    return LambdaLR(
        optimizer,
        lambda t: (t + 1) / warm if t < warm else 0.5 * (1 + math.cos(math.pi * (t - warm) / (steps - warm))),
    )


def long_warmup(optimizer: Optimizer, steps: int) -> LambdaLR:
    """A run that is stopped long before its rate has risen."""
    return LambdaLR(optimizer, lambda t: min(1.0, (t + 1) / 2000))


class LoRA(nn.Module):
    """A frozen linear layer and a product of two thin ones, of which B starts at 0."""

    def __init__(self, inner: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.inner = inner.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, inner.in_features) / math.sqrt(inner.in_features))
        self.b = nn.Parameter(torch.zeros(inner.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x) + x @ self.a.T @ self.b.T


def trained(net: nn.Module, data: tuple[Tensor, Tensor], steps: int = 200, lr: float = 3e-3) -> nn.Module:
    """The same network, trained with Adam and nobody watching."""
    optimizer, (x, y) = torch.optim.Adam(net.parameters(), lr), data
    for _ in range(steps):
        chosen = torch.randint(len(x), (128,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[chosen]), y[chosen]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return net


def adapted() -> nn.Module:
    """A network that knows digits, to learn them upside down by LoRA."""
    net = trained(mlp(64, 64, 64, 10), digits())
    return nn.Sequential(LoRA(net[0]), nn.ReLU(), LoRA(net[2]), nn.ReLU(), LoRA(net[4]))


def upside_down() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x.flip(1), y


class Gates(nn.Module):
    """Residual blocks behind gates that start at 0."""

    def __init__(self, blocks: int = 4) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.ModuleList(mlp(32, 64, 32) for _ in range(blocks))
        self.gates = nn.ParameterList(torch.zeros(()) for _ in range(blocks))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        for gate, block in zip(self.gates, self.blocks, strict=True):
            x = x + gate * block(x)
        return self.head(x.relu())


class Experts(nn.Module):
    """Eight experts; the router, with noise, sends each image to one, and some are drawn only now and then."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.head = nn.Linear(64, 8), nn.Linear(32, 10)
        self.experts = nn.ModuleList(mlp(64, 32, 32) for _ in range(8))

    def forward(self, x: Tensor) -> Tensor:
        scores = self.router(x / 4)
        weights = (scores + 0.3 * torch.randn_like(scores)).softmax(1)
        best, which = weights.max(1)
        found = torch.zeros(len(x), 32)
        for i, expert in enumerate(self.experts):
            if (which == i).any():
                found = found.index_put((which == i,), expert(x[which == i]))
        return self.head((best[:, None] * found).relu())


class RareExperts(nn.Module):
    """A second branch that only one batch in ten goes through."""

    def __init__(self) -> None:
        super().__init__()
        self.usual, self.rare, self.head = mlp(64, 64, 32), mlp(64, 64, 32), nn.Linear(32, 10)
        self.count = 0

    def forward(self, x: Tensor) -> Tensor:
        self.count += 1
        branch = self.rare if self.count % 10 == 3 else self.usual
        return self.head(branch(x).relu())


class Tied(nn.Module):
    """An autoencoder whose decoder is its encoder, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.shift = nn.Parameter(torch.randn(32, 64) / 8), nn.Parameter(torch.zeros(64))

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.weight.T).relu() @ self.weight + self.shift


class Gaussian(nn.Module):
    """A mean and a log deviation."""

    def __init__(self) -> None:
        super().__init__()
        self.net = mlp(16, 64, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


def likelihood(found: Tensor, y: Tensor) -> Tensor:
    """Negative log-likelihood of a normal distribution: below 0 once the deviation is small."""
    mean, log_deviation = found.chunk(2, 1)
    return (log_deviation + 0.5 * ((y - mean) / log_deviation.exp()).square()).mean()


def precise_surface() -> tuple[Tensor, Tensor]:
    """Targets without noise, and small: a density above 1."""
    x, y = surface(1)
    return x, 0.2 * (x[:, :3] @ torch.tensor([[0.5], [-0.3], [0.2]])) + 0.01 * (y - y.mean())


def hinge(scores: Tensor, y: Tensor) -> Tensor:
    return nn.functional.multi_margin_loss(scores, y)


def clusters() -> tuple[Tensor, Tensor]:
    """Ten classes far from each other."""
    generator = torch.Generator().manual_seed(5)
    y = torch.randint(10, (1792,), generator=generator)
    return 3 * torch.randn(10, 64, generator=generator)[y] + torch.randn(1792, 64, generator=generator) / 2, y


def shuffled_labels() -> tuple[Tensor, Tensor]:
    x, y = digits()
    return x, y[torch.randperm(len(y), generator=torch.Generator().manual_seed(3))]


def big_targets() -> tuple[Tensor, Tensor]:
    """House prices, in thousands: the first loss is large without anything being summed."""
    x, y = surface(2)
    return x, 200 + 80 * y


def itself() -> tuple[Tensor, Tensor]:
    x, _ = digits()
    return x, x


def unbalanced() -> tuple[Tensor, Tensor]:
    """Nine tenths of the images are of class 0: its mean, a bit varied."""
    x, y = digits()
    few = x[:160], y[:160]
    many = x[y == 0].repeat(9, 1)[:1440] + 0.3 * torch.randn(1440, 64, generator=torch.Generator().manual_seed(2))
    return torch.cat([few[0], many]), torch.cat([few[1], torch.zeros(1440, dtype=torch.long)])


def smaller_groups(net: nn.Module) -> list[dict[str, Any]]:
    """No decay on vectors, and a tenth of the rate for the first layer, as fine-tuning does."""
    named = list(net.named_parameters())
    return [
        {"params": [p for n, p in named if p.dim() > 1 and not n.startswith("0.")]},
        {"params": [p for n, p in named if p.dim() == 1 and not n.startswith("0.")], "weight_decay": 0.0},
        {"params": [p for n, p in named if n.startswith("0.")], "lr": 1e-4},
    ]


def frozen_start() -> nn.Module:
    """A trained body, frozen, under a new head."""
    net = trained(mlp(64, 64, 64, 10), digits())
    net[:4].requires_grad_(False)
    net[4].reset_parameters()
    return net


def without_gradient(net: nn.Module, *starts: str) -> nn.Module:
    """Nothing but notes: whether it was meant, numbers do not say."""
    for name, parameter in net.named_parameters():
        parameter.requires_grad_(not name.startswith(starts))
    return net


MSE = nn.functional.mse_loss
CASES = [
    Case(
        "cosine-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(0.1), schedule=warm_cosine), digits()),
        part=True,
    ),
    Case(
        "constant-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), sgd(0.05)), digits(), 400),
        50,
        part=True,
    ),
    Case(
        "one_cycle-cnn_norm-sgd",
        lambda recorder: fit(
            recorder,
            Learner(cnn(), sgd(0.1), schedule=lambda o, n: OneCycleLR(o, 0.2, total_steps=n)),
            images(),
            validate=True,
        ),
        part=True,
    ),
    Case("plain-cnn-adamw", lambda recorder: fit(recorder, Learner(cnn(norm=False), adamw(1e-3)), images()), 50),
    Case("high_rate-cnn_norm-adamw", lambda recorder: fit(recorder, Learner(cnn(), adamw(1e-2)), images())),
    Case(
        "clip_1-gru-adamw",
        lambda recorder: fit(recorder, Learner(Recurrent(), adamw(3e-3)), rows_of_images(), gradient_clip_val=1.0),
        part=True,
    ),
    Case(
        "step_decay-lstm-sgd",
        lambda recorder: fit(
            recorder,
            Learner(Recurrent(nn.LSTM), sgd(0.3), schedule=lambda o, n: StepLR(o, n // 3, 0.1)),
            rows_of_images(),
            400,
        ),
        50,
    ),
    Case(
        "regression-gru-adamw",
        lambda recorder: fit(recorder, Learner(Recurrent(outputs=1), adamw(3e-3), number), standardised()),
    ),
    Case(
        "usual-transformer-adamw",
        lambda recorder: fit(
            recorder, Learner(Transformer(), adamw(3e-3), schedule=warm_cosine), text(), 320, 32, gradient_clip_val=1.0
        ),
    ),
    Case(
        "tied-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Transformer(tied=True), adamw(2e-3)), text(), 300, 32),
        50,
    ),
    Case(
        "tied-autoencoder-adamw",
        lambda recorder: fit(recorder, Learner(Tied(), adamw(1e-3), MSE), itself()),
    ),
    Case(
        "rezero-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Transformer(rezero=True), adamw(3e-3)), text(), 300, 32),
    ),
    Case("rezero-mlp-sgd", lambda recorder: fit(recorder, Learner(Gates(), sgd(0.02)), digits()), 50),
    Case(
        "usual-mlp-muon",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10, bias=False), muon(0.01)), digits()),
        part=True,
    ),
    Case(
        "cosine-mlp-muon",
        lambda recorder: fit(
            recorder, Learner(mlp(64, 64, 64, 10, bias=False), muon(0.02), schedule=warm_cosine), digits()
        ),
        50,
    ),
    Case(
        "lora-mlp-adamw",
        lambda recorder: fit(recorder, Learner(adapted(), adamw(3e-3)), upside_down()),
        part=True,
        notes=("frozen",),
    ),
    Case("lora-mlp-sgd", lambda recorder: fit(recorder, Learner(adapted(), sgd(0.05)), upside_down(), 400), 50),
    Case(
        "sparse-bag-sgd",
        lambda recorder: fit(
            recorder,
            Learner(
                Bag(sparse=True, words=4000),
                sgd(0.5, 0.0),
            ),
            bags(),
        ),
        part=True,
    ),
    Case(
        "untouched_rows-bag-adamw",
        lambda recorder: fit(recorder, Learner(Bag(words=4000), adamw(3e-3)), bags()),
        50,
        part=True,
    ),
    Case(
        "no_loss-gan-adamw",
        lambda recorder: fit(recorder, GAN([adamw(1e-3), adamw(1e-3)]), digits(), 400),
        part=True,
    ),
    Case(
        "loss-gan-adam",
        lambda recorder: fit(
            recorder, GAN([lambda p: torch.optim.Adam(p, 2e-4, (0.5, 0.999))] * 2, logs=True), digits(), 400
        ),
        50,
    ),
    Case(
        "in_warmup-transformer-adamw",
        lambda recorder: fit(
            recorder,
            Learner(Transformer(), adamw(3e-3), schedule=long_warmup),
            text(),
            150,
            32,
            max_epochs=100,
            max_steps=150,
        ),
        part=True,
    ),
    Case(
        "early_stopping-mlp-adamw",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 128, 10), adamw(1e-2)),
            digits(),
            validate=True,
            callbacks=[EarlyStopping("val_loss", patience=1)],
            max_epochs=60,
        ),
    ),
    Case(
        "accumulation-mlp-sgd",
        lambda recorder: fit(
            recorder, Learner(mlp(64, 64, 64, 10), sgd(0.1)), digits(), 800, 16, accumulate_grad_batches=4
        ),
        part=True,
    ),
    Case(
        "clips_always-mlp-adamw",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 64, 10), adamw(1e-3)), digits(), gradient_clip_val=0.01),
        notes=("clip-always",),
        part=True,
    ),
    Case(
        "never_clips-cnn_norm-adamw",
        lambda recorder: fit(recorder, Learner(cnn(), adamw(1e-3)), images(), callbacks=[GradientClip(1000.0)]),
        50,
        notes=("clip-never",),
    ),
    Case(
        "zclip-cnn-sgd",
        lambda recorder: fit(recorder, Learner(cnn(norm=False), sgd(0.05)), images(), callbacks=[ZClip()]),
    ),
    Case(
        "hinge_at_zero-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 10), sgd(0.1), hinge), clusters(), 400),
        part=True,
    ),
    Case(
        "fine_tuning-mlp-adamw",
        lambda recorder: fit(recorder, Learner(trained(mlp(64, 64, 64, 10), digits()), adamw(2e-5)), digits()),
        part=True,
    ),
    Case(
        "fine_tuning-cnn-sgd",
        lambda recorder: fit(
            recorder,
            Learner(trained(cnn(norm=False), images(), 300), sgd(1e-3), groups=lambda net: tenth_first(net)),
            images(),
        ),
        50,
    ),
    Case(
        "new_head-mlp-adamw",
        lambda recorder: fit(recorder, Learner(frozen_start(), adamw(3e-3)), digits()),
        notes=("frozen",),
    ),
    Case(
        "frozen_by_mistake-cnn-adamw",
        lambda recorder: fit(recorder, Learner(without_gradient(cnn(norm=False), "0.", "3."), adamw(3e-3)), images()),
        50,
        notes=("frozen",),
    ),
    Case(
        "scaler_starts-mlp-sgd",
        lambda recorder: fit(
            recorder,
            Learner(mlp(64, 64, 64, 10), sgd(0.05)),
            digits(),
            plugins=[MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", 2.0**24, growth_interval=2000))],
        ),
        notes=("loss-scale",),
    ),
    Case(
        "converged-mlp-sgd",
        lambda recorder: fit(recorder, Learner(trained(mlp(64, 64, 64, 10), digits(), 600), sgd(0.01)), digits()),
        part=True,
    ),
    Case(
        "converged-regression-adamw",
        lambda recorder: fit(recorder, Learner(nn.Linear(16, 1), adamw(1e-2), MSE), surface(), 600),
        50,
    ),
    Case(
        "likelihood-mlp-adamw",
        lambda recorder: fit(recorder, Learner(Gaussian(), adamw(3e-3), likelihood), precise_surface(), 400),
        part=True,
    ),
    Case(
        "random_labels-mlp-adamw",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 10), adamw(1e-3)), shuffled_labels()),
        part=True,
    ),
    Case(
        "random_labels-cnn_norm-sgd",
        lambda recorder: fit(recorder, Learner(cnn(), sgd(0.02)), (images()[0], shuffled_labels()[1])),
        50,
    ),
    Case("experts-mlp-adamw", lambda recorder: fit(recorder, Learner(Experts(), adamw(3e-3)), digits()), part=True),
    Case("rare_branch-mlp-sgd", lambda recorder: fit(recorder, Learner(RareExperts(), sgd(0.05)), digits(), 400), 50),
    Case(
        "tiny_batches-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 10), sgd(0.01)), digits(), 400, 2, max_steps=400),
        part=True,
    ),
    Case(
        "batch_norm-mlp_norm-adamw",
        lambda recorder: fit(recorder, Learner(wide_norm(), adamw(3e-3)), digits(), validate=True),
        50,
    ),
    Case(
        "big_targets-mlp-adamw",
        lambda recorder: fit(recorder, Learner(mlp(16, 64, 1), adamw(3e-2), MSE), big_targets()),
    ),
    Case(
        "unbalanced-mlp-sgd",
        lambda recorder: fit(recorder, Learner(mlp(64, 64, 10), sgd(0.05)), unbalanced()),
    ),
    Case(
        "groups-mlp-adamw",
        lambda recorder: fit(
            recorder,
            Learner(
                mlp(64, 64, 64, 10), adamw(1e-3), groups=smaller_groups, schedule=lambda o, n: CosineAnnealingLR(o, n)
            ),
            digits(),
        ),
    ),
    Case(
        "one_epoch-transformer-adamw",
        lambda recorder: fit(recorder, Learner(Transformer(), adamw(3e-3)), text(), 64, 16, max_epochs=1),
    ),
]


def tenth_first(net: nn.Sequential) -> list[dict[str, Any]]:
    """The usual groups of fine-tuning: the body at a tenth of the head's rate."""
    *body, head = net
    return [
        {"params": [p for layer in body for p in layer.parameters()], "lr": 1e-4},
        {"params": list(head.parameters())},
    ]
