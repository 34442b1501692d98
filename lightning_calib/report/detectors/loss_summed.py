"""The loss looks like a sum over the batch instead of its mean.

Looks at: the first loss, the batch size, and the number C of outputs of the last layer. A net that knows nothing starts
with a cross-entropy of ln C per sample, and a little more. Speaks where the first loss over the batch size lies within
0.9 and 1.5 times ln C while the loss itself is more than twice that: a mean cannot be there, a sum must be. C is the
size of the last bias, or the last matrix over the size of the last 1-D tensor before it (a head without a bias).
Without such a mark (a regression has no scale of its own) nothing is said.

Then the rate, thresholds and logged norms grow with the batch, and the last, smaller batch counts less. Not to be
confused with a loss that is large by its units.
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.run import Layers

CODES = ("loss-summed",)
_NEAR = (0.9, 1.5)
_TWICE = 2.0


def detect(seen: Measured) -> list[Finding]:
    """A finding where the first loss is the batch size times that of one sample."""
    batch, first, layers = seen.run.facts.batch_size, seen.loss.first, seen.run.layers
    if not batch or batch < 2 or layers is None or not np.isfinite(first):
        return []
    classes = outputs(layers)
    if classes < 2:
        return []
    chance, each = float(np.log(classes)), first / batch
    if not (_NEAR[0] * chance <= each <= _NEAR[1] * chance and first > _TWICE * _NEAR[1] * chance):
        return []
    sentence = (
        f"The loss looks like a sum over the batch: it starts at {first:.4g}, which is {batch:,} samples times "
        f"{each:.3g}, and ln {classes:,} = {chance:.3g} is where one sample starts."
    )
    advice = (
        f'Take the mean (`reduction="mean"`); if the rate was tuned to the sum, multiply it by {batch:,} with SGD: '
        "rates and clipping thresholds then no longer depend on the batch size."
    )
    evidence = {"loss_first": first, "loss_per_sample": each, "batch_size": float(batch)}
    return [Finding("loss-summed", "look", sentence, advice, evidence)]


def outputs(layers: Layers) -> int:
    """Number of outputs of the last layer, from its bias or from its matrix; 0 if not known."""
    matrices = [i for i, dims in enumerate(layers.dims) if dims == 2]
    if not matrices:
        return 0
    last = matrices[-1]
    bias = [i for i in range(len(layers.dims)) if layers.owners[i] == layers.owners[last] and layers.dims[i] == 1]
    if bias:
        return layers.sizes[bias[-1]]
    before = [layers.sizes[i] for i in range(last) if layers.dims[i] == 1 and layers.sizes[i] > 0]
    return layers.sizes[last] // before[-1] if before and layers.sizes[last] % before[-1] == 0 else 0
