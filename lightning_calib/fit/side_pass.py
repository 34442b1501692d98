"""Read training batches beside the training loop, and leave no trace in the module, the loaders or the logs."""

from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy, deepcopy
from itertools import islice
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader

_TORCHS_OWN = frozenset(vars(nn.Module()))
_CONTAINERS = {list, dict, set, OrderedDict, defaultdict, deque}


def batches(trainer: "pl.Trainer", module: "pl.LightningModule", most: int) -> Iterator[Any]:
    """At most ``most`` batches of the training data, never more than an epoch has, prepared as for a training step."""
    source: Any = trainer.fit_loop._combined_loader
    twin = CombinedLoader(source.iterables, source._mode)
    twin.flattened = [_apart(loader) for loader in source.flattened]
    twin.limits = source.limits
    try:
        for batch, _, _ in islice(twin, int(min(most, trainer.num_training_batches))):
            if batch is not None:
                batch = trainer.precision_plugin.convert_input(batch)
                batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
                yield trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    finally:
        twin.reset()  # ends its workers


def _apart(loader: Any) -> Any:
    """A copy with a sampler, a generator and workers of its own: the original's iterator and state stay as they are."""
    if not isinstance(loader, DataLoader):
        return loader
    twin, shared = copy(loader), {id(loader.dataset): loader.dataset}
    own = {key: deepcopy(getattr(loader, key), shared) for key in ("generator", "sampler", "batch_sampler")}
    vars(twin).update(own, _iterator=None)
    return twin


def _eager() -> AbstractContextManager[Any]:
    """Compiled modules run as they are written, so that nothing is compiled anew; torch can since 2.6."""
    stance: Any = getattr(torch.compiler, "set_stance", None)
    return nullcontext() if stance is None else stance("force_eager")


@contextmanager
def as_if_training(trainer: "pl.Trainer", module: "pl.LightningModule") -> Iterator[None]:
    """Mode and stage as inside a training step, gradients and logging off; afterwards everything is put back."""
    stage, loggers = trainer.state.stage, trainer.loggers
    with _put_back(module), torch.no_grad(), _eager():
        if stage == RunningStage.VALIDATING:
            trainer.fit_loop.epoch_loop.val_loop._module_mode.restore(module)
        trainer.state.stage = RunningStage.TRAINING
        trainer.loggers = [DummyLogger() for _ in loggers]
        vars(module).update(log=_silent, log_dict=_silent)
        try:
            yield
        finally:
            trainer.state.stage, trainer.loggers = stage, loggers


def inside_of(root: nn.Module, module: nn.Module, batch: Any, call: Callable[[Any], None]) -> None:
    """Call with a batch inside the forward of what wraps the module, where FSDP1 brings the parameters together."""
    if root is module:
        call(batch)
        return

    def forward(batch: Any) -> None:
        del module.forward  # only what was put here
        call(batch)

    module.forward = forward
    root(batch)


def _silent(*args: Any, **kwargs: Any) -> None:
    """In the place of ``self.log`` and ``self.log_dict``."""


@contextmanager
def _put_back(module: nn.Module) -> Iterator[None]:
    """Undo what a forward pass changes: buffers, modes, metrics, lists and tensors kept as attributes."""
    kept = [(owner, dict(vars(owner)), _buffers(owner)) for owner in module.modules()]
    for owner, attributes, _ in kept:
        vars(owner).update({key: _copied(value) for key, value in attributes.items() if key not in _TORCHS_OWN})
    try:
        yield
    finally:
        for owner, attributes, buffers in kept:
            vars(owner).clear()
            vars(owner).update(attributes)
            for name, (tensor, content) in buffers.items():
                owner._buffers[name] = tensor
                if not torch.equal(tensor, content):
                    tensor.copy_(content)


def _buffers(owner: nn.Module) -> dict[str, tuple[Tensor, Tensor]]:
    named = {name: tensor for name, tensor in owner._buffers.items() if tensor is not None}
    return {name: (tensor, tensor.clone()) for name, tensor in named.items() if tensor.layout == torch.strided}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return value.detach().clone()
    return copy(value) if type(value) in _CONTAINERS else value
