"""What is remembered of one optimizer from step to step, and how a step or a row changes it."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from lightning_calib.functional.plan import Plan
from lightning_calib.steps.counts import ClipCounts, StepCounts
from lightning_calib.steps.norm_history import NormHistory
from lightning_calib.steps.run_history import RunHistory
from lightning_calib.steps.shadow_history import ShadowHistory
from lightning_calib.steps.step_record import StepRecord


class OptimizerMemory(NamedTuple):
    """A value: every change makes a new one.

    Attributes:
        steps: Counts of steps.
        clips: Counts by ``state_key`` of the callbacks that clip gradients of this optimizer.
        norms: The norms of the run, where GradientMonitor wants them.
        tab: What the tab's records remember, where there is a tab.
        history: What the report needs of the run, where GradientMonitor wants it.
        shadows: What policies would have done that are judged and never applied, where GradientMonitor has any.
    """

    steps: StepCounts
    clips: Mapping[str, ClipCounts]
    norms: NormHistory | None = None
    tab: Any = None
    history: RunHistory | None = None
    shadows: ShadowHistory | None = None

    @staticmethod
    def empty(plan: Plan) -> "OptimizerMemory":
        """Nothing has happened."""
        return OptimizerMemory(StepCounts.empty(plan), {})

    def add(self, *records: StepRecord, scaled: bool, fused: bool) -> "OptimizerMemory":
        """Count steps with a gradient when all callbacks have acted: many at once are, to the bit, one after the other.

        Args:
            records: The steps.
            scaled: Whether there is a GradScaler.
            fused: Whether the optimizer skips overflows by itself.
        """
        records = tuple(record for record in records if record.norm_before is not None)
        if not records:
            return self
        norms = [norm for record in records if (norm := record.norm_before) is not None and not record.spike]
        return self.add_clips(*records)._replace(
            steps=self.steps.add(*records, scaled=scaled, fused=fused),
            norms=self.norms if self.norms is None or not norms else self.norms.add(torch.stack(norms)),
            shadows=self.shadows if self.shadows is None else self.shadows.add(*records),
        )

    def add_clips(self, *records: StepRecord) -> "OptimizerMemory":
        """Count who reduced the gradient; a step that somebody has dropped counts as one that nobody reduced."""
        each = [{one.key: one.reduced for one in record.fired} if record.live else {} for record in records]
        clips = {key: counts.add(*(fired.get(key) for fired in each)) for key, counts in self.clips.items()}
        return self._replace(clips=clips)

    def end_step(self, record: StepRecord) -> "OptimizerMemory":
        """The step at hand is over: count it as skipped if torch did not take it."""
        return self._replace(steps=self.steps.end_step(skipped=record.skipped))

    def new_window(self) -> "OptimizerMemory":
        """A row is written: what is counted since the last row starts again."""
        clips = {key: counts.new_window() for key, counts in self.clips.items()}
        return self._replace(steps=self.steps.new_window(), clips=clips)
