"""A clip that never fired.

Looks at: the share of the steps on which it reduced the gradient. Speaks where that is zero after 100 steps (a net for
outliers of one in a hundred would have fired by then with odds of 2 to 1; before that there is nothing to say), or at
the end of a run. A note: it may well be there for the outlier that has not come.
"""

from lightning_calib.report.detectors.clip_below_eps import acting
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import count, decimal

CODES = ("clip-never",)
_STEPS = 100


def detect(seen: Measured) -> list[Finding]:
    """A note for each clip that never fired."""
    steps, stopped = seen.run.counts.steps, seen.run.counts.stopped
    if not seen.run.counts.usable or (steps < _STEPS and stopped == "running"):
        return []
    found = []
    for one in acting(seen):
        if one.clip_rate != 0 or one.kind == "normalise":
            continue
        highest = float(seen.norms.max()) if len(seen.norms) else float("nan")
        on = steps if one.seen is None else one.seen
        sentence = f"{one.name} never fired in {count(on, 'step')}" + (
            " and has changed nothing so far." if one.kind == "fixed" else "."
        )
        advice = ""
        if seen.norms.size:
            advice = (
                f"It guards against outliers only; the largest norm of the last {seen.window:,} steps was "
                f"{decimal(highest)}, the 95th percentile {decimal(seen.high)}."
            )
        evidence = {"clip_rate": 0.0, "norm": highest, "suggested_max_norm": seen.high, "steps": float(on)}
        found.append(Finding("clip-never", "note", sentence, advice, evidence))
    return found
