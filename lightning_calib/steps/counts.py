"""What is counted about one optimizer and about one callback, on the device, so that nothing waits for it."""

from collections.abc import Iterable, Sequence
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
        rewound: Steps that were taken, and undone by a rewind.
        spikes: Steps that were dropped because their norm or their loss was a spike; among the skipped.
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
    rewound: int = 0
    spikes: int = 0

    @property
    def later(self) -> dict[str, Any]:
        """What earlier versions did not save."""
        return {"rewound": 0, "spikes": 0}

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

    def add(self, *records: StepRecord, scaled: bool, fused: bool) -> "StepCounts":
        """Count steps; ``scaled`` under a GradScaler, ``fused`` if the optimizer skips by itself.

        A step without a gradient is not counted. Many steps at once are the same, to the bit, as one after the other.
        """
        records = tuple(record for record in records if record.norm_before is not None)
        if not records:
            return self
        before = torch.stack([norm for record in records if (norm := record.norm_before) is not None])
        finite = before.isfinite()
        counts = self._add_overflows(records, finite, scaled=scaled, fused=fused)
        known = [i for i, record in enumerate(records) if record.kept is not None]
        if known:
            norms = before if len(known) == len(records) else before[known]
            counts = counts.add_kept(norms, *(record.kept for record in records if record.kept is not None))
        return counts._replace(
            window_steps=self.window_steps + len(records),
            window_reduced=self.window_reduced + _reduced(records),
            window_max=torch.maximum(self.window_max, torch.where(finite, before, -1).max()),
            steps=self.steps + len(records),
            rewound=self.rewound + sum(record.rewound for record in records),
            spikes=self.spikes + sum(record.spike for record in records),
        )

    def _add_overflows(
        self, records: Sequence[StepRecord], finite: Tensor, *, scaled: bool, fused: bool
    ) -> "StepCounts":
        """A norm that is not finite is an incident, or routine where a GradScaler looks for its scale."""
        found = [record.overflow for record in records if record.overflow is not None]
        nonfinite = self.nonfinite + sum(one.incident for one in found)
        kernel_skipped = self.kernel_skipped + sum(one.skipped_in_kernel for one in found)
        if found:  # what a guard has found needs no look at the norm
            finite = finite[[i for i, record in enumerate(records) if record.overflow is None]]
        bad = (~finite).sum()
        if not scaled:
            return self._replace(nonfinite=nonfinite + bad, kernel_skipped=kernel_skipped)
        return self._replace(nonfinite=nonfinite, kernel_skipped=kernel_skipped + bad if fused else kernel_skipped)

    def add_kept(self, before: Tensor, *kept: Kept) -> "StepCounts":
        """Count what everybody left of the norms ``before``, and whether the Trainer took of them."""
        norms = torch.stack([one.norm for one in kept])
        valid = before.isfinite() & (before > 0) & norms.isfinite()
        shares = torch.where(valid, norms / before, 0)
        takes = [(i, flag) for i, one in enumerate(kept) if (flag := one.by_trainer) is not None]
        by_trainer = self.trainer_reduced
        if takes:
            by_trainer = by_trainer + (torch.stack([flag for _, flag in takes]) & valid[[i for i, _ in takes]]).sum()
        # One after the other: a sum in another order has other bits, and a run that resumes must have the same.
        left = sum(shares.unbind(), self.left)
        return self._replace(trainer_reduced=by_trainer, known=self.known + valid.sum(), left=left)

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

    def add(self, *fired: Tensor | None) -> "ClipCounts":
        """Count steps; each is a 0-d bool, None where the step was not judged."""
        judged = [one for one in fired if one is not None]
        count = torch.stack(judged).sum() if judged else 0
        steps = len(fired)
        return ClipCounts(self.window_steps + steps, self.window_fired + count, self.steps + steps, self.fired + count)

    def new_window(self) -> "ClipCounts":
        """A row was written."""
        return self._replace(window_steps=0, window_fired=torch.zeros_like(self.window_fired))

    @property
    def fraction(self) -> Tensor:
        """Of the window's steps, 0-d."""
        return self.window_fired / max(1, self.window_steps)


def _reduced(records: Sequence[StepRecord]) -> Tensor | int:
    """On how many of the steps anybody reduced the gradient."""
    each = [record.reductions for record in records]
    width = max(map(len, each))
    if width == 0:
        return 0
    nobody = torch.zeros_like(next(flags[0] for flags in each if flags))
    rows = [[*flags, *[nobody] * (width - len(flags))] for flags in each]
    return torch.stack([flag for flags in rows for flag in flags]).view(-1, width).any(1).sum()
