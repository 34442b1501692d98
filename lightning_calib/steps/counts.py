"""What is counted about one optimizer and about one callback, on the device, so that nothing waits for it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import restored
from lightning_calib.steps.saved_state import Losses, of_optimizer
from lightning_calib.steps.step_record import Kept, StepRecord


class StepCounts(NamedTuple):
    """Counts of optimizer steps; the tensors are 0-d.

    Attributes:
        window_steps: Since the last log: steps with a gradient.
        window_reduced: Since the last log: steps on which the gradient was reduced.
        window_max: Since the last log: the largest finite norm, below 0 if there was none.
        steps: Since the start, as all below: steps with a gradient.
        skipped: Steps that the optimizer did not take although its turn had come.
        kernel_skipped: The same, where a fused optimizer decided it on the device.
        nonfinite: Steps whose norm was inf or nan; a GradScaler's overflows are not among them, but skipped.
        trainer_reduced: Steps on which the Trainer, or the module in its place, reduced the gradient.
        known: Steps on which it is known what was left of the gradient in the end.
        left: Sum over the known steps of the share of the norm that was left.
    """

    window_steps: int
    window_reduced: Tensor
    window_max: Tensor
    steps: int
    skipped: int
    kernel_skipped: Tensor
    nonfinite: Tensor
    trainer_reduced: Tensor
    known: Tensor
    left: Tensor

    @staticmethod
    def empty(plan: Plan) -> "StepCounts":
        """Nothing counted."""
        count = torch.zeros((), dtype=torch.int64, device=plan.device)
        top = torch.zeros((), dtype=plan.dtype, device=plan.device)
        return StepCounts(0, count, top - 1, 0, 0, count, count, count, count, top.to(plan.wide))

    def restored(self, kept: Iterable[tuple[dict[str, Any], Losses]], index: int) -> "StepCounts":
        """The counts of a checkpoint, in which each of our callbacks has a copy of them; these here where none has."""
        found = self
        for state, losses in kept:
            with losses.of("its copy of the counts of steps"):
                saved = of_optimizer(state, "tally", index)
                found = found if saved is None else restored(saved, self, f"tally.{index}")
        return found

    def new_window(self) -> "StepCounts":
        """A row was written."""
        zero = torch.zeros_like(self.window_reduced)
        return self._replace(window_steps=0, window_reduced=zero, window_max=torch.full_like(self.window_max, -1))

    def add(self, record: StepRecord, *, scaled: bool, fused: bool) -> "StepCounts":
        """Count a step with a gradient; ``scaled`` under a GradScaler, ``fused`` if the optimizer skips by itself."""
        before = record.norm_before
        if before is None:
            return self
        counts = self._add_overflow(record, before, scaled=scaled, fused=fused)
        if record.kept is not None:
            counts = counts.add_kept(before, record.kept)
        highest = torch.where(before.isfinite(), torch.maximum(self.window_max, before), self.window_max)
        return counts._replace(
            window_steps=self.window_steps + 1,
            window_reduced=self.window_reduced + record.reduced,
            window_max=highest,
            steps=self.steps + 1,
        )

    def _add_overflow(self, record: StepRecord, before: Tensor, *, scaled: bool, fused: bool) -> "StepCounts":
        """A norm that is not finite is an incident, or routine where a GradScaler looks for its scale."""
        if record.overflow is not None:
            return self._replace(
                nonfinite=self.nonfinite + int(record.overflow.incident),
                kernel_skipped=self.kernel_skipped + int(record.overflow.skipped_in_kernel),
            )
        bad = ~before.isfinite()
        if not scaled:
            return self._replace(nonfinite=self.nonfinite + bad)
        return self._replace(kernel_skipped=self.kernel_skipped + bad) if fused else self

    def add_kept(self, before: Tensor, kept: Kept) -> "StepCounts":
        """Count what everybody left of the norm ``before``, and whether the Trainer took of it."""
        valid = before.isfinite() & (before > 0) & kept.norm.isfinite()
        share = torch.where(valid, kept.norm / before, 0)
        return self._replace(
            trainer_reduced=self.trainer_reduced + (kept.by_trainer & valid),
            known=self.known + valid,
            left=self.left + share,
        )

    def end_step(self, *, skipped: bool) -> "StepCounts":
        """The step is over: count it if it was not taken."""
        return self._replace(skipped=self.skipped + skipped)


class ClipCounts(NamedTuple):
    """Steps with a gradient and, as 0-d tensors, those on which it was (or would have been) reduced.

    The steps are those of `StepCounts`: one that somebody skips is among them, judged or not.
    """

    window_steps: int
    window_fired: Tensor
    steps: int
    fired: Tensor

    @staticmethod
    def empty(device: torch.device | str = "cpu") -> "ClipCounts":
        """Nothing counted."""
        zero = torch.zeros((), dtype=torch.int64, device=device)
        return ClipCounts(0, zero, 0, zero)

    def add(self, fired: Tensor | None) -> "ClipCounts":
        """Count one step; ``fired`` is a 0-d bool, None where the step was not judged."""
        count = 0 if fired is None else fired
        return ClipCounts(self.window_steps + 1, self.window_fired + count, self.steps + 1, self.fired + count)

    def new_window(self) -> "ClipCounts":
        """A row was written."""
        return self._replace(window_steps=0, window_fired=torch.zeros_like(self.window_fired))

    @property
    def fraction(self) -> Tensor:
        """Of the window's steps, 0-d."""
        return self.window_fired / max(1, self.window_steps)
