"""Our callbacks in a Fabric loop, where only one hook is called: acting callbacks work, nothing is logged."""

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_calib.fit.messages import say
from lightning_calib.fit.participant import FitStart, Participant
from lightning_calib.fit.trainer_facts import LIGHTNING, overrides
from lightning_calib.fit.unsupported import unsupported_optimizer, unsupported_strategy
from lightning_calib.functional.fsdp1 import wrappers
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_facts import TrainerClip, scale_within
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.step_record import Phase, StepRecord

_REMEDY = "Use a Trainer, or `lightning_calib.functional.clip_grad_`, which clips in any loop."

_MORE = f"It was called outside `Trainer.fit`, and needs more than this one hook. {_REMEDY}"
_LATE = "It was not among `trainer.callbacks` when training began. Pass it to `Trainer(callbacks=[...])`."
_NOT_STARTED = (
    "It is among `trainer.callbacks`, but its class overrides `on_train_start` without calling that of its base, which "
    "begins the reading. Call `super().on_train_start(trainer, pl_module)` there."
)
WRAPPED = (
    "`trainer.callbacks` does not hold it itself: something else, such as a wrapper or a proxy, calls its hooks, so "
    "its place among the callbacks is not known. Pass the callback itself to `Trainer(callbacks=[...])`."
)


class FabricSession:
    """One callback's part of a loop, without the others: the module, and what is held of each optimizer.

    Optimizers are numbered in the order of their first steps, which a resumed run must keep.
    """

    callback: Participant
    module: Any

    def __init__(self, callback: Participant, fabric: Any, module: Any) -> None:
        self.callback, self.module = callback, _unwrapped(module)
        self.scaler: Any = getattr(fabric.strategy.precision, "scaler", None)
        self.runs: dict[int, OptimizerRun] = {}
        self.ready = True  # there is nobody to wait for

    def turn(self, optimizer: Optimizer) -> None:
        """Judge and rescale this step's gradients."""
        optimizer = getattr(optimizer, "optimizer", optimizer)  # Fabric's wrapper knows the groups, but not the scaler
        run = self.runs.get(id(optimizer))
        if run is None:
            run = self._add(optimizer)
        elif run.view.begin_step():
            run.memory = self.callback._prepare(run.view, run.memory)
        run.view.scale = self._pending(optimizer)
        if run.view.has_gradient:
            run.record = self.callback._act(run.view, StepRecord(Phase.JUDGED, live=True))
            run.memory = run.memory.add_clips(run.record)
        run.view.let_go()

    def memories_to_save(self) -> dict[int, OptimizerMemory]:
        """By index."""
        return {run.view.index: run.memory for run in self.runs.values()}

    def _add(self, optimizer: Optimizer) -> OptimizerRun:
        reason = unsupported_optimizer(optimizer, self.module, hooks=False)
        if reason is not None:
            self.callback._refuse(reason)
        units = self.callback._needs.units
        view = GradientView(len(self.runs), optimizer, self.module, suffix="", units=units, scaler=self.scaler)
        run = self.runs[id(optimizer)] = OptimizerRun.of(view)
        views = [one.view for one in self.runs.values()]
        note = self.callback._start(FitStart(self.module, views, [self.callback], TrainerClip(None, 0.0)))
        if note and len(self.runs) == 1:
            say(note)
        run.memory = self.callback._prepare(view, run.memory)
        view.begin_step()
        return run

    def _pending(self, optimizer: Optimizer) -> Any:
        """The scale that is still in the gradients: Fabric takes it out inside the step, or where the user asked."""
        if self.scaler is None or not self.scaler.is_enabled():
            return None
        return scale_within(self.scaler, optimizer)


def fabric_session(callback: Participant, host: Any, module: nn.Module) -> FabricSession | None:
    """Begin such a loop, or say why it cannot be; None for a callback that only observes.

    Raises:
        MisconfigurationException: If the callback needs more than this hook, or the host is no Fabric.
    """
    reason = _in_trainer(callback, host) if hasattr(host, "fit_loop") else None if callback._needs.fabric else _MORE
    if reason is not None:
        callback._refuse(reason)
        return None
    if not hasattr(getattr(host, "strategy", None), "precision"):
        raise MisconfigurationException(
            f"{callback._label} was called outside `Trainer.fit` without a Fabric, so it does not know the precision. "
            f"Pass `trainer=fabric`. {_REMEDY}"
        )
    reason = unsupported_strategy(host)
    if reason is not None:
        callback._refuse(reason)
    return FabricSession(callback, host, module)


def _in_trainer(callback: Participant, trainer: Any) -> str:
    listed = any(one is callback for one in trainer.callbacks)
    return _NOT_STARTED if listed and overrides("on_train_start", callback, (*LIGHTNING, "lightning_calib")) else _LATE


def _unwrapped(module: Any) -> Any:
    """The module without Fabric's wrapper, whose names are not the user's; but with FSDP1's, which knows the shards."""
    if type(module).__name__ != "_FabricModule":
        return module
    inside = getattr(module, "_forward_module", None)
    return inside if isinstance(inside, nn.Module) and wrappers(inside)[:1] == [inside] else module.module
