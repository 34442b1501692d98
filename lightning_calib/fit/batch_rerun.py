"""Run the training step of a batch once more in the middle of a fit, and leave no trace."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import nn

from lightning_calib.fit.random_states import random_states_kept
from lightning_calib.fit.side_pass import as_if_training

Forward = Callable[["pl.LightningModule", Any], Any]


class BatchRerun:
    """The training step of the module itself, without what a strategy has wrapped around it.

    Args:
        trainer: Of the fit.
        module: Whose step it is.
        forward: What to run in place of ``training_step``, called with the module and a batch; None for that.
    """

    trainer: pl.Trainer
    module: pl.LightningModule
    forward: Forward | None

    def __init__(self, trainer: "pl.Trainer", module: "pl.LightningModule", forward: Forward | None) -> None:
        self.trainer, self.module, self.forward = trainer, module, forward

    @staticmethod
    def of(
        label: str, trainer: "pl.Trainer", module: "pl.LightningModule", wanted: bool | Forward
    ) -> "BatchRerun | None":
        """What a callback's ``trace`` asks for; None for nothing.

        Raises:
            MisconfigurationException: Where ``training_step`` would do more than compute a loss.
        """
        if wanted is False:
            return None
        reason = ""
        if not module.automatic_optimization:
            reason = "With manual optimization `training_step` would take optimizer steps."
        elif is_param_in_hook_signature(module.training_step, "dataloader_iter", True):
            reason = "A `training_step` that takes `dataloader_iter` reads the training data itself."
        if reason and wanted is True:
            raise MisconfigurationException(
                f"{label}(trace=True) cannot run a batch again here. {reason} Pass `trace=` a callable of the module "
                "and a batch that returns the loss and takes no step."
            )
        return BatchRerun(trainer, module, None if isinstance(wanted, bool) else wanted)

    @contextmanager
    def again(self) -> Iterator[None]:
        """Mode, precision and stage of a training step, gradients on, logging off; afterwards everything is put back.

        That is random states, buffers, metrics, gradients, weights that are not trained, and attributes of modules;
        what lies inside of other Python objects is not.
        """
        trainer, module = self.trainer, self.module
        with (
            random_states_kept(),
            as_if_training(trainer, module),
            _parameters_kept(module),
            torch.enable_grad(),
            trainer.precision_plugin.train_step_context(),
        ):
            yield

    def step(self, batch: Any, index: int) -> Any:
        """What the module makes of a batch: the loss, a mapping with it, or None."""
        if self.forward is not None:
            return self.forward(self.module, batch)
        if is_param_in_hook_signature(self.module.training_step, "batch_idx", min_args=2):
            return self.module.training_step(batch, index)
        return self.module.training_step(batch)


@contextmanager
def _parameters_kept(module: nn.Module) -> Iterator[None]:
    """Gradients are set aside; of weights that are not trained, such as a teacher's, there is a copy on the host."""
    gradients = [(one, one.grad) for one in module.parameters()]
    frozen = [(one, one.detach().to("cpu", copy=True)) for one in module.parameters() if not one.requires_grad]
    for one, _ in gradients:
        one.grad = None
    try:
        yield
    finally:
        with torch.no_grad():
            for one, content in frozen:
                if not torch.equal(one.cpu(), content):
                    one.copy_(content)
        for one, gradient in gradients:
            one.grad = gradient
