"""Steps that were not taken.

Looks at: the count of skipped steps that were no inf or nan (those are `nonfinite`). With a GradScaler some are how it
works: it begins at 2^16, halves on each overflow and doubles every 2,000 steps, so that 16 at the start and one or two
every 2,000 steps are usual. Speaks beyond that, or where the scale has fallen below 1 (the loss itself overflows).
Without a scaler it speaks where more than one step in a hundred was skipped, more than three in all: a rule that skips
outliers at 4 deviations fires on fewer than 6 in 10,000 healthy steps. What SpikeGuard has dropped is told as that, and
is no overflow; it is also told where it has rewound, because then the weights were ruined.

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
    spikes = min(counts.spikes, counts.skipped)
    skipped = max(0, counts.skipped - spikes - counts.nonfinite)
    return [*_spikes(seen, spikes), *_others(seen, skipped)]


def _spikes(seen: Measured, spikes: int) -> list[Finding]:
    """What SpikeGuard has done."""
    counts = seen.run.counts
    if not counts.rewound and (spikes <= _FEW or spikes <= _SHARE * counts.steps):
        return []
    told = [one.step for one in seen.run.bad_steps if one.kind in ("spike", "rewind")]
    first = f", the first at step {told[0]:,}" if told else ""
    sentence = f"SpikeGuard dropped {count(spikes, 'step')} of {counts.steps:,}{first}"
    if counts.rewound:
        sentence += f", and a rewind undid {counts.rewound:,} that had been taken"
    advice = "Look at those batches; if the weights were ruined (a rewind), lower the learning rate where it happened."
    evidence = {"skipped": float(spikes), "rewound": float(counts.rewound), "steps": float(counts.steps)}
    steps = (told[0], told[-1]) if told else None
    return [Finding("skipped-steps", "look", f"{sentence}.", advice, evidence, steps=steps)]


def _others(seen: Measured, skipped: int) -> list[Finding]:
    """What a GradScaler has skipped, or somebody else."""
    counts = seen.run.counts
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
