"""Parameters of the optimizer that are not trained.

Looks at: tensors of the optimizer without `requires_grad`, and groups whose rate is zero throughout. A note, always
meant: it says what the report leaves out.
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import count, listed

CODES = ("frozen",)


def detect(seen: Measured) -> list[Finding]:
    """A note of what is frozen."""
    layers = seen.run.layers
    if layers is None:
        return []
    names = tuple(layers.names[i] for i in np.flatnonzero(~layers.trainable))
    if not names:
        return []
    sentence = (
        f"{count(len(names), 'tensor')} of the optimizer {'is' if len(names) == 1 else 'are'} frozen or empty: "
        f"{listed(names)}."
    )
    return [Finding("frozen", "note", sentence, "", {"parameters": float(len(names))}, layers=names)]
