"""Steps of an engine that keeps the gradients to itself: read before they are taken, completed when they are over."""

import torch

from lightning_calib.fit.messages import warn
from lightning_calib.fit.participant import StepRecorder
from lightning_calib.fit.trainer_facts import FitFacts
from lightning_calib.functional.deepspeed import Engine
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.scaled_rates import rates_in_use
from lightning_calib.steps.step_hooks import StepHooks
from lightning_calib.steps.step_record import Overflow, Phase, StepRecord

_ALIKE = 0.01  # the engine sums squares in the gradients' own type


class EngineSteps:
    """What a session does in the place of a step of its own, where an engine has the gradients.

    The engine knows the norm of a step when it has taken it. The tensors are read on logged steps only, before.

    Args:
        engine: DeepSpeed's.
        facts: What stays the same for the fit.
        hooks: By the identity of the optimizer, what completes the record of a step.
    """

    engine: Engine
    facts: FitFacts
    hooks: dict[int, StepHooks]
    before: int
    reads: bool

    def __init__(self, engine: Engine, facts: FitFacts, hooks: dict[int, StepHooks]) -> None:
        self.engine, self.facts, self.hooks = engine, facts, hooks
        self.before = -1  # steps of the engine, before the one that is under way
        self.reads = facts.reads_tensors

    def begin(self, run: OptimizerRun, recorder: StepRecorder | None, *, due: bool) -> None:
        """The engine is called behind this; it takes a step if the window of micro-batches ends."""
        if not self.engine.ends_window:
            return
        self.end(run, recorder)  # of the same batch, under manual optimization
        run.end_step()
        self.before = self.engine.steps
        run.view.begin_step_of_engine(read=due and self.reads)
        rates = rates_in_use(run.view.optimizer, None) if due else None
        if rates is not None and self.engine.scaled:
            rates = rates._replace(loss_scale=self.engine.loss_scale)
        run.record = StepRecord(phase=Phase.JUDGED, live=True, logged=due, rates=rates)
        if due:
            self.hooks[id(run.view.optimizer)].prepare()

    @torch.no_grad()
    def end(self, run: OptimizerRun, recorder: StepRecorder | None) -> None:
        """Complete the step that is under way, if the engine is through with it; asked again it changes nothing."""
        if run.record.phase is not Phase.JUDGED or self.engine.steps == self.before:
            return
        view, taken = run.view, self.engine.took_step
        norm = torch.tensor(self.engine.norm, dtype=view.plan.dtype, device=view.plan.device)
        overflow = Overflow(incident=False, skipped_in_kernel=False) if self.engine.scaled and not taken else None
        kept = self.facts.kept(norm, 1.0)
        run.record = run.record._replace(norm_before=norm, norm_left=norm, kept=kept, overflow=overflow)
        self._compare(run, norm)
        run.count()
        if recorder is not None:
            recorder.begin_step(run)
            recorder.end_step(run)
        self.hooks[id(view.optimizer)].end_step(taken=taken)

    def _compare(self, run: OptimizerRun, norm: torch.Tensor) -> None:
        """Tensors whose norms do not make up that of the engine are told of once, and not read again."""
        if not run.record.logged or not run.view.knows_tensors or not norm.isfinite():
            return
        found = run.view.norm()
        if abs(float(found - norm)) <= _ALIKE * float(norm):
            return
        self.reads, run.view.readings = False, {}
        warn(
            f"The gradients that DeepSpeed gives have together a norm of {float(found):.4g}, and the one that it clips "
            f"by is {float(norm):.4g}: no tensor or layer is told from here on, the norm of the step is DeepSpeed's."
        )
