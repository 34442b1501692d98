"""What the planted runs learn from: scikit-learn's digits, and made data with a structure that can be learnt."""

from __future__ import annotations

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor

WORDS, TOPICS = 400, 8
SYMBOLS, LENGTH = 24, 16


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 64 pixels with mean 0 and deviation 1, and their classes."""
    found = load_digits()
    images = torch.from_numpy(found.data).float()
    return (images - images.mean()) / images.std(), torch.from_numpy(found.target)


def images() -> tuple[Tensor, Tensor]:
    """The same, of shape (1797, 1, 8, 8)."""
    x, y = digits()
    return x.reshape(-1, 1, 8, 8), y


def rows_of_images() -> tuple[Tensor, Tensor]:
    """The same as sequences: 8 rows of 8 pixels."""
    x, y = digits()
    return x.reshape(-1, 8, 8), y


@cache
def surface(seed: int = 0) -> tuple[Tensor, Tensor]:
    """Regression: 2,048 points of 16 features, and a smooth target of mean 0 and deviation about 1, with noise."""
    generator = torch.Generator().manual_seed(100 + seed)
    x = torch.randn(2048, 16, generator=generator)
    direction = torch.randn(16, 3, generator=generator) / 4
    y = (x @ direction).tanh().sum(1, keepdim=True) + 0.1 * torch.randn(2048, 1, generator=generator)
    return x, y


@cache
def bags() -> tuple[Tensor, Tensor]:
    """2,048 bags of 12 words; each topic has words of its own, and the words are Zipf's: many are hardly ever drawn."""
    generator = torch.Generator().manual_seed(7)
    y = torch.randint(TOPICS, (2048,), generator=generator)
    common = 1 / torch.arange(1, WORDS + 1).float()
    liked = torch.rand(TOPICS, WORDS, generator=generator).pow(6) * 20
    x = torch.multinomial(common * (1 + liked[y]), 12, replacement=True, generator=generator)
    return x, y


@cache
def text() -> tuple[Tensor, Tensor]:
    """1,024 windows of 16 symbols of a Markov chain with three likely successors each, and the symbols after them."""
    generator = torch.Generator().manual_seed(11)
    table = torch.rand(SYMBOLS, SYMBOLS, generator=generator).pow(8) + 0.001
    walk = torch.randint(SYMBOLS, (1024, 1), generator=generator)
    for _ in range(LENGTH):
        walk = torch.cat([walk, torch.multinomial(table[walk[:, -1]], 1, generator=generator)], 1)
    return walk[:, :-1], walk[:, 1:]
