"""The networks of the study: small, so that one run takes seconds on one thread."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn


def cnn(norm: bool, width: int = 12, blocks: int = 3) -> nn.Sequential:
    """8 x 8 images, ten classes; without normalisation there are twice as many layers, which makes it fragile."""
    layers: list[nn.Module] = []
    inputs = 1
    for block in range(blocks):
        outputs = width * (1 if block == 0 else 2)
        for _ in range(1 if norm else 2):
            layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm))
            layers += [nn.BatchNorm2d(outputs)] if norm else []
            layers.append(nn.ReLU())
            inputs = outputs
        layers.append(nn.MaxPool2d(2))
    if not norm:
        for layer in layers:
            if isinstance(layer, nn.Conv2d):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(inputs, 10))


def perceptron() -> nn.Sequential:
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Block(nn.Module):
    """Attention to earlier symbols, then two layers on each symbol; both add to what they normalise."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.down(nn.functional.gelu(self.up(self.second(x))))


class GPT(nn.Module):
    """Scores of the next symbol, (batch, symbols, time); the output layer is not tied to the embedding."""

    def __init__(self, symbols: int, context: int, width: int = 48, blocks: int = 2) -> None:
        super().__init__()
        self.symbol, self.position = nn.Embedding(symbols, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*[Block(width) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, symbols)
        for name, parameter in self.named_parameters():  # as GPT-2
            if parameter.dim() > 1:
                wide = ".out." in name or ".down." in name
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * blocks if wide else 1))
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)

    def forward(self, x: Tensor) -> Tensor:
        found = self.blocks(self.symbol(x) + self.position.weight)
        return self.head(self.norm(found)).transpose(1, 2)


class Bag(nn.Module):
    """The mean of the vectors of a text's hashed words, one hidden layer, a score per class; 0 stands for no word."""

    def __init__(self, rows: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.embedding = nn.EmbeddingBag(rows, width, mode="mean", padding_idx=0)
        with torch.no_grad():
            self.embedding.weight[1:].normal_(std=0.3)
        self.hidden, self.head = nn.Linear(width, 64), nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.embedding(x)).relu())


class Towers(nn.Module):
    """Scores of a batch's users for the same batch's items, by the product of their vectors."""

    def __init__(self, users: int, items: int, width: int = 16) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(users, width), nn.Embedding(items, width)
        for table in (self.users, self.items):
            nn.init.normal_(table.weight, std=0.1)

    def forward(self, x: Tensor) -> Tensor:
        return self.users(x[:, 0]) @ self.items(x[:, 1]).T


class Listener(nn.Module):
    """A GRU over the frames of a spoken digit; the mean of its states names the digit."""

    def __init__(self, bands: int, width: int = 48) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(bands, width, batch_first=True), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Any:
        return self.head(self.rnn(x)[0].mean(1))
