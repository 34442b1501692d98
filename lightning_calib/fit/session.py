"""One fit, seen by all of our callbacks: who measures, when each takes its turn, when a row is written."""

from collections.abc import Callable, Sequence
from typing import Any

import lightning.pytorch as pl
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_calib.fit.closed_row import ClosedRow, close_row
from lightning_calib.fit.engine_steps import EngineSteps
from lightning_calib.fit.participant import FitStart, Participant, StepRecorder
from lightning_calib.fit.trainer_facts import FitFacts, root_of, window_scale
from lightning_calib.fit.unsupported import several_closures
from lightning_calib.fit.watched_optimizers import WatchedOptimizers
from lightning_calib.fit.window_loss import WindowLoss
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.scaled_rates import rates_in_use
from lightning_calib.steps.step_record import Phase, StepRecord


class Session:
    """One fit. The first of our callbacks begins each step, the last one closes it.

    The session alone holds what is remembered of the optimizers, in `runs`; it is replaced as a whole at every step and
    row, so a checkpoint saves what closing a row *would* leave, and nothing is done and undone.
    """

    def __init__(self, trainer: pl.Trainer, module: pl.LightningModule, participants: Sequence[Participant]) -> None:
        self.trainer = trainer
        self.module = module
        self.participants = participants
        self.first: Participant = participants[0]
        self.final: Participant = participants[-1]
        # A guard may have to read the gradients again, so that it looks before the others do.
        guards_first = sorted(participants, key=lambda one: (not one._needs.guards, not one._needs.loss_on_host))
        self.inspecting: list[Participant] = [one for one in guards_first if _has_its_own(one, "_inspect")]
        self.observing: list[Participant] = [one for one in participants if _has_its_own(one, "_observe")]
        self.facts: FitFacts = FitFacts.of(trainer, module, participants)
        self.recorder: StepRecorder | None = None  # GradientMonitor's
        self.backwards = 0
        self.loss: WindowLoss = WindowLoss()
        self.sees_loss: Participant | None = next((one for one in participants if one._needs.loss), None)
        self.ready = False  # every callback is prepared, and has taken up what was saved
        self.root: nn.Module = root_of(trainer, module)
        self.watched: WatchedOptimizers = WatchedOptimizers(trainer, self.root, participants, self.facts)
        engine, hooks = self.facts.engine, self.watched.hooks
        self.engine_steps: EngineSteps | None = None if engine is None else EngineSteps(engine, self.facts, hooks)
        self.runs: dict[int, OptimizerRun] = self.watched.runs
        self.attach: Callable[[], None] = self.watched.attach
        self.detach: Callable[[], None] = self.watched.detach

    def start(self) -> FitStart:
        """What the callbacks are given at the start."""
        views = [run.view for run in self.runs.values()]
        return FitStart(self.root, views, self.participants, self.facts.clip, self.trainer)

    def prepare_all(self) -> None:
        """Every callback has started: prepare for every optimizer."""
        self.recorder = next((one._recorder for one in self.participants if one._recorder is not None), None)
        for run in self.runs.values():
            self.prepare(run)

    def prepare(self, run: OptimizerRun) -> None:
        """Every callback, and what records rows, prepare for an optimizer's plan."""
        for one in self.participants:
            run.memory = one._prepare(run.view, run.memory)
        if self.recorder is not None:
            self.recorder.prepare(run)
            self.watched.hooks[id(run.view.optimizer)].see_used = self.recorder.see_used

    # A step

    def turn(self, one: Participant, optimizer: Optimizer) -> None:
        """A callback's turn in a step: the first of ours measures, each acts, the last closes the step."""
        run = self.watched.run_of(optimizer, self.prepare)
        if run is not None:
            self._turn(one, run)
        if one is self.final:
            self.loss.forget()  # it belongs to this step, whatever has become of it

    def see_loss(self, one: Participant, loss: torch.Tensor) -> None:
        """The loss of a backward pass, as Lightning has it: divided by the number of micro-batches."""
        if one is self.sees_loss:  # the first that needs it adds it up for all
            self.loss.add(loss, self.facts.scaler)

    def _turn(self, one: Participant, run: OptimizerRun) -> None:
        try:
            self._take(one, run)
        except Exception as trouble:
            if self._must_raise(run):
                raise
            self.watched.refuse(run, f"The gradients of {run.view.label} could not be measured: {trouble!r}.")

    def _must_raise(self, run: OptimizerRun) -> bool:
        """Whether a failure of ours must end the run: also where others would wait for shards in a collective."""
        return self.facts.failure_ends or run.view.plan.shards is not None

    @torch.no_grad()
    def _take(self, one: Participant, run: OptimizerRun) -> None:
        if self.engine_steps is not None:
            if one is self.first:
                self.engine_steps.begin(run, self.recorder, due=self.due)
            return
        if one is self.first:
            self._begin(run)
        elif one in self.facts.behind_foreign and run.record.turn:
            self._look_again(run)
        if run.record.live:
            run.record = one._act(run.view, run.record)
        if one is self.final:
            self._close(run)
            run.view.let_go()

    def _begin(self, run: OptimizerRun) -> None:
        """Begin an optimizer's step; what its last one left open is counted first."""
        view, automatic = run.view, self.module.automatic_optimization
        self.watched.unseen.announce(view)
        if run.record.turn and automatic:  # a batch takes one step, and has not ended
            self.watched.refuse(run, several_closures(view.optimizer))
            return
        run.end_step()
        run.record = StepRecord()
        passes, run.backwards = self.backwards - run.backwards, self.backwards
        scale = window_scale(self.trainer, passes) if automatic else 1.0
        run.rates.lapse()
        fresh = passes > 0 or not automatic
        if view.begin_step(scale, fresh=fresh):
            self.prepare(run)
        # No backward pass since the last step (a `training_step` that returned None, or SWA's BatchNorm epoch):
        # whatever lies in `grad` is old. It passes through and is not recorded; nothing at all is a skipped step.
        given, due = view.has_gradient, self.due
        run.record = StepRecord(
            phase=Phase.RESTING if given and not fresh else Phase.JUDGED,
            live=given and fresh,
            logged=due,
            window_scale=scale,
            rates=rates_in_use(view.optimizer, self.facts.scaler) if due else None,
            norm_before=view.norm() if given and fresh else None,
        )
        if run.record.live:
            if self.recorder is not None:
                self.recorder.begin_step(run)
            for one in self.inspecting:
                run.record = one._inspect(view, run.record)
                self._raise_fatal(run)

    def _look_again(self, run: OptimizerRun) -> None:
        run.view.look_behind_foreign()
        run.record = run.record._replace(live=run.view.has_gradient)
        for one in self.participants if run.record.live else ():
            run.record = one._inspect_again(run.view, run.record)
            self._raise_fatal(run)

    def _raise_fatal(self, run: OptimizerRun) -> None:
        """A callback ends the run: what it has found is kept for the tab first."""
        if run.record.fatal is None:
            return
        if self.recorder is not None:
            self.recorder.end_step(run)
        raise run.record.fatal

    def _close(self, run: OptimizerRun) -> None:
        """End of our part of the step: count it, and prepare to see what the optimizer makes of it."""
        view, record = run.view, run.record
        if record.norm_before is None:
            return
        if record.live and (record.logged or self.facts.clip.how == "norm" or 2.0 in view.readings):
            norm_left = view.norm()
            record = record._replace(norm_left=norm_left, kept=self.facts.kept(norm_left, record.window_scale))
        run.record = record
        run.count()
        if self.recorder is not None:
            self.recorder.end_step(run)
        for one in self.observing:
            one._observe(view, record)
        if record.logged and record.live:
            self.watched.hooks[id(view.optimizer)].prepare()

    # Rows

    @property
    def step(self) -> int:
        """The x of a row, as in Lightning's own monitors: batches that ended in a step, whatever stepped in them."""
        return self.trainer.fit_loop.epoch_loop._batches_that_stepped

    @property
    def due(self) -> bool:
        """Whether the row of the batch at hand is written."""
        period = self.facts.period
        return self.trainer.fast_dev_run or (period > 0 and (self.step + 1) % period == 0)  # type: ignore[attr-defined]

    def close_row(self) -> ClosedRow:
        """The row of the steps at hand, and the memory after it; changes nothing, so that a checkpoint may ask."""
        ended = [(run, run.memory.end_step(run.record)) for run in self.runs.values()]
        chosen = [(run, memory) for run, memory in ended if self._in_row(run, memory)]
        return close_row(self.facts, self.participants, chosen, self.recorder, self.step)

    def _end_engine_steps(self) -> None:
        """An engine's step is told of when it is over, and nothing calls us then."""
        if self.engine_steps is not None:
            for run in self.runs.values():
                self.engine_steps.end(run, self.recorder)

    def _in_row(self, run: OptimizerRun, memory: OptimizerMemory) -> bool:
        """Whether it has a part in a row that is due: also, under manual optimization, if it rests in that batch."""
        return run.record.turn or (memory.steps.window_steps > 0 and not self.module.automatic_optimization)

    def end_batch(self, outputs: Any = None) -> None:
        """At the end of the batch: every step is over, and a row that is due is written."""
        self.watched.unseen.end_batch()
        self._end_engine_steps()
        for one in self.participants:
            one._end_batch(outputs)
        closed = self.close_row() if self.due else ClosedRow({}, {}, [])
        for run in self.runs.values():
            memory = closed.memories.get(run.view.index)
            if memory is None:
                run.end_step()
            else:
                run.memory = memory
            run.record = run.record.rest()
            self.watched.hooks[id(run.view.optimizer)].forget()
        if closed.values:
            closed.write(self.trainer, self.recorder, self.step)
            for one in self.participants:
                one._after_row()

    # Checkpoints

    @property
    def _over(self) -> bool:
        """Whether torch has run each step whose turn it was; one that a GradScaler skips ends with the batch only."""
        phases = {run.record.phase for run in self.runs.values()} - {Phase.RESTING}
        return bool(phases) and Phase.JUDGED not in phases

    def memories_to_save(self) -> dict[int, OptimizerMemory]:
        """By index: where a row is due and its steps are over, as they will be when this run has written it."""
        self._end_engine_steps()
        if not self._over:
            return {run.view.index: run.memory for run in self.runs.values()}
        ended = {run.view.index: run.memory.end_step(run.record) for run in self.runs.values()}
        return ended | (self.close_row().memories if self.due else {})


def _has_its_own(one: Participant, method: str) -> bool:
    """Whether it takes this part in a step: what it inherits unchanged from `Participant` does nothing."""
    return getattr(type(one), method) is not getattr(Participant, method)
