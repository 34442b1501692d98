"""Catch gradients that are not finite: name the culprit, skip the step exactly, give up loudly."""

from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import Any, ClassVar, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.callbacks.guard_arguments import check_non_finite_guard
from lightning_calib.callbacks.incident_facts import facts_of, where
from lightning_calib.fit.batch_rerun import BatchRerun, Forward
from lightning_calib.fit.messages import warn, warn_here
from lightning_calib.fit.participant import FitStart, Needs, Row
from lightning_calib.fit.scalar_row import counters
from lightning_calib.fit.session import Session
from lightning_calib.functional.dtensor import whole
from lightning_calib.functional.finiteness import Bad, look_closer
from lightning_calib.incidents.batch_files import BatchFiles
from lightning_calib.incidents.batch_norm_backup import BatchNormBackup, broken
from lightning_calib.incidents.culprit import Culprit, culprit
from lightning_calib.incidents.drop_step import drop, seen_by_scaler
from lightning_calib.incidents.incident_log import IncidentLog
from lightning_calib.incidents.micro_batches import MicroBatches
from lightning_calib.incidents.retrace import Retrace
from lightning_calib.incidents.trace import Traced
from lightning_calib.report.incident import NonFiniteGradientError, hopeless, lost_loss, outcome, told
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.step_record import GuardEvent, Overflow, StepRecord

_OF_FIT = ("_window", "_backup", "_retrace")


class NonFiniteGuard(CalibratedCallback):
    """Watch for gradients that are not finite, before any clipping can hide them: one NaN makes every gradient NaN.

    Looks when the first of our callbacks does, wherever it stands in the list. Only on an incident it looks closer, and
    says in one line: step (the x of the charts), epoch, batch; how many tensors, the deepest listed of them (the last
    in module order, not necessarily the cause), the finite ones around; loss, rate, loss scale; the last finite norm
    and update; what else is bad; what is done; and the likely cause. Told are the 1st, 2nd, 4th, 8th, ... incident.
    A loss that is not finite while the gradient is gets one line in a fit: its update is finite, and is taken.

    Args:
        action: ``"warn"`` tells and changes nothing. ``"skip"`` drops the step exactly: parameters and optimizer state
            keep their bits (``grad = None``), our other callbacks' memory is untouched, and BatchNorm statistics that
            are not finite are put back to what they were before the window. ``"raise"`` ends the run at once.
        max_consecutive: With ``"skip"``: this many bad steps in a row are skipped, at least 0; the next one raises.
        max_total: The same for all bad steps of the run; None, the default, for no limit.
        save_batch_to: A folder. Each incident leaves one file there, at most ten per process: the micro-batches whose
            loss was not finite (all of the window if none was), their indices, the random states before each, and the
            sentence; ``torch.load(weights_only=True)`` reads it. The batches of a window are kept alive for it.
        trace: After an incident that is told, run its batch once more, and name the first module and operation that
            was not finite, forward or backward. A callable runs in place of ``training_step``, as ``trace(module,
            batch)``, and returns the loss; manual optimization needs one.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.
        NonFiniteGradientError: In training: with ``"raise"``, or beyond a limit.
        MisconfigurationException: Under a strategy or with an optimizer where gradients cannot be read right, and for
            ``"skip"`` with ``Trainer(gradient_clip_algorithm="value")``, which fails on dropped gradients; with
            ``trace=True`` where ``training_step`` cannot be run again.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import NonFiniteGuard, ZClip
        >>> trainer = Trainer(callbacks=[NonFiniteGuard("skip"), ZClip()], logger=False)

    Logged:
        ``calib/nonfinite_total``, ``calib/skipped_total`` and, with a GradScaler, ``calib/loss_scale``, beside what
        every callback of ours logs.

    Checkpoint:
        Incidents in a row and in all, their steps, the last five sentences, the last 64 finite norms and the last
        measured update, and which of the last 200 steps a GradScaler skipped.

    Note:
        Costs one wait for the device per step, for the norm and the loss. With a GradScaler an overflow is part of its
        work: the gradient stays as it is, so that the scale goes down, and there is no incident unless the loss itself
        is not finite, the scale has fallen below 1, or the scaler has not seen it; on an incident the scale goes down
        all the same. With accumulation the window is dropped as a whole. The schedule and ``global_step`` advance on a
        skipped step, as they do when a GradScaler skips. ``trace`` costs an ordinary step nothing but to keep its batch
        and random states; the re-run puts back all but Python objects, other than modules, that ``training_step``
        changes.
    """

    _transient: ClassVar[tuple[str, ...]] = (*CalibratedCallback._transient, *_OF_FIT)

    def __init__(
        self,
        action: Literal["warn", "skip", "raise"] = "warn",
        *,
        max_consecutive: int = 5,
        max_total: int | None = None,
        save_batch_to: str | Path | None = None,
        trace: bool | Forward = False,
    ) -> None:
        super().__init__()
        check_non_finite_guard(action, max_consecutive, max_total, save_batch_to, trace)
        self.action = action
        self.max_consecutive = max_consecutive
        self.max_total = max_total
        self.save_batch_to = save_batch_to
        self.trace = trace
        self._needs = Needs(acts=action != "warn", guards=True, nonfinite=True, loss=True)

    # Before the step

    def _start(self, fit: FitStart) -> str | None:
        """Refuse what would fail on a dropped gradient; find the BatchNorm statistics."""
        if self.action == "skip" and fit.clip.how == "value":
            raise MisconfigurationException(
                f"{self._label}('skip') cannot drop steps under {fit.clip}: the Trainer's value clip fails where "
                "there is no gradient. Use GradientValueClip instead of the Trainer's argument."
            )
        self._backup = BatchNormBackup(fit.module)
        self._files, self._told = BatchFiles(self.save_batch_to), False
        self._window = MicroBatches(keep=self.save_batch_to is not None or self.trace is not False)
        rerun = BatchRerun.of(self._label, fit.trainer, fit.module, self.trace)
        sharded = any(view.plan.shards is not None for view in fit.views)
        self._retrace = None if rerun is None else Retrace(rerun, sharded=sharded)
        return f"{self._label}: {self.action}"

    def _lay(self, view: GradientView) -> IncidentLog:
        """Nothing has happened yet."""
        return IncidentLog()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Open a window, or go on with it."""
        if self._session is not None and self._window.add(batch_idx, batch) and self.action == "skip":
            self._backup.keep()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss, on its device."""
        if self._session is not None:
            self._session.see_loss(self, loss)
            if self._window.micros:
                self._window.micros[-1].losses.append(whole(loss.detach()))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Close the window with the batch that stepped."""
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._session is not None:
            automatic = pl_module.automatic_optimization
            self._window.closed = not trainer.fit_loop._should_accumulate() if automatic else self._window.stepped
            self._window.let_go()

    # At the step

    def _inspect_again(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Behind a foreign callback."""
        return self._inspect(view, record)

    def _inspect(self, view: GradientView, record: StepRecord) -> StepRecord:
        """One boolean; and, if it is bad, the closer look."""
        session, log = self._session, self._own[view.index]
        if session is None or record.norm_before is None or log.judged:
            return record
        self._window.stepped = True
        first = view.reading()
        loss = None if self._told else session.loss.on_host(view, session.trainer, record, mean=False)
        finite = view.is_finite()
        if view.reading() is not first and not bool(record.norm_before.isfinite()):
            record = record._replace(norm_before=view.norm())  # it had only overflowed
        bad = [] if finite else look_closer(view.plan, view.gradients)
        if not bad:  # or every element is finite, and only their norm is too large for its type
            if loss is not None and not isfinite(loss):
                self._told, rank = True, 0 if session.loss.of_all else session.trainer.global_rank
                (warn_here if rank else warn)(lost_loss(where(session, self._window.index), loss, rank))
            return record
        log.judged = True
        scale = float(view.scaler.get_scale()) if view.scaler is not None else None
        found, routine = culprit(session.trainer, self._window), scale is not None and seen_by_scaler(view)
        if scale is not None and routine:
            log.overflow()
            trouble = log.falls_sick(scale)
            if trouble:
                warn(trouble)
            routine = not found.lost and scale >= 1
        if not routine:
            incident, fatal = self._report(session, view, found, bad, scale)
            record = record._replace(incident=incident, fatal=fatal)
            if fatal is not None:
                return record
        elif self.action == "skip":
            self._backup.put_back()
        if self.action == "skip":
            drop(view, routine=routine)
        in_kernel = view.fused and view.has_gradient and seen_by_scaler(view)
        return record._replace(live=view.has_gradient, overflow=Overflow(not routine, in_kernel))

    def _observe(self, view: GradientView, record: StepRecord) -> None:
        """The step is over: a streak ends with a healthy one."""
        self._own[view.index].close(record.norm_before)

    def _report(
        self, session: Session, view: GradientView, found: Culprit, bad: Sequence[Bad], scale: float | None
    ) -> tuple[GuardEvent, NonFiniteGradientError | None]:
        """Say what was found and save the evidence; returns it for the tab, and what ends the run if it is enough."""
        log, trainer, window = self._own[view.index], session.trainer, self._window
        log.incident(session.step)
        limit, loud = self._limit(log), log.loud
        others, ruined = broken(view.module, self._backup, put_back=self.action == "skip")
        parts = trainer.accumulate_grad_batches if session.module.automatic_optimization else 1
        unscale, traced = parts / (scale or 1.0), Traced("")
        if self._retrace is not None and (loud or limit) and not ruined:
            traced = self._retrace(window, 1 / unscale)
        incident = facts_of(session, view, bad, found, window.index, unscale)._replace(
            scale=scale,
            ruined=ruined,
            broken=others,
            traced=traced.text,
            named=traced.found,
            **log.before(session.step)._asdict(),
        )
        done = outcome(self.action, len(window.micros), log, ends=bool(limit), seen=seen_by_scaler(view))
        facts, text = told(incident, done, first=log.total == 1)
        saved = self._files.save(text, found.evidence, trainer.global_rank, session.step)
        log.remember(facts)
        if loud or limit:
            warn(f"{text} {saved}".strip())
        fatal = hopeless(limit, log.last, incident, log.steps, log.total) if limit else None
        return GuardEvent(session.step, incident.deepest, text), fatal

    def _limit(self, log: IncidentLog) -> str:
        """Why the run ends here; empty if it does not."""
        if self.action == "raise":
            return "A gradient is not finite."
        beyond = log.beyond(self.max_consecutive, self.max_total) if self.action == "skip" else ""
        return beyond and f"{beyond} Raise the limit only if the data, not the model, is to blame."

    def _finish(self) -> None:
        """Let go of the batches and of the module's buffers."""
        for name in _OF_FIT:
            self.__dict__.pop(name, None)

    def _row(self, view: GradientView, record: StepRecord, memory: OptimizerMemory) -> Row:
        """The counters. How far the step moved the weights is evidence: kept twice, it is the same."""
        if self._session is not None and record.update is not None:
            self._own[view.index].see_moved(self._session.step, record.update.ratio)
        row = counters(memory.steps)
        if record.turn and record.rates is not None and record.rates.loss_scale is not None:
            row["calib/loss_scale"] = record.rates.loss_scale
        return row
