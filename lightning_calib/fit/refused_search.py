"""Where a short run cannot be undone."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import nn


def refuse_search(trainer: Any, model: nn.Module) -> None:
    """Refuse a strategy that shards the parameters or runs the fit elsewhere, and parameters without a shape.

    Raises:
        MisconfigurationException: With the reason and the way out.
    """
    strategy = trainer.strategy
    name = type(strategy).__name__
    if not isinstance(strategy, (DDPStrategy, SingleDeviceStrategy)):
        raise MisconfigurationException(
            f"`clip_find` must be able to undo its run, and {name} changes the module for good when it shards it. "
            "Search on one device or under DDP, with the same batch size over all processes."
        )
    if isinstance(strategy.launcher, _MultiProcessingLauncher):
        raise MisconfigurationException(
            f"`clip_find` must run in this process, and {name} starts others, whose result is lost. "
            'Use Trainer(strategy="ddp"), or search on one device.'
        )
    if any(nn.parameter.is_lazy(one) for one in [*model.parameters(), *model.buffers()]):
        raise MisconfigurationException(
            f"`clip_find` must know the shapes of all parameters, and {type(model).__name__} has lazy ones. "
            "Call the module once with a batch before."
        )
