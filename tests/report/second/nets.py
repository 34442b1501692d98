"""Small networks."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn


def mlp(
    *widths: int, act: Callable[[], nn.Module] = nn.ReLU, norm: Callable[[int], nn.Module] | None = None
) -> nn.Module:
    layers: list[nn.Module] = []
    for before, after in pairwise(widths[:-1]):
        layers += [nn.Linear(before, after), *([norm(after)] if norm else []), act()]
    return nn.Sequential(*layers, nn.Linear(*widths[-2:]))


def cnn(
    norm: Callable[[int], nn.Module] | None = None,
    width: int = 8,
    classes: int = 4,
    act: Callable[[], nn.Module] = nn.ReLU,
    depth: int = 3,
) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        layers += [nn.Conv2d(width if i else 1, width, 3, 2 if i == 1 else 1, 1, bias=norm is None)]
        layers += [*([norm(width)] if norm else []), act()]
    body = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(3), nn.Flatten())
    return nn.Sequential(body, nn.Linear(width * 9, classes))


class Recurrent(nn.Module):
    """Reads tokens (with a vocabulary) or numbers; the last state, or every state, goes to the head."""

    def __init__(
        self,
        kind: type[nn.RNNBase] = nn.GRU,
        vocab: int | None = 12,
        out: int = 6,
        width: int = 32,
        every: bool = False,
        detach: bool = False,
        **rest: object,
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, 16) if vocab else nn.Identity()
        self.encoder = kind(16 if vocab else 1, width, batch_first=True, **rest)
        self.head = nn.Linear(width, out)
        self.every, self.detach = every, detach

    def forward(self, x: Tensor) -> Tensor:
        states = self.encoder(self.embed(x))[0]
        states = states if self.every else states[:, -1]
        return self.head(states.detach() if self.detach else states)


class Former(nn.Module):
    """A small transformer of tokens; causal with `every`."""

    def __init__(
        self, vocab: int = 12, out: int = 6, depth: int = 2, width: int = 32, every: bool = False, first: bool = True
    ) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab, width)
        self.place = nn.Parameter(0.02 * torch.randn(64, width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(width, 2, 2 * width, 0.0, batch_first=True, norm_first=first)
            for _ in range(depth)
        )
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, out)
        self.every = every

    def forward(self, x: Tensor) -> Tensor:
        h, length = self.embed(x) + self.place[: x.shape[1]], x.shape[1]
        mask = torch.full((length, length), float("-inf")).triu(1) if self.every else None
        for block in self.blocks:
            h = block(h, src_mask=mask)
        h = self.norm(h)
        return self.head(h if self.every else h.mean(1))


class Towers(nn.Module):
    """Two halves of the features, each with its own tower."""

    def __init__(self, d: int = 12, width: int = 48, out: int = 1, use: str = "both") -> None:
        super().__init__()
        self.left = mlp(d // 2, width, width)
        self.right = mlp(d - d // 2, width, width)
        self.head = mlp(2 * width, width, out)
        self.use = use

    def forward(self, x: Tensor) -> Tensor:
        cut = x.shape[1] // 2
        left = torch.relu(self.left(x[:, :cut]))
        if self.use == "left twice":
            return self.head(torch.cat([left, left], 1))
        right = torch.relu(self.right(x[:, cut:]))
        return self.head(torch.cat([left, right.detach() if self.use == "detached" else right], 1))


class Factors(nn.Module):
    """Matrix factorisation."""

    def __init__(self, users: int = 200, items: int = 80, width: int = 8, sparse: bool = False) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width, sparse=sparse), nn.Embedding(items, width, sparse=sparse)

    def forward(self, x: Tensor) -> Tensor:
        return (self.users(x[:, 0]) * self.items(x[:, 1])).sum(1)


class Residual(nn.Module):
    """Pre-norm residual blocks; some may be left out at random while it trains."""

    def __init__(self, d: int = 16, width: int = 32, depth: int = 8, out: int = 5, drop: float = 0.0) -> None:
        super().__init__()
        self.stem = nn.Linear(d, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            for _ in range(depth)
        )
        self.head, self.drop = nn.Linear(width, out), drop

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            if not self.training or float(torch.rand(())) >= self.drop:
                h = h + block(h)
        return self.head(h)


class ResNet(nn.Module):
    """Convolutions with batch normalisation and a way around."""

    def __init__(self, width: int = 8, depth: int = 2, classes: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, 2, 1, bias=False)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1, bias=False),
                nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 1, 1, bias=False),
            )
            for _ in range(depth)
        )  # fmt: skip
        self.pool, self.head = nn.AdaptiveAvgPool2d(3), nn.Linear(width * 9, classes)

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        for block in self.blocks:
            h = h + block(h)
        return self.head(self.pool(h).flatten(1))
