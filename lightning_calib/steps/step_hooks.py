"""What the optimizer really did on a logged step: the norm it used, and how far the weights moved."""

from collections.abc import Callable
from typing import Any

import torch

from lightning_calib.functional.plan import Plan
from lightning_calib.steps.optimizer_facts import LeftInGrad, TrainerClip, left_in_grad
from lightning_calib.steps.optimizer_run import OptimizerRun
from lightning_calib.steps.step_record import Kept, Phase
from lightning_calib.steps.weight_update import SamplePlan, WeightSample

_USED, _UPDATE = "`calib/grad_norm_after`", "`calib/update_norm` and `calib/update_ratio`"


class StepHooks:
    """Follows one optimizer through torch's own step hooks, and completes the record of the step.

    On a step that is not logged it only notes whether torch took it. Training needs nothing of what it reads, so a
    failure to read ends the tags, not the run.

    Args:
        run: The optimizer's view, record and memory.
        clip: What the Trainer does after our callbacks.
        final_norm_computable: Whether the final gradient can be computed from what our callbacks left; otherwise it is
            measured, on logged steps only.
        weights: Whether to measure the update of the weights.
        warn: Where sentences go.

    Attributes:
        see_used: Called with the run when the gradients of a logged step are as the optimizer uses them.
    """

    run: OptimizerRun
    clip: TrainerClip
    weights: bool
    warn: Callable[[str], None]
    overwritten: bool
    freed: bool

    def __init__(
        self,
        run: OptimizerRun,
        clip: TrainerClip,
        *,
        final_norm_computable: bool,
        weights: bool,
        warn: Callable[[str], None],
    ) -> None:
        self.run, self.clip, self.weights, self.warn = run, clip, weights, warn
        self.final_norm_computable = final_norm_computable
        left = LeftInGrad.NOTHING if run.view.engine is not None else left_in_grad(run.view.optimizer)
        self.overwritten, self.freed = left is not LeftInGrad.USED, left is LeftInGrad.NOTHING
        self.handles: list[Any] = []
        self.ended: set[str] = set()  # tags whose reading has failed
        self.see_used: Callable[[OptimizerRun], None] | None = None
        self.sample: WeightSample | None = None
        self.sampled: tuple[Plan, SamplePlan] | None = None  # laid once for each plan

    def attach(self) -> None:
        """Register the two hooks."""
        optimizer = self.run.view.optimizer
        self.handles = [
            optimizer.register_step_pre_hook(lambda *_: self._before_step()),
            optimizer.register_step_post_hook(lambda *_: self._after_step()),
        ]

    def detach(self) -> None:
        """Remove them."""
        for handle in self.handles:
            handle.remove()
        self.handles = []

    def prepare(self) -> None:
        """The step that now comes is logged: copy the weights."""
        self.sample = None
        if self.weights:
            self._attempt(_UPDATE, self._copy_weights)

    def forget(self) -> None:
        """The step is over, or nothing is to be said of it."""
        self.sample = None

    def _before_step(self) -> None:
        # Without a GradScaler this comes before the backward pass and finds nothing to do. With one it comes
        # when everybody has had the gradients: the best moment to read them.
        record = self.run.record
        if record.phase is Phase.JUDGED and record.logged and record.live:
            self._attempt(_USED, self._read)

    def _after_step(self) -> None:
        run = self.run
        if run.record.phase is not Phase.JUDGED:  # nothing was judged, or a step inside of this one came first
            return
        self.end_step(taken=run.record.live and self._had_gradients())

    def end_step(self, *, taken: bool) -> None:
        """Complete the record of the step: that of torch's optimizer, or of an engine that has no such hooks."""
        run = self.run
        run.record = run.record._replace(phase=Phase.TAKEN if taken else Phase.NOT_TAKEN)
        if taken and run.record.logged:
            self._complete()

    @torch.no_grad()
    def _complete(self) -> None:
        """A logged step was taken: see what the optimizer made of it."""
        run = self.run
        if run.record.used is None and self.overwritten:
            self._compute()
        elif run.record.used is None:
            self._attempt(_USED, self._read)
        if self.sample is not None:
            self._attempt(_UPDATE, self._compare_weights)
        self._count()

    def _had_gradients(self) -> bool:
        """Whether the optimizer had gradients: nobody can take them away behind ours, or they are still there."""
        if self.final_norm_computable or self.freed:
            return True
        return self.run.view.has_gradient_left()

    def _attempt(self, tags: str, read: Callable[[], None]) -> None:
        if tags in self.ended:
            return
        try:
            read()
        except Exception as trouble:
            if self.run.view.plan.shards is not None:  # the other processes would wait for this one in a collective
                raise
            self.ended.add(tags)
            self.warn(f"{self.run.view.label} has no {tags} from here on, training goes on: {trouble!r}")

    def _copy_weights(self) -> None:
        view, plan = self.run.view, self.run.view.plan
        if self.sampled is None or self.sampled[0] is not plan:
            self.sampled = plan, SamplePlan(plan.tensors, plan.flat)
        self.sample = WeightSample(self.sampled[1], view.given() if view.knows_tensors else None)

    def _compare_weights(self) -> None:
        sample, self.sample = self.sample, None
        if sample is not None:
            self.run.record = self.run.record._replace(update=sample.moved())

    @torch.no_grad()
    def _read(self) -> None:
        run = self.run
        used = run.view.read_used()
        run.record = run.record._replace(used=used, norm_used=used.norm)
        if self.see_used is not None:
            self.see_used(run)
        run.view.let_go()

    def _compute(self) -> None:
        """Where the optimizer leaves something else in ``grad``: from what ours left and the Trainer's formula."""
        record = self.run.record
        if record.norm_left is None or not self.final_norm_computable:
            return
        share = torch.ones_like(record.norm_left)
        if self.clip.how is not None:
            share = self.clip.share(record.norm_left, record.window_scale)
        used = self.run.view.reading().rescaled(share.reshape(1)) if self.run.view.knows_tensors else None
        self.run.record = record._replace(used=used, norm_used=record.norm_left * share)

    def _count(self) -> None:
        """A clip that can only be seen, not computed, is counted on logged steps."""
        record, norm_left, used = self.run.record, self.run.record.norm_left, self.run.record.norm_used
        if self.final_norm_computable or record.norm_before is None or norm_left is None or used is None:
            return
        by_trainer = torch.zeros_like(used).bool()
        if self.clip.how == "norm":  # it comes last, and leaves its own value where it fires
            by_trainer = used >= self.clip.value * record.window_scale * (1 - 1e-4)
        elif self.clip.how is not None:
            by_trainer = used < norm_left * (1 - 1e-6)
        kept, memory = Kept(used, by_trainer), self.run.memory
        self.run.record = record._replace(kept=kept)
        self.run.memory = memory._replace(steps=memory.steps.add_kept(record.norm_before, kept))
