"""A fit on one process or two, under any strategy, and what it leaves; the data are the same in all of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any
from unittest.mock import patch

import pytest
import torch
from helpers.newer import newer
from helpers.tiny_modules import Rows, Tiny, fit
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
    Strategy,
)
from torch import Tensor, distributed, nn
from torch.distributed import fsdp
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)
from two_processes.launch import WORLD, counted, everywhere, whole

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.functional.since import SPREAD

fully_shard = newer("torch.distributed.fsdp", "fully_shard", "torch 2.6")
Replicate = newer("torch.distributed.tensor", "Replicate", "torch 2.5")
Shard = newer("torch.distributed.tensor", "Shard", "torch 2.5")

STEPS = 8
SGD, PLAIN = partial(torch.optim.SGD, lr=0.05, momentum=0.9), partial(torch.optim.SGD, lr=0.1)
SPIKES = {2: 0.1, 4: 20.0, 6: 5.0}
# The mean of two halves is not to the bit that of the whole, and the steps carry this on.
CLOSE = {"rtol": 2e-4, "atol": 2e-6}
Make = Callable[[], list[Any]]


def network() -> nn.Sequential:
    """Shared by two processes, the last layer leaves nothing to the second; five rows are uneven."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 5), nn.LayerNorm(5), nn.Linear(5, 1))


class Shared(Tiny):
    """Regression; ``way`` is how processes share the work, ``bad`` the steps whose loss is NaN on the last of them."""

    way = ""
    bad: tuple[int, ...] = ()
    wide = torch.float32

    def __init__(self, optimizer: Callable[..., Any] = SGD, net: Callable[[], nn.Module] = network) -> None:
        super().__init__(optimizer, SPIKES, net)
        self.spread = False

    def configure_model(self) -> None:
        too_old = SPREAD.why_not()
        if self.way in WAYS and too_old is not None:
            pytest.skip(too_old)
        if self.way in WAYS and not self.spread:
            WAYS[self.way](self.net, self.device_mesh)
        self.spread = True

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.share(self.trainer.global_step)

    def share(self, step: int) -> Tensor:
        """This process's part of the loss."""
        generator = torch.Generator().manual_seed(1000 + step)
        x, y = torch.randn(16, 4, generator=generator), torch.randn(16, 1, generator=generator)
        x, y = x.to(self.wide), y.to(self.wide)
        parts = WORLD if self.way in ("fsdp", "ddp", "flat") else 1
        x, y = (one.chunk(parts)[distributed.get_rank() % parts] for one in (x, y))
        loss = nn.functional.mse_loss(self.net(x), y) * self.gains.get(step, 1.0)
        return loss * math.nan if step in self.bad and (parts == 1 or distributed.get_rank() == 1) else loss


def _fsdp(net: nn.Module, mesh: Any) -> None:
    for layer in net.children():
        if next(layer.parameters(), None) is not None:
            fully_shard(layer, mesh=mesh["data_parallel"])
    fully_shard(net, mesh=mesh["data_parallel"])


def _tensor_parallel(net: nn.Module, mesh: Any) -> None:
    """The norm and the last layer stay plain."""
    parallelize_module(net, mesh["tensor_parallel"], {"0": ColwiseParallel(), "2": RowwiseParallel()})


def _sequence_parallel(net: nn.Module, mesh: Any) -> None:
    """The norm's gradients are partial: each process has a term of the sum."""
    gathered = PrepareModuleInput(input_layouts=Shard(0), desired_input_layouts=Replicate(), use_local_output=True)
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel(output_layouts=Shard(0), use_local_output=False)}
    plan |= {"3": SequenceParallel(sequence_dim=0), "4": gathered}
    parallelize_module(net, mesh["tensor_parallel"], plan)


WAYS = {"fsdp": _fsdp, "tensor": _tensor_parallel, "sequence": _sequence_parallel}


@contextmanager
def on_the_cpu() -> Iterator[None]:
    """Lightning gives FSDP1 the index of a GPU, and none is not the CPU."""
    init = FullyShardedDataParallel.__init__

    def there(*args: Any, **kinds: Any) -> None:
        init(*args, **{**kinds, "device_id": torch.device("cpu")})

    with patch.object(FullyShardedDataParallel, "__init__", there):
        yield


class FlatStrategy(FSDPStrategy):
    """FSDP1 on the CPU, where Lightning refuses its own class and no other."""

    @property
    def root_device(self) -> torch.device:
        return torch.device("cpu")

    def _setup_model(self, model: nn.Module) -> nn.Module:
        with on_the_cpu():
            return super()._setup_model(model)

    def lightning_module_state_dict(self) -> dict[str, Any]:
        with _kept_where_it_is():
            return super().lightning_module_state_dict()

    def optimizer_state(self, optimizer: Any) -> dict[str, Any]:
        with _kept_where_it_is():
            return super().optimizer_state(optimizer)


@contextmanager
def _kept_where_it_is() -> Iterator[None]:
    """Gathering a state and then offloading it to the CPU reads freed memory, in torch, where it is on the CPU."""
    with ExitStack() as stack:
        for place, name in ((fsdp, "FullStateDictConfig"), (fsdp.api, "FullOptimStateDictConfig")):
            kind = getattr(place, name)
            stack.enter_context(patch.object(place, name, lambda kind=kind, **kinds: kind(rank0_only=True)))
        yield


def strategy(way: str, options: dict[str, Any]) -> Strategy:
    if way == "ddp":
        return DDPStrategy(process_group_backend="gloo", **options)
    if way == "flat":
        options = {"auto_wrap_policy": ModuleWrapPolicy({nn.Linear}), "state_dict_type": "full", **options}
        return FlatStrategy(process_group_backend="gloo", **options)
    if way:
        return ModelParallelStrategy(*((2, 1) if way == "fsdp" else (1, 2)), save_distributed_checkpoint=False)
    return SingleDeviceStrategy(torch.device("cpu"))


class Kept(Callback):
    """States and weights before anything is torn down; all of them whole."""

    def __init__(self, ours: list[CalibratedCallback]) -> None:
        self.ours = ours

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.states = [one.state_dict() for one in self.ours]
        model = trainer.strategy.model
        flat = isinstance(trainer.strategy, FlatStrategy)
        with FullyShardedDataParallel.summon_full_params(model) if flat else nullcontext():
            self.weights = [whole(p) for p in pl_module.parameters()]


class Run:
    """One fit, and what it left."""

    def __init__(
        self, way: str, make: Make, module: Shared | None = None, steps: int = STEPS, options: Any = None, **kinds: Any
    ) -> None:
        self.module, self.rows, ours = module or Shared(), Rows(), make()
        self.module.way = way
        kept = Kept([one for one in ours if isinstance(one, CalibratedCallback)])
        kinds = {"log_every_n_steps": 2, "logger": self.rows, "use_distributed_sampler": False, **kinds}
        kinds |= {"devices": WORLD if way else 1, "strategy": strategy(way, options or {})}
        with counted() as self.calls:
            self.trainer = fit(self.module, [kept, *ours], steps, **kinds)
        self.states, self.weights = kept.states, kept.weights

    def same_on_all(self) -> Run:
        """Rows, states and weights, to the bit."""
        told = [row for _, row in self.rows.rows], _numbers(self.states), self.weights
        for other in everywhere(told):
            torch.testing.assert_close(other, told, rtol=0, atol=0, equal_nan=True)
        return self

    def same_as(self, one: Run, **close: float) -> None:
        """As a run in one process."""
        close = close or CLOSE
        assert self.rows.steps == one.rows.steps, (self.rows.steps, one.rows.steps)
        rows = [[row for _, row in run.rows.rows] for run in (self, one)]
        torch.testing.assert_close(*rows, **close, equal_nan=True)
        torch.testing.assert_close(_numbers(self.states), _numbers(one.states), **close, equal_nan=True)
        torch.testing.assert_close(self.weights, one.weights, **close)


def pair(way: str, make: Make, module: Callable[[], Shared] = Shared, **kinds: Any) -> Run:
    """The run on two processes, compared with the one in one process."""
    run = Run(way, make, module(), **kinds).same_on_all()
    kinds.pop("options", None)
    run.same_as(Run("", make, module(), **kinds))
    return run


OWN = {"loss", "loss_max", "loss_first", "norm_shift"}  # of a process's own batches


def _numbers(value: Any) -> Any:
    """A state without its sentences and the report's losses, in which each process tells its own loss."""
    if isinstance(value, dict) and {"columns", "losses"} <= value.keys():
        shared = [i for i, name in enumerate(value["columns"]) if name not in OWN]
        rows = value["scalars"]["rows"]
        kept = value["scalars"] | {"rows": None if rows is None else rows[:, shared], "open": None}
        value = {key: one for key, one in value.items() if key != "losses"} | {"scalars": kept}
    if isinstance(value, dict):
        return {key: _numbers(one) for key, one in value.items() if key != "last"}
    if isinstance(value, (list, tuple)):
        return [_numbers(one) for one in value]
    return None if isinstance(value, str) else value
