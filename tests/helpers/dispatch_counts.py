"""What one step of a fit asks of torch, counted where torch dispatches: nothing here depends on a clock."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from helpers.newer import newer
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.models import Given
from benchmarks.variants import Variant

DTensor = newer("torch.distributed.tensor", "DTensor", "torch 2.5")

FIRST, LAST = 4, 6  # the steps in between are counted; those before lay plans and end warm-ups
# Their result, or its shape, has to be known on the host.
SYNCS = {"_local_scalar_dense", "equal", "nonzero", "masked_select", "_unique2", "unique_dim", "unique_consecutive"}


class Counts(NamedTuple):
    """Of one step.

    Attributes:
        operations: Calls that torch dispatches, views among them; a foreach call is one.
        apart: Tensors in foreach calls of two lists whose shapes differ: on CUDA each is a launch of its own.
        syncs: Values that the host waits for.
        bytes: Of storages that came into being, were they all kept.
        collectives: Calls into a process group.
        sent: Bytes of their tensors.
    """

    operations: int = 0
    apart: int = 0
    syncs: int = 0
    bytes: int = 0
    collectives: int = 0
    sent: int = 0

    def minus(self, other: Counts) -> Counts:
        return Counts(*(a - b for a, b in zip(self, other, strict=True)))


class Counting(TorchDispatchMode):
    """Counts; and lets the host look at tensors of the meta device, where it sees ones."""

    def __init__(self) -> None:
        super().__init__()
        self._totals = [0] * len(Counts._fields)

    @property
    def counts(self) -> Counts:
        """Since the beginning."""
        return Counts(*self._totals)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented  # it takes itself apart, and its pieces come here
        kwargs = kwargs or {}
        name, space = func.overloadpacket.__name__, func.namespace
        given = [one for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)]
        on_meta = any(one.is_meta for one in given)
        to_host = on_meta and name == "_to_copy" and str(kwargs.get("device")) == "cpu"
        by_mask = name == "index" and any(one.dtype == torch.bool for one in given[1:])
        if on_meta and name == "_local_scalar_dense":
            result = torch.ones((), dtype=given[0].dtype).item()
        elif on_meta and name == "equal":
            result = True
        elif to_host:
            result = torch.ones(given[0].shape, dtype=kwargs.get("dtype") or given[0].dtype)
        else:
            result = func(*args, **kwargs)
        before = {one.untyped_storage()._cdata for one in given}
        new = {one.untyped_storage()._cdata: one for one in tree_leaves(result) if isinstance(one, Tensor)}
        allocated = sum(one.untyped_storage().nbytes() for key, one in new.items() if key not in before)
        collective = space in ("c10d", "_c10d_functional") and name not in ("wait_tensor", "barrier")
        sent = sum(one.nbytes for one in given) if collective else 0
        sync = name in SYNCS or to_host or by_mask
        for i, amount in enumerate((1, _apart(name, args), sync, allocated, collective, sent)):
            self._totals[i] += amount
        return result


def _apart(name: str, args: Any) -> int:
    if not name.startswith("_foreach"):
        return 0
    lists = [one for one in args if isinstance(one, (list, tuple)) and one and isinstance(one[0], Tensor)]
    if len(lists) < 2:
        return 0
    return sum(len({tensor.shape for tensor in row}) > 1 for row in zip(*lists, strict=True))


class HaltError(Exception):
    pass


class Meter(Callback):
    """The counts of the most expensive step from `FIRST` to before `LAST`."""

    def __init__(self, mode: Counting) -> None:
        self.mode, self.most, self.last = mode, Counts(), Counts()

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx > FIRST:
            self.most = max(self.most, self.mode.counts.minus(self.last))
        if batch_idx == LAST:
            raise HaltError  # before anything that may look: a row, a summary, the state
        self.last = self.mode.counts


class Stay(SingleDeviceStrategy):
    """Leaves the weights where they are."""

    strategy_name = "stay"

    def model_to_device(self) -> None:
        return


def step_counts(model: Given, variant: Variant) -> Counts:
    """Of one step of a fit of which nothing is logged."""
    model.level, model.steps = variant.level, LAST + 1
    for tensor in model.flat:
        tensor.grad = None
    with Counting() as mode:
        meter = Meter(mode)
        trainer = Trainer(
            callbacks=[meter, *variant.make()],
            strategy=Stay(torch.device("cpu")),
            max_steps=LAST + 1,
            logger=TensorBoardLogger(".") if variant.tab else False,
            log_every_n_steps=10**9,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            **variant.trainer,
        )
        try:
            trainer.fit(model)
        except (HaltError, NotImplementedError, RuntimeError):
            if meter.most == Counts():
                raise
    return meter.most
