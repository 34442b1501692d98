"""What is counted about one optimizer and about one callback, on the device, so that nothing waits for it."""

from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_calib.functional.plan import Plan
from lightning_calib.functional.saved_state import restored
from lightning_calib.steps.saved_state import Losses, of_optimizer


class Tally(NamedTuple):
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
    def empty(plan: Plan) -> "Tally":
        """Nothing counted."""
        count = torch.zeros((), dtype=torch.int64, device=plan.device)
        top = torch.zeros((), dtype=plan.dtype, device=plan.device)
        return Tally(0, count, top - 1, 0, 0, count, count, count, count, top.to(plan.wide))

    def restored(self, kept: Iterable[tuple[dict[str, Any], Losses]], index: int) -> "Tally":
        """The counts of a checkpoint, in which each of our callbacks has a copy of them; these here where none has."""
        found = self
        for state, losses in kept:
            with losses.of("its copy of the counts of steps"):
                saved = of_optimizer(state, "tally", index)
                found = found if saved is None else restored(saved, self, f"tally.{index}")
        return found

    def new_window(self) -> "Tally":
        """A row was written."""
        zero = torch.zeros_like(self.window_reduced)
        return self._replace(window_steps=0, window_reduced=zero, window_max=torch.full_like(self.window_max, -1))

    def add_step(self, before: Tensor, reduced: Tensor) -> "Tally":
        """Count a step with the norm ``before``, ``reduced`` (0-d bool) or not by anybody known so far."""
        finite = before.isfinite()
        highest = torch.where(finite, torch.maximum(self.window_max, before), self.window_max)
        return self._replace(
            window_steps=self.window_steps + 1,
            window_reduced=self.window_reduced + reduced,
            window_max=highest,
            steps=self.steps + 1,
        )

    def add_overflow(self, before: Tensor, *, scaled: bool, fused: bool) -> "Tally":
        """Count a norm that is not finite: an incident, or routine where a GradScaler looks for its scale."""
        bad = ~before.isfinite()
        if not scaled:
            return self._replace(nonfinite=self.nonfinite + bad)
        return self._replace(kernel_skipped=self.kernel_skipped + bad) if fused else self

    def add_left(self, before: Tensor, left: Tensor, by_trainer: Tensor) -> "Tally":
        """Count what was ``left`` of the norm ``before``, and whether the Trainer took of it."""
        valid = before.isfinite() & (before > 0) & left.isfinite()
        share = torch.where(valid, left / before, 0)
        return self._replace(
            trainer_reduced=self.trainer_reduced + (by_trainer & valid),
            known=self.known + valid,
            left=self.left + share,
        )


class Count(NamedTuple):
    """Steps with a gradient and, as 0-d tensors, those on which it was (or would have been) reduced.

    The steps are the session's (`Tally`): one that somebody skips is among them, whether it could be judged or not.
    """

    window_steps: int
    window_fired: Tensor
    steps: int
    fired: Tensor

    @staticmethod
    def empty(plan: Plan) -> "Count":
        """Nothing counted."""
        zero = torch.zeros((), dtype=torch.int64, device=plan.device)
        return Count(0, zero, 0, zero)

    def add(self, fired: Tensor | None) -> "Count":
        """Count one step; ``fired`` is a 0-d bool, None where the step was not judged."""
        count = 0 if fired is None else fired
        return Count(self.window_steps + 1, self.window_fired + count, self.steps + 1, self.fired + count)

    def new_window(self) -> "Count":
        """A row was written."""
        return self._replace(window_steps=0, window_fired=torch.zeros_like(self.window_fired))

    @property
    def fraction(self) -> Tensor:
        """Of the window's steps, 0-d."""
        return self.window_fired / max(1, self.window_steps)


def windowless(saved: dict[str, Any]) -> dict[str, Any]:
    """A saved count whose window has been told."""
    return {**saved, "window_steps": 0, "window_fired": torch.zeros_like(saved["window_fired"])}
