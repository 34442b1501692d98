"""No optimizer step was seen.

Looks at: the count of steps. Speaks: when it is zero; no threshold. Not to be confused with steps that were skipped:
those are counted as seen.
"""

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured

CODES = ("no-steps-seen",)


def detect(seen: Measured) -> list[Finding]:
    """A finding where the optimizer never stepped."""
    if seen.run.counts.steps:
        return []
    advice = (
        "With automatic optimization a step comes every `accumulate_grad_batches` batches; with manual optimization "
        "call `self.manual_backward(loss)` and the `step()` of `self.optimizers()`, not of torch's optimizer behind "
        "it."
    )
    return [Finding("no-steps-seen", "look", "No optimizer step has been seen yet.", advice, {"steps": 0.0})]
