"""What one fit holds of one optimizer."""

from typing import Any

from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.run_history import RunHistory
from lightning_calib.steps.scaled_rates import ScaledRates
from lightning_calib.steps.step_record import StepRecord

_MOST = 128  # steps: of each the device holds some 0-d tensors, half a kilobyte each


class OptimizerRun:
    """The view of its gradients, the step at hand, and what is remembered.

    Steps wait to be counted until somebody asks for the memory (a row, a checkpoint, a summary), or there are 128 of
    them. Many at once are, to the bit, one after the other: when it happens makes no difference.

    Attributes:
        view: Reads and writes the gradients.
        rates: Scales the learning rates within a step, if a callback wants to.
        record: The step at hand.
        backwards: How many backward passes there had been at its last step.
    """

    view: GradientView
    rates: ScaledRates
    record: StepRecord
    backwards: int

    def __init__(self, view: GradientView) -> None:
        self.view, self.rates = view, ScaledRates(view.optimizer)
        self.record, self.backwards = StepRecord(), 0
        self._memory, self._waiting = OptimizerMemory.empty(view.plan), list[StepRecord]()

    @staticmethod
    def of(view: GradientView) -> "OptimizerRun":
        """Nothing has happened yet."""
        return OptimizerRun(view)

    @property
    def memory(self) -> OptimizerMemory:
        """What is remembered, with all steps so far; replaced as a whole."""
        if self._waiting:
            view, waiting = self.view, self._waiting
            self._memory = self._memory.add(*waiting, scaled=view.scaler is not None, fused=view.fused)
            self._waiting = []
        return self._memory

    @memory.setter
    def memory(self, memory: OptimizerMemory) -> None:
        self._memory = memory

    @property
    def tab(self) -> Any:
        """What the tab's records remember, which waits for no count."""
        return self._memory.tab

    @tab.setter
    def tab(self, tab: Any) -> None:
        self._memory = self._memory._replace(tab=tab)

    @property
    def history(self) -> RunHistory | None:
        """What the report needs of the run, which waits for no count."""
        return self._memory.history

    @history.setter
    def history(self, history: RunHistory | None) -> None:
        self._memory = self._memory._replace(history=history)

    def count(self) -> None:
        """All callbacks have acted: the step at hand counts, if it has a gradient."""
        if self.record.norm_before is not None:
            self._waiting.append(self.record)
        if len(self._waiting) >= _MOST:
            _ = self.memory

    def end_step(self) -> None:
        """The step at hand is over: count it as skipped if torch did not take it."""
        if self.record.skipped:
            self._memory = self._memory.end_step(self.record)
