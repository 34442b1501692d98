"""Gradients that vanish on their way: some layers cannot move while others do.

Looks at: matrices whose gradient is not exactly zero. Speaks where, in the median of the last half of the run, either

- a step changes them by less than half of the last bit of their number format (2^-24 for float32, 2^-8 for bf16
  weights, 2^-11 for fp16 ones), so that most elements do not change at all, or
- the gradient per element is 4 decades below that of another matrix *and* it does not move them: their whole path,
  without what weight decay does, is below a thousandth of their norm, or Adam's eps drowns it (less than a tenth of the
  step is left, see `clip-below-eps`). Four decades, because what is usual between layers (size, fan-in, rows of an
  embedding that are touched) makes one or two; the motion, because Adam and its kin move small gradients just as far.

And another matrix moves a hundred times as far, at the same rate: else the rate is low for all (`rate-too-low`). Not to
be confused with a dead layer (exactly zero), a group whose rate is low by choice, or the end of a decay.
"""

import numpy as np

from lightning_calib.report.finding import Finding
from lightning_calib.report.measured import Measured
from lightning_calib.report.wording import listed

CODES = ("vanishing",)
_BITS = {"bf16-true": 2.0**-8, "16-true": 2.0**-11}
_DECADES = 1e-4
_STUCK = 1e-3
_DROWNED = 0.1
_FARTHER = 100.0


def detect(seen: Measured) -> list[Finding]:
    """A finding for all matrices that gradients no longer reach."""
    tensors, layers = seen.tensors, seen.run.layers
    if tensors is None or layers is None or len(layers.step) < 4:
        return []
    able = tensors.matrix & (tensors.grad > 0) & np.isfinite(tensors.pulled) & _rate_on(seen)
    if able.sum() < 2:
        return []
    bit = _BITS.get(seen.run.facts.precision, 2.0**-24)
    rms, ratio = np.where(able, tensors.rms, 0.0), np.where(able, tensors.pulled, 0.0)
    stuck = (ratio * seen.run.counts.steps < _STUCK) | (tensors.rms / (tensors.rms + tensors.eps) < _DROWNED)
    low = able & ((ratio < bit) | ((rms < _DECADES * rms.max()) & stuck))
    if not low.any() or not (able & ~low).any():
        return []
    low &= ratio * _FARTHER < ratio[able & ~low].max()
    if not low.any():
        return []
    order = np.flatnonzero(low)[np.argsort(tensors.rms[low])]
    names = tuple(layers.names[i] for i in order)
    worst, best = float(tensors.rms[order[0]]), float(rms.max())
    sentence = (
        f"The gradient vanishes on its way to {listed(names)}: {worst:.2g} per element where "
        f"`{layers.names[int(rms.argmax())]}` gets {best:.2g}, and moves {'it' if len(names) == 1 else 'the first'} by "
        f"{ratio[order[0]]:.1g} of its norm in a step."
    )
    advice = (
        "Give the gradient a way: residual connections, `nn.LayerNorm` between the layers, ReLU or GELU instead of "
        "sigmoid and tanh, an initialisation that keeps the variance (`nn.init.kaiming_normal_`)."
    )
    evidence = {"growth": worst / best, "update_ratio": float(ratio[order[0]]), "parameters": float(len(names))}
    return [Finding("vanishing", "look", sentence, advice, evidence, layers=names)]


def _rate_on(seen: Measured) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether a tensor's group has a rate that is not far below the others' by choice, T."""
    layers, groups = seen.run.layers, seen.run.facts.groups
    if layers is None or not groups:
        return np.ones(len(layers.names) if layers is not None else 0, bool)
    rates = np.array([group.lr if group.lr is not None else np.nan for group in groups], float)
    on = ~(rates * _FARTHER < np.nanmax(rates)) if np.isfinite(rates).any() else np.ones(len(rates), bool)
    return np.array([bool(on[g]) if g < len(on) else True for g in layers.group_of], bool)
