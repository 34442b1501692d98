"""The networks of the planted runs."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from report.planted.data import LENGTH, SYMBOLS, TOPICS, WORDS
from torch import Tensor, nn


def mlp(*sizes: int, act: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        layers += [nn.Linear(inputs, outputs, bias=bias), act()]
    return nn.Sequential(*layers[:-1])


def deep(depth: int, act: Callable[[], nn.Module], width: int = 32, gain: float | None = None) -> nn.Sequential:
    """64 -> 32 -> ... -> 10; with a gain, weights of standard deviation gain / sqrt(inputs)."""
    net = mlp(64, *[width] * depth, 10, act=act)
    if gain is not None:
        for layer in net[:-1]:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=gain / math.sqrt(layer.in_features))
                nn.init.zeros_(layer.bias)
    return net


def cnn(norm: bool = True, width: int = 12, momentum: float | None = 0.1) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in ((1, width), (width, 2 * width), (2 * width, 2 * width)):
        layers.append(nn.Conv2d(inputs, outputs, 3, padding=1, bias=not norm))
        layers += [nn.BatchNorm2d(outputs, momentum=momentum)] if norm else []
        layers += [nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(2 * width, 10))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase] = nn.GRU, width: int = 32, outputs: int = 10, gain: float | None = None):
        super().__init__()
        self.rnn = kind(8, width, batch_first=True)
        self.head = nn.Linear(width, outputs)
        if gain is not None:
            nn.init.normal_(self.rnn.weight_hh_l0, std=gain / math.sqrt(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][:, -1])


class Block(nn.Module):
    def __init__(self, width: int, rezero: bool = False):
        super().__init__()
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 2 * width), nn.Linear(2 * width, width)
        self.gate = nn.Parameter(torch.zeros(1)) if rezero else 1.0

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.first(x)).unflatten(-1, (3, 2, -1)).permute(2, 0, 3, 1, 4)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.gate * self.out(mixed.transpose(1, 2).flatten(2))
        return x + self.gate * self.down(nn.functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Scores of the next symbol, (batch, symbols, time)."""

    def __init__(self, width: int = 32, blocks: int = 2, tied: bool = False, rezero: bool = False):
        super().__init__()
        self.symbol, self.position = nn.Embedding(SYMBOLS, width), nn.Embedding(LENGTH, width)
        for table in (self.symbol, self.position):
            nn.init.normal_(table.weight, std=0.1)
        self.blocks = nn.Sequential(*[Block(width, rezero) for _ in range(blocks)])
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, SYMBOLS, bias=False)
        if tied:
            self.head.weight = self.symbol.weight

    def forward(self, x: Tensor) -> Tensor:
        found = self.blocks(self.symbol(x) + self.position.weight)
        return self.head(self.norm(found)).transpose(1, 2)


class Bag(nn.Module):
    """The mean of the words' vectors times `scale`, which their gradient is multiplied by; a hidden layer, a topic."""

    def __init__(self, width: int = 16, sparse: bool = False, scale: float = 1.0, words: int = WORDS):
        super().__init__()
        self.embed = nn.Embedding(words, width, sparse=sparse)
        self.hidden, self.head = nn.Linear(width, 32), nn.Linear(32, TOPICS)
        self.scale = scale
        if scale != 1:
            with torch.no_grad():
                self.embed.weight /= scale

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.hidden(self.scale * self.embed(x).mean(1)).relu())
