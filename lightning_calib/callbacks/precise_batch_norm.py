"""Exact BatchNorm statistics for validation and for the finished model."""

from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_calib.callbacks.public import PublicCallback
from lightning_calib.fit.messages import say, warn
from lightning_calib.fit.random_states import random_states_kept
from lightning_calib.fit.side_pass import as_if_training, batches, inside_of
from lightning_calib.fit.trainer_facts import root_of
from lightning_calib.fit.unsupported import refused
from lightning_calib.functional.batch_norm import Population, tracking
from lightning_calib.functional.checks import check_count, message
from lightning_calib.functional.fsdp1 import why_not

_FORWARD = "Pass `PreciseBatchNorm(forward=...)`, a callable of the module and a batch that only runs the network."


class PreciseBatchNorm(PublicCallback):
    r"""Replace BatchNorm's running averages by the mean and variance of many training batches under today's weights.

    For each channel, over all numbers :math:`x_i` that reach the layer in the pass, whatever the sizes of the batches,
    :math:`\mu = \frac1n \sum_i x_i` and :math:`\sigma^2 = \frac1n \sum_i (x_i - \mu)^2`. The pass runs when the last
    batch of an epoch is done: before that epoch's validation, else at the epoch's end, so that checkpoints have it too.
    Training itself does not see it: weights, random numbers, metrics and logs are those of a run without it.

    Args:
        num_batches: At most so many training batches per pass, 1 or more; never more than an epoch has.
            200: fvcore's default.
        forward: What to run on each batch, called as ``forward(module, batch)``. None: the module's
            ``training_step``, without gradients. Manual optimization needs one.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``num_batches`` is smaller than 1.
        MisconfigurationException: With validation inside an epoch; with manual optimization, or a ``training_step``
            that takes ``dataloader_iter``, and no ``forward``; with DeepSpeed; if listed before
            ``WeightAveraging``.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import PreciseBatchNorm
        >>> trainer = Trainer(callbacks=[PreciseBatchNorm(num_batches=100)], logger=False)

    Logged:
        Nothing. One line at the start says how many layers there are.

    Checkpoint:
        Nothing of its own: the statistics are buffers of the model, and are saved with it.

    Note:
        In the pass every module is in the mode that it has in training: dropout is on, as it was for the running
        averages. Layers in eval mode, and layers without running statistics, are left alone, ``num_batches_tracked``
        too; in the next epoch the running averages move on from the exact values.

        Differs from the paper: batches count by their size, which matters for a short last one. The variance divides
        by n, where torch's running averages divide by n - 1.

    References:
        Wu and Johnson 2021, Rethinking "Batch" in BatchNorm, section 3: arXiv 2105.07576.
    """

    num_batches: int
    forward: Callable[[pl.LightningModule, Any], Any] | None

    def __init__(
        self, num_batches: int = 200, *, forward: Callable[["pl.LightningModule", Any], Any] | None = None
    ) -> None:
        super().__init__()
        check_count("num_batches", num_batches, "200 are usually enough; take more if batches are tiny.", low=1)
        if forward is not None and not callable(forward):
            raise TypeError(message("forward", "a callable of the module and a batch, or None", forward, _FORWARD))
        self.num_batches, self.forward = num_batches, forward
        self._stale = False
        self._averaged = False

    def __getstate__(self) -> dict[str, Any]:
        """For pickling and copying: without the module, whose methods the Trainer has put here."""
        return {key: value for key, value in self.__dict__.items() if key not in ("log", "log_dict")}

    # Who may use it

    def on_fit_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Refuse what cannot be right."""
        reason = refused(trainer.strategy, "forward")
        if reason is not None:
            _refuse(reason)
        if self.forward is None and not pl_module.automatic_optimization:
            _refuse(f"With manual optimization `training_step` would take optimizer steps. {_FORWARD}")
        if self.forward is None and is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", True):
            _refuse(f"A `training_step` that takes `dataloader_iter` reads the training data itself. {_FORWARD}")
        averaging = [one for one in trainer.callbacks if _averages(one)]  # type: ignore[attr-defined]
        if averaging and trainer.callbacks.index(averaging[-1]) > trainer.callbacks.index(self):  # type: ignore[attr-defined]
            name = type(averaging[-1]).__name__
            _refuse(f"{name} would replace the statistics after the pass. List PreciseBatchNorm after {name}.")
        self._stale, self._averaged = True, bool(averaging)

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Refuse validation inside an epoch, and FSDP1 in a form that was not tried; say what there is to do."""
        _refuse_validation_inside(trainer)
        root = root_of(trainer, pl_module)
        reason = why_not(list(root.parameters()), root)
        if reason is not None:
            _refuse(reason)
        layers = tracking(pl_module)
        if layers:
            most = min(self.num_batches, trainer.num_training_batches)
            say(f"PreciseBatchNorm: statistics of {len(layers)} layer(s) from {most} batch(es), once per epoch.")
        else:
            warn("PreciseBatchNorm has nothing to do: no BatchNorm of this model keeps running statistics.")

    # When it runs

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The weights have moved."""
        self._stale = True

    def on_validation_epoch_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Before the validation of an epoch; not for the sanity check, nor for `Trainer.validate`."""
        if trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking:
            _refuse_validation_inside(trainer)
            self._run(trainer, pl_module)

    def on_train_epoch_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """At the end of an epoch without validation."""
        self._run(trainer, pl_module)

    def on_train_end(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """If anything has moved the weights since: `WeightAveraging` puts its own in place at this point."""
        self._stale |= self._averaged
        self._run(trainer, pl_module)

    def _run(self, trainer: "pl.Trainer", module: "pl.LightningModule") -> None:
        if not self._stale:
            return
        self._stale = False
        with random_states_kept(), as_if_training(trainer, module):
            layers = [layer for layer in tracking(module) if layer.training]
            with Population(layers) as population:
                self._read(trainer, module, bool(layers))
        if trainer.world_size > 1:
            population.pool_over_ranks()
        bad = population.write()
        if bad:
            names = [name for name, layer in module.named_modules() if layer in bad]
            warn(f"PreciseBatchNorm keeps the running averages of {', '.join(names)}: the statistics are not finite.")
        elif layers and not len(population):
            warn("PreciseBatchNorm changed nothing: no batch of the pass reached a BatchNorm layer.")

    def _read(self, trainer: "pl.Trainer", module: "pl.LightningModule", needed: bool) -> None:
        for index, batch in enumerate(batches(trainer, module, self.num_batches) if needed else ()):
            with trainer.precision_plugin.train_step_context():
                inside_of(root_of(trainer, module), module, batch, partial(self._step, module, index))

    def _step(self, module: "pl.LightningModule", index: int, batch: Any) -> None:
        if self.forward is not None:
            self.forward(module, batch)
        elif is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2):
            module.training_step(batch, index)
        else:
            module.training_step(batch)


def _averages(callback: Callback) -> bool:
    return any(kind.__name__ == "WeightAveraging" for kind in type(callback).__mro__)


def _refuse(reason: str) -> None:
    raise MisconfigurationException(f"PreciseBatchNorm cannot act here. {reason}")


def _refuse_validation_inside(trainer: "pl.Trainer") -> None:
    """An extra pass over the training data is safe only when the epoch's own is over."""
    every, epoch = trainer.val_check_batch, trainer.num_training_batches
    if every is None:
        inside = True  # a time in its place
    elif trainer.check_val_every_n_epoch is None and every != inf:
        inside = every % epoch != 0  # counted over all epochs
    else:
        inside = every not in (epoch, inf)
    if trainer.enable_validation and inside:
        _refuse(
            "Validation inside an epoch would need a second pass over the training data while the first one is "
            "running. Set `Trainer(val_check_interval=1.0, check_val_every_n_epoch=1)`, or make the epoch shorter with "
            "`limit_train_batches`."
        )
