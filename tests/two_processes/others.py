"""Cases for `launch.py`: BatchNorm over processes, and the other forms of DDP."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from two_processes.fits import CALLBACKS
from two_processes.launch import case, everywhere
from two_processes.run import PLAIN, SGD, Make, Run, Shared, network, pair

import lightning_calib as calib


class Precise(Shared):
    """The loader's batches, so that a pass beside the training sees all of them."""

    def __init__(self, optimizer: Callable[..., Any] = SGD) -> None:
        super().__init__(optimizer, lambda: nn.Sequential(*list(network())[:3], nn.BatchNorm1d(5), nn.Linear(5, 1)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.share(int(batch))


@case
def batch_statistics_are_those_of_all_processes() -> None:
    def make() -> list[Any]:
        return [calib.PreciseBatchNorm()]

    for way in ("fsdp", "tensor", "ddp"):
        run = Run(way, make, Precise())
        still = Precise(partial(torch.optim.SGD, lr=0.0))
        for ours, found in zip(still.parameters(), run.weights, strict=True):
            ours.data.copy_(found)
        one = Run("", make, still)
        found, expected = (dict(each.module.named_buffers()) for each in (run, one))
        for key in ("net.3.running_mean", "net.3.running_var"):
            torch.testing.assert_close(found[key], expected[key], rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(everywhere(found[key])[0], found[key], rtol=0, atol=0)


class Table(nn.Module):
    """A table with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.table, self.last = nn.EmbeddingBag(11, 5, sparse=True), nn.Linear(5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.table((3 * x).long().abs() % 11))


class Parts(nn.Module):
    """One half of it rests on every other call."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.calls, self.both, self.rests = 0, nn.Linear(4, 1), nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.both(x) + (self.rests(x) if self.calls % 2 else 0)


@case
def ddp_in_its_other_forms() -> None:
    some: list[Make] = [CALLBACKS["GradientClip"], CALLBACKS["several"], CALLBACKS["AdaGC"]]
    for make in some:
        pair("ddp", make, options={"gradient_as_bucket_view": True})
        pair("ddp", make, options={"static_graph": True})
        pair("ddp", make, partial(Shared, PLAIN, Parts), options={"find_unused_parameters": True})
        pair("ddp", make, partial(Shared, PLAIN, Table))
