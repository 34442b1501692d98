"""Batch normalisation whose statistics are not those of the data.

Looks at: how far the batches' means are from the running means, in running standard deviations (the median over the
channels, of the worst layer), the batch size, the validation loss. Speaks, where BatchNorm is trained, if in the recent
window

- the median distance is more than 1: what evaluation subtracts is then wrong by as much as the activations vary. Noise
  makes 1 / sqrt(batch size) times the correlation within a sample: 0.4 for four independent samples;
- or the batch has 4 samples or fewer: published errors of ResNet-50 rise from 23.6 % (32 samples) to 27.3 % (4) and
  34.7 % (2), see Wu and He, Group Normalization, 2018;
- or validation is no better than an untrained net (its loss is above the first) while training has learned, and the
  distance is above one half.

Not to be confused with overfitting (there the statistics are right), or with frozen BatchNorm (it is not listed).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, finite

CODES = ("batch-norm",)
_FAR = 1.0
_HALF = 0.5
_SMALL = 4
_ROWS = 4


def detect(seen: Measured) -> list[Finding]:
    """A finding where evaluation will not see what training saw."""
    facts, scalars, loss = seen.run.facts, seen.run.scalars, seen.loss
    if not facts.norm_layers or seen.run.counts.steps < 2:
        return []
    shifts, vals = finite(scalars.norm_shift[seen.recent]), finite(scalars.val_loss)
    shift = float(np.median(shifts)) if len(shifts) >= _ROWS else float("nan")
    val = float(vals[-1]) if len(vals) else float("nan")
    evidence = {"norm_shift": shift, "val_loss": val, "loss_first": loss.first, "loss_last": loss.last}
    evidence |= {"batch_size": float(facts.batch_size)} if facts.batch_size else {}
    gap = bool(loss.learned and val > loss.first)
    given = "forward=lambda module, batch: ..." if facts.manual else ""  # which it cannot know by itself
    precise = f"`Trainer(callbacks=[PreciseBatchNorm({given})])` recomputes them before validation"
    if shift > _FAR or (gap and shift > _HALF):
        bad = f"; the validation loss is {val:.3g} where training is at {loss.last:.3g}" if gap else ""
        sentence = f"BatchNorm's running means are {shift:.2g} standard deviations from those of the batches{bad}."
        advice = "look at `momentum` (0.1 is usual) and at a learning rate that moves the layers before it too fast."
        advice = advice[0].upper() + advice[1:] if facts.engine else f"{precise}; {advice}"
    elif facts.batch_size and facts.batch_size <= _SMALL:
        sentence = (
            f"BatchNorm normalises over {facts.batch_size} sample{'' if facts.batch_size == 1 else 's'} per batch: its "
            "statistics are mostly noise."
        )
        advice = (
            "Use `nn.GroupNorm(32, channels)` or larger batches; with several processes "
            f"`Trainer(sync_batchnorm=True)`{'' if facts.engine else f'; {precise}'}."
        )
    else:
        return []
    return [Finding("batch-norm", "look", sentence, advice, evidence, layers=facts.norm_layers)]
