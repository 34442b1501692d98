"""Find a clip value in a short run that leaves no trace."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.callbacks.progress.tqdm_progress import Tqdm
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler

from lightning_calib.callbacks.clip_suggestion import ClipSuggestion
from lightning_calib.callbacks.gradient_monitor import GradientMonitor
from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.fit.kept_state import KeptState
from lightning_calib.fit.refused_search import refuse_search
from lightning_calib.functional.checks import check_count
from lightning_calib.functional.judge import Policy
from lightning_calib.report.report import Report

_LOG = logging.getLogger("lightning_calib")


def clip_find(
    trainer: "pl.Trainer",
    model: "pl.LightningModule",
    train_dataloaders: Any = None,
    *,
    datamodule: "pl.LightningDataModule | None" = None,
    num_steps: int = 200,
    policies: Sequence[Policy | SegmentRescaler | float] | None = None,
) -> ClipSuggestion:
    """Which clip value? The first steps of the fit are run, measured, and undone.

    The sibling of Lightning's ``Tuner.lr_find``: the Trainer's callbacks and loggers are set aside meanwhile, and
    afterwards weights, optimizers, schedulers, random states, loops, samplers and the module's attributes are what they
    were, also if the run fails. The Trainer's own ``gradient_clip_val`` acts as in the fit itself. There is no
    validation, and schedulers that wait for a metric rest.

    Args:
        trainer: The Trainer of the fit that is to come.
        model: Its module.
        train_dataloaders: As for ``Trainer.fit``; a data module here or in ``datamodule``.
        datamodule: As for ``Trainer.fit``.
        num_steps: Batches that step, at least 20; fewer if the fit is shorter. The value comes from the second half.
        policies: What to judge on every step, as for ``GradientMonitor(shadow=...)``; None for a sensible set.

    Returns:
        A value, a policy or that none is needed, for each optimizer; the same on every process.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If ``num_steps`` is too small.
        MisconfigurationException: Under a strategy that shards the parameters or starts processes of its own, or where
            gradients cannot be measured.

    Note:
        In memory there is a second copy of the weights meanwhile. A data set that streams is advanced; one that keeps
        a state of its own keeps it.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_calib import clip_find
        >>> trainer = Trainer(max_epochs=1, logger=False, enable_progress_bar=False, enable_model_summary=False)
        >>> found = clip_find(trainer, BoringModel(), num_steps=40)
        >>> trainer.global_step
        0
    """
    check_count("num_steps", num_steps, "Use 200.", 20)
    refuse_search(trainer, model)
    monitor = GradientMonitor(1, layers=False, shadow=True if policies is None else policies)
    kept, level = KeptState(trainer, model, train_dataloaders, datamodule), _LOG.level
    try:
        _LOG.setLevel(max(level, logging.WARNING))  # not the line that a fit begins with
        _prepare(trainer, model, monitor, num_steps)
        trainer.fit(model, train_dataloaders, datamodule=datamodule)
        runs = trainer.strategy.broadcast(monitor.report().runs)
    finally:
        _LOG.setLevel(level)
        kept.put_back()
    if not runs:
        raise MisconfigurationException(
            f"`clip_find` must see the gradients of {type(model).__name__}'s optimizers, and saw none. The warning "
            "above says why; without one, check that `training_step` returns a loss."
        )
    return ClipSuggestion(Report(runs))


def _prepare(trainer: "pl.Trainer", model: "pl.LightningModule", monitor: GradientMonitor, num_steps: int) -> None:
    """Set aside what writes or stops, and begin at the first step of a fit."""
    bar = trainer.progress_bar_callback is not None
    loop, steps = trainer.fit_loop, trainer.max_steps
    trainer.fit_loop = type(loop)(trainer, min_epochs=None, max_epochs=trainer.max_epochs)
    trainer.fit_loop.epoch_loop = type(loop.epoch_loop)(trainer, min_steps=None, max_steps=steps)
    trainer.callbacks = [monitor, _Search(monitor, num_steps, shown=bar)]  # type: ignore[attr-defined]
    trainer.loggers = [DummyLogger() for _ in trainer.loggers]
    trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
    trainer.limit_val_batches = trainer.num_sanity_val_steps = 0
    vars(model)["configure_callbacks"] = list  # the module's own, as the Trainer's, are set aside


class _Search(Callback):
    """Ends the run after so many steps, and shows how far it is."""

    def __init__(self, monitor: GradientMonitor, num_steps: int, *, shown: bool) -> None:
        self.monitor, self.num_steps, self.shown = monitor, num_steps, shown
        self.bar: Tqdm | None = None

    def on_train_start(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule") -> None:
        """Show the bar; schedulers that wait for a metric of validation, which there is not, rest."""
        _LOG.setLevel(max(_LOG.level, logging.ERROR))  # the answer says all of it at the end
        if self.shown and trainer.is_global_zero:
            self.bar = Tqdm(desc="Finding a clip value", total=self.num_steps)
        if pl_module.automatic_optimization:
            configs = trainer.strategy.lr_scheduler_configs
            trainer.strategy.lr_scheduler_configs = [one for one in configs if not one.reduce_on_plateau]

    def on_train_batch_end(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Stop after the last step."""
        session = self.monitor._session
        runs = () if session is None else session.runs.values()
        done = max((run.memory.steps.steps for run in runs), default=trainer.global_step)
        if self.bar is not None:
            self.bar.update(done - self.bar.n)
        if done >= self.num_steps:
            trainer.should_stop = True

    def teardown(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", stage: str) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()

    def on_exception(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", exception: BaseException) -> None:
        """Close the bar."""
        self.teardown(trainer, pl_module, "fit")
