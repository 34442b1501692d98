"""Modules of given shapes for fits in which nothing but the optimizer step takes time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn

Shapes = Iterable[tuple[int, ...]]
FALLING, RISING = 0.999, 1.01  # the norm from one step to the next: below, above every norm so far


def small(tensors: int) -> Shapes:
    """Matrices of 32 x 32 and vectors of 32 elements, in turn."""
    return [((32, 32), (32,))[i % 2] for i in range(tensors)]


def equal(tensors: int, elements: int) -> Shapes:
    """So many elements in so many matrices of 100 rows."""
    return [(100, elements // tensors // 100)] * tensors


def gpt2() -> Shapes:
    """Shapes of GPT-2 small: 148 tensors, 124 M elements."""
    yield from [(50257, 768), (1024, 768)]
    for _ in range(12):
        yield from [(768,), (768,), (2304, 768), (2304,), (768, 768), (768,)]
        yield from [(768,), (768,), (3072, 768), (3072,), (768, 3072), (768,)]
    yield from [(768,), (768,)]


def resnet50() -> Shapes:
    """Shapes of ResNet-50: 161 tensors, 26 M elements."""
    yield from [(64, 3, 7, 7), (64,), (64,)]
    inputs = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            yield from [(width, inputs, 1, 1), (width,), (width,), (width, width, 3, 3), (width,), (width,)]
            yield from [(4 * width, width, 1, 1), (4 * width,), (4 * width,)]
            if block == 0:
                yield from [(4 * width, inputs, 1, 1), (4 * width,), (4 * width,)]
            inputs = 4 * width
    yield from [(1000, 2048), (1000,)]


class _Given(torch.autograd.Function):
    """A loss of 1 whose gradient is `scale` times the tensors of `source`, new ones in each backward pass."""

    @staticmethod
    def forward(ctx: Any, scale: float, source: list[Tensor], *weights: Tensor) -> Tensor:
        ctx.scale, ctx.source = scale, source
        return weights[0].new_ones(())

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        return None, None, *torch._foreach_mul(ctx.source, ctx.scale)


class Batches:
    """So many batches of nothing; a list would be taken for many loaders."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Tensor]:
        return iter([torch.zeros(1)] * self.count)


class Given(LightningModule):
    """Parameters of given shapes, two to a layer; their gradients cost one write each and no forward pass.

    The norm of the gradient is multiplied by `level` from one step to the next. May be fitted again and again: the
    learning rate is so small that the weights stay what they are.
    """

    def __init__(self, shapes: Shapes, device: str = "cpu") -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        values = [_normal(shape, generator, device) for shape in shapes]
        self.flat = [nn.Parameter(value) for value in values]
        self.layers = nn.ModuleList(nn.ParameterList(self.flat[i : i + 2]) for i in range(0, len(values), 2))
        of_shape = {value.shape: 1e-3 * _normal(tuple(value.shape), generator, device) for value in values}
        self.source = [of_shape[value.shape] for value in values]  # of one shape, one tensor: room for large models
        self.level, self.steps = FALLING, 10

    @property
    def scale(self) -> float:
        """What the source is multiplied by in this step."""
        return float(self.level**self.trainer.global_step)

    def training_step(self, batch: Tensor, batch_idx: int) -> Any:
        return _Given.apply(self.scale, self.source, *self.flat)

    def train_dataloader(self) -> Batches:
        return Batches(self.steps)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def _normal(shape: tuple[int, ...], generator: torch.Generator, device: str) -> Tensor:
    if device == "meta":
        return torch.empty(shape, device="meta")
    return torch.randn(shape, generator=generator)
