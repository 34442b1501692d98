"""Gradients that explode over depth: from the output to the input they grow by decades.

Looks at: the gradient per element of the matrices in the order of their registration, which is the order from input to
output in nearly all models. Speaks where it falls from input to output by more than 4 decades (see `vanishing`: one or
two are usual), and depth explains it: the correlation of its logarithm with the place is beyond -0.8, so that most of
the variance is depth and not one layer. Four matrices at least, else there is no depth.

Also speaks where a matrix is so sensitive that a change by a thousandth of its norm could change the loss by all of it:
|g| |w| is, to first order, the loss's change when the weights change by their norm, and where it is more than 1,000
times the largest loss, in the median row, steps of the usual size (a thousandth of the norm) are no longer small. A
chaotic net is like that without 4 decades between its layers; of a healthy one the number is about that of its layers.

Not to be confused with one layer that is large (`dominated`, `layer-rate`), or with norms that grow over time
(`diverged`, `level-shift`).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, column_medians, finite
from lightning_calib.report.run import Floats
from lightning_calib.report.wording import count

CODES = ("exploding",)
_DECADES = 4.0
_DEPTH = -0.8
_LAYERS = 4
_SENSITIVE = 1000.0


def detect(seen: Measured) -> list[Finding]:
    """A finding where depth makes gradients grow, in the last half of the run or in its first rows."""
    layers, tensors = seen.run.layers, seen.tensors
    if layers is None or tensors is None or not len(layers.step):
        return []
    root = np.sqrt(np.maximum(np.array(layers.sizes, float), 1.0))
    early = column_medians(layers.before[: max(1, len(layers.step) // 10)]) / root
    for rms in (tensors.rms, early):
        found = _growth(rms, tensors.matrix)
        if found is None:
            continue
        decades, first, last = found
        sentence = (
            f"The gradient explodes over depth: per element it is {10**decades:.2g} times as large at "
            f"`{layers.names[first]}` as at `{layers.names[last]}`, over "
            f"{count(int(tensors.matrix.sum()), 'matrix').replace('matrixs', 'matrices')}."
        )
        gain = "Lower the gain of the initialisation (`nn.init.kaiming_normal_`, or orthogonal for a recurrent layer), "
        advice = (
            f"{gain}put `nn.LayerNorm` between the layers, or clip by layers: "
            '`GradientClip(Percentile(95), scope="layer")`.'
        )
        if seen.run.facts.engine:  # which clips the gradient as a whole
            advice = f"{gain}or put `nn.LayerNorm` between the layers."
        evidence = {"growth": float(10**decades), "parameters": float(tensors.matrix.sum())}
        return [Finding("exploding", "look", sentence, advice, evidence, layers=(layers.names[first],))]
    return _chaotic(seen)


def _chaotic(seen: Measured) -> list[Finding]:
    layers, tensors = seen.run.layers, seen.tensors
    losses = np.abs(finite(seen.run.scalars.loss))
    if layers is None or tensors is None or not len(losses) or not losses.max() > 0:
        return []
    sensitivity = np.where(tensors.matrix, tensors.grad * tensors.weight, np.nan) / losses.max()
    if not (sensitivity > _SENSITIVE).any():
        return []
    worst = int(np.nanargmax(sensitivity))
    value, name = float(sensitivity[worst]), layers.names[worst]
    sentence = (
        f"The gradient explodes: that of `{name}` is so large that a change by {1 / value:.1g} of its norm could "
        "change the loss by all of it."
    )
    advice = (
        "Lower the gain of the initialisation (`nn.init.kaiming_normal_`), put `nn.LayerNorm` between the layers, or "
        f"clip to the usual norm: {seen.clip(seen.high)}."
    )
    evidence = {"sensitivity": value, "suggested_max_norm": seen.high, "window": float(seen.window)}
    return [Finding("exploding", "look", sentence, advice, evidence, layers=(name,))]


def _growth(rms: Floats, matrix: np.ndarray[tuple[int], np.dtype[np.bool_]]) -> tuple[float, int, int] | None:
    """Decades from the output's side to the input's, and the two tensors; None where it is no matter of depth."""
    chosen = np.flatnonzero(matrix & np.isfinite(rms) & (rms > 0))
    if len(chosen) < _LAYERS:
        return None
    logs = np.log10(rms[chosen])
    place = np.arange(len(chosen), dtype=float)
    slope = float(np.polyfit(place, logs, 1)[0])
    spread = float(logs.std())
    if not spread > 0 or float(np.corrcoef(place, logs)[0, 1]) > _DEPTH:
        return None
    decades = -slope * (len(chosen) - 1)
    return (decades, int(chosen[0]), int(chosen[-1])) if decades > _DECADES else None
