"""A layer whose gradient is exactly zero.

Looks at: weights with two dimensions or more that are trained and have had a gradient. Speaks where it has been
exactly zero on every step of the last half of the run (the largest between two rows counts), of 50 steps or more,
while another tensor's was not. The steps it names begin where the last of them became zero. Exactly zero, because
rounding never gives it: something multiplies by 0. 50 steps, because of eight experts one that is drawn at all is
missed 50 times in a row in one run of a thousand.

Not to be confused with a tensor without a gradient (`unused-parameter`), with a loss that is zero because all is
learned (then every gradient is), with 1-D tensors, LoRA's A at its first step, or rows of an embedding that no batch
touched.
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import listed

CODES = ("dead-layer",)
STEPS = 50


def detect(seen: Measured) -> list[Finding]:
    """A finding for all tensors that are dead."""
    layers = seen.run.layers
    if layers is None or seen.tensors is None or len(layers.step) < 2 or seen.run.counts.steps < 2 * STEPS:
        return []
    rows = len(layers.step)
    largest = np.fmax(layers.before, layers.peak)
    known, moves = ~np.isnan(largest[rows // 2 :]), largest > 0
    alive = moves[rows // 2 :].any(axis=0)
    zero = layers.given & known.any(axis=0) & ~alive & seen.tensors.matrix
    if not zero.any() or not alive.any():
        return []
    dead = tuple(
        layers.names[i] for i in np.flatnonzero(zero)[::-1]
    )  # from the output: zero there makes zero behind it
    since = (moves[:, zero] * np.arange(1, rows + 1)[:, None]).max()  # the row after the last that was not zero
    steps = (int(layers.step[since]), int(layers.step[-1]))
    one = len(dead) == 1
    sentence = (
        f"The gradient{'' if one else 's'} of {listed(dead)} {'has' if one else 'have'} been exactly zero from step "
        f"{steps[0]:,} to {steps[1]:,}: {'it learns' if one else 'they learn'} nothing."
    )
    advice = (
        f"Look at the output of the module of `{dead[0]}`: dead ReLUs (use `nn.LeakyReLU(0.01)` or a lower learning "
        "rate), a mask that hides it, a multiplication by zero, or a `detach`."
    )
    return [Finding("dead-layer", "look", sentence, advice, {"parameters": float(len(dead))}, layers=dead, steps=steps)]
