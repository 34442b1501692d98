"""Observe gradients, and say what they are like."""

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_calib.callbacks.base import CalibratedCallback
from lightning_calib.callbacks.segment_rescaler import SegmentRescaler
from lightning_calib.callbacks.shadow_list import ShadowList
from lightning_calib.callbacks.tab_recorder import tab_recorder
from lightning_calib.fit.messages import say, warn
from lightning_calib.fit.participant import FitStart, Needs
from lightning_calib.fit.row_keeper import RowKeeper
from lightning_calib.fit.row_recorder import RowRecorder
from lightning_calib.fit.run_course import RunCourse
from lightning_calib.fit.run_facts import facts_text
from lightning_calib.fit.run_numbers import clippers
from lightning_calib.functional.checks import check_count, check_flag
from lightning_calib.functional.dtensor import whole
from lightning_calib.functional.judge import Policy
from lightning_calib.functional.saved_state import restored
from lightning_calib.report.report import Report
from lightning_calib.report.run import Run
from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.saved_state import to_host
from lightning_calib.steps.step_record import StepRecord


class GradientMonitor(CalibratedCallback):
    """Measure, log and explain gradients; never change a run: it ends with the same bits as without this callback.

    Norms are 2-norms of the optimizer's own parameters, unscaled, after accumulation and reduction over ranks.

    Args:
        every_n_steps: Log a row every so many batches that step, at least 1; None follows the Trainer's
            ``log_every_n_steps``. Spikes between two rows stay visible in ``calib/grad_norm_max``.
        layers: Whether to write the records of the "Gradients" tab, and charts for the other tabs, where a logger is
            TensorBoard's. False writes scalars only.
        histograms: Whether the first and every tenth row also counts the elements of the gradient by their magnitude,
            per module, before and after: one more read of all gradients each.
        shadow: What is judged on every step and never applied: numbers, policies and callbacks of ours that clip or
            normalise, such as ``[MaxNorm(1.0), ZScore(), AGC()]``; True stands for ``MaxNorm(1.0)`` (the value that
            most recipes have), ``Percentile(90)`` and ``Percentile(95)`` (what touches one step in ten or twenty),
            ``ZScore()`` (what only spikes exceed) and ``AdaGC()`` (by parameter): none of them needs another reading.
            `report` tells what each would have done, see `ShadowResult`: to first order, since acting would have
            changed the norms that come after.

    Raises:
        TypeError: If an argument has the wrong type.
        ValueError: If one is out of range.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> from lightning_calib import GradientMonitor
        >>> trainer = Trainer(callbacks=[GradientMonitor()], logger=False)

    Logged:
        ========================== ================================================================================
        ``calib/grad_norm_before`` norm as the first of our callbacks saw it
        ``calib/grad_norm_max``    the largest since the last row
        ``calib/grad_norm_after``  norm that the optimizer used; absent for a skipped step, or where it cannot be known
        ``calib/clip_fraction``    share of the steps since the last row on which anybody reduced the gradient
        ``calib/clip_threshold``   the callback's target, or the Trainer's ``gradient_clip_val``
        ``calib/lr``               learning rate of the first parameter group in this step, if it has one
        ``calib/lr_effective``     the same times the group's ``d`` where it has one (Prodigy, D-Adaptation)
        ``calib/nonfinite_total``  steps so far whose norm was inf or nan (a GradScaler's overflows excepted)
        ``calib/skipped_total``    steps so far that the optimizer did not take, a GradScaler's overflows among them
        ``calib/loss_scale``       the GradScaler's scale, with a GradScaler only
        ``calib/update_norm``      norm of the change of the weights in this step
        ``calib/update_ratio``     median of ``|dw| / |w|`` over weights of more than one dimension with a gradient
        ========================== ================================================================================

        The last two are exact for tensors of up to 2^16 elements and estimated from 2^16 elements beyond. With several
        optimizers every tag ends in ``/0``, ``/1``, ...

        With a ``TensorBoardLogger`` also, as tensors for the tab: ``calib/layers.<digest>`` (for each parameter the
        norm of its gradient before and after and the largest since the last row, and the norms of weight and update),
        ``calib/globals``, ``calib/events``, and with ``histograms`` ``calib/hist.<digest>``; once, a Custom Scalars
        layout and the text ``calib/how to read``.

    Checkpoint:
        The counters, up to 4,096 norms (16 kB per optimizer), up to 1,024 rows of scalars and, in at most 2 MB, rows of
        layers for the report; of shadows what their policies have learnt, counts, and up to 512 rows. With the tab: the
        record that is being filled, and what the events remember (about 100 bytes per parameter).

    Note:
        Above 1,000 rows (fewer of more than 20 kB) a record holds the largest of 2, 4, 8, ... rows: 5,977 records for
        10^6 rows. An error while writing the tab's records ends them with one warning, not the run.

        With a fused optimizer under a GradScaler the gradients still carry the scale: the norms are divided by it.
        Under LBFGS the callback says so once, and logs nothing; DeepSpeed's tensors are read on logged steps only.
    """

    def __init__(
        self,
        every_n_steps: int | None = None,
        *,
        layers: bool = True,
        histograms: bool = False,
        shadow: Sequence[Policy | SegmentRescaler | float] | bool | None = None,
    ) -> None:
        super().__init__()
        if every_n_steps is not None:
            check_count("every_n_steps", every_n_steps, "Use 50, or None to follow the Trainer.", 1)
        check_flag("layers", layers, "Use True for the dashboard, False for scalars only.")
        check_flag("histograms", histograms, "Use True to count magnitudes every tenth row.")
        self.every_n_steps = every_n_steps
        self.layers = layers
        self.histograms = histograms
        self.shadow = shadow
        self._shadows = ShadowList(shadow)

    @property
    def _needs(self) -> Needs:  # type: ignore[override]  # of its arguments, which may be set until a fit begins
        """It observes, and wants the whole row."""
        declared: Any = {"rereads": self._shadows.rereads, "tensors": self.layers}
        return Needs(False, full_row=True, every_n_steps=self.every_n_steps, after_step=True, **declared)

    def _reset(self) -> None:
        super()._reset()
        self._runs: list[Run] = []  # of the fit that is over
        self._earlier = False
        self._recorder: RowRecorder | None = None
        self._course: RunCourse | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the session; note whether the Trainer has taken steps of which no count is known."""
        super().on_train_start(trainer, pl_module)
        if self._session is None:
            return
        counted = any(run.memory.steps.steps for run in self._session.runs.values())
        self._earlier = self._saved.get("earlier") is True or (trainer.global_step > 0 and not counted)
        self._course = RunCourse(self._session, self._recorder, earlier=self._earlier)
        for run in self._session.runs.values():
            self._learn(run.view)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Keep the loss, on its device: without the GradScaler's scale, and that of a whole step."""
        session, recorder = self._session, self._recorder
        if session is None or recorder is None or not pl_module.automatic_optimization:
            return
        loss, scaler = whole(loss.detach()), session.facts.scaler
        loss = loss if scaler is None else loss / scaler._scale
        for run in session.runs.values():
            recorder.see_loss(run, loss, float(trainer.accumulate_grad_batches))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Look at BatchNorm's statistics, if the batch's row is due."""
        if self._session is not None and self._recorder is not None and self._recorder.watches_batches:
            self._recorder.begin_batch(due=self._session.due)

    def _end_batch(self, outputs: Any) -> None:
        """Under manual optimization the loss is what ``training_step`` returns."""
        if self._session is not None and self._recorder is not None and not self._session.module.automatic_optimization:
            for run in self._session.runs.values():
                self._recorder.see_outputs(run, outputs)

    def _after_row(self) -> None:
        """An event that calls for a look is told at once, and not at the end of the epoch."""
        if self._course is not None and self._course.stirred():
            for finding in self._course.news(self.report().findings):
                warn(f"{finding.sentence} {finding.advice}".rstrip())

    def _start(self, fit: FitStart) -> None:
        """Keep rows for the report; open the tab's records, if a logger is TensorBoard's; lay the shadows."""
        kept: Any = {"saved": self._saved, "losses": self._losses, "warn": warn}
        self._shadows, counts = ShadowList(self.shadow), self.histograms
        tab = tab_recorder(fit, self._shadows.about, histograms=counts, say=say, **kept) if self.layers else None
        self._recorder = RowRecorder(RowKeeper(fit.trainer, fit.module, **kept), tab, self._shadows.keeper(fit, **kept))

    def _prepare(self, view: GradientView, memory: OptimizerMemory) -> OptimizerMemory:
        """Take up the norms seen so far."""
        self._learn(view)
        if memory.norms is not None:
            return memory
        norms, saved = NormHistory.empty(view.plan), self._saved_of(view.index)
        with self._losses.of("the norms so far, for the summary"):
            norms = norms if saved is None else restored(saved, norms, f"optimizers.{view.index}")
        self._own[view.index] = None
        return memory._replace(norms=norms)

    def _remembered(self, index: int, memory: OptimizerMemory) -> dict[str, Any]:
        """The norms of the run."""
        return to_host(memory.norms._asdict()) if memory.norms is not None else {}

    def _inspect(self, view: GradientView, record: StepRecord) -> StepRecord:
        """Let the shadows judge what the first of our callbacks sees, unless a guard has dropped it."""
        if self._recorder is None or self._recorder.shadows is None or not record.live:
            return record
        return record._replace(shadows=self._recorder.shadows.judge(view))

    def _learn(self, view: GradientView) -> None:
        """An optimizer's facts, for the report and the tab."""
        session, course, recorder = self._session, self._course, self._recorder
        if session is None or course is None or recorder is None:  # it is early: `on_train_start` comes back to it
            return
        facts, run = course.learn(view), session.runs[id(view.optimizer)]
        if recorder.tab is not None:
            recorder.tab.facts[view.index] = facts_text(facts, view.plan, clippers(session, run))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A line on the run so far after epoch 1, 2, 4, 8, ..."""
        epoch, session = trainer.current_epoch + 1, self._session
        seen = session is not None and any(run.memory.steps.steps for run in session.runs.values())
        if self._course is not None:
            self._course.epochs = epoch
        if seen and epoch & (epoch - 1) == 0:
            text = self.summary()
            say(f"after {epoch} epoch{'' if epoch == 1 else 's'}: {text}")
            self._record_summary(text)

    def _record_summary(self, text: str) -> None:
        run = next(iter(self._session.runs.values()), None) if self._session is not None else None
        if self._session is not None and run is not None and self._recorder is not None:
            self._recorder.summarise(run, text, max(0, self._session.step - 1))

    def report(self) -> Report:
        """What the gradients of this fit were like so far, what is wrong with them, and what to change."""
        return Report(self._runs if self._course is None else self._course.runs())

    def summary(self) -> str:
        """The report's verdict and at most two more sentences."""
        return self.report().summary()

    def _finish(self) -> None:
        """Keep the numbers for `report`, and close the tab's records."""
        session, recorder, course = self._session, self._recorder, self._course
        if session is None:
            return
        try:
            if course is not None:
                self._runs, self._course = course.runs(over=True), None
            if any(run.counts.steps for run in self._runs):
                self._record_summary(self.summary())
        finally:
            if recorder is not None:
                recorder.finish(session.runs.values(), session.step)

    def _more_state(self, memories: dict[int, OptimizerMemory]) -> dict[str, Any]:
        """What report and tab remember, and whether the Trainer had taken steps before."""
        earlier = {"earlier": True} if self._earlier else {}
        return earlier if self._recorder is None else {**earlier, **self._recorder.saved(memories)}

    def __getstate__(self) -> dict[str, Any]:
        """Without the open files."""
        return {**super().__getstate__(), "_recorder": None, "_course": None}
