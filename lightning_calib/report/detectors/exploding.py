"""Gradients that explode over depth: from the output to the input they grow by decades.

Looks at: the gradient per element of the matrices in the order of their registration, which is the order from input to
output in nearly all models. Speaks where it falls from input to output by more than 4 decades (see `vanishing`: one or
two are usual), and depth explains it: the correlation of its logarithm with the place is beyond -0.8, so that most of
the variance is depth and not one layer. Four matrices at least, else there is no depth.

Not to be confused with one layer that is large (`dominated`, `layer-rate`), or with norms that grow over time
(`diverged`, `level-shift`).
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured, column_medians
from lightning_calib.report.run import Floats
from lightning_calib.report.wording import count

CODES = ("exploding",)
_DECADES = 4.0
_DEPTH = -0.8
_LAYERS = 4


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
            f"The gradient explodes over depth: per element it is {10**decades:.2g} times as large at `{layers.names[first]}` "
            f"as at `{layers.names[last]}`, over {count(int(tensors.matrix.sum()), 'matrix').replace('matrixs', 'matrices')}."
        )
        advice = (
            "Lower the gain of the initialisation (`nn.init.kaiming_normal_`, or orthogonal for a recurrent layer), put "
            "`nn.LayerNorm` between the layers, or clip by layers: `GradientClip(Percentile(95), scope=\"layer\")`."
        )
        evidence = {"growth": float(10**decades), "parameters": float(tensors.matrix.sum())}
        return [Finding("exploding", "look", sentence, advice, evidence, layers=(layers.names[first],))]
    return []


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
