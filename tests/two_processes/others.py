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


class Spiky(Shared):
    """A rate that jumps at step 20; and, where asked, a loss that is large on the last process alone at step 30."""

    alone = False

    def __init__(self, optimizer: Callable[..., Any] = SGD) -> None:
        super().__init__(optimizer)
        self.gains = {7: 300.0, 8: 300.0}

    def on_train_batch_start(self, batch: Tensor, batch_idx: int) -> None:
        self.trainer.optimizers[0].param_groups[0]["lr"] = 20.0 if self.trainer.global_step == 20 else 0.05

    def share(self, step: int) -> Tensor:
        loud = self.alone and step == 30 and torch.distributed.get_rank() == 1
        return super().share(step) + (1e3 if loud else 0.0)


def spike_guard(**arguments: Any) -> list[Any]:
    return [calib.SpikeGuard(calib.ZScore(4.0, warmup_steps=5), snapshot_every_n_steps=5, **arguments)]


@case
def spikes_of_one_process_are_answered_by_all() -> None:
    for way in ("fsdp", "tensor", "ddp"):
        run = pair(way, spike_guard, Spiky, steps=40)
        ladder = run.states[0]["optimizers"]["0"]["ladder"]
        assert (ladder["rewinds"], run.states[0]["tally"]["0"]["rewound"]) == (1, 14), (way, ladder)
        pair(way, partial(spike_guard, ladder=("skip", "stop")), Shared)
    loud = Spiky()
    loud.alone = True
    run = Run("ddp", spike_guard, loud, 40).same_on_all()
    assert run.states[0]["optimizers"]["0"]["ladder"]["spikes"] == ladder["spikes"] + 1


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
