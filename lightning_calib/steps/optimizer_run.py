"""What one fit holds of one optimizer."""

from dataclasses import dataclass, field

from lightning_calib.steps.gradient_view import GradientView
from lightning_calib.steps.optimizer_memory import OptimizerMemory
from lightning_calib.steps.scaled_rates import ScaledRates
from lightning_calib.steps.step_record import StepRecord


@dataclass(eq=False)
class OptimizerRun:
    """The view of its gradients, the step at hand, and what is remembered.

    Attributes:
        view: Reads and writes the gradients.
        rates: Scales the learning rates within a step, if a callback wants to.
        memory: Replaced as a whole at every step and row.
        record: The step at hand.
        backwards: How many backward passes there had been at its last step.
    """

    view: GradientView
    rates: ScaledRates
    memory: OptimizerMemory
    record: StepRecord = field(default_factory=StepRecord)
    backwards: int = 0

    @staticmethod
    def of(view: GradientView) -> "OptimizerRun":
        """Nothing has happened yet."""
        return OptimizerRun(view, ScaledRates(view.optimizer), OptimizerMemory.empty(view.plan))
