"""A parameter that never got a gradient.

Looks at: tensors that are to be trained (`requires_grad`), and whether a gradient ever existed. Speaks after 50 steps
without one, for the reason of `dead-layer`; the steps are those of the run's busiest optimizer, so that one whose
parameters never got any is named, too. Not to be confused with a gradient of zeros (`dead-layer`), with frozen
parameters (`frozen`), or with experts and branches that are drawn now and then: one gradient is enough to be silent.
"""

import numpy as np

from lightning_calib.report.detectors.dead_layer import STEPS
from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import count, listed

CODES = ("unused-parameter",)


def detect(seen: Measured) -> list[Finding]:
    """A finding for all tensors that nothing depends on."""
    layers, steps = seen.run.layers, max(seen.run.counts.steps, seen.steps_of_others)
    if layers is None or steps < STEPS:
        return []
    names = tuple(layers.names[i] for i in np.flatnonzero(layers.trainable & ~layers.given))
    if not names:
        return []
    sentence = f"{listed(names)} never got a gradient in {count(steps, 'step')}: the loss did not depend on {'it' if len(names) == 1 else 'them'}."
    owner = layers.owners[layers.names.index(names[0])]
    call = f"self.{owner}" if owner else f"self.{names[0]}"
    advice = f"Use it in `forward`, or freeze it: `{call}.requires_grad_(False)`."
    return [Finding("unused-parameter", "look", sentence, advice, {"parameters": float(len(names))}, layers=names)]
