"""Made-up data sets, all from the global random numbers."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def clusters(n: int = 2560, d: int = 16, classes: int = 5, spread: float = 0.7) -> tuple[Tensor, Tensor]:
    """Three clusters a class."""
    centres = torch.randn(classes * 3, d)
    which = torch.randint(classes * 3, (n,))
    return centres[which] + spread * torch.randn(n, d), which % classes


def curve(n: int = 2560, d: int = 12, out: int = 1, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Targets of a random tanh network, standardised, with noise."""
    x = torch.randn(n, d)
    y = torch.tanh(2 * x @ torch.randn(d, 24) / d**0.5) @ torch.randn(24, out)
    return x, (y - y.mean(0)) / y.std(0) + noise * torch.randn(n, out)


def line(n: int = 2560, d: int = 20, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    x = torch.randn(n, d)
    return x, x @ torch.randn(d, 1) + noise * torch.randn(n, 1)


def pictures(n: int = 2560, size: int = 12, classes: int = 4, noise: float = 0.5) -> tuple[Tensor, Tensor]:
    """A pattern of five by five, somewhere."""
    patterns, y = torch.randn(classes, 5, 5), torch.randint(classes, (n,))
    x = noise * torch.randn(n, 1, size, size)
    places = torch.randint(size - 4, (n, 2)).tolist()
    for i, (row, column) in enumerate(places):
        x[i, 0, row : row + 5, column : column + 5] += patterns[y[i]]
    return x, y


def tokens(n: int = 2560, length: int = 16, vocab: int = 12, classes: int = 6) -> tuple[Tensor, Tensor]:
    """The class is the token that comes too often."""
    y = torch.randint(classes, (n,))
    x = torch.randint(vocab, (n, length))
    return torch.where(torch.rand(n, length) < 0.35, y[:, None], x), y


def text(n: int = 2560, length: int = 16, vocab: int = 20) -> tuple[Tensor, Tensor]:
    """A Markov chain, and the same one token later."""
    table = (2.5 * torch.randn(vocab, vocab)).softmax(-1)
    rows = [torch.randint(vocab, (n,))]
    for _ in range(length):
        rows.append(torch.multinomial(table[rows[-1]], 1)[:, 0])
    whole = torch.stack(rows, 1)
    return whole[:, :-1], whole[:, 1:]


def waves(n: int = 2560, length: int = 24, noise: float = 0.2) -> tuple[Tensor, Tensor]:
    """A noisy sine, and its frequency."""
    y, phase = torch.randn(n, 1), 6.3 * torch.rand(n, 1)
    x = torch.sin((0.6 + 0.15 * y) * torch.arange(length) + phase) + noise * torch.randn(n, length)
    return x[..., None], y


def ratings(n: int = 5120, users: int = 200, items: int = 80) -> tuple[Tensor, Tensor]:
    """Pairs of a user and an item, and how much the one likes the other."""
    u, v = torch.randn(users, 4), torch.randn(items, 4)
    pairs = torch.stack([torch.randint(users, (n,)), torch.randint(items, (n,))], 1)
    return pairs, (u[pairs[:, 0]] * v[pairs[:, 1]]).sum(1) / 2 + 0.1 * torch.randn(n)


def token_loss(logits: Tensor, y: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten())
