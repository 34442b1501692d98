"""Spikes of the gradient norm or of the loss: skip the batches, rewind to older weights, or stop."""

from collections.abc import Sequence
from math import isfinite
from typing import Any, ClassVar

import lightning.pytorch as pl
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.callbacks.guard_arguments import check_spike_guard
from lightning_calib.callbacks.incident_facts import where
from lightning_calib.fit.last_checkpoint import last_checkpoint
from lightning_calib.fit.messages import warn
from lightning_calib.fit.participant import FitStart, Needs, Row
from lightning_calib.fit.scalar_row import counters
from lightning_calib.fit.session import Session
from lightning_calib.fit.unfit_to_rewind import unfit_to_rewind
from lightning_calib.functional.finiteness import look_closer
from lightning_calib.functional.judge import Policy
from lightning_calib.incidents.moving_statistics import MovingStatistics
from lightning_calib.incidents.snapshot import TrainingState, told_size, too_large
from lightning_calib.incidents.spike_ladder import RUNGS, Action, Rung, check_ladder
from lightning_calib.incidents.spike_memory import SpikeMemory, Verdict
from lightning_calib.incidents.spike_recovery import SpikeRecovery
from lightning_calib.policies.zscore import ZScore
from lightning_calib.report.spike import SpikeError, describe, done, hopeless, stands
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.scaled_rates import rate_of
from lightning_calib.steps.step_record import GuardEvent, StepRecord

_HEAVY = ("_recoveries", "_statistics")  # tensors of the fit
_OVERFLOWED = 3.4e38  # in the place of a norm that float32 cannot hold


class SpikeGuard(CalibratedCallback):
    """Answer finite spikes of the gradient norm and of the loss; `NonFiniteGuard` answers what is not finite.

    A step is a spike if its norm or its loss is beyond what ``policy`` expects *and* more than ``min_ratio`` times its
    running level. It is judged before any of our callbacks acts, wherever this one stands; a dropped step enters none.

    *Skip* while batches are bad: the step is dropped exactly (``grad = None``), BatchNorm's statistics are put back.
    *Rewind* when five batches in a row are spikes, or spikes come back until ``max_skips``: the weights may be to
    blame, and those of a snapshot from before the trouble are put back on trial. If the next batch is no spike on
    them, the rewind stands; otherwise the data are to blame, and the newer weights come back as they were. *Stop* when
    neither has helped: ``SpikeError``. A new level that stays, and that older weights see as well, is accepted.

    Args:
        policy: What is expected of the norm and of the loss, as of two segments; any policy that needs no weights
            and has a window.
        min_ratio: How many times its level a spike is at least, at least 1. At 3 and ``z_max=4`` 52 of 55 healthy runs
            have none; at ``z_max=2.5`` without a ratio 4,800 healthy steps have up to 260.
        ladder: What may be done, in this order: ``"skip"``, ``"rewind"``, ``"stop"``. Without ``"stop"`` spikes that
            nothing ends are accepted as the new level.
        max_skips: The number of steps that are skipped in one trouble before the next rung, at least 1.
        max_rewinds: The number of rewinds, in [1, 100]; the second one goes to an older snapshot. They are given back
            after ten times ``snapshot_every_n_steps`` steps without a spike.
        snapshot_every_n_steps: The distance of snapshots, at least 1; none is taken in trouble.
        max_snapshot_gb: The largest host memory of the ``max_rewinds + 1`` snapshots of a process, in GB of 2^30 bytes.
        lr_factor: What the learning rate is multiplied by after a rewind, in (0, 1].
        lr_steps: For so many steps, at least 1.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.
        SpikeError: In training, when the ladder ends.
        MisconfigurationException: For ``"rewind"`` with several optimizers or manual optimization, beyond
            ``max_snapshot_gb``, with ``Trainer(gradient_clip_algorithm="value")``, and where gradients cannot be read.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import NonFiniteGuard, SpikeGuard
        >>> trainer = Trainer(callbacks=[NonFiniteGuard("skip"), SpikeGuard()], logger=False)

    Logged:
        ``calib/nonfinite_total``, ``calib/skipped_total``; in the Gradients tab also how many steps were rewound.

    Checkpoint:
        What the policy has learnt, the levels, and where the ladder stands. Snapshots are not saved: after a resume the
        loaded checkpoint is the first of them, and a rewind that was on trial stands.

    Note:
        A rewind puts back weights, buffers, the optimizer's and the GradScaler's state. Data, schedules,
        ``global_step`` and averages of weights (EMA, SWA) go on, so that the bad batches are left behind. Python
        attributes and param groups are not put back. The norm is that of the whole gradient, on every process; the loss
        is averaged over the processes first, one number per step. A loss at or below zero is not judged.
    """

    _transient: ClassVar[tuple[str, ...]] = (*CalibratedCallback._transient, *_HEAVY)
    policy: Policy
    min_ratio: float
    ladder: tuple[Rung, ...]
    max_skips: int
    max_rewinds: int
    snapshot_every_n_steps: int
    max_snapshot_gb: float
    lr_factor: float
    lr_steps: int

    def __init__(
        self,
        policy: Policy = ZScore(z_max=4.0),  # noqa: B008  # frozen
        *,
        min_ratio: float = 3.0,
        ladder: Sequence[Rung] = RUNGS,
        max_skips: int = 20,
        max_rewinds: int = 2,
        snapshot_every_n_steps: int = 50,
        max_snapshot_gb: float = 16.0,
        lr_factor: float = 1.0,
        lr_steps: int = 100,
    ) -> None:
        super().__init__()
        check_spike_guard(
            policy, min_ratio, max_skips, max_rewinds, snapshot_every_n_steps, max_snapshot_gb, lr_factor, lr_steps
        )
        self.policy, self.min_ratio, self.ladder = policy, float(min_ratio), check_ladder(ladder)
        self.max_skips, self.max_rewinds = max_skips, max_rewinds
        self.snapshot_every_n_steps, self.max_snapshot_gb = snapshot_every_n_steps, float(max_snapshot_gb)
        self.lr_factor, self.lr_steps = float(lr_factor), lr_steps
        self._needs = Needs(guards=True, loss=True, loss_on_host=True, scales_rates=self.lr_factor < 1)

    # Before the step

    def _start(self, fit: FitStart) -> str | None:
        """Refuse what would fail on a dropped gradient or on a rewind; find BatchNorm's statistics."""
        if reason := unfit_to_rewind(fit, rewinds="rewind" in self.ladder, lowers_rate=self.lr_factor < 1):
            raise MisconfigurationException(f"{self._label} {reason}")
        self._statistics = MovingStatistics(fit.module)
        self._recoveries: dict[int, SpikeRecovery] = {}
        self._open, self._batch = True, 0
        note = f"{self._label}: {', '.join(self.ladder)}"
        if "rewind" in self.ladder and fit.views:
            size = self._check_size(TrainingState(fit.module, fit.views[0]).expected_bytes())
            note += f" ({self.max_rewinds + 1} snapshots of about {size} of host memory)"
        return note

    def _check_size(self, nbytes: int) -> str:
        if reason := too_large(nbytes, self.max_rewinds + 1, self.max_snapshot_gb):
            raise MisconfigurationException(reason)
        return told_size(nbytes)

    def _lay(self, view: GradientView) -> SpikeMemory:
        """Nothing has happened yet, and snapshots of other parameters are of no use."""
        most = self.max_rewinds + 1 if "rewind" in self.ladder else 0
        self._recoveries[view.index] = SpikeRecovery(view, self._statistics, most)
        return SpikeMemory(self.policy, self.min_ratio, view)

    def on_train_batch_start(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", batch: Any, batch_idx: int
    ) -> None:
        """Before the forward pass of a step: keep BatchNorm's statistics, and take a snapshot where one is due."""
        self._batch = batch_idx
        if self._session is None or not self._open:
            return
        self._open = False
        self._statistics.keep()
        for index, one in self._recoveries.items():
            taken = one.before_forward(self._own[index].ladder, self.snapshot_every_n_steps)
            if taken:
                self._check_size(taken)

    def on_before_backward(self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", loss: Tensor) -> None:
        """Add the loss to this window's."""
        if self._session is not None:
            self._session.see_loss(self, loss)

    def on_before_optimizer_step(
        self, trainer: "pl.Trainer", pl_module: "pl.LightningModule", optimizer: Optimizer
    ) -> None:
        """Take a turn; the window belongs to this step, whatever becomes of it."""
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._session is not None:
            self._open = True

    # At the step

    def _inspect(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Judge the norm and the loss, and act before anybody else does."""
        session, own = self._session, self._own[view.index]
        if session is None or record.norm_before is None:
            return record
        loss = session.loss.on_host(view, session.trainer, record, mean=True)
        norm, loss = view.on_host()[0], loss if loss is not None and isfinite(loss) else None
        if not isfinite(norm):
            if not view.is_finite() and look_closer(view.plan, view.gradients):
                return record  # another guard's part
            norm, record = min(view.on_host()[0], _OVERFLOWED), record._replace(norm_before=view.norm())
        may_rewind = self._recoveries[view.index].has_snapshot and own.ladder.rewinds < self.max_rewinds
        verdict = own.judge(
            norm,
            loss,
            self.ladder,
            max_skips=self.max_skips,
            may_rewind=may_rewind,
            snapshot_every=self.snapshot_every_n_steps,
        )
        nothing = verdict.action is Action.TAKE and not verdict.undone
        return record if nothing else self._do(session, view, record, verdict)

    def _do(self, session: Session, view: GradientView, record: StepRecord, verdict: Verdict) -> StepRecord:
        own, recovery, action = self._own[view.index].ladder, self._recoveries[view.index], verdict.action
        if verdict.undone:
            recovery.keep_rewind()
            warn(text := stands(session.step, verdict.undone))
            return record._replace(rewound=verdict.undone, incident=GuardEvent(session.step, "", text, "rewind"))
        back = recovery.do(action, own)
        if action is Action.REWIND:
            own.slow = self.lr_steps if self._needs.scales_rates else 0
        trainer, rate = session.trainer, rate_of(view.optimizer.param_groups[0])
        text = describe(
            where(session, self._batch),
            verdict.spikes,
            None if rate is None else float(rate),
            done(action.name, own.skips, self.max_skips, back),
            own.spikes,
        )
        kind = "rewind" if action in (Action.REWIND, Action.TAKE_BACK) else "spike"
        record = record._replace(incident=GuardEvent(session.step, "", text, kind))
        if action is Action.STOP:
            path, precision = last_checkpoint(trainer), str(trainer.precision)
            found = hopeless(text, own.skips, own.rewinds, own.trials, path, precision)
            return record._replace(fatal=SpikeError(found))
        if own.loud or action is not Action.SKIP:
            warn(text)
        return record if action is Action.ACCEPT else record._replace(live=view.has_gradient, spike=True)

    def _act(self, view: GradientView, record: StepRecord) -> StepRecord:
        """A lower learning rate for some steps after a rewind."""
        own = self._own[view.index].ladder
        if not own.slow or self._session is None:
            return record
        own.slow -= 1
        factors: list[float | Tensor] = [self.lr_factor] * len(view.optimizer.param_groups)
        used = self._session.runs[id(view.optimizer)].rates.scale(factors)
        return record if record.rates is None else record._replace(rates=record.rates.scaled(used[0]))

    def _finish(self) -> None:
        """Let go of the snapshots and of the module's buffers."""
        for name in _HEAVY:
            self.__dict__.pop(name, None)

    def _row(self, view: GradientView, record: StepRecord, memory: OptimizerMemory) -> Row:
        """The counters."""
        return counters(memory.steps)
