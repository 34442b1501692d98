"""Steps that were not taken.

Looks at: the count of skipped steps that were no inf or nan (those are `nonfinite`). With a GradScaler some are how it
works: it begins at 2^16, halves on each overflow and doubles every 2,000 steps, so that 16 at the start and one or two
every 2,000 steps are usual. Speaks beyond that, or where the scale has fallen below 1 (the loss itself overflows).
Without a scaler it speaks where more than one step in a hundred was skipped, more than three in all: a rule that skips
outliers at 4 deviations fires on fewer than 6 in 10,000 healthy steps.

Not to be confused with `loss-scale` (the usual number), or with micro-batches of accumulation (no steps).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite
from lightning_calib.report.wording import count, percent, was

CODES = ("skipped-steps", "loss-scale")
_START = 16
_EVERY = 2000
_SHARE = 0.01
_FEW = 3


def detect(seen: Measured) -> list[Finding]:
    """A finding for many, a note for a scaler's few."""
    counts = seen.run.counts
    skipped = counts.skipped - min(counts.skipped, counts.nonfinite)
    scales = finite(seen.run.scalars.loss_scale)
    if not skipped:
        return []
    evidence = {"skipped": float(skipped), "steps": float(counts.steps)}
    share = skipped / max(counts.steps, 1)
    told = f"{count(skipped, 'step')} of {counts.steps:,} ({percent(share)}) {was(skipped)} skipped"
    if not len(scales):
        if skipped <= _FEW or share <= _SHARE:
            return []
        advice = (
            "Look who skips them (a guard, a NaN loss, a `training_step` that returns None): each is a batch that "
            "taught nothing."
        )
        return [Finding("skipped-steps", "look", f"{told}.", advice, evidence)]
    scale = float(scales[-1])
    evidence["loss_scale"] = scale
    if skipped <= _START + 2 * np.ceil(counts.steps / _EVERY) and scale >= 1:
        sentence = f"The GradScaler skipped {count(skipped, 'step')} while it looked for its scale, {scale:,.0f} now."
        return [Finding("loss-scale", "note", sentence, "", evidence)]
    sentence = f"{told} because fp16 overflowed; the loss scale is {scale:,.10g}."
    return [Finding("skipped-steps", "look", sentence, 'Use `Trainer(precision="bf16-mixed")`.', evidence)]
